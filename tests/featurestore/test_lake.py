"""Are tables of Delta Lake and Iceberg read as their own libraries wrote them, and pinned by snapshot?"""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from featurestore.dataset.build import Request, build, verify
from featurestore.dataset.rebuild import retriever
from featurestore.errors import SourceError, UsageError
from featurestore.offline.lake import scan_lake, snapshot_of
from featurestore.plan import LakeTable, Plan

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*experimental feature.*:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.xdist_group("feast"),
]
US = pa.timestamp("us", "UTC")
T0 = datetime(2024, 1, 1, tzinfo=UTC)


def rows(*values: tuple[int, float, float]) -> pa.Table:
    """(id, hour, f)."""
    ids, hours, f = zip(*values, strict=True)
    at = pa.array([T0 + timedelta(hours=hour) for hour in hours], US)
    return pa.table({"id": pa.array(ids, pa.int64()), "at": at, "f": pa.array(f, pa.float64())})


FIRST = rows((1, 0, 0.1), (2, 0, 0.2), (1, 2, 0.3))
MORE = rows((2, 2, 0.4))


class Delta:
    """A table on disk, written by deltalake."""

    def __init__(self, repo: Path) -> None:
        from deltalake import write_deltalake

        self.path = str(repo / "table")
        write_deltalake(self.path, FIRST)

    def append(self, table: pa.Table) -> None:
        from deltalake import write_deltalake

        write_deltalake(self.path, table, mode="append")

    def delete(self, where: str) -> None:
        from deltalake import DeltaTable

        DeltaTable(self.path).delete(where)

    def forget(self) -> None:
        from deltalake import DeltaTable

        DeltaTable(self.path).vacuum(0, enforce_retention_duration=False, dry_run=False)

    def source(self) -> Any:
        from feast import FileSource
        from feast.data_format import DeltaFormat

        return FileSource(name="lake", path="table", timestamp_field="at", file_format=DeltaFormat())


class Iceberg:
    """A table in a catalog of SQLite, written by pyiceberg."""

    def __init__(self, repo: Path) -> None:
        from pyiceberg.catalog import load_catalog

        self.uri, self.warehouse = f"sqlite:///{repo / 'catalog.db'}", f"file://{repo / 'warehouse'}"
        self.catalog = load_catalog("lake", type="sql", uri=self.uri, warehouse=self.warehouse)
        self.catalog.create_namespace("ns")
        self.table = self.catalog.create_table("ns.cars", schema=FIRST.schema)
        self.table.append(FIRST)

    def append(self, table: pa.Table) -> None:
        self.table.append(table)

    def delete(self, where: str) -> None:
        self.table.delete(where)

    def forget(self) -> None:
        first = self.table.history()[0].snapshot_id
        self.table.maintenance.expire_snapshots().by_id(first).commit()

    def source(self) -> Any:
        from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource

        return IcebergSource(
            name="lake",
            catalog_type="sql",
            catalog_name="lake",
            endpoint=self.uri,
            warehouse=self.warehouse,
            namespace="ns",
            table="cars",
            timestamp_field="at",
        )


@pytest.fixture(params=[Delta, Iceberg])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return request.param(tmp_path)


def store_of(repo: Path, source: Any) -> Any:
    from feast import Entity, FeatureStore, FeatureView, Field, ValueType
    from feast.types import Float64

    (repo / "feature_store.yaml").write_text(
        "project: demo\nprovider: local\nregistry: registry.db\n"
        "offline_store:\n  type: featurestore.plugins.DuckDBOfflineStore\n"
        "online_store:\n  type: sqlite\n  path: online.db\nentity_key_serialization_version: 3\n"
    )
    store = FeatureStore(str(repo))
    entity = Entity(name="car", join_keys=["id"], value_type=ValueType.INT64)
    view = FeatureView(name="v", entities=[entity], schema=[Field(name="f", dtype=Float64)], source=source)
    store.apply([entity, view])
    return FeatureStore(str(repo))


def asked(*hours: float) -> pd.DataFrame:
    at = [T0 + timedelta(hours=hour) for hour in hours for _ in (1, 2)]
    return pd.DataFrame({"id": [1, 2] * len(hours), "event_timestamp": at})


def values(store: Any, *hours: float) -> list[float | None]:
    found: list[float | None] = store.get_historical_features(asked(*hours), ["v:f"]).to_arrow()["f"].to_pylist()
    return found


