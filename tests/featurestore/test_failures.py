"""What is wrong around a repo is told in one line, with the right exit code and no traceback."""

import datetime as dt
import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.apply import apply
from featurestore.cli.main import main
from featurestore.config import load_settings
from featurestore.doctor import examine
from featurestore.plan_store import load_plan_file, write_plan_file
from validation.place import ObjectPath

YAML = """\
project: shop
registry: ../data/registry.db
provider: local
offline_store: {type: featurestore.plugins.DuckDBOfflineStore}
online_store: {type: featurestore.plugins.RedisOnlineStore}
batch_engine: {type: featurestore.plugins.ArrowEngine}
entity_key_serialization_version: 3
"""
DEFINITIONS = """\
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Int64

card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.INT64)
owner = FeatureView(
    name="owner", entities=[card], ttl=timedelta(0),
    schema=[Field(name="card_id", dtype=Int64), Field(name="age", dtype=Int64)],
    source=FileSource(name="owners", path="../data/owners.parquet", timestamp_field="ts"),
)
fraud = FeatureService(name="fraud", features=[owner])
"""
OWNERS = pa.table({"card_id": [1, 2], "age": [30, None], "ts": [dt.datetime(2026, 1, 1, tzinfo=dt.UTC)] * 2})


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """An applied feature repo with one batch view; the current folder is the repo."""
    folder = tmp_path / "feature_repo"
    folder.mkdir()
    (tmp_path / "data").mkdir()
    (folder / "feature_store.yaml").write_text(YAML)
    (folder / "shop_definitions.py").write_text(DEFINITIONS)
    pq.write_table(OWNERS, tmp_path / "data" / "owners.parquet")
    apply(load_settings(folder, {}))
    monkeypatch.chdir(folder)
    return folder


def failing(words, capfd):
    """The one line that a failing command prints, and its exit code."""
    code = main(words)
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert "bug" not in lines[0]
    return lines[0], code


def test_materialize_says_what_it_did(repo, capfd):
    """A line a view, and the values are there."""
    assert main(["materialize"]) == 0
    assert "owner: 2 keys written" in capfd.readouterr().out


def test_an_unreachable_store_is_named(repo, monkeypatch, capfd):
    """The address and what to do; the password is not shown."""
    monkeypatch.setenv("FEATURESTORE_REDIS_URL", "redis://app:secret@127.0.0.1:1/0")
    line, code = failing(["apply"], capfd)
    assert (code, "127.0.0.1:1" in line, "doctor" in line, "secret" in line) == (1, True, True, False)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.unlink(), "owners.parquet"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "Parquet"),
        (lambda path: path.write_text("a,b"), "Parquet"),
        (lambda path: pq.write_table(OWNERS.drop_columns("age"), path), "age"),
    ],
    ids=["missing", "torn", "not Parquet", "lost a column"],
)
def test_a_broken_source_is_named(repo, tmp_path, harm, said, capfd):
    """Materializing and joining both name the file or the column, before any work."""
    harm(tmp_path / "data" / "owners.parquet")
    rows = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"card_id": [1], "event_timestamp": OWNERS["ts"][:1]}), rows)
    for words in (["materialize"], ["dataset", "build", "x", "--entity-rows", str(rows), "--service", "fraud"]):
        line, code = failing(words, capfd)
        assert (code, said in line) == (1, True), line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--feature", "owner:aga"], "did you mean 'age'"),
        (["--feature", "owners:age"], "did you mean 'owner'"),
        (["--service", "frod"], "did you mean 'fraud'"),
        (["--service", "fraud", "--timestamp", "when"], "no column 'when'"),
    ],
)
def test_unknown_names_are_told_with_what_exists(repo, tmp_path, words, said, capfd):
    """A misspelt feature, view, service or column: exit code 2 and the nearest name."""
    rows = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"card_id": [1], "event_timestamp": OWNERS["ts"][:1]}), rows)
    line, code = failing(["dataset", "build", "x", "--entity-rows", str(rows), *words], capfd)
    assert (code, said in line) == (2, True), line


def test_a_key_of_another_type_names_both(repo, tmp_path, capfd):
    """Text that is no number cannot be an INT64 key."""
    rows = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"card_id": ["x"], "event_timestamp": OWNERS["ts"][:1]}), rows)
    line, code = failing(["dataset", "build", "x", "--entity-rows", str(rows), "--service", "fraud"], capfd)
    assert (code, "INT64" in line, "string" in line) == (2, True, True), line


def test_an_unknown_view_cannot_be_materialized(repo, capfd):
    """The views that exist are listed."""
    line, code = failing(["materialize", "ownr"], capfd)
    assert (code, "did you mean 'owner'" in line) == (2, True)


def test_a_torn_plan_says_what_to_do(repo, tmp_path, capfd):
    """A half-written plan file is told, not decoded into nonsense."""
    (tmp_path / "data" / "plan.json").write_bytes(b'{"project": "sh')
    line, code = failing(["dataset", "build", "x", "--entity-rows", "rows", "--service", "fraud"], capfd)
    assert (code, "featurestore apply" in line) == (2, True)


def checks(repo, environ):
    return {check.name: check for check in examine(repo, environ)}


def test_the_doctor_finds_a_healthy_repo(repo):
    """After apply, with its store alive, everything is well."""
    assert main(["materialize"]) == 0  # the embedded store is alive while this process uses it
    found = checks(repo, {})
    assert all(check.ok for check in found.values()), found
    assert found["plan in the online store"].found == "version 1"


def test_the_doctor_says_what_to_do(repo, tmp_path):
    """A plan that is behind, a missing source and a dead store are each named with a remedy."""
    plan = load_plan_file(tmp_path / "data" / "plan.json")
    main(["materialize"])
    write_plan_file(
        tmp_path / "data" / "plan.json", type(plan).decode(plan.encode().replace(b'"version":1}', b'"version":2}'))
    )
    (tmp_path / "data" / "owners.parquet").unlink()
    found = checks(repo, {})
    assert "land the data" in found["source owners"].remedy
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{free.getsockname()[1]}/0"
    away = checks(repo, {"FEATURESTORE_REDIS_URL": url})
    assert (away["online store"].ok, "start the server" in away["online store"].remedy) == (False, True)
    assert checks(tmp_path, {})["configuration"].ok is False


@pytest.mark.parametrize(("fault", "told"), [(None, ""), ("put_first", "If-None-Match"), ("put_over", "If-Match")])
def test_the_doctor_tries_an_object_store(repo, in_bucket, monkeypatch, fault, told):
    """One whose conditions are none (the planted faults) would let two workers be first; nothing is left behind."""
    if fault is not None:
        monkeypatch.setattr(ObjectPath, fault, lambda self, *given: self.put(given[0]) or True)
    check = checks(repo, {"FEATURESTORE_EVENTS_URL": str(in_bucket)})["object store"]
    assert (check.ok, told in check.found) == (fault is None, True)
    assert not list(in_bucket.rglob("*"))


def test_the_doctor_says_that_an_object_store_is_away(repo, monkeypatch):
    """With what to see to."""
    for name, value in (("ENDPOINT_URL", "http://127.0.0.1:9"), ("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b")):
        monkeypatch.setenv(f"AWS_{name}", value)
    check = checks(repo, {"FEATURESTORE_EVENTS_URL": "s3://no-doctor"})["object store"]
    assert (check.ok, "credentials" in check.remedy) == (False, True)
