"""Does history come back as it was: latest values, and a topic that has grown meanwhile?"""

import itertools
import random

import msgspec
import pyarrow as pa
import pytest

from featurestore.offline.event_log import read_events
from featurestore.offline.windowed import windowed_join
from featurestore.online.keys import Shard, shards_key
from featurestore.online.partitioner import partition_of
from featurestore.online.reader import OnlineReader
from featurestore.online.result import Status
from featurestore.online.windowed import WindowedView
from featurestore.plan import Field, Projection
from streaming import rekeyed
from streaming.backfill import Builder
from streaming.claim_record import ClaimRecord
from streaming.commit import ShardStore
from streaming.homes import Homes
from streaming.log_replay import EventLogReplay
from streaming.rehearsal import START_US, TOPIC, shop_event, shop_plan
from streaming.sinks import EventLog, RangeSink
from streaming.source.scripted import ScriptedLog, ScriptedSource
from streaming.status import status_of
from streaming.worker import Pace, Worker

USERS = 12


class Shop:
    """A topic whose keys lie where a producer puts them, a worker, and what readers see."""

    def __init__(self, client, folder, plan):
        self.client, self.folder, self.plan = client, folder, plan
        self.log = ScriptedLog()
        self.log.create(TOPIC, partitions=2, topic_id="id-1")
        self.now_us = START_US
        self.rng = random.Random(0)
        self.sent = 0
        self.tokens = itertools.count()

    def send(self, count):
        for _ in range(count):
            self.now_us += 1_000_000
            value = shop_event(self.rng, self.sent, self.now_us, USERS)
            key = str(msgspec.json.decode(value)["user_id"]).encode()
            partition = partition_of(key, len(self.log.partitions_of(TOPIC)))
            self.log.append(TOPIC, partition, value, key=key, timestamp_us=self.now_us)
            self.sent += 1

    def store(self):
        return ShardStore(self.client, lambda: self.now_us)

    def parts(self):
        return {
            "record": ClaimRecord(self.folder),
            "clock": lambda: self.now_us,
            "new_token": lambda: f"t{next(self.tokens)}",
        }

    def worker(self):
        sinks = [RangeSink(EventLog(self.folder), lambda: self.now_us, flush_rows=30)]
        source = ScriptedSource(self.log, [TOPIC], max_records=37)
        views = tuple(self.plan.views.values())
        return Worker(
            source, self.store(), sinks, self.plan, views=views, pace=Pace(poll_ms=0), sleep=print, **self.parts()
        )

    def run(self):
        self.worker().run(lambda: False, until_caught_up=True)

    def read(self, view, *features):
        reader = OnlineReader(self.client, self.plan, lambda: self.now_us)
        found = reader.read([Projection(view=view, features=features)], {"user_id": list(range(USERS))})
        return found.columns

    def builder(self, view):
        replay = EventLogReplay(self.folder / TOPIC, view, offsets_at_once=40)
        parts = self.parts()
        return replay, Builder(self.plan, view, replay, self.store(), parts.pop("record"), **parts)

    def status(self):
        ends = {each: len(self.log.partition(TOPIC, each.partition).records) for each in self.log.partitions_of(TOPIC)}
        return status_of(self.client, self.plan, [], ends, store=self.store(), now_us=self.now_us)


def test_latest_values_come_back_from_the_event_log(store, tmp_path):
    """A view without aggregations: the newest event of each key, as before the store was lost."""
    windowed = shop_plan().view("user_orders")
    latest = msgspec.structs.replace(
        windowed,
        name="last_order",
        kind="latest",
        aggregations=(),
        columns=(),
        features=(Field(name="amount", dtype="DOUBLE"), Field(name="page", dtype="STRING")),
    )
    shop = Shop(store, tmp_path, msgspec.structs.replace(shop_plan(), views={"last_order": latest}))
    shop.send(200)
    shop.run()
    before = [column.values.to_pylist() for column in shop.read("last_order", "amount", "page")]
    store.flushall()
    replay, builder = shop.builder(latest)
    done = {}
    builder.build_latest(replay.stretches(), lambda: False, done)
    assert [column.values.to_pylist() for column in shop.read("last_order", "amount", "page")] == before
    assert sum(done.values()) == 200
    assert all(value is not None for value in before[0])


