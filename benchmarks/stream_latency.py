"""How soon can an event be read, and how soon does the stream go on after a worker was killed?

    python -m benchmarks.stream_latency [--rates 1000 10000 20000] [--seconds 8] [--embedded]

A real Apache Kafka (or, asked for, our own broker), a real worker process, the embedded store; events of about 170
bytes, ten fields, a contract of ten rules, three windows, four partitions. An event can be read once its commit is in
the store: the store tells a process of its own of every change, which then reads the offset. Before there is a worker,
a reader that does nothing with what it polls shows what broker, producer and client alone take; the first seconds of a
broker, in which Java compiles it, are left out. Then the worker is killed (-9) and started again, and another one takes
over from one that is killed. In the end every tile is compared with one made from nothing. The sender is librdkafka
(`pip install featurestore[bench]`): at 20,000 a second a producer in Python takes one of two processors for itself.
"""

import argparse
import itertools
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

import msgspec
import numpy as np
from confluent_kafka import Producer

from featurestore.config import OnlineSettings
from featurestore.offline.event_log import read_events
from featurestore.online.connection import connect
from featurestore.online.keys import Shard
from featurestore.online.server import EmbeddedServer
from featurestore.plan_store import PlanStore
from featurestore.signing import signer_of
from streaming.audit import audit_shard
from streaming.commit import ShardStore
from streaming.rehearsal import shop_event, shop_plan
from streaming.source.kafka import KafkaSettings, KafkaSource
from streaming.source.publisher import Publisher

PARTITIONS = 4
TOPIC = "orders"
WARM_UPS = 3
SESSION_S = KafkaSettings("").session_timeout_ms / 1000


def watch(url: str, keys: list[bytes], out: str, ready: Event, stop: Event) -> None:
    """Write down when each shard's offset was seen to move: (seconds, partition, offset).

    The store tells of every change of a control record, so that looking costs next to nothing of the two cores.
    """
    client = connect(OnlineSettings(url=url), Path(out).parent)
    client.config_set("notify-keyspace-events", "Kh")
    channels = {b"__keyspace@0__:" + key: (place, key) for place, key in enumerate(keys)}
    told = client.pubsub(ignore_subscribe_messages=True)
    told.subscribe(*channels)
    seen = [0] * len(keys)
    rows = []
    ready.set()
    while not stop.is_set():
        message = told.get_message(timeout=0.2)
        if message is None:
            continue
        place, key = channels[message["channel"]]
        offset = int(client.hget(key, "offset") or 0)  # type: ignore[arg-type]
        if offset > seen[place]:
            rows.append((time.time(), place, offset))
            seen[place] = offset
    np.save(out, np.array(rows))


def receive(servers: str, out: str, ready: Event, stop: Event) -> None:
    """Write down when a reader that does nothing else had received each partition's records up to an offset."""
    source = KafkaSource(KafkaSettings(servers), [TOPIC], group="floor")
    rows: list[tuple[float, int, int]] = []
    assigned = 0
    while not stop.is_set():
        for change in source.drain_rebalances():
            for partition, end in source.end_offsets(change.partitions).items():
                source.seek(partition, end)
                assigned += 1
        if assigned == PARTITIONS:
            ready.set()
        batches = source.poll(100)
        now = time.time()
        rows += [(now, batch.partition, batch.position_after) for batch in batches]
    source.close()
    np.save(out, np.array(rows))


