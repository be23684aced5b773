"""A service's policy decides what its callers get for missing, stale, incomplete and invalid values."""

import time

import msgspec
import numpy as np
import pytest

from featurestore.api.answer import Answered
from featurestore.api.faults import Refused
from featurestore.api.policy import AppliedPolicy
from featurestore.api.selection import select
from featurestore.fallback import Fallback, Fallbacks
from featurestore.online.result import Status
from featurestore.plan import Plan, Projection, Service, ServingPolicy
from featurestore.plan_store import PlanStore
from validation.contract import Column, Contract, Rule

BODY = {"feature_service": "judged", "entities": {"origin": ["EWR", "JFK", "LGA", "XXX"]}}
FOUND = ([39.02, None, None, None], ["PRESENT", "NULL_VALUE", "OUTSIDE_MAX_AGE", "NOT_FOUND"])


def planned(plan: Plan, policy: ServingPolicy, *features: str) -> Plan:
    """The tests' plan with a service of weather features under a policy, and a contract of their source."""
    rule = Rule(
        id="mild",
        expectation="expect_column_values_to_be_between",
        arguments={"column": "wind_mph", "max_value": 9},
        mode="quarantine",
    )
    contract = Contract(
        name="c",
        version="1",
        source="weather",
        rules=(rule,),
        columns=(Column(name="wind_mph", logical_type="number"),),
    )
    service = Service(name="judged", projections=(Projection(view="weather", features=features),), policy=policy)
    return msgspec.structs.replace(
        plan, version=9, digest="9", services={"judged": service}, contracts={"weather": contract}
    )


def answers(landed, project, policy: ServingPolicy, feature: str, accept: str = "*/*") -> tuple[list, list]:
    PlanStore(landed, project.name).publish(planned(project.make_plan(), policy, feature))
    with project.serve(project.make_app(landed)) as api:
        response = api.post("/get-online-features", json=BODY, headers={"Accept": accept})
        if response.status_code != 200:
            return response.status_code, response.json()
        if "rows" in accept:
            rows = response.json()["rows"]
            return [row["values"][feature] for row in rows], [row["statuses"][feature] for row in rows]
        result = response.json()["results"][1]
        return result["values"], result["statuses"]


def test_without_a_policy_everything_is_as_found(landed, project) -> None:
    """No tags, no change: nulls and statuses of what was found."""
    assert answers(landed, project, ServingPolicy(), "temp_f") == FOUND


@pytest.mark.parametrize("accept", ["*/*", "application/vnd.featurestore.rows+json"])
def test_defaults_say_why_they_are_there(landed, project, accept: str) -> None:
    """A default takes the place of what is missing, the status goes on saying that it is; stale stays as it is."""
    policy = ServingPolicy(missing="default", defaults={"temp_f": 59.5})
    assert answers(landed, project, policy, "temp_f", accept) == ([39.02, 59.5, None, 59.5], FOUND[1])


def test_defaults_may_be_silent(landed, project) -> None:
    """Where the policy does not tell, a default is PRESENT and a null NULL_VALUE."""
    policy = ServingPolicy(missing="default", stale="null", defaults={"weather__temp_f": 0}, told=False)
    assert answers(landed, project, policy, "temp_f") == (
        [39.02, 0.0, None, 0.0],
        ["PRESENT", "PRESENT", "NULL_VALUE", "PRESENT"],
    )


@pytest.mark.parametrize("case", ["missing", "stale", "invalid"])
def test_an_error_refuses_the_request(landed, project, case: str) -> None:
    """`error` is 422, and names the feature and the row."""
    status, told = answers(landed, project, ServingPolicy(**{case: "error"}), "wind_mph")
    assert (status, told["code"]) == (422, "refused_by_policy")
    row = {"missing": 3, "stale": 2, "invalid": 0}[case]
    assert f"refuses {case} values" in told["message"]
    assert f"weather:wind_mph, the first in row {row}" in told["message"]


def test_invalid_is_not_finite_or_against_the_contract(landed, project) -> None:
    """EWR's wind breaks the contract, JFK's is NaN: both are replaced and said to be INVALID."""
    policy = ServingPolicy(invalid="default", defaults={"wind_mph": 3.0})
    assert answers(landed, project, policy, "wind_mph") == (
        [3.0, 3.0, None, None],
        ["INVALID", "INVALID", "OUTSIDE_MAX_AGE", "NOT_FOUND"],
    )


