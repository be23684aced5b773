"""How many events a second does one core put through, from decode to commit and files?

    python -m benchmarks.stream [--events 300000] [--users 5000] [--profile]     the log in memory
    python -m benchmarks.stream --source kafka      Apache Kafka (Java 17, Maven; KAFKA_BOOTSTRAP_SERVERS names another)
    python -m benchmarks.stream --source embedded   our own broker
    python -m benchmarks.stream --profiles 1 --flush-rows 10000         events are profiled meanwhile, every second
    python -m benchmarks.stream --keys 1000000      memory, with so many entity keys

Events of about 170 bytes and ten fields, a contract of ten rules, one view with three windows and count, sum, mean and
max, four partitions; a real store (embedded, appendfsync everysec) and real files. Kafka's records are decoded flat:
the source knows no other way. CPU seconds are those of the worker's process: the client's threads and our own broker
are in it, Kafka and the store are not. In the end every tile is compared with one made from nothing.
"""

import argparse
import contextlib
import cProfile
import os
import pstats
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import msgspec
import numpy as np

from featurestore.config import OnlineSettings
from featurestore.event_profiles import read_event_profiles
from featurestore.offline.event_log import read_events
from featurestore.online.connection import connect
from featurestore.online.keys import Shard
from featurestore.online.server import EmbeddedServer
from streaming.audit import audit_shard
from streaming.claim_record import ClaimRecord
from streaming.commit import Commit, ShardStore
from streaming.embedded.server import EmbeddedBroker
from streaming.event_profiler import EventProfiler, profiling
from streaming.pipeline import TopicPipeline
from streaming.rehearsal import START_US, TOPIC, shop_event, shop_plan
from streaming.sinks import FLUSH_ROWS, EventLog, RangeSink
from streaming.source import kafka
from streaming.source.publisher import Publisher
from streaming.source.records import Assigned, Batch, Rebalance, Record, Source, TopicPartition
from streaming.source.scripted import ScriptedLog, ScriptedSource
from streaming.worker import Pace, Worker
from validation.profile.store import ProfileStore

PARTITIONS = 4
ROLLED = 2_000
"""A commit of more blocks rolls the heads of most keys up into every level: the tile that they were in has passed."""


class Timed:
    """A store whose calls are timed."""

    def __init__(self, store: ShardStore) -> None:
        self.store = store
        self.seconds: dict[str, float] = {}
        self.commits: list[tuple[int, float]] = []
        """Blocks written, milliseconds."""

    def __getattr__(self, name: str) -> Callable[..., object]:
        call = getattr(self.store, name)

        def timed(*arguments: object, **options: object) -> object:
            start = time.perf_counter()
            found = call(*arguments, **options)
            took = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + took
            if name == "commit":
                commits = cast("Sequence[Commit]", arguments[0])
                self.commits.append((sum(len(each.writes) for each in commits), took * 1000))
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
    parser.add_argument("--source", choices=("scripted", "embedded", "kafka"), default="scripted")
    parser.add_argument("--profiles", type=float, default=0.0, help="profile events every so many seconds meanwhile")
    parser.add_argument("--flush-rows", type=int, default=FLUSH_ROWS, help="events of a partition in one file")
    parser.add_argument("--keys", type=int, default=0, help="measure memory alone, with so many entity keys")
    options = parser.parse_args()
    if options.keys:
        with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder)) as server:
            memory(options.keys, Path(folder), f"unix://{server.address}")
        return
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
    batches = [Batch(TOPIC, "id", 0, records[first : first + 5_000], 0, 0) for first in range(0, len(records), 5_000)]
    steps: dict[str, Callable[[Batch], object]] = {
        "decode": lambda batch: topic.decoder.decode(batch.records),
        "decode, judge, columns": topic.judge,
    }
    for name, step in steps.items():
        step(batches[0])
        start = time.process_time()
        for batch in batches:
            step(batch)
        print(f"{name}: {len(records) / (time.process_time() - start):,.0f} events per CPU-second")


