"""What does a batch of events change? Verdicts on its events, partials for its tiles. No I/O, no state.

A batch goes through in fixed steps: decode; set aside what is dated ahead of its arrival; judge by the contract;
then, for each view that reads the topic, group what was accepted by entity key and hop tile. What is accepted is a
function of the log alone: of an event and its arrival, never of a clock, so that a replay judges alike. Merging the
partials into what is stored is `streaming.shard_state`'s work, writing them is `streaming.commit`'s.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.aggregation.tiles import SPAN, Level, TileLayout
from featurestore.offline.event_log import ARRIVAL, OFFSET
from featurestore.online.keys import EntityKeyCodec
from featurestore.online.partitioner import partition_of
from featurestore.plan import Transform, View
from featurestore.transform import transformed
from streaming.decode import Decoder, is_instant
from streaming.homes import partitions_of
from streaming.schema_registry import SchemaRegistry
from streaming.source.records import Batch, Record
from streaming.source.replayed import judged_before
from validation.compiled.rows import RowCheck, compile_rows
from validation.contract import Contract

Ints = npt.NDArray[np.int64]

AHEAD_TOLERANCE_US: Final = 5_000_000
SLACK_US: Final = 600_000_000
"""How much longer than any window needs them tiles are kept: clocks of readers may lag by that."""
AHEAD: Final = "ahead_of_arrival"
NO_ARRIVAL: Final = "no_arrival"
"""The record's own time is no instant: nothing can be judged against it."""
TOO_LARGE: Final = "too_large"
"""A float of 2^78 and more in an aggregated column: its sum would not be exact."""
TRANSFORM: Final = "transform_failed"
"""The function of a view that reads the topic raised an error, or made something else than it is declared to."""
TOO_LONG: Final = "too_long"
"""Text or bytes longer than a view keeps of them."""
WRONG_PARTITION: Final = "wrong_partition"
"""Of a topic whose number of partitions is declared: not the partition of the message key."""
CONTRACT: Final = "contract"
_KEYS_KEPT = 200_000
_FEW: Final = 64
"""Events of which Python finds the keys sooner than Arrow does."""
_INSTANTS: Final = pa.timestamp("us", "UTC")


class Rejected(msgspec.Struct, frozen=True):
    """An event that was set aside: the whole record, why, and which rules it broke."""

    record: Record
    reason: str
    detail: str
    rule_ids: tuple[str, ...] = ()
    ts_us: int | None = None
    """Its event time, where it could be read."""
    row: Any = None
    """Its columns, where it could be read and broke rules of the contract."""


class Marked(msgspec.Struct, frozen=True, gc=False):
    """An event that was accepted though it broke rules: those only warn or observe."""

    record: Record
    rule_ids: tuple[str, ...]
    row: Any
    """Its columns: a mapping, or a Struct with them as attributes."""


class Judged(msgspec.Struct, frozen=True):
    """A batch after the verdicts: accepted and rejected make up all of its records.

    `events` holds the accepted rows: the decoder's columns, `_offset` and `_arrival`, by ascending offset.
    """

    batch: Batch
    events: pa.Table
    ts_us: Ints
    arrival_us: Ints
    offsets: Ints
    rejected: tuple[Rejected, ...]
    marked: tuple[Marked, ...] = ()
    contract: Contract | None = None
    """The one by which they were judged."""
    summed: frozenset[str] = frozenset()
    """The columns whose magnitudes were found fit for sums."""
    made: Mapping[Transform, pa.Table] = {}
    """The columns that each function of a view makes of `events`."""

    def of(self, view: View) -> pa.Table | None:
        """What the view's function made of the events; None where it has none."""
        return None if view.transform is None else self.made[view.transform]

    @property
    def warned(self) -> Mapping[str, int]:
        """Rule id -> events that broke a rule which only warns or observes."""
        return Counter(rule_id for item in self.marked for rule_id in item.rule_ids)

    @property
    def watermark_us(self) -> int | None:
        """The greatest min(event time, arrival) of what was accepted; None without events."""
        return int(np.minimum(self.ts_us, self.arrival_us).max()) if len(self.ts_us) else None

    def since(self, offset: int) -> "Judged":
        """The same without what lies before `offset`: a sink or shard skips what it already has."""
        if offset <= self.batch.position_before:
            return self
        start = int(np.searchsorted(self.offsets, offset))
        rejected = tuple(item for item in self.rejected if item.record.offset >= offset)
        marked = tuple(item for item in self.marked if item.record.offset >= offset)
        return msgspec.structs.replace(
            self,
            events=self.events.slice(start),
            ts_us=self.ts_us[start:],
            arrival_us=self.arrival_us[start:],
            offsets=self.offsets[start:],
            rejected=rejected,
            marked=marked,
            made={key: columns.slice(start) for key, columns in self.made.items()},
        )

    def only(self, kept: npt.NDArray[np.bool_]) -> "Judged":
        """The same with some of the accepted events alone."""
        if kept.all():
            return self
        mask = pa.array(kept)
        return msgspec.structs.replace(
            self,
            events=self.events.filter(mask),
            ts_us=self.ts_us[kept],
            arrival_us=self.arrival_us[kept],
            offsets=self.offsets[kept],
            made={key: columns.filter(mask) for key, columns in self.made.items()},
        )


