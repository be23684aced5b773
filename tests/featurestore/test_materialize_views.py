"""One view that cannot be loaded starves no other: by the command, and by Feast's SDK, in full and incremental runs."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.apply import apply
from featurestore.cli.main import main
from featurestore.config import Settings, load_settings
from featurestore.errors import StoreUnavailable, ViewsFailed
from featurestore.materialize import materialize
from featurestore.online.connection import connect
from featurestore.online.reader import OnlineReader
from featurestore.plan import Projection
from featurestore.plan_store import load_plan_file

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("feast")]

NOW = datetime.now(UTC).replace(microsecond=0)
YAML = """\
project: shop
registry: ../data/registry.db
provider: local
offline_store: {{type: featurestore.plugins.DuckDBOfflineStore}}
online_store: {{type: featurestore.plugins.RedisOnlineStore, connection: "{address}"}}
batch_engine: {{type: featurestore.plugins.ArrowEngine}}
entity_key_serialization_version: 3
"""
DEFINITIONS = """\
from datetime import timedelta
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64

card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.INT64)
for letter in "abcd":
    globals()[letter] = FeatureView(
        name=letter, entities=[card], ttl=timedelta(0),
        source=FileSource(name=letter, path=f"../data/{letter}.parquet", timestamp_field="ts"),
        schema=[Field(name="card_id", dtype=Int64), Field(name="limit", dtype=Float64)],
    )
"""
BREAK: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "torn": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "without its column": lambda path: pq.write_table(pq.read_table(path).drop_columns(["limit"]), path),
    "of another type": lambda path: pq.write_table(
        pq.read_table(path).set_column(1, "limit", pa.array([["x"], ["y"]])), path
    ),
    "empty": lambda path: path.write_bytes(b""),
}


def land(settings: Settings, *letters: str, limit: float = 1.0) -> None:
    for letter in letters:
        ts = pa.array([NOW - timedelta(minutes=2)] * 2, pa.timestamp("us", "UTC"))
        rows = {"card_id": pa.array([1, 2], pa.int64()), "limit": [limit, limit], "ts": ts}
        pq.write_table(pa.table(rows), settings.data_dir / f"{letter}.parquet")


@pytest.fixture
def repo(tmp_path: Path, store: object, online_url: str) -> Settings:
    """Four views of a source each, in force and not loaded."""
    folder = tmp_path / "feature_repo"
    folder.mkdir()
    (tmp_path / "data").mkdir()
    (folder / "feature_store.yaml").write_text(YAML.format(address=online_url))
    (folder / "shop_definitions.py").write_text(DEFINITIONS)
    settings = load_settings(folder, os.environ)
    land(settings, *"abcd")
    apply(settings)
    return settings


def online(settings: Settings) -> dict[str, object]:
    """The limit of card 1 by view, as the online store has it."""
    reader = OnlineReader(
        connect(settings.online, settings.data_dir),
        load_plan_file(settings.plan_path),
        lambda: int(NOW.timestamp() * 1e6),
    )
    reads = [Projection(view=letter, features=("limit",)) for letter in "abcd"]
    return {column.view: column.to_python()[0] for column in reader.read(reads, {"card_id": [1]}).columns}


@pytest.mark.parametrize("how", sorted(BREAK))
def test_the_command_loads_all_others(repo: Settings, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is wrong with one source, in a full and an incremental run; the last line names the view and why."""
    BREAK[how](repo.data_dir / "b.parquet")
    for limit, options in ((1.0, []), (2.0, ["--incremental"])):
        land(repo, *"acd", limit=limit)
        assert main(["materialize", "--repo", str(repo.repo), *options]) == (2 if how == "of another type" else 1)
        told = capsys.readouterr()
        assert online(repo) == {"a": limit, "b": None, "c": limit, "d": limit}
        assert sum(": 2 keys written" in line for line in told.out.splitlines()) == 3
        assert "failed: b:" in told.out
        last = told.err.splitlines()[-1]
        assert last.startswith("error: 1 of 4 views could not be loaded (b), all others were: b: ")
        assert "this is a bug" not in last


@pytest.mark.parametrize("incremental", [False, True])
def test_feasts_own_call_loads_all_others(repo: Settings, *, incremental: bool) -> None:
    """`FeatureStore.materialize` and `materialize_incremental` raise one error that names all views that failed."""
    from feast import FeatureStore

    for letter in "ac":
        (repo.data_dir / f"{letter}.parquet").unlink()
    store = FeatureStore(str(repo.repo))
    load = store.materialize_incremental if incremental else partial(store.materialize, NOW - timedelta(hours=1))
    with pytest.raises(ViewsFailed, match=r"2 of 4 views could not be loaded \(a, c\)") as failed:
        load(NOW)
    assert set(failed.value.failed) == {"a", "c"}
    assert online(repo) == {"a": None, "b": 1.0, "c": None, "d": 1.0}
    ends = {letter: FeatureStore(str(repo.repo)).get_feature_view(letter).most_recent_end_time for letter in "abcd"}
    assert {letter: end == NOW for letter, end in ends.items()} == {"a": False, "b": True, "c": False, "d": True}


def test_a_view_that_failed_goes_on_where_it_was(repo: Settings) -> None:
    """What is repaired is loaded by the next run: nothing was registered of the one that failed."""
    held = (repo.data_dir / "b.parquet").read_bytes()
    (repo.data_dir / "b.parquet").unlink()
    with pytest.raises(ViewsFailed):
        list(materialize(repo, [], None, None, incremental=True))
    (repo.data_dir / "b.parquet").write_bytes(held)
    list(materialize(repo, [], None, None, incremental=True))
    assert online(repo) == dict.fromkeys("abcd", 1.0)


def test_an_online_store_that_is_away_is_told_once(repo: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no fault of a view: the first that meets it ends the run."""
    monkeypatch.setenv("FEATURESTORE_REDIS_URL", "redis://127.0.0.1:9")
    with pytest.raises(StoreUnavailable):
        list(materialize(load_settings(repo.repo, os.environ), [], None, None))
