"""How ready for production are a service's data and monitoring? The ML Test Score, answered from evidence.

The rubric is that of Breck, Cai, Nielsen, Salib and Sculley, "The ML Test Score: A Rubric for ML Production Readiness
and Technical Debt Reduction" (IEEE Big Data 2017): seven tests of data, seven of monitoring. A test that the platform
keeps up by itself gets a point, one for which there is partial evidence half a point, one without evidence none. A
section's score is the sum of its points; the score is the smaller of the sections'.
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from featurestore.contracts import contract_of
from featurestore.dataset.manifest import Manifest
from featurestore.monitor.alerts import Alert
from featurestore.monitor.causes import Cause
from featurestore.monitor.concept import Signal
from featurestore.monitor.model_drift import number_of
from featurestore.monitor.skew_history import Audited
from featurestore.monitor.slo import Budget
from featurestore.plan import OnDemandView, Plan, Service, View, is_personal, used_views
from validation.contract import Contract

FRESH_US: Final = 7 * 86_400_000_000
"""Audits and labels that are older say nothing of today."""
MODEL_AGE_TAG: Final = "model_max_age_d"


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """All that the platform knows of one service."""

    plan: Plan
    service: Service
    datasets: Sequence[Manifest]
    """Training sets of the service."""
    audits: Sequence[Audited]
    budgets: Sequence[Budget]
    alerts: Sequence[Alert]
    """Open and ended."""
    signals: Sequence[Signal]
    """Of delayed labels, the latest that were told."""
    drift_checked_us: int | None
    """When its features were last held to their reference; None: never."""
    sinks: Sequence[str]
    """Where alerts are told, beside the log."""
    now_us: int

    @property
    def views(self) -> list[View]:
        """The stored views that the service needs."""
        return used_views(self.plan, self.service.projections)

    def contract_of(self, view: View) -> Contract | None:
        """The contract about the view's source or its topic."""
        return contract_of(self.plan.contracts.values(), view.source)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One test's answer."""

    test: str
    """D1..D7 of data, M1..M7 of monitoring."""
    asks: str
    points: float
    evidence: str
    missing: str = ""
    """What would give the rest of the point."""


class TestScore(msgspec.Struct, frozen=True, kw_only=True):
    """A service's score."""

    # Not a test: pytest looks at names.
    __test__ = False

    service: str
    answers: tuple[Answer, ...]

    @property
    def data(self) -> float:
        """Points of the data section, 0 to 7."""
        return sum(each.points for each in self.answers if each.test.startswith("D"))

    @property
    def monitoring(self) -> float:
        """Points of the monitoring section, 0 to 7."""
        return sum(each.points for each in self.answers if each.test.startswith("M"))

    @property
    def score(self) -> float:
        """The smaller of the sections' points."""
        return min(self.data, self.monitoring)


def score_of(evidence: Evidence) -> TestScore:
    """Answers the fourteen tests for one service."""
    answers = tuple(
        Answer(test=test, asks=asks, points=points, evidence=found, missing=missing)
        for test, asks, ask in _TESTS
        for points, found, missing in [ask(evidence)]
    )
    return TestScore(service=evidence.service.name, answers=answers)


_Told = tuple[float, str, str]


def _part(done: Sequence[str], every: Sequence[str], what: str, mend: str) -> _Told:
    """A point where it holds for all, half where for some; names those for which it does not."""
    lacking = [name for name in every if name not in set(done)]
    found = f"{len(every) - len(lacking)} of {len(every)} {what}"
    if not every:
        return 0.0, found, mend
    points = 1.0 if not lacking else 0.5 if len(lacking) < len(every) else 0.0
    return points, found, f"{mend}: {', '.join(lacking)}" if lacking else ""


def _schema(evidence: Evidence) -> _Told:
    views = [view.name for view in evidence.views]
    done = [view.name for view in evidence.views if (found := evidence.contract_of(view)) and found.rules]
    return _part(done, views, "views have a contract with rules", "write contracts for the sources of")


