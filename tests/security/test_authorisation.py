"""What a caller may do, as a table: role x grant x route x plan state, compared with an independent model."""

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from served_project import GOOD, NOW_US, PROJECT, land, make_app, make_plan, serve

from featurestore.api import features_route
from featurestore.api.access import ApiKeys
from featurestore.api.audit import AuditLog
from featurestore.api.gate import Gate
from featurestore.api.key_store import KeyRing, KeyStore
from featurestore.api.limits import Limits
from featurestore.api.materialization import Materializer
from featurestore.api.serving import Serving
from featurestore.api.writes import Writes, appender
from featurestore.online.connection import StoreClient
from featurestore.online.writer import RowWriter
from featurestore.plan import Permission, Plan, Projection, Service, ServingPolicy
from featurestore.plan_store import PlanStore
from validation.violations import ViolationStore

ROW = {"origin": ["EWR"], "temp_f": [1.0], "wind_mph": [1.0], "station": [1], "note": ["n"],
       "event_timestamp": ["2024-06-01T11:59:00Z"]}  # fmt: skip
DAY = {"start_ts": "2024-06-01T00:00:00Z", "end_ts": "2024-06-02T00:00:00Z"}
SH = ["/bin/sh", "-c", 'shift; printf "%s\\n" "$@" > "$1/words"', "sh"]

Ask = tuple[str, str, dict[str, Any] | None, frozenset[str]]
"""Method, path, body, and the views that must be permitted for it."""


def reads(views: set[str], **body: Any) -> Ask:
    return ("POST", "/get-online-features", {"entities": {"origin": ["EWR"], "plane": [7]}} | body, frozenset(views))


ASKS: dict[str, Ask] = {
    "read weather": reads({"weather"}, features=["weather:temp_f"]),
    "read planes": reads({"planes"}, features=["planes:seats"]),
    "read both": reads({"weather", "planes"}, features=["planes:seats", "weather:temp_f"]),
    "read computed": (
        "POST", "/get-online-features",
        {"features": ["trip:headwind"], "entities": {"origin": ["EWR"], "sched_hour": [1]}}, frozenset({"weather"}),
    ),
    "read service": reads({"weather", "planes"}, feature_service="both"),
    "read switched service": reads({"planes"}, feature_service="switched"),
    "push": (
        "POST", "/push", {"push_source_name": "gauge", "df": ROW, "to": "online"}, frozenset({"weather"})
    ),
    "write": (
        "POST", "/write-to-online-store", {"feature_view_name": "weather", "df": ROW}, frozenset({"weather"})
    ),
    "materialize one": ("POST", "/materialize", DAY | {"feature_views": ["planes"]}, frozenset({"planes"})),
    "materialize all": ("POST", "/materialize", DAY, frozenset({"weather", "planes"})),
    "materialize weather twice": (
        "POST", "/materialize", DAY | {"feature_views": ["planes", "weather", "weather"]},
        frozenset({"weather", "planes"}),
    ),
    "materialize later": (
        "POST", "/materialize-incremental", {"end_ts": DAY["end_ts"]}, frozenset({"weather", "planes"})
    ),
    "list violations": ("GET", "/violations", None, frozenset()),
    "one violation": ("GET", "/violations/none", None, frozenset()),
    "version": ("GET", "/version", None, frozenset()),
    "metrics": ("GET", "/metrics", None, frozenset()),
    "ready": ("GET", "/ready", None, frozenset()),
    "health": ("GET", "/health", None, frozenset()),
    "description": ("GET", "/openapi.json", None, frozenset()),
}  # fmt: skip
OPEN = {"/ready", "/health", "/openapi.json"}
UNROUTED = {("HEAD", "/openapi.json")}
"""FastAPI's own double of a route that is in the table."""

MAY = {
    "reader": {"/get-online-features"},
    "producer": {"/push"},
    "writer": {"/push", "/write-to-online-store", "/materialize", "/materialize-incremental"},
    "admin": {"/get-online-features", "/push", "/write-to-online-store", "/materialize", "/materialize-incremental",
              "/violations", "/violations/none"},
    "analyst": set(),
}  # fmt: skip
ROLES = [*MAY, "stranger"]
GRANTS: list[tuple[str, ...]] = [(), ("planes",), ("weather",), ("pii",)]


