"""How does a reader behave when its log is full of holes, crashes, rebalances and strays?

A log in memory, for tests, with the accidents written between the records. Each fires once, when a reader's position
comes to it, so that a reader that recovers goes on:

>>> log = ScriptedLog()
>>> log.create("clicks", partitions=1)
>>> _ = log.append("clicks", 0, b"a"), log.append("clicks", 0, b"b")
>>> log.hole("clicks", 0)
>>> log.accident("clicks", 0, Crash())
>>> source = ScriptedSource(log, ["clicks"])
>>> [assigned] = source.drain_rebalances()
>>> source.seek(assigned.partitions[0], 0)
>>> [batch] = source.poll(0)
>>> [record.value for record in batch.records], batch.position_after
([b'a', b'b'], 3)
>>> source.poll(0)
Traceback (most recent call last):
...
streaming.source.records.SourceUnavailable: scripted crash at clicks-0 offset 3
"""

from collections.abc import Iterable, Sequence

import msgspec

from featurestore.errors import UnknownName
from streaming.source.records import (
    Assigned,
    Batch,
    Header,
    NotAssigned,
    OffsetGone,
    Rebalance,
    Record,
    Revoked,
    SourceUnavailable,
    TopicPartition,
)


class Crash(msgspec.Struct, frozen=True):
    """The poll that comes here fails with SourceUnavailable; the position stays."""


class Shuffle(msgspec.Struct, frozen=True):
    """The poll that comes here finds all partitions revoked and dealt out again."""


class Stray(msgspec.Struct, frozen=True):
    """The fetch position silently becomes `offset`: what a continuity check must catch."""

    offset: int


Accident = Crash | Shuffle | Stray


class _Partition:
    """One partition: records by offset (absent = hole), the end, what retention took, the accidents to come."""

    def __init__(self) -> None:
        self.records: list[Record | None] = []
        self.beginning = 0
        self.accidents: dict[int, list[Accident]] = {}


class ScriptedLog:
    """Topics in memory, and the group of the sources that read them. Partitions are dealt out in turn, eagerly."""

    def __init__(self) -> None:
        self._topics: dict[str, list[_Partition]] = {}
        self._ids: dict[str, str] = {}
        self._group: list[ScriptedSource] = []

    def create(self, topic: str, *, partitions: int, topic_id: str | None = None) -> None:
        """Create a topic, or let it grow to `partitions`; its id is `id-of-TOPIC` where none is given."""
        held = self._topics.setdefault(topic, [])
        held.extend(_Partition() for _ in range(partitions - len(held)))
        self._ids.setdefault(topic, topic_id or f"id-of-{topic}")
        if self._group:
            self.rebalance()

    def append(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        *,
        key: bytes | None = None,
        timestamp_us: int = 0,
        headers: tuple[Header, ...] = (),
    ) -> int:
        """Write one record; returns its offset."""
        held = self.partition(topic, partition)
        offset = len(held.records)
        held.records.append(Record(partition, offset, key, value, timestamp_us, headers))
        return offset

    def hole(self, topic: str, partition: int, count: int = 1) -> None:
        """Use up offsets without a record, as transaction markers, aborted records and compaction do."""
        self.partition(topic, partition).records.extend([None] * count)

    def accident(self, topic: str, partition: int, what: Accident) -> None:
        """Let something happen once a reader has come to the present end of the partition."""
        held = self.partition(topic, partition)
        held.accidents.setdefault(len(held.records), []).append(what)

    def truncate(self, topic: str, partition: int, before: int) -> None:
        """Retention: offsets below `before` are gone."""
        self.partition(topic, partition).beginning = before

    def expire(self, source: "ScriptedSource") -> None:
        """The group gives up on a member (its session timed out) that does not know it yet: a zombie.

        It goes on polling what it holds; it learns of its loss when `ScriptedSource.awake` is called.
        """
        self._group.remove(source)
        source.asleep = True
        self.rebalance()

    def rebalance(self) -> None:
        """Take all partitions from all members and deal them out again."""
        for member in self._group:
            member.revoke(lost=False)
        for number, member in enumerate(self._group):
            everything = [tp for topic in member.topics for tp in self.partitions_of(topic)]
            member.assign(everything[number :: len(self._group)])

    def join(self, source: "ScriptedSource") -> None:
        """A source enters the group."""
        self._group.append(source)
        self.rebalance()

    def leave(self, source: "ScriptedSource") -> None:
        """A source leaves the group; leaving twice is harmless."""
        if source in self._group:
            self._group.remove(source)
            self.rebalance()

    def partition(self, topic: str, partition: int) -> _Partition:
        """The partition's data. Raises UnknownName."""
        if topic not in self._topics:
            raise UnknownName("topic", topic, self._topics)
        return self._topics[topic][partition]

    def partitions_of(self, topic: str) -> tuple[TopicPartition, ...]:
        """All partitions of a topic. Raises UnknownName."""
        if topic not in self._topics:
            raise UnknownName("topic", topic, self._topics)
        return tuple(TopicPartition(topic, self._ids[topic], n) for n in range(len(self._topics[topic])))


