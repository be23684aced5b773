"""Are the most frequent numbers found, the same ones for any order, at constant size?"""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import validation.profile.frequent
import validation.profile.short_slices
from validation.profile.baseline import baseline_of
from validation.profile.build import HOUR_US, profile_table
from validation.profile.frequent import SEEN, frequent, keys_of, sums_of
from validation.profile.profile import Profile, merge, top_of
from validation.profile.store import ProfileStore

BASELINE = baseline_of(pa.table({"x": [float(n) for n in range(100)]}))
FEATURE = BASELINE.feature("x")
SPIKES = {-999.0: 900, 0.0: 2_000, 0.1: 700, 9_999.0: 400, 16_777_215.0: 500}


def profile(values: np.ndarray) -> Profile:
    return profile_table(pa.table({"x": values}), BASELINE, threads=1)[0]


def spiked(seed: int = 0) -> np.ndarray:
    """20,000 normal numbers, all different, and some of which there are many."""
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.standard_normal(20_000), *(np.full(n, value) for value, n in SPIKES.items())])
    rng.shuffle(values)
    return values


def in_parts(values: np.ndarray, seed: int) -> Profile:
    """Cut anywhere, some parts of few different numbers, merged in any order and grouping."""
    rng = np.random.default_rng(seed)
    cuts = np.sort([5, 400, 1_000, *rng.integers(0, len(values), 12)])
    parts = [profile(part) for part in np.split(values, cuts)]
    rng.shuffle(parts)  # type: ignore[arg-type]  # a list of anything is shuffled
    return merge([merge(parts[:7]), merge(parts[7:])])


@pytest.mark.parametrize("seed", range(4))
def test_any_order_and_grouping_gives_the_same_bits(seed: int) -> None:
    """Where numbers are counted one by one, where they are summed, and where parts go from one to the other."""
    rng = np.random.default_rng(seed)
    for values in (spiked(seed), np.arange(SEEN + 1.0), np.arange(float(SEEN)), rng.integers(0, 50, 9_000) * 0.5):
        whole = profile(values)
        assert in_parts(rng.permutation(values), seed).digest() == whole.digest()
        assert bool(len(whole.sums)) == (len(set(values)) > SEEN)


def test_keeping_the_most_frequent_of_each_part_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted fault: what most libraries do; what is rare in every part may be frequent in all."""

    def most(keys, counts):
        best = np.sort(np.argsort(-counts, kind="stable")[:SEEN])
        return keys[best], counts[best], np.zeros(0, np.int64)

    monkeypatch.setattr(validation.profile.frequent, "seen_or_sums", most)
    monkeypatch.setattr(validation.profile.short_slices, "seen_or_sums", most)
    values = np.random.default_rng(0).permutation(np.repeat(np.arange(2_500.0), 2))
    parts = [profile(part) for part in np.split(values, 5)]
    assert merge([merge(parts[:2]), merge(parts[2:])]).digest() != merge([merge(parts[3:]), merge(parts[:3])]).digest()


def test_few_different_numbers_have_exact_counts() -> None:
    """As counting them one by one has it, in its order, with nothing left over."""
    values = np.random.default_rng(0).zipf(1.6, 50_000).clip(0, 900).astype(float)
    exact = [(str(int(number)), count) for number, count in Counter(values.tolist()).items()]
    assert top_of(profile(values), 5_000, FEATURE) == (sorted(exact, key=lambda one: (-one[1], one[0])), 0)


@pytest.mark.parametrize("seed", range(5))
def test_numbers_that_occur_often_among_very_many_are_found(seed: int) -> None:
    """Each spike of 2 % and more, nearly its count; nothing else; and what is not told is no more than is stated."""
    listed, bound = top_of(profile(spiked(seed)), 10, FEATURE)
    found = {float(text): count for text, count in listed}
    assert found.keys() == SPIKES.keys()
    assert all(abs(found[value] - count) < 60 for value, count in SPIKES.items())
    assert 1 <= bound < 300


def test_no_number_is_made_up() -> None:
    """Among numbers that all differ none is frequent, evenly spaced ones included."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        size = 1_500 * 2 ** (seed % 6)
        values = rng.standard_normal(size) if seed % 2 else np.arange(size) * rng.uniform(0.1, 2)
        assert frequent(sums_of(keys_of(values)))[0] == []


def test_of_equally_frequent_numbers_few_are_missed_and_none_is_above_the_bound() -> None:
    """Ten numbers of 400 each may share cells; what is not told is within what may be missing."""
    missed = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        chosen = rng.choice(9_000, 10, replace=False).astype(float)
        found, bound = frequent(sums_of(keys_of(np.concatenate([rng.standard_normal(9_000), np.repeat(chosen, 400)]))))
        lost = set(chosen) - dict(found).keys()
        missed += len(lost)
        assert not lost or bound >= 400
    assert missed <= 8


def test_its_size_does_not_grow() -> None:
    """A hundred times as many numbers take no byte more."""
    small, large = (profile(np.random.default_rng(0).standard_normal(size)) for size in (3_000, 300_000))
    assert (len(small.seen), small.sums.nbytes) == (len(large.seen), large.sums.nbytes) == (0, 2 * 32 * 28 * 8)


def test_what_is_not_finite_is_no_number() -> None:
    """NaN and the infinities are counted elsewhere; -0.0 is 0.0; one too large for four bytes is not told."""
    values = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e300, 1e300, 1e300])
    assert top_of(profile(values), 9, FEATURE) == ([("0", 2)], 3)


def test_short_slices_keep_the_same_as_long_ones() -> None:
    """Of hours with few and with many different numbers, looked at together or alone."""
    values = np.concatenate([np.arange(1_500.0), np.repeat([1.0, 2.0], 300), np.arange(30.0)])
    hours = pa.array(np.repeat([0, 1, 2], [1_500, 600, 30]) * HOUR_US).cast(pa.timestamp("us", "UTC"))
    made = profile_table(pa.table({"x": values, "at": hours}), BASELINE, time_column="at")
    for one, part in zip(made, np.split(values, [1_500, 2_100]), strict=True):
        alone = profile(part)
        assert [(one.seen.tolist(), one.sums.tolist())] == [(alone.seen.tolist(), alone.sums.tolist())]
        assert one.seen_counts.tolist() == alone.seen_counts.tolist()


def test_they_are_kept_and_files_of_before_are_read(tmp_path: Path) -> None:
    """A file without them: its numbers could all be the same one, and the bound says so."""
    store = ProfileStore(tmp_path)
    values = np.repeat([1.0, 2.0], [3, 4])
    path = store.put("new", [profile(values)], boundary="event", baseline=BASELINE)
    old = pq.read_table(path).drop_columns(["seen", "seen_counts", "sums"]).replace_schema_metadata(None)
    pq.write_table(old, path.with_name("old.parquet"))
    store.put("many", [profile(spiked())], boundary="source", baseline=BASELINE)
    [one] = store.read(boundary="event", baseline=BASELINE.id)
    assert top_of(one, 2, FEATURE) == ([("2", 4), ("1", 3)], 7)
    [many] = store.read(boundary="source", baseline=BASELINE.id)
    assert top_of(many, 9, FEATURE) == top_of(profile(spiked()), 9, FEATURE)
