"""Push sources, permissions and serving policies of a Feast repo, as the Plan has them."""

from datetime import timedelta

import pytest

from featurestore.compile_policy import compile_policy
from featurestore.errors import DefinitionError
from featurestore.plan import Plan, ServingPolicy

FIELDS = {("weather", "temp_f"): "DOUBLE", ("weather", "station"): "INT64"}


def compiled(permissions=(), tags=None, view_tags=None) -> Plan:
    """A Plan of one pushed view, one service and these permissions."""
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType  # slow to import
    from feast.types import Float64, String

    from featurestore.compile import Definitions, compile_plan

    origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
    landed = FileSource(name="landed", path="data/weather", timestamp_field="ts")
    view = FeatureView(
        name="weather",
        entities=[origin],
        schema=[Field(name="origin", dtype=String), Field(name="temp_f", dtype=Float64)],
        source=PushSource(name="weather_push", batch_source=landed),
        ttl=timedelta(hours=3),
        tags={"team": "met"} | (view_tags or {}),
    )
    view.entity_columns = [Field(name="origin", dtype=String)]
    view.features = [Field(name="temp_f", dtype=Float64)]
    service = FeatureService(name="delay", features=[view], tags=tags or {})
    definitions = Definitions([origin], [view], [], [service], list(permissions))
    return compile_plan("flights", definitions, [], previous=None, now_us=0)


def test_a_push_source_feeds_its_views() -> None:
    """The view of a push source keeps its batch source, and knows who pushes."""
    source = compiled().view("weather").source
    assert (source.push, source.name, source.path, source.topic) == ("weather_push", "landed", "data/weather", None)


def test_permissions_are_resolved() -> None:
    """Types, name patterns and required tags become names; policies become roles, groups and namespaces."""
    from feast import FeatureService, FeatureView
    from feast.permissions.action import AuthzedAction
    from feast.permissions.permission import Permission
    from feast.permissions.policy import CombinedGroupNamespacePolicy, RoleBasedPolicy

    plan = compiled(
        [
            Permission(name="b", types=[FeatureView], name_patterns="w.*", policy=RoleBasedPolicy(roles=["analyst"])),
            Permission(
                name="a",
                types=[FeatureView, FeatureService],
                policy=CombinedGroupNamespacePolicy(groups=["g"], namespaces=["n"]),
                actions=[AuthzedAction.READ_ONLINE, AuthzedAction.CREATE],
            ),
            Permission(name="c", types=[FeatureView], required_tags={"team": "met"}),
            Permission(name="d", types=[FeatureView], required_tags={"team": "other"}),
        ]
    )
    a, b, c, d = plan.permissions
    assert (a.views, a.services, a.actions, a.groups, a.namespaces) == (
        ("weather",), ("delay",), ("read_online",), ("g",), ("n",),
    )  # fmt: skip
    assert (b.views, b.services, b.roles) == (("weather",), (), ("analyst",))
    assert b.actions == ("read_online", "write_online", "write_offline")
    assert (c.views, c.everyone, d.views) == (("weather",), True, ())
    assert Plan.decode(plan.encode()) == plan


def test_a_services_tags_are_its_policy() -> None:
    """The policy reaches the Plan; without tags there is none to speak of."""
    assert compiled().service("delay").policy == ServingPolicy()
    tags = {"on_missing": "default", "default.temp_f": "59.5", "tell_replaced": "false"}
    assert compiled(tags=tags).service("delay").policy == ServingPolicy(
        missing="default", defaults={"temp_f": 59.5}, told=False
    )


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"on_stale": "nil"}, "tag on_stale is 'nil'; expected value, null, default, error"),
        ({"on_missing": "default", "default.temp_f": "1"}, "without one: weather__station"),
        ({"default.tmp": "1"}, "does not serve"),
        ({"default.station": "1.5"}, "no JSON value of type INT64"),
        ({"default.station": "one"}, "no JSON value"),
        ({"tell_replaced": "no"}, "expected true or false"),
    ],
)
def test_a_policy_that_means_nothing_is_refused(tags: dict, said: str) -> None:
    """A tag that cannot be honoured is refused at apply, by name."""
    with pytest.raises(DefinitionError, match=said):
        compile_policy("delay", tags, FIELDS)


def test_defaults_may_be_by_view() -> None:
    """`default.VIEW__FEATURE` tells two features of one name apart; null is a default too."""
    tags = {"on_missing": "default", "default.weather__temp_f": "null", "default.station": "7"}
    assert compile_policy("delay", tags, FIELDS).defaults == {"weather__temp_f": None, "station": 7}


def test_a_cohort_of_a_column_that_a_view_lacks_is_refused() -> None:
    """The tag is looked at when the repo is applied, not when the first rows come."""
    assert compiled(view_tags={"drift_segments": "origin"}).views
    with pytest.raises(DefinitionError, match="view 'weather': tag drift_segments names 'station'"):
        compiled(view_tags={"drift_segments": "station"})
