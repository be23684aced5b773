"""Warnings about what a comparison takes as independent and is not: neighbouring blocks, entities in several blocks.

Blocks of time are dealt out as if one said nothing about the next. Whether that holds is tested: the blocks of each
side are put in a random order, over and over, and neighbours of the true order must be no more alike than those.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from validation.drift import significance
from validation.drift.contrast import Contrast, block_of
from validation.drift.measures import Array, shares
from validation.profile.profile import Profile, merge

ORDERS: Final = 999
LEVEL: Final = 0.05
"""The chance of a warning where blocks are independent, of all features together."""
SHARED: Final = 1.2
"""Blocks an entity is in, from which on a warning says so."""
_FEWEST: Final = 4
Places = npt.NDArray[np.int64]


def warned(
    contrasts: Sequence[Contrast],
    reference: Sequence[Profile],
    current: Sequence[Profile],
    block_us: int | None,
    seed: int,
) -> Iterator[str]:
    """One sentence for each kind of dependence that the stated rate does not allow for."""
    if block_us is None:
        return
    whole = [one for one in contrasts if not one.segment] or list(contrasts)
    found = [(alike, one) for one in whole if (alike := neighbours(one, seed, LEVEL / len(whole))) is not None]
    if found:
        strongest, one = max(found, key=lambda each: each[0])
        names = ", ".join(sorted({each.feature for _, each in found})[:5])
        hours = block_us / 3_600_000_000
        longer = hours * np.ceil((1 + strongest) / max(1 - strongest, 0.05))
        yield (
            f"blocks depend on their neighbours (correlation {strongest:.2f} in {one.feature}; {len(found)} of "
            f"{len(whole)} features: {names}): more comparisons without drift alarm than stated; choose longer blocks, "
            f"about {longer:g} h"
        )
    for name, side in (("reference", reference), ("current rows", current)):
        blocks = _blocks_an_entity(side, block_us)
        if blocks > SHARED:
            yield (
                f"an entity of the {name} is in {blocks:.1f} blocks on average: blocks depend on each other, and more "
                "comparisons without drift alarm than stated; choose longer blocks, or compare by entity without blocks"
            )


def neighbours(contrast: Contrast, seed: int, level: float) -> float | None:
    """The correlation of neighbouring blocks, where it is more than chance makes; else None."""
    sides = [
        _levels(contrast, counts, blocks)
        for counts, blocks in (
            (contrast.reference, contrast.reference_blocks),
            (contrast.current, contrast.current_blocks),
        )
    ]
    sides = [(levels, pairs) for levels, pairs in sides if len(levels) >= _FEWEST and len(pairs)]
    spread = sum(float((levels**2).sum()) * len(pairs) / len(levels) for levels, pairs in sides)
    if not spread > 1e-12:
        return None
    rng = np.random.default_rng([seed, 3])
    found = sum(_products(levels, pairs) for levels, pairs in sides) / spread
    chance = np.array(
        [sum(_products(rng.permutation(levels), pairs) for levels, pairs in sides) / spread for _ in range(ORDERS)]
    )
    p = (1 + np.count_nonzero(chance >= found)) / (ORDERS + 1)
    return float(min(found, 1.0)) if p <= max(level, 1 / (ORDERS + 1)) else None


def _levels(contrast: Contrast, counts: Array, blocks: Places) -> tuple[Array, Places]:
    """Where each block of a side lies, [blocks, n], less the side's mean; and the places of those with a next one."""
    cells = counts[:, : contrast.cells]
    held = cells.sum(1) > 0
    cells, blocks = cells[held], blocks[held]
    if contrast.kind == "number":
        pooled = (contrast.reference.sum(0) + contrast.current.sum(0))[: contrast.cells]
        scores = significance.normal_scores(significance.mid_ranks(pooled))
        levels = (shares(cells) @ scores)[:, None]
    else:
        levels = shares(cells)
    return levels - levels.mean(0) if len(levels) else levels, np.flatnonzero(np.diff(blocks) == 1)


def _products(levels: Array, pairs: Places) -> float:
    return float((levels[pairs] * levels[pairs + 1]).sum())


def _blocks_an_entity(profiles: Sequence[Profile], block_us: int) -> float:
    first = next((one for one in profiles if not one.segment), None)
    if first is None:
        return 1.0
    by_block: dict[int, list[Profile]] = {}
    for one in profiles:
        if (one.feature, one.segment) == (first.feature, ""):
            by_block.setdefault(block_of(one, block_us), []).append(one)
    blocks = [merge(side).entities for side in by_block.values()]
    whole = merge([one for side in by_block.values() for one in side]).entities
    if not len(whole.hashes):
        return 1.0
    # Of the entities that are kept of all, each is kept in every block that it is in.
    return sum(int(np.count_nonzero(one.hashes <= whole.hashes[-1])) for one in blocks) / len(whole.hashes)
