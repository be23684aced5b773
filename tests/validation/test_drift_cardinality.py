"""Two samples of one distribution do not drift, whether it has two categories or very many; a change of one is told."""

import numpy as np
import pyarrow as pa
import pytest

import validation.drift.compare
from validation.drift.compare import compare_tables
from validation.drift.multivariate import judge_rows
from validation.profile.baseline import baseline_of

SIZES = ((3_000, 1_000), (500, 2_000), (5_000, 200))


def sample(rng: np.random.Generator, categories: int, power: float, rows: int) -> pa.Table:
    """So many of the categories whose frequencies fall with that power of their rank; 0 is uniform."""
    share = np.cumsum(np.arange(1.0, categories + 1) ** -power)
    drawn = np.searchsorted(share / share[-1], rng.random(rows))
    return pa.table({"c": pa.array(np.char.add("k", drawn.astype(str)))})


def alarms(categories: int, power: float, times: int) -> int:
    """How many of so many pairs without drift alarm."""
    rng = np.random.default_rng([categories, round(10 * power)])
    sizes = [SIZES[number % len(SIZES)] for number in range(times)]
    return sum(
        compare_tables(*(sample(rng, categories, power, rows) for rows in size), seed=number, families=100).drifted
        for number, size in enumerate(sizes)
    )


@pytest.mark.parametrize(
    ("categories", "power"), [(2, 0.0), (321, 0.0), (400, 1.0), (2_000, 0.0), (100_000, 0.0), (100_000, 1.0)]
)
def test_few_samples_of_one_distribution_alarm(categories: int, power: float) -> None:
    """At most 5 % alarm: more than 3 of 12 would be a chance of one in 4,400."""
    assert alarms(categories, power, 12) <= 3


def test_categories_that_are_named_by_chance_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted fault: with the reference's most frequent of 2,000 equal categories apart, every sample alarms."""
    monkeypatch.setattr(validation.drift.compare, "borderline", lambda *sides: frozenset())
    assert alarms(2_000, 0.0, 12) > 6


@pytest.mark.nightly
@pytest.mark.parametrize("categories", [2, 10, 100, 321, 1_000, 10_000, 100_000])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 1.5])
def test_the_rate_of_false_alarms_holds(categories: int, power: float) -> None:
    """At most 5 % of 100 pairs: more than 12 would be a chance of one in 700."""
    assert alarms(categories, power, 100) <= 12


@pytest.mark.parametrize("categories", [300, 2_000, 50_000])
def test_one_of_very_many_categories_that_grows_is_told(categories: int) -> None:
    """A category that makes 5 % of the current rows, known or new, is seen among any number of others."""
    rng = np.random.default_rng(4)
    before, after = (sample(rng, categories, 0.0, rows)["c"].to_pylist() for rows in (3_000, 1_000))
    for grown in (before[0], "zz"):
        report = compare_tables(pa.table({"c": before}), pa.table({"c": [grown] * 50 + after[50:]}), seed=0)
        assert report.drifted, grown


def test_cohorts_of_very_many_categories_do_not_drift_either() -> None:
    """What is named by chance in all rows is so in each cohort of them."""
    rng = np.random.default_rng(5)

    def side(rows: int) -> pa.Table:
        return sample(rng, 1_000, 0.0, rows).append_column("town", pa.array(rng.choice(["a", "b"], rows)))

    found = [compare_tables(side(3_000), side(1_500), seed=n, segments=["town"], families=100) for n in range(12)]
    assert sum(one.drifted for one in found) <= 3


def test_whole_rows_of_very_many_categories_do_not_drift() -> None:
    """The categories that whole rows are told by are the most frequent of both sides, not of the reference."""

    def ps(seed: int) -> list[float]:
        rng = np.random.default_rng([6, seed])
        before, after = (sample(rng, 3_000, 0.0, rows) for rows in (1_000, 1_000))
        found = judge_rows(before, after, baseline_of(before), seed=seed, rate=0.05, tests=("mmd", "pca"))
        return [one.q for one in found]

    assert sum(min(ps(seed)) <= 0.05 for seed in range(10)) <= 3


def test_a_sum_of_cells_is_the_number_of_rows() -> None:
    """Nothing is counted twice or lost where categories are laid on cells."""
    rng = np.random.default_rng(7)
    sides = [sample(rng, 5_000, 1.0, rows) for rows in (3_000, 900)]
    report = compare_tables(*sides, seed=0)
    [finding] = report.findings
    assert (finding.rows_reference, finding.rows_current) == (3_000, 900)
