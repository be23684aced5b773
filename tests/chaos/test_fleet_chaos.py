"""Do real processes on a real broker leave every byte right, whatever is done to them, and never show a wrong value?

A few seeds belong to every run; `make chaos SEEDS=100` takes as many as one likes.
"""

import os
from collections import Counter

import pytest
from brokers import EMBEDDED, choice
from fleet import ZOMBIES_EVENTS, EmbeddedProcess, Fleet, RealKafka, accounted, run

SEEDS = int(os.environ.get("CHAOS_SEEDS", "0"))


@pytest.fixture(scope="module")
def own_broker(tmp_path_factory):
    """A broker that may be killed: nobody else's."""
    folder = tmp_path_factory.mktemp("broker")
    broker = EmbeddedProcess(folder) if choice()[0] == EMBEDDED else RealKafka(folder)
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def fleet_of(tmp_path, own_broker):
    fleets = []

    def make(seed, **options):
        fleets.append(Fleet(tmp_path, own_broker, seed, **options))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_whatever_is_done_to_a_fleet_every_byte_is_right(fleet_of, seed):
    """Kills, stops, rebalances, a store dead or back older, cut replies, a dead broker, aborts, full disks."""
    fleet = fleet_of(seed)
    run(fleet)
    assert fleet.verify() > 5
    assert sum(fleet.happened.values()) == 8


def _zombies(fleet, *, rounds, wanted):
    for name in ("a", "b"):
        fleet.start(name)
    for _ in range(rounds):
        if fleet.zombie() >= wanted:
            break
    fleet.finish()


@pytest.mark.slow
@pytest.mark.kafka
def test_a_process_that_was_taken_for_dead_commits_nothing_more(fleet_of):
    """Stopped beyond its session, its partitions in other hands, it wakes up: its commits are fenced, all is right."""
    fleet = fleet_of(20_000, session_s=1.5, events=6 * ZOMBIES_EVENTS)
    _zombies(fleet, rounds=6, wanted=1)
    assert fleet.happened["fenced"] > 0, "no zombie had anything to commit: nothing was tested"
    fleet.verify()


def test_events_are_counted_against_what_was_sent():
    """A broker that lost a confirmed event, or holds one that nobody sent, is told apart from one in doubt."""
    sent, doubtful = Counter({b"a": 2, b"b": 1}), Counter({b"c": 1})
    accounted(sent, doubtful, Counter({b"a": 2, b"b": 1}))
    accounted(sent, doubtful, Counter({b"a": 2, b"b": 1, b"c": 1}))
    for held in ({b"a": 1, b"b": 1}, {b"a": 2, b"b": 1, b"c": 2}, {b"a": 2, b"b": 1, b"d": 1}):
        with pytest.raises(AssertionError):
            accounted(sent, doubtful, Counter(held))


@pytest.mark.nightly
@pytest.mark.kafka
@pytest.mark.parametrize("seed", range(20_001, 20_001 + SEEDS // 5))
def test_many_more_zombies(fleet_of, seed):
    """The same, over and over, whether or not there was something in hand."""
    fleet = fleet_of(seed, session_s=1.5, events=2 * ZOMBIES_EVENTS)
    _zombies(fleet, rounds=2, wanted=100)
    fleet.verify()


@pytest.mark.nightly
@pytest.mark.kafka
@pytest.mark.parametrize("seed", range(10_000, 10_000 + SEEDS))
def test_many_more_fleets(fleet_of, seed):
    """The same, over and over."""
    fleet = fleet_of(seed)
    run(fleet)
    fleet.verify()


@pytest.mark.nightly
@pytest.mark.kafka
@pytest.mark.parametrize("seed", range(30_000, 30_000 + max(SEEDS // 5, 2)))
def test_fleets_of_machines_over_an_object_store(fleet_of, in_bucket, seed):
    """The same where events lie in an object store, and whoever goes on has nothing of who was before."""
    fleet = fleet_of(seed, events_url=str(in_bucket))
    run(fleet)
    fleet.verify()


@pytest.mark.nightly
@pytest.mark.kafka
@pytest.mark.parametrize("seed", range(40_000, 40_000 + max(SEEDS // 5, 1)))
def test_a_machine_that_was_taken_for_dead_stores_nothing_twice(fleet_of, in_bucket, seed):
    """It wakes up while another has its partitions: reports, files and tiles have each event once."""
    fleet = fleet_of(seed, session_s=1.5, events_url=str(in_bucket), events=3 * ZOMBIES_EVENTS)
    _zombies(fleet, rounds=3, wanted=100)
    fleet.verify()
