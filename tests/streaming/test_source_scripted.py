"""The scripted log keeps the promises of a source, accidents included."""

import pytest

from featurestore.errors import UnknownName
from streaming.source.records import Assigned, NotAssigned, OffsetGone, Revoked, SourceUnavailable, TopicPartition
from streaming.source.scripted import Crash, ScriptedLog, ScriptedSource, Shuffle, Stray


def start(log: ScriptedLog, *, max_records: int = 500) -> ScriptedSource:
    source = ScriptedSource(log, ["t"], max_records=max_records)
    claim(source)
    return source


def claim(source: ScriptedSource, offset: int = 0) -> None:
    for change in source.drain_rebalances():
        if isinstance(change, Assigned):
            for partition in change.partitions:
                source.seek(partition, offset)


@pytest.fixture
def log() -> ScriptedLog:
    scripted = ScriptedLog()
    scripted.create("t", partitions=1)
    return scripted


def test_nothing_is_delivered_before_the_first_seek(log: ScriptedLog) -> None:
    """A source never chooses where to start."""
    log.append("t", 0, b"a")
    source = ScriptedSource(log, ["t"])
    assert source.poll(0) == []
    claim(source)
    assert len(source.poll(0)) == 1


def test_the_position_passes_holes_without_a_record(log: ScriptedLog) -> None:
    """A poll over a hole alone gives an empty batch that moved."""
    log.hole("t", 0, 3)
    [batch] = start(log).poll(0)
    assert (batch.records, batch.position_before, batch.position_after) == ((), 0, 3)


def test_batches_are_contiguous(log: ScriptedLog) -> None:
    """Each batch starts where the one before ended, whatever max_records cuts."""
    for number in range(10):
        log.append("t", 0, b"%d" % number)
    source = start(log, max_records=3)
    ranges = [(b.position_before, b.position_after) for _ in range(5) for b in source.poll(0)]
    assert ranges == [(0, 3), (3, 6), (6, 9), (9, 10)]


def test_a_crash_fires_once_and_loses_nothing(log: ScriptedLog) -> None:
    """After the failed poll the same position is read."""
    log.append("t", 0, b"a")
    log.accident("t", 0, Crash())
    log.append("t", 0, b"b")
    source = start(log)
    assert [r.value for b in source.poll(0) for r in b.records] == [b"a"]
    with pytest.raises(SourceUnavailable, match="t-0 offset 1"):
        source.poll(0)
    assert [r.value for b in source.poll(0) for r in b.records] == [b"b"]


def test_a_shuffled_partition_must_be_sought_again(log: ScriptedLog) -> None:
    """Revoked and Assigned come as values, and nothing is delivered between them and the seek."""
    log.append("t", 0, b"a")
    log.accident("t", 0, Shuffle())
    log.append("t", 0, b"b")
    source = start(log)
    source.poll(0)
    assert source.poll(0) == []
    [tp] = source.partitions_of("t")
    assert source.drain_rebalances() == [Revoked((tp,)), Assigned((tp,))]
    assert source.poll(0) == []
    source.seek(tp, 1)
    assert [r.value for b in source.poll(0) for r in b.records] == [b"b"]


def test_a_stray_is_visible_in_position_before(log: ScriptedLog) -> None:
    """The batch tells the truth about where it was fetched from, so that a reader can refuse it."""
    log.append("t", 0, b"a")
    log.accident("t", 0, Stray(0))
    source = start(log)
    source.poll(0)
    [batch] = source.poll(0)
    assert batch.position_before == 0


def test_two_sources_share_the_partitions(log: ScriptedLog) -> None:
    """Every partition has one owner; a leaver's go to those that stay."""
    log.create("t", partitions=3)
    first = start(log)
    second = ScriptedSource(log, ["t"])
    [*_, a] = first.drain_rebalances()
    [*_, b] = second.drain_rebalances()
    assert sorted(tp.partition for tp in a.partitions + b.partitions) == [0, 1, 2]
    second.close()
    [*_, a] = first.drain_rebalances()
    assert len(a.partitions) == 3


def test_an_expired_member_is_a_zombie_until_it_wakes(log: ScriptedLog) -> None:
    """It goes on reading what another already owns; waking, it learns that it lost it."""
    log.append("t", 0, b"a")
    zombie = start(log)
    log.expire(zombie)
    heir = start(log)
    assert len(zombie.poll(0)) == len(heir.poll(0)) == 1
    zombie.awake()
    [tp] = zombie.partitions_of("t")
    assert zombie.drain_rebalances()[0] == Revoked((tp,), lost=True)


def test_an_offset_that_retention_took_is_named(log: ScriptedLog) -> None:
    """Reading never jumps to what is left."""
    log.append("t", 0, b"a")
    log.append("t", 0, b"b")
    log.truncate("t", 0, before=1)
    with pytest.raises(OffsetGone, match="t-0 has no offset 0: it holds 1 to 2") as caught:
        start(log).poll(0)
    assert caught.value.beginning == 1


def test_a_paused_partition_keeps_its_position(log: ScriptedLog) -> None:
    """Backpressure stops delivery and nothing else."""
    log.append("t", 0, b"a")
    source = start(log)
    source.pause(source.partitions_of("t"))
    assert source.poll(0) == []
    source.resume(source.partitions_of("t"))
    assert source.poll(0)[0].position_before == 0


def test_seeking_what_is_not_assigned_is_refused(log: ScriptedLog) -> None:
    """A rebalance may come between the drain and the seek."""
    with pytest.raises(NotAssigned, match="t-7"):
        start(log).seek(TopicPartition("t", "id-of-t", 7), 0)


def test_an_unknown_topic_is_named(log: ScriptedLog) -> None:
    """The message says what exists."""
    with pytest.raises(UnknownName, match="no topic 'x'; what exists: t"):
        ScriptedSource(log, ["x"])
