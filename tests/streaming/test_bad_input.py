"""Is every kind of bad message set aside with its reason, between neighbours that pass, and does the stream go on?

Through a real broker, the worker, the store and the files; the rows of the table are the messages that topics carry.
"""

import itertools
import random
import re
import struct

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from featurestore.offline.event_log import OFFSET, read_events
from featurestore.online.reader import OnlineReader
from featurestore.plan import Projection
from streaming.claim_record import ClaimRecord
from streaming.metrics import MeasuredStore, StreamMetrics
from streaming.rehearsal import START_US, shop_event, shop_plan
from streaming.schema_registry import FolderRegistry
from streaming.sinks import EventLog, Quarantine, RangeSink
from streaming.source.kafka import KafkaSettings, KafkaSource
from streaming.source.publisher import Publisher
from streaming.worker import Pace, Worker
from validation.quarantine import read_quarantine

pytestmark = pytest.mark.kafka

USER = 7


def order(**changes):
    sound = msgspec.json.decode(shop_event(random.Random(1), 1, START_US, 9))
    return msgspec.json.encode({**sound, "user_id": USER, **changes})


def raw(name, literal):
    """An order with a column whose JSON is this text."""
    return re.sub(rb'"%s":[^,}]+' % name.encode(), b'"%s":%s' % (name.encode(), literal), order())