def _beneficial(evidence: Evidence) -> _Told:
    if evidence.datasets:
        newest = max(evidence.datasets, key=lambda each: each.created_us)
        return 0.5, f"training set {newest.name!r} can be rebuilt with and without each feature", (
            "compare models with and without each feature, and keep the result"
        )  # fmt: skip
    return 0.0, "no training set of this service", "build one: featurestore dataset build"


def _cost(evidence: Evidence) -> _Told:
    answered = sum(audited.compared for audited in evidence.audits)
    if evidence.budgets or answered:
        return (
            0.5,
            "latency and ages of every view are measured at /metrics",
            "compare each feature's gain with its cost",
        )
    return 0.0, "no measurements of this service", "serve it, with the tag audit_rate"


def _meta(evidence: Evidence) -> _Told:
    every: list[View | OnDemandView] = [*evidence.views]
    every += [evidence.plan.on_demand[each.view] for each in evidence.service.projections
              if each.view in evidence.plan.on_demand]  # fmt: skip
    done = [view.name for view in every if view.owner and view.description]
    return _part(
        done, [view.name for view in every], "views have owner and description", "describe, and name owners of"
    )


def _privacy(evidence: Evidence) -> _Told:
    contracts = [(view, evidence.contract_of(view)) for view in evidence.views]
    if not all(contract for _, contract in contracts):
        return 0.0, "not all columns are classified", "write contracts for all sources: they classify columns"
    personal = [
        view for view, contract in contracts
        if contract and {column.name for column in contract.columns if column.masked} & _columns(view)
    ]  # fmt: skip
    done = [view.name for view in personal if is_personal(view.tags)]
    if not personal:
        return 1.0, "contracts classify all columns; no feature is personal", ""
    return _part(done, [view.name for view in personal], "views of personal data need a grant", "tag pii")


def _quick(evidence: Evidence) -> _Told:
    version = evidence.plan.version
    served = sum(each.compared for each in evidence.audits if 1 < each.plan_version == version)
    if served:
        return 1.0, f"plan version {version} took another's place, and {served} of its served values were compared", ""
    if version > 1:
        return 0.5, f"plan version {version} took another's place", "serve it, and audit: featurestore skew audit"
    return 0.0, "no definition was ever changed", "change a feature, apply it, and audit what is served"


def _tested(evidence: Evidence) -> _Told:
    functions = [each.view for each in evidence.service.projections if each.view in evidence.plan.on_demand]
    compared = sum(audited.compared for audited in evidence.audits)
    proved = f"{len(functions)} functions proved self-contained and row-wise when they were applied"
    if compared:
        return 1.0, f"{proved}; {compared} served values compared with offline", ""
    return 0.5, proved, "audit what is served: tag audit_rate, featurestore skew audit"


def _dependencies(evidence: Evidence) -> _Told:
    views = [view.name for view in evidence.views]
    done = [view.name for view in evidence.views if (found := evidence.contract_of(view)) and found.owner]
    points, owned, missing = _part(
        done, views, "sources have a contract with an owner", "write contracts for the sources of"
    )
    if not evidence.sinks:
        return min(points, 0.5), owned, "tell alerts to somebody: featurestore monitor --webhook or --topic"
    return points, f"{owned}; alerts go to {', '.join(evidence.sinks)}", missing


def _invariants(evidence: Evidence) -> _Told:
    views = [view.name for view in evidence.views]
    done = [
        view.name for view in evidence.views
        if (found := evidence.contract_of(view)) and any(rule.mode != "observe" for rule in found.rules)
    ]  # fmt: skip
    points, told, missing = _part(
        done, views, "sources have rules that warn or more", "let rules warn, set aside or block for"
    )
    if evidence.drift_checked_us is None or evidence.now_us - evidence.drift_checked_us > FRESH_US:
        return min(points, 0.5), told, "hold features to their training set: featurestore drift check"
    return points, f"{told}; drift checked", missing


