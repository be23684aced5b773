"""The Plan travels as bytes and is the same at the other end."""

import msgspec
import pytest

from featurestore.errors import ConfigurationError, StaleStore, UnknownName
from featurestore.plan import Field, Plan, Source, View, definitions_digest
from featurestore.plan_store import PlanStore, load_plan_file, write_plan_file

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


class Shelf(dict):
    """A key-value store of one process."""

    def set(self, name, value):
        self[name] = value

    def getrange(self, name, start, end):
        return self.get(name, b"")[start : end + 1]


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


def test_a_published_plan_is_loaded_and_kept():
    """The same object comes back until another version is published."""
    store = PlanStore(Shelf(), "flights")
    with pytest.raises(StaleStore, match="featurestore apply"):
        store.load()
    store.publish(PLAN)
    assert store.version() == 3
    assert store.load() == PLAN
    assert store.load() is store.load()
    store.publish(msgspec.structs.replace(PLAN, version=4))
    assert store.load().version == 4


def test_a_plan_file_is_replaced_whole(tmp_path):
    """Nothing but the Plan remains in the folder, and a missing file says what to do."""
    path = tmp_path / "data" / "plan.json"
    with pytest.raises(ConfigurationError, match="run `featurestore apply`"):
        load_plan_file(path)
    write_plan_file(path, PLAN)
    write_plan_file(path, PLAN)
    assert load_plan_file(path) == PLAN
    assert [each.name for each in path.parent.iterdir()] == ["plan.json"]
