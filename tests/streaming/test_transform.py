"""Does a view's function make the same of an event in the stream and offline, and does a failing one harm nobody?"""

import itertools
import random

import msgspec
import pyarrow as pa
import pytest

from featurestore.offline import windowed_stored
from featurestore.offline.event_log import OFFSET, PARTITION, read_events
from featurestore.offline.history import historical_features
from featurestore.online.keys import Shard
from featurestore.online.reader import OnlineReader
from featurestore.plan import Field, Function, Projection, Transform
from featurestore.transform import transformed
from streaming.audit import audit_shard
from streaming.claim_record import ClaimRecord
from streaming.commit import ShardStore
from streaming.fitting import Fitting
from streaming.pipeline import TopicPipeline
from streaming.rehearsal import START_US, TOPIC, shop_event, shop_plan
from streaming.sinks import EventLog, Quarantine, RangeSink
from streaming.source.records import Batch, Record
from streaming.source.scripted import ScriptedLog, ScriptedSource
from streaming.worker import Pace, Worker
from validation.quarantine import read_quarantine

DDL = "event_id string, event_timestamp timestamp, user_id bigint, amount double, quantity bigint, currency string"
PYTHON = """
def euros(columns):
    import math
    rates = {"EUR": 1.0, "USD": 0.93, "GBP": 1.17}
    if 7 in columns["quantity"]:
        raise ValueError("seven")
    pairs = zip(columns["amount"], columns["currency"])
    return {"amount": [None if amount is None else math.sqrt(amount * rates[currency]) for amount, currency in pairs]}
"""
PANDAS = """
def euros(frame):
    if (frame["quantity"] == 7).any():
        raise ValueError("seven")
    rates = frame["currency"].map({"EUR": 1.0, "USD": 0.93, "GBP": 1.17})
    return frame.assign(amount=frame["amount"] * rates + frame["event_timestamp"].dt.minute)
"""
INPUTS = (
    Field(name="event_id", dtype="STRING"),
    Field(name="event_timestamp", dtype="UNIX_TIMESTAMP"),
    Field(name="user_id", dtype="INT64"),
    Field(name="amount", dtype="DOUBLE"),
    Field(name="quantity", dtype="INT64"),
    Field(name="currency", dtype="STRING"),
)


def transform(mode):
    return Transform(
        function=Function(name="euros", source=PYTHON if mode == "python" else PANDAS),
        mode=mode,
        inputs=INPUTS,
        outputs=(Field(name="amount", dtype="DOUBLE"),),
    )


class Shop:
    """A topic whose first view has a function and whose second has none, and two partitions of orders."""

    def __init__(self, client, folder, mode, *, latest=False):
        plan = shop_plan(second_view=True)
        plain, view = plan.view("page_orders"), plan.view("user_orders")
        topic = msgspec.structs.replace(view.source.topic, schema_text=DDL)
        source = msgspec.structs.replace(view.source, topic=topic, created_field="_arrival")
        view = msgspec.structs.replace(view, source=source, transform=transform(mode), columns=INPUTS)
        if latest:
            fields = (Field(name="amount", dtype="DOUBLE"), Field(name="currency", dtype="STRING"))
            view = msgspec.structs.replace(
                view,
                kind="latest",
                features=fields,
                aggregations=(),
                transform=msgspec.structs.replace(view.transform, outputs=fields[:1]),
            )
        plain = msgspec.structs.replace(plain, source=source)
        self.plan = msgspec.structs.replace(plan, views={view.name: view, plain.name: plain})
        self.view, self.client, self.folder = view, client, folder
        self.log = ScriptedLog()
        self.log.create(TOPIC, partitions=2, topic_id="id-1")
        rng, self.now_us = random.Random(2), START_US
        for number in range(300):
            self.now_us += rng.randrange(1, 60_000_000)
            value = shop_event(rng, number, self.now_us - rng.choice((0, 0, 30_000_000)), 12)
            self.log.append(TOPIC, number % 2, value, timestamp_us=self.now_us)

    def run(self, size):
        storages = [EventLog(self.folder / "event_log"), Quarantine(self.folder / "quarantine", self.plan.contracts)]
        tokens = itertools.count()
        worker = Worker(
            ScriptedSource(self.log, [TOPIC], max_records=size),
            ShardStore(self.client, lambda: self.now_us),
            [RangeSink(storage, lambda: self.now_us, flush_rows=50) for storage in storages],
            self.plan,
            views=tuple(self.plan.views.values()),
            record=ClaimRecord(self.folder / "event_log"),
            clock=lambda: self.now_us,
            new_token=lambda: f"t{next(tokens)}",
            pace=Pace(poll_ms=0),
        )
        worker.run(lambda: False, until_caught_up=True)
        return worker.counters

    def served(self):
        projection = Projection(view=self.view.name, features=tuple(field.name for field in self.view.features))
        reader = OnlineReader(self.client, self.plan, lambda: self.now_us)
        found = reader.read([projection], {"user_id": list(range(12))})
        instants = pa.array(found.columns[0].instant_us).cast(pa.timestamp("us", "UTC"))
        rows = pa.table({"user_id": pa.array(range(12), pa.int64()), "event_timestamp": instants})
        offline = historical_features(self.plan, [projection], rows, repo=self.folder)
        online = {name: found.column(self.view.name, name).values.to_pylist() for name in projection.features}
        return online, {name: offline[name].to_pylist() for name in projection.features}


