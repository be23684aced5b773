"""Feast's own remote online store as a client of the API."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
from datetime import timedelta
from feast import Entity, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.infra.online_stores.remote import RemoteOnlineStore, RemoteOnlineStoreConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Float64, Int64, String

config = RepoConfig(
    project="flights", provider="local", registry="unused.db", entity_key_serialization_version=3,
    online_store=RemoteOnlineStoreConfig(type="remote", path=sys.argv[1]),
)
remote = RemoteOnlineStore()

def ask(features, rows):
    return remote.get_online_features(
        config=config, features=features, entity_rows=rows, registry=None, project="flights")

answer = ask(
    ["weather:temp_f", "weather:station", "weather:note", "trip:headwind"],
    [{"origin": "EWR", "sched_hour": 7}, {"origin": "XXX", "sched_hour": 8}],
)
types = {"origin": String, "temp_f": Float64, "station": Int64}
view = FeatureView(
    name="weather", ttl=timedelta(hours=3), source=FileSource(path="x.parquet", timestamp_field="ts"),
    entities=[Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)],
    schema=[Field(name=name, dtype=dtype) for name, dtype in types.items()],
)
key = EntityKey(join_keys=["origin"], entity_values=[Value(string_val="EWR")])
(when, values), = remote.online_read(config, view, [key], ["temp_f", "station"])
try:
    ask(["wether:temp_f"], [{"origin": "EWR"}])
except RuntimeError as error:
    refusal = str(error)
print(json.dumps({
    "dict": answer.to_dict(),
    "statuses": [list(result.statuses) for result in answer.proto.results],
    "read": [when.isoformat(), values["temp_f"].double_val, values["station"].int64_val],
    "refusal": refusal,
}))
"""


@pytest.mark.slow
def test_feasts_remote_client_reads_the_api(api) -> None:
    """Feast's remote online store gets the same values, statuses and times from us as from its own server."""
    command = [sys.executable, "-c", SCRIPT, str(api.base_url).rstrip("/")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["dict"] == {
        "origin": ["EWR", "XXX"],
        "temp_f": [39.02, None],
        "station": [(1 << 60) + 1, None],
        "note": ["", None],
        "headwind": [15.0, None],
    }
    present, null_value, not_found = 1, 2, 3
    assert told["statuses"] == [[present, present], *[[present, not_found]] * 3, [present, null_value]]
    assert told["read"] == ["2024-06-01T11:30:00+00:00", 39.02, (1 << 60) + 1]
    assert "did you mean 'weather'?" in told["refusal"]
