"""Does everybody judge an offset by the same definitions, whoever decided and whoever came late?"""

import msgspec
import pytest

from featurestore.errors import StaleStore
from streaming.in_force import InForce, definitions_of
from streaming.rehearsal import TOPIC, shop_plan
from streaming.source.records import TopicPartition

P0, P1, P2 = (TopicPartition(TOPIC, "id-1", number) for number in range(3))


def definitions(version, **rules):
    """The shop's definitions of a plan version; with `top` what an amount may be at most."""
    plan = shop_plan()
    contract = plan.contracts[TOPIC]
    if "top" in rules:
        kept = [
            msgspec.structs.replace(rule, arguments={**rule.arguments, "max_value": rules["top"]})
            if rule.id == "amount_range"
            else rule
            for rule in contract.rules
        ]
        contract = msgspec.structs.replace(contract, rules=tuple(kept))
    plan = msgspec.structs.replace(plan, version=version, contracts={TOPIC: contract})
    return definitions_of(plan, plan.views.values())[TOPIC]


def told(in_force, partition, first=0, after=100):
    return [
        (piece.first, piece.after, piece.definitions.plan_version) for piece in in_force.pieces(partition, first, after)
    ]


def test_the_first_definitions_hold_from_the_beginning(place):
    """What was in the topic before the first worker is judged by the first definitions."""
    in_force = InForce(place, TOPIC)
    with pytest.raises(StaleStore, match="does not say"):
        in_force.pieces(P0, 0, 10)
    in_force.propose(definitions(1))
    assert told(in_force, P0) == [(0, 100, 1)]


def test_later_definitions_hold_from_the_ends_on(place):
    """A range is cut where they come into force; a partition that came later knows the last ones alone."""
    in_force = InForce(place, TOPIC)
    in_force.propose(definitions(1))
    in_force.propose(definitions(2, top=50))
    assert in_force.pending
    in_force.settle({P0: 40, P1: 0})
    in_force.propose(definitions(3, top=20))
    in_force.settle({P0: 40, P1: 7})
    assert told(in_force, P0) == [(0, 40, 1), (40, 100, 3)]
    assert told(in_force, P0, 10, 40) == [(10, 40, 1)]
    assert told(in_force, P1) == [(0, 7, 2), (7, 100, 3)]
    assert told(in_force, P2) == [(0, 100, 3)]


def test_what_changes_no_verdict_changes_nothing(place):
    """A new plan whose views and contract of the topic are the same has no offset to take effect at."""
    in_force = InForce(place, TOPIC)
    in_force.propose(definitions(1))
    in_force.propose(definitions(2))
    assert not in_force.pending
    assert told(in_force, P0) == [(0, 100, 1)]


def test_an_old_plan_does_not_come_back(place):
    """A worker that has not heard of the new plan yet keeps judging by what is in force, and proposes nothing."""
    in_force, other = InForce(place, TOPIC), InForce(place, TOPIC)
    in_force.propose(definitions(1))
    in_force.propose(definitions(2, top=50))
    in_force.settle({P0: 10})
    other.propose(definitions(1))
    assert told(other, P0) == told(in_force, P0) == [(0, 10, 1), (10, 100, 2)]


def test_whoever_settles_first_decides(place):
    """Two that found the same pending definitions have asked for different ends: the first ones count, for both."""
    one, other = InForce(place, TOPIC), InForce(place, TOPIC)
    one.propose(definitions(1))
    one.propose(definitions(2, top=50))
    other.look()
    one.settle({P0: 10})
    other.settle({P0: 12})
    one.look()
    assert told(one, P0) == told(other, P0) == [(0, 10, 1), (10, 100, 2)]


def test_definitions_are_as_they_were_when_they_are_read_again(place):
    """A replay years later needs the old contract, not its name."""
    InForce(place, TOPIC).propose(definitions(1, top=33))
    again = InForce(place, TOPIC)
    again.look()
    [piece] = again.pieces(P0, 0, 1)
    assert piece.definitions == definitions(1, top=33)
    assert piece.definitions.digest == definitions(7, top=33).digest != definitions(1, top=34).digest