def _base() -> Plan:
    plan = make_plan()
    weather = plan.views["weather"]
    fed = msgspec.structs.replace(weather, source=msgspec.structs.replace(weather.source, push="gauge"))
    both = (Projection(view="weather", features=("temp_f",)), Projection(view="planes", features=("seats",)))
    policy = ServingPolicy(alarm="version:1")
    return msgspec.structs.replace(
        plan,
        views=plan.views | {"weather": fed},
        services={
            "both": Service(name="both", projections=both),
            "switched": Service(name="switched", projections=both[1:], policy=policy),
        },
    )


def _tagged(plan: Plan, value: str = "true") -> Plan:
    weather = msgspec.structs.replace(plan.views["weather"], tags={"pii": value})
    return msgspec.structs.replace(plan, views=plan.views | {"weather": weather})


def _earlier(plan: Plan) -> Plan:
    """Version 1 of the plan, in which the service that can be switched still reads weather."""
    switched = msgspec.structs.replace(plan.services["switched"], projections=plan.services["both"].projections)
    return msgspec.structs.replace(plan, services=plan.services | {"switched": switched})


class State(msgspec.Struct, frozen=True, kw_only=True):
    """A plan state: the plans by version, and the model's facts about it."""

    plans: tuple[Plan, ...]
    personal: frozenset[str] = frozenset()
    switched_reads: frozenset[str] = frozenset({"planes"})
    on: bool = False
    feast: bool = False


def _states() -> dict[str, State]:
    base = _base()
    weather = frozenset({"weather"})
    both = frozenset({"weather", "planes"})
    building = {"weather": msgspec.structs.replace(base.views["weather"], version=2, tags={"pii": "yes"})}
    without = msgspec.structs.replace(base, views={"planes": base.views["planes"], "weather": base.views["weather"]})
    feast = (
        Permission(name="all", views=("weather", "planes", "trip"), services=("both", "switched"),
                   actions=("read_online",), roles=("analyst",)),
    )  # fmt: skip
    return {
        "plain": State(plans=(base,)),
        "tag says no": State(plans=(_tagged(base, "no"),)),
        "tagged": State(plans=(_tagged(base),), personal=weather),
        "tag of what is being built": State(
            plans=(msgspec.structs.replace(base, building=building),), personal=weather
        ),
        "earlier plan reads a view tagged then": State(
            plans=(_tagged(_earlier(base)), without), switched_reads=both, on=True, personal=frozenset()
        ),
        "earlier plan reads a view tagged since": State(
            plans=(_earlier(base), _tagged(base)), switched_reads=both, on=True, personal=weather
        ),
        "earlier plan rests": State(plans=(_tagged(_earlier(base)), base)),
        "Feast's permissions": State(plans=(msgspec.structs.replace(_tagged(base), permissions=feast),),
                                     personal=weather, feast=True),
    }  # fmt: skip


STATES = _states()


def model(role: str, grants: tuple[str, ...], ask: str, state: State) -> str:
    """What is expected: `401`, `403` or `in`."""
    _, path, _, views = ASKS[ask]
    if path in OPEN:
        return "in"
    if role == "stranger":
        return "401"
    if path in ("/version", "/metrics"):
        return "in"
    personal = state.personal
    if ask == "read switched service":
        views = state.switched_reads
        personal = personal | (frozenset({"weather"}) if state.on else frozenset())
    by_feast = state.feast and not path.startswith("/violations")
    allowed = (
        role == "admin" or (role == "analyst" and path == "/get-online-features") if by_feast else path in MAY[role]
    )
    granted = "pii" in grants or personal & views <= set(grants)
    return "in" if allowed and granted else "403"


class Deployment:
    """An API over a plan state, and a key for each role and set of grants."""

    def __init__(self, client: httpx.Client, folder: Path, keys: Mapping[tuple[str, tuple[str, ...]], str]) -> None:
        self._client, self._folder, self._keys = client, folder, keys

    def ask(self, role: str, grants: tuple[str, ...], method: str, path: str, body: object = None) -> httpx.Response:
        """The response to a caller of that role."""
        headers = {"Authorization": f"Bearer {self._keys[role, grants]}"}
        return self._client.request(method, path, json=body, headers=headers)

    @property
    def audit(self) -> list[dict[str, Any]]:
        """The lines of the audit log."""
        return [json.loads(line) for line in (self._folder / "audit.jsonl").read_text().splitlines()]

    @property
    def materialized(self) -> set[str]:
        """The views that the last command was told to materialize."""
        return set((self._folder / "words").read_text().splitlines()) & {"weather", "planes"}


