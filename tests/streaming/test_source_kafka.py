"""Reading Kafka: every promise of a source, on the real broker and on the embedded one."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from brokers import Broker
from kafka import KafkaAdminClient, KafkaProducer
from kafka import TopicPartition as ClientPartition

from featurestore.errors import UnknownName
from streaming.embedded.server import EmbeddedBroker
from streaming.source.kafka import KafkaSettings, KafkaSource
from streaming.source.records import (
    Assigned,
    Batch,
    NotAssigned,
    OffsetGone,
    Revoked,
    SourceUnavailable,
    TopicPartition,
)

pytestmark = [pytest.mark.kafka, pytest.mark.xdist_group("kafka")]

Open = Callable[..., KafkaSource]


@pytest.fixture
def broker(each_broker: Broker) -> Broker:
    return each_broker


@pytest.fixture
def producer(broker: Broker) -> Iterator[KafkaProducer]:
    client = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, acks="all", linger_ms=0)
    yield client
    client.close()


@pytest.fixture
def transactional(broker: Broker) -> Iterator[KafkaProducer]:
    client = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, transactional_id=f"x-{time.time_ns()}")
    client.init_transactions()
    yield client
    client.close()


@pytest.fixture
def open_source(broker: Broker) -> Iterator[Open]:
    opened: list[KafkaSource] = []

    def start(topic: str, *, group: str | None = None, instance_id: str | None = None, **settings: int) -> KafkaSource:
        chosen = KafkaSettings(broker.bootstrap_servers, **{"session_timeout_ms": 6_000, **settings})
        opened.append(KafkaSource(chosen, [topic], group=group or f"g-{time.time_ns()}", instance_id=instance_id))
        return opened[-1]

    yield start
    for source in opened:
        source.close()


def claim(*sources: KafkaSource, offset: int = 0, timeout_s: float = 20) -> dict[TopicPartition, KafkaSource]:
    """Poll all until each has partitions, sought to `offset`; who owns what."""
    owners: dict[TopicPartition, KafkaSource] = {}
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and {id(s) for s in owners.values()} != {id(s) for s in sources}:
        for source in sources:
            source.poll(50)
            for change in source.drain_rebalances():
                for partition in change.partitions:
                    if isinstance(change, Assigned):
                        source.seek(partition, offset)
                        owners[partition] = source
                    elif owners.get(partition) is source:
                        del owners[partition]
    return owners


def read(source: KafkaSource, count: int, timeout_s: float = 20) -> list[Batch]:
    """Poll until `count` records came, checking continuity on the way."""
    batches: list[Batch] = []
    ends: dict[int, int] = {}
    deadline = time.monotonic() + timeout_s
    while sum(len(batch.records) for batch in batches) < count and time.monotonic() < deadline:
        for batch in source.poll(100):
            assert ends.setdefault(batch.partition, batch.position_before) == batch.position_before
            ends[batch.partition] = batch.position_after
            batches.append(batch)
    return batches


def position_of(source: KafkaSource, wanted: int, timeout_s: float = 20) -> int:
    """Poll until the position of the only partition is `wanted`; the last one seen."""
    last, deadline = -1, time.monotonic() + timeout_s
    while last != wanted and time.monotonic() < deadline:
        for batch in source.poll(100):
            last = batch.position_after
    return last


def values(batches: list[Batch]) -> list[bytes | None]:
    return [record.value for batch in batches for record in batch.records]


def test_records_arrive_whole(broker: Broker, producer: KafkaProducer, open_source: Open) -> None:
    """Key, value, headers, time and offset are what the producer wrote; time is in microseconds."""
    topic = broker.topic()
    producer.send(topic, key=b"k", value=b"v", timestamp_ms=1_700_000_000_123, headers=[("h", b"1")])
    producer.send(topic, key=b"", value=None, timestamp_ms=5)
    producer.flush()
    source = open_source(topic)
    claim(source)
    [first, second] = [record for batch in read(source, 2) for record in batch.records]
    assert (first.key, first.value, first.timestamp_us, first.headers, first.offset) == (
        b"k", b"v", 1_700_000_000_123_000, (("h", b"1"),), 0,
    )  # fmt: skip
    assert (second.key, second.value, second.timestamp_us, second.headers) == (b"", None, 5_000, ())


def test_the_topic_id_tells_a_topic_from_its_successor(broker: Broker, open_source: Open) -> None:
    """A topic that was deleted and made again under its name has another id."""
    topic = broker.topic()
    [before] = open_source(topic).partitions_of(topic)
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    admin.delete_topics([topic])
    deadline = time.monotonic() + 20
    while topic in admin.list_topics() and time.monotonic() < deadline:
        time.sleep(0.05)
    admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True)
    admin.close()
    [after] = open_source(topic).partitions_of(topic)
    assert len(before.topic_id) == 36
    assert before.topic_id != after.topic_id


def test_nothing_is_delivered_before_the_first_seek(broker: Broker, producer: KafkaProducer, open_source: Open) -> None:
    """An assigned partition waits for the reader, and other partitions go on."""
    topic = broker.topic()
    producer.send(topic, value=b"v").get(10)
    source = open_source(topic)
    deadline = time.monotonic() + 20
    rebalances = []
    while not rebalances and time.monotonic() < deadline:
        assert source.poll(50) == []
        rebalances = source.drain_rebalances()
    assert source.poll(300) == []
    [assigned] = rebalances
    source.seek(assigned.partitions[0], 0)
    assert values(read(source, 1)) == [b"v"]


def test_reading_starts_where_it_was_sought(broker: Broker, producer: KafkaProducer, open_source: Open) -> None:
    """In the middle of a batch too."""
    topic = broker.topic()
    for number in range(10):
        producer.send(topic, value=b"%d" % number)
    producer.flush()
    source = open_source(topic)
    claim(source, offset=7)
    assert values(read(source, 3)) == [b"7", b"8", b"9"]


def test_small_polls_are_contiguous(broker: Broker, producer: KafkaProducer, open_source: Open) -> None:
    """max_records cuts batches anywhere; each begins where the last ended."""
    topic = broker.topic()
    for number in range(100):
        producer.send(topic, value=b"%d" % number)
    producer.flush()
    source = open_source(topic, max_records=7)
    claim(source)
    batches = read(source, 100)
    assert values(batches) == [b"%d" % number for number in range(100)]
    assert max(len(batch.records) for batch in batches) == 7


def test_aborted_records_leave_a_hole(broker: Broker, transactional: KafkaProducer, open_source: Open) -> None:
    """Records of aborted transactions are never delivered, and the position passes them and the markers."""
    topic = broker.topic()
    for number, commit in enumerate((True, False, True)):
        transactional.begin_transaction()
        transactional.send(topic, value=b"a%d" % number)
        transactional.send(topic, value=b"b%d" % number)
        transactional.flush()
        if commit:
            transactional.commit_transaction()
        else:
            transactional.abort_transaction()
    source = open_source(topic)
    [partition] = claim(source)
    batches = read(source, 4)
    assert values(batches) == [b"a0", b"b0", b"a2", b"b2"]
    last = batches[-1].position_after
    assert (last if last == 9 else position_of(source, 9)) == 9
    assert source.end_offsets([partition]) == {partition: 9}


def test_an_abort_alone_moves_the_position_without_a_record(
    broker: Broker, transactional: KafkaProducer, open_source: Open
) -> None:
    """An empty batch tells how far nothing was: the next commit starts from there."""
    topic = broker.topic()
    transactional.begin_transaction()
    transactional.send(topic, value=b"x")
    transactional.flush()
    transactional.abort_transaction()
    source = open_source(topic)
    claim(source)
    deadline = time.monotonic() + 20
    batches: list[Batch] = []
    while (not batches or batches[-1].position_after < 2) and time.monotonic() < deadline:
        batches += source.poll(100)
    assert values(batches) == []
    assert (batches[0].position_before, batches[-1].position_after) == (0, 2)


def test_an_open_transaction_holds_readers_back(
    broker: Broker, producer: KafkaProducer, transactional: KafkaProducer, open_source: Open
) -> None:
    """What comes after the first undecided record waits with it; end_offsets agrees."""
    topic = broker.topic()
    transactional.begin_transaction()
    transactional.send(topic, value=b"open")
    transactional.flush()
    producer.send(topic, value=b"later").get(10)
    source = open_source(topic)
    [partition] = claim(source)
    assert source.poll(500) == []
    assert source.end_offsets([partition]) == {partition: 0}
    transactional.commit_transaction()
    assert values(read(source, 2)) == [b"open", b"later"]


def test_an_offset_that_retention_took_is_named(broker: Broker, producer: KafkaProducer, open_source: Open) -> None:
    """No silent reset: the message says what the partition still holds."""
    topic = broker.topic()
    for number in range(10):
        producer.send(topic, value=b"%d" % number)
    producer.flush()
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    admin.delete_records({ClientPartition(topic, 0): 4})
    admin.close()
    source = open_source(topic)
    [partition] = claim(source, offset=2)
    with pytest.raises(OffsetGone, match="no offset 2: it holds 4 to 10"):
        read(source, 1)
    assert source.beginning_offsets([partition]) == {partition: 4}
    source.seek(partition, 4)
    assert values(read(source, 6))[0] == b"4"


def test_an_offset_beyond_the_end_is_named(broker: Broker, open_source: Open) -> None:
    """A topic made anew under an old offset does not look like an idle one."""
    topic = broker.topic()
    source = open_source(topic)
    claim(source, offset=5)
    with pytest.raises(OffsetGone, match="no offset 5: it holds 0 to 0"):
        read(source, 1)


def test_partitions_are_shared_and_handed_over(broker: Broker, producer: KafkaProducer, open_source: Open) -> None:
    """Two members own all partitions once; when one leaves, the other is told to claim its share."""
    topic = broker.topic(4)
    first = open_source(topic, group="shared-" + topic)
    assert len(claim(first)) == 4
    second = open_source(topic, group="shared-" + topic)
    owners = claim(first, second)
    assert sorted(partition.partition for partition in owners) == [0, 1, 2, 3]
    second.close()
    deadline, mine = time.monotonic() + 20, 0
    while mine < 4 and time.monotonic() < deadline:
        first.poll(100)
        for change in first.drain_rebalances():
            mine = len(change.partitions) if isinstance(change, Assigned) else 0
    assert mine == 4


def test_a_moved_partition_must_be_sought_again(broker: Broker, producer: KafkaProducer, open_source: Open) -> None:
    """After a rebalance a partition that came back delivers nothing until it is claimed anew."""
    topic = broker.topic(2)
    first = open_source(topic, group="moved-" + topic)
    claim(first)
    second = open_source(topic, group="moved-" + topic)
    deadline = time.monotonic() + 20
    changes: list[object] = []
    while not any(isinstance(each, Assigned) for each in changes) and time.monotonic() < deadline:
        second.poll(50)
        first.poll(50)
        changes += first.drain_rebalances()
    assert isinstance(changes[0], Revoked)
    for number in range(20):
        producer.send(topic, value=b"v", partition=number % 2)
    producer.flush()
    assert first.poll(500) == []


def test_a_topic_that_grows_is_assigned_anew(broker: Broker, open_source: Open) -> None:
    """Even when every poll is shorter than the rejoin that the growth sets off."""
    topic = broker.topic(1)
    source = open_source(topic, metadata_age_ms=200)
    assert len(claim(source)) == 1
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    admin.create_partitions({topic: 3})
    admin.close()
    deadline, mine = time.monotonic() + 20, 0
    while mine < 3 and time.monotonic() < deadline:
        source.poll(1)
        for change in source.drain_rebalances():
            mine = len(change.partitions) if isinstance(change, Assigned) else 0
    assert mine == 3


def test_a_group_settles_however_short_the_polls(broker: Broker, open_source: Open) -> None:
    """A join that ends while the reader works is not begun again: nobody is made to rejoin for ever."""
    topic = broker.topic(4)
    first, second = (open_source(topic, group="short-" + topic) for _ in range(2))
    owned: dict[int, int] = {}
    settled, deadline = 0, time.monotonic() + 30
    while settled < 20 and time.monotonic() < deadline:
        settled += sum(owned.values()) == 4
        for source in (first, second):
            source.poll(1)
            time.sleep(0.03)  # the reader works: a join under way ends meanwhile
            for change in source.drain_rebalances():
                settled = 0
                owned[id(source)] = len(change.partitions) if isinstance(change, Assigned) else 0
    assert (settled, owned) == (20, {id(first): 2, id(second): 2})


def test_a_static_member_comes_back_to_its_partitions(broker: Broker, open_source: Open) -> None:
    """A restart within the session disturbs nobody: the other member sees no rebalance."""
    topic = broker.topic(2)
    group = "static-" + topic
    a = open_source(topic, group=group, instance_id="a")
    b = open_source(topic, group=group, instance_id="b")
    owners = claim(a, b)
    held = {partition for partition, owner in owners.items() if owner is a}
    a.close()
    again = open_source(topic, group=group, instance_id="a")
    deadline, back = time.monotonic() + 20, set()
    while not back and time.monotonic() < deadline:
        again.poll(50)
        b.poll(50)
        for change in again.drain_rebalances():
            back |= set(change.partitions)
    assert back == held
    assert b.drain_rebalances() == []


def test_a_paused_partition_keeps_its_position(broker: Broker, producer: KafkaProducer, open_source: Open) -> None:
    """Backpressure loses nothing."""
    topic = broker.topic()
    source = open_source(topic)
    [partition] = claim(source)
    source.pause([partition])
    producer.send(topic, value=b"v").get(10)
    assert source.poll(300) == []
    source.resume([partition])
    assert values(read(source, 1)) == [b"v"]


def test_a_megabyte_message_passes(broker: Broker, producer: KafkaProducer, open_source: Open) -> None:
    """It is larger than what a fetch of one partition asks for."""
    topic = broker.topic()
    producer.send(topic, value=b"x" * 1_000_000).get(10)
    producer.send(topic, value=b"after").get(10)
    source = open_source(topic, max_partition_bytes=1_000)
    claim(source)
    assert [len(value or b"") for value in values(read(source, 2))] == [1_000_000, 5]


def test_a_broker_that_stamps_arrival_is_believed(broker: Broker, producer: KafkaProducer, open_source: Open) -> None:
    """With LogAppendTime the record's time is its append, whatever the producer said."""
    topic = broker.topic(message_timestamp_type="LogAppendTime")
    before = time.time_ns() // 1_000_000 * 1_000
    producer.send(topic, value=b"v", timestamp_ms=5).get(10)
    source = open_source(topic)
    claim(source)
    [batch] = read(source, 1)
    assert before <= batch.records[0].timestamp_us <= time.time_ns() // 1_000


