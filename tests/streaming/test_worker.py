"""Does a worker go on exactly where it must, say what it cannot know, and stop where it must not go on?"""

import itertools
import random

import msgspec
import pyarrow as pa
import pytest

from featurestore.errors import DefinitionError
from featurestore.offline.event_log import read_events
from featurestore.offline.windowed import windowed_join
from featurestore.online.keys import Shard
from featurestore.online.reader import OnlineReader
from featurestore.online.result import Status
from featurestore.plan import Field, Projection
from streaming.claim_record import ClaimRecord
from streaming.commit import NOT_YET, ShardStore, StateLost
from streaming.pipeline import AHEAD_TOLERANCE_US
from streaming.rehearsal import START_US, TOPIC, shop_event, shop_events, shop_plan
from streaming.sinks import EventLog, Quarantine, RangeSink
from streaming.source.records import OffsetGone, SourceUnavailable
from streaming.source.scripted import ScriptedLog, ScriptedSource
from streaming.worker import Pace, Worker
from validation.quarantine import read_quarantine


class Shop:
    """A topic, a plan, a store and files; each `run` is the life of one worker."""

    def __init__(self, client, folder, *, partitions=2, plan=None):
        self.client = client
        self.folder = folder
        self.plan = plan or shop_plan()
        self.log = ScriptedLog()
        self.log.create(TOPIC, partitions=partitions, topic_id="id-1")
        self.now_us = START_US
        self.tokens = itertools.count()
        self.rng = random.Random(0)
        self.sent = 0

    def clock(self):
        return self.now_us

    def send(self, count, *, broken=False, partition=None):
        for event in shop_events(self.rng, count, start_us=self.now_us):
            value = event.value if broken else shop_event(self.rng, self.sent, event.arrival_us, 20)
            where = self.rng.randrange(len(self.log.partitions_of(TOPIC))) if partition is None else partition
            self.log.append(TOPIC, where, value, key=event.key, timestamp_us=event.arrival_us)
            self.now_us = event.arrival_us
            self.sent += 1

    def worker(self, *, source=None, **options):
        contracts = self.plan.contracts
        storages = [EventLog(self.folder / "event_log"), Quarantine(self.folder / "quarantine", contracts)]
        return Worker(
            source or ScriptedSource(self.log, [TOPIC], max_records=37),
            ShardStore(self.client, self.clock),
            [RangeSink(storage, self.clock, flush_rows=50) for storage in storages],
            self.plan,
            views=tuple(self.plan.views.values()),
            record=ClaimRecord(self.folder / "event_log"),
            clock=self.clock,
            new_token=lambda: f"t{next(self.tokens)}",
            pace=Pace(poll_ms=0),
            sleep=lambda seconds: None,
            **options,
        )

    def run(self, **options):
        worker = self.worker(**options)
        worker.run(lambda: False, until_caught_up=True)
        return worker

    def control(self, partition=0, view="user_orders"):
        return ShardStore(self.client, self.clock).control(Shard("shop", view, 1, "id-1", partition))

    def registered(self, view="user_orders"):
        return ShardStore(self.client, self.clock).registered("shop", view, 1)

    def read(self, users, feature="amount_count_24h", at_us=None):
        reader = OnlineReader(self.client, self.plan, self.clock)
        projection = Projection(view="user_orders", features=(feature,))
        return reader.read([projection], {"user_id": users}).column("user_orders", feature)


@pytest.fixture
def shop(store, tmp_path):
    return Shop(store, tmp_path)


def test_every_event_is_counted_and_accounted_for(shop):
    """Accepted + set aside = sent; the next worker has nothing to do."""
    shop.send(400, broken=True)
    counters = shop.run().counters
    rejected = sum(count for name, count in counters.items() if name.startswith("rejected:"))
    assert counters["events"] == 400 == counters["accepted"] + rejected
    assert len(read_events(shop.folder / "event_log" / TOPIC)) == counters["accepted"]
    assert len(read_quarantine(shop.folder / "quarantine", TOPIC)) == rejected
    assert shop.run().counters["events"] == 0


