"""What are a view's windowed features worth at an instant, given its stored blocks?

`WindowReader.blocks` says which blocks an instant needs, the caller fetches them for every entity (and from every
shard that holds tiles of the view), `WindowReader.values` merges them. Values decay as time passes: no event is
needed for one to leave a window.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from featurestore.aggregation.errors import TornTiles
from featurestore.aggregation.partials import Mask, PartName, Raw
from featurestore.aggregation.results import ColumnResult, Told
from featurestore.aggregation.tiles import HEAD, SPAN, Level, Slots, TileLayout
from featurestore.aggregation.windows import window_start
from featurestore.plan import View

Ints = npt.NDArray[np.int64]
_NO_TIME = np.int64(-(1 << 63))
Payloads = Sequence[Sequence[Sequence[bytes | None]]]
"""[entity][block, as `blocks` lists them][shard]: the stored bytes of one block, None where there are none."""


@dataclass(frozen=True)
class Windows:
    """One value a feature and entity."""

    told: dict[str, Told | Any]
    """By feature, one value an entity: numbers, or (lists) a pa.Array; an empty window is null, and 0 for a count."""
    newest_us: Ints
    """The greatest event time seen in an entity's blocks, 0 where they hold no event. Where it is later than the
    instant asked for, the values are not exact: read that entity again, at that time."""

    @property
    def columns(self) -> dict[str, Any]:
        """Feature -> pa.Array[entities] of the feature's type."""
        return {name: told.arrow() if isinstance(told, Told) else told for name, told in self.told.items()}


