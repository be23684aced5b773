"""How far has a worker come? What it would tell somebody who asks, as values."""

import msgspec

from streaming.source.records import TopicPartition


class ShardStanding(msgspec.Struct, frozen=True, kw_only=True):
    """One view's state of one partition, as of its last commit."""

    view: str
    version: int
    offset: int
    watermark_us: int | None
    complete: bool
    """Whether readers have been told that they may take it for whole."""


class PartitionStanding(msgspec.Struct, frozen=True, kw_only=True):
    """A partition in a worker's hands."""

    partition: TopicPartition
    position: int
    """Everything before it is committed."""
    end: int | None
    """The end of the partition as last heard; None before anything was heard."""
    arrival_us: int | None
    """Arrival of the newest record that was committed; None before the first one."""
    shards: tuple[ShardStanding, ...]
    stored: dict[str, int]
    """By sink, the offset up to which everything is in its files."""

    @property
    def lag(self) -> int | None:
        """Records (and holes) between position and end."""
        return None if self.end is None else max(self.end - self.position, 0)


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as a whole."""

    plan_version: int
    partitions: tuple[PartitionStanding, ...]
    to_claim: int
    """Partitions that were assigned and are not claimed yet."""
    assigned: bool
    """Whether the group has told this worker what it reads, be it nothing."""
    failures: int
    """Rounds that failed in a row."""
    counters: dict[str, int]
