"""Objectives of freshness, arrival and volume: their cases, budgets and burn alerts."""

import msgspec
import numpy as np
import pytest

from featurestore.errors import DefinitionError
from featurestore.monitor.slo import (
    BUCKET_US,
    BUDGET_US,
    Cases,
    Objective,
    budget,
    cases_of_volume,
    cases_within,
    findings,
    objectives_of,
)
from featurestore.plan import Source, View

HOUR = 3_600_000_000
NOW = 400 * 24 * HOUR
FRESH = Objective(view="rides", indicator="freshness", limit=60.0, objective=0.99, owner="team")
VIEW = View(
    name="rides", version=1, kind="latest", join_keys=(), features=(), ttl_us=0,
    source=Source(name="s", path="p", timestamp_field="ts"), owner="team",
)  # fmt: skip


def every_bucket(since_us: int, good: int, total: int, until_us: int = NOW) -> list[Cases]:
    return [Cases(start_us=at, good=good, total=total) for at in range(since_us, until_us, BUCKET_US)]


def test_objectives_are_read_from_tags() -> None:
    """Each tag is one objective of its view, at the share asked for."""
    tags = {"freshness_slo_s": "60", "volume_slo_per_h": "1000", "slo_objective": "0.95"}
    found = objectives_of(msgspec.structs.replace(VIEW, tags=tags))
    assert [(each.indicator, each.limit, each.objective) for each in found] == [
        ("freshness", 60.0, 0.95),
        ("volume", 1000.0, 0.95),
    ]


@pytest.mark.parametrize("tags", [{"freshness_slo_s": "soon"}, {"freshness_slo_s": "0"}, {"slo_objective": "1"}])
def test_an_objective_that_cannot_be_kept_is_refused(tags: dict[str, str]) -> None:
    """The message names view and tag."""
    with pytest.raises(DefinitionError, match=f"rides.*{next(iter(tags))}"):
        objectives_of(msgspec.structs.replace(VIEW, tags=tags))


def test_the_limit_itself_is_good() -> None:
    """A value of exactly the age allowed keeps the promise, a microsecond more breaks it."""
    ages = np.array([60_000_000, 60_000_001, 0])
    [cases] = cases_within(np.array([0, 1, BUCKET_US - 1]), ages, 60.0)
    assert (cases.good, cases.total) == (2, 3)


def test_an_hour_without_rows_is_a_bad_case() -> None:
    """No data is not no case; the hour that runs is not counted yet."""
    cases = cases_of_volume(np.array([HOUR + 1, HOUR + 2]), 2, 0, 3 * HOUR - 1)
    assert [(each.good, each.total) for each in cases] == [(0, 1), (1, 1)]


def test_the_budget_is_the_share_that_may_be_bad() -> None:
    """1 % may be bad; half a per cent is half the budget."""
    found = budget(FRESH, every_bucket(NOW - 24 * HOUR, 199, 200), NOW)
    assert found.spent == pytest.approx(0.5)
    assert found.kept


def test_old_cases_do_not_count() -> None:
    """The budget is for thirty days."""
    old = [Cases(start_us=NOW - BUDGET_US, good=0, total=1_000_000)]
    assert budget(FRESH, [*old, Cases(start_us=NOW - 1, good=1, total=1)], NOW).spent == 0.0


def test_without_cases_nothing_is_said() -> None:
    """Neither kept nor missed."""
    assert budget(FRESH, [], NOW).kept is None


def test_a_fast_burn_is_critical() -> None:
    """One hour in which every fifth value is too old, still going on: 20 times the budget's pace."""
    [found] = findings([budget(FRESH, every_bucket(NOW - HOUR, 80, 100), NOW)])
    assert (found.severity, found.view, found.owner) == ("critical", "rides", "team")
    assert "20.0 times" in found.detail


def test_a_burn_that_is_over_is_no_alert() -> None:
    """The long stretch still burns, the short one does not: the planted fault would page for what has passed."""
    over = every_bucket(NOW - HOUR, 50, 100, NOW - 10 * 60_000_000) + every_bucket(NOW - 10 * 60_000_000, 100, 100)
    good_before = every_bucket(NOW - 72 * HOUR, 1000, 1000, NOW - HOUR)
    assert findings([budget(FRESH, [*good_before, *over], NOW)]) == []


def test_a_slow_burn_is_informative() -> None:
    """Three days at twice the pace."""
    [found] = findings([budget(FRESH, every_bucket(NOW - 72 * HOUR, 98, 100), NOW)])
    assert found.severity == "informative"