@pytest.fixture
def deployed(store: StoreClient, tmp_path: Path) -> Iterator[Callable[[State], Deployment]]:
    """Makes a deployment in a plan state; it ends with the test."""
    made: list[Any] = []

    def deploy(state: State, command: list[str] = SH) -> Deployment:
        land(store)
        for version, plan in enumerate(state.plans, 1):
            PlanStore(store, PROJECT).publish(
                msgspec.structs.replace(plan, version=version, digest=f"digest-{version}")
            )
        ring = KeyStore(store, PROJECT)
        keys = {
            (role, grants): ring.create("test", [role], grants=grants, clock=lambda: NOW_US)[0]
            for role, grants in itertools.product(MAY, GRANTS)
        }
        keys |= {("stranger", grants): "fsk_unknown" for grants in GRANTS}
        app = make_app(
            store,
            gate=Gate(keys=ApiKeys(()), ring=KeyRing(ring), audit=AuditLog(tmp_path / "audit.jsonl", lambda: NOW_US)),
            writes=lambda plan: Writes(
                plan,
                lambda view: RowWriter(store, plan.project, view, clock=lambda: NOW_US),
                appender(tmp_path),
                lambda: NOW_US,
                Limits(),
            ),
            materializer=Materializer(tmp_path, tmp_path, {}, command),
            violations=ViolationStore(tmp_path / "violations"),
            fallbacks=lambda: ["switched"] if state.on else [],
        )
        served = serve(app)
        made.append((served, app))
        return Deployment(served.__enter__(), tmp_path, keys)

    deploy.apps = made  # type: ignore[attr-defined]
    yield deploy
    for served, _ in made:
        served.__exit__(None, None, None)


def outcomes(deployment: Deployment, state: State) -> list[str]:
    """Where the application and the model differ, for every role, grant and route."""
    wrong = []
    for role, grants, ask in itertools.product(ROLES, GRANTS, ASKS):
        method, path, body, _ = ASKS[ask]
        status = deployment.ask(role, grants, method, path, body).status_code
        found = str(status) if status in (401, 403) else "in"
        expected = model(role, grants, ask, state)
        if found != expected or status >= 500:
            wrong.append(f"{role} {grants} {ask}: {status}, expected {expected}")
    return wrong


@pytest.mark.parametrize("name", STATES)
def test_the_table_of_what_callers_may_do(name: str, deployed: Any) -> None:
    """In every plan state each caller is let in, or refused, exactly as the model says."""
    assert outcomes(deployed(STATES[name]), STATES[name]) == []


