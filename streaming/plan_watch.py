"""Is another Plan in force, and can a running worker go over to it?"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from featurestore.errors import StoreUnavailable
from featurestore.plan import Plan, View
from featurestore.plan_store import PlanStore
from streaming.sinks import RangeSink
from streaming.worker import News
from validation.errors import PlatformError

PLAN_AGE_S: Final = 2.0
"""How long a new plan may go unnoticed."""
_LOG = logging.getLogger(__name__)


class Beating(Protocol):
    """What is told of every round."""

    def beat(self) -> None:
        """A round begins."""
        ...

    def saw_plan(self) -> None:
        """The plan was looked up."""
        ...


class PlanWatch:
    """Asked once a round: whether to stop, and whether there is another plan; it is the worker's pulse too.

    What the worker goes by is reported, every time that it looks.
    `moved`: there are other topics to read than ours, by another plan or since a first event is replayed: the worker
    must be made anew.
    """

    def __init__(
        self,
        plans: PlanStore,
        plan: Plan,
        views_of: Callable[[Plan], tuple[View, ...]],
        sinks_of: Callable[[Plan, Sequence[View]], tuple[RangeSink, ...]],
        seconds: Callable[[], float],
        pulse: Beating,
        stop: Callable[[], bool],
        appeared: Callable[[], bool] = lambda: False,
        report: Callable[[int], object] = lambda version: None,  # noqa: ARG005 - nobody wants to know
        failed: Callable[[], object] = lambda: None,
    ) -> None:
        """Look every two seconds.

        `appeared`: whether there is another topic to read than when the worker began; `failed` counts failed looks.
        """
        self.moved = False
        self._plans = plans
        self._version = plan.version
        self._read = _topics_of(views_of(plan))
        self._views_of = views_of
        self._sinks_of = sinks_of
        self._seconds = seconds
        self._pulse = pulse
        self._stop = stop
        self._appeared = appeared
        self._report = report
        self._failed = failed
        self._next = seconds()

    def ended(self) -> bool:
        """Whether the worker shall leave."""
        self._pulse.beat()
        return self.moved or self._stop()

    def news(self) -> News | None:
        """The plan to go over to; None where nothing changed, or more than a running worker can follow."""
        if self._seconds() < self._next:
            return None
        self._next = self._seconds() + PLAN_AGE_S
        try:
            self.moved = self.moved or self._appeared()
            news = self._looked()
        except Exception as error:  # noqa: BLE001 - a look's outermost frame: the plan in hand is still good
            # A store that does not answer is the worker's to deal with; a plan that cannot be read is `apply`'s.
            if not isinstance(error, StoreUnavailable):
                _LOG.warning("the plan is not renewed: %s", error, exc_info=not isinstance(error, PlatformError))
            self._failed()
            return None
        self._pulse.saw_plan()
        return news

    def _looked(self) -> News | None:
        # Goes out before a new plan is taken up: a version of a view is dropped only when nobody says he writes it.
        self._report(self._version)
        if self._plans.version() in (self._version, None):
            return None
        plan = self._plans.load()
        views = self._views_of(plan)
        if _topics_of(views) == self._read:
            news = News(plan, views, self._sinks_of(plan, views))
            self._version = plan.version
            return news
        self.moved = True
        return None


def _topics_of(views: Iterable[View]) -> set[tuple[str, str]]:
    return {(view.source.topic.name, view.source.topic.bootstrap_servers) for view in views if view.source.topic}
