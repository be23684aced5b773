"""Which events of a batch are duplicates, of events in it or of any that counted before?

The rule is `featurestore.offline.duplicates`', here event by event. What counted is kept in Redis under the shard's
hash tag, in one hash for each span of arrival: field = digest of event id and entity key, value = (event time,
arrival) of every such event that counted, and a check of field and value. The hashes change in the script that changes
the tiles and the offset, so that they never tell of an event that the tiles do not hold, nor of fewer.

Nothing here expires by a clock: a worker that was down for a day must still know the events of the last minute before
it stopped. A span is dropped once later events have arrived `DISORDER_US` and a horizon after its end, by the log and
by the clock; the clock's say keeps one arrival dated 2400 from dropping everything. Where the broker sets arrivals
(LogAppendTime) they never decrease, and what is dropped could not matter. Where producers do, one that is dated more
than `DISORDER_US` before another of its partition may find its span gone, and count though it is a duplicate.
"""

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Final

import msgspec
import numpy as np

from featurestore.errors import StaleStore
from featurestore.online.keys import Shard
from streaming.judged import Judged
from streaming.view_pipeline import ViewPipeline

DISORDER_US: Final = 600_000_000
SHORTEST_SPAN_US: Final = 60_000_000
IDS_KEPT: Final = 200_000

Place = tuple[int, bytes]
"""A span's number and a field of its hash."""
Anchors = tuple[tuple[int, int], ...]
"""(event time, arrival) of the events of one field that counted."""

Found = Mapping[bytes, Mapping[bytes, bytes | None]]
"""By key of a hash the values of some of its fields; None where it has none."""
ReadSeen = Callable[[Mapping[bytes, Sequence[bytes]]], Found]

_ANCHOR = struct.Struct("<qq")
_CHECK_BYTES: Final = 4


class Asked(msgspec.Struct, frozen=True):
    """The events of a batch that have an id and an entity key: their rows, fields and times, by ascending offset."""

    rows: list[int]
    fields: list[bytes]
    ts_us: list[int]
    arrival_us: list[int]


class SpanWrite(msgspec.Struct, frozen=True):
    """What one span's hash is to hold; `afresh` drops first what it held, and may be all there is to do."""

    key: bytes
    afresh: bool
    fields: tuple[tuple[bytes, bytes], ...]


class SeenChange(msgspec.Struct, frozen=True):
    """What the commit does to the shard's ids: the spans that are kept after it, the writes, and what it counts."""

    spans: tuple[int, ...]
    writes: tuple[SpanWrite, ...]
    duplicates: int
    reused: int
    """Events that count although their id was seen within the horizon, at another event time: two events, one id."""
    known: dict[Place, Anchors]
    """What `advance` takes in."""


class Once(msgspec.Struct, frozen=True):
    """A batch in which every event counts once."""

    judged: Judged
    change: SeenChange | None
    """None: no event has an id, nothing is to be written."""