def test_a_plan_that_is_not_judged_would_be_seen(deployed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the earlier plan left out of the check, the table fails: it can."""
    monkeypatch.setattr(Serving, "answering", lambda _self, _service: None)
    state = STATES["earlier plan reads a view tagged since"]
    assert any("read switched service" in line for line in outcomes(deployed(state), state))


def test_every_route_is_in_the_table(deployed: Any) -> None:
    """A route that the application gets must be added here, with what it needs."""
    deployed(STATES["plain"])
    ((_, app),) = deployed.apps
    there = {
        (method, route.path)
        for route in app.routes
        for method in getattr(route, "methods", ())
        if hasattr(route, "path")
    }
    known = {(method, path.replace("/none", "/{violation_id}")) for method, path, _, _ in ASKS.values()}
    assert there - UNROUTED == known
    assert features_route.PATH in {path for _, path in known}


NOT_ALLOWED = [
    ("reader", "POST", "/materialize", {}),
    ("reader", "POST", "/materialize?async=perhaps", {}),
    ("reader", "POST", "/materialize-incremental", []),
    ("reader", "POST", "/push", {"to": 1}),
    ("reader", "POST", "/write-to-online-store", "x"),
    ("writer", "POST", "/get-online-features", {"features": 5}),
    ("writer", "POST", "/get-online-features", {"features": ["nothing:here"], "entities": {}}),
    ("reader", "GET", "/violations?limit=0", None),
    ("reader", "GET", "/violations?since=never", None),
]


@pytest.mark.parametrize(("role", "method", "path", "body"), NOT_ALLOWED)
def test_permission_comes_before_validation(role: str, method: str, path: str, body: object, deployed: Any) -> None:
    """Who may not do this at all is told nothing about the request: 403, and a stranger 401."""
    deployment = deployed(STATES["plain"])
    assert deployment.ask(role, (), method, path, body).status_code == 403
    assert deployment.ask("stranger", (), method, path, body).status_code == 401
    assert deployment.ask("admin", (), method, path, body).status_code in (400, 404, 422)


@pytest.mark.parametrize("body", [{"feature_views": []}, {"feature_views": None}, {}])
def test_no_names_open_no_more_than_names_do(body: dict[str, Any], deployed: Any, tmp_path: Path) -> None:
    """An empty list names nothing, so nothing is done; no list is every view, each of which must be permitted."""
    deployment = deployed(STATES["tagged"])
    for path, times in (("/materialize", DAY), ("/materialize-incremental", {"end_ts": DAY["end_ts"]})):
        for role in ("writer", "admin"):
            assert deployment.ask(role, (), "POST", path, times | body).status_code in (403, 422)
    assert not (tmp_path / "words").exists()


def test_what_was_permitted_is_what_is_done(deployed: Any) -> None:
    """The command is given each view by name, never "all"."""
    deployment = deployed(STATES["plain"])
    assert deployment.ask("writer", (), "POST", "/materialize", DAY).status_code == 200
    assert deployment.materialized == {"weather", "planes"}
    assert deployment.ask("writer", (), "POST", "/materialize", DAY | {"feature_views": ["planes"]}).status_code == 200
    assert deployment.materialized == {"planes"}


def test_refusals_name_what_was_asked_for(deployed: Any) -> None:
    """A denied line has the views and services of the request."""
    deployment = deployed(STATES["tagged"])
    deployment.ask("reader", (), "POST", "/get-online-features", GOOD)
    deployment.ask("writer", (), "POST", "/materialize", DAY)
    assert [line["resources"] for line in deployment.audit] == [["weather:temp_f"], ["planes", "weather"]]


@pytest.mark.parametrize(("query", "code"), [("", 0), ("", 1), ("?async=true", 0), ("?async=true", 1)])
def test_every_write_has_an_end(query: str, code: int, deployed: Any) -> None:
    """Runs that nobody waits for too: the line says what was touched and how it ended."""
    deployment = deployed(STATES["plain"], ["/bin/sh", "-c", f"echo error: torn; exit {code}"])
    deployment.ask("writer", (), "POST", "/materialize" + query, DAY)
    deadline = time.monotonic() + 10
    while len(deployment.audit) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [line["event"] for line in deployment.audit] == ["write", "failed" if code else "written"]
    assert all(line["resources"] == ["planes", "weather"] for line in deployment.audit)


def test_a_defect_is_an_end_too(deployed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that meets an error that was not foreseen leaves the line `failed`, without the error's own words."""
    deployment = deployed(STATES["plain"])
    monkeypatch.setattr(Writes, "write", lambda *_: {}["secret value"])
    assert deployment.ask("writer", (), "POST", "/write-to-online-store", ASKS["write"][2]).status_code == 500
    assert [line["event"] for line in deployment.audit] == ["write", "failed"]
    assert "KeyError" in deployment.audit[1]["detail"]
    assert "secret value" not in json.dumps(deployment.audit)


def test_a_run_outlives_its_caller(tmp_path: Path) -> None:
    """A caller who goes away while a materialization runs does not take its end from the log."""
    heard: list[BaseException | None] = []

    async def scenario() -> None:
        slow = Materializer(tmp_path, tmp_path, {}, ["/bin/sh", "-c", "sleep 0.2"])
        waiting = asyncio.create_task(slow.run([], wait=True, ended=heard.append))
        await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.sleep(0.4)

    asyncio.run(scenario())
    assert heard == [None]