def test_a_broker_that_goes_away_at_the_start_is_asked_again(shop, monkeypatch):
    """Not only a round: what comes before the first one goes on too."""
    shop.send(50)
    source = ScriptedSource(shop.log, [TOPIC], max_records=37)
    ask, failures = source.partitions_of, iter([True, True])

    def partitions_of(topic):
        if next(failures, False):
            raise SourceUnavailable("the broker is away")
        return ask(topic)

    monkeypatch.setattr(source, "partitions_of", partitions_of)
    counters = shop.run(source=source).counters
    assert (counters["events"], counters["retries"]) == (50, 2)


def test_no_sink_waits_for_another_that_always_has_something_due(shop):
    """Each stores what is due of it in every round, however much is due of those before it."""
    shop.send(400, broken=True)
    worker = shop.worker()
    worker._sinks = tuple(RangeSink(sink._storage, shop.clock, flush_rows=1) for sink in worker._sinks)
    worker.announce()
    while worker.counters["events"] < 300:
        worker.turn(0)
    assert all(sink.behind(partition) <= 40 for sink in worker._sinks for partition in worker.positions)
    assert read_quarantine(shop.folder / "quarantine", TOPIC).num_rows > 0


def test_workers_that_begin_together_do_not_take_each_other_for_a_loss(shop, monkeypatch):
    """One looks for the shard's state, the other makes it and its record, and the first one looks for the record."""
    shop.send(50)
    holds, seen = ClaimRecord.holds, []

    def meanwhile(record, topic, shard):
        seen.append(shard)
        other = ShardStore(shop.client, shop.clock)
        other.claim(shard, token="other", plan_version=1, start=0, complete_from_us=0)
        record.add(topic, shard)
        return holds(record, topic, shard)

    monkeypatch.setattr(ClaimRecord, "holds", meanwhile)
    assert shop.run().counters["events"] == 50
    assert len(seen) == 2
    assert sum(shop.control(partition).offset for partition in range(2)) == 50


@pytest.mark.parametrize("delay_h", [0, 1, 7, 25])
def test_what_is_served_is_what_the_event_log_says(shop, delay_h):
    """Stream, store and reader against the offline join over the event log, bit for bit, also as time passes."""
    shop.send(600, broken=True)
    shop.run()
    shop.now_us += delay_h * 3_600_000_000
    events = read_events(shop.folder / "event_log" / TOPIC)
    users = list(range(40))
    view = shop.plan.view("user_orders")
    features = tuple(field.name for field in view.features)
    result = OnlineReader(shop.client, shop.plan, shop.clock).read(
        [Projection(view=view.name, features=features)], {"user_id": users}
    )
    instants = result.columns[0].instant_us
    rows = {"user_id": users, "at": instants}
    expected = windowed_join(
        events,
        pa.table(rows),
        keys={"user_id": "user_id"},
        event_ts="event_timestamp",
        entity_ts="at",
        aggregations=view.aggregations,
    )
    for column in result.columns:
        assert column.values.to_pylist() == expected[column.feature].to_pylist(), column.feature
    assert delay_h > 24 or any(result.column(view.name, "amount_count_24h").values.to_pylist())


def test_a_topic_read_from_its_first_offset_is_complete(shop):
    """Nothing can be missing: no window is reported incomplete."""
    shop.send(50)
    shop.run()
    assert [entry.complete_from_us for entry in shop.registered()] == [None, None]
    assert set(shop.read([1, 2]).statuses.tolist()) == {Status.PRESENT}


def test_a_topic_that_lost_its_beginning_is_complete_from_its_first_record_on(shop):
    """Windows that reach before it are INCOMPLETE, not small."""
    shop.send(60, partition=0)
    shop.send(1, partition=1)
    shop.log.truncate(TOPIC, 0, 10)
    first = shop.log.partition(TOPIC, 0).records[10]
    shop.run()
    expected = first.timestamp_us + AHEAD_TOLERANCE_US
    assert [entry.complete_from_us for entry in shop.registered()] == [expected, None]
    assert shop.control(0).complete_from_us == expected
    assert set(shop.read([1, 2]).statuses.tolist()) == {Status.INCOMPLETE}


