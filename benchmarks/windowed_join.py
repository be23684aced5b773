"""How fast is the windowed join, next to a hand-written DuckDB window query?

    python -m benchmarks.windowed_join --events 1e7 --rows 1e6 --peer-events 1e6 --peer-rows 1e5
    python -m benchmarks.windowed_join --events 1e8 --rows 1e7 --keys 1e5 --memory 6GB --times 1 --no-known
    python -m benchmarks.windowed_join --events 1e8 --rows 1e7 --keys 1e5 --memory 6GB --times 1 --no-known --growth

Growth: a tenth of events, rows and keys is measured too, and how many times as long the whole takes. More events than
are to be held wait on disk, as they do for every caller.
Both sides read the same Parquet files and end with an Arrow table; each runs in a process of its own, so that peak
memory is its own. Values are compared on the peer's size before any time is printed: counts, extremes and last values
by equality, sums, means and deviations to 1e-9 (the peer adds floats in the order of its threads; ours is exact).
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.aggregation.windows import DAY_US, HOUR_US, MINUTE_US
from featurestore.offline.connection import Limits
from featurestore.offline.entity_rows import EntityRows
from featurestore.offline.stored import scan_of
from featurestore.offline.windowed_stored import windowed_values
from featurestore.plan import Aggregation, Field, JoinKey, Projection, Source, View

WINDOWS = {
    "1h": (HOUR_US, 5 * MINUTE_US),
    "1d": (DAY_US, HOUR_US),
    "7d": (7 * DAY_US, HOUR_US),
    "30d": (30 * DAY_US, DAY_US),
}
FUNCTIONS = ("count", "sum", "mean", "min", "max", "last", "std")
PEER = {
    "count": "count(x)",
    "sum": "sum(x)",
    "mean": "avg(x)",
    "min": "min(x)",
    "max": "max(x)",
    "last": "last_value(x IGNORE NULLS)",
    "std": "stddev_samp(x)",
}
DAYS = 90
PART_ROWS = 5_000_000
START = 19_000 * DAY_US


def generate(folder: Path, events: int, rows: int, keys: int, seed: int) -> None:
    """Events and entity rows over 90 days, keys uniform, values lognormal; one event in 100 comes up to 3 days late."""
    rng = np.random.default_rng(seed)
    stamp = pa.timestamp("us", tz="UTC")
    fields = {"k": pa.int64(), "ts": stamp, "x": pa.float64(), "arrival": stamp}
    with pq.ParquetWriter(folder / "events.parquet", pa.schema(list(fields.items()))) as writer:
        for start in range(0, events, PART_ROWS):
            count = min(PART_ROWS, events - start)
            ts_us = START + rng.integers(0, DAYS * DAY_US, count)
            lag_us = rng.exponential(30_000_000, count)
            lag_us += (rng.random(count) < 0.01) * rng.integers(0, 3 * DAY_US, count)
            drawn = [rng.integers(0, keys, count), ts_us, rng.lognormal(3, 1, count), ts_us + lag_us.astype(np.int64)]
            writer.write_table(
                pa.table({name: pa.array(v, dtype) for (name, dtype), v in zip(fields.items(), drawn, strict=True)})
            )
    asked = {"k": rng.integers(0, keys, rows), "at": pa.array(START + rng.integers(0, DAYS * DAY_US, rows), stamp)}
    pq.write_table(pa.table(asked), folder / "rows.parquet")


AGGREGATIONS = [
    Aggregation(
        feature=f"{function}_{name}",
        column="x",
        column_dtype="DOUBLE",
        function=function,
        dtype="INT64" if function == "count" else "DOUBLE",
        window_us=window_us,
        hop_us=hop_us,
    )
    for name, (window_us, hop_us) in WINDOWS.items()
    for function in FUNCTIONS
]


VIEW = View(
    name="bench",
    version=1,
    kind="windowed",
    join_keys=(JoinKey(entity="k", name="k", dtype="INT64"),),
    features=tuple(Field(name=each.feature, dtype=each.dtype) for each in AGGREGATIONS),
    ttl_us=0,
    source=Source(name="events", path="events.parquet", timestamp_field="ts", created_field="arrival"),
    aggregations=tuple(AGGREGATIONS),
)


def ours(folder: Path, memory: str | None, *, as_known: bool) -> pa.Table:
    """As every caller gets it: the events are held in memory or wait on disk, whichever their number asks for."""
    projection = Projection(view="bench", features=tuple(each.feature for each in AGGREGATIONS))
    asked = EntityRows(pq.read_table(folder / "rows.parquet"), "at")
    scan = scan_of(VIEW, repo=folder)
    limits = Limits(memory=memory)
    return pa.table(windowed_values(VIEW, projection, scan, asked, as_known=as_known, limits=limits))


def peer(folder: Path) -> pa.Table:
    """What one would write by hand: events and rows in one relation, a RANGE frame a window."""
    columns = [f"{PEER[f]} OVER w{name} AS {f}_{name}" for name in WINDOWS for f in FUNCTIONS]
    frames = [
        f"w{name} AS (PARTITION BY k ORDER BY ts RANGE BETWEEN ({window_us} + ts % {hop_us}) PRECEDING AND CURRENT ROW)"
        for name, (window_us, hop_us) in WINDOWS.items()
    ]
    with duckdb.connect(config={"threads": 2}) as connection:
        connection.execute("SET enable_progress_bar = false")
        return connection.sql(f"""
            WITH both_sides AS (
                SELECT k, epoch_us(ts) AS ts, x, NULL AS n FROM '{folder}/events.parquet'
                UNION ALL
                SELECT k, epoch_us("at"), NULL, file_row_number
                FROM read_parquet('{folder}/rows.parquet', file_row_number=true)
            ), told AS (SELECT n, {", ".join(columns)} FROM both_sides WINDOW {", ".join(frames)})
            SELECT * EXCLUDE n FROM told WHERE n IS NOT NULL ORDER BY n
        """).to_arrow_table()


def measure(side: str, folder: str, times: int, memory: str | None) -> tuple[list[float], float, str]:
    """Seconds of every run, peak memory in MB, and where the result lies."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        result = peer(Path(folder)) if side == "peer" else ours(Path(folder), memory, as_known=side == "as known")
        seconds.append(time.perf_counter() - start)
    path = f"{folder}/result.parquet"
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pq.write_table(result, path)
    return seconds, peak_mb, path