class NewKeys:
    """A Source that makes up events as they are asked for, each of a key of its own, and holds none."""

    def __init__(self, keys: int, size: int) -> None:
        self._per_partition, self._size = keys // PARTITIONS, size
        self._partitions = tuple(TopicPartition(TOPIC, "id", number) for number in range(PARTITIONS))
        self._positions = dict.fromkeys(self._partitions, 0)
        self._rebalances: list[Rebalance] = [Assigned(self._partitions)]
        self._rng = random.Random(0)

    def drain_rebalances(self) -> list[Rebalance]:
        """See Source."""
        drained, self._rebalances = self._rebalances, []
        return drained

    def poll(self, timeout_ms: int) -> list[Batch]:  # noqa: ARG002 - the protocol's signature
        """See Source: a batch of the partition that is least far."""
        partition = min(self._partitions, key=self._positions.__getitem__)
        first = self._positions[partition]
        after = self._positions[partition] = min(first + self._size, self._per_partition)
        values = [shop_event(self._rng, number, START_US, 1) for number in range(first, after)]
        keys = [partition.partition + PARTITIONS * number for number in range(first, after)]
        records = [
            Record(
                partition.partition, number, b"%d" % key, value.replace(b'"user_id":0', b'"user_id":%d' % key), START_US
            )
            for number, key, value in zip(range(first, after), keys, values, strict=True)
        ]
        return [Batch(TOPIC, "id", partition.partition, records, first, after)] if records else []

    def partitions_of(self, topic: str) -> tuple[TopicPartition, ...]:  # noqa: ARG002 - the protocol's signature
        """See Source."""
        return self._partitions

    def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """See Source."""
        return dict.fromkeys(partitions, 0)

    def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """See Source."""
        return dict.fromkeys(partitions, self._per_partition)

    def known_end(self, partition: TopicPartition) -> int | None:  # noqa: ARG002 - the protocol's signature
        """See Source."""
        return self._per_partition

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """See Source."""
        self._positions[partition] = offset

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """See Source."""

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """See Source."""

    def close(self) -> None:
        """See Source."""


def memory(keys: int, folder: Path, url: str) -> None:
    """A worker over events of ever new keys, with its files: what it and the store come to hold."""
    plan = shop_plan()
    client = connect(OnlineSettings(url=url), folder)
    worker = Worker(
        NewKeys(keys, 5_000),
        ShardStore(client, lambda: START_US),
        [RangeSink(EventLog(folder / "event_log"), lambda: START_US)],
        plan,
        views=tuple(plan.views.values()),
        record=ClaimRecord(folder / "event_log"),
        clock=lambda: START_US,
        new_token=lambda: "benchmark",
    )
    before, done = _held_mb(), 0
    for tenth in range(1, 11):
        while done < keys * tenth // 10:
            done += worker.turn(0)
        used = int(client.info("memory")["used_memory"]) / 2**20
        print(f"{worker.counters['accepted']:,} keys: process +{_held_mb() - before:.0f} MB, store {used:.0f} MB")
    worker.leave()


def _held_mb() -> float:
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


@contextlib.contextmanager
def source_of(values: list[bytes], step_us: int, options: argparse.Namespace, folder: Path) -> Iterator[Source]:
    """The events in a log of four partitions, and a reader of it."""
    arrivals = [START_US + number * step_us for number in range(len(values))]
    users = [msgspec.json.decode(value)["user_id"] for value in values]
    if options.source == "scripted":
        log = ScriptedLog()
        log.create(TOPIC, partitions=PARTITIONS)
        for value, user, arrival_us in zip(values, users, arrivals, strict=True):
            log.append(TOPIC, user % PARTITIONS, value, key=b"%d" % user, timestamp_us=arrival_us)
        yield ScriptedSource(log, [TOPIC], max_records=options.batch)
        return
    with broker(options.source, folder) as address:
        settings = kafka.KafkaSettings(bootstrap_servers=address, max_records=options.batch)
        publisher = Publisher(settings, TOPIC, partitions=PARTITIONS)
        for value, user, arrival_us in zip(values, users, arrivals, strict=True):
            publisher.send(b"%d" % user, value, timestamp_us=arrival_us)
        publisher.flush()
        publisher.close()
        yield kafka.KafkaSource(settings, [TOPIC], group="benchmark")


