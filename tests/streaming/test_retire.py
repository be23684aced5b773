"""Does a version go that nobody reads any more, and is whom it waits for told?"""

import time

import pytest

from featurestore.aggregation.tiles import HEAD
from featurestore.errors import UsageError
from featurestore.online.keys import Shard
from featurestore.plan_store import PlanStore
from featurestore.plan_users import PlanUsers
from featurestore.plan_versions import begun, flipped
from streaming.commit import ShardStore
from streaming.rehearsal import START_US, shop_plan
from streaming.retire import Retirement
from streaming.run_record import RunRecords

VIEW = "user_orders"


def test_a_version_goes_once_nobody_uses_it(store):
    """Whoever still goes by the plan before is named, and loses nothing; then it goes, and that is said."""
    plans, users, said, warned, slept = PlanStore(store, "shop"), PlanUsers(store, "shop", lambda: START_US), [], [], []
    plans.publish(shop_plan())
    for step in (begun, flipped):
        held = plans.load()
        plans.replace(held, step(held, VIEW, now_us=START_US))
    [former] = plans.load().retiring
    retirement = Retirement(
        plans, users, ShardStore(store, lambda: START_US), clock=lambda: START_US, sleep=slept.append, grace_s=0
    )
    ticking = iter(range(100)).__next__
    users.report("a reader", 1)
    assert not retirement.complete(3, lambda: False, said.append, warned.append, seconds=ticking)
    assert warned == [
        "waits for a reader to go over to the plan in force, 3 s at most",
        "still used by a reader; `featurestore stream drop` goes on with it",
    ]
    assert (said, bool(slept), plans.load().retiring) == ([], True, (former,))
    assert not retirement.complete(3, lambda: True, said.append, warned.append, seconds=ticking)
    users.leave("a reader")
    assert retirement.complete(3, lambda: False, said.append, warned.append, seconds=ticking)
    assert said == [f"view {VIEW}: version {former.version} dropped, 0 keys"]
    assert (len(warned), plans.load().retiring, plans.load().unused) == (2, (), ())


def test_one_run_over_a_view_at_a_time(tmp_path):
    """A second one would fence the first for ever; it is refused, until that has ended."""
    records = RunRecords(tmp_path)
    with (
        records.alone(VIEW),
        records.alone("another"),
        pytest.raises(UsageError, match="running already"),
        records.alone(VIEW),
    ):
        pass
    with records.alone(VIEW):
        pass


def test_tiles_of_a_version_that_goes_stay_for_reads_that_have_begun(store):
    """They go by themselves, and nobody waits for it; no writer can commit to them meanwhile."""
    shards = ShardStore(store, lambda: START_US)
    shard = Shard("shop", VIEW, 1, "t", 0)
    shards.claim(shard, token="a", plan_version=1, start=0, complete_from_us=0)
    tiles = [shard.tile_prefix(HEAD) + name for name in (b"a", b"b")]
    for tile in tiles:
        store.set(tile, b"value")
    assert shards.remove("shop", VIEW, 1, after_s=0.2) == 3
    assert shards.control(shard) is None
    assert all(0 < store.pttl(tile) <= 200 for tile in tiles)
    time.sleep(0.3)
    assert not store.exists(*tiles)