def keyed_plan(partitions):
    plan = shop_plan(keyed=True, contract=False)
    view = plan.views["user_orders"]
    topic = msgspec.structs.replace(view.source.topic, partitions=partitions)
    view = msgspec.structs.replace(view, source=msgspec.structs.replace(view.source, topic=topic))
    return msgspec.structs.replace(plan, views={view.name: view})


def test_a_topic_that_grows_is_read_as_a_whole_from_then_on(store, tmp_path):
    """Keys move to other partitions: no value is too small in between, and the status says how it is read."""
    shop = Shop(store, tmp_path, keyed_plan(2))
    shop.send(150)
    worker = shop.worker()
    worker.announce()
    for _ in range(6):
        worker.turn(0)
    assert [(view.reads, view.declared) for view in shop.status()] == [("keyed", "keyed")]
    shop.log.create(TOPIC, partitions=3)
    shop.send(150)
    counts = []
    for _ in range(12):
        [column] = shop.read("user_orders", "amount_count_24h")
        present = [status == Status.PRESENT for status in column.statuses]
        counts.append(sum(column.values.to_pylist()) if all(present) else None)
        worker.turn(0)
    known = [count for count in counts if count is not None]
    assert known == sorted(known)
    assert known[0] == 150
    assert sum(shop.read("user_orders", "amount_count_24h")[0].values.to_pylist()) == 300
    assert [(view.reads, view.declared) for view in shop.status()] == [("spread", "keyed")]
    worker.leave()


def grown(store, folder):
    """A keyed shop whose topic grew while it ran, and the next version of its view, which knows of it."""
    shop = Shop(store, folder, keyed_plan(2))
    shop.send(150)
    shop.run()
    shop.log.create(TOPIC, partitions=3)
    shop.send(150)
    shop.run()
    assert [view.reads for view in shop.status()] == ["spread"]
    view = keyed_plan(3).views["user_orders"]
    shop.plan = msgspec.structs.replace(
        shop.plan, version=2, views={"user_orders": msgspec.structs.replace(view, version=2)}
    )
    return shop


def differing(shop):
    """Features that differ from the offline join over the event log."""
    view = shop.plan.views["user_orders"]
    served = shop.read("user_orders", *(field.name for field in view.features))
    expected = windowed_join(
        read_events(shop.folder / TOPIC),
        pa.table({"user_id": list(range(USERS)), "at": served[0].instant_us}),
        keys={"user_id": "user_id"},
        event_ts="event_timestamp",
        entity_ts="at",
        aggregations=view.aggregations,
    )
    assert {status for column in served for status in column.statuses.tolist()} <= {Status.PRESENT, Status.NULL_VALUE}
    return [column.feature for column in served if column.values.to_pylist() != expected[column.feature].to_pylist()]


@pytest.mark.parametrize("interrupted", [0, 1, 3, 5])
def test_a_topic_that_grew_is_keyed_again_once_it_is_backfilled(store, tmp_path, interrupted):
    """Events of the time before are dealt out by key: two shards are read for a key, and every value is exact."""
    shop = grown(store, tmp_path)
    view, live = shop.plan.views["user_orders"], shop.log.partitions_of(TOPIC)
    replay, builder = shop.builder(view)
    builder.announce(live)
    for stops in (itertools.chain([False] * interrupted, itertools.repeat(True)), itertools.repeat(False)):
        replay, builder = shop.builder(view)
        builder.build(replay.stretches(), live, lambda stops=stops: next(stops))
    shop.run()
    assert [(each.reads, each.declared, each.version) for each in shop.status()] == [("keyed", "keyed", 2)]
    assert differing(shop) == []
    shop.send(100)
    shop.run()
    assert [each.reads for each in shop.status()] == ["keyed"]
    assert differing(shop) == []
    [column] = shop.read("user_orders", "amount_count_24h")
    assert sum(column.values.to_pylist()) == 400
    raw = store.get(shards_key("shop", "user_orders", 2))
    assert WindowedView.of("shop", view).shards(raw).per_key == 2


