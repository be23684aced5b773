"""What does no drift look like at this window size? Null windows, drawn from a seed.

Rows taken as independent: the rows of both sides are put together and dealt out again, as many to each side as it has.
That is exact for any distribution, for two categories and for 100,000; drawing from the reference alone is not, since a
sample lacks most rare categories of what it was drawn from.

Rows that depend on their neighbours in time (weather does): whole blocks of time are dealt out anew between the two
sides, the same deal for every feature and segment. A permutation test of blocks is exact as long as blocks are alike
under no drift and do not depend on each other.
"""

import math
import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np

from validation.drift.contrast import Contrast
from validation.drift.measures import Array

COUNTED: Final = 8
_MOST_DEALT: Final = 10**9


def redrawn(contrast: Contrast, families: int, seed: int) -> tuple[Array, Array]:
    """Null windows [families, cells] of both sides, rows being independent."""
    name = f"{contrast.feature}\0{contrast.segment}".encode()
    rng = np.random.default_rng([seed, zlib.crc32(name)])
    sides = contrast.counted
    pooled = sides[0] + sides[1]
    whole = pooled.astype(np.int64)
    if (whole == pooled).all() and whole.sum() < _MOST_DEALT:
        current = rng.multivariate_hypergeometric(whole, int(sides[1].sum()), families, method="marginals")
        return (whole - current).astype(np.float64), current.astype(np.float64)
    # Counts of units that are no integers, and more rows than can be dealt: drawn from what is pooled.
    share = pooled / pooled.sum()
    drawn = [rng.multinomial(max(1, round(side.sum())), share, families).astype(np.float64) for side in sides]
    return drawn[0], drawn[1]


class Deals:
    """Blocks of time dealt out between reference and current, alike for every feature and segment."""

    def __init__(self, contrasts: Sequence[Contrast], families: int, seed: int) -> None:
        sides = [
            np.unique(np.concatenate([getattr(one, name) for one in contrasts]))
            for name in ("reference_blocks", "current_blocks")
        ]
        self._places = [
            {int(block): place for place, block in enumerate(sides[0])},
            {int(block): place + len(sides[0]) for place, block in enumerate(sides[1])},
        ]
        self.reference_blocks, self.current_blocks = len(sides[0]), len(sides[1])
        total = self.reference_blocks + self.current_blocks
        rng = np.random.default_rng([seed, 1])
        ranks = rng.random((families, total)).argsort(axis=1).argsort(axis=1)
        self._current = (ranks < self.current_blocks).astype(np.float64)
        """[families, blocks]: 1 where the block is dealt to the current side."""

    @property
    def least_p(self) -> float:
        """No deal of these blocks can have a smaller p-value."""
        ways = math.comb(self.reference_blocks + self.current_blocks, self.current_blocks)
        return max(1 / ways, 1 / (len(self._current) + 1))

    def rows_a_block(self, contrast: Contrast) -> float:
        """By what counts are divided before their p-values are ranked: as if a block were COUNTED rows.

        Thousands of dependent rows give p-values below the smallest float on most deals, and no rank among them.
        """
        rows = float(contrast.reference.sum() + contrast.current.sum())
        blocks = len(contrast.reference_blocks) + len(contrast.current_blocks)
        return max(1.0, rows / blocks / COUNTED)

    def windows(self, contrast: Contrast) -> tuple[Array, Array]:
        """Null windows [families, cells] of both sides of one contrast."""
        places = [
            *(self._places[0][int(block)] for block in contrast.reference_blocks),
            *(self._places[1][int(block)] for block in contrast.current_blocks),
        ]
        counts = np.concatenate([contrast.reference, contrast.current])
        current = self._current[:, places] @ counts
        return counts.sum(0) - current, current
