"""Are profiles right, of constant size, and the same for any order of merging?"""

import itertools
import math
import random
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import validation.profile.build
import validation.profile.profile
import validation.profile.short_slices
from validation.profile.baseline import ProfileError, baseline_of
from validation.profile.build import HOUR_US, profile_table
from validation.profile.cohorts import MOST
from validation.profile.profile import (
    NEW_CELLS,
    NEW_KEPT,
    UNIT,
    Profile,
    histogram_of,
    keep_new,
    mean_of,
    merge,
    quantile_of,
    top_of,
    variance_of,
    word_hash,
)
from validation.profile.sketch import no_registers, register
from validation.profile.store import ProfileStore

STAMP = pa.timestamp("us", "UTC")
REFERENCE = pa.table({"x": [float(n) for n in range(100)], "c": [f"c{n % 5}" for n in range(100)]})
BASELINE = baseline_of(REFERENCE)
NUMBERS = st.one_of(
    st.none(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(min_value=-200, max_value=200),
    st.sampled_from([0.0, -0.0, 49.0, 1e9, -1e9, 1e300, 5e-324]),
)
WORDS = st.one_of(st.none(), st.sampled_from(["c0", "c1", "zz", ""]), st.integers(0, 300).map(lambda n: f"new{n}"))
ROWS = st.lists(st.tuples(NUMBERS, WORDS, st.integers(0, 5)), max_size=60)


def table(rows: list[tuple[Any, Any, int]]) -> pa.Table:
    return pa.table(
        {
            "x": pa.array([row[0] for row in rows], pa.float64()),
            "c": pa.array([row[1] for row in rows], pa.string()),
            "at": pa.array([row[2] * HOUR_US // 2 for row in rows], STAMP),
        }
    )


def whole(rows: list[tuple[Any, Any, int]]) -> dict[str, str]:
    return {profile.feature: profile.digest() for profile in profile_table(table(rows), BASELINE, threads=1)}


def in_parts(parts: list[list[tuple[Any, Any, int]]]) -> dict[str, str]:
    found: dict[str, list[Profile]] = {}
    for part in parts:
        for profile in profile_table(table(part), BASELINE, threads=1):
            found.setdefault(profile.feature, []).append(profile)
    return {feature: merge(profiles).digest() for feature, profiles in found.items()}


@given(rows=ROWS, seed=st.integers(0, 2**32), cuts=st.lists(st.integers(0, 60), max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_order_and_grouping_gives_the_same_bits(rows: list[Any], seed: int, cuts: list[int]) -> None:
    """Rows shuffled, cut anywhere and merged in any order are the profile of all of them, bit for bit."""
    shuffled = random.Random(seed).sample(rows, len(rows))
    places = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    parts = [shuffled[a:b] for a, b in itertools.pairwise(places)]
    assert in_parts(parts) == whole(rows)


def test_a_sum_of_floats_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted fault: sums that are not cut to integers differ by the order of rows."""

    def rounded(away: Any) -> tuple[int, int]:
        total = 0.0
        for value in away.tolist():
            total += value
        return int(total * 2.0**70), 0

    rows = [(0.1 * n * 1.7**n, None, 0) for n in range(1, 12)]
    monkeypatch.setattr(validation.profile.build, "SHORT", 0)
    monkeypatch.setattr(validation.profile.build, "_sums", rounded)
    assert any(whole(random.Random(seed).sample(rows, len(rows))) != whole(rows) for seed in range(9))


def test_dropping_new_categories_by_count_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted fault: keeping the most frequent new categories, as sketches that are not order-free do."""

    def by_count(added: dict[str, int], cells: Any) -> Any:
        return dict(sorted(sorted(added.items(), key=lambda one: -one[1])[:NEW_KEPT])), cells

    rows = [(None, f"n{n % 100}", 0) for n in range(170)]
    assert in_parts([rows[:85], rows[85:]]) == whole(rows)
    monkeypatch.setattr(validation.profile.profile, "keep_new", by_count)
    assert in_parts([rows[:85], rows[85:]]) != whole(rows)


@given(values=st.lists(st.floats(min_value=-1e12, max_value=1e12), min_size=2, max_size=50))
@settings(max_examples=60, deadline=None)
def test_moments_are_those_of_exact_fractions(values: list[float]) -> None:
    """Mean and variance are within the stated cut of the exact ones; least and greatest are exact."""
    feature = BASELINE.feature("x")
    profile = profile_table(pa.table({"x": values}), baseline_of(REFERENCE, features=["x"]), threads=1)[0]
    assert (profile.low, profile.high) == (min(values), max(values))
    exact = [Fraction(value) for value in values]
    mean = sum(exact) / len(exact)
    variance = sum((value - mean) ** 2 for value in exact) / (len(exact) - 1)
    slack = Fraction(UNIT) * Fraction(feature.scale)
    got_mean, got_variance = mean_of(profile, feature), variance_of(profile, feature)
    assert got_mean is not None
    assert got_variance is not None
    assert abs(Fraction(got_mean) - mean) <= slack + abs(mean) * Fraction(1, 2**50)
    bound = 4 * slack * Fraction(math.sqrt(variance) + float(slack)) * 2 + variance * Fraction(1, 2**45)
    assert abs(Fraction(got_variance) - variance) <= bound


def test_variance_is_right_near_a_billion() -> None:
    """Values near 1e9 keep their variance: the centre is taken off before anything is squared."""
    made = pa.table({"x": 1e9 + np.arange(1000.0) % 3})
    baseline = baseline_of(made)
    profile = profile_table(made, baseline)[0]
    assert variance_of(profile, baseline.feature("x")) == pytest.approx(np.var(np.arange(1000) % 3, ddof=1), rel=1e-9)


def test_null_nan_and_infinity_are_counted_apart() -> None:
    """Null, NaN and the infinities are four counts, none of them a finite value."""
    made = pa.table({"x": pa.array([None, None, math.nan, math.inf, math.inf, -math.inf, 1.0, -0.0])})
    profile = profile_table(made, baseline_of(REFERENCE, features=["x"]))[0]
    counts = (profile.rows, profile.nulls, profile.nans, profile.above, profile.below, profile.values)
    assert counts == (8, 2, 1, 2, 1, 2)
    assert (profile.low, profile.high) == (0.0, 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_quantiles_and_histogram_agree_with_sorting(seed: int) -> None:
    """A quantile is within 1/64 of its distance from the centre; histogram counts are exact on their edges."""
    rng = np.random.default_rng(seed)
    values = rng.lognormal(0, 2, 5000) * rng.choice([-1, 1], 5000)
    baseline = baseline_of(pa.table({"x": values}))
    feature = baseline.feature("x")
    profile = profile_table(pa.table({"x": values}), baseline)[0]
    for share in (0.01, 0.1, 0.5, 0.9, 0.99):
        exact = float(np.quantile(values, share, method="inverted_cdf"))
        got = quantile_of(profile, share, feature)
        assert got is not None
        assert abs(got - exact) <= abs(exact - feature.centre) / 64 + feature.scale * 2**-7
    histogram = histogram_of(profile, feature)
    assert histogram.sum() == 5000
    assert histogram.max() < 5000 / 20 * 1.5


def test_top_categories_are_exact_and_the_error_is_stated() -> None:
    """Listed categories have exact counts; no unlisted one is more frequent than the stated bound."""
    rng = np.random.default_rng(0)
    words = [f"w{n}" for n in rng.zipf(1.3, 3000) if n < 10_000]
    profile = profile_table(pa.table({"c": words}), baseline_of(REFERENCE, features=["c"]))[0]
    listed, bound = top_of(profile, 10_000, BASELINE.feature("c"))
    exact = Counter(words)
    assert dict(listed) == {word: exact[word] for word, _ in listed}
    assert max(count for word, count in exact.items() if word not in dict(listed)) <= bound
    assert profile.values == len(words)
    assert len(profile.new) == NEW_KEPT


@pytest.mark.parametrize("count", [1, 10, 500, 3_000, 200_000])
def test_distinct_estimates_stay_within_four_standard_errors(count: int) -> None:
    """The distinct estimate is right, numbers and words alike."""
    column: Any = np.arange(count) * 1.37 if count != 500 else [f"w{n}" for n in range(count)]
    made = pa.table({"x": column})
    profile = profile_table(made, baseline_of(made))[0]
    assert abs(profile.distinct - count) <= max(1, 4 * 0.0325 * count)


def test_segments_and_hours_add_up() -> None:
    """All rows of an hour are the sum of its segments, and equal to a profile without segments."""
    rows = [(float(n), f"c{n % 3}" if n % 7 else None, n % 4) for n in range(200)]
    cut = profile_table(table(rows), BASELINE, time_column="at", segments=["c"])
    assert {p.segment for p in cut} == {"", "c=", "c=c0", "c=c1", "c=c2"}
    plain = profile_table(table(rows), BASELINE, time_column="at")
    found = {(p.feature, p.hour_us): p.digest() for p in cut if p.segment == ""}
    assert found == {(p.feature, p.hour_us): p.digest() for p in plain}


_NUMBERS = st.one_of(
    st.none(),
    st.floats(-3, 3),
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 0.0, 1e300, -1e300, 5e-324]),
)


def _both_ways(rows: list[Any], *, far: bool) -> tuple[list[Profile], list[Profile]]:
    """Profiles of slices by hour and segment, made together and one by one."""
    values = [None if not far and value is not None and 1e9 < abs(value) < math.inf else value for value, *_ in rows]
    instants = pa.array([hour * HOUR_US for _, hour, _ in rows], pa.timestamp("us", "UTC"))
    table = pa.table({"x": pa.array(values, pa.float64()), "at": instants, "s": [str(one) for *_, one in rows]})
    baseline = baseline_of(pa.table({"x": [-1.0, 0.0, 1.0, 2.0]}))
    made = []
    for short in (4_096, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(validation.profile.build, "SHORT", short)
            made.append(profile_table(table, baseline, time_column="at", segments=["s"], threads=1))
    return made[0], made[1]


@given(
    rows=st.lists(st.tuples(_NUMBERS, st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=60), far=st.booleans()
)
@settings(deadline=None)
def test_short_slices_together_are_those_one_by_one(rows: list[Any], far: bool) -> None:
    """Bit for bit: missing values, infinities, slices of nothing else, values too far away for sums of doubles."""
    together, alone = _both_ways(rows, far=far)
    assert [one.digest() for one in together] == [one.digest() for one in alone]
    assert [(one.segment, one.hour_us) for one in together] == [(one.segment, one.hour_us) for one in alone]


def _one_by_one(words: list[str | None], feature: Any, **which: Any) -> Profile:
    """What is kept of categories, counted as it is described."""
    found = Counter(word for word in words if word is not None)
    kept, cells = keep_new(
        {w: n for w, n in found.items() if w not in feature.categories}, np.zeros(NEW_CELLS, np.int64)
    )
    hashes = np.array([word_hash(word) for word in found], np.uint64)
    return Profile(
        feature=feature.name,
        rows=len(words),
        nulls=words.count(None),
        counts=np.array([found[word] for word in feature.categories], np.int64),
        new=kept,
        cells=cells,
        registers=register(hashes, no_registers()),
        **which,
    )


@pytest.mark.parametrize("most", [2, 12, 90, 5_000])
@pytest.mark.parametrize("length", [1, 40, 300, 6_000])
def test_categories_of_slices_are_those_counted_one_by_one(most: int, length: int) -> None:
    """In a table and by sorting, nulls, few and many new ones, hours that lie apart, slices of every length."""
    rng = np.random.default_rng(most + length)
    count = min(5 * length, 12_000)
    words = [None if rng.random() < 0.1 else f"c{n}" for n in rng.integers(0, most, count)]
    hours = (np.arange(count) // length * 7 % 5 * HOUR_US).tolist()
    given = pa.table({"c": pa.array(words, pa.string()), "at": pa.array(hours, STAMP)})
    baseline = baseline_of(REFERENCE, features=["c"])
    made = profile_table(given, baseline, time_column="at")
    assert len(made) == len(set(hours))
    for one in made:
        part = [word for word, hour in zip(words, hours, strict=True) if hour == one.hour_us]
        told = _one_by_one(part, baseline.features[0], baseline=baseline.id, hour_us=one.hour_us)
        assert one.digest() == told.digest()


def test_values_of_any_kind_are_words() -> None:
    """Truth, codes, and text that is encoded already."""
    encoded = pa.array(["a", None, "b", "a"]).dictionary_encode()
    given = pa.table({"d": encoded, "b": [True, False, None, True], "k": [7, 8, 7, None]})
    made = profile_table(given, baseline_of(given, categorical=["k"]))
    assert [(one.counts.tolist(), one.nulls) for one in made] == [([2, 1], 1)] * 3


def test_short_slices_that_run_into_each_other_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: where slices begin is told before what is missing is left out."""
    rows = [(None if n % 3 else float(n), n // 20, 0) for n in range(60)]
    together, alone = _both_ways(rows, far=False)
    assert together[0].digest() == alone[0].digest()
    monkeypatch.setattr(validation.profile.short_slices, "_edges_of", lambda _mask, edges: edges * 20 // 60)
    wrong, alone = _both_ways(rows, far=False)
    assert [one.digest() for one in wrong] != [one.digest() for one in alone]


COHORTS = pa.table({"x": [float(n) for n in range(1_200)], "town": [f"t{n % 400}" for n in range(1_200)]})
ONE = baseline_of(REFERENCE, features=["x"])


def by_cohort(made: pa.Table) -> list[Profile]:
    return profile_table(made, ONE, segments=["town"], every_cohort=False, boundary="source")


def stored(store: ProfileStore, parts: list[pa.Table]) -> dict[str, str]:
    for number, part in enumerate(parts):
        store.put(f"part{number}", by_cohort(part), boundary="source", baseline=ONE)
    return {one.segment: one.digest() for one in store.read(boundary="source", baseline=ONE.id)}


def test_of_very_many_cohorts_the_same_are_kept_in_any_order(tmp_path: Path) -> None:
    """400 towns: 256 of them, with all their rows, however the rows were cut; and all rows, in their own profile."""
    whole = stored(ProfileStore(tmp_path / "whole"), [COHORTS])
    assert len(whole) == MOST + 1
    assert profile_table(COHORTS, ONE, boundary="source")[0].digest() == whole[""]
    parts = [COHORTS.slice(0, 300), COHORTS.slice(300, 150), COHORTS.slice(450)]
    assert stored(ProfileStore(tmp_path / "parts"), parts) == whole
    one = next(iter(whole.keys() - {""}))
    read = ProfileStore(tmp_path / "parts").read(boundary="source", baseline=ONE.id, segment=one)
    assert [each.digest() for each in read] == [whole[one]]


def test_keeping_the_largest_cohorts_would_be_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted fault: which cohorts are large in a part says nothing about the whole."""

    def first(segments: set[str]) -> set[str]:
        return {"", *sorted(segments)[-MOST:]} if len(segments) > 300 else {*segments}

    monkeypatch.setattr(validation.profile.build, "kept_cohorts", first)
    parts = [COHORTS.slice(0, 300), COHORTS.slice(300)]
    assert stored(ProfileStore(tmp_path / "parts"), parts) != stored(ProfileStore(tmp_path / "whole"), [COHORTS])


def test_late_hours_update_history_and_a_repeat_counts_once(tmp_path: Path) -> None:
    """Late rows come as another source and are found in their hour; the same source again changes nothing."""
    store = ProfileStore(tmp_path)
    day = [(float(n), "c1", n % 6) for n in range(120)]
    on_time, late = day[:100], day[100:]

    def put(source: str, rows: list[Any]) -> None:
        profiles = profile_table(table(rows), BASELINE, time_column="at", segments=["c"])
        store.put(source, profiles, boundary="event", baseline=BASELINE)

    def history() -> dict[Any, str]:
        read = store.read(boundary="event", baseline=BASELINE.id)
        return {(p.feature, p.segment, p.hour_us): p.digest() for p in read}

    put("first", on_time)
    before = history()
    put("late", late)
    put("late", late)
    put("first", on_time)
    expected = {
        (p.feature, p.segment, p.hour_us): replace(p, boundary="event").digest()
        for p in profile_table(table(day), BASELINE, time_column="at", segments=["c"])
    }
    assert history() == expected != before
    hour = store.read(boundary="event", baseline=BASELINE.id, start_us=HOUR_US, end_us=2 * HOUR_US, segment="")
    assert {p.hour_us for p in hour} == {HOUR_US}
    assert store.baseline(BASELINE.id) == BASELINE


def test_profiles_on_different_baselines_are_refused() -> None:
    """Buckets of two references cannot be added."""
    other = baseline_of(pa.table({"x": [1.0, 5.0, 7.0]}))
    made = [profile_table(pa.table({"x": [1.0]}), one)[0] for one in (baseline_of(REFERENCE, features=["x"]), other)]
    with pytest.raises(ProfileError, match="cannot be merged"):
        merge(made)


def test_an_absent_or_retyped_column_is_named() -> None:
    """A column that is gone, or is text where it was a number, is an error that says so."""
    with pytest.raises(ProfileError, match="no column 'x'"):
        profile_table(pa.table({"y": [1.0], "c": ["a"]}), BASELINE)
    with pytest.raises(ProfileError, match="it was a number"):
        profile_table(pa.table({"x": ["a"], "c": ["a"]}), BASELINE)


def test_a_value_takes_less_than_100_ns() -> None:
    """Building costs under 100 ns of processor time a value, single-threaded."""
    made = pa.table({"x": np.random.default_rng(1).standard_normal(400_000)})
    baseline = baseline_of(made)
    best = math.inf
    for _ in range(5):
        start = time.process_time()
        profile_table(made, baseline, threads=1)
        best = min(best, time.process_time() - start)
    assert best / 400_000 < 100e-9
