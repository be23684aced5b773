"""Is a shard right after every step, whatever order of events, faults and takeovers Hypothesis thinks of?

The core as it is (verdicts, partials, merge, fold) over a store in memory that keeps the commit's rules; the faults are
rules of a state machine, and after each of them every tile must equal one made from nothing.
"""

import random
from collections import Counter

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import streaming.commit as commit_module
from featurestore.errors import StoreUnavailable
from featurestore.online.keys import Shard
from streaming.audit import audit_shard
from streaming.commit import NOT_YET, Claim, Fenced, Registered, ShardStore
from streaming.held_shard import HeldShard
from streaming.pipeline import TopicPipeline
from streaming.rehearsal import START_US, TOPIC, shop_events, shop_plan
from streaming.source.records import Batch, Record
from streaming.view_pipeline import ViewPipeline

PLAN = shop_plan()
VIEW = PLAN.view("user_orders")
SHARD = Shard("shop", VIEW.name, 1, "id-1", 0)
TOPIC_PIPELINE = TopicPipeline((VIEW,), PLAN.contracts[TOPIC])


class MemoryStore:
    """What a commit may rely on, and no more: epochs, offsets, absolute slots, all or nothing."""

    def __init__(self):
        self.lose(0)
        self.checks_epoch = self.checks_offset = self.checks_reads = True
        self.fate = "well"
        self.meanwhile = None
        """What happens between a holder's reading and its commit."""

    def lose(self, base):
        """Everything is gone; who claims next begins at an offset, the first that the topic still has."""
        self.state = {"epoch": b"0:", "offset": base, "watermark": None, "base": base}
        self.blocks = {}

    def claim(self, token):
        self.state["epoch"] = b"%d:%s" % (int(self.state["epoch"].split(b":")[0]) + 1, token.encode())
        return Claim(SHARD, self.state["epoch"], self.state["offset"], self.state["watermark"], 0)

    def read(self, claim, keys):
        if self.checks_reads:
            self.check(claim)
        return {key: self.blocks.get(key) for key in keys}

    def check(self, claim):
        if self.checks_epoch and self.state["epoch"] != claim.epoch:
            raise Fenced("epoch")
        if self.checks_offset and self.state["offset"] != claim.offset:
            raise Fenced("offset")

    def registered(self, project, view, version):
        return [Registered(SHARD.topic_id, 0, None)]

    def register(self, shard, complete_from_us, *, only_new=False):
        assert complete_from_us in (0, NOT_YET)

    def commit(self, commits):
        [commit] = commits
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        if self.fate == "request lost":
            raise StoreUnavailable("the request was lost")
        try:
            self.check(commit.claim)
        except Fenced as error:
            return [error]
        for write in commit.writes:
            block = bytearray(self.blocks.get(write.key, b""))
            for at, data in write.runs:
                block.extend(b"\0" * (at - len(block)))
                block[at : at + len(data)] = data
            self.blocks[write.key] = bytes(block)
        self.state.update(offset=commit.offset, watermark=commit.watermark_us)
        if self.fate == "reply lost":
            raise StoreUnavailable("the reply was lost")
        return [msgspec.structs.replace(commit.claim, offset=commit.offset, watermark_us=commit.watermark_us)]

    def dump(self):
        return dict(self.state), dict(self.blocks)

    def restore(self, dump):
        self.state, self.blocks = dict(dump[0]), dict(dump[1])


