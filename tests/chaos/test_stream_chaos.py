"""After everything has gone wrong, is every byte still right?

Workers read a scripted log into a real store and real files while crashes, zombies, lost requests and replies, rolled
back stores, failing disks and strays are drawn at random. In the end each tile must equal one made from nothing, each
event must be accounted for, and the event log must hold each offset once. The planted faults show that these checks
can fail: each takes one safeguard away and must be caught.
"""

import itertools
import random
from collections import Counter

import msgspec
import pyarrow as pa
import pytest

import streaming.commit as commit_module
from featurestore.errors import StoreUnavailable
from featurestore.offline.event_log import ARRIVAL, OFFSET, PARTITION, TOPIC_ID, read_events
from featurestore.online.keys import Shard
from streaming.audit import audit_shard
from streaming.claim_record import ClaimRecord
from streaming.commit import ShardStore
from streaming.in_force import InForce, Piece
from streaming.rehearsal import START_US, TOPIC, shop_events, shop_plan
from streaming.sinks import EventLog, Quarantine, RangeSink
from streaming.source.records import Batch
from streaming.source.scripted import Crash, ScriptedLog, ScriptedSource, Shuffle, Stray
from streaming.verdicts import Verdicts
from streaming.view_pipeline import LevelPartials
from streaming.worker import News, Pace, Worker
from validation.quarantine import read_quarantine

PARTITIONS = 3
EVENTS = 900
USERS = 25


class KilledError(BaseException):
    """A worker dies here and now: nothing after this line happens."""


class FlakyStore(ShardStore):
    """A store whose requests and replies get lost, and whose caller dies around a commit, as the dice say."""

    def __init__(self, client, clock, dice, *, calm):
        super().__init__(client, clock)
        self._dice = dice
        self._calm = calm

    def commit(self, commits):
        fate = 1.0 if self._calm() else self._dice.random()
        if fate < 0.03:
            raise StoreUnavailable("scripted: the request was lost")
        if fate < 0.05:
            raise KilledError
        if 0.10 <= fate < 0.13:
            super().commit(commits[: self._dice.randrange(len(commits))])
            raise StoreUnavailable("scripted: only some of the requests arrived")
        done = super().commit(commits)
        if 0.05 <= fate < 0.08:
            raise StoreUnavailable("scripted: the reply was lost")
        if 0.08 <= fate < 0.10:
            raise KilledError
        return done


class Flaky:
    """Files whose disk is full at times, and whose writer dies before or after the file is there."""

    def __init__(self, storage, dice, calm):
        self.storage = storage
        self.dice = dice
        self.calm = calm

    def __getattr__(self, name):
        return getattr(self.storage, name)

    def store(self, partition, batches, first, last):
        fate = 1.0 if self.calm[0] else self.dice.random()
        if fate < 0.05:
            raise OSError(28, "scripted: no space left on device")
        if fate < 0.10:
            raise KilledError
        self.storage.store(partition, batches, first, last)
        if fate < 0.15:
            raise KilledError