class Stage:
    """Broker, store, topic, and what is sent."""

    def __init__(self, folder: Path, servers: str, server: EmbeddedServer) -> None:
        self.folder, self.servers = folder, servers
        self.url = f"unix://{server.address}"
        self.repo = folder / "feature_repo"
        self.repo.mkdir()
        (self.repo / "feature_store.yaml").write_text(
            f"project: shop\nregistry: ../data/registry.db\nonline_store:\n  connection: {self.url}\n"
        )
        self.plan = shop_plan(keyed=True)
        self.client = connect(OnlineSettings(url=self.url), folder)
        PlanStore(self.client, "shop", signer_of(folder / "data")).publish(self.plan)
        Publisher(KafkaSettings(servers), TOPIC, partitions=PARTITIONS).close()
        source = KafkaSource(KafkaSettings(servers), [TOPIC], group="none")
        self.partitions = source.partitions_of(TOPIC)
        source.close()
        self.shards = [Shard("shop", "user_orders", 1, each.topic_id, each.partition) for each in self.partitions]
        self.sent: list[list[float]] = [[] for _ in range(PARTITIONS)]
        # Sent by librdkafka: a producer in Python takes one of two processors for itself at 20,000 a second.
        self.producer = Producer({"bootstrap.servers": servers, "acks": "all", "linger.ms": 1})
        self.rng = random.Random(0)
        self.numbers = itertools.count()
        self.samples = [msgspec.json.decode(shop_event(self.rng, n, 0, 5_000)) for n in range(2_000)]

    def worker(self, *more: str) -> subprocess.Popen[bytes]:
        """A worker process."""
        command = [sys.executable, "-m", "featurestore.cli.main", "stream", "run", "--repo", str(self.repo), *more]
        environ = {**os.environ, "KAFKA_BOOTSTRAP_SERVERS": self.servers}
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ)

    def send(self, rate: int, seconds: float) -> None:
        """Send so many a second, in equal steps of a millisecond or less."""
        start = time.time()
        done = 0
        while (elapsed := time.time() - start) < seconds:
            for _ in range(int(elapsed * rate) - done):
                number = next(self.numbers)
                now = time.time()
                order = self.samples[number % len(self.samples)]
                order["event_id"], order["event_timestamp"] = f"{number:012x}", int(now * 1e6)
                partition = order["user_id"] % PARTITIONS
                self.sent[partition].append(now)
                key = b"%d" % order["user_id"]
                self.producer.produce(TOPIC, msgspec.json.encode(order), key, partition)
                done += 1
            self.producer.poll(0)
            time.sleep(0.0005)
        self.producer.flush()

    def offsets(self) -> list[int]:
        """The offsets that the store is at."""
        return [int(self.client.hget(shard.control_key, "offset") or 0) for shard in self.shards]  # type: ignore[arg-type]

    def wait_for(self, offsets: list[int], patience_s: float = 300.0) -> None:
        """Until every shard is there."""
        deadline = time.time() + patience_s
        while any(found < wanted for found, wanted in zip(self.offsets(), offsets, strict=True)):
            if time.time() > deadline:
                raise SystemExit(f"the stream stands at {self.offsets()}, not at {offsets}")
            time.sleep(0.001)

    def ends(self) -> list[int]:
        """How many were sent, by partition."""
        return [len(each) for each in self.sent]

    @contextmanager
    def watched(self, *, floor: bool) -> Iterator[Path]:
        """Offsets are written to the file meanwhile: those that are committed, or those that are received."""
        out = self.folder / f"seen-{time.monotonic_ns()}.npy"
        context = multiprocessing.get_context("spawn")
        ready, stop = context.Event(), context.Event()
        keys = [shard.control_key for shard in self.shards]
        what = (receive, self.servers) if floor else (watch, self.url, keys)
        process = context.Process(target=what[0], args=(*what[1:], str(out), ready, stop))
        process.start()
        ready.wait()
        yield out
        stop.set()
        process.join()


def latencies(stage: Stage, rate: int, seconds: float, *, floor: bool = False) -> np.ndarray:
    """Milliseconds from sending to readable, or just to received, of all but the first second's events."""
    before = stage.ends()
    with stage.watched(floor=floor) as out:
        start = time.time()
        stage.send(rate, seconds)
        if not floor:
            stage.wait_for(stage.ends())
        time.sleep(0.3)
    seen = np.load(out)
    found = []
    for partition, sent in enumerate(stage.sent):
        moved = seen[seen[:, 1] == partition]
        offsets = np.arange(before[partition], len(sent))
        readable = moved[np.searchsorted(moved[:, 2], offsets, side="right"), 0]
        times = np.array(sent[before[partition] :])
        found.append(((readable - times) * 1000)[times > start + 1])
    return np.concatenate(found)


