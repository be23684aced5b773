"""Does the cache of a shard ever know better than the store?"""

import itertools
import random

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.aggregation.tiles import HEAD
from featurestore.online.keys import Shard
from streaming.audit import expected_blocks
from streaming.pipeline import TopicPipeline
from streaming.rehearsal import START_US, TOPIC, shop_contract, shop_event, shop_events, shop_plan
from streaming.shard_state import ShardState
from streaming.source.records import Batch, Record
from streaming.view_pipeline import ViewPipeline

SHARD = Shard("shop", "user_orders", 1, "id-1", 0)
PLAN = shop_plan()
TOPICS = TopicPipeline(tuple(PLAN.views.values()), shop_contract())
VIEW = ViewPipeline(PLAN.view("user_orders"))


def judged_batches(seed, count=400, size=37):
    events = list(shop_events(random.Random(seed), count, users=6))
    for first in range(0, count, size):
        part = events[first : first + size]
        records = tuple(
            Record(0, first + number, event.key, event.value, event.arrival_us) for number, event in enumerate(part)
        )
        yield TOPICS.judge(Batch(TOPIC, "id-1", 0, records, first, first + len(records)))


class Blocks:
    """The store: blocks by key, written as SETRANGE does; counts what is read."""

    def __init__(self):
        self.held = {}
        self.reads = 0

    def read(self, keys):
        self.reads += len(keys)
        return {key: self.held.get(key) for key in keys}

    def write(self, change):
        for write in change.writes:
            block = bytearray(self.held.get(write.key, b""))
            for at, data in write.runs:
                block.extend(b"\0" * (at + len(data) - len(block)))
                block[at : at + len(data)] = data
            self.held[write.key] = bytes(block)


def fold(state, blocks, judged, *, committed=True):
    partials = VIEW.partials(judged, now_us=START_US)
    change = state.merge(partials, blocks.read, slack_us=VIEW.slack_us)
    if committed:
        blocks.write(change)
        state.advance(change)
    return change


def in_log(batches):
    tables = [judged.events for judged in batches]
    events = pa.concat_tables(tables)
    return events.append_column("_topic_id", pa.array(["id-1"] * len(events))).append_column(
        "_partition", pa.array([0] * len(events), pa.int32())
    )


def stripped(blocks):
    return {key: block.rstrip(b"\0") for key, block in blocks.items()}


@pytest.mark.parametrize("slots_kept", [0, 7, 100_000])
@pytest.mark.parametrize("seed", range(3))
def test_batch_by_batch_is_as_if_all_at_once(seed, slots_kept):
    """Whatever is cached or dropped between batches, the store ends with the bytes of one aggregation of all."""
    batches = list(judged_batches(seed))
    state, blocks = ShardState(SHARD, slots_kept=slots_kept), Blocks()
    for judged in batches:
        fold(state, blocks, judged)
    expected = expected_blocks(VIEW.view, SHARD, in_log(batches), 10_000)
    assert stripped(blocks.held) == stripped({key: block for key, (block, _) in expected.items()})


def test_a_merge_that_is_not_committed_changes_nothing():
    """The core is pure: the same batch merges to the same writes again, until it is advanced."""
    first, second, *_ = judged_batches(1)
    state, blocks = ShardState(SHARD), Blocks()
    fold(state, blocks, first)
    once = fold(state, blocks, second, committed=False)
    again = fold(state, blocks, second)
    assert {write.key: write.runs for write in once.writes} == {write.key: write.runs for write in again.writes}


def test_a_dropped_cache_is_read_again():
    """A new claim starts from the store alone and writes the same."""
    first, second, *_ = judged_batches(2)
    kept, blocks = ShardState(SHARD), Blocks()
    fold(kept, blocks, first)
    warm = fold(kept, blocks, second, committed=False)
    cold = fold(ShardState(SHARD), blocks, second, committed=False)
    assert {write.key: write.runs for write in warm.writes} == {write.key: write.runs for write in cold.writes}


def test_a_block_is_read_once():
    """What the cache has, or knows to be empty, is not asked for again."""
    [judged, *_] = judged_batches(3, size=200)
    state, blocks = ShardState(SHARD), Blocks()
    fold(state, blocks, judged)
    reads = blocks.reads
    fold(state, blocks, judged)
    assert blocks.reads == reads > 0


def test_the_cache_is_bounded():
    """Above its bound it is dropped and grows anew."""
    state, blocks = ShardState(SHARD, slots_kept=20), Blocks()
    for judged in judged_batches(4):
        fold(state, blocks, judged)
        assert len(state) <= 20 + 2 * 37