class TopicPipeline:
    """The verdicts on one topic's events, the same for every view that reads it."""

    def __init__(
        self,
        views: Sequence[View],
        contract: Contract | None = None,
        *,
        ahead_tolerance_us: int = AHEAD_TOLERANCE_US,
        registry: SchemaRegistry | None = None,
    ) -> None:
        self.decoder = Decoder(views, contract, registry=registry)
        self.views = tuple(views)
        self.contract = contract
        self._rules = None if contract is None else compile_rows(contract.at("event"))
        self._tolerance_us = ahead_tolerance_us
        self._homes = next((count for view in views if (count := partitions_of(view)) is not None), None)
        self._layouts = [
            (view, TileLayout.of(view)) for view in views if view.kind == "windowed" and view.transform is None
        ]
        self._summed = frozenset(
            _producer_name(view, each.column) for view, _ in self._layouts for each in view.aggregations
        )
        self._transforms = [
            (view, view.transform, TileLayout.of(view) if view.kind == "windowed" else None)
            for view in views
            if view.transform is not None
        ]

    @property
    def event_schema(self) -> pa.Schema:
        """The columns of `Judged.events`."""
        return self.decoder.schema.append(pa.field(OFFSET, pa.int64())).append(
            pa.field(ARRIVAL, pa.timestamp("us", "UTC"))
        )

    def judge(self, batch: Batch, count: Callable[[str], int] | None = None) -> Judged:
        """Accept or set aside every record of the batch.

        `count` tells how many partitions a topic has now; it is asked where a record lies in another partition than its
        key's. Where the topic has grown that is no fault: its keyed views are read from all partitions then.
        """
        records = batch.records
        found = self.decoder.decode(records)
        rejected = [Rejected(records[bad.index], bad.reason, bad.detail) for bad in found.malformed]
        arrived = list(map(attrgetter("timestamp_us"), records))
        known = np.ones(len(arrived), np.bool_)
        if arrived and not (is_instant(min(arrived)) and is_instant(max(arrived))):
            known = np.array([is_instant(time_us) for time_us in arrived], np.bool_)
            arrived = [time_us if fit else 0 for time_us, fit in zip(arrived, known.tolist(), strict=True)]
        arrival = np.array(arrived, np.int64)[found.index]
        offsets = np.array(list(map(attrgetter("offset"), records)), np.int64)[found.index]
        events = self.decoder.table(found.rows)
        keep = known[found.index]
        for row in np.flatnonzero(~keep).tolist():
            detail = f"the record's time is {records[found.index[row]].timestamp_us} us, not within the years 1 to 9999"
            rejected.append(Rejected(records[found.index[row]], NO_ARRIVAL, detail))
        ahead = keep & (found.ts_us > arrival + self._tolerance_us)
        keep &= ~ahead
        for row in np.flatnonzero(ahead).tolist():
            ahead_us = int(found.ts_us[row] - arrival[row])
            detail = (
                f"dated {ahead_us / 1e6:.3f} s after its arrival; at most {self._tolerance_us / 1e6:g} s are allowed"
            )
            rejected.append(Rejected(records[found.index[row]], AHEAD, detail, ts_us=int(found.ts_us[row])))
        away = self._away(batch, found.index, count)
        if away is not None:
            for place in found.index[away & keep].tolist():
                detail = f"partition {batch.partition} is not that of key {records[place].key!r} among {self._homes}"
                rejected.append(Rejected(records[place], WRONG_PARTITION, detail))
            keep &= ~away
        for view, layout in self._layouts:
            for reason, mask, detail in _unfit(view, layout, _columns(view, events)):
                places = found.index[mask & keep].tolist()
                rejected.extend(Rejected(records[place], reason, detail) for place in places)
                keep &= ~mask
        marked: list[Marked] = []
        if self._rules is not None:
            rows = self.decoder.named(found.rows)
            self._apply_rules(
                self._rules,
                rows,
                records,
                found.index,
                arrival,
                keep,
                rejected,
                marked,
                found.ts_us,
                replayed=batch.replayed,
            )
        made: dict[Transform, pa.Table] = {}
        if self._transforms:
            made = self._transformed(events, records, found.index, keep, rejected)
            gone = {item.record.offset for item in rejected}
            marked = [item for item in marked if item.record.offset not in gone]
        if not keep.all():
            events = events.filter(pa.array(keep))
        arrival, offsets = arrival[keep], offsets[keep]
        events = events.append_column(OFFSET, pa.array(offsets)).append_column(
            ARRIVAL, pa.array(arrival).view(_INSTANTS)
        )
        rejected.sort(key=lambda item: item.record.offset)
        assert len(offsets) + len(rejected) == len(records), "an event was neither accepted nor set aside, or both"
        return Judged(
            batch,
            events,
            found.ts_us[keep],
            arrival,
            offsets,
            tuple(rejected),
            tuple(marked),
            contract=self.contract,
            summed=self._summed,
            made=made,
        )

    def _away(self, batch: Batch, index: Ints, count: Callable[[str], int] | None) -> npt.NDArray[np.bool_] | None:
        """Which rows lie in another partition than their key's; None where none does, or the topic has grown."""
        homes = self._homes
        if homes is None or batch.replayed:
            return None
        places = index.tolist()
        keys = [batch.records[place].key for place in places]
        away = np.array([bool(key) and partition_of(key or b"", homes) != batch.partition for key in keys], np.bool_)
        if not away.any() or (count is not None and count(batch.topic) != homes):
            return None
        return away

    def _transformed(
        self,
        events: pa.Table,
        records: Sequence[Record],
        index: Ints,
        keep: npt.NDArray[np.bool_],
        rejected: list[Rejected],
    ) -> dict[Transform, pa.Table]:
        """What the views' functions make of the events that are kept; those on which one fails are taken out."""
        made: dict[Transform, tuple[Ints, pa.Table]] = {}
        for view, transform, layout in self._transforms:
            kept = np.flatnonzero(keep)
            given = events.take(pa.array(kept))
            columns = {field.name: given[_producer_name(view, field.name)] for field in transform.inputs}
            result = transformed(view.name, transform, columns)
            for row, detail in result.failed.items():
                rejected.append(Rejected(records[index[kept[row]]], TRANSFORM, detail))
                keep[kept[row]] = False
            aggregated = _columns(view, given, result.columns) if layout is not None else {}
            for reason, mask, detail in _unfit(view, layout, aggregated) if layout is not None else ():
                places = kept[mask & keep[kept]]
                rejected.extend(Rejected(records[place], reason, detail) for place in index[places].tolist())
                keep[places] = False
            made[transform] = (kept, result.columns)
        return {key: columns.filter(pa.array(keep[kept])) for key, (kept, columns) in made.items()}

    @staticmethod
    def _apply_rules(
        rules: RowCheck,
        rows: Sequence[Any],
        records: Sequence[Record],
        index: Ints,
        arrival: Ints,
        keep: npt.NDArray[np.bool_],
        rejected: list[Rejected],
        marked: list[Marked],
        ts_us: Ints,
        *,
        replayed: bool,
    ) -> None:
        """Judge all rows, take those that break a quarantine rule out of `keep`.

        Of a replayed event the rules only warn that it was accepted under before it was replayed.
        """
        for row, mask in enumerate(rules.check(rows, arrival.tolist())):
            if not mask or not keep[row]:
                continue
            broken, record = rules.ids(mask), records[index[row]]
            if mask & rules.quarantine_mask and not (replayed and judged_before(record)):
                keep[row] = False
                detail = f"breaks {', '.join(broken)}"
                rejected.append(Rejected(record, CONTRACT, detail, broken, int(ts_us[row]), rows[row]))
            else:
                marked.append(Marked(record, broken, rows[row]))


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
        columns = _columns(self.view, judged.events, judged.of(self.view))
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
            return self._few_entities(names, [events[_producer_name(self.view, name)] for name in names])
        codes = np.zeros(len(events), np.int64)
        values: list[tuple[object, ...]] = [()]
        for name in names:
            encoded = pc.dictionary_encode(_key_column(events[_producer_name(self.view, name)]))
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
        self._columns = {name: _producer_name(view, name) for name in _names(view)}

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


def _unfit(
    view: View, layout: TileLayout, columns: Mapping[str, pa.Array]
) -> Iterator[tuple[str, npt.NDArray[np.bool_], str]]:
    """Reason, events and detail of what the view's tiles cannot take in."""
    large, long = layout.too_large(columns), layout.too_long(columns)
    if large is not None:
        yield TOO_LARGE, large, f"a column that view {view.name!r} sums is 2^78 or more: it would have no exact sum"
    if long is not None:
        yield TOO_LONG, long, f"a text that view {view.name!r} keeps is longer than its max_bytes"


def _columns(view: View, events: pa.Table, made: pa.Table | None = None) -> dict[str, pa.Array]:
    """The view's columns of the events, under the view's names; what its function made takes the place of others."""
    columns = {column.name: events[_producer_name(view, column.name)].combine_chunks() for column in view.columns}
    if made is not None:
        columns |= {name: made[name].combine_chunks() for name in made.column_names}
    return columns


def _producer_name(view: View, column: str) -> str:
    for old, new in view.source.field_mapping.items():
        if new == column:
            return old
    return column