def test_windows_are_incomplete_until_the_stream_has_caught_up(shop):
    """A view that begins counts what it has read so far: too little, and reported so; over a restart too."""
    shop.send(100, partition=0)
    first = shop.worker()
    first.turn(0)
    assert set(shop.read([1]).statuses.tolist()) == {Status.INCOMPLETE}
    shop.log.leave(first._source)
    second = shop.worker()
    for _ in range(2):
        second.turn(0)
        assert set(shop.read([1]).statuses.tolist()) == {Status.INCOMPLETE}
    second.turn(0)
    assert set(shop.read([1]).statuses.tolist()) == {Status.PRESENT}
    second.leave()
    shop.send(50, partition=0)
    third = shop.worker()
    third.turn(0)
    assert set(shop.read([1]).statuses.tolist()) == {Status.PRESENT}
    third.leave()


def test_a_partition_that_nobody_has_claimed_makes_windows_incomplete(shop):
    """With one of two partitions read, a count would be too small: it is reported so."""
    shop.send(50)
    other = ScriptedSource(shop.log, [TOPIC])
    worker = shop.worker()
    worker.announce()
    for _ in range(5):
        worker.turn(0)
    assert sorted(str(entry.complete_from_us) for entry in shop.registered()) == sorted([str(NOT_YET), "None"])
    assert set(shop.read([1]).statuses.tolist()) == {Status.INCOMPLETE}
    other.close()


def test_a_store_that_lost_its_state_stops_the_stream(shop):
    """An empty Redis is not taken for a new one: values would be wrong without a word."""
    shop.send(50)
    shop.run()
    shop.client.flushall()
    with pytest.raises(StateLost, match="--start-over"):
        shop.run()
    assert shop.control() is None


def test_starting_over_rebuilds_the_state_from_what_the_topic_has(shop):
    """The tiles are as before, the event log has nothing twice."""
    shop.send(300)
    shop.run()
    before = {key: shop.client.get(key) for key in shop.client.keys("fs:tile:*")}
    shop.client.flushall()
    shop.run(start_over=True)
    assert {key: shop.client.get(key) for key in shop.client.keys("fs:tile:*")} == before
    assert len(read_events(shop.folder / "event_log" / TOPIC)) == 300


def test_an_offset_that_the_topic_no_longer_has_stops_the_stream(shop):
    """Retention overtook the worker: events are lost, and it says so."""
    shop.send(80, partition=0)
    shop.run()
    shop.send(80, partition=0)
    shop.log.truncate(TOPIC, 0, 100)
    with pytest.raises(OffsetGone, match="80"):
        shop.run()


def test_a_view_that_comes_later_reads_the_topic_from_its_beginning(shop):
    """The views that were there skip what they have; nothing counts twice, in tiles or files."""
    shop.send(200)
    shop.run()
    before = {key: shop.client.get(key) for key in shop.client.keys("fs:tile:*")}
    shop.plan = shop_plan(second_view=True)
    shop.run()
    after = {key: shop.client.get(key) for key in shop.client.keys("fs:tile:*")}
    assert {key: after[key] for key in before} == before
    assert len(after) > len(before)
    assert shop.control(0).offset == shop.control(0, "page_orders").offset
    assert len(read_events(shop.folder / "event_log" / TOPIC)) == 200


def test_a_partition_that_is_added_is_read_from_its_beginning(shop):
    """A topic that grows while it is read loses nothing."""
    worker = shop.worker()
    worker.announce()
    shop.send(30)
    worker.turn(0)
    shop.log.create(TOPIC, partitions=3)
    shop.send(30, partition=2)
    for _ in range(6):
        worker.turn(0)
    worker.leave()
    assert shop.control(2).offset == 30
    assert len(read_events(shop.folder / "event_log" / TOPIC)) == 60