KEY = str(USER).encode()
MEGABYTE = 1 << 20
BAD = {
    "no value": (KEY, None, "empty"),
    "no bytes": (KEY, b"", "empty"),
    "null": (KEY, b"null", "wrong_type"),
    "a list": (KEY, b"[1, 2]", "wrong_type"),
    "a text": (KEY, b'"order"', "wrong_type"),
    "torn": (KEY, order()[:-9], "malformed"),
    "two documents": (KEY, order() + order(), "malformed"),
    "no JSON": (KEY, b"amount=3", "malformed"),
    "NaN": (KEY, raw("amount", b"NaN"), "malformed"),
    "Infinity": (KEY, raw("amount", b"Infinity"), "malformed"),
    "1e400": (KEY, raw("amount", b"1e400"), "wrong_type"),
    "an integer beyond 64 bits": (KEY, raw("quantity", b"99999999999999999999"), "wrong_type"),
    "an integer of 5,000 digits": (KEY, raw("quantity", b"9" * 5000), "wrong_type"),
    "a text for a number": (KEY, order(amount="3.5"), "wrong_type"),
    "a number for a text": (KEY, order(currency=3), "wrong_type"),
    "a truth for a number": (KEY, order(amount=True), "wrong_type"),
    "invalid UTF-8": (
        KEY,
        order().replace(b"EUR", b"E\xffR").replace(b"USD", b"U\xffD").replace(b"GBP", b"G\xffP"),
        "malformed",
    ),
    "a lone surrogate": (KEY, order().replace(b'"page":"/p', b'"page":"\\ud800'), "malformed"),
    "100,000 levels": (KEY, b'{"more":' * 100_000, "malformed"),
    "a megabyte of nothing": (KEY, b"x" * MEGABYTE, "malformed"),
    "a megabyte of one text": (KEY, order(amount="9" * MEGABYTE), "wrong_type"),
    "no timestamp": (KEY, order(event_timestamp=None), "no_timestamp"),
    "a timestamp that is none": (KEY, order(event_timestamp="yesterday"), "wrong_type"),
    "seconds that nobody declared": (KEY, order(event_timestamp=START_US // 1_000_000), "wrong_type"),
    "milliseconds that nobody declared": (KEY, order(event_timestamp=START_US // 1_000), "wrong_type"),
    "a truth for a timestamp": (KEY, order(event_timestamp=True), "wrong_type"),
    "the year 2400": (KEY, order(event_timestamp="2400-01-01T00:00:00Z"), "ahead_of_arrival"),
    "the year 10000": (KEY, order(event_timestamp=253_402_300_800_000_000), "wrong_type"),
    "an hour ahead": (KEY, order(event_timestamp=START_US + 3_600_000_000), "ahead_of_arrival"),
    "a key that is no number": (b"somebody", order(user_id="somebody"), "bad_key"),
    "a key with another spelling": (b"07", order(user_id="07"), "bad_key"),
    "another's message key": (b"8", order(), "key_mismatch"),
    "no message key": (None, order(), "key_mismatch"),
    "a broken rule": (KEY, order(currency="XXX"), "contract"),
    "a required null": (KEY, order(amount=None), "contract"),
}
GOOD = {
    "unknown fields": order(more={"unknown": [1, 2, {"deep": None}]}),
    "a megabyte of an unknown field": order(blob="x" * MEGABYTE),
    "the year 1970": order(event_timestamp="1970-01-01"),
    "text of every kind": order(device="\u0000\U0001f600\u202e"),
    "a number as the key's text": order(user_id=str(USER)),
}


class Stream:
    """A topic on the broker, and one worker's life over it."""

    def __init__(self, client, folder, broker, **topic):
        self.topic = broker.topic(1, max_message_bytes=str(8 * MEGABYTE), retention_ms="-1")
        self.servers = KafkaSettings(broker.bootstrap_servers)
        plan = shop_plan(keyed=True, topic=self.topic)
        view = plan.view("user_orders")
        declared = msgspec.structs.replace(view.source.topic, **topic)
        view = msgspec.structs.replace(view, source=msgspec.structs.replace(view.source, topic=declared))
        self.plan = msgspec.structs.replace(plan, views={view.name: view})
        self.client, self.folder = client, folder
        self.registry = CollectorRegistry()
        self.metrics = StreamMetrics(self.registry, self.clock)

    def clock(self):
        return START_US + 1_000_000

    def send(self, messages):
        publisher = Publisher(self.servers, self.topic)
        for key, value in messages:
            publisher.send(key, value, timestamp_us=START_US, partition=0)
        publisher.flush()
        publisher.close()

    def run(self, **options):
        tokens = itertools.count()
        storages = [EventLog(self.folder / "event_log"), Quarantine(self.folder / "quarantine", self.plan.contracts)]
        worker = Worker(
            KafkaSource(self.servers, [self.topic], group=f"bad-{self.topic}"),
            MeasuredStore(self.client, self.clock, self.metrics.committed),
            [RangeSink(storage, self.clock) for storage in storages],
            self.plan,
            views=tuple(self.plan.views.values()),
            record=ClaimRecord(self.folder / "event_log"),
            clock=self.clock,
            new_token=lambda: f"t{next(tokens)}",
            pace=Pace(poll_ms=50),
            on_committed=self.metrics.judged,
            **options,
        )
        self.metrics.follow(worker)
        worker.run(lambda: False, until_caught_up=True)
        return worker.counters

    def kept(self):
        rows = read_quarantine(self.folder / "quarantine", "orders").to_pylist()
        return {row["offset"]: row for row in rows}

    def counted(self):
        reader = OnlineReader(self.client, self.plan, self.clock)
        found = reader.read([Projection(view="user_orders", features=("amount_count_1h",))], {"user_id": [USER]})
        return found.column("user_orders", "amount_count_1h").values.to_pylist()


def test_every_bad_message_is_set_aside_between_neighbours_that_pass(store, tmp_path, broker):
    """Reason by reason: in the quarantine whole, in the counters, in the metrics; what is sound counts."""
    stream = Stream(store, tmp_path, broker)
    messages, expected = [(KEY, order())], {}
    for name, (key, value, reason) in BAD.items():
        expected[len(messages)] = (name, key, value, reason)
        messages += [(key, value), (KEY, order())]
    messages += [(KEY, value) for value in GOOD.values()]
    stream.send(messages)
    counters = stream.run()
    kept = stream.kept()
    told = {name: kept[offset]["reason"] if offset in kept else None for offset, (name, *_) in expected.items()}
    assert told == {name: reason for name, (_, _, reason) in BAD.items()}
    for offset, (name, key, value, _) in expected.items():
        assert (kept[offset]["key"], kept[offset]["row"]) == (key, value or b""), name
        assert kept[offset]["detail"], name
    assert len(kept) == len(BAD)
    events = read_events(tmp_path / "event_log" / stream.topic)
    assert sorted(events[OFFSET].to_pylist()) == sorted(set(range(len(messages))) - set(expected))
    assert counters["events"] == len(messages) == counters["accepted"] + len(BAD)
    reasons = [reason for _, _, reason in BAD.values()]
    for reason in set(reasons):
        assert counters[f"rejected:{reason}"] == reasons.count(reason)
        labels = {"topic": stream.topic, "reason": reason}
        assert stream.registry.get_sample_value("featurestore_stream_rejected_total", labels) == reasons.count(reason)
    # One of those that pass is of 1970: it is in the log, and in no window.
    assert stream.counted() == [len(events) - 1]


def test_a_bad_producer_does_not_fill_the_store(store, tmp_path, broker):
    """Three megabytes of rejected rows lie in files; the store has the keys and the size that it had without them."""

    def held():
        keys = set(store.scan_iter("*"))
        return keys, sum(store.memory_usage(key) for key in keys)

    stream = Stream(store, tmp_path, broker)
    stream.send([(KEY, order())])
    stream.run()
    keys, size = held()
    filling = "x" * 10_000
    stream.send([(KEY, order(currency="XXX", more=f"{number}{filling}")) for number in range(300)])
    stream.run()
    assert len(stream.kept()) == 300
    assert sum(len(row["row"]) for row in stream.kept().values()) > 3_000_000
    now, grown = held()
    assert now == keys
    assert grown - size < 1_000


def test_messages_whose_schema_nobody_knows_are_set_aside(store, tmp_path, broker):
    """Unknown ids, no magic byte, nothing behind it: their neighbours pass."""
    folder = tmp_path / "schemas"
    folder.mkdir()
    (folder / "7.json").write_text("{}")
    stream = Stream(store, tmp_path, broker, wire_format="confluent")
    sound = struct.pack(">bI", 0, 7) + order()
    bad = {
        struct.pack(">bI", 0, 8) + order(): "unknown_schema",
        order(): "malformed",
        b"\0\0\0": "malformed",
        struct.pack(">bI", 0, 7): "malformed",
    }
    stream.send([(KEY, value) for each in bad for value in (each, sound)])
    stream.run(registry=FolderRegistry(folder))
    assert [row["reason"] for row in stream.kept().values()] == list(bad.values())
    assert stream.counted() == [len(bad)]