def _skew(evidence: Evidence) -> _Told:
    recent = [each for each in evidence.audits if evidence.now_us - each.audited_us <= FRESH_US]
    compared = sum(each.compared for each in recent)
    if not compared:
        return (
            0.0,
            "no audit in the last seven days",
            "give the service the tag audit_rate and run featurestore monitor",
        )
    unknown = sum(each.differing.get(Cause.UNKNOWN, 0) for each in recent)
    told = f"{compared} served values compared in seven days, {unknown} differ for no known cause"
    return (0.5, told, "find the cause: featurestore skew history") if unknown else (1.0, told, "")


def _stale(evidence: Evidence) -> _Told:
    if not evidence.datasets:
        return 0.0, "no training set of this service", "build one: featurestore dataset build"
    age_d = (evidence.now_us - max(each.created_us for each in evidence.datasets)) / 86_400_000_000
    if MODEL_AGE_TAG not in evidence.service.tags:
        return 0.5, f"the newest training set is {age_d:.1f} days old", f"say how old it may be: tag {MODEL_AGE_TAG}"
    limit_d = number_of(evidence.service, MODEL_AGE_TAG)
    told = f"the newest training set is {age_d:.1f} days old, at most {limit_d:g} allowed"
    return (1.0, told, "") if age_d <= limit_d else (0.0, told, "train again")


def _stable(evidence: Evidence) -> _Told:
    if evidence.service.policy.invalid != "value":
        return 1.0, f"NaN, infinities and broken rules are served as {evidence.service.policy.invalid}", ""
    return 0.0, "NaN and infinities are served as they are", "declare the policy: tag on_invalid"


def _performance(evidence: Evidence) -> _Told:
    views = [view.name for view in evidence.views]
    fresh = [each for each in evidence.budgets if each.objective.indicator == "freshness"]
    kept = [each.objective.view for each in fresh if each.kept]
    return _part(
        kept, views, "views keep a measured freshness objective", "declare freshness_slo_s for, serve and keep"
    )


def _quality(evidence: Evidence) -> _Told:
    whole = [signal for signal in evidence.signals if not signal.segment]
    if not whole:
        return 0.0, "no labels were given", "give delayed labels: featurestore concept"
    newest = max(whole, key=lambda each: each.period_us)
    told = f"{sum(each.rows for each in whole)} labels, the latest period's bias {newest.bias:+.4f}"
    fresh = evidence.now_us - newest.period_us <= 5 * FRESH_US
    return (1.0, told, "") if fresh else (0.5, told, "give newer labels: featurestore concept")


def _columns(view: View) -> set[str]:
    stored = {name: column for column, name in view.source.field_mapping.items()}
    names = {field.name for field in view.features} | {each.column for each in view.aggregations}
    return {stored.get(name, name) for name in names}


_TESTS: Final[tuple[tuple[str, str, Callable[[Evidence], _Told]], ...]] = (
    ("D1", "Are feature expectations captured in a schema?", _schema),
    ("D2", "Is every feature beneficial?", _beneficial),
    ("D3", "Does no feature cost too much?", _cost),
    ("D4", "Do features adhere to meta-level requirements?", _meta),
    ("D5", "Does the data pipeline control privacy?", _privacy),
    ("D6", "Can new features be added quickly?", _quick),
    ("D7", "Is all input feature code tested?", _tested),
    ("M1", "Do changes of dependencies notify somebody?", _dependencies),
    ("M2", "Do data invariants hold for inputs?", _invariants),
    ("M3", "Are training and serving not skewed?", _skew),
    ("M4", "Is the model not too stale?", _stale),
    ("M5", "Is the model numerically stable?", _stable),
    ("M6", "Has computing performance not regressed?", _performance),
    ("M7", "Has the quality of predictions not regressed?", _quality),
)
