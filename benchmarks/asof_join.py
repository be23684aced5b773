"""How fast is the as-of join, next to stock Feast and to a hand-written ASOF JOIN?

    python -m benchmarks.asof_join [--history 1e6] [--rows 1e5] [--features 5] [--runs 5] [--views 1] [--no-stock]
                                   [--memory 6GB] [--threads 2]
    python -m benchmarks.asof_join --history 1e8 --rows 1e7 --memory 6GB --no-stock --no-known --runs 1
    python -m benchmarks.asof_join --views 10 --features 10 --no-stock

The memory limit is for our whole process; the join by hand gets it from DuckDB alone. Ten views in one call are
compared with ten calls of one view each, which make the entity rows ready ten times.

Stock Feast pairs each entity row with all history of its key before it chooses: its file (Dask) store is left out where
that makes more than twenty million pairs (15 GB and more), its DuckDB store where feast[duckdb] is not installed.

History: 1,000 entities over 90 days, one Parquet file per ten million rows and view; ttl 90 days. Every contender reads
the same files, ends with an Arrow table, and runs in a process of its own, so that peak memory is its own. Values are
compared before any time is printed. By hand means: one plain ASOF JOIN a view, no order, no ties, no checks.
"""

import argparse
import importlib.util
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.offline.asof import as_of_join
from featurestore.offline.asof_view import AsOfView, Feature, Key
from featurestore.offline.connection import Limits
from featurestore.offline.entity_rows import EntityRows
from featurestore.offline.sources import scan_parquet

ENTITIES, DAYS = 1_000, 90
DAY_US = 86_400_000_000
START = datetime(2024, 1, 1, tzinfo=UTC)
START_US = int(START.timestamp()) * 1_000_000
TTL_US = DAYS * DAY_US
FILE_ROWS = 10_000_000
MOST_PAIRS = 2e7
US = pa.timestamp("us", "UTC")


class Case(NamedTuple):
    """What every contender is given."""

    folder: Path
    views: int
    features: int
    memory: str | None
    threads: int | None

    def names(self, view: int) -> list[str]:
        return [f"v{view}_f{feature}" for feature in range(self.features)]


def generate(case: Case, history: int, rows: int) -> None:
    rng = np.random.default_rng(0)
    for view in range(case.views):
        folder = case.folder / f"history{view}"
        folder.mkdir()
        for part, start in enumerate(range(0, history, FILE_ROWS)):
            count = min(FILE_ROWS, history - start)
            at = START_US + rng.integers(0, DAYS * DAY_US, count)
            columns = {
                "driver_id": rng.integers(0, ENTITIES, count),
                "event_timestamp": pa.array(at, US),
                "created": pa.array(at + rng.integers(0, 3_600_000_000, count), US),
            }
            pq.write_table(
                pa.table(columns | {name: rng.random(count) for name in case.names(view)}),
                folder / f"part{part}.parquet",
            )
    asked = START_US + rng.integers(0, DAYS * DAY_US, rows)
    entities = {
        "row": np.arange(rows),
        "driver_id": rng.integers(0, ENTITIES, rows),
        "event_timestamp": pa.array(asked, US),
    }
    pq.write_table(pa.table(entities), case.folder / "entities.parquet")


def ours(case: Case, *, as_known: bool = False) -> pa.Table:
    """The kernel on the files."""
    return _joined(case, range(case.views), as_known=as_known)


def _joined(case: Case, which: range, *, as_known: bool) -> pa.Table:
    views = [
        AsOfView(
            name=f"v{view}",
            scan=scan_parquet(case.folder / f"history{view}", repo=case.folder, name=f"v{view}"),
            keys=(Key("driver_id", "driver_id", "INT64"),),
            timestamp="event_timestamp",
            created="created",
            ttl_us=TTL_US,
            features=tuple(Feature(name, name, "DOUBLE") for name in case.names(view)),
        )
        for view in which
    ]
    asked = EntityRows(pq.read_table(case.folder / "entities.parquet"), "event_timestamp")
    return as_of_join(asked, views, as_known=as_known, limits=Limits(memory=case.memory, threads=case.threads)).table


def ours_one_by_one(case: Case) -> pa.Table:
    """A call for every view, each reading the entity rows again."""
    table = pq.read_table(case.folder / "entities.parquet")
    for view in range(case.views):
        found = _joined(case, range(view, view + 1), as_known=False)
        for name in case.names(view):
            table = table.append_column(name, found[name])
    return table


def ours_as_known(case: Case) -> pa.Table:
    return ours(case, as_known=True)


def by_hand(case: Case) -> pa.Table:
    """What one writes who knows that nothing is tied and who needs no order."""
    config: dict[str, Any] = {"preserve_insertion_order": False}
    config |= {"memory_limit": case.memory} if case.memory else {}
    config |= {"threads": case.threads} if case.threads else {}
    joins, columns = [], ["e.*"]
    for view in range(case.views):
        joins.append(
            f"ASOF LEFT JOIN read_parquet('{case.folder}/history{view}/*.parquet') h{view} "
            f"ON e.driver_id = h{view}.driver_id AND e.event_timestamp >= h{view}.event_timestamp"
        )
        alive = f"h{view}.event_timestamp + INTERVAL {DAYS} DAY >= e.event_timestamp"
        columns += [f"CASE WHEN {alive} THEN h{view}.{name} END AS {name}" for name in case.names(view)]
    with duckdb.connect(config=config) as session:
        session.execute("SET enable_progress_bar = false")
        return session.sql(
            f"SELECT {', '.join(columns)} FROM '{case.folder}/entities.parquet' e {' '.join(joins)}"
        ).to_arrow_table()


