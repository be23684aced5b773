"""Are the events of a keyed view read from their key's partition alone, and only where that is all of them?"""

import itertools
import random

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.offline.event_log import read_events
from featurestore.offline.windowed import windowed_join
from featurestore.online import windowed
from featurestore.online.keys import EntityKeyCodec
from featurestore.online.partitioner import message_key, partition_of
from featurestore.online.reader import OnlineReader
from featurestore.online.windowed import WindowedView
from featurestore.plan import Projection
from streaming import pipeline
from streaming.claim_record import ClaimRecord
from streaming.commit import ShardStore
from streaming.rehearsal import START_US, TOPIC, shop_event, shop_plan
from streaming.sinks import EventLog, RangeSink
from streaming.source import publisher
from streaming.source.replayed import ORIGIN, WithReplays, replay_topic
from streaming.source.scripted import ScriptedLog, ScriptedSource
from streaming.worker import Pace, Worker

PARTITIONS = 4
USERS = list(range(12))


def keyed_plan(partitions=PARTITIONS):
    plan = shop_plan(keyed=True)
    view = plan.view("user_orders")
    topic = msgspec.structs.replace(view.source.topic, partitions=partitions)
    view = msgspec.structs.replace(view, source=msgspec.structs.replace(view.source, topic=topic))
    return msgspec.structs.replace(plan, views={view.name: view})


class Shop:
    """A topic whose producers place keys as Kafka's Java client does, its worker, and its reader."""

    def __init__(self, client, folder, *, partitions=PARTITIONS):
        self.client, self.folder, self.plan = client, folder, keyed_plan()
        self.view = self.plan.view("user_orders")
        self.log = ScriptedLog()
        self.log.create(TOPIC, partitions=partitions, topic_id="id-1")
        self.now_us = START_US
        self.rng = random.Random(0)
        self.tokens = itertools.count()
        self.replays = False

    def replay(self, count, *, partition_of=partition_of):
        """Events that were set aside come again by the replay topic, every third of them twice."""
        self.replays = True
        self.log.create(replay_topic(TOPIC), partitions=PARTITIONS, topic_id="id-2")
        for number in [*range(count), *range(0, count, 3)]:
            value = shop_event(random.Random(number), 10**6 + number, self.now_us, len(USERS))
            key = b"%d" % msgspec.json.decode(value)["user_id"]
            self.log.append(
                replay_topic(TOPIC),
                partition_of(key, PARTITIONS),
                value,
                key=key,
                timestamp_us=self.now_us,
                headers=((ORIGIN, b"%d" % number),),
            )

    def send(self, count, *, partition_of=partition_of):
        for number in range(count):
            self.now_us += 40_000_000
            value = shop_event(self.rng, number, self.now_us, len(USERS))
            key = b"%d" % msgspec.json.decode(value)["user_id"]
            where = partition_of(key, len(self.log.partitions_of(TOPIC)))
            self.log.append(TOPIC, where, value, key=key, timestamp_us=self.now_us)

    def run(self):
        topics = [TOPIC, replay_topic(TOPIC)] if self.replays else [TOPIC]
        worker = Worker(
            WithReplays(ScriptedSource(self.log, topics, max_records=37), topics[:-1]),
            ShardStore(self.client, lambda: self.now_us),
            [RangeSink(EventLog(self.folder / "event_log"), lambda: self.now_us, flush_rows=50)],
            self.plan,
            views=tuple(self.plan.views.values()),
            record=ClaimRecord(self.folder / "event_log"),
            clock=lambda: self.now_us,
            new_token=lambda: f"t{next(self.tokens)}",
            pace=Pace(poll_ms=0),
            sleep=lambda seconds: None,
        )
        worker.run(lambda: False, until_caught_up=True)
        return worker.counters

    def names(self):
        """The tiles that a reader asks for, by key."""
        found = WindowedView.of("shop", self.view)
        shards = found.shards(self.client.get(found.shards_key))
        codec = EntityKeyCodec(self.view.join_keys)
        return [found.names([codec.encode({"user_id": user})], self.now_us, shards) for user in USERS]

    def differing(self):
        """Features that differ from the offline join over the event log."""
        features = tuple(field.name for field in self.view.features)
        served = OnlineReader(self.client, self.plan, lambda: self.now_us).read(
            [Projection(view=self.view.name, features=features)], {"user_id": USERS}
        )
        expected = windowed_join(
            read_events(self.folder / "event_log" / TOPIC),
            pa.table({"user_id": USERS, "at": served.columns[0].instant_us}),
            keys={"user_id": "user_id"},
            event_ts="event_timestamp",
            entity_ts="at",
            aggregations=self.view.aggregations,
        )
        return [c.feature for c in served.columns if c.values.to_pylist() != expected[c.feature].to_pylist()]


