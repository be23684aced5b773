"""What are a view's windowed features worth at an instant, given its stored blocks?

`WindowReader.blocks` says which blocks an instant needs, the caller fetches them for every entity (and from every
shard that holds tiles of the view), `WindowReader.values` merges them. Values decay as time passes: no event is
needed for one to leave a window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from featurestore.aggregation.errors import TornTiles
from featurestore.aggregation.partials import Raw
from featurestore.aggregation.results import ColumnResult
from featurestore.aggregation.tiles import SPAN, Level, Slots, TileLayout
from featurestore.aggregation.windows import window_start
from featurestore.plan import View

Ints = npt.NDArray[np.int64]
Payloads = Sequence[Sequence[Sequence[bytes | None]]]
"""[entity][block, as `blocks` lists them][shard]: the stored bytes of one block, None where there are none."""


@dataclass(frozen=True)
class Windows:
    """One value a feature and entity."""

    columns: dict[str, Any]
    """Feature -> pa.Array[entities] of the feature's type; an empty window is null, and 0 for a count."""
    newest_us: Ints
    """The greatest event time seen in an entity's blocks, 0 where they hold no event. Where it is later than the
    instant asked for, the values are not exact: read that entity again, at that time."""


@dataclass(frozen=True)
class WindowReader:
    """Reads one windowed view's tiles."""

    layout: TileLayout

    @classmethod
    def of(cls, view: View) -> Self:
        """The reader of a view; raises DefinitionError where it has no tiles."""
        return cls(TileLayout.of(view))

    def blocks(self, t_us: int) -> list[tuple[int, int]]:
        """(hop_us, block number) of everything that any window at `t_us` may need."""
        return [(level.hop_us, block) for level in self.layout.levels for block in _blocks(level, t_us)]

    def values(self, t_us: int, payloads: Payloads) -> Windows:
        """The value of every feature for every entity at `t_us`.

        Raises TornTiles for bytes of another layout, LeavesType for an integer that its type cannot hold.
        """
        entities = len(payloads)
        newest = np.zeros(entities, np.int64)
        columns: dict[str, Any] = {}
        at = 0
        for level in self.layout.levels:
            blocks = _blocks(level, t_us)
            slots, tile, entity = _gather(level, blocks, at, payloads)
            at += len(blocks)
            if len(slots):
                starts = _starts(entity)
                seen, times = entity[starts], level.newest(slots, starts)
                newest[seen] = np.where(newest[seen] == 0, times, np.maximum(newest[seen], times))
            columns.update(_values(level, t_us, slots, tile, entity, entities))
        return Windows({a.feature: columns[a.feature] for a in self.layout.aggregations}, newest)


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


def _gather(level: Level, blocks: range, at: int, payloads: Payloads) -> tuple[Slots, Ints, Ints]:
    """All non-empty slots of a level in the order of entities, with their tile and entity numbers."""
    parts: list[bytes] = []
    first_tile: list[int] = []
    owner: list[int] = []
    for entity, payload in enumerate(payloads):
        for index, block in enumerate(blocks, at):
            for data in payload[index]:
                if data:
                    parts.append(data)
                    first_tile.append(block * SPAN)
                    owner.append(entity)
    size = level.slot_bytes
    lengths = np.fromiter((len(data) for data in parts), np.int64, len(parts))
    if (lengths % size).any():
        raise TornTiles(
            f"stored blocks of hop {level.hop_us} us are no whole number of {size}-byte slots; "
            "they were written by another version of the view"
        )
    counts = lengths // size
    slots = level.decode(b"".join(parts))
    before = np.cumsum(counts) - counts
    tile = np.arange(len(slots)) + np.repeat(np.array(first_tile, np.int64) - before, counts)
    entity_of = np.repeat(np.array(owner, np.int64), counts)
    kept = np.flatnonzero(slots["rows"])
    return slots[kept], tile[kept], entity_of[kept]


def _values(level: Level, t_us: int, slots: Slots, tile: Ints, entity: Ints, entities: int) -> dict[str, Any]:
    """The level's features: every window is a run of groups (window, entity) of one merge."""
    windows: Sequence[int | None] = level.windows_us if level.hop_us else [None]
    chosen: list[Ints] = []
    groups: list[Ints] = []
    for number, window_us in enumerate(windows):
        if window_us is None:
            inside = np.arange(len(slots))
        else:
            first, last = tiles_of(t_us, window_us, level.hop_us)
            inside = np.flatnonzero((tile >= first) & (tile <= last))
        chosen.append(inside)
        groups.append(entity[inside] + number * entities)
    group = np.concatenate(groups)
    starts = _starts(group)
    found = group[starts]
    merged = level.raw(slots[np.concatenate(chosen)], starts) if len(group) else {}
    size = len(windows) * entities
    results: dict[str, ColumnResult] = {}
    for kept in level.columns:
        few = merged.get(kept.column, {})
        parts = {part.name: _spread(few.get(part.name), part.empty(size), found) for part in kept.parts}
        results[kept.column] = ColumnResult(kept.kind, parts)
    columns: dict[str, Any] = {}
    for aggregation in level.aggregations:
        first = windows.index(aggregation.window_us) * entities
        columns[aggregation.feature] = results[aggregation.column].value(aggregation, slice(first, first + entities))
    return columns


def _spread(few: Raw | None, all_empty: Raw, found: Ints) -> Raw:
    if few is not None:
        all_empty[..., found] = few
    return all_empty


def _starts(group: Ints) -> Ints:
    if not len(group):
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.concatenate(([True], group[1:] != group[:-1])))
