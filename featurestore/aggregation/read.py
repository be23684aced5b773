"""What are a view's windowed features worth at an instant, given its stored blocks?

`WindowReader.blocks` says which blocks an instant needs, the caller fetches them for every entity (and from every
shard that holds tiles of the view), `WindowReader.values` merges them. Values decay as time passes: no event is
needed for one to leave a window.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from featurestore.aggregation.errors import NoResult
from featurestore.aggregation.partials import Mask, PartName, Raw
from featurestore.aggregation.results import ColumnResult, Told
from featurestore.aggregation.rings import NO_TIME, Family, Heads, Rings, Stretch
from featurestore.aggregation.tiles import HEAD, Level, TileLayout
from featurestore.aggregation.windows import window_start
from featurestore.plan import View

Ints = npt.NDArray[np.int64]
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
        size = shards * len(self.blocks(t_us))
        if not size:
            return self.merge(t_us, entities, [None] * entities * len(self.blocks(t_us)), 1)
        # Where each group's values begin: an entity's in one shard.
        begins = [at + shard for at in range(0, entities * size, size) for shard in range(shards)]
        heads = Heads.of(self.layout, [held[at + size - shards] for at in begins])
        newest = np.full(entities, NO_TIME)
        told: dict[str, Told | Any] = {}
        first = 0
        for family in self._families:
            stretches = [_stretch(level, t_us) for level in family.levels]
            end = first + shards * sum(stretch.tiles for stretch in stretches) // family.levels[0].span
            rings = Rings.of(family, stretches, [held[at + first : at + end : shards] for at in begins])
            first = end
            if heads is not None:
                rings.add(heads)
            newest = np.maximum(newest, rings.newest.reshape(entities, shards).max(axis=1))
            told.update(_values(family, rings.windows(shards), entities))
        return Windows(
            {a.feature: told[a.feature] for a in self.layout.aggregations}, np.where(newest == NO_TIME, 0, newest)
        )

    @cached_property
    def _families(self) -> tuple[Family, ...]:
        return Family.all_of(self.layout)


def _blocks(level: Level, t_us: int) -> range:
    if not level.hop_us:
        return range(1)
    first, last = tiles_of(t_us, level.windows_us[-1], level.hop_us)
    return range(first // level.span, last // level.span + 1)


def tiles_of(t_us: int, window_us: int, hop_us: int) -> tuple[int, int]:
    """The first and the last tile of the window at `t_us`; the last holds nothing later than `t_us` yet.

    >>> tiles_of(t_us=3_700, window_us=300, hop_us=100)
    (34, 37)
    """
    return window_start(t_us, window_us, hop_us) // hop_us, t_us // hop_us


def _stretch(level: Level, t_us: int) -> Stretch:
    blocks = _blocks(level, t_us)
    if not level.hop_us:
        return Stretch(0, 1, (0, 1))
    ends = [tiles_of(t_us, window_us, level.hop_us) for window_us in reversed(level.windows_us)]
    edges = (*(first for first, _ in ends), ends[-1][1] + 1)
    return Stretch(blocks.start * level.span, len(blocks) * level.span, edges)


def _values(family: Family, raw: Sequence[Raw], entities: int) -> dict[str, Told | Any]:
    """The family's features; `raw` by part: [..., windows, entities]."""
    parts: dict[str, dict[PartName, Raw]] = {}
    for (kept, part), found in zip(family.levels[0].parts, raw, strict=True):
        parts.setdefault(kept.column, {})[part.name] = found.reshape(*found.shape[:-2], -1)
    results = {kept.column: ColumnResult(kept, parts[kept.column]) for kept in family.levels[0].columns}
    windows = len(family.windows)
    told: dict[str, Told | Any] = {}
    masks: dict[int, tuple[Mask | None, Sequence[Mask | None]]] = {}
    for alike in family.alike:
        one, _ = alike[0]
        result = results[one.column]
        every = None
        if len(alike) == windows and result.tells_numbers(one):
            # An error counts rows of one feature: below.
            with contextlib.suppress(NoResult):
                every = result.numbers(one)
        if every is None:
            for each, place in alike:
                told[each.feature] = result.told(each, slice(place * entities, (place + 1) * entities))
            continue
        values = every.values.reshape(windows, entities)
        if id(every.nulls) not in masks:
            masks[id(every.nulls)] = (every.nulls, _by_window(every.nulls, entities, windows))
        nulls = masks[id(every.nulls)][1]
        for each, place in alike:
            told[each.feature] = Told(every.dtype, values[place], nulls[place])
    return told


def _by_window(nulls: Mask | None, entities: int, windows: int) -> Sequence[Mask | None]:
    if nulls is None:
        return [None] * windows
    return [mask if mask.any() else None for mask in nulls.reshape(windows, entities)]