@dataclass(frozen=True)
class WindowReader:
    """Reads one windowed view's tiles."""

    layout: TileLayout

    @classmethod
    def of(cls, view: View) -> Self:
        """The reader of a view; raises DefinitionError where it has no tiles."""
        return cls(TileLayout.of(view))

    def blocks(self, t_us: int) -> list[tuple[int, int]]:
        """(hop_us, block number) of everything that any window at `t_us` may need; last the head, if there is one."""
        blocks = [(level.hop_us, block) for level in self.layout.levels for block in _blocks(level, t_us)]
        return [*blocks, (HEAD, 0)] if self.layout.head else blocks

    def values(self, t_us: int, payloads: Payloads) -> Windows:
        """The value of every feature for every entity at `t_us`.

        Raises TornTiles for bytes of another layout, LeavesType for an integer that its type cannot hold.
        """
        shards = max((len(block) for payload in payloads for block in payload), default=1)
        held = [data for payload in payloads for block in payload for data in (*block, *[None] * (shards - len(block)))]
        return self.merge(t_us, len(payloads), held, shards)

    def merge(self, t_us: int, entities: int, held: Sequence[bytes | None], shards: int) -> Windows:
        """As `values`; `held` lies flat: by entity, then by block as `blocks` lists them, then by shard."""
        levels = [(level, _blocks(level, t_us)) for level in self.layout.levels]
        size = shards * (sum(len(blocks) for _, blocks in levels) + bool(self.layout.head))
        stored = [data for data in held if data]
        place = np.flatnonzero(np.fromiter(map(bool, held), np.bool_, len(held))) if size else np.zeros(0, np.int64)
        entity, block = np.divmod(place, max(size, 1))
        newest = np.full(entities, _NO_TIME)
        told: dict[str, Told | Any] = {}
        heads = _Heads.of(self.layout, stored, entity, block >= size - shards)
        first = 0
        for level, blocks in levels:
            end = first + shards * len(blocks)
            mine = np.flatnonzero((block >= first) & (block < end))
            parts = stored if len(mine) == len(stored) else [stored[i] for i in mine.tolist()]
            tiles = (blocks.start + (block[mine] - first) // shards) * SPAN
            runs = _runs(level, t_us, parts, tiles, entity[mine], heads)
            first = end
            if runs is not None:
                np.maximum.at(newest, runs.entity, runs.newest)
            told.update(_values(level, runs, entities))
        return Windows(
            {a.feature: told[a.feature] for a in self.layout.aggregations}, np.where(newest == _NO_TIME, 0, newest)
        )


def _blocks(level: Level, t_us: int) -> range:
    if not level.hop_us:
        return range(1)
    first, last = tiles_of(t_us, level.windows_us[-1], level.hop_us)
    return range(first // SPAN, last // SPAN + 1)


def tiles_of(t_us: int, window_us: int, hop_us: int) -> tuple[int, int]:
    """The first and the last tile of the window at `t_us`; the last holds nothing later than `t_us` yet.

    >>> tiles_of(t_us=3_700, window_us=300, hop_us=100)
    (34, 37)
    """
    return window_start(t_us, window_us, hop_us) // hop_us, t_us // hop_us


@dataclass(frozen=True)
class _Runs:
    """Slots of one entity that lie in the same windows, merged; in any order."""

    entity: Ints
    ring: Ints
    """The smallest window that holds the run, and so do all larger ones; -1: it lies after the instant."""
    newest: Ints
    raw: dict[str, dict[PartName, Raw]]

    def and_others(self, others: "_Runs") -> "_Runs":
        """These and others of the same level."""
        raw = {
            column: {name: np.concatenate([part, others.raw[column][name]], axis=-1) for name, part in parts.items()}
            for column, parts in self.raw.items()
        }
        entity, ring = np.concatenate([self.entity, others.entity]), np.concatenate([self.ring, others.ring])
        return _Runs(entity, ring, np.concatenate([self.newest, others.newest]), raw)


@dataclass(frozen=True)
class _Heads:
    """The heads that were fetched, in the order of entities."""

    entity: Ints
    start_us: Ints
    """When the head's tile begins."""
    slots: Slots

    @classmethod
    def of(cls, layout: TileLayout, stored: Sequence[bytes], entity: Ints, is_head: Mask) -> "_Heads | None":
        """Of everything that was fetched, what is a head; None where nothing is."""
        if layout.head is None:
            return None
        mine = np.flatnonzero(is_head)
        if not len(mine):
            return None
        found = layout.decode_heads([stored[i] for i in mine.tolist()])
        return cls(entity[mine], found["tile"] * layout.head.hop_us, found["slot"])

    def runs(self, level: Level, edges: Ints) -> "_Runs | None":
        """Each head as a run of its own, as that level has it; None where all are older than its windows."""
        tile = level.tile(self.start_us)
        some = np.flatnonzero(tile >= edges[0])
        if not len(some):
            return None
        slots = self.slots[some]
        # The head's fields are those of every level, under the same names.
        raw = level.raw(slots, np.arange(len(some)))
        return _Runs(self.entity[some], _rings(level, edges, tile[some]), slots["newest"], raw)


def _runs(
    level: Level, t_us: int, parts: Sequence[bytes], first_tile: Ints, entity: Ints, heads: _Heads | None
) -> _Runs | None:
    """The non-empty slots of stored blocks, which are in the order of entities; None where there is none.

    Windows end together, so that each slot needs to be looked at once: a larger window is a smaller one and a ring
    of older tiles around it.
    """
    size = level.slot_bytes
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    counts = lengths // size
    if (counts * size != lengths).any():
        raise TornTiles(
            f"stored blocks of hop {level.hop_us} us are no whole number of {size}-byte slots; "
            "they were written by another version of the view"
        )
    slots = level.decode(b"".join(parts))
    kept = np.flatnonzero(slots["rows"])
    if len(kept) < len(slots):
        slots = slots[kept]
    edges = _edges(level, t_us)
    waiting = None if heads is None else heads.runs(level, edges)
    if not len(kept):
        return waiting
    block = np.repeat(np.arange(len(counts)), counts)[kept]
    tile = kept + (first_tile - np.cumsum(counts) + counts)[block]
    ring = _rings(level, edges, tile)
    owner = entity[block]
    starts = _starts(owner * (max(len(level.windows_us), 1) + 2) + ring)
    newest = np.maximum.reduceat(slots["newest"], starts)
    runs = _Runs(owner[starts], ring[starts], newest, level.raw(slots, starts))
    return runs if waiting is None else runs.and_others(waiting)


def _rings(level: Level, edges: Ints, tile: Ints) -> Ints:
    return max(len(level.windows_us), 1) - np.searchsorted(edges, tile, side="right")


def _edges(level: Level, t_us: int) -> Ints:
    """The first tile of every window, longest first, then the first tile after the instant."""
    if not level.hop_us:
        return np.array([0, 1])
    ends = [tiles_of(t_us, window_us, level.hop_us) for window_us in reversed(level.windows_us)]
    return np.array([*(first for first, _ in ends), ends[-1][1] + 1])


def _values(level: Level, runs: _Runs | None, entities: int) -> dict[str, Told | Any]:
    """The level's features: every window merges its runs."""
    windows: Sequence[int | None] = level.windows_us if level.hop_us else [None]
    merged: Mapping[str, Mapping[PartName, Raw]] = {}
    found = np.zeros(0, np.int64)
    if runs is not None:
        inside = [np.flatnonzero((runs.ring >= 0) & (runs.ring <= number)) for number in range(len(windows))]
        chosen = np.concatenate(inside)
        group = np.concatenate([runs.entity[index] + number * entities for number, index in enumerate(inside)])
        if (group[1:] < group[:-1]).any():
            order = np.argsort(group, kind="stable")
            chosen, group = chosen[order], group[order]
        starts = _starts(group)
        if len(group):
            merged, found = level.merge_runs(runs.raw, chosen, starts), group[starts]
    size = len(windows) * entities
    results: dict[str, ColumnResult] = {}
    for kept in level.columns:
        few = merged.get(kept.column, {})
        parts = {part.name: _spread(few.get(part.name), part.empty(size), found) for part in kept.parts}
        results[kept.column] = ColumnResult(kept, parts)
    told: dict[str, Told | Any] = {}
    for aggregation in level.aggregations:
        first = windows.index(aggregation.window_us) * entities
        told[aggregation.feature] = results[aggregation.column].told(aggregation, slice(first, first + entities))
    return told


def _spread(few: Raw | None, all_empty: Raw, found: Ints) -> Raw:
    if few is not None:
        all_empty[..., found] = few
    return all_empty


def _starts(group: Ints) -> Ints:
    if not len(group):
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.concatenate(([True], group[1:] != group[:-1])))
