"""Do tiles and offset move together, by the holder of the shard alone?"""

import threading

import msgspec
import pytest

import streaming.commit as commit_module
from featurestore.errors import ConfigurationError, StoreUnavailable
from featurestore.online.keys import Shard
from streaming.commit import NOT_YET, Commit, Fenced, ShardStore
from streaming.shard_state import BlockWrite

SHARD = Shard("shop", "orders", 1, "id-1", 0)
NOW_US = 1_700_000_000_000_000
HOUR_US = 3_600_000_000
KEY = SHARD.tile_prefix(60) + b"1:k"


@pytest.fixture
def shards(store):
    return ShardStore(store, lambda: NOW_US)


def claimed(shards, token="t", start=0, complete=0):
    return shards.claim(SHARD, token=token, plan_version=3, start=start, complete_from_us=complete)


def write(data=b"abcd", at=0, expires_us=NOW_US + HOUR_US, key=KEY):
    return BlockWrite(key, expires_us, ((at, data),))


def commit(shards, claim, *writes, offset=None):
    end = claim.offset + 5 if offset is None else offset
    [outcome] = shards.commit([to_commit(claim, *writes, offset=end)])
    if isinstance(outcome, Fenced):
        raise outcome
    return outcome


def to_commit(claim, *writes, offset):
    return Commit(claim=claim, writes=writes, offset=offset, watermark_us=NOW_US, complete_from_us=0, plan_version=3)


def test_a_claim_goes_on_where_the_last_commit_ended(shards):
    """Offset, watermark and complete_from come back as they were committed; the epoch is new."""
    first = commit(shards, claimed(shards), write())
    again = shards.claim(SHARD, token="u", plan_version=4)
    assert (again.offset, again.watermark_us, again.complete_from_us) == (5, NOW_US, 0)
    assert (first.epoch, again.epoch) == (b"1:t", b"2:u")


def test_a_shard_without_a_control_hash_is_not_claimed_by_accident(shards):
    """Whoever wants to begin says where; an empty Redis is not taken for a new shard."""
    assert shards.claim(SHARD, token="t", plan_version=1) is None
    assert shards.control(SHARD) is None


def test_slots_are_written_where_they_belong_and_the_block_expires(shards, store):
    """Absolute bytes at absolute places; what lies between is zero; time to live follows the injected clock."""
    commit(shards, claimed(shards), BlockWrite(KEY, NOW_US + HOUR_US, ((8, b"abcd"), (16, b"ef"))))
    assert store.get(KEY) == b"\0" * 8 + b"abcd" + b"\0" * 4 + b"ef"
    assert 3_590_000 < store.pttl(KEY) <= 3_600_000


def test_a_block_without_expiry_stays(shards, store):
    """All-time tiles are for ever."""
    commit(shards, claimed(shards), write(expires_us=None))
    assert store.pttl(KEY) == -1


def test_a_block_that_the_clock_has_expired_is_not_written(shards, store):
    """It would come to life without a time to die."""
    commit(shards, claimed(shards), write(expires_us=NOW_US), write(key=KEY + b"2"))
    assert store.get(KEY) is None
    assert store.get(KEY + b"2") == b"abcd"


def test_a_zombies_commit_changes_nothing(shards, store):
    """After another claim, the old holder can write neither slots nor offset."""
    zombie = claimed(shards)
    commit(shards, claimed(shards, "u"), write(b"good"))
    with pytest.raises(Fenced, match="epoch"):
        commit(shards, zombie, write(b"evil"))
    assert store.get(KEY) == b"good"
    assert shards.control(SHARD).offset == 5


def zombie_writes_at_the_same_offset(shards):
    zombie = claimed(shards)
    claimed(shards, "u")
    commit(shards, zombie, write(b"evil"))


def test_a_zombie_is_fenced_though_nobody_has_committed_since(shards, store, monkeypatch):
    """The offset alone would let it through: it may run an older plan. Without the epoch check it does get through."""
    with pytest.raises(Fenced, match="epoch"):
        zombie_writes_at_the_same_offset(shards)
    assert store.get(KEY) is None
    monkeypatch.setattr(commit_module, "_COMMIT", commit_module._COMMIT.replace("held[1] ~= ARGV[1]", "false"))
    store.flushall()
    zombie_writes_at_the_same_offset(ShardStore(store, lambda: NOW_US))
    assert store.get(KEY) == b"evil"


def test_a_zombie_reads_nothing(shards):
    """What its successor wrote, or will write, is not of the offset at which it believes to be."""
    zombie = commit(shards, claimed(shards), write())
    assert shards.read(zombie, [KEY]) == {KEY: b"abcd"}
    owner = claimed(shards, "u")
    for ask in (lambda: shards.read(zombie, [KEY]), lambda: shards.read_seen(zombie, {b"fs:seen": [b"id"]})):
        with pytest.raises(Fenced, match="epoch"):
            ask()
    commit(shards, owner, write())
    with pytest.raises(Fenced, match="offset"):
        shards.read(owner, [KEY])


