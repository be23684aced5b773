"""What did the numbers of many short slices look like? The same profiles as one by one, most of the work done at once.

An hour of one segment may be a hundred rows; looking at them alone costs ten times as much a value as looking at a
million. So what is computed value by value (distance, bucket, hash) is computed for many slices together, and what is
counted is counted in one table with a row for each slice, or by one sort. Everything that is added is an integer, so
that the bits are those of the one by one way.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from validation.profile.baseline import FeatureBaseline, numbers
from validation.profile.frequent import Frequent, keys_of, seen_or_sums
from validation.profile.profile import SMALL, UNIT, Profile
from validation.profile.sketch import LAST, REGISTERS, codes_of, distances, hashes_of, places_and_ranks

SHORT: Final = 4_096
"""Slices of so many rows at most are worth it."""
_AT_ONCE: Final = 65_536
"""Rows that are looked at together: enough that what is done once for all of them costs nothing."""
_TABLE: Final = 4
"""A table may have so many places for each value that is counted in it."""
_WIDTH: Final = 2 * LAST + 1
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Slice = tuple[str, int | None, int, int]


def groups_of(slices: Sequence[Slice]) -> Iterator[list[Slice]]:
    """Slices that follow each other without a gap, in the order of their rows, and are looked at together."""
    group: list[Slice] = []
    for one in sorted(slices, key=lambda one: one[2]):
        if group and (one[2] != group[-1][3] or one[3] - group[0][2] > _AT_ONCE):
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def profiles_of(
    column: pa.ChunkedArray, group: Sequence[Slice], feature: FeatureBaseline, baseline: str, boundary: str
) -> list[Profile] | None:
    """The profiles of slices that follow each other; None where a value is too far away for sums of doubles."""
    first, last = group[0][2], group[-1][3]
    part = column.slice(first, last - first)
    rows = np.array([end - start for _, _, start, end in group], np.int64)
    edges = np.concatenate([np.zeros(1, np.int64), np.cumsum(rows)])
    kept = edges
    if part.null_count:
        kept = _edges_of(part.is_valid().to_numpy(), edges)
    values, _ = numbers(part)
    nulls = rows - np.diff(kept)
    finite = np.isfinite(values)
    nans = above = below = np.zeros(len(group), np.int64)
    edges = kept
    if not finite.all():
        nans, above, below = (
            np.diff(_edges_of(mask, kept)) for mask in (np.isnan(values), values == np.inf, values == -np.inf)
        )
        edges, values = _edges_of(finite, kept), values[finite]
    away = distances(values, feature.centre, feature.scale)
    if len(away) and max(-float(away.min()), float(away.max())) >= SMALL:
        return None
    counts = np.diff(edges)
    number = np.repeat(np.arange(len(group)), counts)
    buckets = number * _WIDTH + (codes_of(away) + np.int64(LAST))
    held, in_bucket = counted(buckets, len(group) * _WIDTH)
    found = np.searchsorted(held, np.arange(len(group) + 1) * _WIDTH).tolist()
    codes = (held % _WIDTH - LAST).astype(np.int32)
    registers = np.zeros((len(group), REGISTERS), np.uint8)
    place, rank = places_and_ranks(hashes_of(values))
    np.maximum.at(registers.reshape(-1), number * REGISTERS + place, rank.astype(np.uint8))
    totals, squares = _sums(away, edges)
    lows, highs = _extremes(values, edges)
    often = _frequent(values, number, len(group))
    told = zip(
        group, nulls.tolist(), nans.tolist(), above.tolist(), below.tolist(), lows, highs, counts.tolist(), totals,
        squares, itertools.pairwise(found), registers, often,
        strict=True,
    )  # fmt: skip
    return [
        Profile(
            feature=feature.name,
            baseline=baseline,
            segment=one[0],
            hour_us=one[1],
            boundary=boundary,
            rows=one[3] - one[2],
            nulls=null,
            nans=nan,
            above=most,
            below=least,
            low=low + 0.0 if finite_ones else None,
            high=high + 0.0 if finite_ones else None,
            total=total,
            squares=square,
            codes=codes[first:last],
            counts=in_bucket[first:last],
            registers=registered,
            seen=seen,
            seen_counts=seen_counts,
            sums=sums,
        )
        for (
            one, null, nan, most, least, low, high, finite_ones, total, square, (first, last), registered,
            (seen, seen_counts, sums),
        ) in told
    ]  # fmt: skip


def counted(places: Ints, size: int) -> tuple[Ints, Ints]:
    """Which of `size` places occur, ascending, and how often: in a table, or sorted where that is mostly empty."""
    if size <= _TABLE * len(places):
        table = np.bincount(places, minlength=size)
        held = np.flatnonzero(table)
        return held, table[held]
    arranged = np.sort(places.astype(np.int32) if size < 2**31 else places)
    starts = np.flatnonzero(np.concatenate([np.ones(1, np.bool_), arranged[1:] != arranged[:-1]])[: len(arranged)])
    return arranged[starts].astype(np.int64), np.diff(np.append(starts, len(arranged)))


def _frequent(values: Floats, number: Ints, slices: int) -> list[Frequent]:
    """What is kept of each slice's most frequent numbers: one sort for all, by slice and number."""
    both = np.sort((number.view(np.uint64) << np.uint64(32)) | keys_of(values))
    starts = np.flatnonzero(np.concatenate([np.ones(1, bool), both[1:] != both[:-1]])) if len(both) else number
    different, counts = both[starts], np.diff(np.append(starts, len(both)))
    ends = np.searchsorted(different, np.arange(slices + 1, dtype=np.uint64) << np.uint64(32)).tolist()
    keys = different.astype(np.uint32)
    return [seen_or_sums(keys[start:end], counts[start:end]) for start, end in itertools.pairwise(ends)]


def _edges_of(mask: npt.NDArray[np.bool_], edges: Ints) -> Ints:
    """Where slices begin and end among the chosen values."""
    out: Ints = np.concatenate([np.zeros(1, np.int64), np.cumsum(mask)])[edges]
    return out


def _extremes(values: Floats, edges: Ints) -> tuple[list[float], list[float]]:
    """The least and the greatest value of each slice; anything where it has none."""
    some = np.flatnonzero(np.diff(edges))
    lows, highs = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
    if len(some):
        lows[some] = np.minimum.reduceat(values, edges[some])
        highs[some] = np.maximum.reduceat(values, edges[some])
    return lows.tolist(), highs.tolist()


def _sums(away: Floats, edges: Ints) -> tuple[list[int], list[int]]:
    """The sums of the distances, cut to UNIT, and of their squares: doubles below 2**53 are exact integers."""
    cut = np.rint(away * (1.0 / UNIT))
    upper = np.floor(cut * 2.0**-16)
    lower = cut - upper * 2.0**16
    some = np.flatnonzero(np.diff(edges))
    summed = np.zeros((4, len(edges) - 1), np.int64)
    if len(some):
        for row, part in enumerate((cut, upper * upper, upper * lower, lower * lower)):
            summed[row, some] = np.add.reduceat(part, edges[some])
    total, high, cross, rest = summed.tolist()
    return total, [(a << 32) + (b << 17) + c for a, b, c in zip(high, cross, rest, strict=True)]
