"""Are the service level objectives of freshness and volume kept, and how fast is their error budget spent?

An objective is a share of good cases: values served no older than a limit, events that arrived within a limit, hours
with enough rows. Its error budget is the share that may be bad. The *burn rate* of a stretch of time is its share of
bad cases over that budget: at rate 1 a budget of thirty days lasts thirty days. A burn alert wants a long and a short
stretch to burn fast both: the long one says that it matters, the short one that it goes on (Google's Site Reliability
Workbook, chapter 5, "multiwindow, multi-burn-rate alerts").

Views declare objectives in their tags: `freshness_slo_s`, `arrival_slo_s`, `volume_slo_per_h`; `slo_objective` is the
share of good cases asked for, 0.99 where it is not given.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from featurestore.errors import DefinitionError
from featurestore.monitor.alerts import Finding, Severity
from featurestore.plan import View

BUCKET_US: Final = 300_000_000
"""Cases are counted by stretches of five minutes."""
BUDGET_US: Final = 30 * 86_400_000_000
"""The time that an error budget is for."""
DEFAULT_OBJECTIVE: Final = 0.99
_HOUR_US: Final = 3_600_000_000
_MINUTE_US: Final = 60_000_000

Indicator = Literal["freshness", "arrival", "volume"]
_TAGS: Final[Mapping[Indicator, str]] = {
    "freshness": "freshness_slo_s",
    "arrival": "arrival_slo_s",
    "volume": "volume_slo_per_h",
}
Ints = npt.NDArray[np.int64]


class Objective(msgspec.Struct, frozen=True, kw_only=True):
    """What was promised of one view."""

    view: str
    indicator: Indicator
    limit: float
    """Seconds of age or of lag at most; rows an hour at least."""
    objective: float
    """The share of good cases asked for, below 1."""
    owner: str = ""


class Cases(msgspec.Struct, frozen=True, kw_only=True):
    """Good and all cases of one objective in one stretch of BUCKET_US."""

    start_us: int
    good: int
    total: int


class Burn(msgspec.Struct, frozen=True, kw_only=True):
    """A rule of burn alerts."""

    long_us: int
    short_us: int
    rate: float
    severity: Severity


BURNS: Final = (
    Burn(long_us=_HOUR_US, short_us=5 * _MINUTE_US, rate=14.4, severity="critical"),
    Burn(long_us=6 * _HOUR_US, short_us=30 * _MINUTE_US, rate=6.0, severity="critical"),
    Burn(long_us=72 * _HOUR_US, short_us=6 * _HOUR_US, rate=1.0, severity="informative"),
)
"""2 % of a thirty days' budget in an hour, 5 % in six hours, 10 % in three days."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """How an objective stands."""

    objective: Objective
    good: int
    total: int
    """Cases within the budget's time."""
    spent: float
    """Share of the error budget that is spent; beyond 1 the objective is missed."""
    burning: tuple[tuple[Burn, float], ...] = ()
    """The rules that are broken now, with the long stretch's burn rate."""

    @property
    def kept(self) -> bool | None:
        """Whether the objective is kept; None without any case."""
        return None if not self.total else self.spent <= 1


def objectives_of(view: View) -> list[Objective]:
    """The objectives in a view's tags; raises DefinitionError for one that is no number or out of range."""
    share = _number(view, "slo_objective", str(DEFAULT_OBJECTIVE))
    if not 0 < share < 1:
        raise DefinitionError(f"view {view.name!r}: tag slo_objective is {share:g}; give a share between 0 and 1")
    found = []
    for indicator, tag in _TAGS.items():
        if tag not in view.tags:
            continue
        limit = _number(view, tag, "")
        if limit <= 0:
            raise DefinitionError(f"view {view.name!r}: tag {tag} is {limit:g}; give a number above 0")
        found.append(Objective(view=view.name, indicator=indicator, limit=limit, objective=share, owner=view.owner))
    return found


def cases_within(at_us: Ints, measured_us: Ints, limit_s: float) -> list[Cases]:
    """Counts ages or lags by stretch: good where at most the limit.

    `at_us` says when each was measured, `measured_us` how long it was; both int64[n].

    >>> cases_within(np.array([0, 1]), np.array([1_000_000, 3_000_000]), 2.0)
    [Cases(start_us=0, good=1, total=2)]
    """
    start = at_us // BUCKET_US * BUCKET_US
    found, place = np.unique(start, return_inverse=True)
    total = np.bincount(place, minlength=len(found))
    good = np.bincount(place, weights=measured_us <= limit_s * 1e6, minlength=len(found)).astype(np.int64)
    counted = zip(found.tolist(), good.tolist(), total.tolist(), strict=True)
    return [Cases(start_us=at, good=right, total=every) for at, right, every in counted]


def cases_of_volume(at_us: Ints, limit_per_h: float, start_us: int, end_us: int) -> list[Cases]:
    """One case an hour that began at start <= t and ended by `end_us`: good where enough rows fell into it.

    >>> cases_of_volume(np.array([1, 2]), 2, 0, 2 * 3_600_000_000)
    [Cases(start_us=0, good=1, total=1), Cases(start_us=3600000000, good=0, total=1)]
    """
    hours = range(-(-start_us // _HOUR_US), end_us // _HOUR_US)
    found, count = np.unique(at_us // _HOUR_US, return_counts=True)
    rows = dict(zip(found.tolist(), count.tolist(), strict=True))
    return [Cases(start_us=hour * _HOUR_US, good=int(rows.get(hour, 0) >= limit_per_h), total=1) for hour in hours]


def budget(objective: Objective, cases: Iterable[Cases], now_us: int) -> Budget:
    """How the objective stands now, of its cases in any order; those older than the budget's time do not count."""
    recent = [each for each in cases if now_us - BUDGET_US < each.start_us <= now_us]
    good, total = sum(each.good for each in recent), sum(each.total for each in recent)
    allowed = 1 - objective.objective
    burning = []
    for rule in BURNS:
        long = _burn(recent, now_us - rule.long_us, allowed)
        if long >= rule.rate and _burn(recent, now_us - rule.short_us, allowed) >= rule.rate:
            burning.append((rule, long))
    spent = (total - good) / total / allowed if total else 0.0
    return Budget(objective=objective, good=good, total=total, spent=spent, burning=tuple(burning))


def findings(budgets: Sequence[Budget]) -> list[Finding]:
    """What somebody has to know: one finding an objective that burns, of the worst rule it breaks."""
    found = []
    for each in budgets:
        if not each.burning:
            continue
        rule, rate = each.burning[0]
        what = each.objective
        found.append(
            Finding(
                key=f"slo:{what.view}:{what.indicator}",
                severity=rule.severity,
                title=f"{what.indicator} of view {what.view} burns its error budget",
                detail=f"{rate:.1f} times as fast as it may over {rule.long_us / _HOUR_US:g} h; "
                f"{each.good} of {each.total} cases good in 30 days, {what.objective:.2%} asked for",
                owner=what.owner,
                view=what.view,
                evidence="featurestore status",
            )
        )
    return found


def _burn(cases: Sequence[Cases], since_us: int, allowed: float) -> float:
    """The burn rate of the stretches that end after `since_us`; 0 without any case."""
    some = [each for each in cases if each.start_us + BUCKET_US > since_us]
    total = sum(each.total for each in some)
    return sum(each.total - each.good for each in some) / total / allowed if total else 0.0


def _number(view: View, tag: str, default: str) -> float:
    text = view.tags.get(tag, default)
    try:
        return float(text)
    except ValueError:
        raise DefinitionError(f"view {view.name!r}: tag {tag} is {text!r}, not a number") from None
