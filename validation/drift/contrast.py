"""Which counts are compared? Reference and current profiles of one feature and segment, laid out on the same cells.

Rows of a matrix are blocks of time (one block where rows are taken as independent), columns are cells: values first, in
order, then nulls, then numbers that are not finite. Numbers are laid on about CELLS cells of equal pooled count,
none of which straddles an edge of the reference's histogram; the layout looks at both sides alike, as a test must.
So it does with categories: those that the baseline names because they were frequent in the reference by chance lie in
the same cells as the ones that it does not name (`borderline`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from validation.drift.measures import Array
from validation.profile.baseline import FeatureBaseline, Kind
from validation.profile.profile import NEW_CELLS, Profile, keep_new, mean_of, merge, variance_of
from validation.profile.sketch import middles, word_hash

CELLS: Final = 200
FAR: Final = 1_024.0
"""Scales from the centre: values beyond count as far as the farthest others, where they are less than SELDOM of all."""
SELDOM: Final = 0.01
_LARGEST: Final = 1e290
"""Cells of larger values are this large: sums of them stay finite."""
_CLEAR: Final = 4.0
EXTRA: Final = 2
"""The last two columns: nulls, numbers that are not finite."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Contrast:
    """Counts of both sides, [blocks, cells + EXTRA]; `values` are the cells' numbers or empty."""

    feature: str
    segment: str
    kind: Kind
    reference: Array
    current: Array
    reference_blocks: npt.NDArray[np.int64]
    current_blocks: npt.NDArray[np.int64]
    """The blocks' starts in units of their length; one 0 where there is one block."""
    labels: tuple[str, ...]
    """Of categories their names, of numbers the histogram's bins."""
    values: Array
    bins: npt.NDArray[np.int64]
    """First cell of each histogram bin that holds something; of categories, each cell."""
    rare: npt.NDArray[np.bool_]
    """Categories too rare to test one by one: they are tested as one."""
    deviation: float
    """The reference's standard deviation; 0 for categories."""
    reference_mean: float | None
    current_mean: float | None
    repeats: tuple[float, float] = (1.0, 1.0)
    """How many rows of each side tell as much as one would of an entity of its own."""
    known: bool = False
    """Whether it is known whose the rows of both sides are."""

    @property
    def cells(self) -> int:
        return len(self.rare)

    @property
    def counted(self) -> tuple[Array, Array]:
        """The counts of both sides in units that are independent: rows, or less where entities repeat."""
        return self.reference.sum(0) / self.repeats[0], self.current.sum(0) / self.repeats[1]


def block_of(profile: Profile, block_us: int | None) -> int:
    """The block that a profile's hour lies in."""
    return 0 if block_us is None or profile.hour_us is None else profile.hour_us // block_us


def borderline(
    reference: Profile, current: Profile, feature: FeatureBaseline, repeats: tuple[float, float] = (1.0, 1.0)
) -> frozenset[int]:
    """The places of those named categories that another sample of the same rows might well not have named.

    They were frequent in the reference by chance, and would seem to become rarer. None where all are known by name.
    """
    if feature.kind != "category" or not len(feature.categories) or not merge([reference, current]).cells.any():
        return frozenset()
    pooled = (reference.counts + current.counts).astype(np.float64)
    share = reference.values / max(reference.values + current.values, 1)
    error = np.sqrt(pooled * share * (1 - share) * max(repeats))
    clear = pooled * share - _CLEAR * error > reference.counts.min()
    return frozenset(np.flatnonzero(~clear).tolist())


def contrast_of(
    reference: Sequence[Profile],
    current: Sequence[Profile],
    feature: FeatureBaseline,
    *,
    block_us: int | None,
    unnamed: frozenset[int] | None = None,
    repeats: tuple[float, float] = (1.0, 1.0),
) -> Contrast:
    """The counts of one feature and segment; both sides have at least one profile, made on the same baseline.

    `unnamed` are the `borderline` categories of all rows; without it, those of these rows.
    """
    sides = [_blocks(reference, block_us), _blocks(current, block_us)]
    whole = [merge(side.values()) for side in sides]
    if feature.kind == "number":
        dense, values, bins, labels = _numbers(sides, feature)
        rare = np.zeros(len(values), bool)
    else:
        if unnamed is None:
            unnamed = borderline(whole[0], whole[1], feature, repeats)
        dense, labels = _categories(sides, feature, unnamed)
        values, bins = np.zeros(0), np.arange(len(labels))
        rare = _rare(dense, repeats)
    counts = [
        np.concatenate([table, _extra(list(side.values()))], axis=1) for table, side in zip(dense, sides, strict=True)
    ]
    variance = variance_of(whole[0], feature) if feature.kind == "number" else None
    return Contrast(
        feature=feature.name,
        segment=whole[0].segment,
        kind=feature.kind,
        reference=counts[0],
        current=counts[1],
        reference_blocks=np.array(list(sides[0]), np.int64),
        current_blocks=np.array(list(sides[1]), np.int64),
        labels=labels,
        values=values,
        bins=bins,
        rare=rare,
        deviation=_deviation(whole[0], variance, feature),
        repeats=repeats,
        known=all(one.entities.most > 0 for one in whole),
        reference_mean=mean_of(whole[0], feature) if feature.kind == "number" else None,
        current_mean=mean_of(whole[1], feature) if feature.kind == "number" else None,
    )


