"""What do stored blocks hold between the beginnings of the windows?

Windows end together: a larger one is a smaller one and a *ring* of older tiles before it. The blocks of levels with
the same parts are laid side by side to the tiles of every group (an entity's, in one shard), empty ones included, so
that a ring is the same stretch of each group. A few calls reduce them all; to find out which slots are there, and whose
they are, would cost more than they hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from featurestore.aggregation.partials import Raw
from featurestore.aggregation.tiles import Level, Slots, TileLayout
from featurestore.plan import Aggregation

Ints = npt.NDArray[np.int64]
NO_TIME = np.int64(-(1 << 63))
_AT_ONCE_BYTES = 1 << 22
"""So much of blocks is laid out at a time: memory stays bounded, and near the processor."""


@dataclass(frozen=True)
class Family:
    """Levels whose slots have the same parts."""

    levels: tuple[Level, ...]

    @classmethod
    def all_of(cls, layout: TileLayout) -> "tuple[Family, ...]":
        """The levels of a layout, in their order."""
        found: list[tuple[Level, ...]] = []
        for level in layout.levels:
            if found and (found[-1][0].columns, found[-1][0].span) == (level.columns, level.span):
                found[-1] = (*found[-1], level)
            else:
                found.append((level,))
        return tuple(map(cls, found))

    @cached_property
    def windows(self) -> tuple[tuple[int, int | None], ...]:
        """(hop, window), level by level, of each the longest window first."""
        return tuple(
            (level.hop_us, window_us) for level in self.levels for window_us in level.windows_us[::-1] or (None,)
        )

    @cached_property
    def alike(self) -> tuple[tuple[tuple[Aggregation, int], ...], ...]:
        """The aggregations and the places of their windows; those together that differ in their windows alone."""
        found: dict[object, list[tuple[Aggregation, int]]] = {}
        for level in self.levels:
            for each in level.aggregations:
                key = (each.column, each.function, each.dtype, tuple(sorted(each.params.items())))
                found.setdefault(key, []).append((each, self.windows.index((level.hop_us, each.window_us))))
        return tuple(map(tuple, found.values()))


@dataclass(frozen=True)
class Stretch:
    """Where on the axis of tiles a level lies, as blocks are fetched."""

    first_tile: int
    tiles: int
    edges: Sequence[int]
    """The first tile of each ring, oldest first, then the first tile after the instant."""


@dataclass(frozen=True, eq=False)
class Rings:
    """A family's parts, ring by ring: level by level, of each the oldest first."""

    family: Family
    stretches: Sequence[Stretch]
    raw: list[Raw]
    """By part as a level lists them: [..., rings, groups]."""
    newest: Ints
    """By group: the greatest event time seen, also outside of the rings; NO_TIME where no event was."""

    @classmethod
    def of(cls, family: Family, stretches: Sequence[Stretch], groups: Sequence[Sequence[bytes | None]]) -> Self:
        """What every group's blocks hold, stretch by stretch; raises TornTiles."""
        level, count = family.levels[0], len(groups)
        runs, rings = _runs(stretches)
        stored = [place for place, blocks in enumerate(groups) if any(blocks)]
        most = max(1, _AT_ONCE_BYTES // (level.slot_bytes * sum(stretch.tiles for stretch in stretches)))
        if stored and len(stored) == count <= most:
            tiles = level.dense(groups)
            found = [raw.take(rings, axis=-2) for raw in level.reduce_tiles(tiles, runs)]
            return cls(family, stretches, found, _newest(tiles))
        raw = [_shaped(part.empty(len(rings) * count), len(rings)) for _, part in level.parts]
        newest = np.full(count, NO_TIME)
        for start in range(0, len(stored), most):
            at = np.array(stored[start : start + most])
            tiles = level.dense([groups[place] for place in at])
            newest[at] = _newest(tiles)
            for into, found_there in zip(raw, level.reduce_tiles(tiles, runs), strict=True):
                into[..., at] = found_there.take(rings, axis=-2)
        return cls(family, stretches, raw, newest)

    def add(self, heads: "Heads") -> None:
        """Merges heads into the rings that their tiles lie in; those older than all rings are left out."""
        level, first = self.family.levels[0], 0
        rings, whose = [], []
        seen = np.zeros(len(heads.group), np.bool_)
        for each, stretch in zip(self.family.levels, self.stretches, strict=True):
            ring = np.searchsorted(stretch.edges, each.tile(heads.start_us), side="right") - 1
            count = len(stretch.edges) - 1
            seen |= ring >= 0
            # What lies after the instant was seen, and does not count yet.
            inside = np.flatnonzero((ring >= 0) & (ring < count))
            rings.append(first + ring[inside])
            whose.append(inside)
            first += count
        some = heads.group[seen]
        self.newest[some] = np.maximum(self.newest[some], heads.slots["newest"][seen])
        ring, head = np.concatenate(rings), np.concatenate(whose)
        group = heads.group[head]
        for (_, part), into, found in zip(level.parts, self.raw, level.raw(heads.slots), strict=True):
            into[..., ring, group] = part.merge(into[..., ring, group], found[..., head])

    def windows(self, shards: int) -> list[Raw]:
        """By part: [..., windows, entities] in the family's order; an entity's groups lie together, one a shard."""
        windows = []
        for (_, part), raw in zip(self.family.levels[0].parts, self.raw, strict=True):
            if shards > 1:
                flat = raw.reshape(*raw.shape[:-2], -1)
                raw = _shaped(part.reduce(flat, np.arange(0, flat.shape[-1], shards)), raw.shape[-2])
            end = 0
            for stretch in self.stretches:
                begin, end = end, end + len(stretch.edges) - 1
                for ring in range(end - 2, begin - 1, -1):
                    raw[..., ring, :] = part.merge(raw[..., ring + 1, :], raw[..., ring, :])
            windows.append(raw)
        return windows


@dataclass(frozen=True, eq=False)
class Heads:
    """The heads that were fetched."""

    group: Ints
    start_us: Ints
    """When the head's tile begins."""
    slots: Slots

    @classmethod
    def of(cls, layout: TileLayout, stored: Sequence[bytes | None]) -> "Heads | None":
        """Of what every group has as its head; None where none has one. Raises TornTiles."""
        some = [place for place, data in enumerate(stored) if data]
        if layout.head is None or not some:
            return None
        found = layout.decode_heads([data for data in stored if data])
        return cls(np.array(some), found["tile"] * layout.head.hop_us, found["slot"])


def _runs(stretches: Sequence[Stretch]) -> tuple[Ints, list[int]]:
    """Where on the axis of tiles runs begin, and which of the runs are rings: others lie before or after all."""
    runs: list[int] = []
    rings: list[int] = []
    offset = 0
    for stretch in stretches:
        begins = [edge - stretch.first_tile + offset for edge in stretch.edges]
        if begins[0] > offset:
            runs.append(offset)
        rings += range(len(runs), len(runs) + len(begins) - 1)
        offset += stretch.tiles
        runs += begins if begins[-1] < offset else begins[:-1]
    return np.array(runs), rings


def _shaped(flat: Raw, rings: int) -> Raw:
    return flat.reshape(*flat.shape[:-1], rings, flat.shape[-1] // rings)


def _newest(tiles: Slots) -> Ints:
    """The greatest event time in each group's tiles; NO_TIME where there is no event."""
    newest: Ints = tiles["newest"].max(axis=1)
    if (newest <= 0).any():
        # Empty slots say 0, which is later than times before 1970.
        newest = np.where(tiles["rows"] > 0, tiles["newest"], NO_TIME).max(axis=1)
    return newest
