"""Does an event that was sent twice count once in the stream too, whatever happens in between?"""

import inspect
import itertools
import random
import types

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streaming.held_shard as held_shard_module
from featurestore.errors import StoreUnavailable
from featurestore.offline.event_log import read_events
from featurestore.offline.history import historical_features
from featurestore.online.control import CONTROL_CHECK, CONTROL_FIELDS, control_check
from featurestore.online.keys import Shard
from featurestore.online.reader import OnlineReader
from featurestore.plan import Projection
from streaming import seen_ids as seen_ids_module
from streaming.audit import audit_shard
from streaming.claim_record import ClaimRecord
from streaming.commit import Commit, ShardStore
from streaming.pipeline import TopicPipeline
from streaming.rehearsal import START_US, TOPIC, shop_event, shop_plan
from streaming.seen_ids import DISORDER_US, SHORTEST_SPAN_US, SeenIds
from streaming.sinks import EventLog, Quarantine, RangeSink
from streaming.source.records import Batch, Record
from streaming.source.scripted import Crash, ScriptedLog, ScriptedSource, Shuffle
from streaming.view_pipeline import ViewPipeline
from streaming.worker import Pace, Worker

HORIZON_US = 90_000_000
MINUTE_US = 60_000_000
SHARD = Shard("shop", "user_orders", 1, "id-1", 0)
USERS = 4


def plan_of(horizon_us=HORIZON_US, *, second_view=False):
    """The shop's plan, its event ids with that horizon."""
    plan = shop_plan(second_view=second_view, contract=False)
    views = {}
    for name, view in plan.views.items():
        topic = msgspec.structs.replace(view.source.topic, event_id_horizon_us=horizon_us)
        views[name] = msgspec.structs.replace(view, source=msgspec.structs.replace(view.source, topic=topic))
    return msgspec.structs.replace(plan, views=views)


def order(number, user=1, ts_us=START_US, **changes):
    plain = msgspec.json.decode(shop_event(random.Random(number), number, ts_us, USERS))
    return msgspec.json.encode({**plain, "user_id": user, **changes})


def like(value):
    """What is equal in duplicates; None where nothing can be."""
    event = msgspec.json.decode(value)
    found = (event["event_id"], event["user_id"], event["event_timestamp"])
    return None if None in found else found


def counted(records, horizon_us=HORIZON_US):
    """Offsets that count, of records of one partition: the rule, read aloud."""
    anchors, counting = {}, []
    for record in records:
        own = anchors.setdefault(like(record.value), [])
        if like(record.value) is None or all(abs(record.timestamp_us - at) > horizon_us for at in own):
            own.append(record.timestamp_us)
            counting.append(record.offset)
    return counting


class Spans:
    """The store: hashes by key, and the spans that the control hash names."""

    def __init__(self):
        self.held, self.spans = {}, ()

    def read(self, fields):
        return {key: {name: self.held.get(key, {}).get(name) for name in names} for key, names in fields.items()}

    def write(self, change):
        self.spans = change.spans
        for write in change.writes:
            held = {} if write.afresh else self.held.get(write.key, {})
            self.held[write.key] = {**held, **dict(write.fields)}
        self.held = {key: held for key, held in self.held.items() if held}


class Stream:
    """A shard's ids alone, batch by batch."""

    def __init__(self, horizon_us=HORIZON_US, ids_kept=100):
        plan = plan_of(horizon_us)
        self.topic = TopicPipeline(tuple(plan.views.values()))
        self.pipeline = ViewPipeline(plan.view("user_orders"))
        self.horizon_us, self.ids_kept = horizon_us, ids_kept
        self.store = Spans()
        self.restart()

    def restart(self):
        self.ids = SeenIds(self.pipeline, SHARD, "event_id", horizon_us=self.horizon_us, ids_kept=self.ids_kept)

    def take(self, records, *, now_us, committed=True):
        judged = self.topic.judge(Batch(TOPIC, "id-1", 0, tuple(records), records[0].offset, records[-1].offset + 1))
        assert not judged.rejected
        once = self.ids.once(judged, self.store.spans, self.store.read, now_us=now_us)
        if committed and once.change is not None:
            self.store.write(once.change)
            self.ids.advance(once.change)
        return once