@pytest.mark.parametrize("mode", ["python", "pandas"])
@pytest.mark.parametrize("size", [1, 64])
def test_stream_store_and_history_agree_to_the_bit(store, tmp_path, monkeypatch, mode, size):
    """Whatever the size of a batch, what is served is what the event log gives, and so is every tile."""
    shop = Shop(store, tmp_path, mode)
    counters = shop.run(size)
    assert counters["rejected:transform_failed"] > 10
    online, offline = shop.served()
    assert online == offline
    assert len({value for value in online["amount_sum_24h"] if value}) > 5
    monkeypatch.setattr(windowed_stored, "HELD_BYTES", 0)  # by way of the disk, in buckets of keys
    assert shop.served()[1] == offline
    events = read_events(tmp_path / "event_log" / TOPIC)
    for view, partition in itertools.product(shop.plan.views.values(), range(2)):
        shard = Shard("shop", view.name, 1, "id-1", partition)
        stored = {key: store.get(key) for key in store.keys(f"fs:tile:{shard.tag}:*")}
        audit = audit_shard(view, shard, events, 2**60, stored, now_us=shop.now_us)
        assert audit.exact
        assert audit.compared > 10


@pytest.mark.parametrize("mode", ["python", "pandas"])
def test_a_view_of_latest_values_has_one_too(store, tmp_path, mode):
    """The newest event of a key after the function, online and by the as-of join over the log."""
    shop = Shop(store, tmp_path, mode, latest=True)
    shop.run(32)
    online, offline = shop.served()
    assert online == offline
    assert None not in online["amount"]
    raw = {row["user_id"]: row["amount"] for row in read_events(tmp_path / "event_log" / TOPIC).to_pylist()}
    assert any(value != raw[user] for user, value in enumerate(online["amount"]))


def test_an_event_on_which_a_function_fails_is_set_aside_and_its_neighbours_pass(store, tmp_path):
    """With its reason, once, for all views; the log keeps the others as they came."""
    shop = Shop(store, tmp_path, "python")
    counters = shop.run(64)
    kept = read_quarantine(tmp_path / "quarantine", TOPIC)
    assert set(kept["reason"].to_pylist()) == {"transform_failed"}
    assert all("ValueError" in detail for detail in kept["detail"].to_pylist())
    assert all(msgspec.json.decode(row)["quantity"] == 7 for row in kept["row"].to_pylist())
    events = read_events(tmp_path / "event_log" / TOPIC)
    assert len(events) + len(kept) == 300 == counters["events"]
    assert 7 not in events["quantity"].to_pylist()
    records = amounts_of(shop.log)
    stored = zip(*(events[name].to_pylist() for name in (PARTITION, OFFSET, "amount")), strict=True)
    assert all(records[partition, offset] == amount for partition, offset, amount in stored)