class World:
    """One topic, one store, one event log, two workers at a time."""

    def __init__(self, client, folder, seed, *, only_rollbacks=False, tightens=False):
        self.dice = random.Random(seed)
        self.client = client
        self.folder = folder / "event_log"
        self.plan = shop_plan(second_view=True)
        self.only_rollbacks = only_rollbacks
        self.calm = [only_rollbacks]
        self.tokens = itertools.count()
        self.tightens = tightens
        self.now_us = START_US
        self.log = ScriptedLog()
        self.log.create(TOPIC, partitions=PARTITIONS, topic_id="id/1")
        self.produce(EVENTS // 10 if tightens else EVENTS)
        self.workers = []
        self.dump = None
        self.spawned = 0

    def produce(self, count):
        events = list(shop_events(self.dice, count, users=USERS, start_us=self.now_us))
        for event in events:
            partition = self.dice.randrange(PARTITIONS)
            fate = self.dice.random()
            if fate < 0.04 or self.only_rollbacks:
                self.log.hole(TOPIC, partition, self.dice.randrange(4))
            elif fate < 0.06:
                self.log.accident(TOPIC, partition, self.dice.choice((Crash(), Shuffle())))
            elif fate < 0.07:
                self.log.accident(TOPIC, partition, Stray(self.dice.randrange(20)))
            elif fate < 0.08:
                # Forward: without a check of continuity, events would be lost.
                end = len(self.log.partition(TOPIC, partition).records)
                self.log.accident(TOPIC, partition, Stray(end + 1))
            self.log.append(TOPIC, partition, event.value, key=event.key, timestamp_us=event.arrival_us)
        for partition in range(PARTITIONS):
            self.log.append(TOPIC, partition, None, timestamp_us=events[-1].arrival_us)
        self.now_us = events[-1].arrival_us

    def spawn(self):
        source = ScriptedSource(self.log, [TOPIC], max_records=self.dice.randrange(5, 60))
        store = FlakyStore(self.client, lambda: self.now_us, self.dice, calm=lambda: self.calm[0])
        storages = [EventLog(self.folder), Quarantine(self.folder.parent / "quarantine", self.plan.contracts)]
        sinks = [
            RangeSink(Flaky(storage, self.dice, self.calm), lambda: self.now_us, flush_rows=self.dice.randrange(5, 150))
            for storage in storages
        ]
        worker = Worker(
            source,
            store,
            sinks,
            self.plan,
            views=tuple(self.plan.views.values()),
            record=ClaimRecord(self.folder),
            clock=lambda: self.now_us,
            new_token=lambda: f"token-{next(self.tokens)}",
            pace=Pace(slots_kept=self.dice.choice((50, 100_000))),
            sleep=lambda seconds: None,
        )
        worker.source = source
        self.spawned += 1
        self.workers.append(worker)

    def turn(self):
        """One worker moves, or something happens to it."""
        while len(self.workers) < 2:
            self.spawn()
        worker = self.dice.choice(self.workers)
        fate = self.dice.random()
        try:
            if worker.topics and worker._plan is not self.plan and fate < 0.5:
                worker.adopt(News(self.plan, tuple(self.plan.views.values()), worker._sinks))
                fate = 1.0
            if self.only_rollbacks:
                worker.turn(0)
                if fate < 0.3:
                    self.roll_back()
            elif fate < 0.02:
                self.bury(worker)
            elif fate < 0.04 and not worker.source.asleep:
                self.log.expire(worker.source)
                self.spawn()
            elif fate < 0.07:
                self.roll_back()
            elif fate < 0.10:
                worker.leave()
                self.workers.remove(worker)
            else:
                worker.turn(0)
        except KilledError:
            self.bury(worker)
        if len(self.workers) > 3:
            self.bury(self.workers[0])

    def bury(self, worker):
        """The worker is gone without a word; the group notices."""
        self.workers.remove(worker)
        self.log.leave(worker.source)

    def roll_back(self):
        """The store comes back as it once was; or this is such a moment to come back to."""
        shards = [self.shard(view, partition) for view in self.plan.views for partition in range(PARTITIONS)]
        if not all(self.client.exists(shard.control_key) for shard in shards):
            return
        if self.dump is None or self.dice.random() < 0.5:
            self.dump = {key: (max(self.client.pttl(key), 0), self.client.dump(key)) for key in self.client.keys()}  # noqa: SIM118 - no dict
            return
        self.client.flushall()
        for key, (ttl, value) in self.dump.items():
            self.client.restore(key, ttl, value)

    def run(self, turns=150):
        for number in range(turns):
            if self.tightens and number in (turns // 4, turns // 2):
                self.tighten()
            if self.tightens and number % 10 == 0:
                self.produce(EVENTS // 20)
            self.turn()
        self.settle()

    def tighten(self):
        """The contract asks for more from now on; workers hear of it one by one, and events keep coming."""
        [contract] = self.plan.contracts.values()
        rules = tuple(
            msgspec.structs.replace(rule, arguments={**rule.arguments, "max_value": 40 / self.plan.version})
            if rule.id == "amount_range"
            else rule
            for rule in contract.rules
        )
        contract = msgspec.structs.replace(contract, rules=rules)
        self.plan = msgspec.structs.replace(self.plan, version=self.plan.version + 1, contracts={TOPIC: contract})

    def settle(self):
        """Peace: one worker, no faults, until everything is read and stored."""
        self.calm[0] = True
        for worker in self.workers:
            self.log.leave(worker.source)
        self.workers.clear()
        for _ in range(2):
            self.spawn()
            worker = self.workers.pop()
            worker.run(itertools.repeat(False).__next__, until_caught_up=True)

    def shard(self, view, partition):
        return Shard("shop", view, 1, "id/1", partition)

    def verify(self):
        """Every tile, every event, every offset; raises AssertionError for what is wrong."""
        events = read_events(self.folder / TOPIC)
        stored = {key: self.client.get(key) for key in self.client.keys("fs:tile:*")}
        compared = 0
        for view in self.plan.views.values():
            for partition in range(PARTITIONS):
                shard = self.shard(view.name, partition)
                end = len(self.log.partition(TOPIC, partition).records)
                assert ShardStore(self.client, lambda: 0).control(shard).offset == end
                prefix = f"fs:tile:{shard.tag}:".encode()
                own = {key: value for key, value in stored.items() if key.startswith(prefix)}
                audit = audit_shard(view, shard, events, end, own, now_us=self.now_us)
                assert audit.exact, f"{len(audit.different)} of {audit.compared} blocks differ in {shard}"
                compared += audit.compared
        assert compared > 20
        self.verify_log(events)

    def verify_log(self, events: pa.Table):
        """The event log holds exactly the accepted events, untransformed, each once."""
        verdicts = Verdicts(self.folder, TOPIC)
        verdicts.look(dict)
        held = Counter(zip(events[PARTITION].to_pylist(), events[OFFSET].to_pylist(), strict=True))
        assert set(held.values()) == {1}
        parts, rejected, versions = [], [], set()
        seen = sent = 0
        for partition in range(PARTITIONS):
            records = tuple(record for record in self.log.partition(TOPIC, partition).records if record is not None)
            batch = Batch(TOPIC, "id/1", partition, records, 0, records[-1].offset + 1)
            for [judged], version in verdicts.judge([batch]):
                versions.add(version)
                seen += len(judged.events) + len(judged.rejected)
                rejected += [
                    (partition, item.record.offset, item.record.value or b"", item.reason) for item in judged.rejected
                ]
                number = pa.array([partition] * len(judged.events), pa.int32())
                parts.append(judged.events.append_column(PARTITION, number))
            sent += len(records)
        assert seen == sent
        assert versions == ({1, 2, 3} if self.tightens else {1})
        names = parts[0].column_names
        order = [(PARTITION, "ascending"), (OFFSET, "ascending")]
        expected = pa.concat_tables(parts).select(names).sort_by(order)
        assert events.select(names).sort_by(order).to_pylist() == expected.to_pylist()
        assert set(events[TOPIC_ID].to_pylist()) == {"id/1"}
        assert events[ARRIVAL].null_count == 0
        kept = read_quarantine(self.folder.parent / "quarantine", TOPIC)
        columns = [kept[name].to_pylist() for name in ("partition", "offset", "row", "reason")]
        assert list(zip(*columns, strict=True)) == sorted(rejected)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_goes_wrong_every_byte_is_right_in_the_end(store, tmp_path, seed):
    """Crashes, zombies, lost replies, rollbacks, full disks, holes, strays: all of them, in any order."""
    world = World(store, tmp_path, seed)
    world.run()
    world.verify()
    assert world.spawned > 3


@pytest.mark.parametrize("seed", range(4))
def test_a_contract_that_is_tightened_meanwhile_is_kept_alike_on_every_path(store, tmp_path, seed):
    """Workers hear of it at different times and die around it: tiles, files and replays judge each offset alike."""
    world = World(store, tmp_path, seed, tightens=True)
    world.run()
    world.verify()


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(2000, 2100))
def test_many_more_seeds_of_tightened_contracts(store, tmp_path, seed):
    """The same, for long."""
    world = World(store, tmp_path, seed, tightens=True)
    world.run(turns=300)
    world.verify()


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1000, 1200))
def test_many_more_seeds(store, tmp_path, seed):
    """The same, for long."""
    world = World(store, tmp_path, seed)
    world.run(turns=300)
    world.verify()


