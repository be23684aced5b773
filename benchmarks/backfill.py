"""How long does a version of a view take to be built from the event log?

    python -m benchmarks.backfill [--events 1000000] [--users 5000] [--hours H] [--profile]

Asked: 10 M events in under 5 minutes (`--events 10000000`). Events of ten fields lie in an event log of four
partitions, in files of 100,000, as a worker leaves them; the view has three windows and count, sum, mean and max. What
is timed is `Builder.build`: read, fold, commit into a real store. In the end every tile of one partition is compared
with one made from nothing by another path (a part of the events where there are many: that path is slow).
"""

import argparse
import cProfile
import pstats
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from featurestore.config import OnlineSettings
from featurestore.offline.event_log import ARRIVAL, OFFSET, read_events, write_events
from featurestore.online.connection import StoreClient, connect
from featurestore.online.keys import Shard
from featurestore.online.server import EmbeddedServer
from streaming.audit import audit_shard
from streaming.backfill import Builder
from streaming.claim_record import ClaimRecord
from streaming.commit import ShardStore
from streaming.log_replay import EventLogReplay, Stretch
from streaming.rehearsal import START_US, TOPIC, shop_plan

PARTITIONS = 4
FILE_ROWS = 100_000
COMPARED = 10_000
ASKED_EVENTS, ASKED_S = 10_000_000, 300


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=5_000)
    parser.add_argument("--hours", type=float, help="by default as dense as 10 M events a day")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    options.hours = options.hours or 24.0 * options.events / ASKED_EVENTS
    with tempfile.TemporaryDirectory() as name, EmbeddedServer(Path(name)) as server:
        folder = Path(name)
        write_log(folder / "event_log" / TOPIC, options.events, options.users, options.hours)
        client = connect(OnlineSettings(url=f"unix://{server.address}"), folder)
        profile = cProfile.Profile() if options.profile else None
        build(client, folder / "event_log", options.events, round(options.hours * 3600e6), profile)
        if profile is not None:
            pstats.Stats(profile).sort_stats("cumulative").print_stats(25)


def write_log(folder: Path, events: int, users: int, hours: float) -> None:
    """The event log that workers would have left of that many events."""
    rng = np.random.default_rng(0)
    step_us = hours * 3600e6 * PARTITIONS / events
    for partition in range(PARTITIONS):
        for first in range(0, events // PARTITIONS, FILE_ROWS):
            rows = min(FILE_ROWS, events // PARTITIONS - first)
            offsets = np.arange(first, first + rows)
            arrival_us = START_US + (offsets * step_us).astype(np.int64)
            late_us = np.where(rng.random(rows) < 0.4, rng.integers(0, 600_000_000, rows), 0)
            user = rng.integers(0, users // PARTITIONS, rows) * PARTITIONS + partition
            table = pa.table(
                {
                    "event_id": pa.array(np.char.mod("%012x", offsets * PARTITIONS + partition)),
                    "event_timestamp": instants(arrival_us - late_us),
                    "user_id": user,
                    "amount": np.round(rng.lognormal(3, 1, rows), 2),
                    "quantity": rng.integers(1, 10, rows),
                    "currency": rng.choice(np.array(["EUR", "USD", "GBP"]), rows),
                    "country": rng.choice(np.array(["DE", "US", "GB", "FR"]), rows),
                    "page": np.char.mod("/p/%d", rng.integers(0, 40, rows)),
                    "discount": rng.choice(np.array([0.0, 0.1, 0.25]), rows),
                    "device": rng.choice(np.array(["phone", "desktop"]), rows),
                    OFFSET: offsets,
                    ARRIVAL: instants(arrival_us),
                }
            )
            write_events(folder, table, topic_id="id-1", partition=partition, first=first, last=first + rows - 1)


def instants(micros: "np.typing.NDArray[np.int64]") -> pa.Array:
    """Microseconds as Arrow instants."""
    return pa.array(micros).cast(pa.timestamp("us", "UTC"))


def build(client: StoreClient, log: Path, events: int, span_us: int, profile: cProfile.Profile | None) -> None:
    """Time the build, compare, print."""
    plan = shop_plan(contract=False)
    view = plan.views["user_orders"]
    now_us = START_US + span_us
    store = ShardStore(client, lambda: now_us)
    replay = EventLogReplay(log / TOPIC, view)
    builder = Builder(plan, view, replay, store, ClaimRecord(log), clock=lambda: now_us, new_token=lambda: "benchmark")
    stretches = replay.stretches()
    started, used = time.perf_counter(), time.process_time()
    if profile is not None:
        profile.enable()
    builder.build(stretches, (), lambda: False)
    if profile is not None:
        profile.disable()
    took, cpu = time.perf_counter() - started, time.process_time() - used
    rate = events / took
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{events:,} events into {builder.counters['slots']:,} slots: {took:.1f} s ({cpu:.1f} s of processor)")
    print(f"{rate:,.0f} events/s; {ASKED_EVENTS:,} would take {ASKED_EVENTS / rate:.0f} s; asked: {ASKED_S} s")
    print(f"{ASKED_S / (ASKED_EVENTS / rate):.1f} times as fast as asked; peak memory {memory:.0f} MB")
    compared = compare(client, log, events, now_us)
    print(f"{compared:,} blocks compared with an independent recomputation: none differs")


def compare(client: StoreClient, log: Path, events: int, now_us: int) -> int:
    """Compare one partition's tiles, built again up to as many events as the slow path can take."""
    plan = shop_plan(contract=False)
    view = plan.views["user_orders"]
    shard = Shard(plan.project, view.name, view.version, "id-1", 0)
    after = min(events // PARTITIONS, COMPARED)
    if after < events // PARTITIONS:
        store = ShardStore(client, lambda: now_us)
        store.remove(plan.project, view.name, view.version)
        replay = EventLogReplay(log / TOPIC, view)
        few = [
            Stretch(each.partition, each.first, after) for each in replay.stretches() if each.partition.partition == 0
        ]
        record = ClaimRecord(log)
        again = Builder(plan, view, replay, store, record, clock=lambda: now_us, new_token=lambda: "again")
        again.build(few, (), lambda: False)
    keys = [bytes(key) for key in client.scan_iter(match=f"fs:tile:{shard.tag}:*", count=10_000)]
    stored = {key: client.get(key) or b"" for key in keys}
    audit = audit_shard(view, shard, read_events(log / TOPIC), after, stored, now_us=now_us)
    assert audit.exact, f"{len(audit.different)} of {audit.compared} blocks differ"
    return audit.compared


if __name__ == "__main__":
    main()
