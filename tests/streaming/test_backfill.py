"""Does history come back as it was: latest values, and a topic that has grown meanwhile?"""

import itertools
import random

import msgspec
import pytest

from featurestore.online.partitioner import partition_of
from featurestore.online.reader import OnlineReader
from featurestore.online.result import Status
from featurestore.plan import Field, Projection
from streaming.backfill import Builder
from streaming.claim_record import ClaimRecord
from streaming.commit import ShardStore
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
