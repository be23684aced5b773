"""Plain Feast works on our online store: materialize, push, write and read through its own SDK."""

import asyncio
import math
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.errors import UsageError
from featurestore.online.connection import StoreClient

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pandas as pd
    from feast import (
        Entity,
        FeatureService,
        FeatureStore,
        FeatureView,
        Field,
        FileSource,
        PushSource,
        RepoConfig,
        types,
    )
    from feast.feature_server import get_app
    from feast.protos.feast.types.Value_pb2 import Value
    from feast.value_type import ValueType

    from featurestore.plugins import reading
from featurestore.plugins.protos import from_column, to_column

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("feast")]

NOW = datetime.now(UTC).replace(microsecond=0)


def rides(path: Path, rows: list[dict[str, Any]]) -> None:
    stamp = pa.timestamp("us", tz="UTC")
    schema = pa.schema(
        {
            "driver": pa.int64(),
            "ts": stamp,
            "made": stamp,
            "fare_usd": pa.float64(),
            "n": pa.int64(),
            "who": pa.string(),
        }
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


def row(
    driver: int | None, age: timedelta, fare: float | None = 1.0, n: int | None = 1, made: datetime = NOW
) -> dict[str, Any]:
    return {"driver": driver, "ts": NOW - age, "made": made, "fare_usd": fare, "n": n, "who": f"d{driver}"}


def config_of(folder: Path, online_url: str, offline: str, overlap_s: float = 3600) -> RepoConfig:
    return RepoConfig(
        project="ml",
        provider="local",
        registry=str(folder / "data" / "registry.db"),
        online_store={"type": "featurestore.plugins.RedisOnlineStore", "connection": online_url},
        offline_store={"type": offline},
        batch_engine={"type": "featurestore.plugins.ArrowEngine", "overlap_s": overlap_s},
        entity_key_serialization_version=3,
        repo_path=folder,
    )


@pytest.fixture
def repo(tmp_path: Path, online_url: str, store: StoreClient) -> Iterator[FeatureStore]:
    """A Feast repo of one view with a field mapping, a ttl and a created column, on the embedded server."""
    rides(
        tmp_path / "rides.parquet",
        [row(1, timedelta(hours=1)), row(1, timedelta(hours=2), fare=9.0), row(2, timedelta(days=3))],
    )
    (tmp_path / "data").mkdir()
    config = config_of(tmp_path, online_url, "dask")
    feast = FeatureStore(config=config)
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    source = FileSource(
        name="rides",
        path=str(tmp_path / "rides.parquet"),
        timestamp_field="ts",
        created_timestamp_column="made",
        field_mapping={"driver": "driver_id", "fare_usd": "fare"},
    )
    view = FeatureView(
        name="rides",
        entities=[driver],
        ttl=timedelta(days=2),
        schema=[
            Field(name="driver_id", dtype=types.Int64),
            Field(name="fare", dtype=types.Float64),
            Field(name="n", dtype=types.Int64),
            Field(name="who", dtype=types.String),
        ],
        source=PushSource(name="rides_push", batch_source=source),
    )
    feast.apply([driver, view, FeatureService(name="pricing", features=[view])])
    yield feast
    feast.teardown()


def statuses(feast: FeatureStore, drivers: list[int], feature: str = "fare") -> list[tuple[Any, str]]:
    response = feast.get_online_features([f"rides:{feature}"], [{"driver_id": d} for d in drivers])
    message = response.proto
    index = list(message.metadata.feature_names.val).index(feature)
    result = message.results[index]
    names = ["INVALID", "PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE"]
    values = response.to_dict()[feature]
    return list(zip(values, [names[s] for s in result.statuses], strict=True))


def test_materialize_then_read_through_the_sdk(repo: FeatureStore, tmp_path: Path) -> None:
    """The latest row of each key, mapped, with true statuses; again changes nothing; a late correction arrives."""
    repo.materialize(NOW - timedelta(days=10), NOW)
    assert statuses(repo, [1, 2, 3]) == [(1.0, "PRESENT"), (None, "OUTSIDE_MAX_AGE"), (None, "NOT_FOUND")]
    answer = repo.get_online_features(repo.get_feature_service("pricing"), [{"driver_id": 1}], full_feature_names=True)
    assert answer.to_dict() == {"driver_id": [1], "rides__fare": [1.0], "rides__n": [1], "rides__who": ["d1"]}
    repo.materialize(NOW - timedelta(days=10), NOW)
    assert statuses(repo, [1])[0] == (1.0, "PRESENT")
    corrected = [row(1, timedelta(hours=1), fare=5.0, made=NOW + timedelta(seconds=1)), row(2, timedelta(0), fare=None)]
    rides(tmp_path / "rides.parquet", corrected)
    repo.materialize_incremental(NOW + timedelta(seconds=1))
    repo.materialize(NOW - timedelta(days=10), NOW + timedelta(seconds=1))
    assert statuses(repo, [1, 2]) == [(5.0, "PRESENT"), (None, "NULL_VALUE")]


def test_pieces_load_what_one_run_loads(
    repo: FeatureStore,
    online_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A source read in pieces of a few rows brings the same rows online, each key from one piece alone."""
    drivers = list(range(60))
    older = [row(driver, timedelta(hours=2), fare=-1.0) for driver in drivers]
    newer = [row(driver, timedelta(hours=1), fare=float(driver)) for driver in drivers]
    rides(tmp_path / "rides.parquet", [*newer, *older, row(99, timedelta(hours=-3))])
    sizes: list[int] = []
    whole = reading.newest

    def counted(*arguments: Any, **options: Any) -> pa.Table:
        sizes.append(len(whole(*arguments, **options)))
        return whole(*arguments, **options)

    monkeypatch.setattr(reading, "newest", counted)
    monkeypatch.setattr(reading, "PIECE_ROWS", 20)
    ours = FeatureStore(config=config_of(tmp_path, online_url, "featurestore.plugins.DuckDBOfflineStore"))
    with caplog.at_level("INFO", "featurestore.plugins.engine"):
        ours.materialize(NOW - timedelta(days=10), NOW + timedelta(days=1))
    assert len(sizes) == 6
    assert max(sizes) < 30
    assert sum(sizes) == 60
    assert "60 keys written, 0 rows superseded, 1 dated ahead of the clock" in caplog.text
    assert statuses(repo, drivers) == [(float(driver), "PRESENT") for driver in drivers]


def test_feasts_own_server_serves_our_store(repo: FeatureStore) -> None:
    """What `feast serve` runs: pushes and reads go through our store, by the same rule and with the same statuses."""
    repo.materialize(NOW - timedelta(days=10), NOW)
    later = (NOW - timedelta(minutes=5)).isoformat()
    df = {"driver_id": [3], "ts": [later], "made": [NOW.isoformat()], "fare": [4.5], "n": [2], "who": ["c"]}
    app = get_app(repo)

    async def ask() -> tuple[httpx.Response, httpx.Response]:
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://f") as feast,
        ):
            push = {"push_source_name": "rides_push", "df": df, "to": "online"}
            pushed = await feast.post("/push", json=push)
            body = {"features": ["rides:fare"], "entities": {"driver_id": [1, 2, 3, 4]}}
            return pushed, await feast.post("/get-online-features", json=body)

    pushed, read = asyncio.run(ask())
    assert pushed.status_code == 200, pushed.text
    answer = read.json()
    assert answer["metadata"]["feature_names"] == ["driver_id", "fare"]
    assert answer["results"][1]["values"] == [1.0, None, 4.5, None]
    assert answer["results"][1]["statuses"] == ["PRESENT", "OUTSIDE_MAX_AGE", "PRESENT", "NOT_FOUND"]


def test_late_rows_of_another_offline_store_are_loaded_within_the_overlap(repo: FeatureStore, tmp_path: Path) -> None:
    """The run that goes on where the last one ended reads from overlap_s (an hour here) before that."""
    repo.materialize(NOW - timedelta(days=10), NOW - timedelta(hours=3))
    late = [row(4, timedelta(hours=3, minutes=50)), row(5, timedelta(hours=4, minutes=10))]
    rides(tmp_path / "rides.parquet", late)
    repo.materialize_incremental(NOW)
    assert statuses(repo, [4, 5]) == [(1.0, "PRESENT"), (None, "NOT_FOUND")]


def test_a_range_of_no_length_of_another_offline_store_is_read(
    repo: FeatureStore, online_url: str, tmp_path: Path
) -> None:
    """Without an overlap, a run that ends where the last one did reads that instant, or nothing, and is no error."""
    exact = FeatureStore(config=config_of(tmp_path, online_url, "dask", overlap_s=0))
    exact.materialize(NOW - timedelta(days=10), NOW - timedelta(hours=3))
    rides(tmp_path / "rides.parquet", [row(4, timedelta(hours=3)), row(5, timedelta(hours=3, seconds=1))])
    exact.materialize_incremental(NOW - timedelta(hours=3))
    assert statuses(repo, [4, 5]) == [(1.0, "PRESENT"), (None, "NOT_FOUND")]
    exact.materialize_incremental(NOW - timedelta(hours=4))
    assert statuses(repo, [4, 5]) == [(1.0, "PRESENT"), (None, "NOT_FOUND")]


def test_push_and_write_through_the_sdk(repo: FeatureStore) -> None:
    """Push and write_to_online_store obey the same rule: the greatest timestamps win, whatever comes last."""

    def frame(fare: float, age: timedelta, made: datetime) -> pd.DataFrame:
        return pd.DataFrame(
            {"driver_id": [7], "ts": [NOW - age], "made": [made], "fare": [fare], "n": [3], "who": ["x"]}
        )

    repo.push("rides_push", frame(2.0, timedelta(minutes=5), NOW))
    repo.write_to_online_store("rides", frame(1.0, timedelta(minutes=9), NOW))
    assert statuses(repo, [7]) == [(2.0, "PRESENT")]
    repo.write_to_online_store("rides", frame(math.nan, timedelta(minutes=5), NOW + timedelta(seconds=1)))
    assert statuses(repo, [7], "n") == [(3, "PRESENT")]


def test_rows_ahead_of_the_clock_are_refused_in_a_write_and_loaded_by_a_later_run(
    repo: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write says so at once; materialize leaves them, and a run takes them when their time has come."""
    later = NOW + timedelta(hours=3)
    frame = pd.DataFrame({"driver_id": [1], "ts": [later], "made": [NOW], "fare": [2.0], "n": [1], "who": ["x"]})
    with pytest.raises(UsageError, match="1 of 1 rows are dated ahead of the clock"):
        repo.write_to_online_store("rides", frame)
    rides(tmp_path / "rides.parquet", [row(1, timedelta(hours=1)), row(9, timedelta(hours=-3), fare=7.0)])
    repo.materialize(NOW - timedelta(days=10), NOW + timedelta(days=1))
    assert statuses(repo, [1, 9]) == [(1.0, "PRESENT"), (None, "NOT_FOUND")]
    monkeypatch.setenv("FEATURESTORE_CLOCK_OFFSET_S", str(4 * 3600))
    repo.materialize_incremental(NOW + timedelta(days=1))
    assert statuses(repo, [9]) == [(7.0, "PRESENT")]


def test_online_read_gives_feast_its_rows(repo: FeatureStore) -> None:
    """The store's own read: event timestamp and protos, (None, None) for what is not there."""
    repo.materialize(NOW - timedelta(days=10), NOW)
    view, provider = repo.get_feature_view("rides"), repo._get_provider()
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey

    keys = [EntityKey(join_keys=["driver_id"], entity_values=[Value(int64_val=d)]) for d in (1, 2, 5)]
    found = provider.online_store.online_read(repo.config, view, keys, ["n", "fare"])
    assert found[0] == (NOW - timedelta(hours=1), {"n": Value(int64_val=1), "fare": Value(double_val=1.0)})
    assert found[1:] == [(None, None), (None, None)]
    assert provider.online_store.online_read(repo.config, view, [], None) == []


def test_a_deleted_view_takes_its_rows_along_and_nothing_else(repo: FeatureStore, store: StoreClient) -> None:
    """Applying without the view removes its keys; another project's keys of the same view name stay."""
    repo.materialize(NOW - timedelta(days=10), NOW)
    store.set("fs:row:{7:team_ml 5:rides 0}:k", "theirs")
    repo.delete_feature_service("pricing")
    repo.apply([], objects_to_delete=[repo.get_feature_view("rides")], partial=False)
    assert store.keys("fs:*") == [b"fs:row:{7:team_ml 5:rides 0}:k"]


def test_teardown_takes_the_project_s_own_rows_and_nothing_else(repo: FeatureStore, store: StoreClient) -> None:
    """Rows, layouts and what is known of them go; what other projects hold under the same names stays."""
    repo.materialize(NOW - timedelta(days=10), NOW)
    theirs = [b"fs:row:{7:team_ml 5:rides 0}:k", b"fs:loaded:{7:team_ml 5:rides}", b"fs:row:{2:ml 6:rides2 0}:k"]
    for key in theirs:
        store.set(key, "theirs")
    assert len(store.keys("fs:*{2:ml 5:rides*")) == 4
    repo.teardown()
    assert sorted(store.keys("fs:*")) == sorted(theirs)


VALUES: dict[str, list[Value]] = {
    "INT32": [Value(int32_val=-5)],
    "INT64": [Value(int64_val=1 << 60)],
    "DOUBLE": [Value(double_val=math.inf), Value(double_val=math.nan), Value()],
    "FLOAT": [Value(float_val=1.5)],
    "BOOL": [Value(bool_val=False)],
    "STRING": [Value(string_val="")],
    "BYTES": [Value(bytes_val=b"\x00\xff")],
    "IMAGE_BYTES": [Value(bytes_val=b"png")],
    "UNIX_TIMESTAMP": [Value(unix_timestamp_val=-1)],
    "JSON": [Value(json_val='{"a": 1}')],
    "UUID": [Value(uuid_val="12345678-1234-5678-1234-567812345678")],
    "DECIMAL": [Value(decimal_val="1.10")],
}


def _collections() -> None:
    from feast.protos.feast.types import Value_pb2 as m

    lists = {
        "INT64": (m.Int64List, [1, 2]), "INT32": (m.Int32List, [1]), "DOUBLE": (m.DoubleList, [1.5]),
        "FLOAT": (m.FloatList, [0.5]),
        "STRING": (m.StringList, ["a", ""]), "BYTES": (m.BytesList, [b"x"]), "BOOL": (m.BoolList, [True, False]),
        "UNIX_TIMESTAMP": (m.Int64List, [5]), "UUID": (m.StringList, ["12345678-1234-5678-1234-567812345678"]),
        "DECIMAL": (m.StringList, ["1.5"]), "JSON": (m.StringList, ["[]"]),
    }  # fmt: skip
    for name, (message, members) in lists.items():
        VALUES[f"{name}_LIST"] = [Value(**{f"{name.lower()}_list_val": message(val=members)})]
    VALUES["INT64_SET"] = [Value(int64_set_val=m.Int64Set(val=[1, 3]))]
    VALUES["STRING_SET"] = [Value(string_set_val=m.StringSet(val=["a", "b"]))]
    VALUES["UNIX_TIMESTAMP_SET"] = [Value(unix_timestamp_set_val=m.Int64Set(val=[7]))]
    VALUES["MAP"] = [Value(map_val=m.Map(val={"a": Value(int64_val=1), "b": Value(string_val="x")}))]
    VALUES["STRUCT"] = [Value(struct_val=m.Map(val={"a": Value(double_val=1.5)}))]
    inner = Value(int64_list_val=m.Int64List(val=[1, 2]))
    VALUES["VALUE_LIST"] = [Value(list_val=m.RepeatedValue(val=[inner]))]


_collections()


@pytest.mark.parametrize("dtype", VALUES)
def test_every_feast_value_comes_back(dtype: str) -> None:
    """Messages of every type become columns and the same messages again."""
    back = from_column(to_column(VALUES[dtype], dtype, name="x"), dtype)
    assert [str(value) for value in back] == [str(value) for value in VALUES[dtype]]
