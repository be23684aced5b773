"""Where do events go for good, so that each offset is stored once, whatever the tiles are doing?

Tiles want milliseconds, files want minutes: a sink buffers, and has a cursor of its own, the offset up to which
everything is in its files. A claim starts reading at the lowest cursor of all sinks and shards; each skips what it
has. A flush has a fixed order:

1. the file appears, whole, under the name of its offset range (`validation.whole_file`);
2. the cursor moves.

A crash before 1 replays the range, a crash between 1 and 2 finds it by the names. The cursor itself is a hint that
spares replaying ranges in which nothing had to be stored; ranges may overlap, readers take each offset once.

A sink that is given a writer leaves both steps to its thread: no event waits for a file. Of a partition one range is
written at a time, and whoever asks for a flush waits for it.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from typing import ClassVar, Final, ParamSpec, Protocol, TypeVar
from urllib.parse import quote

import msgspec
import pyarrow as pa

from featurestore.clock import Clock
from featurestore.errors import FeatureStoreError
from featurestore.offline.event_log import next_offset, write_events
from streaming.column_types import is_instant
from streaming.judged import Judged
from streaming.source.records import TopicPartition
from streaming.source.replayed import attempt_of
from validation.contract import Contract
from validation.place import Place
from validation.quarantine import Origin, QuarantineSink
from validation.quarantine import Rejected as RejectedRow
from validation.whole_file import hint_file

P = ParamSpec("P")
T = TypeVar("T")

FLUSH_ROWS: Final = 100_000
FLUSH_AGE_US: Final = 5_000_000


class SinkUnavailable(FeatureStoreError):
    """A file of a sink could not be written; what it would hold is still in the topic."""


class Storage(Protocol):
    """How one sink's ranges become files."""

    @property
    def name(self) -> str:
        """What the sink is called in metrics."""

    def cursor(self, partition: TopicPartition) -> int | None:
        """The contiguous end of the ranges stored, None without any."""

    def folder(self, topic: str) -> Place:
        """Where a topic's files are."""

    def rows(self, judged: Judged) -> int:
        """How many rows of a judged batch this sink stores."""

    def size_bytes(self, judged: Judged) -> int:
        """About how much memory those rows take until they are stored."""

    def store(self, partition: TopicPartition, batches: Sequence[Judged], first: int, last: int) -> None:
        """Make the rows of offsets `first`..`last` durable, whole or not at all."""


class _Range(msgspec.Struct, frozen=True):
    """What is on its way to the files: offsets before `position`."""

    position: int
    size_bytes: int
    done: "Future[None]"


