"""What does a value cost to profile where events are streamed, and where answers are sampled?

    python -m benchmarks.profiles [--events 1200000] [--answers 300000]

Events: a minute of 20,000 a second of the rehearsal's shop lies in an event log of four partitions, and is profiled as
a worker does it: files are read, eight columns profiled by hour, profiles written. Answers: a serve log of ten features
over a day is read and its hours' profiles are kept, as the monitor does it. The first pass is not timed: it loads
libraries. Processor time; before it is believed, the counts are those of the log, and the profiles those of all rows at
once, to the bit.
"""

import argparse
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from featurestore.event_profiles import read_event_profiles
from featurestore.monitor.kept_profiles import AT
from featurestore.monitor.profiles import owner_columns, put_served, served_rows
from featurestore.monitor.served import HOUR_US, Answer, ServeLog
from featurestore.offline.event_log import read_events
from featurestore.online.result import Column
from featurestore.plan import Field, JoinKey, Plan, Projection, Service, Source, View
from streaming.event_profiler import EventProfiler
from streaming.pipeline import TopicPipeline
from streaming.rehearsal import START_US, TOPIC, shop_event, shop_plan
from streaming.sinks import EventLog, RangeSink
from streaming.source.records import Batch, Record, TopicPartition
from validation.profile.baseline import baseline_of
from validation.profile.build import profile_table
from validation.profile.profile import Profile
from validation.profile.store import ProfileStore

PARTITIONS = 4
FEATURES = 10
ASKED_NS = 100


def timed(folder: Path, work: Callable[[ProfileStore], object], values: int) -> tuple[ProfileStore, float]:
    """The store of the last of four passes, and nanoseconds of the processor a value: the median of the last three."""
    took = []
    for number in range(4):
        store = ProfileStore(folder / f"profiles-{number}")
        start = time.process_time()
        work(store)
        took.append((time.process_time() - start) / values * 1e9)
    return store, float(np.median(took[1:]))


def same(made: list[Profile], whole: list[Profile]) -> None:
    """Ends where the profiles are not those of all rows at once."""
    if sorted(each.digest() for each in made) != sorted(each.digest() for each in whole):
        raise SystemExit("the profiles are not those of all rows at once")


def events(count: int, folder: Path) -> None:
    """Profile an event log."""
    plan = shop_plan()
    view = plan.view("user_orders")
    topic, rng = TopicPipeline((view,), plan.contracts[TOPIC]), random.Random(0)
    sink = RangeSink(EventLog(folder / "log"), lambda: 0, flush_rows=25_000)
    ends = [0] * PARTITIONS
    for partition in range(PARTITIONS):
        sink.open(TopicPartition(TOPIC, "id", partition), 0)
    for first in range(0, count, 5_000):
        place = first // 5_000 % PARTITIONS
        values = [shop_event(rng, number, START_US + number * 50, 5_000) for number in range(first, first + 5_000)]
        records = [Record(place, ends[place] + n, b"", value, START_US + 10**12) for n, value in enumerate(values)]
        sink.add(topic.judge(Batch(TOPIC, "id", place, records, ends[place], ends[place] + 5_000)))
        ends[place] += 5_000
        sink.flush_due()
    sink.flush_all()
    log = read_events(folder / "log" / TOPIC)
    columns = 8  # without the event's id and its time

    def work(store: ProfileStore) -> object:
        return EventProfiler(folder / "log", store, [view], {}).run(last=True)

    store, took_ns = timed(folder, work, len(log) * columns)
    made = read_event_profiles(store, view, 0, 2**62)
    table = log.rename_columns([AT if name == "event_timestamp" else name for name in log.column_names])
    keys = [key.name for key in view.join_keys]
    same(made, profile_table(table, store.baseline(made[0].baseline), boundary="event", time_column=AT, entities=keys))
    print(f"{len(log):,} events of {columns} columns: {took_ns:.0f} ns a value, asked {ASKED_NS}")


def answers(count: int, folder: Path) -> None:
    """Profile a serve log."""
    names = [f"f{number}" for number in range(FEATURES)]
    view = View(
        name="rides", version=1, kind="latest", ttl_us=0,
        join_keys=(JoinKey(entity="driver", name="driver", dtype="INT64"),),
        features=tuple(Field(name=name, dtype="DOUBLE") for name in names),
        source=Source(name="rides", path="rides.parquet", timestamp_field="ts"),
    )  # fmt: skip
    reads = (Projection(view="rides", features=tuple(names)),)
    service = Service(name="eta", projections=reads, tags={"audit_rate": "1"})
    plan = Plan(project="p", version=1, digest="", created_us=0, views={"rides": view}, services={"eta": service})
    rng, keys = np.random.default_rng(0), list(range(100))
    log = ServeLog(folder / "served", lambda: 0, writer="w", flush_rows=20_000)
    for number in range(count // 100):
        values = rng.normal(10, 1, (FEATURES, 100))
        none = np.zeros(100, np.int64)
        column = [
            Column(view="rides", feature=name, dtype="DOUBLE", held=pa.array(values[place]),
                   statuses=np.zeros(100, np.uint8), event_us=none, instant_us=none)
            for place, name in enumerate(names)
        ]  # fmt: skip
        log.add(
            Answer(
                plan=plan, service="eta", requested_us=START_US + number * 24 * HOUR_US * 100 // count, reads=reads,
                read=column, keys={"driver": keys}, request={},
                given={("rides", name): values[place].tolist() for place, name in enumerate(names)},
            )
        )  # fmt: skip
    log.flush()
    answers = served_rows(folder / "served", "eta", 0, 2**62)
    assert answers is not None
    table = answers.table
    baseline = baseline_of(table.drop_columns([AT, *owner_columns(table)]))

    def work(store: ProfileStore) -> None:
        found = served_rows(folder / "served", "eta", 0, 2**62)
        assert found is not None
        put_served(store, "eta", found.table, baseline)

    store, took_ns = timed(folder, work, len(table) * FEATURES)
    made = store.read(boundary="served", baseline=baseline.id)
    same(made, profile_table(table, baseline, boundary="served", time_column=AT, entities=owner_columns(table)))
    _, read_ns = timed(folder, lambda _: served_rows(folder / "served", "eta", 0, 2**62), len(table) * FEATURES)
    print(f"of which the serve log is read in {read_ns:.0f} ns a value")
    print(f"{len(table):,} answers of {FEATURES} features: {took_ns:.0f} ns a value, asked {ASKED_NS}")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_200_000)
    parser.add_argument("--answers", type=int, default=300_000)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        events(options.events, folder / "events")
        answers(options.answers, folder / "answers")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
