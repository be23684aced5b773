"""Plant markers in tagged views, run everything, and search every file, page, metric and message for them."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_outcome import run
from kafka import KafkaProducer

KEY, TEXT, NUMBER = "KEYMARK77123", "TEXTMARK88456", 731337.25
MARKS = (KEY, TEXT, "731337")
NOW = datetime.now(UTC)
SETTINGS = """project: personal
provider: local
registry: data/registry.db
offline_store: {type: featurestore.plugins.DuckDBOfflineStore}
online_store: {type: featurestore.plugins.RedisOnlineStore, connection: embedded}
batch_engine: {type: featurestore.plugins.ArrowEngine}
entity_key_serialization_version: 3
"""
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, KafkaSource, PushSource, StreamFeatureView
from feast import ValueType
from feast.aggregation import Aggregation
from feast.data_format import JsonFormat
from feast.types import Float64, Int64, String

person = Entity(name="person", join_keys=["person_id"], value_type=ValueType.STRING)
source = FileSource(name="people", path="data/people", timestamp_field="ts")
pushed = PushSource(name="people_pushed", batch_source=source)
people = FeatureView(
    name="people", entities=[person], ttl=timedelta(days=30), tags={"pii": "PII"}, source=pushed,
    schema=[Field(name="person_id", dtype=String), Field(name="note", dtype=String), Field(name="pay", dtype=Float64)])
visits_topic = KafkaSource(
    name="visits", topic="visits", kafka_bootstrap_servers="localhost:9092", timestamp_field="ts",
    message_format=JsonFormat(schema_json="ts timestamp, person_id string, paid double"),
    batch_source=FileSource(
        name="log", path="data/event_log/visits", timestamp_field="ts", created_timestamp_column="_arrival"))
visits = StreamFeatureView(
    name="visits", entities=[person], ttl=timedelta(0), timestamp_field="ts", source=visits_topic, tags={"pii": "PII"},
    schema=[Field(name="person_id", dtype=String), Field(name="paid", dtype=Float64)],
    aggregations=[Aggregation(column="paid", function="sum", time_window=timedelta(days=1), name="paid")])
service = FeatureService(name="all", features=[people, visits], tags={"audit_rate": "1"})
"""
CONTRACT = {
    "apiVersion": "v3.1.0", "kind": "DataContract", "id": "SOURCE", "version": "1.0.0", "status": "active",
    "schema": [{"name": "SOURCE", "properties": [
        {"name": "NAME", "logicalType": "number", "quality": [
            {"id": "small", "type": "custom", "engine": "great-expectations",
             "implementation": {
                 "type": "expect_column_values_to_be_between", "kwargs": {"column": "NAME", "max_value": 100}},
             "customProperties": [{"property": "mode", "value": "MODE"}]}]}]}],
}  # fmt: skip
HOLD_DATA = {"people", "event_log", "quarantine", "datasets", "served", "redis", "entities.parquet"}
"""Folders that hold the data itself, by design (docs/security.md); they are protected by their modes."""


def contract_of(source: str, name: str, mode: str) -> str:
    """A contract that the markers break."""
    return json.dumps(CONTRACT).replace("SOURCE", source).replace("NAME", name).replace("MODE", mode)