class _AtOnce(Executor):
    """Does the work in the thread that asks for it."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """See Executor; what is no failure to store is raised here."""
        done: Future[T] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except (OSError, pa.ArrowException, SinkUnavailable) as error:
            done.set_exception(error)
        return done


class _Buffer:
    """What one partition has handed over since the last flush: offsets `first` to before `position`."""

    def __init__(self, first: int, position: int) -> None:
        self.first = first
        self.position = position
        self.moved = position
        """The cursor as it was moved last."""
        self.batches: list[Judged] = []
        self.rows = 0
        self.size_bytes = 0
        self.since_us: int | None = None
        self.under_way: _Range | None = None


class RangeSink:
    """A sink that stores offset ranges as files, flushed by rows, by age, and when asked.

    With a `writer`, of one thread, files are written there. Not shared by threads otherwise.
    """

    def __init__(
        self,
        storage: Storage,
        clock: Clock,
        *,
        flush_rows: int = FLUSH_ROWS,
        flush_age_us: int = FLUSH_AGE_US,
        writer: Executor | None = None,
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._flush_rows = flush_rows
        self._flush_age_us = flush_age_us
        self._writer = writer or _AtOnce()
        self._buffers: dict[TopicPartition, _Buffer] = {}

    @property
    def name(self) -> str:
        """What the sink is called in metrics."""
        return self._storage.name

    @property
    def size_bytes(self) -> int:
        """About how much memory the events take that are not stored yet."""
        under_way = (buffer.under_way for buffer in self._buffers.values())
        waiting = sum(buffer.size_bytes for buffer in self._buffers.values())
        return waiting + sum(range_.size_bytes for range_ in under_way if range_ is not None)

    def behind(self, partition: TopicPartition) -> int:
        """How many offsets were handed over that are not stored yet. Any thread may ask."""
        buffer = self._buffers.get(partition)
        if buffer is None or (buffer.since_us is None and buffer.under_way is None):
            return 0
        return buffer.position - buffer.moved

    def cursor(self, partition: TopicPartition) -> int | None:
        """The offset from which this sink lacks events; None where it never stored any. Raises SinkUnavailable."""
        return self._ends(partition)[0]

    def open(self, partition: TopicPartition, beginning: int) -> int:
        """Forget what is buffered and go on from the cursor, else from `beginning`; says where that is."""
        self.close(partition)
        position, stored = self._ends(partition)
        if position is None:
            position = beginning
        # What lies between the files' end and the cursor held nothing to store: the next range covers it, so
        # that the files' names stay without a gap.
        self._buffers[partition] = _Buffer(position if stored is None else stored, position)
        return position

    def add(self, judged: Judged) -> None:
        """Take over a batch, without what this sink has already; raises SinkUnavailable."""
        buffer = self._buffers[judged.batch.source]
        if judged.batch.position_after <= buffer.position:
            return
        rest = judged.since(buffer.position)
        rows = self._storage.rows(rest)
        if rows:
            held = buffer.batches[-1] if buffer.batches else rest
            if held.contract != rest.contract or held.events.schema != rest.events.schema:
                # Other definitions came into force: one file holds what was judged by one contract.
                self.flush(judged.batch.source)
            buffer.batches.append(rest)
            buffer.rows += rows
            buffer.size_bytes += self._storage.size_bytes(rest)
        buffer.position = judged.batch.position_after
        if buffer.since_us is None:
            buffer.since_us = self._clock()

    def flush_due(self) -> None:
        """Store what is due by rows or age: of the partition most so, and of all that are due twice over.

        One file at a time, since the next events wait for it; but none waits longer than twice what was asked for,
        however many partitions there are. Raises SinkUnavailable, also for what the writer could not store.
        """
        for partition, buffer in list(self._buffers.items()):
            if buffer.under_way is not None and buffer.under_way.done.done():
                self._settle(partition, buffer)
        now_us = self._clock()
        shares = [
            (max((now_us - buffer.since_us) / max(self._flush_age_us, 1), buffer.rows / self._flush_rows), partition)
            for partition, buffer in self._buffers.items()
            if buffer.since_us is not None and buffer.under_way is None
        ]
        due = sorted((share for share in shares if share[0] >= 1), reverse=True)
        for place, (share, partition) in enumerate(due):
            if place == 0 or share >= 2:
                self._begin(partition, self._buffers[partition])

    def flush(self, partition: TopicPartition) -> None:
        """Store everything that is buffered of a partition, and wait until it is; raises SinkUnavailable."""
        buffer = self._buffers.get(partition)
        if buffer is None:
            return
        self._settle(partition, buffer)
        if buffer.since_us is not None:
            self._begin(partition, buffer)
            self._settle(partition, buffer)

    def _begin(self, partition: TopicPartition, buffer: _Buffer) -> None:
        """Hand what is buffered to the writer."""
        done = self._writer.submit(self._store, partition, buffer.first, buffer.position, buffer.batches)
        buffer.under_way = _Range(buffer.position, buffer.size_bytes, done)
        if buffer.batches:
            buffer.first = buffer.position
        buffer.batches, buffer.rows, buffer.size_bytes, buffer.since_us = [], 0, 0, None
        if done.done():
            self._settle(partition, buffer)

    def _store(self, partition: TopicPartition, first: int, position: int, batches: Sequence[Judged]) -> None:
        if batches:
            self._storage.store(partition, batches, first, position - 1)
        self._move(partition, position)

    def _settle(self, partition: TopicPartition, buffer: _Buffer) -> None:
        """Wait for what is under way; where it could not be stored the partition must be opened again."""
        if buffer.under_way is None:
            return
        try:
            buffer.under_way.done.result()
        except (OSError, pa.ArrowException) as error:
            del self._buffers[partition]
            folder = self._storage.folder(partition.topic)
            raise SinkUnavailable(f"{partition}: cannot write to {folder}: {error}") from error
        except SinkUnavailable:
            del self._buffers[partition]
            raise
        buffer.moved, buffer.under_way = buffer.under_way.position, None

    def flush_all(self) -> None:
        """Store everything that is buffered; raises SinkUnavailable."""
        for partition in list(self._buffers):
            self.flush(partition)

    def close(self, partition: TopicPartition) -> None:
        """Forget a partition without storing anything more; what is being written is waited for."""
        buffer = self._buffers.pop(partition, None)
        if buffer is not None and buffer.under_way is not None:
            wait([buffer.under_way.done])

    def _ends(self, partition: TopicPartition) -> tuple[int | None, int | None]:
        """The cursor, and the end of what is in files."""
        # The hint first, and each once: whoever is taken for dead may store more meanwhile, a file and then its hint.
        hint = self._hint(partition)
        stored = self._stored(partition)
        return max((end for end in (stored, hint) if end is not None), default=None), stored

    def _stored(self, partition: TopicPartition) -> int | None:
        try:
            return self._storage.cursor(partition)
        except OSError as error:
            raise SinkUnavailable(f"{partition}: what sink {self.name} has stored cannot be read: {error}") from error

    def _hint(self, partition: TopicPartition) -> int | None:
        path = self._hint_path(partition)
        try:
            text = path.read_text()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SinkUnavailable(f"{partition}: {path} cannot be read: {error}") from error
        # A power cut may leave it empty; without it, the files' names tell the cursor.
        return int(text) if text.isdecimal() else None

    def _move(self, partition: TopicPartition, position: int) -> None:
        hint_file(self._hint_path(partition), str(position).encode())

    def _hint_path(self, partition: TopicPartition) -> Place:
        name = f"{quote(partition.topic_id, safe='')}-{partition.partition}"
        return self._storage.folder(partition.topic) / "_cursors" / name


class EventLog(msgspec.Struct, frozen=True):
    """Accepted events, as `featurestore.offline.event_log` keeps them under `root`."""

    name: ClassVar[str] = "event_log"
    root: Place

    def folder(self, topic: str) -> Place:
        """One folder a topic."""
        return self.root / topic

    def cursor(self, partition: TopicPartition) -> int | None:
        """See Storage."""
        return next_offset(self.folder(partition.topic), partition.topic_id, partition.partition)

    def rows(self, judged: Judged) -> int:
        """Accepted events."""
        return len(judged.events)

    def size_bytes(self, judged: Judged) -> int:
        """See Storage."""
        return int(judged.events.nbytes)

    def store(self, partition: TopicPartition, batches: Sequence[Judged], first: int, last: int) -> None:
        """See Storage."""
        events = pa.concat_tables([judged.events for judged in batches]).combine_chunks()
        write_events(
            self.folder(partition.topic),
            events,
            topic_id=partition.topic_id,
            partition=partition.partition,
            first=first,
            last=last,
        )


class Quarantine(msgspec.Struct, frozen=True):
    """Rejected events, whole and with their reasons, as `validation.quarantine` keeps them under `root`."""

    name: ClassVar[str] = "quarantine"
    root: Place
    contracts: Mapping[str, Contract]
    """By topic; a topic without one is kept under its own name."""

    def folder(self, topic: str) -> Place:
        """One folder a source."""
        return self._sink(topic).folder

    def cursor(self, partition: TopicPartition) -> int | None:
        """See Storage."""
        return self._sink(partition.topic).next_offset(_origin(partition))

    def rows(self, judged: Judged) -> int:
        """Rejected events."""
        return len(judged.rejected)

    def size_bytes(self, judged: Judged) -> int:
        """See Storage."""
        return sum(len(item.record.value or b"") + len(item.detail) for item in judged.rejected)

    def store(self, partition: TopicPartition, batches: Sequence[Judged], first: int, last: int) -> None:
        """See Storage."""
        rejected = [
            RejectedRow(
                offset=item.record.offset,
                row=item.record.value or b"",
                reason=item.reason,
                detail=item.detail,
                rule_ids=item.rule_ids,
                arrival_us=item.record.timestamp_us if is_instant(item.record.timestamp_us) else None,
                key=item.record.key,
                attempt=attempt_of(item.record) if judged.batch.replayed else 1,
            )
            for judged in batches
            for item in judged.rejected
        ]
        self._sink(partition.topic, batches[0].contract).store(_origin(partition), first, last, rejected)

    def _sink(self, topic: str, judged_by: Contract | None = None) -> QuarantineSink:
        """Rows name the contract that they were judged by; the folder is that of the source, whoever judged."""
        contract = judged_by or self.contracts.get(topic)
        if contract is None:
            return QuarantineSink(self.root, source=topic)
        return QuarantineSink(self.root, source=contract.source, contract=contract.name, version=contract.version)


def _origin(partition: TopicPartition) -> Origin:
    return Origin(name=partition.topic, id=partition.topic_id, partition=partition.partition)