@st.composite
def partitions(draw):
    """Records of few ids; arrivals on and around the horizons of others, also some minutes out of order."""
    edges = [0, 1, HORIZON_US - 1, HORIZON_US, HORIZON_US + 1, 2 * HORIZON_US + 1, 20 * HORIZON_US]
    arrival = latest = START_US
    records = []
    for offset in range(draw(st.integers(1, 20))):
        arrival += draw(st.sampled_from([*edges, -1, -HORIZON_US, -HORIZON_US - 1, -DISORDER_US]))
        latest = max(latest, arrival)
        arrival = max(arrival, latest - DISORDER_US)
        event_id = draw(st.sampled_from(["a", "a", "b", None]))
        value = order(
            offset, draw(st.integers(1, 2)), START_US - DISORDER_US - draw(st.integers(0, 1)), event_id=event_id
        )
        records.append(Record(0, offset, b"1", value, arrival))
    return records


@settings(deadline=None)
@given(partitions(), st.lists(st.tuples(st.integers(1, 7), st.sampled_from(["go", "restart", "lost"]))), st.booleans())
def test_every_event_counts_once_however_the_log_is_cut(records, steps, early):
    """Batches of any size, restarts and commits that never happened change nothing; nor does the clock."""
    stream, offsets, left = Stream(ids_kept=3), [], records
    for size, fate in [*steps, (len(records), "go")]:
        now_us = 0 if early else records[-1].timestamp_us + 10**15
        if fate == "restart":
            stream.restart()
        if left and fate == "lost":
            stream.take(left[:size], now_us=now_us, committed=False)
            stream.restart()
        elif left:
            offsets += stream.take(left[:size], now_us=now_us).judged.offsets.tolist()
            left = left[size:]
    assert offsets == counted(records)