def test_a_sink_that_lags_is_caught_up_and_nothing_counts_twice(shop):
    """Killed before its files were written, a worker's tiles are ahead of its log: the next one replays for the log."""
    shop.send(60, partition=0)
    worker = shop.worker()
    worker.turn(0)
    assert shop.control(0).offset == 37
    before = shop.client.dump(next(iter(shop.client.keys("fs:tile:*"))))
    shop.log.leave(worker._source)
    shop.run()
    assert before is not None
    assert len(read_events(shop.folder / "event_log" / TOPIC)) == 60
    counts = shop.read(list(range(20))).values.to_pylist()
    assert sum(counts) == 60


def test_caught_up_means_stored_too_by_whomever(shop):
    """Another worker that has committed all of its partition and dies before its files: its events are stored too."""
    shop.send(40, broken=True)
    dying = shop.worker()
    source = ScriptedSource(shop.log, [TOPIC])
    for _ in range(3):
        dying.turn(0)
    [held] = dying.positions
    assert shop.control(held.partition).offset == len(shop.log.partition(TOPIC, held.partition).records)
    turns = itertools.count()

    def stop():
        if next(turns) == 5:
            shop.log.leave(dying._source)
        return False

    shop.worker(source=source).run(stop, until_caught_up=True)
    stored = len(read_events(shop.folder / "event_log" / TOPIC)) + len(read_quarantine(shop.folder / "quarantine"))
    assert (stored, next(turns) > 5) == (40, True)


def test_files_are_written_when_they_are_due_by_age(shop):
    """A quiet topic's events do not wait for company."""
    shop.send(5, partition=0)
    worker = shop.worker()
    worker.turn(0)
    assert not list((shop.folder / "event_log").rglob("*.parquet"))
    shop.now_us += 5_000_000
    worker.turn(0)
    assert len(list((shop.folder / "event_log").rglob("*.parquet"))) == 1
    worker.leave()


def test_the_watermark_and_the_plan_version_are_recorded(shop):
    """What `stream status` shows."""
    shop.send(50)
    shop.run()
    assert max(shop.control(p).watermark_us for p in (0, 1)) == shop.now_us
    assert shop.control().plan_version == shop.plan.version


def test_a_view_without_aggregations_serves_the_newest_event(shop):
    """The online store's rule: the greatest event time wins, whatever came last; replays change nothing."""
    windowed = shop.plan.view("user_orders")
    latest = msgspec.structs.replace(
        windowed,
        name="last_order",
        kind="latest",
        aggregations=(),
        columns=(),
        features=(Field(name="amount", dtype="DOUBLE"), Field(name="page", dtype="STRING")),
    )
    shop.plan = msgspec.structs.replace(shop.plan, views={"user_orders": windowed, "last_order": latest})
    shop.send(300, broken=True)
    for _ in range(2):
        shop.run(start_over=True)
    newest = {}
    for row in read_events(shop.folder / "event_log" / TOPIC).to_pylist():
        rank = (row["event_timestamp"], row["_arrival"])
        if rank >= newest.get(row["user_id"], (rank, None))[0]:
            newest[row["user_id"]] = (rank, (row["amount"], row["page"]))
    projection = Projection(view="last_order", features=("amount", "page"))
    found = OnlineReader(shop.client, shop.plan, shop.clock).read([projection], {"user_id": list(newest)})
    values = zip(*(column.values.to_pylist() for column in found.columns), strict=True)
    assert list(values) == [value for _, value in newest.values()]


def test_views_that_disagree_about_their_topic_stop_the_start(shop):
    """Better no stream than one that reads two meanings into one column."""
    views = shop_plan(second_view=True).views
    other = msgspec.structs.replace(
        views["page_orders"],
        source=msgspec.structs.replace(views["page_orders"].source, timestamp_field="created"),
    )
    shop.plan = msgspec.structs.replace(shop.plan, views={**views, "page_orders": other})
    with pytest.raises(DefinitionError, match="timestamp field"):
        shop.worker()
