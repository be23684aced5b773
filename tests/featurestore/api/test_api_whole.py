"""From Feast definitions to served values over HTTP alone: apply, then materialize, push and read through the API."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.api.process import application

YAML = """\
project: weather
provider: local
registry: data/registry.db
entity_key_serialization_version: 3
offline_store:
  type: featurestore.plugins.DuckDBOfflineStore
online_store:
  type: featurestore.plugins.RedisOnlineStore
  connection: {url}
batch_engine:
  type: featurestore.plugins.ArrowEngine
"""
DEFINITIONS = """\
from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.permissions.permission import Permission
from feast.permissions.policy import AllowAll
from feast.types import Float64, Int64, String

origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
landed = FileSource(name="landed", path="landed", timestamp_field="at", created_timestamp_column="made")
weather = FeatureView(
    name="weather_rows",
    entities=[origin],
    schema=[Field(name="origin", dtype=String), Field(name="temp_f", dtype=Float64), Field(name="seen", dtype=Int64)],
    source=PushSource(name="weather_push", batch_source=landed),
    ttl=timedelta(0),
)
service = FeatureService(
    name="outside",
    features=[weather],
    tags={"on_missing": "default", "default.temp_f": "59.0", "default.seen": "null", "audit_rate": "1"},
)
everyone = Permission(name="everyone", types=[FeatureView, FeatureService], policy=AllowAll)
"""
REMOTE = """
import sys, warnings
warnings.simplefilter("ignore")
from datetime import datetime, timedelta
from feast import Entity, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.infra.online_stores.remote import RemoteOnlineStore, RemoteOnlineStoreConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Float64, Int64, String

config = RepoConfig(
    project="weather", provider="local", registry="unused.db", entity_key_serialization_version=3,
    online_store=RemoteOnlineStoreConfig(type="remote", path=sys.argv[1]),
)
view = FeatureView(
    name="weather_rows", ttl=timedelta(0), source=FileSource(path="x.parquet", timestamp_field="at"),
    entities=[Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)],
    schema=[Field(name="origin", dtype=String), Field(name="temp_f", dtype=Float64), Field(name="seen", dtype=Int64)],
)
key = EntityKey(join_keys=["origin"], entity_values=[Value(string_val="LGA")])
values = {"temp_f": Value(double_val=12.5), "seen": Value(int64_val=(1 << 60) + 1)}
RemoteOnlineStore().online_write_batch(config, view, [(key, values, datetime(2024, 5, 3), None)], None)
"""


def land(folder: Path, name: str, **columns: list) -> None:
    folder.mkdir(exist_ok=True)
    when = pa.timestamp("us", tz="UTC")
    typed = {
        column: pa.array(values, when) if column in ("at", "made") else values for column, values in columns.items()
    }
    pq.write_table(pa.table(typed), folder / name)


@pytest.mark.slow
def test_a_day_over_http(online_url, store, project, tmp_path: Path) -> None:
    """Materialized, then since, late rows too, pushed to both stores, written with Feast's client: all is served."""
    (tmp_path / "feature_store.yaml").write_text(YAML.format(url=online_url))
    (tmp_path / "definitions.py").write_text(DEFINITIONS)
    old, first, second = (datetime(2024, month, day, tzinfo=UTC) for month, day in [(1, 1), (5, 1), (5, 2)])
    land(tmp_path / "landed", "a.parquet", origin=["EWR"], temp_f=[50.0], seen=[1], at=[first], made=[first])
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FEATURESTORE_")}
    command = [sys.executable, "-m", "featurestore.cli.main", "apply", "--repo", str(tmp_path)]
    subprocess.run(command, check=True, env=environ, timeout=120)
    app = application(environ | {"FEATURESTORE_REPO": str(tmp_path), "FEATURESTORE_API_OPEN": "1"})
    with project.serve(app) as api:
        api.timeout = 120.0

        def served() -> list:
            body = {"feature_service": "outside", "entities": {"origin": ["EWR", "JFK", "LGA"]}}
            response = api.post("/get-online-features", json=body)
            assert response.status_code == 200, response.text
            return [result["values"] for result in response.json()["results"][1:]]

        assert served() == [[59.0] * 3, [None] * 3]
        body = {"start_ts": "2024-04-01T00:00:00", "end_ts": "2024-05-01T12:00:00", "feature_views": ["weather_rows"]}
        response = api.post("/materialize", json=body)
        assert response.status_code == 200, response.text
        assert served() == [[50.0, 59.0, 59.0], [1, None, None]]
        land(tmp_path / "landed", "b.parquet", origin=["EWR"], temp_f=[51.0], seen=[2], at=[second], made=[second])
        response = api.post("/materialize-incremental", json={"end_ts": "2024-05-02T12:00:00"})
        assert response.status_code == 200, response.text
        assert served() == [[51.0, 59.0, 59.0], [2, None, None]]
        land(tmp_path / "landed", "c.parquet", origin=["BOS"], temp_f=[30.0], seen=[3], at=[old], made=[second])
        response = api.post("/materialize-incremental", json={"end_ts": "2024-05-02T12:00:00"})
        assert response.status_code == 200, response.text
        late = api.post(
            "/get-online-features", json={"features": ["weather_rows:seen"], "entities": {"origin": ["BOS"]}}
        )
        assert late.json()["results"][1]["values"] == [3]
        df = {"origin": ["JFK"], "temp_f": [60.5], "seen": [(1 << 60) + 1], "at": ["2024-05-03T00:00:00Z"]}
        push = {"push_source_name": "weather_push", "df": df, "to": "online_and_offline"}
        assert api.post("/push", json=push).json() == {"rows": 1, "written": 1, "superseded": 0}
        url = str(api.base_url).rstrip("/")
        done = subprocess.run(
            [sys.executable, "-c", REMOTE, url], env=environ, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert served() == [[51.0, 60.5, 12.5], [2, (1 << 60) + 1, (1 << 60) + 1]]
    assert pq.read_table(tmp_path / "landed").num_rows == 4
    lines = [json.loads(line) for line in (tmp_path / "data" / "audit.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["write", "written"] * 5
    audit = [sys.executable, "-m", "featurestore.cli.main", "skew", "audit", "--json", "--repo", str(tmp_path)]
    done = subprocess.run(audit, capture_output=True, text=True, env=environ, check=False, timeout=120)
    # What was written online alone has no history offline: that is for a person to look at.
    assert done.returncode == 1, done.stderr
    causes = {skew["feature"]: skew["differing"] for audited in json.loads(done.stdout) for skew in audited["skews"]}
    assert causes == {
        "temp_f": {"default_applied": 7, "materialization_lag": 1, "unknown": 1},
        "seen": {"materialization_lag": 2, "late_event": 3, "unknown": 1},
    }