@pytest.mark.parametrize(("late_us", "counts"), [(-1, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize("horizon_us", [1, 7, MINUTE_US, HORIZON_US, 3_600_000_000])
@pytest.mark.parametrize("start_us", [START_US, -1, 0])
def test_the_horizon_is_inclusive_to_the_microsecond(horizon_us, late_us, counts, start_us):
    """On either side of its end, for horizons shorter and longer than a span, across the epoch too."""
    stream = Stream(horizon_us)
    first = Record(0, 0, b"1", order(1, ts_us=start_us), start_us)
    again = Record(0, 1, b"1", first.value, start_us + horizon_us + late_us)
    assert len(stream.take([first], now_us=START_US).judged.events) == 1
    stream.restart()
    once = stream.take([again], now_us=START_US)
    assert (len(once.judged.events), once.change.duplicates, once.change.reused) == (counts, 1 - counts, 0)


def test_the_same_id_at_another_time_is_another_event_and_reported():
    """Two events of one key under one id: both count, and the producer's fault is counted while the horizon lasts."""
    stream = Stream()
    values = [order(1), order(1, ts_us=START_US - 1), order(1, user=2), order(1, ts_us=START_US - 2)]
    arrivals = [START_US, START_US, START_US, START_US + HORIZON_US + 1]
    records = [Record(0, n, b"1", v, at) for n, (v, at) in enumerate(zip(values, arrivals, strict=True))]
    reused = [stream.take([record], now_us=START_US).change.reused for record in records]
    assert reused == [0, 1, 0, 0]


def test_an_event_without_id_or_key_is_never_a_duplicate():
    """Nulls are equal to nothing, and nothing is kept of them."""
    stream = Stream()
    records = [Record(0, n, b"1", order(1, event_id=None), START_US) for n in range(2)]
    records += [Record(0, n, b"1", order(1, user=None), START_US) for n in range(2, 4)]
    once = stream.take(records, now_us=START_US)
    assert (len(once.judged.events), once.change) == (4, None)


def test_what_is_kept_is_bounded_by_the_log_and_by_the_cache():
    """Spans go once the log is past them by a horizon and the disorder allowed; the cache when it is full."""
    stream = Stream(ids_kept=50)
    longest = 2 + (HORIZON_US + DISORDER_US) // max(HORIZON_US, SHORTEST_SPAN_US) + 1
    for number in range(400):
        at_us = START_US + number * 30_000_000
        stream.take([Record(0, number, b"1", order(number, ts_us=at_us), at_us)], now_us=at_us)
        assert len(stream.store.held) == len(stream.store.spans) <= longest
        assert len(stream.ids) <= 50 + 3


def test_one_arrival_dated_2400_forgets_nothing():
    """The clock must have passed a span too before it is dropped."""
    stream = Stream()
    far = START_US + 400 * 365 * 86_400_000_000
    stream.take([Record(0, 0, b"1", order(1), START_US)], now_us=START_US)
    stream.take([Record(0, 1, b"1", order(2), far)], now_us=START_US)
    once = stream.take([Record(0, 2, b"1", order(1), START_US + HORIZON_US)], now_us=START_US + HORIZON_US)
    assert once.change.duplicates == 1


def test_a_topic_without_a_horizon_keeps_nothing():
    """No ids, no reads, no writes."""
    assert SeenIds.of(ViewPipeline(shop_plan().view("user_orders")), SHARD) is None


def test_a_span_left_from_a_shard_that_began_anew_is_not_believed(store):
    """Ids in the hash of a span that the control hash does not name are dropped before the span is used."""
    shards = ShardStore(store, lambda: START_US)
    stream = Stream()
    record = Record(0, 0, b"1", order(1), START_US)
    change = stream.take([record], now_us=START_US, committed=False).change
    [write] = change.writes
    store.hset(write.key, b"stale", b"0" * 16)
    claim = shards.claim(SHARD, token="t", plan_version=1, start=0, complete_from_us=0)
    marks = {"watermark_us": None, "complete_from_us": 0, "plan_version": 1}
    [claim] = shards.commit([Commit(claim=claim, writes=[], offset=1, seen=change, **marks)])
    assert store.hkeys(write.key) == [write.fields[0][0]]
    assert claim.spans == change.spans == shards.claim(SHARD, token="u", plan_version=1).spans


class FlakyStore(ShardStore):
    """Requests and replies get lost as the dice say."""

    def __init__(self, client, clock, dice, calm):
        super().__init__(client, clock)
        self._dice, self._calm = dice, calm

    def commit(self, commits):
        fate = 1.0 if self._calm[0] else self._dice.random()
        if fate < 0.1:
            raise StoreUnavailable("scripted: the request was lost")
        done = super().commit(commits)
        if fate < 0.2:
            raise StoreUnavailable("scripted: the reply was lost")
        return done


class World:
    """A topic full of repeats, a store and files; workers come and go."""

    def __init__(self, client, folder, seed):
        self.dice = random.Random(seed)
        self.client, self.folder = client, folder
        self.plan = plan_of(second_view=True)
        self.calm = [False]
        self.tokens = itertools.count()
        self.now_us = START_US
        self.log = ScriptedLog()
        self.log.create(TOPIC, partitions=2, topic_id="id-1")
        self.sent = []

    def produce(self, count):
        """New events, and repeats of sent ones around the edges of their horizons; some are torn."""
        for _ in range(count):
            self.now_us += self.dice.choice((0, 1, 1_000_000, 20_000_000))
            fate, dice = self.dice.random(), self.dice
            partition, arrival = dice.randrange(2), self.now_us
            value = order(dice.randrange(10**9), dice.randrange(USERS), self.now_us - dice.randrange(600_000_000))
            if fate < 0.6 and self.sent:
                partition, first, value = dice.choice(self.sent[-20:])
                arrival = first + dice.choice((HORIZON_US - 1, HORIZON_US, HORIZON_US + 1, HORIZON_US // 2))
                arrival = max(self.now_us, arrival)
                if fate < 0.1:
                    value = msgspec.json.encode({**msgspec.json.decode(value), "amount": 1.0})
                elif fate < 0.15:
                    event = msgspec.json.decode(value)
                    value = msgspec.json.encode({**event, "event_timestamp": event["event_timestamp"] - 1})
                elif fate < 0.18:
                    value = value[:20]
                elif fate < 0.2:
                    partition = 1 - partition
            if dice.random() < 0.03:
                self.log.accident(TOPIC, partition, dice.choice((Crash(), Shuffle())))
            self.log.append(TOPIC, partition, value, key=b"k", timestamp_us=arrival)
            self.now_us = arrival
            if len(value) > 20:
                self.sent.append((partition, arrival, value))

    def worker(self, until):
        def clock():
            return self.now_us

        source = ScriptedSource(self.log, [TOPIC], max_records=self.dice.randrange(3, 25))
        storages = [EventLog(self.folder / "event_log"), Quarantine(self.folder / "quarantine", {})]
        worker = Worker(
            source,
            FlakyStore(self.client, clock, self.dice, self.calm),
            [RangeSink(storage, clock, flush_rows=40) for storage in storages],
            self.plan,
            views=tuple(self.plan.views.values()),
            record=ClaimRecord(self.folder / "event_log"),
            clock=clock,
            new_token=lambda: f"t{next(self.tokens)}",
            pace=Pace(poll_ms=0),
            sleep=lambda seconds: None,
        )
        for _ in range(until):
            worker.turn(0)
        if until:
            self.log.leave(source)  # It is gone without a word.
        else:
            worker.run(lambda: False, until_caught_up=True)

    def run(self):
        """Lives of workers that die, one of them followed by hours in which nobody reads."""
        self.produce(250)
        for _ in range(6):
            self.worker(self.dice.randrange(1, 6))
        self.now_us += 2 * 3_600_000_000
        self.calm[0] = True
        self.worker(0)

    def verify(self):
        """Tiles, served values, training values and counters agree with the rule."""
        events = read_events(self.folder / "event_log" / TOPIC)
        repeated = 0
        for partition in range(2):
            sound = [record for record in self.log.partition(TOPIC, partition).records if len(record.value) > 20]
            duplicates = len(sound) - len(counted(sound))
            repeated += duplicates
            for view in self.plan.views.values():
                shard = msgspec.structs.replace(SHARD, view=view.name, partition=partition)
                control = ShardStore(self.client, lambda: 0).control(shard)
                stored = {key: self.client.get(key) for key in self.client.keys(f"fs:tile:{shard.tag}*")}
                audit = audit_shard(view, shard, events, control.offset, stored, now_us=self.now_us)
                assert audit.exact
                assert audit.compared
                assert control.duplicates == duplicates
        assert repeated > 20
        for view, keys in (("user_orders", {"user_id": list(range(USERS))}), ("page_orders", {"page": pages(events)})):
            self.verify_values(view, keys)
        return repeated

    def verify_values(self, view, keys):
        features = tuple(field.name for field in self.plan.view(view).features)
        projection = Projection(view=view, features=features)
        served = OnlineReader(self.client, self.plan, lambda: self.now_us).read([projection], keys)
        instants = pa.array(served.columns[0].instant_us).cast(pa.timestamp("us", "UTC"))
        rows = pa.table({**keys, "event_timestamp": instants})
        trained = historical_features(self.plan, [projection], rows, repo=self.folder)
        for column in served.columns:
            assert column.values.to_pylist() == trained[column.feature].to_pylist(), column.feature
        assert any(trained["amount_count_24h"].to_pylist())


def pages(events):
    return sorted(set(events["page"].to_pylist()))


@pytest.mark.parametrize("seed", range(4))
def test_stream_and_training_count_every_event_once(store, tmp_path, seed):
    """Workers that die, replies that are lost, hours without a worker: tiles and joins are equal to the bit."""
    world = World(store, tmp_path, seed)
    world.run()
    world.verify()


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1000, 1100))
def test_many_more_seeds(store, tmp_path, seed):
    """The same, for long."""
    world = World(store, tmp_path, seed)
    world.run()
    world.verify()


def planted(monkeypatch, old, new):
    """The module with one line of it changed, in the worker's hands."""
    source = inspect.getsource(seen_ids_module)
    assert source.count(old) == 1
    module = types.ModuleType("streaming.seen_ids_with_a_fault")
    exec(compile(source.replace(old, new), module.__name__, "exec"), module.__dict__)
    monkeypatch.setattr(held_shard_module, "SeenIds", module.SeenIds)


def exclusive(monkeypatch):
    planted(monkeypatch, "abs(arrival_us - counted_us) <= self", "abs(arrival_us - counted_us) < self")


def from_the_last_repeat(monkeypatch):
    keep = "place = (arrival_us // self._span_us, field)\n                "
    keep += "counted[place] = (*there(place), (ts_us, arrival_us))\n                continue"
    planted(
        monkeypatch, "counts[row] = False\n                continue", f"counts[row] = False\n                {keep}"
    )


def forgets_by_the_clock(monkeypatch):
    planted(monkeypatch, "min(max(every) * self._span_us, now_us)", "now_us + 7_200_000_000")


def another_time_is_the_same(monkeypatch):
    planted(monkeypatch, "if ts_us in near:", "if near:")


def forgets_at_a_restart(monkeypatch):
    claim = ShardStore.claim

    def forgetful(self, shard, **options):
        found = claim(self, shard, **options)
        return found and msgspec.structs.replace(found, spans=())

    monkeypatch.setattr(ShardStore, "claim", forgetful)


def ids_before_tiles(monkeypatch):
    """Ids in a call of their own: a batch whose commit is lost is then its own duplicate."""
    commit = FlakyStore.commit

    def hasty(self, commits):
        return commit(self, [self._ids_first(each) for each in commits])

    def ids_first(self, one):
        if one.seen is None:
            return one
        for write in one.seen.writes:
            if write.fields:
                self._client.hset(write.key, mapping=dict(write.fields))
        control = one.claim.shard.control_key
        self._client.hset(control, "seen", " ".join(map(str, one.seen.spans)))
        self._client.hset(control, CONTROL_CHECK, control_check(self._client.hmget(control, CONTROL_FIELDS)))
        return msgspec.structs.replace(one, seen=msgspec.structs.replace(one.seen, writes=()))

    monkeypatch.setattr(FlakyStore, "_ids_first", ids_first, raising=False)
    monkeypatch.setattr(FlakyStore, "commit", hasty)


@pytest.mark.parametrize(
    "plant",
    [
        exclusive,
        from_the_last_repeat,
        forgets_by_the_clock,
        another_time_is_the_same,
        forgets_at_a_restart,
        ids_before_tiles,
    ],
)
def test_a_planted_fault_is_caught(store, tmp_path, monkeypatch, plant):
    """Each wrong rule ends in a wrong byte or count: the checks can fail."""
    plant(monkeypatch)
    for seed in range(4):
        store.flushall()
        world = World(store, tmp_path / str(seed), seed)
        world.run()
        try:
            world.verify()
        except AssertionError:
            return
    pytest.fail("no seed noticed the planted fault")


def test_a_batch_whose_reply_was_lost_is_not_its_own_duplicate(store, tmp_path):
    """It was committed; read again from the files' cursor, it is skipped by its offset before its ids are looked at."""
    world = World(store, tmp_path, 0)
    lost = iter([True])
    commit = FlakyStore.commit

    class LosesOneReply(FlakyStore):
        def commit(self, commits):
            done = commit(self, commits)
            if any(each.seen is not None for each in commits) and next(lost, False):
                raise StoreUnavailable("scripted: the reply was lost")
            return done

    world.calm[0] = True
    world.dice = random.Random(1)
    for number in range(6):
        world.log.append(TOPIC, 0, order(number), key=b"k", timestamp_us=START_US)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FlakyStore, "commit", LosesOneReply.commit)
        world.worker(0)
    control = ShardStore(store, lambda: 0).control(SHARD)
    assert (next(lost, None), control.offset, control.duplicates) == (None, 6, 0)
    projection = Projection(view="user_orders", features=("amount_count_24h",))
    served = OnlineReader(store, world.plan, lambda: START_US).read([projection], {"user_id": [1]})
    assert served.column("user_orders", "amount_count_24h").values.to_pylist() == [6]
