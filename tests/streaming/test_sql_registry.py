"""API and stream work from a repo whose registry is a database: they load the plan, and need neither it nor Feast."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.online.connection import StoreClient
from streaming.embedded.server import EmbeddedBroker
from streaming.source.kafka import KafkaSettings
from streaming.source.publisher import Publisher

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("feast")]

YAML = """\
project: shop
registry: {registry_type: sql, path: "sqlite:///DATABASE", cache_ttl_seconds: 0}
provider: local
offline_store: {type: featurestore.plugins.DuckDBOfflineStore}
online_store: {type: featurestore.plugins.RedisOnlineStore, connection: "ADDRESS"}
batch_engine: {type: featurestore.plugins.ArrowEngine}
entity_key_serialization_version: 3
"""
DEFINITIONS = """\
from datetime import timedelta
from feast import Entity, FeatureView, Field, FileSource, KafkaSource, StreamFeatureView, ValueType
from feast.aggregation import Aggregation
from feast.data_format import JsonFormat
from feast.types import Float64, Int64

card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.INT64)
taps = KafkaSource(
    name="taps", topic="taps", kafka_bootstrap_servers="BROKER", timestamp_field="ts",
    message_format=JsonFormat(schema_json="card_id bigint, ts timestamp, fare double"),
    batch_source=FileSource(name="taps_log", path="data/event_log/taps", timestamp_field="ts"),
    tags={"message_key": "card_id"},
)


def windowed(name, feature, function):
    return StreamFeatureView(
        name=name, entities=[card], source=taps, timestamp_field="ts", ttl=timedelta(0),
        schema=[Field(name="card_id", dtype=Int64), Field(name=feature, dtype=Float64)],
        aggregations=[Aggregation(column="fare", function=function, time_window=timedelta(hours=1), name=feature)],
    )


spending = windowed("spending", "spent_1h", "sum")
owner = FeatureView(
    name="owner", entities=[card], ttl=timedelta(days=1),
    schema=[Field(name="card_id", dtype=Int64), Field(name="age", dtype=Int64)],
    source=FileSource(name="owners", path="data/owners.parquet", timestamp_field="ts"),
)
"""
LATER = """
highest = windowed("highest", "dearest_1h", "max")
"""
CLI = [sys.executable, "-m", "featurestore.cli.main"]
ADDRESS = re.compile(r"http://[^ ]+:\d+")
PATIENCE_S = 60


@contextmanager
def process(words: list[str], environ: dict[str, str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """A command while it runs; it is asked to end at the end, and must."""
    with log.open("w") as said:
        running = subprocess.Popen(words, env=environ, stdout=said, stderr=said, text=True)
        try:
            yield running
        finally:
            running.send_signal(signal.SIGTERM)
            running.wait(timeout=30)


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


@pytest.mark.slow
def test_api_and_stream_follow_a_plan_from_a_sql_registry(store: StoreClient, online_url: str, tmp_path: Path) -> None:
    """Applied, streamed and materialized through the API, all is served; a view applied meanwhile is streamed and
    served by the same processes."""
    now = datetime.now(UTC)
    (tmp_path / "data").mkdir()
    rows = {"card_id": [1], "age": [30], "ts": pa.array([now - timedelta(hours=2)], pa.timestamp("us", "UTC"))}
    pq.write_table(pa.table(rows), tmp_path / "data" / "owners.parquet")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FEATURESTORE_")}
    with EmbeddedBroker() as broker:
        address = str(broker.address)
        yaml = YAML.replace("DATABASE", str(tmp_path / "registry.sqlite")).replace("ADDRESS", online_url)
        (tmp_path / "feature_store.yaml").write_text(yaml)
        definitions = tmp_path / "definitions.py"
        definitions.write_text(DEFINITIONS.replace("BROKER", address))
        repo = ["--repo", str(tmp_path)]
        publisher = Publisher(KafkaSettings(address), "taps", partitions=1)

        def tap(fare: float) -> None:
            event = {"card_id": 1, "ts": datetime.now(UTC).isoformat(), "fare": fare}
            publisher.send(b"1", json.dumps(event).encode(), timestamp_us=time.time_ns() // 1000)
            publisher.flush()

        def run(*words: str) -> None:
            subprocess.run([*CLI, *words, *repo], env=environ, check=True, timeout=PATIENCE_S, capture_output=True)

        run("apply")
        assert (tmp_path / "registry.sqlite").exists()
        tap(2.5)
        serve, stream = [*CLI, "serve", "--open", "--port", "0", *repo], [*CLI, "stream", "run", *repo]
        with (
            process(serve, environ, tmp_path / "serve.log") as api,
            process(stream, environ, tmp_path / "stream.log") as worker,
        ):
            log = tmp_path / "serve.log"
            until(lambda: ADDRESS.search(log.read_text()), "the API's address")
            url = ADDRESS.findall(log.read_text())[0]

            def ask(path: str, body: dict[str, Any]) -> Any:
                asked = urllib.request.Request(f"{url}{path}", json.dumps(body).encode())
                try:
                    with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
                        return json.load(answer)
                except urllib.error.HTTPError as error:
                    return error.code

            def served(feature: str) -> Any:
                answer = ask("/get-online-features", {"features": [feature], "entities": {"card_id": [1]}})
                return answer if isinstance(answer, int) else answer["results"][1]["values"][0]

            until(lambda: served("spending:spent_1h") == 2.5, "the first event")
            assert ask("/materialize", {"disable_event_timestamp": True}) is None
            assert served("owner:age") == 30
            assert served("highest:dearest_1h") == 404
            definitions.write_text(definitions.read_text() + LATER)
            run("apply")
            until(lambda: served("highest:dearest_1h") != 404, "the new plan in the API")
            tap(4.0)
            until(lambda: served("highest:dearest_1h") == 4.0, "an event in the view that came later")
            until(lambda: served("spending:spent_1h") == 6.5, "the same event in the first view")
            assert (api.poll(), worker.poll()) == (None, None)
        publisher.close()