@pytest.fixture
def shop(store, tmp_path):
    return Shop(store, tmp_path)


def blocks(shop):
    return len(WindowedView.of("shop", shop.view).reader.blocks(shop.now_us))


def test_one_partition_is_read_for_a_key(shop):
    """A quarter of the tiles is asked for, and every value is that of the event log."""
    shop.send(300)
    assert not any(name.startswith("rejected") for name in shop.run())
    assert [len(names) for names in shop.names()] == [blocks(shop)] * len(USERS)
    assert shop.differing() == []


def test_replayed_events_are_read_from_their_keys_partition_too(shop):
    """A key's partition of the topic and that of the replay topic: two shards, and every value is exact."""
    shop.send(200)
    shop.run()
    shop.replay(60)
    assert shop.run()["accepted"] == 60
    assert [len(names) for names in shop.names()] == [2 * blocks(shop)] * len(USERS)
    assert shop.differing() == []
    shop.send(50)
    shop.run()
    assert shop.differing() == []


def test_replayed_events_elsewhere_are_looked_for_elsewhere(shop, monkeypatch):
    """Replays of a time when keys lay in other partitions: all of the replay topic is looked through, and no more."""
    monkeypatch.setattr(pipeline, "partitions_of", lambda view: None)
    shop.send(200)
    shop.replay(60, partition_of=lambda key, count: (partition_of(key, count) + 1) % count)
    shop.run()
    assert {len(names) for names in shop.names()} == {(1 + PARTITIONS) * blocks(shop)}
    assert shop.differing() == []


def test_a_record_in_another_partition_is_set_aside(shop):
    """With its reason, counted; the others pass, and are read from their own partition."""
    shop.send(100)
    shop.send(7, partition_of=lambda key, count: (partition_of(key, count) + 1) % count)
    counters = shop.run()
    assert counters["rejected:wrong_partition"] == 7
    assert counters["accepted"] == 100
    assert [len(names) for names in shop.names()] == [blocks(shop)] * len(USERS)
    assert shop.differing() == []


def test_a_topic_that_has_grown_is_read_as_a_whole(shop):
    """New partitions move keys: nothing is set aside for that, nothing is lost, all partitions are merged."""
    shop.send(100)
    shop.run()
    shop.log.create(TOPIC, partitions=PARTITIONS + 1)
    shop.send(200)
    assert not any(name.startswith("rejected") for name in shop.run())
    assert [len(names) for names in shop.names()] == [blocks(shop) * (PARTITIONS + 1)] * len(USERS)
    assert shop.differing() == []


def test_events_elsewhere_are_looked_for_elsewhere(shop, monkeypatch):
    """However events came to lie in another partition (an older topic's log): readers are told before the commit."""
    monkeypatch.setattr(pipeline, "partitions_of", lambda view: None)
    shop.send(100)
    shop.send(7, partition_of=lambda key, count: (partition_of(key, count) + 1) % count)
    shop.run()
    assert {len(names) for names in shop.names()} == {blocks(shop) * PARTITIONS}
    assert shop.differing() == []


def test_planted_wrong_partitioner_is_caught(shop, monkeypatch):
    """A reader that looks into another partition than producers write to finds other values."""
    shop.send(300)
    shop.run()
    monkeypatch.setattr(windowed, "partition_of", lambda key, count: sum(key) % count)
    assert shop.differing()


def test_planted_worker_of_another_partitioner_sets_aside(shop, monkeypatch):
    """A worker that expects keys elsewhere says so of nearly every event, instead of serving what is wrong."""
    shop.send(100)
    monkeypatch.setattr(pipeline, "partition_of", lambda key, count: sum(key) % count)
    assert shop.run()["rejected:wrong_partition"] > 20


@given(st.binary(max_size=40), st.integers(1, 1000))
def test_keys_go_where_kafkas_clients_put_them(key, partitions):
    """The same partition as the client library's own partitioner."""
    assert partition_of(key, partitions) == publisher.partition_of(key, partitions)


@pytest.mark.parametrize(
    ("dtype", "value", "text"), [("INT64", -5, b"-5"), ("INT32", 7, b"7"), ("STRING", "é", "é".encode())]
)
def test_a_message_key_is_the_text_of_the_join_key(dtype, value, text):
    """Whatever its type, from the bytes under which the store knows it."""
    keys = [msgspec.structs.replace(keyed_plan().view("user_orders").join_keys[0], dtype=dtype)]
    codec = EntityKeyCodec(keys)
    assert message_key(codec.encode({"user_id": value}), codec.value_at, dtype) == text