def amounts_of(log):
    return {
        (partition, record.offset): msgspec.json.decode(record.value)["amount"]
        for partition in range(2)
        for record in log.partition(TOPIC, partition).records
    }


def test_what_a_function_makes_is_held_to_its_type():
    """A wrong type, a missing column, another number of rows: the row fails, none of its neighbours."""
    source = """
def make(columns):
    if len(columns["n"]) > 1 and 9 in columns["n"]:
        raise KeyError
    n = columns["n"][0]
    if n == 1:
        return {"m": ["text"]}
    if n == 2:
        return {}
    if n == 3:
        return {"m": [1, 2]}
    return {"m": list(columns["n"])}
"""
    field = (Field(name="n", dtype="INT64"),)
    made = transformed(
        "v",
        Transform(
            function=Function(name="make", source=source),
            mode="python",
            inputs=field,
            outputs=(Field(name="m", dtype="INT64"),),
        ),
        pa.table({"n": [9, 1, 5, 2, 3, 6, 9]}),
    )
    assert made.columns["m"].to_pylist() == [9, None, 5, None, None, 6, 9]
    assert sorted(made.failed) == [1, 3, 4]


def test_nothing_goes_through_a_function_that_breaks_the_contract():
    """It is given accepted rows alone."""
    source = "def euros(columns):\n    assert all(a >= 0 for a in columns['amount'])\n    return columns\n"
    view = shop_plan().view("user_orders")
    topic = msgspec.structs.replace(view.source.topic, schema_text=DDL)
    view = msgspec.structs.replace(
        view,
        source=msgspec.structs.replace(view.source, topic=topic),
        columns=INPUTS,
        transform=msgspec.structs.replace(transform("python"), function=Function(name="euros", source=source)),
    )
    sound = msgspec.json.decode(shop_event(random.Random(0), 0, START_US, 9))
    values = [msgspec.json.encode(sound | change) for change in ({}, {"amount": -1.0}, {"amount": 1e300}, {})]
    records = [Record(0, offset, None, value, START_US) for offset, value in enumerate(values)]
    judged = TopicPipeline([view], shop_plan().contracts[TOPIC]).judge(Batch(TOPIC, "id", 0, records, 0, 4))
    assert [(item.record.offset, item.reason) for item in judged.rejected] == [(1, "contract"), (2, "contract")]
    assert len(judged.of(view)) == 2


def test_events_that_older_definitions_judged_go_through_the_function_of_now(store, tmp_path):
    """A view whose function came later: events are made anew, those on which it fails say nothing to it."""
    shop = Shop(store, tmp_path, "python")
    records = [record for record in shop.log.partition(TOPIC, 0).records if record is not None]
    older = msgspec.structs.replace(shop.view, transform=None)
    judged = TopicPipeline([older]).judge(Batch(TOPIC, "id-1", 0, records, 0, len(records)))
    fitted = Fitting(shop.view).fit(judged)
    assert 0 < len(fitted.events) < len(judged.events)
    assert 7 not in fitted.events["quantity"].to_pylist()
    now = TopicPipeline([shop.view]).judge(Batch(TOPIC, "id-1", 0, records, 0, len(records)))
    assert fitted.of(shop.view).equals(now.of(shop.view))
    assert Fitting(shop.view).fit(now) is now


def test_what_a_function_made_goes_to_its_own_batch(store, tmp_path):
    """Judged together, each batch has the rows that the function made of its own events."""
    shop = Shop(store, tmp_path, "python")
    topic = TopicPipeline([shop.view])
    batches = []
    for place in range(2):
        records = [record for record in shop.log.partition(TOPIC, place).records if record is not None]
        batches.append(Batch(TOPIC, "id-1", place, records, 0, len(records)))
    for batch, found in zip(batches, topic.judge_together(batches), strict=True):
        assert len(found.made) == 1
        assert found.of(shop.view).equals(topic.judge(batch).of(shop.view))