def processor_s(pid: int) -> float:
    """Seconds of processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def killed_and_started_again(stage: Stage) -> float:
    """Seconds from kill -9 to the first commit of a worker of the same name."""
    worker = stage.worker("--instance-id", "one")
    stage.send(500, 1.5)
    stage.wait_for(stage.ends())
    stage.send(500, 0.2)
    worker.kill()
    worker.wait()
    stage.send(500, 0.1)
    start = time.time()
    worker = stage.worker("--instance-id", "one")
    stage.wait_for(stage.ends())
    took = time.time() - start
    worker.terminate()
    worker.wait()
    return took


def taken_over(stage: Stage) -> float:
    """Seconds from kill -9 of one of two workers until the other one has committed in all partitions."""
    workers = [stage.worker(), stage.worker()]
    time.sleep(6)
    stage.send(500, 0.5)
    stage.wait_for(stage.ends())
    workers[0].kill()
    workers[0].wait()
    start = time.time()
    stage.send(500, 0.2)
    stage.wait_for(stage.ends())
    took = time.time() - start
    workers[1].terminate()
    workers[1].wait()
    return took


def compared(stage: Stage) -> str:
    """Every tile against one made from nothing."""
    events = read_events(stage.folder / "data" / "event_log" / TOPIC)
    blocks = different = 0
    store = ShardStore(stage.client, lambda: 0)
    for shard in stage.shards:
        control = store.control(shard)
        assert control is not None
        keys = list(stage.client.scan_iter(match=f"fs:tile:{shard.tag}:*", count=10_000))
        stored = {key: block for key, block in zip(keys, stage.client.mget(keys), strict=True) if block}
        now_us = time.time_ns() // 1000
        audit = audit_shard(stage.plan.view("user_orders"), shard, events, control.offset, stored, now_us=now_us)
        blocks, different = blocks + audit.compared, different + len(audit.different)
    return f"{len(events):,} events: {blocks:,} blocks compared with ones made from nothing, {different} different"


@contextmanager
def broker(folder: Path, *, embedded: bool) -> Iterator[str]:
    """A broker's address."""
    if embedded:
        from streaming.embedded.server import EmbeddedBroker

        with EmbeddedBroker(folder) as running:
            yield str(running.address)
        return
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "kafka"))
    from apache_kafka import ApacheKafka, resolve

    resolve()
    kafka = ApacheKafka(folder)
    kafka.start()
    try:
        yield kafka.bootstrap_servers
    finally:
        kafka.stop()


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=int, nargs="+", default=[1_000, 10_000, 20_000])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--embedded", action="store_true", help="our own broker instead of Apache Kafka")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, EmbeddedServer(Path(name) / "store") as server:
        folder = Path(name)
        (folder / "broker").mkdir()
        with broker(folder / "broker", embedded=options.embedded) as servers:
            print(f"broker: {'embedded' if options.embedded else 'Apache Kafka'}; load {os.getloadavg()[0]:.1f}")
            stage = Stage(folder, servers, server)
            for _ in range(WARM_UPS):  # the broker compiles itself meanwhile
                latencies(stage, max(options.rates), 5.0, floor=True)
            for rate in options.rates:
                p50, p99 = np.percentile(latencies(stage, rate, options.seconds / 2, floor=True), [50, 99])
                print(f"{rate:>6,}/s: received by a reader that does nothing after p50 {p50:.1f} ms, p99 {p99:.1f} ms")
            worker = stage.worker()
            stage.wait_for(stage.ends())
            for rate in options.rates:
                used = processor_s(worker.pid)
                found = latencies(stage, rate, options.seconds)
                used = (processor_s(worker.pid) - used) / options.seconds
                p50, p99 = np.percentile(found, [50, 99])
                print(
                    f"{rate:>6,}/s asked, {len(found) / (options.seconds - 1):>6,.0f}/s sent: "
                    f"readable after p50 {p50:.1f} ms, p99 {p99:.1f} ms; the worker took {used:.2f} of "
                    f"{os.cpu_count()} processors"
                )
            worker.terminate()
            worker.wait()
            print(f"restart after kill -9: {killed_and_started_again(stage):.2f} s from start to readable")
            print(f"takeover: {taken_over(stage):.2f} s, session timeout {SESSION_S:.0f} s")
            print(compared(stage))
            stage.producer.flush()
            stage.client.close()


if __name__ == "__main__":
    main()