def test_a_rekeyed_view_is_rebuilt_with_the_same_bytes(store, tmp_path):
    """A store that is lost afterwards: history and topic are told apart where they were, whatever came since."""
    shop = grown(store, tmp_path)
    view, live = shop.plan.views["user_orders"], shop.log.partitions_of(TOPIC)

    def build():
        replay, builder = shop.builder(view)
        builder.announce(live)
        builder.build(replay.stretches(), live, lambda: False)
        shop.run()

    build()
    shop.send(100)
    shop.run()
    before = {key: store.get(key) for key in store.keys("fs:tile:*") if b" 2 " in key}
    store.flushall()
    build()
    after = {key: store.get(key) for key in store.keys("fs:tile:*")}
    assert {key: value.rstrip(b"\0") for key, value in after.items()} == {
        key: value.rstrip(b"\0") for key, value in before.items()
    }
    assert len(after) > 20


def test_what_was_counted_in_its_partition_is_not_counted_in_a_history_too(store, tmp_path):
    """A version that was built without one, of which the store lost a part: it stays as it is, and exact."""
    shop = grown(store, tmp_path)
    view = shop.plan.views["user_orders"]
    shop.run()
    shop.store().remove("shop", "user_orders", 2, shard=Shard("shop", "user_orders", 2, "id-1", 0))
    replay, builder = shop.builder(view)
    builder.build(replay.stretches(), shop.log.partitions_of(TOPIC), lambda: False)
    shop.run()
    assert [each.reads for each in shop.status()] == ["spread"]
    assert differing(shop) == []


@pytest.mark.parametrize("looks", [True, False])
def test_a_wrong_history_is_noticed(store, tmp_path, monkeypatch, looks):
    """The planted fault: dealt out by another partitioner, events are looked for everywhere; unless nobody looks."""
    monkeypatch.setattr(rekeyed, "partition_of", lambda key, count: sum(key) % count)
    if not looks:
        monkeypatch.setattr(Homes, "hold", lambda self, keys: True)
    shop = grown(store, tmp_path)
    replay, builder = shop.builder(shop.plan.views["user_orders"])
    builder.build(replay.stretches(), shop.log.partitions_of(TOPIC), lambda: False)
    shop.run()
    assert bool(differing(shop)) is not looks


@pytest.mark.parametrize("since_s", [50, 120])
def test_less_history_is_told_from_none(store, tmp_path, since_s):
    """`--from`: what arrived before is left out, and windows that reach before it are INCOMPLETE."""
    shop = Shop(store, tmp_path, shop_plan(contract=False))
    shop.send(200)
    shop.run()
    store.flushall()
    view = shop.plan.views["user_orders"]
    from_us = START_US + since_s * 1_000_000
    replay = EventLogReplay(shop.folder / TOPIC, view, from_us=from_us, offsets_at_once=40)
    parts = shop.parts()
    record = parts.pop("record")
    builder = Builder(shop.plan, view, replay, shop.store(), record, from_us=from_us, **parts)
    builder.build(replay.stretches(), (), lambda: False)
    [column] = shop.read("user_orders", "amount_count_1h")
    assert sum(column.values.to_pylist()) == 200 - since_s + 1
    assert set(column.statuses.tolist()) == {Status.INCOMPLETE}


def test_history_to_an_instant_ends_before_the_first_event_that_arrived_then(store, tmp_path):
    """`--to`: the rest is Kafka's part, from that offset on."""
    shop = Shop(store, tmp_path, shop_plan(contract=False))
    shop.send(200)
    shop.run()
    view = shop.plan.views["user_orders"]
    to_us = START_US + 101 * 1_000_000
    stretches = EventLogReplay(shop.folder / TOPIC, view, to_us=to_us).stretches()
    assert sum(each.after for each in stretches) == 100
