"""How do other processes learn of events that were set aside, with all they need to repair them? A dead-letter topic.

A letter is the record as it came (key, value, headers, time), with headers beside it that say why it was set aside:

    featurestore-reason, -detail, -rule-ids (comma separated), -contract, -contract-version
    featurestore-topic, -topic-id, -partition, -offset, -timestamp-us

At least once: the sink's cursor moves when every letter before it is acknowledged, so that a crash writes some again
and leaves none out; (topic id, partition, offset) tells a repetition. Letters of one partition stay in one, in order.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Final

import msgspec

from featurestore.clock import Clock
from featurestore.errors import FeatureStoreError
from featurestore.plan import View
from streaming.judged import Judged, Rejected
from streaming.outbox import Outbox
from streaming.sinks import SinkUnavailable
from streaming.source.records import Header, TopicPartition
from validation.contract import Contract
from validation.place import Place

SUFFIX: Final = ".dead"
PREFIX: Final = "featurestore-"
LARGEST_BYTES: Final = 1_000_000
"""Of key and value together: brokers take records of 1 MiB unless they are told otherwise."""
_LONGEST_DETAIL: Final = 1_000


class DeadLetters(msgspec.Struct, frozen=True):
    """A sink's storage that writes rejected events to a topic; its cursor is the sink's hint, below `root`."""

    name: ClassVar[str] = "dead_letters"
    root: Place
    outbox: Outbox
    topics: Mapping[str, str]
    """Topic -> its dead-letter topic; a topic without one has none."""
    contracts: Mapping[str, Contract]
    clock: Clock

    def folder(self, topic: str) -> Place:
        """Where the cursors of a topic's partitions are."""
        return self.root / topic

    def cursor(self, partition: TopicPartition) -> int | None:  # noqa: ARG002 - the protocol's signature
        """See Storage: the dead-letter topic is not asked, it may be read and trimmed by anybody."""
        return None

    def rows(self, judged: Judged) -> int:
        """Rejected events."""
        return len(judged.rejected) if judged.batch.topic in self.topics else 0

    def size_bytes(self, judged: Judged) -> int:
        """See Storage."""
        return sum(len(item.record.value or b"") + len(item.detail) for item in judged.rejected)

    def store(self, partition: TopicPartition, batches: Sequence[Judged], first: int, last: int) -> None:  # noqa: ARG002 - the protocol's signature
        """See Storage; raises SinkUnavailable where a letter is not acknowledged."""
        topic = self.topics[partition.topic]
        try:
            for judged in batches:
                contract = judged.contract or self.contracts.get(partition.topic)
                for item in judged.rejected:
                    record = item.record
                    whole = len(record.value or b"") + len(record.key or b"") <= LARGEST_BYTES
                    self.outbox.send(
                        topic,
                        record.key,
                        record.value if whole else None,
                        # Retention counts from here: dated as its event, a letter of an old one would be gone at once.
                        timestamp_us=self.clock(),
                        headers=headers_of(item, partition, contract, whole=whole),
                        like=partition.topic,
                        partition=partition.partition,
                    )
            self.outbox.flush()
        except FeatureStoreError as error:
            raise SinkUnavailable(f"{partition}: dead letters are not acknowledged: {error}") from error


def dead_letter_topics(views: Iterable[View]) -> dict[str, str]:
    """Topic -> its dead-letter topic, of those that have one."""
    topics = [view.source.topic for view in views if view.source.topic is not None]
    named = {topic.name: topic.name + SUFFIX if topic.dead_letters is None else topic.dead_letters for topic in topics}
    return {topic: letters for topic, letters in named.items() if letters}


def headers_of(
    item: Rejected, partition: TopicPartition, contract: Contract | None, *, whole: bool
) -> tuple[Header, ...]:
    """The record's own headers, then why it was set aside and where it came from."""
    told = {
        "reason": item.reason,
        "detail": item.detail[:_LONGEST_DETAIL],
        "rule-ids": ",".join(item.rule_ids),
        "contract": "" if contract is None else contract.name,
        "contract-version": "" if contract is None else contract.version,
        "topic": partition.topic,
        "topic-id": partition.topic_id,
        "partition": str(partition.partition),
        "offset": str(item.record.offset),
        "timestamp-us": str(item.record.timestamp_us),
    }
    if not whole:
        # The quarantine has it whole; a record that no broker takes would stop the stream.
        told["value-omitted-bytes"] = str(len(item.record.value or b""))
    own = tuple(header for header in item.record.headers if not header[0].startswith(PREFIX))
    return (*own, *((PREFIX + name, text.encode("utf-8", "replace")) for name, text in told.items()))