class ScriptedSource:
    """A Source over a ScriptedLog. Sources of one log are one consumer group."""

    def __init__(self, log: ScriptedLog, topics: Sequence[str], *, max_records: int = 500) -> None:
        self.topics = tuple(topics)
        self.asleep = False
        self._log = log
        self._max_records = max_records
        self._rebalances: list[Rebalance] = []
        self._positions: dict[TopicPartition, int | None] = {}
        self._paused: set[TopicPartition] = set()
        for topic in topics:
            log.partitions_of(topic)
        log.join(self)

    def drain_rebalances(self) -> list[Rebalance]:
        """See Source."""
        drained, self._rebalances = self._rebalances, []
        return drained

    def poll(self, timeout_ms: int) -> list[Batch]:  # noqa: ARG002 - the protocol's; nothing here is worth waiting for
        """See Source; never waits. A batch ends before the next accident."""
        batches: list[Batch] = []
        for tp, position in list(self._positions.items()):
            if position is None or tp in self._paused:
                continue
            held = self._log.partition(tp.topic, tp.partition)
            if not held.beginning <= position <= len(held.records):
                raise OffsetGone(tp, position, held.beginning, len(held.records))
            if position in held.accidents:
                if batches:
                    break
                position = self._suffer(tp, position, held)
                if position is None:
                    return []
            later = [offset for offset in held.accidents if offset > position]
            end = min([position + self._max_records, len(held.records), *later])
            if end > position:
                records = tuple(record for record in held.records[position:end] if record is not None)
                batches.append(Batch(tp.topic, tp.topic_id, tp.partition, records, position, end))
                self._positions[tp] = end
        return batches

    def _suffer(self, tp: TopicPartition, position: int, held: _Partition) -> int | None:
        """Let one accident happen; the position to read from, or None where the poll ends here."""
        waiting = held.accidents[position]
        accident = waiting.pop(0)
        if not waiting:
            del held.accidents[position]
        match accident:
            case Crash():
                raise SourceUnavailable(f"scripted crash at {tp} offset {position}")
            case Shuffle():
                self._log.rebalance()
                return None
            case Stray(offset):
                self._positions[tp] = offset
                return offset

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """See Source."""
        if partition not in self._positions:
            raise NotAssigned(partition)
        self._positions[partition] = offset

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """See Source."""
        self._paused.update(partitions)

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """See Source."""
        self._paused.difference_update(partitions)

    def partitions_of(self, topic: str) -> tuple[TopicPartition, ...]:
        """See Source."""
        return self._log.partitions_of(topic)

    def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """See Source."""
        return {tp: self._log.partition(tp.topic, tp.partition).beginning for tp in partitions}

    def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """See Source."""
        return {tp: len(self._log.partition(tp.topic, tp.partition).records) for tp in partitions}

    def known_end(self, partition: TopicPartition) -> int | None:
        """See Source."""
        return len(self._log.partition(partition.topic, partition.partition).records)

    def close(self) -> None:
        """See Source."""
        self._log.leave(self)
        self._positions.clear()

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """The log's side of a rebalance: these partitions are the source's."""
        given = tuple(partitions)
        self._positions = dict.fromkeys(given)
        self._paused.clear()
        self._rebalances.append(Assigned(given))

    def revoke(self, *, lost: bool) -> None:
        """The log's side of a rebalance: the source holds nothing any more."""
        if self._positions:
            self._rebalances.append(Revoked(tuple(self._positions), lost))
        self._positions = {}

    def awake(self) -> None:
        """An expired member learns that it lost everything, and joins again."""
        if self.asleep:
            self.asleep = False
            self.revoke(lost=True)
            self._log.join(self)