def test_a_deleted_topic_does_not_stop_the_others(broker: Broker, producer: KafkaProducer, open_source: Open) -> None:
    """The other topic goes on."""
    kept, gone = broker.topic(), broker.topic()
    source = KafkaSource(
        KafkaSettings(broker.bootstrap_servers, metadata_age_ms=200, session_timeout_ms=6_000),
        [kept, gone],
        group="g-" + gone,
    )
    held = claim(source)
    assert {partition.topic for partition in held} == {kept, gone}
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    admin.delete_topics([gone])
    admin.close()
    producer.send(kept, value=b"v").get(10)
    deadline, mine, seen = time.monotonic() + 40, set(held), list[bytes | None]()
    # The group may be put together more than once before all have heard: whoever is assigned seeks, every time.
    while not seen and time.monotonic() < deadline:
        seen += values(source.poll(50))
        for change in source.drain_rebalances():
            mine = mine | set(change.partitions) if isinstance(change, Assigned) else mine - set(change.partitions)
            for partition in mine if isinstance(change, Assigned) else ():
                source.seek(partition, 0)
    assert set(seen) == {b"v"}
    source.close()


def test_an_unknown_topic_is_named(broker: Broker, open_source: Open) -> None:
    """And it is not created by asking."""
    with pytest.raises(UnknownName, match="no topic 'nowhere'"):
        open_source("nowhere")
    with pytest.raises(UnknownName):
        open_source("nowhere")


