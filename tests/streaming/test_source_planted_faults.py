"""The source's promises can fail: each of these broken readers does what the tests of the sound one forbid."""

import time
from collections.abc import Iterator

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

import streaming.source.kafka as room
from streaming.embedded.server import EmbeddedBroker
from streaming.source.kafka import KafkaSettings, KafkaSource
from streaming.source.records import Assigned, Batch

pytestmark = [pytest.mark.kafka, pytest.mark.xdist_group("kafka")]


@pytest.fixture
def servers() -> Iterator[str]:
    with EmbeddedBroker() as running:
        yield str(running.address)


def write(servers: str, *values: bytes, abort: bool = False) -> None:
    settings = {"transactional_id": "x"} if abort else {}
    producer = KafkaProducer(bootstrap_servers=servers, **settings)
    if abort:
        producer.init_transactions()
        producer.begin_transaction()
    for value in values:
        producer.send("t", value=value)
    producer.flush()
    if abort:
        producer.abort_transaction()
    producer.close()


def batches_from(source: KafkaSource, offset: int, *, until_s: float = 2) -> list[Batch]:
    """What comes within the time, from an offset on."""
    found: list[Batch] = []
    deadline = time.monotonic() + until_s
    while time.monotonic() < deadline:
        found += source.poll(50)
        for change in source.drain_rebalances():
            for each in change.partitions if isinstance(change, Assigned) else ():
                source.seek(each, offset)
    source.close()
    return found


class LastRecordPlusOne(KafkaSource):
    """Takes the last record's offset + 1 for the position, and drops polls without records."""

    def poll(self, timeout_ms: int) -> list[Batch]:
        return [
            Batch(b.topic, b.topic_id, b.partition, b.records, b.position_before, b.records[-1].offset + 1)
            for b in super().poll(timeout_ms)
            if b.records
        ]


def test_last_record_plus_one_never_passes_an_abort(servers: str) -> None:
    """Such a reader's stored offset stays before the hole for ever; the sound one's moves."""
    write(servers, b"a")
    write(servers, b"never", abort=True)
    broken = batches_from(LastRecordPlusOne(KafkaSettings(servers), ["t"], group="broken"), 0)
    sound = batches_from(KafkaSource(KafkaSettings(servers), ["t"], group="sound"), 0)
    assert broken[-1].position_after == 1
    assert sound[-1].position_after == 3


@pytest.mark.parametrize(("fault", "seen"), [("auto_offset_reset", b"2"), ("isolation_level", b"never")])
def test_a_wrong_setting_is_seen(servers: str, monkeypatch: pytest.MonkeyPatch, fault: str, seen: bytes) -> None:
    """A silent reset would skip what retention took; uncommitted reading would deliver what was aborted."""
    broken = {"auto_offset_reset": "earliest", "isolation_level": "read_uncommitted"}[fault]

    def consumer(**settings: object) -> KafkaConsumer:
        return KafkaConsumer(**{**settings, fault: broken})

    monkeypatch.setattr(room, "KafkaConsumer", consumer)
    write(servers, b"0", b"1", b"2")
    write(servers, b"never", abort=True)
    admin = KafkaAdminClient(bootstrap_servers=servers)
    admin.delete_records({TopicPartition("t", 0): 2})
    admin.close()
    start = 1 if fault == "auto_offset_reset" else 2
    batches = batches_from(KafkaSource(KafkaSettings(servers), ["t"], group="g"), start)
    assert seen in [record.value for batch in batches for record in batch.records]


def test_without_asking_again_a_grown_topic_stalls(servers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client loses its rejoin; when this fails, a newer kafka-python has made the workaround superfluous."""
    write(servers, b"a")
    source = KafkaSource(KafkaSettings(servers, metadata_age_ms=200), ["t"], group="g")
    admin = KafkaAdminClient(bootstrap_servers=servers)
    deadline, mine = time.monotonic() + 10, 0
    while not mine and time.monotonic() < deadline:
        source.poll(50)
        for change in source.drain_rebalances():
            mine = len(change.partitions)
            for each in change.partitions:
                source.seek(each, 0)
    assert mine == 1
    monkeypatch.setattr(room, "keep_join", lambda consumer: None)
    admin.create_partitions({"t": 3})
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        source.poll(1)
        for change in source.drain_rebalances():
            mine = len(change.partitions) if isinstance(change, Assigned) else 0
    assert mine != 3
    monkeypatch.undo()
    source.close()
    admin.close()
