"""How fast do rows get online, next to stock Feast and to raw SETs of the same bytes?

    python -m benchmarks.materialize [--rows 50000] [--features 10] [--runs 3] [--no-stock]

Stock is `FeatureStore.write_to_online_store` of Feast's own Redis store, the step of its materialization that we
replace; ours is `RowWriter.write` with the rule that the newest row wins; raw is pipelined SET of the very bytes that
ours stores, 1,000 a round trip. Each run writes into an emptied store on the same Valkey.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

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


def stock(folder: Path, port: int, names: list[str], table: pa.Table) -> Callable[[], None]:
    """Writes the table with Feast."""
    # Slow to import; only this contender needs it.
    from datetime import timedelta

    from feast import Entity, FeatureStore, FeatureView, FileSource
    from feast import Field as FeastField
    from feast.types import Float64
    from feast.value_type import ValueType

    folder.mkdir()
    (folder / "feature_store.yaml").write_text(
        f"project: {PROJECT}\nprovider: local\nregistry: registry.db\nentity_key_serialization_version: 3\n"
        f"online_store:\n  type: redis\n  connection_string: localhost:{port}\n"
    )
    frame = table.to_pandas()
    frame.to_parquet(folder / "rows.parquet")
    store = FeatureStore(repo_path=str(folder))
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    source = FileSource(name="rows", path=str(folder / "rows.parquet"), timestamp_field="event_timestamp")
    schema = [FeastField(name=name, dtype=Float64) for name in names]
    store.apply([driver, FeatureView(name="v", entities=[driver], ttl=timedelta(0), schema=schema, source=source)])
    return lambda: store.write_to_online_store("v", df=frame)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=10)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-stock", action="store_true")
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
        writer = RowWriter(client, PROJECT, view, clock=now_us)
        pairs = pairs_of(view, table)
        contenders: dict[str, Callable[[], object]] = {
            "ours": lambda: writer.write(table, event_timestamp="event_timestamp"),
            "raw": lambda: raw(client, pairs),
        }
        if not options.no_stock:
            contenders["stock"] = stock(Path(name) / "stock", port, names, table)
        contenders["ours"]()
        plan = Plan(project=PROJECT, version=1, digest="", created_us=0, views={"v": view})
        wanted = [Projection(view="v", features=tuple(names))]
        read = OnlineReader(client, plan, now_us).read(wanted, {"driver_id": range(options.rows)})
        if any(column.to_python() != table.column(column.feature).to_pylist() for column in read.columns):
            raise SystemExit("values differ; no time is taken")
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
            print(f"{name:6} {options.rows / middle:10.0f} rows/s   {middle:6.2f} s   ours is {ratio:.2f} times this")


if __name__ == "__main__":
    main()