def _no_offset_check(monkeypatch):
    script = commit_module._COMMIT.replace("held[2] ~= ARGV[2]", "false")
    monkeypatch.setattr(commit_module, "_COMMIT", script)
    monkeypatch.setattr(ShardStore, "read", lambda self, _, keys: {key: self._client.get(key) for key in keys})


def _no_continuity_check(monkeypatch):
    follows = Worker._follows

    def careless(self, batch):
        if batch.source in self._held:
            self._held[batch.source].position = batch.position_before
        return follows(self, batch)

    monkeypatch.setattr(Worker, "_follows", careless)


def _cursor_before_file(monkeypatch):
    begin = RangeSink._begin

    def hasty(self, partition, buffer):
        self._move(partition, buffer.position)
        begin(self, partition, buffer)

    monkeypatch.setattr(RangeSink, "_begin", hasty)


def _partitions_are_mixed_up(monkeypatch):
    """What was aggregated together goes to the next partition's tiles."""
    by_batch = LevelPartials.by_batch

    def mixed_up(self, firsts):
        found = by_batch(self, firsts)
        for one, (left, right) in enumerate(itertools.pairwise(found)):
            if left is not None and right is not None and left.code.max() == right.code.max():
                found[one : one + 2] = right, left
        return found

    monkeypatch.setattr(LevelPartials, "by_batch", mixed_up)


