"""How does a table become profiles?

Rows are sorted once by segment and hour; each feature is then cut into slices. Everything per value is a vector
operation, of many slices together where they are short (`short_slices`): below 100 ns a value, segments and hours
included, as long as slices have a thousand rows.
"""

import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec.structs import replace

from validation.errors import did_you_mean
from validation.instant_columns import as_micros
from validation.profile.baseline import Baseline, FeatureBaseline, ProfileError, as_promised, numbers
from validation.profile.categories import Words, profiles_of_words, words_of
from validation.profile.cohorts import kept_cohorts
from validation.profile.entities import KEPT, Bools, Grouped, grouped, hashes_of_rows
from validation.profile.frequent import nothing_frequent, with_more
from validation.profile.profile import SMALL, UNIT, Profile, merge
from validation.profile.short_slices import SHORT, Slice, groups_of, profiles_of
from validation.profile.sketch import LAST, Floats, codes_of, distances, hashes_of, no_registers, register

HOUR_US: Final = 3_600_000_000
_CHUNK: Final = 1 << 17
"""Values at once: they and what is computed from them stay in the processor's cache, and exact sums fit a double."""
_DROPPED: Final = "\0"
"""The segment of rows whose cohorts are not kept, until all rows are added up."""
_UNSHARED: Final = 8_192
"""Products of vectors up to this length stay on one thread of the linear algebra library."""


def profile_table(
    table: pa.Table,
    baseline: Baseline,
    *,
    boundary: str = "",
    time_column: str | None = None,
    segments: Sequence[str] = (),
    span_us: int = HOUR_US,
    every_cohort: bool = True,
    entities: Sequence[str] = (),
    most_entities: int = KEPT,
    threads: int | None = None,
    without: Collection[str] = (),
) -> list[Profile]:
    """The profiles of a table: a feature, segment and hour each, in that order.

    Of every column in `segments` each value is a segment (`column=value`, null is `column=`), and all rows are one
    too. Not `every_cohort`: of a column with very many values those that are kept (`cohorts`), so that memory is
    bounded. `entities` are the columns that together say whose a row is. Without
    `time_column` there is one profile for all time; `span_us` takes longer spans than hours, for a single use.
    Features in `without` have no profile. Raises ProfileError for a column that is absent or of another kind than in
    the baseline.
    """
    features = [feature for feature in baseline.features if feature.name not in without]
    for name in (*(feature.name for feature in features), *segments, *filter(None, [time_column]), *entities):
        if name not in table.column_names:
            raise ProfileError(f"no column {name!r} to profile; {did_you_mean(name, table.column_names)}")
    hours = _hours(table, time_column, span_us)
    parts = [_groups(table.num_rows, hours, None, "")] if not segments else []
    parts += [_groups(table.num_rows, hours, table.column(name), name, every_cohort=every_cohort) for name in segments]
    baseline_id = baseline.id
    owners = [_owners(table, entities, most_entities, *part) for part in parts] if entities else None

    def whole(feature: FeatureBaseline) -> list[Profile]:
        column = as_promised(table.column(feature.name), feature)
        words = words_of(column, feature) if feature.kind == "category" else None
        found: list[Profile] = []
        for number, (order, slices) in enumerate(parts):
            if words is not None:
                made = profiles_of_words(words, order, slices, feature, baseline_id, boundary)
            else:
                made = _sliced(
                    column if order is None else column.take(pa.array(order)), slices, feature, baseline_id, boundary
                )
            if owners is not None:
                scores = _scores(column, words, feature)
                made = _owned(made, owners[number], [each if order is None else each[order] for each in scores], slices)
            # All rows are the sum of any one column's segments: merging is cheaper than counting again.
            if segments and number == 0:
                found += _all_rows(made)
            found += [profile for profile in made if profile.segment != _DROPPED]
        return found

    threads = threads or min(4, os.cpu_count() or 1)
    if threads == 1:  # a process that ends may start no thread any more
        return [profile for found in map(whole, features) for profile in found]
    with ThreadPoolExecutor(threads) as pool:
        return [profile for found in pool.map(whole, features) for profile in found]


def _owners(
    table: pa.Table,
    entities: Sequence[str],
    most: int,
    order: npt.NDArray[np.int64] | None,
    slices: Sequence[Slice],
) -> Grouped:
    hashes = hashes_of_rows(table, entities)
    by_row = sorted((start, end) for _, _, start, end in slices)
    return grouped(hashes if order is None else hashes[order], by_row, most)


