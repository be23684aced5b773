"""The Plan travels as bytes and is the same at the other end."""

import msgspec
import pytest

from featurestore.errors import ConfigurationError, StaleStore, UnknownName
from featurestore.plan import Field, Plan, Source, View, definitions_digest
from featurestore.plan_store import REMEMBERED, PlanStore, load_plan_file, write_plan_file

VIEW = View(
    name="weather",
    version=1,
    kind="latest",
    join_keys=(),
    features=(Field(name="temp_f", dtype="DOUBLE"),),
    ttl_us=0,
    source=Source(name="weather", path="weather", timestamp_field="event_timestamp"),
)
PLAN = Plan(project="flights", version=3, digest="d", created_us=1, views={"weather": VIEW})


def test_a_plan_survives_its_encoding():
    """Decoding what was encoded gives an equal Plan."""
    assert Plan.decode(PLAN.encode()) == PLAN


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"project": 1}', b"\xff"])
def test_a_torn_plan_is_refused(data):
    """Not a traceback of the decoder but what to do."""
    with pytest.raises(ConfigurationError, match="run `featurestore apply`"):
        Plan.decode(data)


def test_the_digest_ignores_when():
    """Equal definitions compiled at different times are equal; a different ttl is not."""
    later = msgspec.structs.replace(PLAN, version=9, created_us=2, digest="e")
    other = msgspec.structs.replace(PLAN, views={"weather": msgspec.structs.replace(VIEW, ttl_us=1)})
    assert definitions_digest(later) == definitions_digest(PLAN) != definitions_digest(other)


def test_references_become_projections_in_order():
    """Unknown views and features are refused with what exists."""
    assert PLAN.projections(["weather:temp_f"])[0].features == ("temp_f",)
    with pytest.raises(UnknownName, match="did you mean 'weather'"):
        PLAN.projections(["wether:temp_f"])
    with pytest.raises(UnknownName, match="no feature in view 'weather' 'temp'"):
        PLAN.projections(["weather:temp"])


def test_a_published_plan_is_loaded_and_kept(store):
    """The same object comes back until another version is published."""
    plans = PlanStore(store, "flights")
    with pytest.raises(StaleStore, match="featurestore apply"):
        plans.load()
    plans.publish(PLAN)
    assert plans.version() == 3
    assert plans.load() == PLAN
    assert plans.load() is plans.load()
    plans.publish(msgspec.structs.replace(PLAN, version=4))
    assert plans.load().version == 4


def test_the_last_plans_are_remembered(store):
    """By version; the oldest are forgotten."""
    plans = PlanStore(store, "flights")
    for version in range(1, REMEMBERED + 3):
        plans.publish(msgspec.structs.replace(PLAN, version=version))
    assert plans.of(2) is None
    assert [plans.of(version).version for version in (3, REMEMBERED + 2)] == [3, REMEMBERED + 2]


def test_a_plan_file_is_replaced_whole(tmp_path):
    """Nothing but the Plan remains in the folder, and a missing file says what to do."""
    path = tmp_path / "data" / "plan.json"
    with pytest.raises(ConfigurationError, match="run `featurestore apply`"):
        load_plan_file(path)
    write_plan_file(path, PLAN)
    write_plan_file(path, PLAN)
    assert load_plan_file(path) == PLAN
    assert sorted(each.name for each in path.parent.iterdir()) == [".plan.json.lock", "plan.json"]