def _newest_plan_judges(monkeypatch):
    def newest(self, partition, first, after):
        return (Piece(first, after, self.latest),)

    monkeypatch.setattr(InForce, "pieces", newest)


def _own_plan_judges(monkeypatch):
    """Each worker judges by the plan that it has heard of, as if that were in force."""
    judge = Verdicts.judge

    def own(self, batches, count=None):
        proposed = getattr(self, "proposed", None)
        for together, version in judge(self, batches, count):
            batches = [judged.batch for judged in together]
            yield (self._pipeline(proposed).judge_together(batches) if proposed else together), version

    propose = Verdicts.propose

    def noted(self, definitions, **options):
        self.proposed = definitions
        propose(self, definitions, **options)

    monkeypatch.setattr(Verdicts, "propose", noted)
    monkeypatch.setattr(Verdicts, "judge", own)


@pytest.mark.parametrize(
    ("plant", "world"),
    [
        (_no_offset_check, {"only_rollbacks": True}),
        (_no_continuity_check, {}),
        (_cursor_before_file, {}),
        (_partitions_are_mixed_up, {}),
        (_newest_plan_judges, {"tightens": True}),
        (_own_plan_judges, {"tightens": True}),
    ],
)
def test_a_planted_fault_is_caught(store, tmp_path, monkeypatch, plant, world):
    """Without any one safeguard, some seed ends with a wrong byte or a lost event: the checks can fail."""
    plant(monkeypatch)
    for seed in range(30):
        store.flushall()
        made = World(store, tmp_path / str(seed), seed, **world)
        try:
            made.run()
            made.verify()
        except AssertionError:
            return
    pytest.fail("no seed noticed the planted fault")


def test_rollbacks_alone_leave_no_trace(store, tmp_path):
    """The world in which the missing offset check is caught is harmless with it."""
    world = World(store, tmp_path, 0, only_rollbacks=True)
    world.run()
    world.verify()