class Core(RuleBasedStateMachine):
    """One shard, its log, and whoever holds or once held it."""

    holders = Bundle("holders")
    dumps = Bundle("dumps")

    def __init__(self):
        super().__init__()
        self.records = []
        self.store = MemoryStore()
        self.now_us = START_US
        self.tokens = 0
        self.rng = random.Random(0)

    @initialize(target=holders, seed=st.integers(0, 99))
    def a_first_holder_finds_events(self, seed):
        self.events_come(40, seed)
        return self.somebody_claims(100_000)

    @rule(count=st.integers(1, 12), seed=st.integers(0, 99))
    def events_come(self, count, seed):
        for event in shop_events(random.Random(seed), count, users=5, start_us=self.now_us):
            self.now_us = event.arrival_us
            self.records.append(Record(0, len(self.records), event.key, event.value, event.arrival_us))

    @rule(target=holders, kept=st.sampled_from([3, 100_000]))
    def somebody_claims(self, kept):
        self.tokens += 1
        return self.held(self.store.claim(f"t{self.tokens}"), kept)

    def held(self, claim, kept):
        return HeldShard(
            ViewPipeline(VIEW),
            claim,
            0,
            store=self.store,
            clock=lambda: self.now_us,
            counters=Counter(),
            slots_kept=kept,
        )

    @rule(
        holder=holders,
        size=st.sampled_from((3, 6)),
        fate=st.sampled_from(["well", "well", "reply lost", "request lost"]),
    )
    def a_holder_goes_on(self, holder, size, fate):
        """Owner or zombie: after an error it is to claim anew, and a zombie that does not know goes on all the same."""
        first = holder.claim.offset
        records = self.records[first : first + size]
        if not records:
            return
        judged = TOPIC_PIPELINE.judge(Batch(TOPIC, "id-1", 0, records, first, first + len(records)))
        self.store.fate = fate
        try:
            holder.fold(judged, 1)
        except (Fenced, StoreUnavailable):
            pass
        finally:
            self.store.fate = "well"

    @rule(holder=holders, other=holders, size=st.sampled_from((3, 6)), dump=dumps)
    def a_holder_is_stopped_before_its_commit(self, holder, other, size, dump):
        """It has read its tiles; another goes on, and the store comes back older, before it wakes up."""

        def meanwhile():
            if other is not holder:
                self.a_holder_goes_on(other, size, "well")
            self.store.restore(dump)

        self.store.meanwhile = meanwhile
        self.a_holder_goes_on(holder, size, "well")
        self.store.meanwhile = None

    @rule(target=holders, base=st.sampled_from((0, 3, 6)))
    def somebody_starts_over(self, base):
        """The store lost all it had, and retention took the topic's first records."""
        self.store.lose(min(base, len(self.records)))
        return self.somebody_claims(100_000)

    @rule(holder=consumes(holders))
    def a_holder_dies(self, holder):
        """With all that it cached."""

    @rule(target=dumps)
    def the_store_is_dumped(self):
        return self.store.dump()

    @rule(dump=dumps)
    def the_store_comes_back_older(self, dump):
        self.store.restore(dump)

    @invariant()
    def every_tile_is_that_of_the_events_below_the_offset(self):
        base, offset = self.store.state["base"], self.store.state["offset"]
        judged = TOPIC_PIPELINE.judge(Batch(TOPIC, "id-1", 0, self.records[base:offset], base, offset))
        events = judged.events.append_column("_topic_id", [["id-1"] * len(judged.events)])
        events = events.append_column("_partition", [[0] * len(judged.events)])
        audit = audit_shard(VIEW, SHARD, events, offset, self.store.blocks, now_us=0)
        assert audit.exact


_SHORT = settings(
    max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


class TestCore(Core.TestCase):
    """A few hundred steps of every run."""

    settings = _SHORT


@pytest.mark.parametrize("check", ["checks_epoch", "checks_offset"])
def test_the_machine_finds_that_a_check_is_missing(check):
    """Either of the commit's checks alone leaves a wrong tile, which rules drawn at random come upon by themselves."""

    class Careless(Core):
        def __init__(self):
            super().__init__()
            setattr(self.store, check, False)

    enough = settings(_SHORT, max_examples=2_000, stateful_step_count=40, derandomize=True, phases=[Phase.generate])
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Careless, settings=enough)


