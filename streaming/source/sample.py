"""What do a topic's newest messages look like? Read once, by nobody's group: no reader is disturbed."""

from collections.abc import Iterator

from kafka import KafkaConsumer
from kafka import TopicPartition as ClientPartition
from kafka.errors import KafkaError

from featurestore.errors import UnknownName
from streaming.source.kafka import KafkaSettings
from streaming.source.records import SourceUnavailable


def newest_values(settings: KafkaSettings, topic: str, count: int) -> Iterator[bytes]:
    """The values of up to `count` messages from the ends of the topic's partitions, in no order among these.

    Ends at the offsets that were the ends when it began; messages without a value are left out. Raises UnknownName for
    a topic that does not exist, SourceUnavailable.
    """
    try:
        consumer = KafkaConsumer(**settings.client, enable_auto_commit=False, isolation_level="read_committed")
    except KafkaError as error:
        raise _unavailable(settings, error) from error
    try:
        numbers = consumer.partitions_for_topic(topic)
        if not numbers:
            raise UnknownName("topic", topic, consumer.topics())
        partitions = [ClientPartition(topic, number) for number in sorted(numbers)]
        consumer.assign(partitions)
        first, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
        share = -(-count // len(partitions))
        for partition in partitions:
            consumer.seek(partition, max(first[partition], ends[partition] - share))
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            polled = consumer.poll(timeout_ms=settings.request_timeout_ms, max_records=min(count, 500))
            for partition, records in polled.items():
                for record in records:
                    if count and record.offset < ends[partition] and record.value is not None:
                        count -= 1
                        yield record.value
            if not count:
                return
    except KafkaError as error:
        raise _unavailable(settings, error) from error
    finally:
        consumer.close()


def _unavailable(settings: KafkaSettings, error: Exception) -> SourceUnavailable:
    return SourceUnavailable(
        f"Kafka at {settings.bootstrap_servers} did not answer ({type(error).__name__}: {error}); "
        "is it running, and is KAFKA_BOOTSTRAP_SERVERS right?"
    )
