"""The OpenAPI document is true: requests made from it never break the service, answers are what it says."""

import time
import warnings
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings

from featurestore.api.access import ApiKeys
from featurestore.api.audit import AuditLog
from featurestore.api.gate import Gate
from featurestore.api.identity import ROLES, ROUTE_ACTIONS
from featurestore.api.key_store import KeyRing, KeyStore
from featurestore.api.limits import Limits
from featurestore.api.materialization import Materializer
from featurestore.api.rate import RateLimit
from featurestore.api.writes import Writes, appender
from featurestore.online.writer import RowWriter
from featurestore.plan_store import PlanStore
from validation.testing import SMALL, small_report
from validation.violations import ViolationStore

with warnings.catch_warnings():
    # Libraries that schemathesis brings along warn on import; that is no matter of ours.
    warnings.simplefilter("ignore")
    import schemathesis
    from schemathesis.checks import (
        content_type_conformance,
        not_a_server_error,
        response_schema_conformance,
        status_code_conformance,
    )

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
)


def whole_app(landed, project, folder: Path, **changes: object):
    """The application with every route; a materialization succeeds at once."""
    plan_clock = lambda: project.NOW_US  # noqa: E731 - as the clocks of the other tests are
    parts = {
        "writes": lambda plan: Writes(
            plan,
            lambda view: RowWriter(landed, plan.project, view, clock=plan_clock),
            appender(folder),
            plan_clock,
            Limits(),
        ),
        "materializer": Materializer(folder, folder, {}, ["true"]),
        "violations": violations(folder),
    }
    return project.make_app(landed, **(parts | changes))


def violations(folder: Path) -> ViolationStore:
    """One violation, told of once."""
    store = ViolationStore(folder / "violations")
    store.record(small_report(SMALL)[1])
    return store


def fuzz(base_url: str, key: str | None = None, *, examples: int = 60) -> set[tuple[str, int]]:
    """Send generated requests to every operation and check the answers; returns the statuses that were seen."""
    headers = None if key is None else {"Authorization": f"Bearer {key}"}
    schema = schemathesis.openapi.from_url(f"{base_url}/openapi.json")
    seen: set[tuple[str, int]] = set()
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(FUZZ, max_examples=examples)
        @given(operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                response = case.call(base_url=base_url, headers=headers)
                seen.add((case.operation.path, response.status_code))
                case.validate_response(response, checks=CHECKS)

        check()
    return seen


def test_the_document_is_true(landed, project, tmp_path: Path) -> None:
    """Every operation, asked with what its schema allows: no 5xx, statuses, media types and bodies as documented."""
    PlanStore(landed, project.name).publish(project.make_plan())
    with project.serve(whole_app(landed, project, tmp_path)) as client:
        seen = fuzz(str(client.base_url).rstrip("/"))
    assert {path for path, _ in seen} == {
        "/get-online-features", "/push", "/write-to-online-store", "/materialize", "/materialize-incremental",
        "/violations", "/violations/{violation_id}", "/health", "/ready", "/version", "/metrics",
    }  # fmt: skip
    assert {("/health", 200), ("/violations", 200), ("/violations/{violation_id}", 404)} <= seen
    assert not [each for each in seen if each[1] >= 500]


@pytest.mark.parametrize("role", [None, *ROLES])
def test_no_role_gets_further_than_its_actions(role: str | None, landed, project, tmp_path: Path) -> None:
    """Generated requests with a key of each role, and without one: no 5xx, and 401 or 403 where it may not ask."""
    PlanStore(landed, project.name).publish(project.make_plan())
    ring = KeyStore(landed, project.name)
    gate = Gate(
        keys=ApiKeys(()),
        ring=KeyRing(ring),
        rate=RateLimit(None, monotonic_s=time.monotonic),
        audit=AuditLog(tmp_path / "audit.jsonl", lambda: project.NOW_US),
    )
    key = None if role is None else ring.create("test", [role], clock=lambda: project.NOW_US)[0]
    gate.look()
    with project.serve(whole_app(landed, project, tmp_path, gate=gate)) as client:
        seen = fuzz(str(client.base_url).rstrip("/"), key, examples=12)
    assert not [each for each in seen if each[1] >= 500]
    for path, action in ROUTE_ACTIONS.items():
        found = {status for asked, status in seen if asked == path}
        if role is None:
            assert found <= {401, 413, 415, 422}, path
            assert 401 in found, path
        elif action in ROLES[role]:
            # A producer that asks for another one's violations is refused too.
            own_alone = role == "producer" and action == "see_violations"
            assert not found & ({401} if own_alone else {401, 403}), path
        else:
            assert found <= {403, 413, 415, 422}, path
            assert 403 in found, path


def misfits(document: dict) -> list[str]:
    """JSON bodies and successful JSON answers without an example, or with one that their schema refuses."""
    found = []
    for path, operations in document["paths"].items():
        for operation in operations.values():
            told = {"body": operation.get("requestBody", {"content": {}})}
            told |= {status: told for status, told in operation["responses"].items() if status.startswith("2")}
            for name, each in told.items():
                for media, said in each.get("content", {}).items():
                    if not media.endswith("json") or said["schema"] == {"type": "null"}:
                        continue  # null has one value, which needs no example
                    examples = [more["value"] for more in said.get("examples", {}).values()]
                    examples += [said["example"]] if "example" in said else []
                    judge = jsonschema.Draft202012Validator(said["schema"] | {"components": document["components"]})
                    if not examples or not all(map(judge.is_valid, examples)):
                        found.append(f"{path} {name} {media}")
    return found


def test_every_route_shows_an_example_that_fits(landed, project, tmp_path: Path) -> None:
    """Of what is sent and of what is answered; a route that lost its example, or shows another's, is named."""
    with project.serve(whole_app(landed, project, tmp_path)) as client:
        document = client.get("/openapi.json").json()
    assert misfits(document) == []
    push = document["paths"]["/push"]["post"]
    push["requestBody"]["content"]["application/json"]["example"] = {"push_source_name": 7}
    del push["responses"]["200"]["content"]["application/json"]["example"]
    assert misfits(document) == ["/push body application/json", "/push 200 application/json"]


def test_a_false_document_would_be_seen(landed, project, tmp_path: Path) -> None:
    """A handler that breaks, and an answer that is not as documented, are both found by the same requests."""

    class Broken:
        def read(self, *_: object, **__: object) -> None:
            raise KeyError("planted")

    app = whole_app(landed, project, tmp_path, reader=lambda plan: Broken())
    with project.serve(app) as client:
        url = str(client.base_url).rstrip("/")
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        operation = schema["/get-online-features"]["POST"]
        body = {"features": ["weather:temp_f"], "entities": {"origin": ["EWR"]}}
        case = operation.Case(body=body, media_type="application/json")
        with pytest.raises(BaseExceptionGroup):
            case.validate_response(case.call(base_url=url), checks=CHECKS)
