"""What did a feature look like in one segment and hour? A value of constant size that can be merged in any order.

All that is kept is integers that are added, and extremes: counts, buckets, registers, and sums of values that were cut
once to a multiple of 2**-20 of the baseline's scale, as distances from its centre. Integers add up to the same bits in
any order, which floats do not; the cut moves a mean by at most 2**-21 scales, and a variance near 1e9 stays right since
the centre was taken off first. (The exact partials of windowed features live in a room above this one.)
"""

import hashlib
import sys
from collections.abc import Iterable, Mapping
from fractions import Fraction
from math import isfinite
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import field
from msgspec.structs import replace

from validation.profile.baseline import FeatureBaseline, ProfileError
from validation.profile.entities import Entities, merge_entities
from validation.profile.frequent import (
    Keys,
    count_of,
    frequent,
    merge_frequent,
    no_keys,
    nothing_frequent,
    numbers_of,
)
from validation.profile.sketch import Codes, Floats, Registers, distinct_of, middles, no_registers, word_hash

UNIT: Final = 2.0**-20
"""Sums are multiples of so many scales."""
SMALL: Final = float(2**11)
"""Distances below it are less than 2**31 units."""
NEW_KEPT: Final = 64
NEW_CELLS: Final = 64
Counts = npt.NDArray[np.int64]
_NONE: Final[Counts] = np.zeros(0, np.int64)


def _no_codes() -> Codes:
    return np.zeros(0, np.int32)


def _no_counts() -> Counts:
    return _NONE


