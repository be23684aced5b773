"""How do events come in that were set aside and are replayed? As further partitions of their topic.

`<topic>.replay` is read like partitions of the topic itself, under a topic id of their own (that of the replay topic,
and `.replay`), so that nothing behind this source knows the difference: windows, event log and quarantine are those of
the topic. An event's arrival is the replay's.

Whoever replays may have to send again what it is not sure to have sent. A replayed event says where it came from, in
its header `featurestore-origin`; of those with the same origin in a partition the first counts, and the others are to a
reader like offsets that compaction has taken. What counts is a function of the log alone: a claim reads the partition
from its beginning to know the origins, and hands over nothing before the offset that was sought. Replay topics hold
what was set aside and repaired, and are kept for ever; they are short.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Final, TypeVar

from featurestore.online.keys import REPLAY_SUFFIX
from streaming.source.records import (
    Assigned,
    Batch,
    NotAssigned,
    OffsetGone,
    Rebalance,
    Record,
    Revoked,
    Source,
    TopicPartition,
)

ORIGIN: Final = "featurestore-origin"
ACCEPTED: Final = "featurestore-accepted-under"
"""The contract and version under which it was judged before it was replayed: its rules need not be kept again."""
ATTEMPT: Final = "featurestore-attempt"
KEPT: Final = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}
"""Settings of a replay topic: what counted must stay known."""
T = TypeVar("T")


def replay_topic(topic: str) -> str:
    """The topic through which events of a topic are replayed.

    >>> replay_topic("orders")
    'orders.replay'
    """
    return f"{topic}{REPLAY_SUFFIX}"


def is_replay(topic_id: str) -> bool:
    """Whether a partition is one of replayed events, by the name of its topic or the id under which it is read.

    >>> is_replay("u5wDpzYCRXK2vOHt1dZbLg"), is_replay("u5wDpzYCRXK2vOHt1dZbLg.replay")
    (False, True)
    """
    return topic_id.endswith(REPLAY_SUFFIX)


def judged_before(record: Record) -> bool:
    """Whether a replayed record was accepted by a contract before it was replayed."""
    return any(name == ACCEPTED for name, _ in record.headers)


def attempt_of(record: Record) -> int:
    """For how many times a record is judged: once, unless it was replayed.

    >>> attempt_of(Record(0, 0, None, b"", 0, ((ATTEMPT, b"2"),)))
    2
    """
    found = dict(record.headers).get(ATTEMPT) or b""
    return int(found) if found.isdigit() and len(found) < 9 else 1


class WithReplays:
    """A Source that reads, beside topics, the replay topics of some of them."""

    def __init__(self, inner: Source, replayed: Collection[str]) -> None:
        """`inner` reads all topics and the replay topics of those in `replayed`."""
        self.repeats = 0
        """Events left out because they had been replayed before."""
        self._inner = inner
        self._replayed = frozenset(replayed)
        self._origins: dict[TopicPartition, _Origins] = {}
        self._sought: dict[TopicPartition, int] = {}

    def drain_rebalances(self) -> list[Rebalance]:
        """See Source."""
        found: list[Rebalance] = []
        for change in self._inner.drain_rebalances():
            partitions = tuple(self._outer(each) for each in change.partitions)
            for each in partitions:
                self._sought.pop(each, None)
            found.append(
                Assigned(partitions) if isinstance(change, Assigned) else Revoked(partitions, lost=change.lost)
            )
        return found

    def poll(self, timeout_ms: int) -> list[Batch]:
        """See Source."""
        batches: list[Batch] = []
        for batch in self._told(lambda: self._inner.poll(timeout_ms)):
            partition = self._outer(batch.source)
            if not is_replay(partition.topic_id):
                batches.append(batch)
                continue
            origins = self._origins[partition]
            kept = [record for record in batch.records if origins.first(record)]
            origins.position = max(origins.position, batch.position_after)
            sought = self._sought.get(partition, batch.position_before)
            if batch.position_after <= sought:
                continue  # on the way from the beginning to where the reader wants to go on
            self.repeats += sum(record.offset >= sought for record in batch.records) - sum(
                record.offset >= sought for record in kept
            )
            batches.append(
                Batch(
                    partition.topic,
                    partition.topic_id,
                    partition.partition,
                    [record for record in kept if record.offset >= sought],
                    max(batch.position_before, sought),
                    batch.position_after,
                    replayed=True,
                )
            )
            self._sought[partition] = batch.position_after
        return batches

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """See Source. Of replayed events what lies before is read first, and not handed over."""
        inner = self._inwards(partition)
        start = offset
        if is_replay(partition.topic_id):
            beginning = self._inner.beginning_offsets([inner])[inner]
            origins = self._origins.setdefault(partition, _Origins(beginning))
            start = min(offset, max(origins.position, beginning))
        self._told(lambda: self._inner.seek(inner, start))
        self._sought[partition] = offset

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """See Source."""
        self._inner.pause([self._inwards(each) for each in partitions])

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """See Source."""
        self._inner.resume([self._inwards(each) for each in partitions])

    def partitions_of(self, topic: str) -> tuple[TopicPartition, ...]:
        """See Source: the topic's own, then those of its replay topic."""
        own = self._inner.partitions_of(topic)
        if topic not in self._replayed:
            return own
        return (*own, *(self._outer(each) for each in self._inner.partitions_of(replay_topic(topic))))

    def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """See Source."""
        return self._offsets(self._inner.beginning_offsets, partitions)

    def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """See Source."""
        return self._offsets(self._inner.end_offsets, partitions)

    def known_end(self, partition: TopicPartition) -> int | None:
        """See Source."""
        return self._inner.known_end(self._inwards(partition))

    def close(self) -> None:
        """See Source."""
        self._inner.close()

    def _offsets(
        self, ask: Callable[[Iterable[TopicPartition]], dict[TopicPartition, int]], partitions: Iterable[TopicPartition]
    ) -> dict[TopicPartition, int]:
        return {self._outer(each): offset for each, offset in ask([self._inwards(one) for one in partitions]).items()}

    def _outer(self, partition: TopicPartition) -> TopicPartition:
        topic = partition.topic.removesuffix(REPLAY_SUFFIX)
        if topic == partition.topic or topic not in self._replayed:
            return partition
        return TopicPartition(topic, partition.topic_id + REPLAY_SUFFIX, partition.partition)

    def _inwards(self, partition: TopicPartition) -> TopicPartition:
        if not is_replay(partition.topic_id):
            return partition
        return TopicPartition(
            replay_topic(partition.topic), partition.topic_id.removesuffix(REPLAY_SUFFIX), partition.partition
        )

    def _told(self, ask: Callable[[], T]) -> T:
        """What the inner source answers; its errors name partitions as our reader knows them."""
        try:
            return ask()
        except NotAssigned as error:
            raise NotAssigned(self._outer(error.partition)) from error
        except OffsetGone as error:
            raise OffsetGone(self._outer(error.partition), error.offset, error.beginning, error.end) from error


class _Origins:
    """The origins of one partition, read from its beginning to `position`, and the offset at which each came first."""

    def __init__(self, position: int) -> None:
        self.position = position
        self._first: dict[bytes, int] = {}

    def first(self, record: Record) -> bool:
        """Whether no record before has the same origin; one without an origin is like any other event."""
        origin = dict(record.headers).get(ORIGIN)
        return origin is None or self._first.setdefault(origin, record.offset) == record.offset
