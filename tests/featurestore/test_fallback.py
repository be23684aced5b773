"""A critical alarm switches the services that it hurts to their declared fallback, and back."""

import msgspec
import pytest
from monitored import READS, rides

from featurestore.compile_policy import compile_policy
from featurestore.errors import DefinitionError
from featurestore.fallback import Fallback, Fallbacks
from featurestore.monitor.alerts import Alert, Finding
from featurestore.monitor.switching import settle
from featurestore.online.connection import StoreClient
from featurestore.plan import Plan, Service, ServingPolicy

FOUND = Finding(key="skew:eta:rides:speed", severity="critical", title="skew", detail="", view="rides", service="eta")


def plan(alarm: str) -> Plan:
    """Two services of one view; the first declares a fallback."""
    services = {
        "eta": Service(name="eta", projections=READS, policy=ServingPolicy(alarm=alarm)),
        "other": Service(name="other", projections=READS),
    }
    return Plan(project="p", version=2, digest="", created_us=0, views={"rides": rides()}, services=services)


def alert(**changes: object) -> Alert:
    finding = msgspec.structs.replace(FOUND, **changes)
    return Alert(finding=finding, first_us=0, last_us=0, count=1, revised_us=0)


@pytest.fixture
def switches(store: StoreClient) -> Fallbacks:
    return Fallbacks(store, "p")


def test_an_alarm_switches_the_service_and_its_end_switches_back(switches: Fallbacks) -> None:
    """Once, with the reason; the other service goes on."""
    assert len(settle(plan("null"), [alert()], switches, 7)) == 1
    assert switches.active() == {"eta": Fallback(since_us=7, reason="skew", by_monitor=True)}
    assert settle(plan("null"), [alert()], switches, 8) == []
    assert len(settle(plan("null"), [], switches, 9)) == 1
    assert switches.active() == {}


@pytest.mark.parametrize(
    ("alarm", "changes"),
    [
        ("value", {}),
        ("null", {"severity": "informative"}),
        ("null", {"service": "other"}),
        ("null", {"service": "", "view": "planes"}),
    ],
)
def test_nothing_else_switches_it(switches: Fallbacks, alarm: str, changes: dict[str, str]) -> None:
    """No fallback declared, an informative alarm, one about another service or another view."""
    assert settle(plan(alarm), [alert(**changes)], switches, 7) == []


def test_an_alarm_of_a_view_hurts_the_services_that_need_it(switches: Fallbacks) -> None:
    """Freshness is of views, not of services."""
    settle(plan("default"), [alert(service="")], switches, 7)
    assert list(switches.active()) == ["eta"]


def test_what_a_person_switched_stays(switches: Fallbacks) -> None:
    """Until a person switches it back."""
    switches.switch("eta", Fallback(since_us=1, reason="maintenance", by_monitor=False))
    assert settle(plan("null"), [], switches, 7) == []
    assert list(switches.active()) == ["eta"]


@pytest.mark.parametrize("text", ["nothing", "version:0", "version:x"])
def test_a_fallback_that_means_nothing_is_refused(text: str) -> None:
    """The message names the service and what can be said."""
    with pytest.raises(DefinitionError, match=f"eta.*on_alarm.*{text}"):
        compile_policy("eta", {"on_alarm": text}, {})


def test_defaults_must_be_declared() -> None:
    """A service that answers by defaults needs one of each feature."""
    with pytest.raises(DefinitionError, match="rides__speed"):
        compile_policy("eta", {"on_alarm": "default"}, {("rides", "speed"): "DOUBLE"})
    found = compile_policy("eta", {"on_alarm": "default", "default.speed": "1.5"}, {("rides", "speed"): "DOUBLE"})
    assert found.alarm == "default"
