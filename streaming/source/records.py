"""What does a source of events hand over, and what may its reader rely on?

Partitions come and go while a consumer runs, and a client learns of it on a thread of its own. Here both are
values: the reader drains `Assigned` and `Revoked` at a point it chooses, says with `seek` where to read on, and then
polls. No source ever chooses where to start: a partition delivers nothing until it has been sought.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from featurestore.errors import FeatureStoreError, UsageError

Header = tuple[str, bytes | None]


class Record(msgspec.Struct, frozen=True, gc=False):
    """One event as it was written: bytes and the time its log gives it.

    `timestamp_us` is microseconds since the epoch, UTC: the broker's append time or the producer's, as the topic is
    configured (Kafka keeps milliseconds). `value` None is a tombstone.
    """

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_us: int
    headers: tuple[Header, ...] = ()


class TopicPartition(msgspec.Struct, frozen=True, order=True):
    """One partition of one topic. `topic_id` tells a topic from a later one of the same name."""

    topic: str
    topic_id: str
    partition: int

    def __str__(self) -> str:
        """The way messages name a partition: `departures-3`."""
        return f"{self.topic}-{self.partition}"


class Batch(msgspec.Struct, frozen=True):
    """What one poll moved past in one partition.

    Offsets in `[position_before, position_after)` that carry no record held none for this reader: transaction markers,
    aborted records, compaction. `records` ascend by offset and may be empty where only the position moved.
    `position_after` is where the next batch starts; it is not always the last record's offset + 1.
    """

    topic: str
    topic_id: str
    partition: int
    records: Sequence[Record]
    position_before: int
    position_after: int
    replayed: bool = False
    """Whether the records were set aside before, and are here for another time."""

    @property
    def source(self) -> TopicPartition:
        """The partition that the batch was read from."""
        return TopicPartition(self.topic, self.topic_id, self.partition)


class Assigned(msgspec.Struct, frozen=True):
    """These partitions are now this reader's: claim them, then `seek`. Until then they deliver nothing."""

    partitions: tuple[TopicPartition, ...]


class Revoked(msgspec.Struct, frozen=True):
    """These partitions are no longer this reader's; `lost` when another may already be reading them."""

    partitions: tuple[TopicPartition, ...]
    lost: bool = False


Rebalance = Assigned | Revoked


class Source(Protocol):
    """A log of events that one thread reads.

    The order of one turn: `drain_rebalances`, claim and `seek` what was assigned, `poll`, work, commit the offsets in
    the store that holds the results. A partition that was revoked and assigned again must be sought again.
    """

    def drain_rebalances(self) -> list[Rebalance]:
        """What changed hands since the last call, oldest first; each change is handed over once."""
        ...

    def poll(self, timeout_ms: int) -> list[Batch]:
        """Batches that moved, at most one a partition; empty when nothing came within `timeout_ms`.

        Raises OffsetGone when the log no longer has a sought offset, SourceUnavailable when it does not answer.
        """
        ...

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read on from `offset` (the position after the last batch that took effect). Raises NotAssigned."""
        ...

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """Stop fetching from these (backpressure) without giving them up; positions stay."""
        ...

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Fetch again from partitions that were paused."""
        ...

    def partitions_of(self, topic: str) -> tuple[TopicPartition, ...]:
        """All partitions of a topic, whoever reads them, in order. Raises UnknownName."""
        ...

    def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The first offset that each partition still has."""
        ...

    def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset after the last one a reader may see; lag in records is at most end - position."""
        ...

    def known_end(self, partition: TopicPartition) -> int | None:
        """The end of a partition as last heard, without asking; None before that. Any thread may call it."""
        ...

    def close(self) -> None:
        """Leave: partitions go to other readers. Calling it twice is harmless."""
        ...


class SourceUnavailable(FeatureStoreError):
    """The log of events did not answer; the call may be repeated."""


class NotAssigned(FeatureStoreError):
    """The partition is not this reader's (any more): drain the rebalances and go on with what is."""

    def __init__(self, partition: TopicPartition) -> None:
        self.partition = partition
        super().__init__(f"partition {partition} is not assigned to this reader; it may have moved to another one")


class OffsetGone(FeatureStoreError):
    """The log does not hold the offset to read on from: retention took it, or the topic is another one."""

    def __init__(self, partition: TopicPartition, offset: int, beginning: int, end: int) -> None:
        self.partition, self.offset, self.beginning, self.end = partition, offset, beginning, end
        super().__init__(
            f"{partition} has no offset {offset}: it holds {beginning} to {end}; "
            "rebuild the state from the event log, or lengthen the topic's retention"
        )


class OffsetBeyondEnd(OffsetGone):
    """State stands for more events than the log holds: the log was truncated, or the stored offset is wrong."""

    def __init__(self, partition: TopicPartition, offset: int, end: int) -> None:
        super().__init__(partition, offset, 0, end)
        self.args = (
            f"{partition} ends at offset {end}, and the state in the online store stands for events up to {offset}: "
            "the topic was truncated, or the stored offset is wrong; events would go uncounted. If the topic is right, "
            "run `featurestore stream rebuild`, which makes the state again from the event log",
        )


class MemberReplaced(FeatureStoreError):
    """Another process reads under the same instance id: this one must stop, or both would take turns for ever."""


class CorruptLog(FeatureStoreError):
    """The log holds bytes that are no records; reading on would skip what they were."""


class UnknownColumn(UsageError):
    """A file lacks a column that it was asked to take the key or the time from."""