@contextlib.contextmanager
def broker(kind: str, folder: Path) -> Iterator[str]:
    """The address of a running broker."""
    named = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if kind == "embedded":
        with EmbeddedBroker() as running:
            yield str(running.address)
    elif named:
        yield named
    else:
        sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "kafka"))
        from apache_kafka import ApacheKafka, resolve  # it lies beside the tests, which are no package

        resolve()
        (folder / "kafka").mkdir()
        apache = ApacheKafka(folder / "kafka")
        apache.start()
        try:
            yield apache.bootstrap_servers
        finally:
            apache.stop()


def stream(values: list[bytes], step_us: int, options: argparse.Namespace, folder: Path, url: str) -> None:
    """Time the worker, then compare."""
    with source_of(values, step_us, options, folder) as source:
        run(source, values, step_us, options, folder, url)


def run(source: Source, values: list[bytes], step_us: int, options: argparse.Namespace, folder: Path, url: str) -> None:
    """Time the worker on a source, then compare."""
    plan = shop_plan()
    now_us = START_US + len(values) * step_us
    client = connect(OnlineSettings(url=url), folder)
    timed = Timed(ShardStore(client, lambda: now_us))
    worker = Worker(
        source,
        timed,  # type: ignore[arg-type] - a double of the store
        [RangeSink(EventLog(folder / "event_log"), lambda: now_us, flush_rows=options.flush_rows)],
        plan,
        views=tuple(plan.views.values()),
        record=ClaimRecord(folder / "event_log"),
        clock=lambda: now_us,
        new_token=lambda: "benchmark",
        pace=Pace(poll_ms=0 if options.source == "scripted" else 100),
    )
    partitions = source.partitions_of(TOPIC)
    profile = cProfile.Profile()
    if options.profile:
        profile.enable()
    store, view = ProfileStore(folder / "profiles"), plan.view("user_orders")
    profiler = EventProfiler(folder / "event_log", store, [view], {})
    start, start_cpu = time.perf_counter(), time.process_time()
    with profiling(lambda: profiler, lambda: partitions, every_s=options.profiles):
        worker.run(lambda: False, until_caught_up=True)
        took = time.perf_counter() - start
    cpu = time.process_time() - start_cpu
    profile.disable()
    print(
        f"end to end from {options.source}: {len(values) / took:,.0f} events/s "
        f"({len(values) / cpu:,.0f} per CPU-second of the worker)"
    )
    parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in timed.seconds.items())
    print(f"{took:.2f} s of which {parts}; peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    for what, some in (
        ("without", [each for each in timed.commits if each[0] <= ROLLED]),
        ("with", [each for each in timed.commits if each[0] > ROLLED]),
    ):
        if some:
            blocks = sum(count for count, _ in some) / len(some)
            p50, p99 = np.percentile([took_ms for _, took_ms in some], [50, 99])
            print(f"{len(some)} commits {what} roll-up, {blocks:.0f} slots each: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    if options.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    compared = different = 0
    events = read_events(folder / "event_log" / TOPIC)
    if options.profiles:
        made = read_event_profiles(store, view, 0, 2**62)
        profiled = sum(each.rows for each in made if each.feature == "amount")
        print(f"{profiled} events profiled of {len(events)} in the log, in {len(store.paths('event'))} files")
    for partition in partitions:
        shard = Shard(plan.project, view.name, view.version, partition.topic_id, partition.partition)
        keys = list(client.scan_iter(match=f"fs:tile:{shard.tag}:*", count=10_000))
        stored = {key: block for key, block in zip(keys, client.mget(keys), strict=True) if block}
        audit = audit_shard(view, shard, events, 2**60, stored, now_us=now_us)
        compared += audit.compared
        different += len(audit.different)
    print(f"{compared} blocks compared with ones made from nothing, {different} different")


if __name__ == "__main__":
    main()
