"""The embedded broker under kafka-python's own clients; the real broker is held to the same where it is there."""

import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import Broker
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import (
    InvalidProducerEpochError,
    KafkaError,
    MessageSizeTooLargeError,
    ProducerFencedError,
    TopicAlreadyExistsError,
)
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

from featurestore.errors import FeatureStoreError
from streaming.embedded.server import EmbeddedBroker

pytestmark = [pytest.mark.kafka, pytest.mark.xdist_group("kafka")]


@pytest.fixture
def broker(each_broker: Broker) -> Broker:
    return each_broker


@pytest.fixture
def producer(broker: Broker) -> Iterator[KafkaProducer]:
    client = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, acks="all", compression_type="lz4")
    yield client
    client.close()


def read_all(servers: str, topic: str, count: int, **settings: object) -> list[object]:
    """All records of a topic from its beginning, as soon as there are `count`, or what came within 10 s."""
    consumer = KafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest", **settings)
    try:
        consumer.assign([TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()])
        records: list[object] = []
        deadline = time.monotonic() + 10
        while len(records) < count and time.monotonic() < deadline:
            for found in consumer.poll(200).values():
                records += found
        return records
    finally:
        consumer.close()


def test_keys_go_to_javas_partitions(broker: Broker, producer: KafkaProducer) -> None:
    """murmur2: the same key, the same partition, whatever client wrote it."""
    topic = broker.topic(8)
    places = {key: producer.send(topic, key=key, value=b"v").get(10).partition for key in (b"21", b"foobar", b"EWR")}
    # Published by Kafka's own tests: murmur2 of "21" is -973932308 and of "foobar" -790332482.
    assert places[b"21"] == (-973932308 & 0x7FFFFFFF) % 8
    assert places[b"foobar"] == (-790332482 & 0x7FFFFFFF) % 8


def test_large_and_compressed_messages_pass(broker: Broker, producer: KafkaProducer) -> None:
    """Up to the topic's limit; beyond it the producer is told."""
    topic = broker.topic(max_message_bytes="2000")
    producer.send(topic, value=b"x" * 100_000).get(10)  # compresses well
    noise = bytes(range(256)) * 40
    with pytest.raises(MessageSizeTooLargeError):
        producer.send(topic, value=b"".join(bytes([a ^ b]) for a in noise[:60] for b in noise[:256])).get(10)
    assert len(read_all(broker.bootstrap_servers, topic, 1)) == 1


def test_offsets_are_found_by_time(broker: Broker, producer: KafkaProducer) -> None:
    """The first record at or after an instant; none after the last."""
    topic = broker.topic()
    for number in range(5):
        producer.send(topic, value=b"v", timestamp_ms=1_000 + number * 10).get(10)
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers)
    tp = TopicPartition(topic, 0)
    assert consumer.offsets_for_times({tp: 1_011})[tp].offset == 2
    assert consumer.offsets_for_times({tp: 1_041})[tp] is None
    assert (consumer.beginning_offsets([tp]), consumer.end_offsets([tp])) == ({tp: 0}, {tp: 5})
    consumer.close()


def test_a_second_transactional_producer_fences_the_first(broker: Broker) -> None:
    """The first one's open transaction is aborted and it can commit nothing more."""
    topic = broker.topic()
    name = f"fence-{topic}"
    old = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, transactional_id=name)
    old.init_transactions()
    old.begin_transaction()
    old.send(topic, value=b"zombie").get(10)
    new = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, transactional_id=name)
    new.init_transactions()
    with pytest.raises((ProducerFencedError, InvalidProducerEpochError)):
        old.commit_transaction()
    new.begin_transaction()
    new.send(topic, value=b"new")
    new.commit_transaction()
    found = read_all(broker.bootstrap_servers, topic, 1, isolation_level="read_committed")
    assert [record.value for record in found] == [b"new"]  # type: ignore[attr-defined]
    new.close()
    old.close(timeout=1)


def test_offsets_committed_in_a_transaction_live_and_die_with_it(broker: Broker) -> None:
    """Aborted: the group is where it was; committed: it moved."""
    topic = broker.topic()
    group, tp = f"g-{topic}", TopicPartition(topic, 0)
    client = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, transactional_id=f"o-{topic}")
    client.init_transactions()
    # A reader of committed records asks for stable offsets: it waits for the transaction's markers.
    settings = {"isolation_level": "read_committed", "enable_auto_commit": False}
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, group_id=group, **settings)
    consumer.assign([tp])
    seen = []
    for offset, commit in ((3, False), (5, True)):
        client.begin_transaction()
        client.send(topic, value=b"v").get(10)
        client.send_offsets_to_transaction(
            {tp: OffsetAndMetadata(offset, "", -1)}, ConsumerGroupMetadata(group, -1, "", None)
        )
        if commit:
            client.commit_transaction()
        else:
            client.abort_transaction()
        seen.append(consumer.committed(tp))
    assert seen == [None, 5]
    consumer.close()
    client.close()


def test_a_topic_cannot_be_made_twice(broker: Broker) -> None:
    """Nor with an illegal name."""
    topic = broker.topic()
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    with pytest.raises(TopicAlreadyExistsError):
        admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}})
    with pytest.raises(KafkaError):
        admin.create_topics({"not/legal": {"num_partitions": 1, "replication_factor": 1}})
    admin.close()


