"""A new Plan says what it changes and whom it breaks."""

import msgspec

from featurestore.changes import changes
from featurestore.plan import Field, JoinKey, Plan, Projection, Service, Source, View

VIEW = View(
    name="weather",
    version=1,
    kind="latest",
    join_keys=(JoinKey(entity="origin", name="origin", dtype="STRING"),),
    features=(Field(name="temp_f", dtype="DOUBLE"), Field(name="visib_mi", dtype="DOUBLE")),
    ttl_us=0,
    source=Source(name="weather", path="weather", timestamp_field="event_timestamp"),
)
SERVICE = Service(name="delay", projections=(Projection(view="weather", features=("temp_f",)),))
BEFORE = Plan(
    project="flights", version=1, digest="x", created_us=0, views={"weather": VIEW}, services={"delay": SERVICE}
)


def after(**fields):
    view = msgspec.structs.replace(VIEW, **fields)
    return msgspec.structs.replace(BEFORE, views={"weather": view})


def lines(plan):
    return [change.line for change in changes(BEFORE, plan)]


def test_equal_plans_change_nothing():
    """No line for what stays."""
    assert lines(BEFORE) == []


def test_everything_is_new_at_first():
    """Against no Plan, every view and service is added and nothing breaks."""
    assert [change.line for change in changes(None, BEFORE)] == ["view weather: added", "service delay: added"]


def test_a_removed_feature_breaks_its_services():
    """The services that take the view are named."""
    assert lines(after(features=VIEW.features[1:])) == ["view weather: feature temp_f removed; BREAKS delay"]


def test_a_changed_type_breaks():
    """Both types are said."""
    changed = (Field(name="temp_f", dtype="INT64"), VIEW.features[1])
    assert lines(after(features=changed)) == ["view weather: feature temp_f DOUBLE -> INT64; BREAKS delay"]


def test_an_added_feature_breaks_nobody():
    """Rows stay readable after features are added."""
    assert lines(after(features=(*VIEW.features, Field(name="x", dtype="BOOL")))) == ["view weather: feature x added"]


def test_a_new_version_starts_empty():
    """A windowed view whose state would differ loses its history until rebuilt, and says so."""
    (line,) = lines(after(version=2))
    assert "version 1 -> 2" in line
    assert "BREAKS delay until history is rebuilt" in line


def test_a_removed_service_breaks_its_callers():
    """A service has callers that no registry knows."""
    assert lines(msgspec.structs.replace(BEFORE, services={})) == ["service delay: removed; BREAKS its callers"]


def test_a_ttl_is_a_change_that_breaks_nobody():
    """It is shown by its field's name."""
    assert lines(after(ttl_us=1)) == ["view weather: changed ttl_us"]
