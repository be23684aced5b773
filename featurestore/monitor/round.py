"""What does the monitor look at, over and over?

One round: 1. audit the answers of the last hours; 2. measure today's and yesterday's cases of every objective, and look
whether sources keep what contracts promise of time and volume; 3. profile what arrived in the last hours, and hold
what services answer to what their models were trained on; 4. take over what others found (ports); 5. open and end
alerts, and switch services to their fallback and back; 6. tell the sinks; 7. remove old answers. Each step stands by
itself: where one fails, the round goes on, and the failure is a critical finding of its own: a check that broke is
neither good nor bad data.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from featurestore.clock import Clock
from featurestore.monitor.alerts import Alert, AlertBook, Finding, Sink
from featurestore.monitor.findings import SKEW_SCOPE, of_skew
from featurestore.monitor.measure import cases_of, check_objectives
from featurestore.monitor.model_drift import SCOPE as DRIFT_SCOPE
from featurestore.monitor.model_drift import ModelDrift
from featurestore.monitor.model_drift import findings as drift_findings
from featurestore.monitor.profiles import put_arrived
from featurestore.monitor.served import HOUR_US, prune
from featurestore.monitor.skew_history import Audited, Audits, SkewHistory, audit_hours
from featurestore.monitor.slo import Budget, Objective, findings, objectives_of
from featurestore.monitor.slo_history import DAY_US, SloHistory
from featurestore.monitor.switching import Switches, settle
from featurestore.monitor.training_sets import training_sets
from featurestore.monitor.workspace import Workspace
from featurestore.offline.connection import Limits
from featurestore.personal import holds_personal
from featurestore.plan import Plan, Service, View
from featurestore.segments import segments_of
from featurestore.timeliness import look_and_tell
from featurestore.write_profiles import fold_hours
from validation.errors import PlatformError
from validation.interrupts import interrupted
from validation.profile.store import ProfileStore
from validation.violations import ViolationStore

SETTLE_US: Final = 120_000_000
"""Answers and events need that long to reach their files."""
LOOKBACK_US: Final = 3 * HOUR_US
"""Hours that are audited again in every round, since events and answers come late."""
KEEP_US: Final = 30 * DAY_US
"""How long answers are kept."""
BROKEN_SCOPE: Final = "broken:"
SLO_SCOPE: Final = "slo:"

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")
Look = Callable[[Plan], Sequence[Finding]]
"""What looks at something else: drift, violations. Its findings' keys start with its scope."""


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """What one round found."""

    audits: tuple[Audited, ...]
    budgets: tuple[Budget, ...]
    news: tuple[Alert, ...]
    """Alerts that began, got worse or ended."""
    told: dict[str, int]
    """Alerts that each sink took."""


