"""Do real processes on a real broker leave every byte right, whatever is done to them, and never show a wrong value?

A few seeds belong to every run; `make chaos SEEDS=100` takes as many as one likes.
"""

import os

import pytest
from brokers import EMBEDDED, choice
from fleet import EmbeddedProcess, Fleet, RealKafka, run

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

    def make(seed):
        fleets.append(Fleet(tmp_path, own_broker, seed))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_done_to_a_fleet_every_byte_is_right(fleet_of, seed):
    """Kills, stops, rebalances, a store dead or back older, cut replies, a dead broker, aborts, full disks."""
    fleet = fleet_of(seed)
    run(fleet)
    assert fleet.verify() > 5
    assert sum(fleet.happened.values()) == 8


@pytest.mark.nightly
@pytest.mark.kafka
@pytest.mark.parametrize("seed", range(10_000, 10_000 + SEEDS))
def test_many_more_fleets(fleet_of, seed):
    """The same, over and over."""
    fleet = fleet_of(seed)
    run(fleet)
    fleet.verify()