def _deviation(reference: Profile, variance: float | None, feature: FeatureBaseline) -> float:
    if feature.kind != "number":
        return 0.0
    away = middles(reference.codes, 0.0, 1.0)
    near = np.abs(away) < FAR
    if not near.all() and reference.counts[~near].sum() < SELDOM * reference.counts.sum():
        # One wrong reading of 1e300 must not make every shift of the others a small one.
        kept, counts = away[near], reference.counts[near]
        spread = np.sqrt(np.average((kept - np.average(kept, weights=counts)) ** 2, weights=counts))
        return float(spread * feature.scale) or feature.scale
    # A constant has no deviation: any change of it is measured on the baseline's scale.
    return float(np.sqrt(variance)) if variance else feature.scale


def _blocks(profiles: Sequence[Profile], block_us: int | None) -> dict[int, Profile]:
    groups: dict[int, list[Profile]] = {}
    for profile in profiles:
        groups.setdefault(block_of(profile, block_us), []).append(profile)
    return {block: merge(group) for block, group in sorted(groups.items())}


def _extra(blocks: Sequence[Profile]) -> Array:
    return np.array([[one.nulls, one.nans + one.above + one.below] for one in blocks], np.float64)


Layout = tuple[list[Array], Array, npt.NDArray[np.int64], tuple[str, ...]]


def _numbers(sides: Sequence[dict[int, Profile]], feature: FeatureBaseline) -> Layout:
    blocks = [list(side.values()) for side in sides]
    codes = np.unique(np.concatenate([one.codes for side in blocks for one in side]))
    dense = [np.zeros((len(side), len(codes))) for side in blocks]
    for table, side in zip(dense, blocks, strict=True):
        for row, one in zip(table, side, strict=True):
            row[np.searchsorted(codes, one.codes)] = one.counts
    if not len(codes):
        return dense, np.zeros(0), np.zeros(0, np.int64), ()
    pooled = dense[0].sum(0) + dense[1].sum(0)
    quantile = np.minimum((np.cumsum(pooled) - pooled / 2) / pooled.sum() * CELLS, CELLS - 1).astype(np.int64)
    bin_of = np.searchsorted(np.asarray(feature.edges, np.int32), codes, side="left")
    cell = quantile * (len(feature.edges) + 1) + bin_of
    starts = np.flatnonzero(np.r_[True, cell[1:] != cell[:-1]])
    away = middles(codes, 0.0, 1.0)
    near = np.abs(away) < FAR
    if near.any() and pooled[~near].sum() < SELDOM * pooled.sum():
        away = np.clip(away, away[near].min(), away[near].max())
    with np.errstate(over="ignore"):
        values = np.clip(feature.centre + feature.scale * away, -_LARGEST, _LARGEST)
    mass = np.add.reduceat(pooled, starts)
    values = np.add.reduceat(values * pooled, starts) / mass
    bins = bin_of[starts]
    first = np.flatnonzero(np.r_[True, bins[1:] != bins[:-1]])
    ends = middles(np.asarray(feature.edges, np.int32), feature.centre, feature.scale)
    labels = tuple(
        f"to {ends[place]:.4g}" if place < len(ends) else (f"over {ends[-1]:.4g}" if len(ends) else "all")
        for place in bins[first]
    )
    return [np.add.reduceat(table, starts, axis=1) for table in dense], values, first, labels


def _categories(
    sides: Sequence[dict[int, Profile]], feature: FeatureBaseline, unnamed: frozenset[int]
) -> tuple[list[Array], tuple[str, ...]]:
    """Categories by name, then cells of the others: which is which depends on hashes and on both sides alike."""
    blocks = [list(side.values()) for side in sides]
    added: dict[str, int] = {}
    for one in (one for side in blocks for one in side):
        for text, count in one.new.items():
            added[text] = added.get(text, 0) + count
    # A profile keeps by name what it has of these; another one may have had too many to keep them.
    new = list(keep_new(added, np.zeros(NEW_CELLS, np.int64))[0])
    last = max(((word_hash(text), text) for text in new), default=None)
    all_known = not any(one.cells.any() for side in blocks for one in side) and len(new) == len(added)

    def by_name(place: int, text: str) -> bool:
        return place not in unnamed or all_known or (last is not None and (word_hash(text), text) <= last)

    shown = [text for place, text in enumerate(feature.categories) if by_name(place, text)]
    places = {text: place for place, text in enumerate([*shown, *new])}
    first = len(places)
    cell_of = {text: first + (word_hash(text) >> 32) % NEW_CELLS for text in added if text not in places}
    cell_of |= {text: first + (word_hash(text) >> 32) % NEW_CELLS for text in feature.categories if text not in places}
    column = places | cell_of
    of_named = np.array([column[text] for text in feature.categories], np.int64)
    dense = []
    for side in blocks:
        table = np.zeros((len(side), first + NEW_CELLS))
        for row, one in zip(table, side, strict=True):
            np.add.at(row, of_named, one.counts)
            for text, count in one.new.items():
                row[column[text]] += count
            row[first:] += one.cells
        dense.append(table)
    labels = (*shown, *new, *(f"others {n}" for n in range(NEW_CELLS)))
    held = (dense[0].sum(0) + dense[1].sum(0)) > 0
    return [table[:, held] for table in dense], tuple(np.array(labels, object)[held].tolist())


def _rare(dense: Sequence[Array], repeats: tuple[float, float]) -> npt.NDArray[np.bool_]:
    """Categories of which the smaller side expects less than one value."""
    counts = [table.sum(0) / each for table, each in zip(dense, repeats, strict=True)]
    pooled = counts[0] + counts[1]
    smaller = min(counts[0].sum(), counts[1].sum()) / max(pooled.sum(), 1.0)
    rare: npt.NDArray[np.bool_] = pooled * smaller < 1
    return rare
