"""A small deployment for generated inputs: one batch view, one stream view, a broker, a store."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_outcome import run
from dirty_inputs import INSTANTS

SETTINGS = """project: torture
provider: local
registry: data/registry.db
offline_store: {type: featurestore.plugins.DuckDBOfflineStore}
online_store: {type: featurestore.plugins.RedisOnlineStore, connection: embedded}
batch_engine: {type: featurestore.plugins.ArrowEngine}
entity_key_serialization_version: 3
"""
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureView, Field, FileSource, KafkaSource, StreamFeatureView, ValueType
from feast.aggregation import Aggregation
from feast.data_format import JsonFormat
from feast.types import Float64, Int64, String

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
KINDS = {"whole": Int64, "real": Float64, "text": String}
for kind, dtype in KINDS.items():
    globals()[kind] = FeatureView(
        name=kind, entities=[user], ttl=timedelta(0),
        schema=[Field(name="user_id", dtype=Int64), Field(name="x", dtype=dtype)],
        source=FileSource(name=f"s_{kind}", path=f"data/{kind}", timestamp_field="ts"))
orders = KafkaSource(
    name="orders", topic="orders", kafka_bootstrap_servers="localhost:9092", timestamp_field="ts",
    message_format=JsonFormat(schema_json="ts timestamp, user_id bigint, amount double"),
    batch_source=FileSource(
        name="log", path="data/event_log/orders", timestamp_field="ts", created_timestamp_column="_arrival"))
spent = StreamFeatureView(
    name="spent", entities=[user], ttl=timedelta(0), timestamp_field="ts", source=orders,
    schema=[Field(name="user_id", dtype=Int64), Field(name="n", dtype=Int64)],
    aggregations=[Aggregation(column="amount", function="count", time_window=timedelta(days=1), name="n")])
"""


class Deployment(NamedTuple):
    """The repo's folder and the broker's address."""

    repo: Path
    broker: str


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A repo whose definitions are applied, with a broker that runs."""
    repo = tmp_path_factory.mktemp("torture")
    (repo / "feature_store.yaml").write_text(SETTINGS)
    (repo / "definitions.py").write_text(DEFINITIONS)
    for kind, value in (("whole", 1), ("real", 1.5), ("text", "a")):
        (repo / "data" / kind).mkdir(parents=True)
        pq.write_table(pa.table({"user_id": [1], "ts": [INSTANTS[0]], "x": [value]}), repo / f"data/{kind}/1.parquet")
    command = [sys.executable, "-m", "featurestore.cli.main", "stream", "broker", "--port", "0", "--partitions", "2"]
    broker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert broker.stdout is not None
        address = broker.stdout.readline().strip().split()[-1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KAFKA_BOOTSTRAP_SERVERS", address)
            outcome = run(["apply", "--repo", str(repo)])
            assert outcome.code == 0, outcome
            yield Deployment(repo, address)
    finally:
        broker.terminate()
        broker.wait(10)
        broker.stdout.close()


@pytest.fixture
def environ(deployment: Deployment) -> dict[str, str]:
    """The environment of the deployment's processes."""
    return {**os.environ, "KAFKA_BOOTSTRAP_SERVERS": deployment.broker}
