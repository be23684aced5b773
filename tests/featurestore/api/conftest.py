"""A small project on the embedded store, and the API that serves it."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace

import httpx
import msgspec
import pyarrow as pa
import pytest
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from featurestore.api.access import ApiKeys
from featurestore.api.app import create_app
from featurestore.api.limits import Limits
from featurestore.api.metrics import Metrics
from featurestore.api.protocol import DirectProtocol
from featurestore.config import OnlineSettings
from featurestore.online.connection import StoreClient, connect
from featurestore.online.reader import OnlineReader
from featurestore.online.server import EmbeddedServer
from featurestore.online.writer import RowWriter
from featurestore.plan import Field, Function, JoinKey, OnDemandView, Plan, Projection, Service, Source, View
from featurestore.plan_store import PlanStore

PROJECT = "flights"
NOW = datetime(2024, 6, 1, 12, tzinfo=UTC)
NOW_US = int(NOW.timestamp()) * 1_000_000
MINUTE_US = 60_000_000

TRIP = """
def trip(inputs):
    rows = zip(inputs["sched_hour"], inputs["wind_mph"])
    return {
        "is_evening": [h >= 18 for h, _ in rows],
        "headwind": [None if w is None else w * 1.5 for w in inputs["weather__wind_mph"]],
    }
"""


def fields(**types: str) -> tuple[Field, ...]:
    return tuple(Field(name=name, dtype=dtype) for name, dtype in types.items())


def view(name: str, key: str, key_dtype: str, ttl_us: int, **types: str) -> View:
    return View(
        name=name,
        version=1,
        kind="latest",
        join_keys=(JoinKey(entity=key, name=key, dtype=key_dtype),),
        features=fields(**types),
        ttl_us=ttl_us,
        source=Source(name=name, path=f"{name}.parquet", timestamp_field="event_timestamp"),
    )


def make_plan(version: int = 1) -> Plan:
    """Two views, an on-demand view over one of them, two services."""
    weather = view(
        "weather",
        "origin",
        "STRING",
        180 * MINUTE_US,
        temp_f="DOUBLE",
        wind_mph="DOUBLE",
        station="INT64",
        note="STRING",
    )
    planes = view("planes", "plane", "INT64", 0, seats="INT32", made="UNIX_TIMESTAMP", logo="BYTES", tags="STRING_LIST")
    trip = OnDemandView(
        name="trip",
        features=fields(is_evening="BOOL", headwind="DOUBLE"),
        request=fields(sched_hour="INT64"),
        inputs=(Projection(view="weather", features=("wind_mph",)),),
        mode="python",
        singleton=False,
        function=Function(name="trip", source=TRIP),
    )
    echo = OnDemandView(
        name="echo",
        features=fields(back="MAP"),
        request=fields(sent="MAP"),
        inputs=(),
        mode="python",
        singleton=False,
        function=Function(name="echo", source="def echo(inputs):\n    return {'back': inputs['sent']}"),
    )
    delay = Service(
        name="delay",
        projections=(
            Projection(view="weather", features=("temp_f", "station")),
            Projection(view="planes", features=("seats",)),
            Projection(view="trip", features=("is_evening", "headwind")),
        ),
    )
    pair = Service(
        name="pair",
        projections=(
            Projection(view="weather", features=("temp_f",), alias="here", join_key_map={"origin": "from"}),
            Projection(view="weather", features=("temp_f",), alias="there", join_key_map={"origin": "to"}),
        ),
    )
    return Plan(
        project=PROJECT,
        version=version,
        digest=f"digest-{version}",
        created_us=NOW_US,
        views={"weather": weather, "planes": planes},
        on_demand={"trip": trip, "echo": echo},
        services={"delay": delay, "pair": pair},
    )


def land(client: StoreClient) -> None:
    """The rows every test finds: EWR whole, JFK with nulls, LGA too old; one plane."""
    when = pa.timestamp("us", tz="UTC")
    plan = make_plan()
    weather = pa.table(
        {
            "origin": ["EWR", "JFK", "LGA"],
            "temp_f": pa.array([39.02, None, 50.0], pa.float64()),
            "wind_mph": pa.array([10.0, float("nan"), 3.0], pa.float64()),
            "station": pa.array([(1 << 60) + 1, None, 7], pa.int64()),
            "note": ["", "gusts", "old"],
            "ts": pa.array([NOW_US - 30 * MINUTE_US, NOW_US - MINUTE_US, NOW_US - 181 * MINUTE_US], when),
        }
    )
    planes = pa.table(
        {
            "plane": pa.array([7], pa.int64()),
            "seats": pa.array([55], pa.int32()),
            "made": pa.array([datetime(1999, 1, 1, tzinfo=UTC)], when),
            "logo": pa.array([b"\x00\xff"], pa.binary()),
            "tags": pa.array([["a", "b"]]),
            "ts": pa.array([NOW_US - 400_000_000 * 1000], when),
        }
    )
    for name, table in (("weather", weather), ("planes", planes)):
        RowWriter(client, PROJECT, plan.views[name], clock=lambda: NOW_US).write(table, event_timestamp="ts")


def make_app(client: StoreClient, **changes: object) -> FastAPI:
    """The application over a store, with the tests' clock."""
    parts = {
        "plans": PlanStore(client, PROJECT),
        "reader": lambda plan: OnlineReader(client, plan, lambda: NOW_US),
        "store": client,
        "clock": lambda: NOW_US,
        "metrics": Metrics(CollectorRegistry()),
        "keys": ApiKeys(()),
        "limits": Limits(body_bytes=20_000, entities=50, features=20, values=300, text_chars=100),
        "poll_s": 0.05,
    }
    return create_app(**(parts | changes))


@contextlib.contextmanager
def serve(app: FastAPI, http: type[asyncio.Protocol] = DirectProtocol) -> Iterator[httpx.Client]:
    """The application behind a real server on a free loopback port, and a client of it."""
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="on", access_log=False, http=http)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def project() -> SimpleNamespace:
    """What tests build on: the plan, its rows, the application."""
    return SimpleNamespace(
        NOW=NOW,
        NOW_US=NOW_US,
        MINUTE_US=MINUTE_US,
        make_plan=make_plan,
        land=land,
        make_app=make_app,
        serve=serve,
        name=PROJECT,
    )


@pytest.fixture
def landed(store: StoreClient) -> StoreClient:
    """The store with the plan in force and the rows landed."""
    land(store)
    PlanStore(store, PROJECT).publish(make_plan())
    return store


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of an application over a landed project of its own; for tests that only read."""
    folder = tmp_path_factory.mktemp("api")
    with EmbeddedServer(folder) as server:
        client = connect(OnlineSettings(url=f"unix://{server.address}"), folder)
        land(client)
        PlanStore(client, PROJECT).publish(make_plan())
        with serve(make_app(client)) as http:
            yield http
        client.close()


@pytest.fixture
def ask(api: httpx.Client) -> Callable[..., dict]:
    """Posts a request and returns the JSON of its answer, which must be 200."""

    def post(features: list[str] | str, entities: dict[str, list], **rest: object) -> dict:
        body = {"entities": entities, **rest}
        body["feature_service" if isinstance(features, str) else "features"] = features
        response = api.post("/get-online-features", content=msgspec.json.encode(body))
        assert response.status_code == 200, response.text
        return response.json()

    return post
