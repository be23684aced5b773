"""Is a shard right after every step, whatever order of events, faults and takeovers Hypothesis thinks of?

The core as it is (verdicts, partials, merge, fold) over a store in memory that keeps the commit's rules; the faults are
rules of a state machine, and after each of them every tile must equal one made from nothing.
"""

import random
from collections import Counter

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from featurestore.errors import StoreUnavailable
from featurestore.online.keys import Shard
from streaming.audit import audit_shard
from streaming.commit import NOT_YET, Claim, Fenced, Registered
from streaming.held_shard import HeldShard
from streaming.pipeline import TopicPipeline, ViewPipeline
from streaming.rehearsal import START_US, TOPIC, shop_events, shop_plan
from streaming.source.records import Batch, Record

PLAN = shop_plan()
VIEW = PLAN.view("user_orders")
SHARD = Shard("shop", VIEW.name, 1, "id-1", 0)
TOPIC_PIPELINE = TopicPipeline((VIEW,), PLAN.contracts[TOPIC])


class MemoryStore:
    """What a commit may rely on, and no more: epochs, offsets, absolute slots, all or nothing."""

    def __init__(self):
        self.state = {"epoch": b"0:", "offset": 0, "watermark": None}
        self.blocks = {}
        self.checks_epoch = self.checks_offset = True
        self.fate = "well"

    def claim(self, token):
        self.state["epoch"] = b"%d:%s" % (int(self.state["epoch"].split(b":")[0]) + 1, token.encode())
        return Claim(SHARD, self.state["epoch"], self.state["offset"], self.state["watermark"], 0)

    def read(self, keys):
        return {key: self.blocks.get(key) for key in keys}

    def registered(self, project, view, version):
        return [Registered(SHARD.topic_id, 0, None)]

    def register(self, shard, complete_from_us, *, only_new=False):
        assert complete_from_us in (0, NOT_YET)

    def commit(self, claim, writes, *, offset, watermark_us, **marks):
        if self.fate == "request lost":
            raise StoreUnavailable("the request was lost")
        if self.checks_epoch and self.state["epoch"] != claim.epoch:
            raise Fenced("epoch")
        if self.checks_offset and self.state["offset"] != claim.offset:
            raise Fenced("offset")
        for write in writes:
            block = bytearray(self.blocks.get(write.key, b""))
            for at, data in write.runs:
                block.extend(b"\0" * (at - len(block)))
                block[at : at + len(data)] = data
            self.blocks[write.key] = bytes(block)
        self.state.update(offset=offset, watermark=watermark_us)
        if self.fate == "reply lost":
            raise StoreUnavailable("the reply was lost")
        return msgspec.structs.replace(claim, offset=offset, watermark_us=watermark_us)

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

    @rule(holder=holders, size=st.integers(1, 9), fate=st.sampled_from(["well", "well", "reply lost", "request lost"]))
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
        offset = self.store.state["offset"]
        judged = TOPIC_PIPELINE.judge(Batch(TOPIC, "id-1", 0, self.records[:offset], 0, offset))
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


def a_zombie_writes_after_the_owner(store):
    """What the rules above come upon sooner or later, in the fewest steps."""
    core = Core()
    core.store = store
    core.events_come(40, 1)
    zombie = core.held(store.claim("zombie"), 100)
    core.a_holder_goes_on(zombie, 9, "well")
    owner = core.held(store.claim("owner"), 100)
    for _ in range(3):
        core.a_holder_goes_on(owner, 9, "well")
    core.a_holder_goes_on(zombie, 9, "well")
    core.every_tile_is_that_of_the_events_below_the_offset()


def test_a_store_that_checks_nothing_is_caught():
    """The planted fault: without the commit's checks a zombie leaves a wrong tile, and the invariant says so."""
    a_zombie_writes_after_the_owner(MemoryStore())
    careless = MemoryStore()
    careless.checks_epoch = careless.checks_offset = False
    with pytest.raises(AssertionError):
        a_zombie_writes_after_the_owner(careless)
