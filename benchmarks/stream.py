"""How many events a second does one core put through, from decode to commit and files?

    python -m benchmarks.stream [--events 300000] [--users 5000] [--profile]

Events of about 170 bytes and ten fields, a contract of ten rules, one view with three windows and count, sum, mean and
max; a real store (embedded), real files, a log in memory. In the end every tile is compared with one made from nothing.
"""

import argparse
import cProfile
import pstats
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from featurestore.config import OnlineSettings
from featurestore.offline.event_log import read_events
from featurestore.online.connection import connect
from featurestore.online.keys import Shard
from featurestore.online.server import EmbeddedServer
from streaming.audit import audit_shard
from streaming.claim_record import ClaimRecord
from streaming.commit import ShardStore
from streaming.pipeline import TopicPipeline
from streaming.rehearsal import START_US, TOPIC, shop_event, shop_plan
from streaming.sinks import EventLog, RangeSink
from streaming.source.records import Batch, Record
from streaming.source.scripted import ScriptedLog, ScriptedSource
from streaming.worker import Pace, Worker

PARTITIONS = 4


class Timed:
    """A store whose calls are timed."""

    def __init__(self, store: ShardStore) -> None:
        self.store = store
        self.seconds: dict[str, float] = {}
        self.commits_ms: list[float] = []

    def __getattr__(self, name: str) -> Callable[..., object]:
        call = getattr(self.store, name)

        def timed(*arguments: object, **options: object) -> object:
            start = time.perf_counter()
            found = call(*arguments, **options)
            took = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + took
            if name == "commit":
                self.commits_ms.append(took * 1000)
            return found

        return timed


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--users", type=int, default=5_000)
    parser.add_argument("--batch", type=int, default=5_000)
    parser.add_argument("--rate", type=int, default=2_000, help="events a second in event time")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    rng = random.Random(0)
    step_us = 1_000_000 // options.rate
    values = [shop_event(rng, number, START_US + number * step_us, options.users) for number in range(options.events)]
    print(f"{options.events} events of {sum(map(len, values)) / len(values):.0f} bytes, {options.users} users")
    decode(values)
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder)) as server:
        stream(values, step_us, options, Path(folder), f"unix://{server.address}")


def decode(values: list[bytes]) -> None:
    """Time verdicts alone."""
    plan = shop_plan()
    topic = TopicPipeline(tuple(plan.views.values()), plan.contracts[TOPIC])
    records = tuple(Record(0, number, None, value, START_US + 10**12) for number, value in enumerate(values[:100_000]))
    start = time.perf_counter()
    topic.decoder.decode(records)
    decoded = time.perf_counter()
    for first in range(0, len(records), 5_000):
        topic.judge(Batch(TOPIC, "id", 0, records[first : first + 5_000], first, first + 5_000))
    judged = time.perf_counter()
    print(f"decode {len(records) / (decoded - start):,.0f} events/s, judged {len(records) / (judged - decoded):,.0f}/s")


def stream(values: list[bytes], step_us: int, options: argparse.Namespace, folder: Path, url: str) -> None:
    """Time the worker, then compare."""
    plan = shop_plan()
    log = ScriptedLog()
    log.create(TOPIC, partitions=PARTITIONS)
    for number, value in enumerate(values):
        user = msgspec.json.decode(value)["user_id"]
        arrival_us = START_US + number * step_us
        log.append(TOPIC, user % PARTITIONS, value, key=b"%d" % user, timestamp_us=arrival_us)
    now_us = START_US + len(values) * step_us
    client = connect(OnlineSettings(url=url), folder)
    timed = Timed(ShardStore(client, lambda: now_us))
    worker = Worker(
        ScriptedSource(log, [TOPIC], max_records=options.batch),
        timed,  # type: ignore[arg-type] - a double of the store
        [RangeSink(EventLog(folder / "event_log"), lambda: now_us)],
        plan,
        views=tuple(plan.views.values()),
        record=ClaimRecord(folder / "event_log"),
        clock=lambda: now_us,
        new_token=lambda: "benchmark",
        pace=Pace(poll_ms=0),
    )
    profile = cProfile.Profile()
    if options.profile:
        profile.enable()
    start, start_cpu = time.perf_counter(), time.process_time()
    worker.run(lambda: False, until_caught_up=True)
    took, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    profile.disable()
    print(f"end to end {len(values) / took:,.0f} events/s ({len(values) / cpu:,.0f} per CPU-second of the worker)")
    parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in timed.seconds.items())
    ordered = sorted(timed.commits_ms)
    slots = worker.counters["slots"] / len(ordered)
    print(f"{took:.2f} s of which {parts}; peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    p50, p99 = ordered[len(ordered) // 2], ordered[-len(ordered) // 100]
    print(f"commits of {slots:.0f} slots: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    if options.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    compared = different = 0
    events = read_events(folder / "event_log" / TOPIC)
    view = plan.view("user_orders")
    for partition in log.partitions_of(TOPIC):
        shard = Shard(plan.project, view.name, view.version, partition.topic_id, partition.partition)
        keys = list(client.scan_iter(match=f"fs:tile:{shard.tag}:*", count=10_000))
        stored = {key: block for key, block in zip(keys, client.mget(keys), strict=True) if block}
        audit = audit_shard(view, shard, events, worker.positions.get(partition, 2**60), stored, now_us=now_us)
        compared += audit.compared
        different += len(audit.different)
    print(f"{compared} blocks compared with ones made from nothing, {different} different")


if __name__ == "__main__":
    main()