class SeenIds:
    """The event ids of one shard, as far as this process knows: about `ids_kept`, all dropped when they are more.

    Like the cache of tiles it knows nothing that Redis does not know, and changes by `advance` alone, after the commit.
    """

    def __init__(
        self, pipeline: ViewPipeline, shard: Shard, event_id: str, *, horizon_us: int, ids_kept: int = IDS_KEPT
    ) -> None:
        self._pipeline = pipeline
        self._shard = shard
        self._event_id = event_id
        self._horizon_us = horizon_us
        self._span_us = max(horizon_us, SHORTEST_SPAN_US)
        self._ids_kept = ids_kept
        self._known: dict[Place, Anchors] = {}

    @classmethod
    def of(cls, pipeline: ViewPipeline, shard: Shard) -> "SeenIds | None":
        """The ids of a view whose topic declares a horizon; None where every event counts."""
        topic = pipeline.view.source.topic
        if topic is None or topic.event_id is None or topic.event_id_horizon_us is None:
            return None
        return cls(pipeline, shard, topic.event_id, horizon_us=topic.event_id_horizon_us)

    def __len__(self) -> int:
        """How many ids are cached, those included that are known to be new."""
        return len(self._known)

    def once(self, judged: Judged, spans: Sequence[int], read: ReadSeen, *, now_us: int) -> Once:
        """The batch without duplicates; `spans` are those that the shard keeps, `read` reads fields of their hashes.

        Nothing that counts is taken in before `advance`; raises what `read` does.
        """
        if len(self._known) > self._ids_kept:
            self._known = {}
        asked = self._asked(judged)
        if not asked.rows:
            return Once(judged, None)
        found = read(self._missing(asked, spans))
        return self._told(judged, asked, set(spans), found, now_us)

    def _asked(self, judged: Judged) -> Asked:
        """The events that could be duplicates."""
        codes, keys = self._pipeline.entities(judged.events)
        ids = judged.events[self._event_id].to_pylist()
        rows = [row for row, code in enumerate(codes.tolist()) if code >= 0 and ids[row] is not None]
        return Asked(
            rows,
            [_field(ids[row], keys[codes[row]]) for row in rows],
            judged.ts_us[rows].tolist(),
            judged.arrival_us[rows].tolist(),
        )

    def _missing(self, asked: Asked, spans: Sequence[int]) -> dict[bytes, list[bytes]]:
        """Key of a span's hash -> the fields that must be read of it."""
        kept = set(spans)
        wanted: dict[int, dict[bytes, None]] = {}
        for field, arrival_us in zip(asked.fields, asked.arrival_us, strict=True):
            for span in self._near(arrival_us):
                if span in kept and (span, field) not in self._known:
                    wanted.setdefault(span, {})[field] = None
        return {self._shard.seen_key(span): list(fields) for span, fields in wanted.items()}

    def _told(self, judged: Judged, asked: Asked, kept: set[int], found: Found, now_us: int) -> Once:
        """The batch without duplicates; `found` holds everything that was missing."""
        held: dict[Place, Anchors] = {}
        for span in kept:
            for field, value in found.get(self._shard.seen_key(span), {}).items():
                held[span, field] = _anchors(field, value)
        counts = np.ones(len(judged.ts_us), np.bool_)
        counted: dict[Place, Anchors] = {}
        reused = 0

        def there(place: Place) -> Anchors:
            if place in counted:
                return counted[place]
            if place[0] not in kept:
                return ()
            return held[place] if place in held else self._known[place]

        for row, field, ts_us, arrival_us in zip(*msgspec.structs.astuple(asked), strict=True):
            near = [
                anchor_ts
                for span in self._near(arrival_us)
                for anchor_ts, anchor_arrival in there((span, field))
                if self._within(arrival_us, anchor_arrival)
            ]
            if ts_us in near:
                counts[row] = False
                continue
            reused += bool(near)
            place = (arrival_us // self._span_us, field)
            counted[place] = (*there(place), (ts_us, arrival_us))
        spans, writes = self._writes(kept, counted, now_us)
        change = SeenChange(spans, writes, int((~counts).sum()), reused, held | counted)
        return Once(judged.only(counts), change)

    def advance(self, change: SeenChange) -> None:
        """Take in what was committed."""
        self._known.update(change.known)

    def _near(self, arrival_us: int) -> range:
        """The spans in which an event may have counted whose horizon reaches that arrival."""
        first, last = arrival_us - self._horizon_us, arrival_us + self._horizon_us
        return range(first // self._span_us, last // self._span_us + 1)

    def _within(self, arrival_us: int, counted_us: int) -> bool:
        return abs(arrival_us - counted_us) <= self._horizon_us

    def _writes(
        self, kept: set[int], counted: dict[Place, Anchors], now_us: int
    ) -> tuple[tuple[int, ...], tuple[SpanWrite, ...]]:
        """The spans to be kept, and what is to be written of them and of those that are dropped."""
        every = kept | {span for span, _ in counted}
        passed_us = min(max(every) * self._span_us, now_us) - self._horizon_us - DISORDER_US
        spans = {span for span in every if (span + 1) * self._span_us > passed_us}
        fields: dict[int, list[tuple[bytes, bytes]]] = {}
        for (span, field), anchors in counted.items():
            if span in spans:
                value = b"".join(_ANCHOR.pack(*anchor) for anchor in anchors)
                value += _check(field, value)
                fields.setdefault(span, []).append((field, value))
        writes = [
            # A new span's hash may be left from a shard that began anew since: what it holds is not this one's.
            SpanWrite(self._shard.seen_key(span), span not in kept, tuple(written))
            for span, written in fields.items()
        ]
        writes += [SpanWrite(self._shard.seen_key(span), True, ()) for span in kept - spans]  # noqa: FBT003 - a field
        return tuple(sorted(spans)), tuple(writes)


def _field(event_id: object, entity_key: bytes) -> bytes:
    raw = event_id if isinstance(event_id, bytes) else str(event_id).encode()
    return blake2b(struct.pack("<q", len(raw)) + raw + entity_key, digest_size=16).digest()


def refuse_damaged(field: bytes, value: bytes) -> None:
    """Raises StaleStore where what is stored of an event id is not as it was written."""
    _anchors(field, value)


def _anchors(field: bytes, value: bytes | None) -> Anchors:
    if value is None:
        return ()
    told = value[:-_CHECK_BYTES]
    if value[-_CHECK_BYTES:] != _check(field, told) or len(told) % _ANCHOR.size:
        raise StaleStore(
            f"what the online store knows of event id {field.hex()} is damaged, or of another format; stop the stream, "
            "then run `featurestore stream rebuild`"
        )
    return tuple(_ANCHOR.iter_unpack(told))


def _check(field: bytes, value: bytes) -> bytes:
    return zlib.crc32(field + value).to_bytes(_CHECK_BYTES, "little")