def _scores(column: pa.ChunkedArray, words: Words | None, feature: FeatureBaseline) -> tuple[Bools, Bools, Bools]:
    """Of each row whether it has a value, and whether that is above and below the centre; see `entities`."""
    if words is not None:
        null = len(words.texts)
        # Every other one; of words without a name every other hash.
        odd = np.r_[np.where(words.named >= 0, words.named % 2 == 1, words.registers % 2 == 1), False]
        return words.codes != null, odd[words.codes], np.r_[words.named == 0, False][words.codes]
    values = np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)
    valid = np.isfinite(values)
    return valid, valid & (values > feature.centre), valid & (values < feature.centre)


def _owned(made: list[Profile], owners: Grouped, scores: Sequence[Bools], slices: Sequence[Slice]) -> list[Profile]:
    by_start = dict(zip(sorted(one[2] for one in slices), owners.entities_of(*scores), strict=True))
    return [replace(profile, entities=by_start[one[2]]) for profile, one in zip(made, slices, strict=True)]


def _hours(table: pa.Table, time_column: str | None, span_us: int) -> npt.NDArray[np.int64] | None:
    if time_column is None:
        return None
    column = table.column(time_column)
    if not pa.types.is_timestamp(column.type):
        raise ProfileError(f"column {time_column!r} is {column.type}; expected instants (timestamp)")
    if column.null_count:
        raise ProfileError(f"column {time_column!r} has {column.null_count} nulls; a row without a time has no hour")
    instants = as_micros(column).to_numpy()
    hours: npt.NDArray[np.int64] = instants // span_us * span_us
    return hours


def _groups(
    count: int,
    hours: npt.NDArray[np.int64] | None,
    column: pa.ChunkedArray | None,
    name: str,
    *,
    every_cohort: bool = True,
) -> tuple[npt.NDArray[np.int64] | None, list[Slice]]:
    """The order in which rows of one segment and hour lie together (None: as they are), and the slices."""
    if column is None and hours is None:
        return None, [("", None, 0, count)]
    labels, codes = [""], np.zeros(count, np.int64)
    if column is not None:
        encoded = pa.chunked_array([column.cast(pa.string()).combine_chunks()]).combine_chunks().dictionary_encode()
        texts = encoded.dictionary.to_pylist()
        labels = [*(f"{name}={text}" for text in texts), f"{name}="]
        codes = encoded.indices.fill_null(len(texts)).to_numpy().astype(np.int64)
        if not every_cohort:
            labels, codes = _kept(labels, codes)
    keys = codes if hours is None else np.unique(hours, return_inverse=True)[1] + (codes << 32)
    order = np.argsort(keys, kind="stable")
    arranged = keys[order]
    starts = np.flatnonzero(np.r_[True, arranged[1:] != arranged[:-1]]) if count else np.zeros(0, np.int64)
    ends = np.r_[starts[1:], count] if count else starts
    slices = [
        (
            labels[codes[order[start]]],
            None if hours is None else int(hours[order[start]]),
            int(start),
            int(end),
        )
        for start, end in zip(starts, ends, strict=True)
    ]
    in_order = bool((order[1:] > order[:-1]).all())
    return (None if in_order else order), sorted(slices, key=lambda one: (one[0], one[1] or 0))