def test_groups_are_told_apart_and_can_be_forgotten(broker: Broker, producer: KafkaProducer) -> None:
    """A group's committed offset survives its members, until it is deleted."""
    topic = broker.topic()
    producer.send(topic, value=b"v").get(10)
    group, tp = f"left-{topic}", TopicPartition(topic, 0)
    settings = {"bootstrap_servers": broker.bootstrap_servers, "group_id": group, "enable_auto_commit": False}
    consumer = KafkaConsumer(auto_offset_reset="earliest", **settings)
    consumer.assign([tp])
    deadline = time.monotonic() + 20
    while not consumer.poll(200) and time.monotonic() < deadline:
        pass
    consumer.commit()
    consumer.close()
    later = KafkaConsumer(**settings)
    assert later.committed(tp) == 1
    later.close()
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    admin.delete_groups([group])
    admin.close()
    later = KafkaConsumer(**settings)
    assert later.committed(tp) is None
    later.close()


def test_an_abandoned_transaction_ends_by_itself() -> None:
    """A producer that died must not hold readers back for ever."""
    with EmbeddedBroker() as running:
        servers = str(running.address)
        dead = KafkaProducer(bootstrap_servers=servers, transactional_id="dead", transaction_timeout_ms=300)
        dead.init_transactions()
        dead.begin_transaction()
        dead.send("t", value=b"never").get(10)
        alive = KafkaProducer(bootstrap_servers=servers)
        alive.send("t", value=b"later").get(10)
        found = read_all(servers, "t", 1, isolation_level="read_committed")
        assert [record.value for record in found] == [b"later"]  # type: ignore[attr-defined]
        with pytest.raises(KafkaError):
            dead.commit_transaction()
        alive.close()
        dead.close(timeout=1)


def test_a_broker_on_disk_comes_back_as_it_was(tmp_path: Path) -> None:
    """Topics with their ids and settings, records, committed offsets; an open transaction is aborted."""
    tp = TopicPartition("kept", 1)
    with EmbeddedBroker(tmp_path) as running:
        servers = str(running.address)
        admin = KafkaAdminClient(bootstrap_servers=servers)
        configs = {"message.timestamp.type": "LogAppendTime"}
        admin.create_topics({"kept": {"num_partitions": 2, "replication_factor": 1, "configs": configs}})
        before = admin.describe_topics(["kept"])
        admin.close()
        open_one = KafkaProducer(bootstrap_servers=servers, transactional_id="x")
        open_one.init_transactions()
        open_one.begin_transaction()
        open_one.send("kept", value=b"open", partition=1).get(10)
        plain = KafkaProducer(bootstrap_servers=servers)
        plain.send("kept", value=b"kept", partition=1).get(10)
        plain.close()
        consumer = KafkaConsumer(bootstrap_servers=servers, group_id="g", enable_auto_commit=False)
        consumer.assign([tp])
        consumer.seek(tp, 1)
        consumer.commit()
        consumer.close()
    with EmbeddedBroker(tmp_path) as running:
        servers = str(running.address)
        admin = KafkaAdminClient(bootstrap_servers=servers)
        assert admin.describe_topics(["kept"]) == before
        admin.close()
        found = read_all(servers, "kept", 1, isolation_level="read_committed")
        assert [record.value for record in found] == [b"kept"]  # type: ignore[attr-defined]
        consumer = KafkaConsumer(bootstrap_servers=servers, group_id="g", enable_auto_commit=False)
        assert consumer.committed(tp) == 1
        consumer.close()
    open_one.close(timeout=1)


def test_a_folder_has_one_broker(tmp_path: Path) -> None:
    """Two would write over each other."""
    with EmbeddedBroker(tmp_path), pytest.raises(FeatureStoreError, match="another broker keeps its data in"):
        EmbeddedBroker(tmp_path).start()
    with EmbeddedBroker(tmp_path):
        pass


def test_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The producer tries again; once there is room, everything is there once and in order."""
    full = threading.Event()
    write = os.pwrite

    def short_write(file: int, data: bytes, at: int) -> int:
        if full.is_set():
            write(file, data[:10], at)
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data, at)

    monkeypatch.setattr(os, "pwrite", short_write)
    with EmbeddedBroker(tmp_path) as running:
        client = KafkaProducer(bootstrap_servers=str(running.address))
        client.send("t", value=b"first").get(10)
        full.set()
        waiting = client.send("t", value=b"second")
        time.sleep(0.5)
        assert not waiting.is_done
        full.clear()
        waiting.get(10)
        client.close()
    with EmbeddedBroker(tmp_path) as running:
        found = read_all(str(running.address), "t", 2)
        assert [record.value for record in found] == [b"first", b"second"]  # type: ignore[attr-defined]


def test_a_taken_port_is_one_clear_line() -> None:
    """Port 0 is the way out."""
    with EmbeddedBroker() as running, pytest.raises(FeatureStoreError, match=f"{running.address}.*choose another port"):
        EmbeddedBroker(port=running.address.port).start()


@pytest.mark.parametrize(
    "rubbish", [b"GET / HTTP/1.1\r\n\r\n", struct.pack(">i", -1), struct.pack(">ihhi", 8, 999, 0, 1)]
)
def test_rubbish_closes_that_connection_alone(rubbish: bytes) -> None:
    """The next client is served."""
    with EmbeddedBroker() as running:
        with socket.create_connection(running.address, 5) as stranger:
            stranger.sendall(rubbish)
            assert stranger.recv(1) == b""
        client = KafkaProducer(bootstrap_servers=str(running.address))
        client.send("t", value=b"v").get(10)
        client.close()
