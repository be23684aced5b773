"""`feast serve` itself over our stores, and our API beside it: Feast's remote client cannot tell them apart."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from featurestore.online.connection import StoreClient

YAML = """\
project: rides
provider: local
registry: data/registry.db
entity_key_serialization_version: 3
offline_store: {type: featurestore.plugins.DuckDBOfflineStore}
online_store: {type: featurestore.plugins.RedisOnlineStore, connection: "ADDRESS"}
batch_engine: {type: featurestore.plugins.ArrowEngine}
"""
DEFINITIONS = """\
from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String

driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
landed = FileSource(name="landed", path="landed", timestamp_field="event_timestamp", created_timestamp_column="created")
trips = FeatureView(
    name="trips", entities=[driver], ttl=timedelta(days=2),
    schema=[Field(name="driver_id", dtype=Int64), Field(name="fare", dtype=Float64), Field(name="n", dtype=Int64),
            Field(name="who", dtype=String)],
    source=PushSource(name="trips_push", batch_source=landed),
)


@on_demand_feature_view(
    sources=[trips, RequestSource(name="asked", schema=[Field(name="km", dtype=Float64)])],
    schema=[Field(name="per_km", dtype=Float64), Field(name="label", dtype=String)], mode="python", singleton=True,
)
def priced(row):
    if row["fare"] is None:
        return {"per_km": None, "label": "unknown"}
    return {"per_km": row["fare"] / row["km"], "label": f"{row['who']} for {row['km']:.0f} km"}


pricing = FeatureService(name="pricing", features=[trips, priced])
"""
LAND = """
import sys, warnings
warnings.simplefilter("ignore")
from datetime import UTC, datetime, timedelta
import pandas as pd
from feast import FeatureStore
from feast.data_source import PushMode

store, now = FeatureStore(sys.argv[1]), datetime.fromisoformat(sys.argv[2])


def rows(driver, fare, age, who):
    return pd.DataFrame({
        "driver_id": [driver], "fare": [fare], "n": [(1 << 60) + driver], "who": [who],
        "event_timestamp": [now - age], "created": [now - age],
    })


hour = timedelta(hours=1)
store.push("trips_push", rows(1, 10.0, hour, "ann"), to=PushMode.ONLINE_AND_OFFLINE)
store.push("trips_push", rows(2, 20.0, hour, "bob"), to=PushMode.OFFLINE)
store.push("trips_push", rows(3, 30.0, hour, "cid"), to=PushMode.ONLINE)
store.push("trips_push", rows(4, 40.0, 60 * hour, "dee"), to=PushMode.ONLINE_AND_OFFLINE)
asked = pd.DataFrame({"driver_id": [1, 2, 3], "event_timestamp": [now] * 3})
print(store.get_historical_features(asked, ["trips:fare"]).to_df().sort_values("driver_id")["fare"].tolist())
"""
ASK = """
import json, sys, warnings
warnings.simplefilter("ignore")
from datetime import datetime
import pandas as pd
from feast import FeatureStore, RepoConfig

registry, url, now = sys.argv[1:]
store = FeatureStore(config=RepoConfig(
    project="rides", provider="local", registry=registry, entity_key_serialization_version=3,
    online_store={"type": "remote", "path": url},
))
entities = [{"driver_id": driver, "km": 4.0} for driver in (1, 2, 3, 4)]
told = []
# A view that runs row by row is asked for one entity, and not for full names: Feast's own server computes the first
# row alone, and leaves full names out.
service = store.get_feature_service("pricing")
for features, full, rows in (
    (service, False, entities[:1]), (service, False, entities[1:2]), (["trips:fare", "trips:n"], True, entities),
    (["trips:who", "trips:fare"], False, entities),
):
    answer = store.get_online_features(features=features, entity_rows=rows, full_feature_names=full)
    names = answer.proto.metadata.feature_names.val
    statuses = {name: list(result.statuses) for name, result in zip(names, answer.proto.results)}
    told.append([answer.to_dict(), statuses])