class Told:
    """What was said anywhere: by whom, and the text."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []

    def leaks(self) -> list[str]:
        """Where a marker was told, with what stands around it."""
        return [
            f"{where}: …{text[max(0, at.start() - 120) : at.end() + 60]}…"
            for where, text in self.texts
            if (at := re.search("|".join(MARKS), text))
        ]


def build(repo: Path, tag: str) -> None:
    """The repo with its source."""
    (repo / "contracts").mkdir(parents=True)
    (repo / "feature_store.yaml").write_text(SETTINGS)
    (repo / "definitions.py").write_text(DEFINITIONS.replace("PII", tag))
    (repo / "contracts/people.odcs.yaml").write_text(contract_of("people", "pay", "warn"))
    (repo / "contracts/visits.odcs.yaml").write_text(contract_of("visits", "paid", "quarantine"))
    (repo / "data/people").mkdir(parents=True)
    stamp = pa.timestamp("us", "UTC")
    rows = {"person_id": [KEY, "b"], "ts": pa.array([NOW - timedelta(hours=1)] * 2, stamp)}
    pq.write_table(pa.table({**rows, "note": [TEXT, "x"], "pay": [NUMBER, 1.0]}), repo / "data/people/1.parquet")
    asked = {"person_id": [KEY, "b"], "event_timestamp": pa.array([NOW] * 2, stamp)}
    pq.write_table(pa.table(asked), repo / "data/entities.parquet")


def send(broker: str) -> None:
    """Events that count, and events that are set aside for their key, type, contract and form."""
    producer = KafkaProducer(bootstrap_servers=broker)
    at = (NOW - timedelta(minutes=5)).isoformat()
    for event in (
        {"ts": at, "person_id": KEY, "paid": 5.0},
        {"ts": at, "person_id": KEY, "paid": NUMBER},
        {"ts": at, "person_id": KEY, "paid": TEXT},
        {"ts": TEXT, "person_id": KEY, "paid": 5.0},
        {"ts": at, "person_id": [KEY], "paid": 5.0},
        {"ts": at, "person_id": None, "paid": NUMBER},
    ):
        producer.send("visits", json.dumps(event).encode())
    producer.send("visits", b'{"person_id": "' + KEY.encode())
    producer.flush()
    producer.close()


def serve_and_ask(repo: Path, environ: dict[str, str], told: Told) -> None:
    """Reads and writes over HTTP, refused ones too; answers of reads hold the values, all others are searched."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", "--open", "--port", str(port), "--repo", str(repo)]
    log = repo.parent / "serve.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "featurestore.cli.main", *words], stdout=out, stderr=out, env=environ
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            for _ in range(600):
                try:
                    client.get("/health")
                    break
                except httpx.TransportError:
                    time.sleep(0.05)
            asked = {"feature_service": "all", "entities": {"person_id": [KEY, "b"]}}
            assert client.post("/get-online-features", json=asked).status_code == 200
            at = NOW.isoformat()
            for row in (
                {"person_id": [KEY], "ts": [at], "note": [TEXT], "pay": [TEXT]},
                {"person_id": [KEY], "ts": [at], "note": [TEXT], "pay": [NUMBER]},
                {"person_id": [KEY], "ts": [TEXT], "note": [TEXT], "pay": [1.0]},
                {"person_id": [[KEY]], "ts": [at], "note": [TEXT], "pay": [1.0]},
                {"person_id": [KEY], "ts": [at], "note": [NUMBER], "pay": [1.0]},
            ):
                body = {"push_source_name": "people_pushed", "df": row, "to": "online"}
                told.texts.append((f"push {row}"[:20], client.post("/push", json=body).text))
                body = {"feature_view_name": "people", "df": row}
                told.texts.append(("write", client.post("/write-to-online-store", json=body).text))
            for entities in ({"person_id": [[KEY]]}, {"person": [KEY]}, {"person_id": [NUMBER]}):
                answer = client.post("/get-online-features", json={"feature_service": "all", "entities": entities})
                told.texts.append((f"ask {list(entities)}", answer.text))
            time.sleep(1.5)  # counts are folded once a second
            for page in ("/metrics", "/ready", "/violations", "/openapi.json"):
                told.texts.append((page, client.get(page).text))
            for each in client.get("/violations").json().get("violations", []):
                told.texts.append(
                    ("violation", client.get(f"/violations/{each['id']}", headers={"Accept": "text/html"}).text)
                )
    finally:
        server.terminate()
        server.wait(30)
    told.texts.append(("the service's log", log.read_text()))


@pytest.fixture(params=["true", "no"])
def everything(
    request: pytest.FixtureRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Iterator[tuple[str, Path, Told]]:
    """A deployment in which every command has run, by whether its views are tagged."""
    repo, told = tmp_path / "repo", Told()
    build(repo, request.param)
    command = [sys.executable, "-m", "featurestore.cli.main", "stream", "broker", "--port", "0", "--partitions", "1"]
    broker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path)
    assert broker.stdout is not None
    try:
        address = broker.stdout.readline().strip().split()[-1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KAFKA_BOOTSTRAP_SERVERS", address)
            patch.chdir(tmp_path)

            def do(*words: str) -> None:
                outcome = run([*words, "--repo", str(repo)], patience_s=120)
                told.texts.append((" ".join(words), outcome.out + outcome.err))
                assert not {"an unforeseen error", "a traceback"} & set(outcome.faults()), outcome

            do("apply")
            do("materialize")
            send(address)
            do("stream", "run", "--until-caught-up")
            serve_and_ask(repo, {**os.environ}, told)
            do("dataset", "build", "one", "--entity-rows", str(repo / "data/entities.parquet"), "--service", "all")
            for words in (
                "dataset list", "dataset verify one", "dataset show one", "skew audit", "monitor --once", "alerts",
                "status", "doctor", "catalog", "stream status", "verify visits",
                "verify visits --online", "skew history", "plan",
            ):  # fmt: skip
                do(*words.split())
            data = repo / "data"
            for words in (
                ["quarantine", "list", "--folder", str(data / "quarantine")],
                ["contract", "violations", "--folder", str(data / "violations")],
                ["drift", "check", "--reference", str(data / "datasets/one"), "--current", str(data / "datasets/one")],
            ):
                outcome = run(words)
                told.texts.append((" ".join(words[:2]), outcome.out + outcome.err))
        told.texts.append(("log lines", caplog.text))
        yield request.param, repo, told
    finally:
        broker.terminate()
        broker.wait(10)
        broker.stdout.close()


def test_no_value_or_key_of_a_tagged_view_leaves_it(everything: tuple[str, Path, Told]) -> None:
    """Neither files that describe the data, nor commands, pages, metrics, logs and refusals hold a marker."""
    tag, repo, told = everything
    held = [
        str(path.relative_to(repo))
        for path in (repo / "data").rglob("*")
        if path.is_file()
        and not HOLD_DATA & set(path.parts)
        and any(mark.encode() in path.read_bytes() for mark in MARKS)
    ]
    leaks = held + told.leaks()
    if tag == "no":  # planted: without the tag the search finds what is told of other views
        assert leaks
    else:
        assert not leaks, "\n".join(leaks)