class RealStore(ShardStore):
    """The store as it is, for the same steps."""

    def __init__(self, client):
        super().__init__(client, lambda: START_US)
        self.client = client
        self.base = 0
        self.fate = "well"
        self.meanwhile = None

    @property
    def state(self):
        return {"base": self.base, "offset": self.control(SHARD).offset}

    @property
    def blocks(self):
        return {key: self.client.get(key) for key in self.client.keys(f"fs:tile:{SHARD.tag}:*")}

    def lose(self, base):
        self.client.flushall()
        self.base = base

    def claim(self, token):
        return super().claim(SHARD, token=token, plan_version=1, start=self.base, complete_from_us=0)

    def commit(self, commits):
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        return super().commit(commits)

    def dump(self):
        return {key: self.client.dump(key) for key in self.client.keys()}  # noqa: SIM118 - no dict

    def restore(self, dump):
        self.client.flushall()
        for key, value in dump.items():
            self.client.restore(key, 0, value)


def a_zombie_outlives_the_store(store):
    """It believes to be where the owner is, who began again behind the events that it has counted."""
    core = Core()
    core.store = store
    core.events_come(40, 1)
    zombie = core.held(store.claim("zombie"), 100_000)
    core.a_holder_goes_on(zombie, 18, "well")
    store.lose(9)
    owner = core.held(store.claim("owner"), 100)
    core.a_holder_goes_on(owner, 9, "well")
    assert zombie.claim.offset == owner.claim.offset
    core.a_holder_goes_on(zombie, 9, "well")
    core.every_tile_is_that_of_the_events_below_the_offset()


def a_writer_repeats_what_was_taken_back(store):
    """The store comes back older than its only writer, who goes on."""
    core = Core()
    core.store = store
    core.events_come(60, 1)
    writer = core.held(store.claim("writer"), 100_000)
    core.a_holder_goes_on(writer, 9, "well")
    dump = store.dump()
    core.a_holder_goes_on(writer, 27, "well")
    store.restore(dump)
    core.a_holder_goes_on(writer, 3, "well")
    core.every_tile_is_that_of_the_events_below_the_offset()


def a_zombie_is_stopped_before_its_commit(store):
    """It has read what its successor wrote when the store comes back as it was before there was a successor."""
    core = Core()
    core.store = store
    core.events_come(40, 1)
    zombie = core.held(store.claim("zombie"), 100_000)
    dump = store.dump()
    owner = core.held(store.claim("owner"), 100)
    core.a_holder_goes_on(owner, 9, "well")
    store.meanwhile = lambda: store.restore(dump)
    core.a_holder_goes_on(zombie, 5, "well")
    store.meanwhile = None
    core.every_tile_is_that_of_the_events_below_the_offset()


def _reads_whatever_is_there(monkeypatch):
    monkeypatch.setattr(ShardStore, "read", lambda self, _, keys: {key: self._client.get(key) for key in keys})


def _without(check):
    """Nowhere: a batch for which nothing is read is not stopped by the check of what is read."""

    def plant(monkeypatch):
        script = commit_module._COMMIT.replace(check, "false")
        assert script != commit_module._COMMIT
        _reads_whatever_is_there(monkeypatch)
        monkeypatch.setattr(commit_module, "_COMMIT", script)

    return plant


@pytest.mark.parametrize(
    ("scenario", "plant"),
    [
        (a_zombie_outlives_the_store, _without("held[1] ~= ARGV[1]")),
        (a_writer_repeats_what_was_taken_back, _without("held[2] ~= ARGV[2]")),
        (a_zombie_is_stopped_before_its_commit, _reads_whatever_is_there),
    ],
)
def test_each_check_of_the_store_alone_is_needed(store, monkeypatch, scenario, plant):
    """With all checks the real store is right to the byte; without any one of them the tiles are wrong."""
    scenario(RealStore(store))
    scenario(MemoryStore())
    store.flushall()
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        scenario(RealStore(store))