# Feast's client calls the timestamps so, whatever the source does.
when = [datetime.fromisoformat(now)]
row = {"driver_id": [5], "fare": [50.0], "n": [5], "who": ["eve"], "event_timestamp": when, "created": when}
store.write_to_online_store("trips", pd.DataFrame(row))
told.append(store.get_online_features(features=["trips:fare"], entity_rows=[{"driver_id": 5}]).to_dict())
every = store.get_online_features(features=service, entity_rows=entities).to_dict()
print(json.dumps([told, every]))
"""
PATIENCE_S = 90


@contextmanager
def listening(words: list[str], environ: dict[str, str], port: int, log: Path) -> Iterator[str]:
    """A server while it runs, once it says that it is well."""
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as said:
        running = subprocess.Popen(words, env=environ, stdout=said, stderr=said, start_new_session=True)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not _well(url):
                assert running.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield url
        finally:
            os.killpg(running.pid, signal.SIGTERM)
            try:
                running.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()


def _well(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.slow
def test_feast_serve_and_our_api_answer_alike(store: StoreClient, online_url: str, tmp_path: Path) -> None:
    """Pushed through the SDK to either store or both, read through a view that runs row by row, written through the
    remote client: `feast serve` as a process of its own and our API give Feast's client the same."""
    (tmp_path / "feature_store.yaml").write_text(YAML.replace("ADDRESS", online_url))
    (tmp_path / "definitions.py").write_text(DEFINITIONS)
    (tmp_path / "landed").mkdir()
    now = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=5)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FEATURESTORE_")}

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], env=environ, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1] if done.stdout else ""

    _first_file(tmp_path / "landed", now - timedelta(days=1))
    run("-m", "featurestore.cli.main", "apply", "--repo", str(tmp_path))
    assert run("-c", LAND, str(tmp_path), now.isoformat()) == "[10.0, 20.0, nan]"
    registry, told = str(tmp_path / "data" / "registry.db"), {}
    ports = free_port(), free_port()
    ours = [sys.executable, "-m", "featurestore.cli.main", "serve", "--open", "--port", str(ports[1])]
    stock = [sys.executable, "-m", "feast.cli.cli", "-c", str(tmp_path), "serve", "-h", "127.0.0.1"]
    servers = {
        "feast": [*stock, "-p", str(ports[0]), "-w", "1", "--no-access-log"],
        "ours": [*ours, "--repo", str(tmp_path)],
    }
    for (name, words), port in zip(servers.items(), ports, strict=True):
        with listening(words, environ, port, tmp_path / f"{name}.log") as url:
            told[name] = json.loads(run("-c", ASK, registry, url, now.isoformat()))
    alike, every = told["ours"]
    # What a function made null: Feast's server says PRESENT, ours NULL_VALUE.
    assert [told[name][0][1][1].pop("per_km") for name in ("feast", "ours")] == [[1], [2]]
    assert alike == told["feast"][0]
    (first, _), (absent, _), (full, _), (_, statuses), written = alike
    assert (first["per_km"], first["label"]) == ([2.5], ["ann for 4 km"])
    assert (absent["per_km"], absent["label"]) == ([None], ["unknown"])
    assert (every["per_km"], every["label"]) == (
        [2.5, None, 7.5, None],
        ["ann for 4 km", "unknown", "cid for 4 km", "unknown"],
    )
    assert full["trips__fare"] == [10.0, None, 30.0, None]
    assert full["trips__n"][0] == (1 << 60) + 1
    present, not_found, outside = 1, 3, 4
    assert statuses["fare"] == [present, not_found, present, outside]
    assert written["fare"] == [50.0]


def _first_file(folder: Path, at: datetime) -> None:
    """A row of somebody else: the source is a folder that has files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    when = pa.array([at], pa.timestamp("us", "UTC"))
    row: dict[str, Any] = {"driver_id": [9], "fare": [1.0], "n": [1], "who": ["zoe"]}
    pq.write_table(pa.table(row | {"event_timestamp": when, "created": when}), folder / "first.parquet")
