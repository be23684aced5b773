"""Which served answers are looked at again after the response?

Whoever wants to (contracts, the serve log of the skew audit) registers a Look. The request path pays a dictionary
look-up, and for an answer that is wanted an append to a bounded queue; one thread looks at what waits there, within its
share of one processor. What finds the queue full is dropped and counted: no request ever waits for a look.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import random
from typing import Protocol

from featurestore.api.answer import Answered
from featurestore.api.metrics import Metrics
from featurestore.api.selection import Selection
from featurestore.errors import FeatureStoreError
from featurestore.online.result import Column, OnlineResult
from featurestore.plan import Plan

WAITING = 256
"""Answers that wait for a look at most."""
BUDGET = 0.05
"""The share of one processor that looks may take."""
PAUSE_S = 0.1
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Served:
    """One answer as it went out. Its parts belong to the answer: look at them, never change them.

    Columns are made of them when somebody looks: an answer that goes out as it was read has none yet.
    """

    plan: Plan
    service: str | None
    """None where features were named one by one."""
    requested_us: int
    as_of_us: int | None
    selection: Selection
    result: OnlineResult
    keys: Mapping[str, Sequence[object]]
    """Entity columns, as their entities' types."""
    given: Mapping[str, Sequence[object]]
    """Columns that the caller supplied to on-demand views."""
    make: Callable[[], Sequence[Answered]]

    @cached_property
    def read(self) -> Sequence[Column]:
        """What was read of the online store, in the order of `selection.reads` and of their features."""
        return self.result.columns

    @cached_property
    def answered(self) -> Sequence[Answered]:
        """The keys, then one column for each of `selection.outputs`, after the service's policy."""
        return self.make()


class Look(Protocol):
    """Looks at answers again. All calls but `share` come from one thread."""

    name: str
    """What metrics call it."""

    def share(self, plan: Plan, service: str | None) -> float:
        """The share of a service's answers to look at, chosen at random: 0 none, 1 all. Asked once a plan and service.

        Who wants whole keys takes all answers, and chooses among their rows when it looks.
        """
        ...

    def look(self, served: Served) -> None:
        """Looks at one answer; an error is logged and counted, nothing more."""
        ...

    def rest(self) -> None:
        """Called when nothing waits, every `PAUSE_S`: time to write what was gathered."""
        ...

    def finish(self) -> None:
        """Called once, at the end: write what was gathered."""
        ...


class Wanted:
    """Who wants to look at the answers of one plan."""

    def __init__(self, plan: Plan, looks: Sequence[Look], put: Callable[[Sequence[Look], Served], None]) -> None:
        self._plan, self._looks = plan, looks
        self.put = put
        """Leaves an answer to those who want it."""
        self._shares: dict[str | None, tuple[tuple[Look, float], ...]] = {}

    def by(self, service: str | None) -> Sequence[Look]:
        """Those who want the next answer of a service: empty for most answers."""
        shares = self._shares.get(service)
        if shares is None:
            # Services of the plan alone come here: the answer has been found.
            asked = [(look, _share(look, self._plan, service)) for look in self._looks]
            shares = self._shares[service] = tuple((look, share) for look, share in asked if share > 0)
        return [look for look, share in shares if share >= 1 or random() < share] if shares else ()  # noqa: S311


def _share(look: Look, plan: Plan, service: str | None) -> float:
    try:
        return look.share(plan, service)
    except FeatureStoreError as error:  # a wrong definition must not cost the answer
        _log.warning("answers are not looked at again by %s: %s", look.name, error)
        return 0.0


class Again:
    """The queue of answers to look at, and the thread that does."""

    def __init__(
        self,
        looks: Sequence[Look],
        metrics: Metrics,
        *,
        waiting: int = WAITING,
        budget: float = BUDGET,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._looks, self._metrics = tuple(looks), metrics
        self._queue: deque[tuple[Sequence[Look], Served]] = deque()
        self._most, self._budget, self._pause_s = waiting, budget, pause_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def of(self, plan: Plan) -> Wanted:
        """Who wants to look at the answers of a plan."""
        return Wanted(plan, self._looks, self._put)

    def start(self) -> None:
        """Begins to look."""
        if self._looks and self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="again", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Looks at what waits and ends; returns when that is done."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _put(self, looks: Sequence[Look], served: Served) -> None:
        if len(self._queue) >= self._most:
            for look in looks:
                self._metrics.looked(look.name, "dropped")
        else:
            self._queue.append((looks, served))

    def _run(self) -> None:
        while not self._stop.wait(self._pause_s):
            while self._queue and not self._stop.is_set():
                before = time.thread_time()
                self._next()
                # What a look took is paid back by waiting, so that requests have the processor.
                self._stop.wait((time.thread_time() - before) * (1 / self._budget - 1))
            for look in self._looks:
                self._guarded(look, look.rest, counted=False)
        while self._queue:
            self._next()
        for look in self._looks:
            self._guarded(look, look.finish, counted=False)

    def _next(self) -> None:
        looks, served = self._queue.popleft()
        for look in looks:
            self._guarded(look, lambda look=look: look.look(served))  # type: ignore[misc]  # a default binds it now

    def _guarded(self, look: Look, work: Callable[[], None], *, counted: bool = True) -> None:
        try:
            work()
        except Exception:  # noqa: BLE001 - the thread's outermost frame: a look that fails must not end the others
            _log.exception("looking again at answers: %s failed", look.name)
            self._metrics.looked(look.name, "failed")
        else:
            if counted:
                self._metrics.looked(look.name, "looked_at")