def test_what_was_appended_counts_and_what_was_deleted_does_not(lake: Any, tmp_path: Path) -> None:
    """Files of a table that its log no longer names are there, and are not read."""
    store = store_of(tmp_path, lake.source())
    assert values(store, 1, 3) == [0.1, 0.2, 0.3, 0.2]
    lake.append(MORE)
    assert values(store, 1, 3) == [0.1, 0.2, 0.3, 0.4]
    lake.delete("f = 0.3")
    assert values(store, 1, 3) == [0.1, 0.2, 0.1, 0.4]
    store.materialize(T0 - timedelta(days=1), T0 + timedelta(days=1))
    assert store.get_online_features(["v:f"], [{"id": 1}, {"id": 2}]).to_dict()["f"] == [0.1, 0.4]
    with pytest.raises(UsageError, match="its own library writes it"):
        store.write_to_offline_store("v", pd.DataFrame({"id": [1], "at": [T0], "f": [1.0]}))


def plan_of(store: Any) -> Plan:
    from featurestore.compile import compile_plan, registered  # imports Feast

    return compile_plan("demo", registered(store), [], previous=None, now_us=0)


def test_a_training_set_pins_its_snapshot(lake: Any, tmp_path: Path) -> None:
    """Built again from the snapshot it was built from, whatever came later; a snapshot that is gone is named."""
    plan = plan_of(store_of(tmp_path, lake.source()))
    retrieve, folder = retriever(plan, tmp_path, "event_timestamp"), tmp_path / "datasets"
    request = Request(name="set", features=("v:f",))
    entities = pa.Table.from_pandas(asked(3), preserve_index=False)
    manifest = build(request, entities, plan=plan, repo=tmp_path, folder=folder, retrieve=retrieve, clock=lambda: 0)
    (source,) = manifest.sources
    assert source.kind == "table"
    assert source.table
    assert source.snapshot
    lake.append(MORE)
    lake.delete("f = 0.3")
    assert verify(folder / "set", plan=plan, repo=tmp_path, retrieve=retrieve).equal
    lake.forget()
    if isinstance(lake, Iceberg):
        verdict = verify(folder / "set", plan=plan, repo=tmp_path, retrieve=retrieve)
        assert not verdict.equal
        assert "no longer has its snapshot" in " ".join(verdict.changed)
    else:
        # The log still names the version; its files are gone.
        with pytest.raises(SourceError, match="the data cannot be joined"):
            verify(folder / "set", plan=plan, repo=tmp_path, retrieve=retrieve)


def test_another_table_of_the_same_name_is_told(tmp_path: Path) -> None:
    """A table that was dropped and written again may number its versions alike."""
    first, second = Delta(tmp_path / "a"), Delta(tmp_path / "b")
    table = LakeTable(format="delta")
    one, two = (snapshot_of(table, each.path, repo=tmp_path, name="source") for each in (first, second))
    assert one.snapshot == two.snapshot
    assert one.table != two.table


def test_what_is_missing_is_named(lake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table, a column, a snapshot, the library: one line that names the source."""
    from featurestore.plugins.feast_sources import lake_table, source_path

    table, path = lake_table(lake.source()), source_path(lake.source())
    assert table is not None
    with pytest.raises(SourceError, match="source has no column 'g'"):
        scan_lake(table, path, repo=tmp_path, name="source", columns=["g"])
    with pytest.raises(SourceError, match=r"^source: .*77"):
        snapshot_of(table, path, repo=tmp_path, name="source", snapshot="77")
    elsewhere = LakeTable(format=table.format, name="ns.nothing", catalog=table.catalog, properties=table.properties)
    with pytest.raises(SourceError, match=r"^source: no "):
        scan_lake(elsewhere, "nothing", repo=tmp_path, name="source", columns=["f"])
    for module in ("deltalake", "pyiceberg.catalog"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=r"source is an? .* table: install the package"):
        scan_lake(table, path, repo=tmp_path, name="source")


def test_deletion_vectors_are_refused(tmp_path: Path) -> None:
    """The library cannot read them, and rows that were deleted must not come back."""
    from deltalake import DeltaTable, write_deltalake

    path = str(tmp_path / "vectors")
    write_deltalake(path, FIRST, configuration={"delta.enableDeletionVectors": "true"})
    assert "deletionVectors" in (DeltaTable(path).protocol().reader_features or [])
    with pytest.raises(SourceError, match="deletionVectors"):
        scan_lake(LakeTable(format="delta"), path, repo=tmp_path, name="source", columns=["f"])


def test_sources_of_other_kinds_are_refused_by_name(tmp_path: Path) -> None:
    """What Feast can name and we do not read says what is read."""
    from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource
    from feast.table_format import IcebergFormat

    from featurestore.plugins.feast_sources import scan_source

    spark = SparkSource(name="s", path="x", file_format="parquet", table_format=IcebergFormat(catalog="c"))
    with pytest.raises(UsageError, match=r"is a SparkSource; this store reads FileSource .* and IcebergSource"):
        scan_source(spark, repo=tmp_path, columns=["f"], missing_columns="error", name="source 's'")
