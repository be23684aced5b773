"""How fast do rows get online, next to stock Feast and to raw SETs of the same bytes?

    python -m benchmarks.materialize [--rows 50000] [--features 10] [--runs 3] [--no-stock] [--no-memory]
    python -m benchmarks.materialize --only-memory [--memory-rows 500000,2000000,4000000] [--offline ours,dask]

Two comparisons on the same Valkey, each run into an emptied store, values compared first. The write step: ours is
`RowWriter.write` with the rule that the newest row wins, stock `FeatureStore.write_to_online_store` of its own Redis
store, raw is pipelined SET of the very bytes that ours stores, 1,000 a round trip. The whole: Feast's
`FeatureStore.materialize` over the same Parquet file, with our stores and engine and with Feast's (file, Redis, local).
Then the peak memory of our engine, over our offline store and over Feast's, each size in a process of its own; every
row is of another key, and a file holds an hour of 250,000 of them.
"""

import argparse
import contextlib
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.serving import KEY, PROJECT, free_port
from featurestore.config import OnlineSettings
from featurestore.online.codec import RowCodec
from featurestore.online.connection import StoreClient, connect
from featurestore.online.keys import EntityKeyCodec, row_key, row_prefixes
from featurestore.online.reader import OnlineReader
from featurestore.online.server import EmbeddedServer
from featurestore.online.writer import RowWriter
from featurestore.plan import Field, Plan, Projection, Source, View

CHUNK = 1_000
FILE_ROWS = 250_000
HOUR_US = 3_600_000_000


def now_us() -> int:
    return time.time_ns() // 1000


def table_of(rows: int, names: list[str]) -> pa.Table:
    rng = np.random.default_rng(0)
    at = pa.array([datetime.fromtimestamp(int(time.time()) - 60, UTC)] * rows, pa.timestamp("us", tz="UTC"))
    return pa.table(
        {"driver_id": np.arange(rows)} | {name: rng.random(rows) for name in names} | {"event_timestamp": at}
    )


def pairs_of(view: View, table: pa.Table) -> list[tuple[bytes, bytes]]:
    """Keys and rows as ours stores them, made before any clock runs."""
    count = table.num_rows
    at = np.full(count, now_us(), np.int64)
    rows = RowCodec(view.features).encode({name: table.column(name) for name in table.column_names}, at, at)
    prefixes = row_prefixes(PROJECT, view.name)
    keys = EntityKeyCodec(view.join_keys).encode_columns({"driver_id": table.column("driver_id")}, count)
    return [(row_key(prefixes, key), row) for key, row in zip(keys, rows, strict=True) if key is not None]


def raw(client: StoreClient, pairs: list[tuple[bytes, bytes]]) -> None:
    for start in range(0, len(pairs), CHUNK):
        pipeline = client.pipeline(transaction=False)
        for key, row in pairs[start : start + CHUNK]:
            pipeline.set(key, row)
        pipeline.execute()


def feast_repo(folder: Path, settings: str, names: list[str], path: Path) -> Any:
    """A Feast repo with one view of the file, applied."""
    # Slow to import; the write step of ours needs none of it.
    from feast import Entity, FeatureStore, FeatureView, FileSource
    from feast import Field as FeastField
    from feast.types import Float64
    from feast.value_type import ValueType

    folder.mkdir(parents=True)
    (folder / "feature_store.yaml").write_text(
        f"project: {PROJECT}\nprovider: local\nregistry: registry.db\nentity_key_serialization_version: 3\n{settings}"
    )
    store = FeatureStore(repo_path=str(folder))
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    source = FileSource(name="rows", path=str(path), timestamp_field="event_timestamp")
    schema = [FeastField(name=name, dtype=Float64) for name in names]
    store.apply([driver, FeatureView(name="v", entities=[driver], ttl=timedelta(0), schema=schema, source=source)])
    return store


def ours_yaml(port: int) -> str:
    return (
        "offline_store:\n  type: featurestore.plugins.DuckDBOfflineStore\n"
        f"online_store:\n  type: featurestore.plugins.RedisOnlineStore\n  connection: redis://127.0.0.1:{port}/0\n"
        "batch_engine:\n  type: featurestore.plugins.ArrowEngine\n"
    )


def stock_yaml(port: int) -> str:
    return f"online_store:\n  type: redis\n  connection_string: localhost:{port}\n"


def materialize(store: Any) -> None:
    """All of history; Feast prints progress bars, which are not what is measured."""
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stderr(nowhere),
        contextlib.redirect_stdout(nowhere),
    ):
        store.materialize(datetime(2000, 1, 1, tzinfo=UTC), datetime.now(UTC))


