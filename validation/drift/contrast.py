"""Which counts are compared? Reference and current profiles of one feature and segment, laid out on the same cells.

Rows of a matrix are blocks of time (one block where rows are taken as independent), columns are cells: values first, in
order, then nulls, then numbers that are not finite. Numbers are laid on about CELLS cells of equal pooled count,
none of which straddles an edge of the reference's histogram; the layout looks at both sides alike, as a test must.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from validation.drift.measures import Array
from validation.profile.baseline import FeatureBaseline, Kind
from validation.profile.profile import Profile, mean_of, merge, variance_of
from validation.profile.sketch import middles

CELLS: Final = 200
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

    @property
    def cells(self) -> int:
        return len(self.rare)


def block_of(profile: Profile, block_us: int | None) -> int:
    """The block that a profile's hour lies in."""
    return 0 if block_us is None or profile.hour_us is None else profile.hour_us // block_us


def contrast_of(
    reference: Sequence[Profile], current: Sequence[Profile], feature: FeatureBaseline, *, block_us: int | None
) -> Contrast:
    """The counts of one feature and segment; both sides have at least one profile, made on the same baseline."""
    sides = [_blocks(reference, block_us), _blocks(current, block_us)]
    whole = [merge(side.values()) for side in sides]
    if feature.kind == "number":
        dense, values, bins, labels = _numbers(sides, feature)
        rare = np.zeros(len(values), bool)
    else:
        dense, labels = _categories(sides, feature)
        values, bins = np.zeros(0), np.arange(len(labels))
        rare = _rare(dense)
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
        deviation=_deviation(variance, feature),
        reference_mean=mean_of(whole[0], feature) if feature.kind == "number" else None,
        current_mean=mean_of(whole[1], feature) if feature.kind == "number" else None,
    )


def _deviation(variance: float | None, feature: FeatureBaseline) -> float:
    if feature.kind != "number":
        return 0.0
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
    values = middles(codes, feature.centre, feature.scale)
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


def _categories(sides: Sequence[dict[int, Profile]], feature: FeatureBaseline) -> tuple[list[Array], tuple[str, ...]]:
    blocks = [list(side.values()) for side in sides]
    new = sorted({text for side in blocks for one in side for text in one.new})
    named = len(feature.categories)
    places = {text: named + place for place, text in enumerate(new)}
    dense = []
    for side in blocks:
        table = np.zeros((len(side), named + len(new) + len(side[0].cells)))
        for row, one in zip(table, side, strict=True):
            row[:named] = one.counts
            for text, count in one.new.items():
                row[places[text]] = count
            row[named + len(new) :] = one.cells
        dense.append(table)
    labels = (*feature.categories, *new, *(f"others {n}" for n in range(dense[0].shape[1] - named - len(new))))
    held = (dense[0].sum(0) + dense[1].sum(0)) > 0
    return [table[:, held] for table in dense], tuple(np.array(labels, object)[held].tolist())


def _rare(dense: Sequence[Array]) -> npt.NDArray[np.bool_]:
    """Categories of which the smaller side expects less than one value."""
    counts = [table.sum(0) for table in dense]
    pooled = counts[0] + counts[1]
    smaller = min(counts[0].sum(), counts[1].sum()) / max(pooled.sum(), 1.0)
    rare: npt.NDArray[np.bool_] = pooled * smaller < 1
    return rare