def test_a_policy_that_is_not_applied_would_be_seen(landed, project, monkeypatch) -> None:
    """With the policy left out the wrong values go out: the tests above can fail."""
    monkeypatch.setattr("featurestore.api.serving.policy_of", lambda *_, **__: None)
    values, _ = answers(landed, project, ServingPolicy(invalid="null"), "wind_mph")
    assert values[:2] == [10.0, "NaN"]


def test_replaced_values_lose_their_time(project) -> None:
    """An incomplete window that is replaced has no event time any more; its neighbour keeps its own."""
    plan = planned(project.make_plan(), ServingPolicy(incomplete="null"), "temp_f")
    outputs = select(plan, [], "judged", full_feature_names=False).outputs
    column = Answered(
        "temp_f",
        "DOUBLE",
        [1.0, 2.0],
        np.array([Status.INCOMPLETE, Status.PRESENT], np.uint8),
        np.array([5, 6]),
        np.array([9, 9]),
    )
    (made,) = AppliedPolicy(plan, plan.service("judged"), outputs).apply([column])
    assert made.values == [None, 2.0]
    assert made.event_us.tolist() == [0, 6]
    assert made.statuses.tolist() == [Status.INCOMPLETE, Status.PRESENT]
    assert column.event_us.tolist() == [5, 6]
    strict = msgspec.structs.replace(plan.service("judged"), policy=ServingPolicy(incomplete="error"))
    with pytest.raises(Refused):
        AppliedPolicy(plan, strict, outputs).apply([column])


@pytest.mark.parametrize(
    ("policy", "values", "status"),
    [
        (ServingPolicy(alarm="null"), [None] * 4, "INVALID"),
        (ServingPolicy(alarm="default", defaults={"temp_f": 59.0}), [59.0] * 4, "INVALID"),
        (ServingPolicy(alarm="default", defaults={"temp_f": 59.0}, told=False), [59.0] * 4, "PRESENT"),
        (ServingPolicy(alarm="value", missing="null"), *FOUND),
    ],
)
def test_an_alarm_switches_to_the_declared_fallback_and_back(
    landed, project, policy: ServingPolicy, values: list, status: str | list
) -> None:
    """Within a second or so and without a restart; a service that declares none goes on."""
    PlanStore(landed, project.name).publish(planned(project.make_plan(), policy, "temp_f"))
    switches = Fallbacks(landed, project.name)
    with project.serve(project.make_app(landed, fallbacks=switches.active, poll_s=0.05)) as api:

        def served() -> tuple[list, list]:
            result = api.post("/get-online-features", json=BODY).json()["results"][1]
            return result["values"], result["statuses"]

        def becomes(wanted: tuple[list, list]) -> bool:
            deadline = time.monotonic() + 10
            while served() != wanted and time.monotonic() < deadline:
                time.sleep(0.05)
            return served() == wanted

        assert served() == FOUND
        switches.switch("judged", Fallback(since_us=1, reason="skew", by_monitor=True))
        time.sleep(0.2)
        assert becomes((values, status if isinstance(status, list) else [status] * 4))
        switches.clear("judged")
        assert becomes(FOUND)


@pytest.mark.parametrize("remembered", [True, False])
def test_an_earlier_plan_answers_while_an_alarm_is_on(landed, project, remembered: bool) -> None:
    """The service as version 8 had it, with defaults for what is missing; null where that version is forgotten."""
    plans, switches = PlanStore(landed, project.name), Fallbacks(landed, project.name)
    if remembered:
        earlier = planned(project.make_plan(), ServingPolicy(missing="default", defaults={"temp_f": 7.0}), "temp_f")
        plans.publish(msgspec.structs.replace(earlier, version=8))
    plans.publish(planned(project.make_plan(), ServingPolicy(alarm="version:8"), "temp_f"))
    switches.switch("judged", Fallback(since_us=1, reason="skew", by_monitor=True))
    with project.serve(project.make_app(landed, fallbacks=switches.active)) as api:
        result = api.post("/get-online-features", json=BODY).json()["results"][1]
    assert result["values"] == ([39.02, 7.0, None, 7.0] if remembered else [None] * 4)