def write_hours(folder: Path, rows: int, names: list[str]) -> None:
    """So many rows as files, an hour of event time for each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for start in range(0, rows, FILE_ROWS):
        count = min(FILE_ROWS, rows - start)
        first = now_us() - (start // FILE_ROWS + 2) * HOUR_US
        at = pa.array(first + np.arange(count) * (HOUR_US // FILE_ROWS), pa.timestamp("us", tz="UTC"))
        columns = {"driver_id": np.arange(start, start + count), "event_timestamp": at}
        file = folder / f"{start // FILE_ROWS:05}.parquet"
        pq.write_table(pa.table(columns | {name: rng.random(count) for name in names}), file)


def peak_mb(folder: Path, yaml: str, names: list[str], path: Path) -> tuple[float, float, float]:
    """Peak memory before and after one materialization, and its seconds; for a process of its own."""
    store = feast_repo(folder, yaml, names, path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    materialize(store)
    took_s = time.perf_counter() - start
    return before / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, took_s


def memory(client: StoreClient, folder: Path, port: int, names: list[str], options: argparse.Namespace) -> None:
    """One line a size and offline store."""
    spawn = multiprocessing.get_context("spawn")
    for offline in options.offline.split(","):
        yaml = ours_yaml(port)
        if offline != "ours":
            yaml = yaml.replace("featurestore.plugins.DuckDBOfflineStore", offline)
        print(f"peak memory, offline store: {offline}")
        for rows in map(int, options.memory_rows.split(",")):
            client.flushall()
            path = folder / f"rows-{rows}"
            if not path.exists():
                write_hours(path, rows, names)
            with spawn.Pool(1) as pool:
                before, after, took_s = pool.apply(peak_mb, (folder / f"{offline}-{rows}", yaml, names, path))
            if (held := client.dbsize()) < rows:
                raise SystemExit(f"{held} keys were written, {rows} expected; no figure is taken")
            print(f"  {rows:9} rows: {after:5.0f} MB, {before:.0f} MB before it, {took_s:.1f} s")


def compare(contenders: dict[str, Callable[[], object]], client: StoreClient, options: argparse.Namespace) -> None:
    """Runs alternate, so that ratios are of neighbours in time."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.runs):
        for name, write in contenders.items():
            client.flushall()
            start = time.perf_counter()
            write()
            taken[name].append(time.perf_counter() - start)
    for name, times in taken.items():
        ratio = statistics.median(other / mine for other, mine in zip(times, taken["ours"], strict=True))
        middle = statistics.median(times)
        print(f"  {name:6} {options.rows / middle:10.0f} rows/s   {middle:6.2f} s   ours is {ratio:.2f} times this")


def check(client: StoreClient, view: View, table: pa.Table, names: list[str]) -> None:
    """Whether the store holds the table."""
    plan = Plan(project=PROJECT, version=1, digest="", created_us=0, views={"v": view})
    wanted = [Projection(view="v", features=tuple(names))]
    read = OnlineReader(client, plan, now_us).read(wanted, {"driver_id": range(table.num_rows)})
    if any(column.to_python() != table.column(column.feature).to_pylist() for column in read.columns):
        raise SystemExit("values differ; no time is taken")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=10)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-stock", action="store_true")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--only-memory", action="store_true")
    parser.add_argument("--memory-rows", default="500000,2000000,4000000")
    parser.add_argument("--offline", default="ours,dask")
    options = parser.parse_args()
    names = [f"f{i}" for i in range(options.features)]
    table = table_of(options.rows, names)
    view = View(
        name="v",
        version=1,
        kind="latest",
        join_keys=(KEY,),
        features=tuple(Field(name=name, dtype="DOUBLE") for name in names),
        ttl_us=0,
        source=Source(name="rows", path="rows.parquet", timestamp_field="event_timestamp"),
    )
    with tempfile.TemporaryDirectory() as name, EmbeddedServer(Path(name)) as server:
        port = free_port()
        connect(OnlineSettings(url=f"unix://{server.address}"), Path(name)).config_set("port", port)
        client = connect(OnlineSettings(url=f"redis://127.0.0.1:{port}/0"), Path(name))
        if options.only_memory:
            memory(client, Path(name), port, names, options)
            return
        writer = RowWriter(client, PROJECT, view, clock=now_us)
        pairs = pairs_of(view, table)
        contenders: dict[str, Callable[[], object]] = {
            "ours": lambda: writer.write(table, event_timestamp="event_timestamp"),
            "raw": lambda: raw(client, pairs),
        }
        folder = Path(name)
        pq.write_table(table, folder / "rows.parquet")
        ours = feast_repo(folder / "ours", ours_yaml(port), names, folder / "rows.parquet")
        whole: dict[str, Callable[[], object]] = {"ours": lambda: materialize(ours)}
        if not options.no_stock:
            stock = feast_repo(folder / "stock", stock_yaml(port), names, folder / "rows.parquet")
            frame = table.to_pandas()
            contenders["stock"] = lambda: stock.write_to_online_store("v", df=frame)
            whole["stock"] = lambda: materialize(stock)
        for write in (contenders["ours"], whole["ours"]):
            client.flushall()
            write()
            check(client, view, table, names)
        print(f"{options.rows} rows of {options.features} features, values agree\nthe write step")
        compare(contenders, client, options)
        print("Feast's materialize")
        compare(whole, client, options)
        if not options.no_memory:
            memory(client, folder, port, names, options)


if __name__ == "__main__":
    main()
