"""Which cohorts are declared, and is what makes no sense refused?"""

import pytest
from monitored import plan, rides
from msgspec.structs import replace

from featurestore.errors import DefinitionError
from featurestore.plan import Function, OnDemandView, Projection, Service
from featurestore.segments import segments_of


def test_a_service_declares_them_for_the_views_it_reads():
    """Under the view's name of the key, through on-demand views too; columns that a view lacks are no matter of it."""
    made = plan(rides())
    read = Projection(view="rides", features=("speed",), join_key_map={"driver": "chauffeur"})
    computed = OnDemandView(
        name="fast", features=(), request=(), inputs=(read,), mode="python", singleton=False,
        function=Function(name="f", source=""),
    )  # fmt: skip
    asks = Projection(view="fast", features=())
    service = Service(name="s", projections=(asks,), tags={"drift_segments": "chauffeur, town"})
    made = replace(made, on_demand={"fast": computed}, services={"s": service})
    assert segments_of(made, made.views.values()) == ("driver",)


def test_a_view_that_names_no_column_of_it_is_refused():
    """With what was meant."""
    made = plan(rides(drift_segments="driver,sped"))
    with pytest.raises(DefinitionError, match=r"view 'rides'.*'sped'.*did you mean 'speed'"):
        segments_of(made, made.views.values())
