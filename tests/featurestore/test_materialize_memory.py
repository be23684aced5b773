"""Materialization holds as much for millions of rows as for half a million, whatever the offline store."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.plugins.pulled import SLICE_ROWS, pulled

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("feast")]

NOW = datetime(2026, 5, 1, tzinfo=UTC)
FILE_ROWS = 250_000
RUN = """
import resource, sys, warnings
warnings.simplefilter("ignore")
from datetime import UTC, datetime, timedelta
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, types
from feast.value_type import ValueType
from featurestore.plugins import reading

folder, url, offline, piece_rows = sys.argv[1:]
reading.PIECE_ROWS = int(piece_rows)
store = FeatureStore(config=RepoConfig(
    project="big", provider="local", registry=f"{folder}/registry.db", repo_path=folder,
    online_store={"type": "featurestore.plugins.RedisOnlineStore", "connection": url},
    offline_store={"type": offline}, batch_engine={"type": "featurestore.plugins.ArrowEngine"},
    entity_key_serialization_version=3,
))
card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.INT64)
view = FeatureView(
    name="cards", entities=[card], ttl=timedelta(0), source=FileSource(path=f"{folder}/rows", timestamp_field="ts"),
    schema=[Field(name="card_id", dtype=types.Int64), *(Field(name=f"f{i}", dtype=types.Float64) for i in range(10))],
)
store.apply([card, view])
store.materialize(datetime(2000, 1, 1, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak_mb(folder: Path, url: str, rows: int, offline: str, piece_rows: int) -> float:
    """Of a process that materializes so many rows, each of another key, an hour of event time for every file."""
    (folder / "rows").mkdir(parents=True)
    values = np.random.default_rng(0)
    for file in range(rows // FILE_ROWS):
        first = int((NOW - timedelta(hours=file + 1)).timestamp()) * 1_000_000
        at = first + np.arange(FILE_ROWS) * (3_600_000_000 // FILE_ROWS)
        columns = {"card_id": np.arange(FILE_ROWS) + file * FILE_ROWS, "ts": pa.array(at, pa.timestamp("us", "UTC"))}
        columns |= {f"f{i}": values.random(FILE_ROWS) for i in range(10)}
        pq.write_table(pa.table(columns), folder / "rows" / f"{file:03}.parquet")
    words = [sys.executable, "-c", RUN, str(folder), url, offline, str(piece_rows)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=600)
    return float(done.stdout.splitlines()[-1])


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("offline", "piece_rows", "bounded"),
    [
        ("featurestore.plugins.DuckDBOfflineStore", 500_000, True),
        ("dask", 500_000, True),
        ("featurestore.plugins.DuckDBOfflineStore", 10**9, False),
    ],
)
def test_memory_does_not_grow_with_rows(store, online_url, tmp_path, offline, piece_rows, bounded) -> None:
    """Six times the rows need at most half as much again; all rows in one piece, a planted fault, need more."""
    small = peak_mb(tmp_path / "small", online_url, 500_000, offline, piece_rows)
    store.flushall()
    large = peak_mb(tmp_path / "large", online_url, 3_000_000, offline, piece_rows)
    store.flushall()
    assert (large < 1.5 * small) is bounded, (small, large)


def test_slices_take_every_row_once_and_stay_small(tmp_path: Path) -> None:
    """Years of rows, denser by the end and with gaps, in slices of a bounded size; instants are kept apart."""
    rng = np.random.default_rng(1)
    ages_s = np.concatenate([rng.exponential(30 * 86_400, 30_000), rng.uniform(0, 10 * 365 * 86_400, 30_000)])
    ages_s = ages_s[(ages_s < 40 * 86_400) | (ages_s > 200 * 86_400)]
    at = np.sort(int(NOW.timestamp()) * 1_000_000 - (ages_s * 1_000_000).astype(np.int64))
    at[::7] -= at[::7] % 1_000_000
    rows = pa.table({"ts": pa.array(at, pa.timestamp("us", "UTC")), "n": np.arange(len(at))})
    sizes = []

    def pull(begin: datetime, end: datetime) -> pa.Table:
        inside = (at >= begin.timestamp() * 1_000_000) & (at <= end.timestamp() * 1_000_000)
        sizes.append(int(inside.sum()))
        return rows.filter(pa.array(inside))

    split = datetime.fromtimestamp(at[-500] // 1_000_000, UTC)
    first = NOW - timedelta(days=9 * 365)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featurestore.plugins.pulled.SLICE_ROWS", 500)
        found = pulled(pull, "ts", [first, split, NOW], tmp_path, name="rows")
    held = pa.concat_tables([pq.read_table(file) for file in found.scan.parts if file.name != "columns.parquet"])
    expected = np.flatnonzero(at >= int(first.timestamp()) * 1_000_000)
    assert sorted(held["n"].to_pylist()) == expected.tolist()
    assert max(sizes) < 4 * 500
    assert len(sizes) < 4 * len(at) / 500
    assert SLICE_ROWS == FILE_ROWS


def test_columns_without_a_value_in_some_slices_keep_their_type(tmp_path: Path) -> None:
    """Pandas makes whole numbers of one slice, fractions of another, nothing of a third: the rows are one table."""
    day = timedelta(days=1)
    slices = {
        0: {"whole": pa.array([1], pa.int64()), "text": pa.array([None], pa.null()), "none": pa.nulls(1)},
        1: {"whole": pa.array([None], pa.float64()), "text": pa.array(["a"]), "none": pa.nulls(1)},
        2: {"whole": pa.array([None], pa.null()), "text": pa.array([None], pa.null()), "none": pa.nulls(1)},
    }

    def pull(begin: datetime, end: datetime) -> pa.Table:
        parts = []
        for number, columns in slices.items():
            at = NOW - 40 * number * day
            if begin <= at <= end:
                parts.append(pa.table({"ts": pa.array([at], pa.timestamp("us", "UTC"))} | columns))
        empty = pa.table({"ts": pa.array([], pa.timestamp("us", "UTC"))} | dict.fromkeys(slices[0], pa.nulls(0)))
        return pa.concat_tables(parts or [empty], promote_options="permissive")

    found = pulled(pull, "ts", [NOW - 100 * day, NOW], tmp_path, name="rows")
    assert found.untyped == {"none"}
    assert found.scan.rows == 3
    assert [found.scan.column(name, role="column") for name in ("whole", "text")] == [pa.float64(), pa.string()]
    assert pa.types.is_null(found.typed(pa.table({"none": pa.nulls(2, pa.string())}))["none"].type)
