"""Time of `featurestore skew audit` over many served answers.

    python -m benchmarks.skew_audit [--answers 100000] [--events 2000000] [--keys 20000] [--small 300]

Answers of a day about one view of 16 windowed features and one of latest values. What was served is what was known at
its instant, but for planted faults: events that came later, events in flight, corrections, rows that were not loaded,
and values that nothing explains. First a small set is audited answer by answer, each of which reads the sources again,
and all at once: verdicts, causes and examples must be equal. Then the large set is timed.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.aggregation.windows import DAY_US, HOUR_US, MINUTE_US
from featurestore.monitor.causes import Cause
from featurestore.monitor.served import Answer, ServeLog, read_served
from featurestore.monitor.skew import Part, Skew, audit
from featurestore.monitor.skew_history import SkewHistory, audit_hours, merged
from featurestore.offline.event_log import ARRIVAL, OFFSET, write_events
from featurestore.offline.history import historical_features
from featurestore.online.result import Column, Status
from featurestore.online.types import to_column
from featurestore.plan import Aggregation, Field, JoinKey, Plan, Projection, Service, Source, Topic, View

WINDOWS = {
    "1h": (HOUR_US, 5 * MINUTE_US),
    "1d": (DAY_US, HOUR_US),
    "3d": (3 * DAY_US, HOUR_US),
    "7d": (7 * DAY_US, HOUR_US),
}
FUNCTIONS = {"count": "INT64", "sum": "DOUBLE", "mean": "DOUBLE", "max": "DOUBLE"}
START = 19_000 * DAY_US
NOW = START + 8 * DAY_US
STAMP = pa.timestamp("us", "UTC")
KEY = JoinKey(entity="user", name="user", dtype="INT64")
AGGREGATIONS = tuple(
    Aggregation(
        feature=f"{function}_{name}", column="x", column_dtype="DOUBLE", function=function, dtype=dtype,
        window_us=window_us, hop_us=hop_us,
    )
    for name, (window_us, hop_us) in WINDOWS.items()
    for function, dtype in FUNCTIONS.items()
)  # fmt: skip
ORDERS = View(
    name="orders", version=1, kind="windowed", join_keys=(KEY,), ttl_us=0,
    features=tuple(Field(name=each.feature, dtype=each.dtype) for each in AGGREGATIONS),
    source=Source(
        name="orders", path="log/orders", timestamp_field="ts", created_field=ARRIVAL,
        topic=Topic(name="orders", bootstrap_servers="nowhere:1", message_format="json"),
    ),
    columns=(Field(name="user", dtype="INT64"), Field(name="x", dtype="DOUBLE")), aggregations=AGGREGATIONS,
)  # fmt: skip
PROFILE = View(
    name="profile", version=1, kind="latest", join_keys=(KEY,), ttl_us=0,
    features=(Field(name="age", dtype="INT64"), Field(name="score", dtype="DOUBLE")),
    source=Source(name="profile", path="profile.parquet", timestamp_field="ts", created_field="made"),
)  # fmt: skip
READS = tuple(Projection(view=view.name, features=tuple(f.name for f in view.features)) for view in (ORDERS, PROFILE))
SERVICE = Service(name="s", projections=READS, tags={"audit_rate": "1"})
PLAN = Plan(
    project="p", version=1, digest="", created_us=0, views={"orders": ORDERS, "profile": PROFILE},
    services={"s": SERVICE},
)  # fmt: skip


def sources(repo: Path, events: int, keys: int, rng: np.random.Generator) -> None:
    """Events of eight days, one in 200 some hours late; three profile rows a key, one in 100 of them corrected."""
    ts = np.sort(rng.integers(START, NOW, events))
    late = np.where(
        rng.random(events) < 0.005, rng.integers(0, 6 * HOUR_US, events), rng.integers(0, 2_000_000, events)
    )
    order = np.argsort(ts + late, kind="stable")
    table = {"user": rng.integers(0, keys, events)[order], "ts": pa.array(ts[order], pa.int64()).cast(STAMP)}
    table |= {"x": rng.lognormal(3, 1, events)[order], ARRIVAL: pa.array((ts + late)[order], pa.int64()).cast(STAMP)}
    step = 200_000
    for number, first in enumerate(range(0, events, step)):
        piece = pa.table(table).slice(first, step)
        numbered = piece.append_column(OFFSET, pa.array(np.arange(len(piece)) + first // 2 * 2))
        write_events(
            repo / "log" / "orders", numbered, topic_id="t", partition=number % 2, first=first, last=first + step - 1
        )
    at = rng.integers(START, NOW, 3 * keys)
    corrected = rng.random(3 * keys) < 0.01
    made = at + np.where(corrected, rng.integers(0, 2 * DAY_US, 3 * keys), 0)
    rows = {"user": np.tile(np.arange(keys), 3), "ts": pa.array(at, pa.int64()).cast(STAMP)}
    rows |= {"made": pa.array(made, pa.int64()).cast(STAMP), "age": rng.integers(18, 90, 3 * keys)}
    pq.write_table(pa.table(rows | {"score": rng.random(3 * keys)}), repo / "profile.parquet")


def serve(repo: Path, answers: int, keys: int, rng: np.random.Generator) -> None:
    """A day's answers into the serve log: as known at their instants, with faults in about one in a hundred."""
    log = ServeLog(repo / "served", lambda: NOW, writer="w", kept_rows=10 * answers)
    instants = np.sort(rng.integers(NOW - DAY_US, NOW, answers))
    users = rng.integers(0, keys, answers)
    asked = pa.table({"user": users, "event_timestamp": pa.array(instants, pa.int64()).cast(STAMP)})
    # In flight: what had arrived in the last seconds is missing.
    lagging = rng.random(answers) < 0.005
    known_at = pa.array(instants - np.where(lagging, 20_000_000, 0), pa.int64()).cast(STAMP)
    now_known = historical_features(PLAN, READS, asked, repo=repo, as_known=True, full_feature_names=True)
    earlier = historical_features(
        PLAN, READS, asked.set_column(1, "event_timestamp", known_at), repo=repo, as_known=True, full_feature_names=True
    )
    broken = rng.random(answers) < 0.001
    read = []
    for view in (ORDERS, PROFILE):
        for field in view.features:
            name = f"{view.name}__{field.name}"
            values = pc.if_else(pa.array(lagging), earlier[name], now_known[name]).combine_chunks()
            values = pc.if_else(pa.array(broken), pc.add(values, 1), values)
            held = to_column(values, field.dtype, name=field.name)
            read.append((view.name, field, held))
    for hour in np.unique(instants // HOUR_US):
        rows = np.flatnonzero(instants // HOUR_US == hour)
        chosen = pa.array(rows)
        columns = [
            Column(
                view=view, feature=field.name, dtype=field.dtype, held=held.take(chosen),
                statuses=np.full(len(rows), Status.PRESENT, np.uint8), event_us=np.zeros(len(rows), np.int64),
                instant_us=instants[rows],
            )
            for view, field, held in read
        ]  # fmt: skip
        log.add(
            Answer(
                plan=PLAN, service="s", requested_us=int(hour) * HOUR_US, reads=READS, read=columns,
                keys={"user": users[rows].tolist()}, request={},
                given={(column.view, column.feature): column.to_python() for column in columns},
            )
        )  # fmt: skip
    log.flush()


def verdicts(skews: list[Skew]) -> dict[tuple[str, str, int], Skew]:
    """By view, feature and hour."""
    return {(each.view, each.feature, each.hour_us): each for each in merged(skews)}


def same_verdicts(repo: Path) -> int:
    """Audit all answers at once and one by one; how many values were compared. Raises where anything differs."""
    parts = [
        Part(shape, int(table["requested"][0].as_py()) // HOUR_US * HOUR_US, table)
        for shape, table in read_served(repo / "served", 0, NOW + HOUR_US)
    ]
    alone = [
        skew
        for shape, hour_us, table in parts
        for row in range(table.num_rows)
        for skew in audit([Part(shape, hour_us, table.slice(row, 1))], PLAN, repo=repo).skews
    ]
    together = verdicts(audit(parts, PLAN, repo=repo).skews)
    if verdicts(alone) != together:
        raise SystemExit("verdicts of answers audited together differ from those of each alone")
    return sum(each.compared for each in together.values())


def main() -> None:
    """Compare, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("answers", 100_000), ("events", 2_000_000), ("keys", 20_000), ("small", 300)):
        parser.add_argument(f"--{name}", type=lambda text: int(float(text)), default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repo = Path(folder)
        sources(repo, 50_000, 100, np.random.default_rng(1))
        serve(repo, given.small, 100, np.random.default_rng(2))
        print(f"{same_verdicts(repo):,} values of {given.small} answers: audited together as one by one")
    with tempfile.TemporaryDirectory() as folder:
        repo = Path(folder)
        sources(repo, given.events, given.keys, np.random.default_rng(3))
        serve(repo, given.answers, given.keys, np.random.default_rng(4))
        began, used = time.monotonic(), time.process_time()
        found = audit_hours(
            repo / "served", SkewHistory(repo / "skew"), PLAN, repo=repo, start_us=NOW - 2 * DAY_US, end_us=NOW,
            clock=lambda: NOW, say=lambda line: print(f"  {time.monotonic() - began:5.1f} s  {line}"),
        )  # fmt: skip
        took_s, processor_s = time.monotonic() - began, time.process_time() - used
        causes: dict[Cause, int] = {}
        for audited in found.audited:
            for cause, count in audited.differing.items():
                causes[cause] = causes.get(cause, 0) + count
        compared = sum(audited.compared for audited in found.audited)
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"{given.answers:,} answers, {compared:,} values of {given.events:,} events: {took_s:.1f} s "
            f"({processor_s:.1f} s of processors), peak {peak_gb:.1f} GB"
        )
        print("differing: " + ", ".join(f"{count:,} {cause}" for cause, count in sorted(causes.items())))


if __name__ == "__main__":
    main()
