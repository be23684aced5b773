"""What do accepted events change in one view? Partials for its tiles, or rows. No I/O, no state but known keys.

Merging the partials into what is stored is `streaming.shard_state`'s work, writing them is `streaming.commit`'s.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.aggregation.tiles import SPAN, Level, TileLayout
from featurestore.offline.event_log import ARRIVAL
from featurestore.online.keys import EntityKeyCodec
from featurestore.plan import View
from streaming.judged import Judged, columns_of_view, producer_name

Ints = npt.NDArray[np.int64]

SLACK_US: Final = 600_000_000
"""How much longer than any window needs them tiles are kept: clocks of readers may lag by that."""
_KEYS_KEPT = 200_000
_FEW: Final = 64
"""Events of which Python finds the keys sooner than Arrow does."""


class LevelPartials(msgspec.Struct, frozen=True):
    """The partials of one hop: `slots[i]` belongs to entity `code[i]` and hop tile `tile[i]`, sorted by both."""

    level: Level
    code: Ints
    tile: Ints
    slots: npt.NDArray[Any]


class Partials(msgspec.Struct, frozen=True):
    """What a batch adds to the tiles of one view.

    `keys[code]` is the serialized entity key. `late` counts events that their arrival puts beyond some window.
    """

    layout: TileLayout
    keys: list[bytes]
    head: LevelPartials | None
    """What goes through the keys' heads, by tiles of the head; None where nothing does."""
    levels: tuple[LevelPartials, ...]
    """What goes to the levels at once."""
    late: int


class ViewPipeline:
    """From accepted events to the partials of one view's tiles.

    Raises DefinitionError for a view that is not windowed.
    """

    def __init__(self, view: View, *, slack_us: int = SLACK_US) -> None:
        self.view = view
        self.layout = TileLayout.of(view)
        self.slack_us = slack_us
        self._codec = EntityKeyCodec(view.join_keys)
        self._known: dict[tuple[object, ...], bytes | None] = {}

    def partials(self, judged: Judged, *, now_us: int) -> Partials:
        """The batch's events by entity key and tile.

        Left out are tiles whose block no window needs any more: by the event's arrival (late, counted), or by the
        clock, which only saves writing what would expire at once. Events with a null entity key belong to no entity.
        """
        if not len(judged.ts_us):
            return Partials(self.layout, [], None, (), 0)
        codes, keys = self.entities(judged.events)
        columns = columns_of_view(self.view, judged.events, judged.of(self.view))
        head = self.layout.head
        some, late, alive = codes >= 0, np.zeros(len(codes), np.bool_), np.zeros(len(codes), np.bool_)
        reach = []
        for level in self.layout.levels:
            tile = level.tile(judged.ts_us)
            expiry = self._expiry(level, tile)
            late |= some & (expiry <= judged.arrival_us)
            needed = some & (expiry > np.maximum(judged.arrival_us, now_us))
            alive |= needed
            reach.append((level, tile, needed))
        through = None
        if head is not None:
            # What some window never had must not reach it through the head.
            use = np.flatnonzero(alive & ~late)
            if len(use):
                through = _grouped(head, codes[use], head.tile(judged.ts_us[use]), judged.ts_us[use], columns, use)
        levels = []
        for level, tile, needed in reach:
            use = np.flatnonzero(needed & late if head is not None else needed)
            if len(use):
                levels.append(_grouped(level, codes[use], tile[use], judged.ts_us[use], columns, use))
        return Partials(self.layout, keys, through, tuple(levels), int(late.sum()))

    def _expiry(self, level: Level, tile: Ints) -> Ints:
        """int64[n]: when the block that holds each tile is no longer needed, slack included."""
        blocks, place = np.unique(tile // SPAN, return_inverse=True)
        expires = [level.expires_us(block) for block in blocks.tolist()]
        forever = np.iinfo(np.int64).max
        return np.array([forever if at is None else at + self.slack_us for at in expires], np.int64)[place]

    def entities(self, events: pa.Table) -> tuple[Ints, list[bytes]]:
        """int64[n]: a code per row, -1 where a key column is null; and the serialized key of each code."""
        names = [key.name for key in self.view.join_keys]
        if len(events) <= _FEW:
            return self._few_entities(names, [events[producer_name(self.view, name)] for name in names])
        codes = np.zeros(len(events), np.int64)
        values: list[tuple[object, ...]] = [()]
        for name in names:
            encoded = pc.dictionary_encode(_key_column(events[producer_name(self.view, name)]))
            own = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
            distinct = encoded.dictionary.to_pylist()
            combined = np.where((codes < 0) | (own < 0), -1, codes * max(len(distinct), 1) + own)
            used, codes = np.unique(combined, return_inverse=True)
            values = [
                (*values[code // len(distinct)], distinct[code % len(distinct)]) if code >= 0 else ()
                for code in used.tolist()
            ]
            if len(used) and used[0] < 0:
                codes -= 1
                values = values[1:]
        return codes, self._encoded(names, values)

    def _few_entities(self, names: Sequence[str], columns: Sequence[pa.ChunkedArray]) -> tuple[Ints, list[bytes]]:
        code_of: dict[tuple[object, ...], int] = {}
        codes = [
            -1 if None in value else code_of.setdefault(value, len(code_of))
            for value in zip(*(_key_column(column).to_pylist() for column in columns), strict=True)
        ]
        return np.array(codes, np.int64), self._encoded(names, list(code_of))

    def _encoded(self, names: Sequence[str], values: Sequence[tuple[object, ...]]) -> list[bytes]:
        if len(self._known) > _KEYS_KEPT:
            self._known.clear()
        keys = []
        for value in values:
            key = self._known.get(value)
            if key is None:
                key = self._codec.encode(dict(zip(names, value, strict=True)))
                assert key is not None  # nulls have code -1
                self._known[value] = key
            keys.append(key)
        return keys


class LatestPipeline:
    """From accepted events to the rows of a view without aggregations: the newest event of a key is its value."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._columns = {name: producer_name(view, name) for name in _names(view)}

    def rows(self, judged: Judged) -> pa.Table:
        """The events as rows of the view, under its names, with their timestamp and `_arrival`."""
        events = judged.events
        made = judged.of(self.view)
        columns = {
            name: events[raw] if made is None or name not in made.column_names else made[name]
            for name, raw in self._columns.items()
        }
        return pa.table({**columns, ARRIVAL: events[ARRIVAL]})


def _key_column(column: pa.ChunkedArray) -> pa.Array:
    """Instants as keys are microseconds, as the codec has them."""
    found = column.combine_chunks()
    return found.cast(pa.int64()) if pa.types.is_timestamp(found.type) else found


def _names(view: View) -> list[str]:
    features = [feature.name for feature in view.features]
    return list(dict.fromkeys([*(key.name for key in view.join_keys), *features, view.source.timestamp_field]))


def _grouped(
    level: Level, codes: Ints, tile: Ints, ts_us: Ints, columns: dict[str, pa.Array], use: Ints
) -> LevelPartials:
    low = int(tile.min())
    span = int(tile.max()) - low + 1
    groups, place = np.unique(codes * span + (tile - low), return_inverse=True)
    if len(use) != len(next(iter(columns.values()), use)):
        chosen = pa.array(use)
        columns = {name: column.take(chosen) for name, column in columns.items()}
    slots = level.aggregate(place.astype(np.int64), len(groups), ts_us, columns)
    return LevelPartials(level, groups // span, groups % span + low, slots)
