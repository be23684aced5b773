"""How are records written to a topic so that none is lost in silence?

Keys go to partitions by murmur2, as Java's and librdkafka's `murmur2_random` clients place them; records without a key
take turns. The producer is idempotent: a retry never writes a record twice.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from kafka import KafkaAdminClient, KafkaProducer
from kafka.errors import KafkaError, TopicAlreadyExistsError, UnknownTopicOrPartitionError
from kafka.partitioner import murmur2

from featurestore.errors import FeatureStoreError, UsageError
from streaming.source.kafka import KafkaSettings, knock, unavailable
from streaming.source.records import Header

_TURN = 500  # records without a key that go to one partition before the next: full batches compress better

_STRETCH, _STRETCHES = 10_000, 4  # records handed over and not acknowledged: at most five stretches
_DELIVERY_TIMEOUT_S = 120


class NotAcknowledged(FeatureStoreError):
    """Some records were not confirmed by the brokers; they may or may not be in the topic."""

    def __init__(self, topic: str, sent: int, failed: int, first: object) -> None:
        self.topic, self.sent, self.failed = topic, sent, failed
        super().__init__(f"{failed} of {sent} records sent to {topic!r} were not acknowledged; the first: {first!r}")


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key among so many.

    >>> partition_of(b"EWR", 4), partition_of(b"JFK", 4), partition_of(b"", 4)
    (3, 1, 1)
    """
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


class Publisher:
    """Writes records to one topic, batched and compressed; `flush` tells that all of them are safe.

    The topic is created where it does not exist, with `partitions` of them (else as many as topic `like` has) and these
    settings; one that exists and has another number than `partitions` is refused. Raises SourceUnavailable when no
    broker answers.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        *,
        partitions: int | None = None,
        like: str | None = None,
        configs: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.topic = topic
        self._settings = settings
        self._sent = 0
        self._failures: list[Any] = []
        self._stretches: deque[Any] = deque()
        try:
            knock(settings)
            self.partitions = _ensure(settings, topic, partitions, like, configs)
            self._producer = KafkaProducer(
                **settings.client,
                acks="all",
                enable_idempotence=True,
                compression_type="lz4",
                batch_size=1 << 18,
                linger_ms=20,
                max_request_size=1 << 21,
                allow_auto_create_topics=False,
                max_block_ms=2 * settings.request_timeout_ms,
                delivery_timeout_ms=4 * settings.request_timeout_ms,
            )
        except (KafkaError, OSError) as error:
            raise unavailable(settings, error) from error
        self._partition: Callable[[bytes], int] = lru_cache(maxsize=1 << 16)(
            lambda key: partition_of(key, self.partitions)
        )

    def send(
        self,
        key: bytes | None,
        value: bytes | None,
        *,
        timestamp_us: int,
        headers: Sequence[Header] = (),
        partition: int | None = None,
    ) -> None:
        """Hand over one record; its time is kept in milliseconds, floored. Waits while the buffer is full.

        Without `partition` the key decides, and without a key they take turns. Raises NotAcknowledged.
        """
        if partition is None:
            partition = self._partition(key) if key is not None else self._sent // _TURN % self.partitions
        try:
            future = self._producer.send(
                self.topic,
                value=value,
                key=key,
                partition=partition,
                timestamp_ms=timestamp_us // 1000,
                headers=list(headers),
            )
        except KafkaError as error:
            raise NotAcknowledged(self.topic, self._sent + 1, 1, error) from error
        self._sent += 1
        future.add_errback(self._failures.append)
        if self._sent % _STRETCH == 0:
            # The client buffers without bound: wait for a record sent a while ago before taking more.
            self._stretches.append(future)
            if len(self._stretches) > _STRETCHES:
                self._wait(self._stretches.popleft())

    def flush(self) -> int:
        """Wait until everything sent is acknowledged; how many that are so far. Raises NotAcknowledged."""
        try:
            self._producer.flush()
        except KafkaError as error:
            raise NotAcknowledged(self.topic, self._sent, len(self._failures) or self._sent, error) from error
        if self._failures:
            raise NotAcknowledged(self.topic, self._sent, len(self._failures), self._failures[0])
        return self._sent

    def _wait(self, future: Any) -> None:
        try:
            future.get(timeout=_DELIVERY_TIMEOUT_S)
        except KafkaError as error:
            raise NotAcknowledged(self.topic, self._sent, len(self._failures) or 1, error) from error

    def close(self) -> None:
        """Close the connections; what was not flushed gets a few seconds more."""
        self._producer.close(timeout=5)


def _ensure(
    settings: KafkaSettings, topic: str, partitions: int | None, like: str | None, configs: Mapping[str, str]
) -> int:
    """The topic's partition count; the topic is created where it does not exist."""
    admin = KafkaAdminClient(**settings.client)
    try:
        [found] = admin.describe_topics([topic])
        if found["error_code"] == UnknownTopicOrPartitionError.errno:
            alike = [] if like is None else admin.describe_topics([like])[0]["partitions"]
            wanted = {
                "num_partitions": partitions or len(alike) or 1,
                "replication_factor": -1,
                "configs": dict(configs),
            }
            with contextlib.suppress(TopicAlreadyExistsError):  # another process was faster
                admin.create_topics({topic: wanted}, wait_for_metadata=True)
            [found] = admin.describe_topics([topic])
    finally:
        admin.close()
    count = len(found["partitions"])
    if partitions is not None and partitions != count:
        raise UsageError(
            f"topic {topic!r} has {count} partitions, not {partitions}: keys would move; "
            "leave the number out, or let the topic grow on purpose"
        )
    return count