class Profile(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """The values of one feature, segment, hour and boundary. `hour_us` is the hour's start; None is all time."""

    feature: str
    baseline: str
    """The id of the baseline it was made with."""
    segment: str = ""
    """`column=value`; empty is all rows."""
    hour_us: int | None = None
    boundary: str = ""
    rows: int = 0
    nulls: int = 0
    nans: int = 0
    """Numbers that are NaN: neither null nor among the finite ones."""
    above: int = 0
    """Positive infinities."""
    below: int = 0
    """Negative infinities."""
    low: float | None = None
    """The least finite value."""
    high: float | None = None
    total: int = 0
    """Sum of the finite values' distances from the centre, in UNIT scales."""
    squares: int = 0
    """Sum of the squares of the same cut distances, in UNIT**2."""
    codes: Codes = field(default_factory=_no_codes)
    """The buckets that hold finite values, ascending."""
    counts: Counts = field(default_factory=_no_counts)
    """Values in each of `codes`; of a category: values of each of the baseline's categories."""
    new: Mapping[str, int] = field(default_factory=dict)
    """Category that the baseline does not name -> exact count, of the NEW_KEPT with the least hashes."""
    cells: Counts = field(default_factory=_no_counts)
    """The other unnamed categories, counted in NEW_CELLS cells by their hash: none is more frequent than its cell."""
    registers: Registers = field(default_factory=no_registers)
    seen: Keys = field(default_factory=no_keys)
    """The different numbers, see `frequent`, as long as there are few."""
    seen_counts: Counts = field(default_factory=_no_counts)
    sums: Counts = field(default_factory=_no_counts)
    """What is kept of numbers where there are many different ones."""
    entities: Entities = field(default_factory=Entities)

    @property
    def values(self) -> int:
        """Finite values, or categories."""
        return int(self.counts.sum()) + sum(self.new.values()) + int(self.cells.sum())

    @property
    def news(self) -> int:
        """Values in categories that the baseline does not name."""
        return sum(self.new.values()) + int(self.cells.sum())

    @property
    def distinct(self) -> float:
        """About how many different values: standard error 3.25 %."""
        return distinct_of(self.registers)

    def digest(self) -> str:
        """The same for the same content, whatever was merged in which order."""
        plain = (
            *(self.feature, self.baseline, self.segment, self.hour_us, self.boundary, self.rows, self.nulls),
            *(self.nans, self.above, self.below, self.low, self.high, self.total, self.squares),
            *(self.codes.tolist(), self.counts.tolist(), sorted(self.new.items()), self.cells.tolist()),
            self.registers.tobytes(),
            *(self.seen.tolist(), self.seen_counts.tolist(), self.sums.tolist()),
            *((self.entities.hashes.tolist(), self.entities.counts.tolist()) if self.entities.most else ()),
        )
        return hashlib.sha256(repr(plain).encode()).hexdigest()


def merge(profiles: Iterable[Profile]) -> Profile:
    """One profile of all the values: the same bits for any order and grouping.

    The segment, hour and boundary stay where all agree; else the hour is None and the texts are empty. Raises
    ProfileError for none at all, another feature, or another baseline.
    """
    given = list(profiles)
    if not given:
        raise ProfileError("no profiles to merge")
    first = given[0]
    for other in given[1:]:
        if (other.feature, other.baseline) != (first.feature, first.baseline):
            raise ProfileError(
                f"profiles of {first.feature!r} on baseline {first.baseline} and of {other.feature!r} on baseline "
                f"{other.baseline} cannot be merged; profile both on one baseline"
            )
    if len(given) == 1:
        return first
    numeric = not len(first.cells)
    codes, counts = _no_codes(), _no_counts()
    if numeric:
        codes, place = np.unique(np.concatenate([one.codes for one in given]), return_inverse=True)
        counts = np.zeros(len(codes), np.int64)
        np.add.at(counts, place, np.concatenate([one.counts for one in given]))
    else:
        counts = np.sum([one.counts for one in given], axis=0, dtype=np.int64)
    new, cells = _no_new(), _no_counts()
    if not numeric:
        new, cells = _merge_new(given)
    seen, seen_counts, sums = (
        merge_frequent([(one.seen, one.seen_counts, one.sums) for one in given]) if numeric else nothing_frequent()
    )
    lows = [one.low for one in given if one.low is not None]
    highs = [one.high for one in given if one.high is not None]
    return replace(
        first,
        segment=first.segment if len({one.segment for one in given}) == 1 else "",
        hour_us=first.hour_us if len({one.hour_us for one in given}) == 1 else None,
        boundary=first.boundary if len({one.boundary for one in given}) == 1 else "",
        rows=sum(one.rows for one in given),
        nulls=sum(one.nulls for one in given),
        nans=sum(one.nans for one in given),
        above=sum(one.above for one in given),
        below=sum(one.below for one in given),
        low=min(lows) if lows else None,
        high=max(highs) if highs else None,
        total=sum(one.total for one in given),
        squares=sum(one.squares for one in given),
        codes=codes,
        counts=counts,
        new=new,
        cells=cells,
        registers=np.maximum.reduce([one.registers for one in given]),
        seen=seen,
        seen_counts=seen_counts,
        sums=sums,
        entities=merge_entities([one.entities for one in given if one.rows]),
    )


def _no_new() -> dict[str, int]:
    return {}


def _merge_new(given: list[Profile]) -> tuple[dict[str, int], Counts]:
    added: dict[str, int] = {}
    for one in given:
        for text, count in one.new.items():
            added[text] = added.get(text, 0) + count
    return keep_new(added, np.sum([one.cells for one in given], axis=0, dtype=np.int64))


def keep_new(added: Mapping[str, int], cells: Counts) -> tuple[dict[str, int], Counts]:
    """The NEW_KEPT categories with the least hashes; the others go to the cells.

    What was dropped before had NEW_KEPT smaller hashes beside it, which any union still holds: it is dropped there too.
    So what is kept depends on the set of categories alone, and its counts are exact.
    """
    if len(added) <= NEW_KEPT:
        return dict(sorted(added.items())), cells
    ranked = sorted(added, key=lambda text: (word_hash(text), text))
    cells = cells.copy()
    for text in ranked[NEW_KEPT:]:
        cells[(word_hash(text) >> 32) % NEW_CELLS] += added[text]
    return {text: added[text] for text in sorted(ranked[:NEW_KEPT])}, cells


def mean_of(profile: Profile, feature: FeatureBaseline) -> float | None:
    """The mean of the finite values, within 2**-21 scales; None where there are none."""
    count = int(profile.counts.sum())
    if not count:
        return None
    return _nearest(Fraction(feature.centre) + Fraction(profile.total, count) * Fraction(UNIT * feature.scale))


def variance_of(profile: Profile, feature: FeatureBaseline) -> float | None:
    """The sample variance of the finite values: one exact rational of the cut values; None for less than two.

    The greatest double where it is greater still.
    """
    count = int(profile.counts.sum())
    if count < 2:
        return None
    exact = count * profile.squares - profile.total**2
    return _nearest(Fraction(exact, count * (count - 1)) * Fraction(UNIT * feature.scale) ** 2)


def _nearest(exact: Fraction) -> float:
    """The nearest finite double: values near 1e308 have a variance that no double holds."""
    try:
        return float(exact)
    except OverflowError:
        return sys.float_info.max if exact > 0 else -sys.float_info.max


def quantile_of(profile: Profile, share: float, feature: FeatureBaseline) -> float | None:
    """A value within 1/64 of the quantile's distance from the centre; None where there are no finite values."""
    count = int(profile.counts.sum())
    if not count:
        return None
    place = int(np.searchsorted(np.cumsum(profile.counts), max(1, np.ceil(share * count))))
    middle = float(middles(profile.codes[place : place + 1], feature.centre, feature.scale)[0])
    assert profile.low is not None
    assert profile.high is not None
    return min(max(middle, profile.low), profile.high)


def histogram_of(profile: Profile, feature: FeatureBaseline) -> Counts:
    """Finite values in each bin of the baseline's edges: exact, since edges lie between buckets."""
    bins = np.zeros(len(feature.edges) + 1, np.int64)
    np.add.at(bins, np.searchsorted(np.asarray(feature.edges, np.int32), profile.codes, side="left"), profile.counts)
    return bins


def top_of(profile: Profile, k: int, feature: FeatureBaseline) -> tuple[list[tuple[str, int]], int]:
    """The k most frequent categories or numbers, and the most that one which was not looked at may have.

    Counts are exact, of categories and where there are at most SEEN different numbers; else about right, see
    `frequent`. Values of profiles that were made before numbers were counted may all be the same one.
    """
    if feature.kind == "category":
        found = {text: int(n) for text, n in zip(feature.categories, profile.counts, strict=True) if n}
        known, rest = found | dict(profile.new), int(profile.cells.max(initial=0))
    else:
        numbers, rest = list(zip(numbers_of(profile.seen), profile.seen_counts.tolist(), strict=True)), 0
        looked_at = int(profile.seen_counts.sum())
        if len(profile.sums):
            numbers, rest = frequent(profile.sums)
            looked_at = count_of(profile.sums)
        known = {str(number).removesuffix(".0"): count for number, count in numbers if isfinite(number)}
        # What is too large for the key of four bytes, and profiles of before, may be one number each.
        rest += profile.values - looked_at + sum(count for number, count in numbers if not isfinite(number))
    ranked = sorted(known.items(), key=lambda one: (-one[1], one[0]))
    return ranked[:k], rest


def support_of(profile: Profile, feature: FeatureBaseline) -> Floats:
    """The middles of the buckets that hold values, clamped to the least and greatest value."""
    if profile.low is None or profile.high is None:
        return np.zeros(0)
    return np.clip(middles(profile.codes, feature.centre, feature.scale), profile.low, profile.high)