def _kept(labels: list[str], codes: npt.NDArray[np.int64]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The same with one label for the rows of all cohorts that are not kept."""
    # Null's label is always there, its rows are not: it may not take the place of a cohort.
    present = {labels[code] for code in np.unique(codes).tolist()}
    kept = kept_cohorts(present)
    if len(kept) == len(present):
        return labels, codes
    stay = np.array([label in kept for label in labels])
    return [*labels, _DROPPED], np.where(stay[codes], codes, len(labels))


def _all_rows(made: list[Profile]) -> list[Profile]:
    by_hour: dict[int | None, list[Profile]] = {}
    for profile in made:
        by_hour.setdefault(profile.hour_us, []).append(profile)
    ordered = sorted(by_hour.items(), key=lambda one: one[0] or 0)
    return [replace(merge(group), segment="") for _, group in ordered]


def _sliced(
    column: pa.ChunkedArray, slices: Sequence[Slice], feature: FeatureBaseline, baseline: str, boundary: str
) -> list[Profile]:
    """One profile of numbers a slice, in their order; short ones are made together."""
    together: dict[Slice, Profile] = {}
    for group in groups_of([one for one in slices if one[3] - one[2] <= SHORT]):
        together.update(zip(group, profiles_of(column, group, feature, baseline, boundary) or (), strict=False))
    return [
        together.get(one) or _number(column.slice(one[2], one[3] - one[2]), feature, baseline, *one[:2], boundary)
        for one in slices
    ]


def _number(
    column: pa.ChunkedArray, feature: FeatureBaseline, baseline: str, segment: str, hour_us: int | None, boundary: str
) -> Profile:
    values, nulls = numbers(column)
    nans = above = below = 0
    total = squares = 0
    low, high = np.inf, -np.inf
    dense = np.zeros(2 * LAST + 1, np.int64)
    registers = no_registers()
    often = nothing_frequent()
    for start in range(0, len(values), _CHUNK):
        part: Floats = values[start : start + _CHUNK]
        smallest, greatest = part.min(), part.max()
        # A sum would overflow on large values: the extremes tell as well, since NaN passes through them.
        if not (np.isfinite(smallest) and np.isfinite(greatest)):
            missing = np.isnan(part)
            nans += int(np.count_nonzero(missing))
            above += int(np.count_nonzero(part == np.inf))
            below += int(np.count_nonzero(part == -np.inf))
            part = part[np.isfinite(part)]
            if not len(part):
                continue
            smallest, greatest = part.min(), part.max()
        low, high = min(low, float(smallest)), max(high, float(greatest))
        away = distances(part, feature.centre, feature.scale)
        dense += np.bincount(codes_of(away) + np.int16(LAST), minlength=2 * LAST + 1)
        large = max(-float(away.min()), float(away.max())) >= SMALL
        more, more_squares = _large_sums(part, away, feature) if large else _sums(away)
        total, squares = total + more, squares + more_squares
        registers = register(hashes_of(part), registers)
        often = with_more(often, part)
    held = np.flatnonzero(dense)
    return Profile(
        feature=feature.name,
        baseline=baseline,
        segment=segment,
        hour_us=hour_us,
        boundary=boundary,
        rows=len(column),
        nulls=nulls,
        nans=nans,
        above=above,
        below=below,
        low=low + 0.0 if low <= high else None,
        high=high + 0.0 if low <= high else None,
        total=total,
        squares=squares,
        codes=(held - LAST).astype(np.int32),
        counts=dense[held],
        registers=registers,
        seen=often[0],
        seen_counts=often[1],
        sums=often[2],
    )


def _sums(away: Floats) -> tuple[int, int]:
    """The sum of the distances, cut to UNIT, and of their squares: exact integers; distances below SMALL."""
    # Halves of 16 bits: all products and their sums stay below 2**53, where a double is an exact integer.
    cut = away * (1.0 / UNIT)
    np.rint(cut, out=cut)
    upper = cut * 2.0**-16
    np.floor(upper, out=upper)
    lower = cut - upper * 2.0**16
    high = cross = rest = 0.0
    for start in range(0, len(cut), _UNSHARED):
        a, b = upper[start : start + _UNSHARED], lower[start : start + _UNSHARED]
        high, cross, rest = high + float(a @ a), cross + float(a @ b), rest + float(b @ b)
    return int(cut.sum()), (int(high) << 32) + (int(cross) << 17) + int(rest)


def _large_sums(values: Floats, away: Floats, feature: FeatureBaseline) -> tuple[int, int]:
    """The same where some values are far away: Python's integers have no end, so that 1e300 is exact too."""
    far = ~(np.abs(away) < SMALL)
    total, squares = _sums(away[~far])
    for value in values[far].tolist():
        whole = _whole(value, feature)
        total, squares = total + whole, squares + whole * whole
    return total, squares


def _whole(value: float, feature: FeatureBaseline) -> int:
    top, bottom = value.as_integer_ratio()
    centre_top, centre_bottom = feature.centre.as_integer_ratio()
    unit_top, unit_bottom = (feature.scale * UNIT).as_integer_ratio()
    numerator = (top * centre_bottom - centre_top * bottom) * unit_bottom
    return numerator // (bottom * centre_bottom * unit_top)