def differences(found: pa.Table, expected: pa.Table) -> list[str]:
    """The columns whose values differ."""
    wrong = []
    for name in expected.column_names:
        a, b = (np.asarray(table[name].to_numpy(), np.float64) for table in (found, expected))
        exact = name.split("_")[0] in ("count", "min", "max", "last")
        same = a == b if exact else np.isclose(a, b, rtol=1e-9, atol=1e-9)
        if not (same | (np.isnan(a) & np.isnan(b))).all():
            wrong.append(name)
    return wrong


def run(side: str, folder: str, times: int, memory: str | None = None) -> tuple[float, float, pa.Table]:
    """Median seconds, peak memory in MB and the result of one side, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, peak_mb, path = pool.apply(measure, (side, folder, times, memory))
    return float(np.median(seconds)), peak_mb, pq.read_table(path)


def full_size(given: argparse.Namespace, part: int) -> float:
    """Print what a `part`-th of the size takes, and return the seconds."""
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        events, rows, keys = (int(size / part) for size in (given.events, given.rows, given.keys))
        generate(Path(folder), events, rows, keys, given.seed)
        our_s, our_mb, _ = run("ours", folder, given.times, given.memory)
        print(f"{events:,} events x {rows:,} rows, {keys:,} keys, Parquet to Arrow")
        print(f"  windowed join       {our_s:8.2f} s  peak {our_mb:6.0f} MB")
        if not given.no_known:
            known_s, known_mb, _ = run("as known", folder, given.times, given.memory)
            print(
                f"  as known            {known_s:8.2f} s  peak {known_mb:6.0f} MB  {known_s / our_s:.1f} times as long"
            )
    return our_s


def main() -> int:
    """Compare, then print times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=float, default=1e6)
    parser.add_argument("--rows", type=float, default=1e5)
    parser.add_argument("--keys", type=float, default=10_000)
    parser.add_argument("--peer-events", type=float, default=3e5)
    parser.add_argument("--peer-rows", type=float, default=3e4)
    parser.add_argument("--times", type=int, default=3, help="runs, of which the median counts")
    parser.add_argument("--memory", help="the limit of one call, as DuckDB writes it; none: what there is")
    parser.add_argument("--growth", action="store_true", help="measure a tenth of the size too")
    parser.add_argument("--no-known", action="store_true", help="leave the as-known join out")
    parser.add_argument("--folder", type=Path, help="where files are kept meanwhile")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        events, rows = int(given.peer_events), int(given.peer_rows)
        # As many events a key as on the full size, so that windows hold as much.
        keys = max(1, int(given.keys * events / given.events))
        generate(Path(folder), events, rows, keys, given.seed)
        our_s, _, found = run("ours", folder, given.times, given.memory)
        peer_s, peer_mb, expected = run("peer", folder, given.times)
        if wrong := differences(found, expected):
            print(f"values differ: {', '.join(wrong)}", file=sys.stderr)
            return 1
        print(f"{events:,} events x {rows:,} rows, {keys:,} keys: values agree")
        print(f"  DuckDB window query {peer_s:8.2f} s  peak {peer_mb:6.0f} MB")
        print(f"  windowed join       {our_s:8.2f} s  {peer_s / our_s:.1f} times as fast")
    our_s = full_size(given, 1)
    if given.growth:
        tenth_s = full_size(given, 10)
        print(f"  ten times the work takes {our_s / tenth_s:.1f} times as long")
    return 0


if __name__ == "__main__":
    sys.exit(main())