def by_feast(case: Case, offline: str) -> pa.Table:
    """Through Feast's SDK, definitions and all."""
    import pandas as pd
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64

    repo = case.folder / offline.rpartition(".")[2]
    if not repo.exists():
        repo.mkdir()
        (repo / "feature_store.yaml").write_text(
            f"project: bench\nprovider: local\nregistry: registry.db\noffline_store:\n  type: {offline}\n"
            "online_store:\n  type: sqlite\n  path: online.db\nentity_key_serialization_version: 3\n"
        )
        entity = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
        views = []
        for view in range(case.views):
            files = sorted((case.folder / f"history{view}").iterdir())
            source = FileSource(
                name=f"h{view}",
                path=str(files[0] if len(files) == 1 else files[0].parent),
                timestamp_field="event_timestamp",
                created_timestamp_column="created",
            )
            schema = [Field(name=name, dtype=Float64) for name in case.names(view)]
            views.append(
                FeatureView(name=f"v{view}", entities=[entity], ttl=timedelta(days=DAYS), schema=schema, source=source)
            )
        FeatureStore(str(repo)).apply([entity, *views])
    refs = [f"v{view}:{name}" for view in range(case.views) for name in case.names(view)]
    rows = pd.read_parquet(case.folder / "entities.parquet")
    return FeatureStore(str(repo)).get_historical_features(rows, refs).to_arrow()


def ours_by_feast(case: Case) -> pa.Table:
    return by_feast(case, "featurestore.plugins.DuckDBOfflineStore")


def stock_duckdb(case: Case) -> pa.Table:
    return by_feast(case, "duckdb")


def stock_file(case: Case) -> pa.Table:
    return by_feast(case, "file")


def measure(contender: Callable[[Case], pa.Table], case: Case, runs: int, pipe: Any) -> None:
    """Run in a process of its own; the first run warms imports and the page cache and is not timed."""
    warnings.simplefilter("ignore")
    result = contender(case)
    names = [name for view in range(case.views) for name in case.names(view)]
    pq.write_table(result.select(["row", *names]).sort_by("row"), case.folder / f"{contender.__name__}.parquet")
    del result
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        contender(case)
        times.append(time.perf_counter() - start)
    pipe.send((statistics.median(times), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def run(contender: Callable[[Case], pa.Table], case: Case, runs: int) -> tuple[float, float]:
    context = multiprocessing.get_context("spawn")
    ours_end, theirs = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(contender, case, runs, theirs))
    process.start()
    theirs.close()
    try:
        median_s, peak_mb = ours_end.recv()
    except EOFError:
        raise SystemExit(f"{contender.__name__} failed") from None
    process.join()
    return median_s, peak_mb


def differences(case: Case, contender: str, truth: str) -> int:
    """Values that differ, among the rows that the contender kept."""
    found, right = (pq.read_table(case.folder / f"{name}.parquet") for name in (contender, truth))
    right = right.take(found["row"])
    count = abs(len(found) - len(right))
    for name in right.column_names:
        a, b = (np.nan_to_num(table[name].to_numpy(), nan=-1.0) for table in (found, right))
        count += int((a != b).sum())
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--history", type=float, default=1e6)
    parser.add_argument("--rows", type=float, default=1e5)
    parser.add_argument("--features", type=int, default=5)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--memory")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-stock", action="store_true")
    parser.add_argument("--no-known", action="store_true", help="leave the as-known join out")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    contenders: list[Callable[[Case], pa.Table]] = [by_hand, ours]
    if not options.no_known:
        contenders.append(ours_as_known)
    if options.views > 1:
        contenders.append(ours_one_by_one)
    if not options.no_stock:
        contenders.append(ours_by_feast)
        if importlib.util.find_spec("ibis"):
            contenders.append(stock_duckdb)
        else:
            print("stock Feast DuckDB is left out: it needs pip install 'feast[duckdb]'", file=sys.stderr)
        if options.history * options.rows / ENTITIES <= MOST_PAIRS:
            contenders.append(stock_file)
        else:
            print(f"stock Feast file is left out: more than {MOST_PAIRS:.0e} pairs", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        case = Case(Path(folder), options.views, options.features, options.memory, options.threads)
        generate(case, int(options.history), int(options.rows))
        size = f"{options.history:.0e} history rows, {options.rows:.0e} entity rows"
        print(f"{size}, {case.views} x {case.features} features")
        results = {}
        for contender in contenders:
            name = contender.__name__
            results[name] = run(contender, case, 1 if name.startswith("stock") else options.runs)
            if name not in ("by_hand", "ours_as_known"):
                wrong = differences(case, name, "by_hand")
                if wrong:
                    raise SystemExit(f"{name}: {wrong} values differ from the join by hand")
        hand_s = results["by_hand"][0]
        print(f"{'':16}{'median s':>10}{'x by hand':>11}{'peak MB':>9}   (values compared: equal)")
        for name, (median_s, peak_mb) in results.items():
            print(f"{name:16}{median_s:10.3f}{median_s / hand_s:11.2f}{peak_mb:9.0f}")
        if "ours_by_feast" in results:
            for name in results.keys() & {"stock_duckdb", "stock_file"}:
                print(f"{name} / ours_by_feast: {results[name][0] / results['ours_by_feast'][0]:.0f}x")


if __name__ == "__main__":
    main()
