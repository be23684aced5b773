"""What is published is acknowledged, in the right partition, with the event's time; or the publisher says so."""

from datetime import UTC, datetime
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from brokers import Broker
from kafka import KafkaConsumer, TopicPartition

from featurestore.errors import SourceError, UsageError
from streaming.produce import produce_file
from streaming.source.kafka import KafkaSettings
from streaming.source.publisher import NotAcknowledged, Publisher, partition_of
from streaming.source.records import SourceUnavailable, UnknownColumn

pytestmark = [pytest.mark.kafka, pytest.mark.xdist_group("kafka")]


@pytest.fixture
def broker(each_broker: Broker) -> Broker:
    return each_broker


@pytest.fixture
def settings(broker: Broker) -> KafkaSettings:
    return KafkaSettings(broker.bootstrap_servers)


def records_of(settings: KafkaSettings, topic: str) -> list[tuple[int, int, bytes | None, bytes | None, int]]:
    """Everything in a topic: partition, offset, key, value, time in ms."""
    consumer = KafkaConsumer(auto_offset_reset="earliest", **settings.client)
    partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
    consumer.assign(partitions)
    ends = consumer.end_offsets(partitions)
    found = []
    while any(consumer.position(tp) < ends[tp] for tp in partitions):
        for records in consumer.poll(200).values():
            found += [(r.partition, r.offset, r.key, r.value, r.timestamp) for r in records]
    consumer.close()
    return sorted(found)


def test_the_vectors_that_kafka_publishes() -> None:
    """murmur2, sign bit cleared, modulo: as every Java client places keys."""
    published = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
    for key, murmur in published.items():
        assert partition_of(key, 1 << 20) == (murmur & 0x7FFFFFFF) % (1 << 20)


def test_a_file_becomes_messages(tmp_path: Path, settings: KafkaSettings, broker: Broker) -> None:
    """Every row once, in order within its key, JSON as written, time from its column, null keys spread."""
    path = tmp_path / "events.parquet"
    count = 2_500
    rows = {
        "n": list(range(count)),
        "who": [None if n % 5 == 0 else f"k{n % 7}" for n in range(count)],
        "ts": pa.array([1_700_000_000_000_000 + n * 1_500 for n in range(count)], pa.timestamp("us", tz="UTC")),
    }
    pq.write_table(pa.table(rows), path, row_group_size=1_000)
    publisher = Publisher(settings, broker.topic(3))
    done = produce_file(path, publisher, key="who", timestamp="ts")
    publisher.close()
    assert (done.messages, done.partitions) == (count, 3)
    found = records_of(settings, done.topic)
    events = [(partition, key, orjson.loads(value or b""), ms) for partition, _, key, value, ms in found]
    assert sorted(event["n"] for _, _, event, _ in events) == list(range(count))
    for partition, key, event, ms in events:
        assert key == (event["who"].encode() if event["who"] else None)
        assert key is None or partition == partition_of(key, 3)
        assert ms == (1_700_000_000_000_000 + event["n"] * 1_500) // 1_000
        assert datetime.fromisoformat(event["ts"]).timestamp() * 1e6 == 1_700_000_000_000_000 + event["n"] * 1_500
    for partition in range(3):
        order = [event["n"] for where, _, event, _ in events if where == partition]
        assert order == sorted(order)
    assert {partition for partition, key, _, _ in events if key is None} == {0, 1, 2}


def test_a_topic_is_created_with_the_partitions_asked_for(settings: KafkaSettings, broker: Broker) -> None:
    """A topic that exists with another number is refused: keys would move."""
    topic = f"{broker.topic()}-new"
    Publisher(settings, topic, partitions=3).close()
    assert Publisher(settings, topic).partitions == 3
    with pytest.raises(UsageError, match=f"'{topic}' has 3 partitions, not 4"):
        Publisher(settings, topic, partitions=4)


def test_a_refused_record_is_told(settings: KafkaSettings, broker: Broker) -> None:
    """Flush never says that all is well when a broker refused something."""
    publisher = Publisher(settings, broker.topic(max_message_bytes="100"))
    publisher.send(None, b"fits", timestamp_us=0)
    assert publisher.flush() == 1
    publisher.send(None, bytes(range(256)) * 4, timestamp_us=0)
    with pytest.raises(NotAcknowledged, match="1 of 2 records"):
        publisher.flush()
    publisher.close()


def test_bad_files_are_named_before_anything_is_sent(tmp_path: Path, settings: KafkaSettings, broker: Broker) -> None:
    """A column that is not there, a file that is not there."""
    path = tmp_path / "events.parquet"
    pq.write_table(pa.table({"ts": pa.array([datetime(2024, 1, 1, tzinfo=UTC)])}), path)
    publisher = Publisher(settings, broker.topic())
    with pytest.raises(UnknownColumn, match="no column 'who'"):
        produce_file(path, publisher, key="who", timestamp="ts")
    with pytest.raises(SourceError, match="there is no file"):
        produce_file(tmp_path / "none.parquet", publisher, key=None, timestamp="ts")
    publisher.close()
    assert records_of(settings, publisher.topic) == []


def test_no_broker_is_one_clear_line() -> None:
    """And the wait is short."""
    with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1:1 did not answer"):
        Publisher(KafkaSettings("127.0.0.1:1"), "t")