def test_a_commit_whose_reply_was_lost_cannot_be_repeated(shards, store):
    """The offset has moved: the same commit again is refused, and nothing is written twice."""
    claim = claimed(shards)
    commit(shards, claim, write(b"once"))
    with pytest.raises(Fenced, match="offset"):
        commit(shards, claim, write(b"twic"))
    assert store.get(KEY) == b"once"


def test_a_store_that_came_back_older_fences_its_writer(shards, store):
    """The counter repeats after a rollback, the token does not."""
    old = claimed(shards, "old")
    dump = store.dump(SHARD.control_key)
    zombie = claimed(shards, "zombie")
    store.restore(SHARD.control_key, 0, dump, replace=True)
    mine = shards.claim(SHARD, token="mine", plan_version=1)
    assert mine.epoch.split(b":")[0] == zombie.epoch.split(b":")[0]
    for claim in (old, zombie):
        with pytest.raises(Fenced):
            commit(shards, claim, write())
    commit(shards, mine, write())


def test_commits_of_several_shards_stand_each_for_itself(shards, store):
    """The one that is fenced off changes nothing, and keeps none of the others from taking place."""
    other = msgspec.structs.replace(SHARD, partition=SHARD.partition + 1)
    key = other.tile_prefix(60) + b"1:k"
    mine = shards.claim(other, token="t", plan_version=3, start=0, complete_from_us=0)
    zombie = claimed(shards)
    claimed(shards, "u")
    fenced, done = shards.commit(
        [to_commit(zombie, write(b"evil"), offset=5), to_commit(mine, write(b"good", key=key), offset=7)]
    )
    assert isinstance(fenced, Fenced)
    assert done.offset == shards.control(other).offset == 7
    assert (store.get(KEY), store.get(key), shards.control(SHARD).offset) == (None, b"good", 0)


def test_a_store_that_forgot_the_script_is_told_again(shards, store):
    """Scripts do not outlive a restart, tiles do; the claim goes on as if nothing had been."""
    claim = commit(shards, claimed(shards), write(b"once"))
    store.script_flush()
    commit(shards, claim, write(b"more", at=4))
    assert store.get(KEY) == b"oncemore"


def test_a_commit_to_a_store_that_lost_everything_is_fenced(shards, store):
    """No control hash, no commit."""
    claim = claimed(shards)
    store.flushall()
    with pytest.raises(Fenced):
        commit(shards, claim, write())
    assert store.dbsize() == 0


def test_an_empty_batch_may_move_the_offset(shards):
    """Transaction markers and compaction leave holes: a position without records is progress too."""
    claim = commit(shards, claimed(shards), offset=17)
    assert shards.control(SHARD).offset == claim.offset == 17


@pytest.mark.parametrize("blocks", [1, 5000])
def test_many_blocks_are_one_commit(shards, store, blocks):
    """One script, whatever the number of slots."""
    writes = [write(str(number).encode(), at=4, key=KEY + str(number).encode()) for number in range(blocks)]
    claim = commit(shards, claimed(shards), *writes)
    assert shards.read(claim, [item.key for item in writes]) == {
        item.key: b"\0" * 4 + str(number).encode() for number, item in enumerate(writes)
    }


def test_shards_are_listed_for_readers_once(shards):
    """Registering is idempotent; a later value corrects, `only_new` does not."""
    shards.register(SHARD, NOT_YET, only_new=True)
    shards.register(SHARD, 1_700_000_000_000_001)
    shards.register(SHARD, NOT_YET, only_new=True)
    shards.register(SHARD, 1_700_000_000_000_001)
    listed = shards.registered("shop", "orders", 1)
    assert [(item.topic_id, item.partition, item.complete_from_us) for item in listed] == [
        ("id-1", 0, 1_700_000_000_000_001)
    ]


def test_shards_registered_at_once_are_all_listed(shards, store):
    """Two workers that register at the same time lose none of each other's entries."""

    def register(partitions):
        own = ShardStore(store, lambda: NOW_US)
        for partition in partitions:
            own.register(Shard("shop", "orders", 1, "id-1", partition), 0)

    threads = [threading.Thread(target=register, args=(range(n, 40, 4),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [item.partition for item in shards.registered("shop", "orders", 1)] == list(range(40))


def test_a_store_that_may_evict_is_refused(shards, store):
    """A tile dropped for memory's sake would be a wrong value."""
    shards.check_policy()
    store.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(ConfigurationError, match="allkeys-lru"):
            shards.check_policy()
    finally:
        store.config_set("maxmemory-policy", "noeviction")


def test_a_store_out_of_memory_is_unavailable_and_unchanged(shards, store):
    """With noeviction a full Redis refuses the script as a whole."""
    claim = claimed(shards)
    store.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreUnavailable):
            commit(shards, claim, write())
    finally:
        store.config_set("maxmemory", "0")
    assert store.get(KEY) is None
    assert shards.control(SHARD).offset == 0
