"""Windowed features over HTTP: they decay, an earlier instant is exact or refused, and a short history is said."""

import json
from collections.abc import Iterator, Sequence

import httpx
import msgspec
import numpy as np
import pyarrow as pa
import pytest

from featurestore.aggregation.tiles import SPAN, TileLayout
from featurestore.clock import iso
from featurestore.online.connection import StoreClient
from featurestore.online.keys import EntityKeyCodec, Shard, shards_key, tile_key
from featurestore.online.reader import OnlineReader
from featurestore.online.sealed import sealed
from featurestore.plan import Aggregation, Field, JoinKey, Source, View
from featurestore.plan_store import PlanStore

MINUTE, HOUR, DAY = 60_000_000, 3_600_000_000, 86_400_000_000
VIEW = View(
    name="departures", version=1, kind="windowed", ttl_us=0,
    join_keys=(JoinKey(entity="origin", name="origin", dtype="STRING"),),
    features=(Field(name="flights_1h", dtype="INT64"), Field(name="delay_1h", dtype="DOUBLE")),
    source=Source(name="departures", path="log", timestamp_field="event_timestamp"),
    columns=(Field(name="origin", dtype="STRING"), Field(name="delay", dtype="DOUBLE")),
    aggregations=tuple(
        Aggregation(feature=feature, column="delay", column_dtype="DOUBLE", function=function, dtype=dtype,
                    window_us=HOUR, hop_us=5 * MINUTE)
        for feature, function, dtype in (("flights_1h", "count", "INT64"), ("delay_1h", "mean", "DOUBLE"))
    ),
)  # fmt: skip
FEATURES = ["departures:flights_1h", "departures:delay_1h"]


def stream(store: StoreClient, project: str, events: Sequence[tuple[str, int, float]], complete_us: int | None) -> None:
    """The tiles of (origin, event us, delay), as the stream stores them; each event in a tile of its own."""
    shard, keys = Shard(project, VIEW.name, VIEW.version, "t", 0), EntityKeyCodec(VIEW.join_keys)
    for level in TileLayout.of(VIEW).levels:
        for origin, at, delay in events:
            tile = int(level.tile(np.array([at]))[0])
            slot = level.aggregate(np.array([0]), 1, np.array([at]), {"delay": pa.array([delay])})
            name = tile_key(shard.tile_prefix(level.hop_us), tile // SPAN, keys.encode({"origin": origin}) or b"")
            store.setrange(name, tile % SPAN * level.slot_bytes, slot.tobytes())
    state = {"topic_id": "t", "partition": 0, "complete_from_us": complete_us}
    store.set(shards_key(project, VIEW.name, VIEW.version), sealed(json.dumps([state]).encode()))


@pytest.fixture
def api(store: StoreClient, project) -> Iterator[tuple[httpx.Client, list[int]]]:
    """An API over two flights, 10 and 50 minutes old, and the clock it reads by."""
    clock = [project.NOW_US]
    PlanStore(store, project.name).publish(msgspec.structs.replace(project.make_plan(), views={"departures": VIEW},
                                                                   on_demand={}, services={}))  # fmt: skip
    ago = [("LGA", clock[0] - 50 * MINUTE, 7.0), ("LGA", clock[0] - 10 * MINUTE, 5.0)]
    stream(store, project.name, ago, clock[0] - 2 * HOUR)
    app = project.make_app(
        store, reader=lambda plan: OnlineReader(store, plan, lambda: clock[0]), clock=lambda: clock[0]
    )
    with project.serve(app) as client:
        yield client, clock


def read(client: httpx.Client, **more: object) -> tuple[list[object], list[str]]:
    body = {"features": FEATURES, "entities": {"origin": ["LGA"]}, **more}
    response = client.post("/get-online-features", json=body)
    assert response.status_code == 200, response.text
    told = response.json()["results"][1:]
    return [each["values"][0] for each in told], [each["statuses"][0] for each in told]


def test_windows_decay(api) -> None:
    """With no new event values change as time passes: an empty window counts 0 and has no mean."""
    client, clock = api
    assert read(client) == ([2, 6.0], ["PRESENT"] * 2)
    clock[0] += 20 * MINUTE
    assert read(client) == ([1, 5.0], ["PRESENT"] * 2)
    clock[0] += 2 * HOUR
    assert read(client) == ([0, None], ["PRESENT", "NULL_VALUE"])


def test_an_earlier_instant_is_exact_or_refused(api) -> None:
    """As of any instant since the newest event the value is what it was; before it, 4xx says so and gives none."""
    client, clock = api
    clock[0] += 2 * HOUR
    then = iso(clock[0] - 2 * HOUR)
    assert read(client, as_of=then) == ([2, 6.0], ["PRESENT"] * 2)
    body = {"features": FEATURES, "entities": {"origin": ["LGA"]}, "as_of": iso(clock[0] - 2 * HOUR - 11 * MINUTE)}
    refused = client.post("/get-online-features", json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "not_exact")
    assert "newer than as_of" in refused.json()["message"]


def test_a_window_older_than_its_history_is_incomplete(api, store: StoreClient, project) -> None:
    """The value stands beside a status that does not vouch for it."""
    client, clock = api
    stream(store, project.name, [], clock[0] - 30 * MINUTE)
    values, statuses = read(client)
    assert values == [2, 6.0]
    assert set(statuses) == {"INCOMPLETE"}
