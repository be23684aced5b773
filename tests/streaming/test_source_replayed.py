"""Does a source with replays hand over the first of each origin, wherever it is sought, and nothing twice?"""

import random

import pytest

from streaming.plan_watch import PLAN_AGE_S, PlanWatch
from streaming.source.records import Assigned, NotAssigned, OffsetGone, TopicPartition
from streaming.source.replayed import ORIGIN, WithReplays, is_replay, replay_topic
from streaming.source.scripted import ScriptedLog, ScriptedSource

TOPIC = "orders"
MAIN = TopicPartition(TOPIC, "id-1", 0)
REPLAY = TopicPartition(TOPIC, "id-2.replay", 0)


def log_of(rng, count):
    """A topic, and its replay topic in which events were sent up to four times; one in five says no origin."""
    log = ScriptedLog()
    log.create(TOPIC, partitions=1, topic_id="id-1")
    log.create(replay_topic(TOPIC), partitions=1, topic_id="id-2")
    for number in range(3):
        log.append(TOPIC, 0, b"main %d" % number, timestamp_us=number)
    for number in range(count):
        origin = b"id-1-0-%d" % rng.randrange(max(count // 3, 1))
        headers = () if rng.random() < 0.2 else ((ORIGIN, origin),)
        log.append(replay_topic(TOPIC), 0, b"replayed %d" % number, timestamp_us=number, headers=headers)
    return log


def expected(log):
    """The offsets that count, one by one."""
    seen, found = set(), []
    for record in log.partition(replay_topic(TOPIC), 0).records:
        origin = dict(record.headers).get(ORIGIN)
        if origin is None or origin not in seen:
            found.append(record.offset)
        seen.add(origin)
    return found


def source_of(log, most):
    return WithReplays(ScriptedSource(log, [TOPIC, replay_topic(TOPIC)], max_records=most), [TOPIC])


def read(source, offsets):
    """Everything from these offsets on, by partition; each batch starts where the last one ended."""
    assigned = [each for change in source.drain_rebalances() for each in change.partitions]
    found = {partition: [] for partition in assigned}
    for partition, offset in offsets.items():
        source.seek(partition, offset)
    positions, ends = dict(offsets), source.end_offsets(list(offsets))
    while positions != ends:
        for batch in source.poll(0):
            assert batch.position_before == positions[batch.source]
            assert batch.replayed is is_replay(batch.topic_id)
            positions[batch.source] = batch.position_after
            found[batch.source] += [record.offset for record in batch.records]
    return found, positions


@pytest.mark.parametrize("seed", range(20))
def test_from_any_offset_the_same_events_count(seed):
    """A claim in the middle knows what came before it; what is handed over does not depend on where it was sought."""
    rng = random.Random(seed)
    log = log_of(rng, rng.randrange(1, 40))
    whole = expected(log)
    end = len(log.partition(replay_topic(TOPIC), 0).records)
    for start in sorted({0, end, *(rng.randrange(end + 1) for _ in range(4))}):
        source = source_of(log, rng.randrange(1, 9))
        found, positions = read(source, {MAIN: 0, REPLAY: start})
        source.close()
        assert found[MAIN] == [0, 1, 2]
        assert found[REPLAY] == [offset for offset in whole if offset >= start]
        assert positions[REPLAY] == end


def test_a_claim_again_hands_over_what_it_did():
    """After a failure the same partition is sought where it was; nothing is left out for having been seen."""
    log = log_of(random.Random(1), 30)
    source = source_of(log, 7)
    source.drain_rebalances()
    source.seek(MAIN, 0)
    source.seek(REPLAY, 0)
    for _ in range(3):
        source.poll(0)
    again = []
    for start in (0, 10, 0):
        source.seek(REPLAY, start)
        found = []
        position = start
        while position < 30:
            for batch in source.poll(0):
                if batch.replayed:
                    found += [record.offset for record in batch.records]
                    position = batch.position_after
        again.append(found)
    whole = expected(log)
    assert again == [whole, [offset for offset in whole if offset >= 10], whole]


def test_partitions_and_errors_have_the_topics_name():
    """Those who read behind it know one topic, with further partitions."""
    log = log_of(random.Random(2), 5)
    source = source_of(log, 5)
    (change,) = source.drain_rebalances()
    assert isinstance(change, Assigned)
    assert set(change.partitions) == {MAIN, REPLAY} == set(source.partitions_of(TOPIC))
    assert source.beginning_offsets([REPLAY]) == {REPLAY: 0}
    assert source.end_offsets([MAIN, REPLAY]) == {MAIN: 3, REPLAY: 5}
    assert source.known_end(REPLAY) == 5
    other = TopicPartition(TOPIC, "id-9.replay", 0)
    with pytest.raises((NotAssigned, OffsetGone)) as told:
        source.seek(other, 0)
    assert told.value.partition == other
    source.pause([REPLAY])
    source.resume([REPLAY])
    source.close()


def test_a_topic_whose_name_ends_so_is_a_topic():
    """Only the replay topics that were named are read as such."""
    log = ScriptedLog()
    log.create("a.replay", partitions=1, topic_id="id-3")
    source = WithReplays(ScriptedSource(log, ["a.replay"]), [])
    (change,) = source.drain_rebalances()
    assert change.partitions == (TopicPartition("a.replay", "id-3", 0),)


def test_a_running_worker_notices_the_first_replay():
    """It is made anew within seconds, and then reads the topic that appeared."""
    there = []
    now = [0.0]

    class Plans:
        def version(self):
            return 1

    class Beat:
        def beat(self):
            pass

        saw_plan = beat

    class Plan:
        version = 1

    watch = PlanWatch(
        Plans(),
        Plan(),
        lambda plan: (),
        lambda plan, views: (),
        lambda: now[0],
        Beat(),
        lambda: False,
        lambda: bool(there),
    )
    now[0] += PLAN_AGE_S
    assert watch.news() is None
    assert not watch.ended()
    there.append("orders.replay")
    now[0] += PLAN_AGE_S
    assert watch.news() is None
    assert watch.ended()