def test_seeking_what_is_not_assigned_is_refused(broker: Broker, open_source: Open) -> None:
    """Before the assignment came, and after it went."""
    topic = broker.topic()
    source = open_source(topic)
    with pytest.raises(NotAssigned, match=f"{topic}-9"):
        source.seek(TopicPartition(topic, "x", 9), 0)


def test_a_cluster_that_is_not_there_is_named() -> None:
    """One line that says where was looked."""
    with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1:1 did not answer"):
        KafkaSource(KafkaSettings("127.0.0.1:1", request_timeout_ms=500), ["t"], group="g")


def test_a_broker_that_restarts_is_found_again(tmp_path: Path) -> None:
    """The reader sees an idle spell, no error, and goes on from its position: nothing lost, nothing twice."""
    running = EmbeddedBroker(tmp_path).start()
    port = running.address.port
    servers = str(running.address)
    writer = KafkaProducer(bootstrap_servers=servers)
    writer.send("t", value=b"before").get(10)
    source = KafkaSource(KafkaSettings(servers, session_timeout_ms=6_000), ["t"], group="g")
    [partition] = claim(source)
    assert values(read(source, 1)) == [b"before"]
    running.stop()
    assert source.poll(300) == []
    with EmbeddedBroker(tmp_path, port=port):
        writer.send("t", value=b"after").get(20)
        got: list[bytes | None] = []
        deadline = time.monotonic() + 20
        while not got and time.monotonic() < deadline:
            got = values(source.poll(200))
            for change in source.drain_rebalances():
                if isinstance(change, Assigned):
                    source.seek(partition, 1)
        assert got == [b"after"]
        source.close()
        writer.close()
