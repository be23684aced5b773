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

    def by_batch(self, firsts: Sequence[int]) -> "list[LevelPartials | None]":
        """Those of each batch, whose codes begin anew; None where it has none. `firsts` are codes, the end included."""
        ends = np.searchsorted(self.code, firsts).tolist()
        return [
            LevelPartials(self.level, self.code[start:end] - first, self.tile[start:end], self.slots[start:end])
            if end > start
            else None
            for first, start, end in zip(firsts, ends, ends[1:], strict=False)
        ]


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
        return self.partials_of([judged], now_us=now_us)[0]

    def partials_of(self, batches: Sequence[Judged], *, now_us: int) -> list[Partials]:
        """The same of each of several batches, at little more than the cost of one where they are small."""
        lengths = [len(judged.ts_us) for judged in batches]
        if not any(lengths):
            return [Partials(self.layout, [], None, (), 0) for _ in batches]
        joined = batches[0] if len(batches) == 1 else _joined(batches)
        ts_us, arrival_us = joined.ts_us, joined.arrival_us
        batch_of = np.repeat(np.arange(len(batches)), lengths)
        codes, keys, firsts = self._entities(joined.events, batch_of, len(batches))
        columns = columns_of_view(self.view, joined.events, joined.of(self.view))
        head = self.layout.head
        some, late, alive = codes >= 0, np.zeros(len(codes), np.bool_), np.zeros(len(codes), np.bool_)
        reach = []
        for level in self.layout.levels:
            tile = level.tile(ts_us)
            expiry = self._expiry(level, tile)
            late |= some & (expiry <= arrival_us)
            needed = some & (expiry > np.maximum(arrival_us, now_us))
            alive |= needed
            reach.append((level, tile, needed))
        through: list[LevelPartials | None] = [None] * len(batches)
        if head is not None:
            # What some window never had must not reach it through the head.
            use = np.flatnonzero(alive & ~late)
            if len(use):
                through = _grouped(head, codes[use], head.tile(ts_us[use]), ts_us[use], columns, use).by_batch(firsts)
        levels: list[list[LevelPartials]] = [[] for _ in batches]
        for level, tile, needed in reach:
            use = np.flatnonzero(needed & late if head is not None else needed)
            if len(use):
                found = _grouped(level, codes[use], tile[use], ts_us[use], columns, use)
                for own, part in zip(levels, found.by_batch(firsts), strict=True):
                    own += [part] if part is not None else []
        return [
            Partials(self.layout, keys[first:end], through[batch], tuple(levels[batch]), count)
            for batch, (first, end, count) in enumerate(
                zip(firsts, firsts[1:], np.bincount(batch_of[late], minlength=len(batches)).tolist(), strict=False)
            )
        ]

    def _expiry(self, level: Level, tile: Ints) -> Ints:
        """int64[n]: when the block that holds each tile is no longer needed, slack included."""
        blocks, place = np.unique(tile // SPAN, return_inverse=True)
        expires = [level.expires_us(block) for block in blocks.tolist()]
        forever = np.iinfo(np.int64).max
        return np.array([forever if at is None else at + self.slack_us for at in expires], np.int64)[place]

    def entities(self, events: pa.Table) -> tuple[Ints, list[bytes]]:
        """int64[n]: a code per row, -1 where a key column is null; and the serialized key of each code."""
        codes, keys, _ = self._entities(events, np.zeros(len(events), np.int64), 1)
        return codes, keys

    def _entities(self, events: pa.Table, batch_of: Ints, batches: int) -> tuple[Ints, list[bytes], list[int]]:
        """The same where one key is another entity in each batch: those of a batch have the codes from its first on.

        `batch_of` ascends. Returned are codes, keys, and the first code of each batch, and the number of all.
        """
        names = [key.name for key in self.view.join_keys]
        columns = [_key_column(events[producer_name(self.view, name)]) for name in names]
        codes, values = _few_codes(batch_of, columns) if len(events) <= _FEW else _codes(batch_of, batches, columns)
        keys = self._encoded(names, [value[1:] for value in values])
        firsts = np.searchsorted(np.array([value[0] for value in values], np.int64), np.arange(batches + 1))
        return codes, keys, firsts.tolist()

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


def _codes(batch_of: Ints, batches: int, columns: Sequence[pa.Array]) -> tuple[Ints, list[tuple[Any, ...]]]:
    """A code per row, ascending by batch, -1 where a column is null; and each code's batch and values."""
    codes, values = batch_of, list[tuple[Any, ...]]((batch,) for batch in range(batches))
    for column in columns:
        encoded = pc.dictionary_encode(column)
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
    return codes, values


def _few_codes(batch_of: Ints, columns: Sequence[pa.Array]) -> tuple[Ints, list[tuple[Any, ...]]]:
    code_of: dict[tuple[Any, ...], int] = {}
    codes = [
        -1 if None in value else code_of.setdefault(value, len(code_of))
        for value in zip(batch_of.tolist(), *(column.to_pylist() for column in columns), strict=True)
    ]
    return np.array(codes, np.int64), list(code_of)


def _joined(batches: Sequence[Judged]) -> Judged:
    """The events of several batches as one; alike are definitions only as far as one view reads them."""
    return msgspec.structs.replace(
        batches[0],
        events=pa.concat_tables([judged.events for judged in batches]),
        ts_us=np.concatenate([judged.ts_us for judged in batches]),
        arrival_us=np.concatenate([judged.arrival_us for judged in batches]),
        made={key: pa.concat_tables([judged.made[key] for judged in batches]) for key in batches[0].made},
    )


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