class Monitor:
    """Looks at one deployment. Not shared by threads."""

    def __init__(
        self,
        place: Workspace,
        repo: Path,
        clock: Clock,
        *,
        sinks: Sequence[Sink],
        looks: Mapping[str, Look] | None = None,
        switches: Switches | None = None,
        hold: Callable[[str, int], object] | None = None,
        lookback_us: int = LOOKBACK_US,
        keep_us: int = KEEP_US,
    ) -> None:
        self.book = AlertBook(place.alerts, clock)
        self._place = place
        self._repo = repo
        self._clock = clock
        self._sinks = sinks
        self._looks = dict(looks or {})
        self._lookback_us = lookback_us
        self._keep_us = keep_us
        self._skew = SkewHistory(place.skew)
        self._slo = SloHistory(place.slo)
        self._profiles = ProfileStore(place.profiles)
        self._model_drift = ModelDrift(place.drift, self._profiles, place.served, place.datasets, clock)
        self._switches = switches
        self._hold = hold
        """Keeps the view versions of a plan version from being dropped: services may be switched back to it."""
        self._broken: list[Finding] = []

    def round(self, plan: Plan) -> Round:
        """One round over the plan in force. Raises PlatformError only where the alerts cannot be kept."""
        self._broken = []
        now_us = self._clock()
        news: list[Alert] = []
        audits = self._attempt("skew audit", partial(self._audit, plan, now_us))
        if audits is not None:
            for name, error in audits.failed.items():
                self._broke(f"skew audit of view {name}", error)
            news += self.book.look(SKEW_SCOPE, of_skew(audits.audited, plan))
        budgets: list[Budget] = []
        for view in plan.views.values():
            budgets += self._attempt(f"objectives of view {view.name}", partial(self._measure, view, now_us)) or []
        news += self.book.look(SLO_SCOPE, findings(budgets))
        self._attempt("promises of time and volume", partial(self._promises, plan, now_us))
        for source, views in self._sources(plan).items():
            self._attempt(f"profile of source {source}", partial(self._profile, plan, views, now_us))
        self._attempt("files of written rows' profiles", partial(fold_hours, self._profiles, now_us))
        drifted: list[Finding] = []
        broke = False
        for service in plan.services.values():
            seen = self._attempt(f"drift of service {service.name}", partial(self._drift, service, plan))
            broke |= seen is None
            drifted += seen or ()
        if not broke:
            news += self.book.look(DRIFT_SCOPE, drifted)
        for scope, look in self._looks.items():
            found = self._attempt(scope.rstrip(":"), partial(look, plan))
            if found is not None:
                news += self.book.look(scope, found)
        for service in plan.services.values():
            if self._hold is not None and (version := service.policy.pinned_version) is not None:
                self._attempt("pinned plans", partial(self._hold, f"fallback {service.name}", version))
        if self._switches is not None:
            self._attempt("fallbacks", partial(settle, plan, self.book.open(), self._switches, now_us))
        news += self.book.look(BROKEN_SCOPE, self._broken)
        told = self.book.tell(self._sinks)
        prune(self._place.served, now_us - self._keep_us)
        return Round(
            audits=tuple(audits.audited if audits else ()), budgets=tuple(budgets), news=tuple(news), told=told
        )

    def _audit(self, plan: Plan, now_us: int) -> Audits:
        return audit_hours(
            self._place.served, self._skew, plan, repo=self._repo, start_us=now_us - self._lookback_us,
            end_us=now_us - SETTLE_US, clock=self._clock,
        )  # fmt: skip

    def _promises(self, plan: Plan, now_us: int) -> None:
        look_and_tell(
            plan, [], repo=self._repo, now_us=now_us, limits=Limits(),
            violations=ViolationStore(self._place.violations), promises=self._place.promises,
        )  # fmt: skip

    def _sources(self, plan: Plan) -> dict[str, list[View]]:
        """The views of each source that is profiled here; events are profiled in the stream."""
        by_source: dict[str, list[View]] = {}
        for view in plan.views.values():
            if view.source.topic is None:
                by_source.setdefault(view.source.name, []).append(view)
        return by_source

    def _profile(self, plan: Plan, views: Sequence[View], now_us: int) -> None:
        first_us = (now_us - self._lookback_us) // HOUR_US * HOUR_US
        segments, personal = segments_of(plan, views), any(holds_personal(plan, view.name) for view in views)
        for hour_us in range(first_us, now_us - SETTLE_US, HOUR_US):
            put_arrived(self._profiles, views[-1], self._repo, hour_us, segments, personal=personal)

    def _drift(self, service: Service, plan: Plan) -> list[Finding]:
        personal = {each.name for each in service.projections if holds_personal(plan, each.view)}
        checked = self._model_drift.check(service, training_sets(self._place.datasets, service), personal)
        return [] if checked is None else drift_findings(checked, service)

    def _measure(self, view: View, now_us: int) -> list[Budget]:
        objectives = objectives_of(view)
        check_objectives(view, objectives)
        return [self._budget(objective, view, now_us) for objective in objectives]

    def _budget(self, objective: Objective, view: View, now_us: int) -> Budget:
        today_us = now_us // DAY_US * DAY_US
        for day_us in (today_us - DAY_US, today_us):
            cases = cases_of(
                objective, view, log=self._place.served, repo=self._repo, start_us=day_us,
                end_us=min(day_us + DAY_US, now_us),
            )  # fmt: skip
            self._slo.put(objective, day_us, cases)
        return self._slo.budget(objective, now_us)

    def _attempt(self, what: str, work: Callable[[], _T]) -> _T | None:
        try:
            return work()
        except Exception as error:
            if interrupted():
                raise
            if not isinstance(error, PlatformError):
                _LOG.exception("the monitor's step %r failed", what)
            self._broke(what, error)
            return None

    def _broke(self, what: str, error: Exception) -> None:
        self._broken.append(
            Finding(
                key=f"{BROKEN_SCOPE}{what}",
                severity="critical",
                title=f"the check broke: {what}",
                detail=str(error) if isinstance(error, PlatformError) else f"{type(error).__name__}: {error}",
                evidence="featurestore monitor --once",
            )
        )