def test_a_block_says_when_no_window_needs_it():
    """End of its last tile, the longest window of its hop, one hop, and the slack; a head: when no level does."""
    state, blocks = ShardState(SHARD), Blocks()
    [first, second, *_] = judged_batches(5, size=200)
    minute = 60_000_000
    spans = {5 * minute: 360 * minute, 60 * minute: 1440 * minute}
    writes = fold(state, blocks, first).writes + fold(state, blocks, second).writes
    seen = set()
    for write in writes:
        hop, block = map(int, write.key.split(b"}:")[1].split(b":")[:2])
        seen.add(hop)
        if hop == HEAD:
            tile = int.from_bytes(write.runs[0][1][:8], "little")
            start = tile * 5 * minute
            expected = max((start // (32 * h) + 1) * 32 * h + window + h for h, window in spans.items())
        else:
            expected = (block + 1) * 32 * hop + spans[hop] + hop
        assert write.expires_us == expected + VIEW.slack_us
    assert seen == {HEAD, *spans}


def test_an_event_changes_one_slot_while_its_tile_lasts():
    """Two levels, and a key's events within one tile: one head is written, and no tile before the next one begins."""
    state, blocks = ShardState(SHARD), Blocks()
    tile_us = 300_000_000
    start = START_US // tile_us * tile_us
    keys = []
    for number, ts_us in enumerate([start, start + 1, start + tile_us - 1, start + tile_us]):
        value = shop_event(random.Random(1), number, ts_us, 1)
        records = (Record(0, number, b"0", value, ts_us),)
        change = fold(state, blocks, TOPICS.judge(Batch(TOPIC, "id-1", 0, records, number, number + 1)))
        keys.append(sorted(int(write.key.split(b"}:")[1].split(b":")[0]) for write in change.writes))
    assert keys == [[HEAD], [HEAD], [HEAD], [HEAD, tile_us, 12 * tile_us]]


EDGE_US = 300_000_000
TIMES = st.builds(
    lambda tile, off: (START_US // EDGE_US - tile) * EDGE_US + off,
    st.sampled_from([0, 1, 2, 11, 12, 13, 31, 32, 33, 200]),
    st.sampled_from([-1, 0, 1]),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 1), TIMES), max_size=12), st.lists(st.integers(0, 12), max_size=3))
def test_what_is_stored_follows_from_the_set_of_events(events, cuts):
    """However events of any tiles come, and wherever batches are cut: the bytes of one aggregation of all."""
    state, blocks, batches = ShardState(SHARD, slots_kept=3), Blocks(), []
    edges = sorted({0, len(events), *(cut for cut in cuts if cut < len(events))})
    for first, end in itertools.pairwise(edges):
        records = tuple(
            Record(0, first + place, b"", order_at(user, ts_us, first + place), START_US)
            for place, (user, ts_us) in enumerate(events[first:end])
        )
        batches.append(TOPICS.judge(Batch(TOPIC, "id-1", 0, records, first, end)))
        fold(state, blocks, batches[-1])
    expected = expected_blocks(VIEW.view, SHARD, in_log(batches), 10_000) if batches else {}
    assert stripped(blocks.held) == stripped({key: block for key, (block, _) in expected.items()})


def order_at(user, ts_us, number):
    plain = msgspec.json.decode(shop_event(random.Random(number), number, ts_us, 1))
    return msgspec.json.encode({**plain, "user_id": user})


def differs(seed):
    batches = list(judged_batches(seed))
    state, blocks = ShardState(SHARD, slots_kept=100_000), Blocks()
    for judged in batches:
        fold(state, blocks, judged)
    expected = expected_blocks(VIEW.view, SHARD, in_log(batches), 10_000)
    return stripped(blocks.held) != stripped({key: block for key, (block, _) in expected.items()})


def test_planted_late_events_taken_for_the_heads_are_caught(monkeypatch):
    """An event of a tile that was rolled up already must reach that tile, not the head."""
    true = ShardState._heads_after

    def faulty(self, layout, part, own, read):
        held = self._heads.heads["tile"][own[part.code]] if self._heads is not None else part.tile
        return true(self, layout, msgspec.structs.replace(part, tile=np.maximum(part.tile, held)), own, read)

    assert not differs(0)
    monkeypatch.setattr(ShardState, "_heads_after", faulty)
    assert differs(0)


@pytest.mark.parametrize("fault", ["lost", "twice"])
def test_planted_roll_ups_are_caught(monkeypatch, fault):
    """A passed head that reaches its levels not at all, or once more with the next batch, is seen."""
    true = ShardState._heads_after

    def faulty(self, layout, part, own, read):
        heads, rolled = true(self, layout, part, own, read)
        some = slice(0, 0) if fault == "lost" else np.tile(np.arange(len(rolled.entity)), 2)
        return heads, type(rolled)(rolled.entity[some], rolled.tile[some], rolled.slots[some])

    monkeypatch.setattr(ShardState, "_heads_after", faulty)
    assert differs(0)
