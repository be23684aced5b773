"""A whole deployment that is treated badly: broker, store and workers as processes, and what must hold afterwards.

Everything that is asserted is computed anew from what the broker holds: the records are read again by a consumer of its
own, judged in one go, and from what is accepted tiles and windows are made without the stream.
"""

import contextlib
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import msgspec
import pyarrow as pa
from apache_kafka import ApacheKafka
from cutting_proxy import CuttingProxy
from kafka import KafkaProducer
from kafka.errors import KafkaError
from topics import read_topic

from featurestore.config import EVENTS_URL, load_settings
from featurestore.errors import FeatureStoreError
from featurestore.offline.event_log import OFFSET, PARTITION, read_events
from featurestore.offline.windowed import windowed_join
from featurestore.online.connection import connect
from featurestore.online.keys import Shard
from featurestore.online.reader import OnlineReader
from featurestore.online.result import Status
from featurestore.online.server import EmbeddedServer
from featurestore.plan import Projection
from featurestore.plan_store import PlanStore
from streaming.audit import audit_shard
from streaming.commit import ShardStore
from streaming.pipeline import TopicPipeline
from streaming.rehearsal import START_US, TOPIC, shop_event, shop_events, shop_plan
from streaming.source.kafka import KafkaSettings, KafkaSource
from streaming.source.publisher import Publisher, partition_of
from streaming.source.records import Batch
from validation.quarantine import read_quarantine
from validation.violations import ViolationStore

PARTITIONS = 4
USERS = 40
PATIENCE_S = 90
HALF_DAY_US = 40_000_000_000
ZOMBIES_EVENTS = 2_000


class EmbeddedProcess:
    """Our own broker as a process with its topics on disk: it can be killed and started again like the real one."""

    kind = "embedded"

    def __init__(self, folder):
        self.folder = folder
        self.port = 0
        self._process = None

    @property
    def bootstrap_servers(self):
        return f"127.0.0.1:{self.port}"

    def start(self):
        command = [sys.executable, "-m", "featurestore.cli.main", "stream", "broker"]
        command += ["--data", str(self.folder / "topics"), "--port", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.port = int(self._process.stdout.readline().rpartition(":")[2])

    def kill(self):
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def stop(self):
        self.kill()


class RealKafka(ApacheKafka):
    """Apache Kafka, for as many fleets as there are, one after the other."""

    kind = "kafka"


class Fleet:
    """One topic, one store, several workers; `misfortune` does something to one of them."""

    def __init__(
        self,
        folder: Path,
        broker,
        seed: int,
        *,
        session_s: float = 10.0,
        events_url: str | None = None,
        events: int = 1_900,
    ) -> None:
        """`session_s`: how long a worker may be silent before others get its partitions.

        So many `events` fit into the half day before the clock. One that arrives after the reader's clock could be too
        late for a window that the reader, who reads a key as of its newest event, still has.

        With `events_url` events are there, and each life of a worker is on a machine that has nothing of its own.
        """
        self.environ = {} if events_url is None else {EVENTS_URL: events_url}
        self.machines = itertools.count()
        self.dice = random.Random(seed)
        self.session_s = session_s
        self.broker = broker
        self.letters = events_url is not None or (seed >= 10_000 and bool(seed % 2))
        """Whether workers write dead letters too: it costs time, so half of the nightly fleets do."""
        self.topic = f"orders-{os.getpid()}-{seed}-{time.monotonic_ns() % 10**6}"
        self.repo = folder / "feature_repo"
        self.repo.mkdir()
        self.server = EmbeddedServer(folder / "store").start()
        self.proxy = CuttingProxy(self.server.address)
        url = f"redis://127.0.0.1:{self.proxy.port}/0"
        (self.repo / "feature_store.yaml").write_text(
            f"project: shop\nregistry: ../data/registry.db\nonline_store:\n  connection: {url}\n"
        )
        self.settings = load_settings(self.repo, self.environ)
        self.direct = msgspec.structs.replace(self.settings.online, url=f"unix://{self.server.address}")
        self.client = connect(self.direct, folder)
        self.plan = shop_plan(second_view=True, keyed=True, topic=self.topic)
        PlanStore(self.client, "shop").publish(self.plan)
        self.offset_s = START_US / 1e6 - time.time()
        self.publisher = Publisher(
            KafkaSettings(broker.bootstrap_servers),
            self.topic,
            partitions=PARTITIONS,
            # Its events are years old: a broker that looks after its segments would delete them.
            configs={"retention.ms": "-1"},
        )
        self.events = shop_events(
            self.dice, 10**6, users=USERS, start_us=START_US - HALF_DAY_US, gap_us=2 * HALF_DAY_US // (events + 100)
        )
        self.arrival_us = 0
        self.workers: dict[str, subprocess.Popen] = {}
        self.old_store: Path | None = None
        self.happened: Counter[str] = Counter()
        self.sent: Counter[bytes] = Counter()
        """What the broker has confirmed, by message."""
        self.doubtful: Counter[bytes] = Counter()
        """What was in a transaction of which nobody knows whether it was committed."""
        self.metrics: dict[str, str] = {}
        self.reads: list[tuple[tuple[int, ...], list[int], list[int], dict[str, list]]] = []
        self._reading = threading.Event()
        self._reader = threading.Thread(target=self._read_on, daemon=True)
        self._reader.start()

    # What happens to it

    def produce(self, count: int) -> None:
        """Events of every kind, a few of them twice, a few in an order of their own."""
        events = list(itertools.islice(self.events, count))
        events += self.dice.sample(events, count // 20)
        if self.dice.random() < 0.5:
            self.dice.shuffle(events)
        for event in events:
            self.arrival_us = max(self.arrival_us, event.arrival_us)
            self.publisher.send(event.key, event.value, timestamp_us=event.arrival_us)
        assert self.arrival_us <= self.clock(), "more events than the fleet was made for"
        self.publisher.flush()  # or NotAcknowledged: all of them are in the topic from here on
        self.sent.update(event.value or b"" for event in events)

    def transactions(self) -> None:
        """A producer with transactions: some are committed, some aborted, and all leave holes in the offsets."""
        producer = KafkaProducer(
            bootstrap_servers=self.broker.bootstrap_servers,
            transactional_id=f"{self.topic}-{self.happened['transactions']}",
            request_timeout_ms=30_000,
        )
        try:
            producer.init_transactions()
            for number in range(4):
                producer.begin_transaction()
                values = []
                for _ in range(8):
                    user = self.dice.randrange(USERS)
                    value = shop_event(self.dice, self.dice.randrange(2**40), self.arrival_us, USERS)
                    value = msgspec.json.encode({**msgspec.json.decode(value), "user_id": user})
                    values.append(value)
                    partition = partition_of(str(user).encode(), PARTITIONS)
                    producer.send(
                        self.topic,
                        key=str(user).encode(),
                        value=value,
                        partition=partition,
                        timestamp_ms=self.arrival_us // 1000,
                    )
                producer.flush()
                if number % 2:
                    producer.abort_transaction()
                else:
                    self.doubtful.update(values)
                    producer.commit_transaction()
                    self.doubtful.subtract(values)
                    self.sent.update(values)
        finally:
            producer.close(timeout=10)

    def start(self, name: str, *more: str) -> subprocess.Popen:
        repo = self.repo
        if self.environ:
            repo = shutil.copytree(self.repo, self.repo.parent / f"machine{next(self.machines)}" / "feature_repo")
        command = [sys.executable, "-m", "featurestore.cli.main", "stream", "run", "--repo", str(repo)]
        command += ["--flush-s", "0.3", "--flush-rows", "200", "--batch", "100", "--compact-s", "0.5"]
        command += ["--dead-letters" if self.letters else "--no-dead-letters"]
        command += ["--clock-offset-s", str(self.offset_s), "--instance-id", name, *more]
        command += ["--session-timeout-s", str(self.session_s), "--metrics-port", "0"]
        environ = {**os.environ, **self.environ, "KAFKA_BOOTSTRAP_SERVERS": self.broker.bootstrap_servers}
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ)
        # By way of a pipe: the limit of file sizes is for the sinks, not for what the worker says.
        threading.Thread(target=self._log, args=(worker, name), daemon=True).start()
        self.workers[name] = worker
        return worker

    def _log(self, worker: subprocess.Popen, name: str) -> None:
        with (self.repo.parent / f"{name}.log").open("ab") as log, worker.stdout:
            for line in worker.stdout:
                if line.startswith(b"metrics: "):
                    self.metrics[name] = line.split()[1].decode()
                log.write(line)
                log.flush()

    def misfortune(self) -> str:
        """Do one harmful thing, drawn from all there are; its name."""
        name = self.dice.choice(
            ["kill", "kill", "stop", "rebalance", "store_killed", "store_rolled_back", "replies_cut", "broker_killed",
             "transactions", "disk_full"]
        )  # fmt: skip
        self.happened[name] += 1
        getattr(self, name)()
        return name

    def _one(self) -> str:
        return self.dice.choice(sorted(self.workers))

    def kill(self) -> None:
        name = self._one()
        self.workers[name].kill()
        self.workers[name].wait()
        self.start(name)

    def stop(self) -> None:
        worker = self.workers[self._one()]
        worker.send_signal(signal.SIGSTOP)
        time.sleep(self.dice.random())
        worker.send_signal(signal.SIGCONT)

    def zombie(self) -> int:
        """A worker is silent for longer than its session, then wakes up; how many commits of such were fenced so far.

        It is stopped while it has much to do. Meanwhile the others take its partitions over and commit all there is.
        """
        # One that holds nothing yet is missed by nobody.
        self._until(lambda: all(self._metric(name, 'partitions{state="claimed"}') for name in self.workers))
        before = self._controls()
        self.produce(ZOMBIES_EVENTS)
        self._until(lambda: self._controls() != before)
        name = self._one()
        refused = self._metric(name, "fenced_total")
        self.workers[name].send_signal(signal.SIGSTOP)
        epochs, ends = {place: each.epoch for place, each in self._controls().items()}, self._ends()
        # Others take over though there may be nothing left to do: then it has nothing to commit when it wakes up.
        self._until(lambda: {place: each.epoch for place, each in self._controls().items()} != epochs)
        self._until(lambda: all(each.offset == ends[at] for (_, at), each in self._controls().items()))
        self.workers[name].send_signal(signal.SIGCONT)
        time.sleep(1)
        self.happened["fenced"] += self._metric(name, "fenced_total") - refused
        return self.happened["fenced"]

    def _metric(self, name: str, of: str) -> int:
        """What a worker says of itself; 0 where it says nothing of that yet."""
        self._until(lambda: name in self.metrics)
        with urllib.request.urlopen(self.metrics[name], timeout=PATIENCE_S) as answer:
            lines = answer.read().decode().splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith(f"featurestore_stream_{of} "))

    def _controls(self) -> dict:
        """By view and partition; only of those that somebody has claimed."""
        store, found = ShardStore(self.client, self.clock), {}
        for view in self.plan.views:
            for each in store.registered("shop", view, 1):
                control = store.control(Shard("shop", view, 1, each.topic_id, each.partition))
                if control is not None:
                    found[view, each.partition] = control
        return found

    def _ends(self) -> dict[int, int]:
        source = KafkaSource(KafkaSettings(self.broker.bootstrap_servers), [self.topic], group=f"ends-{self.topic}")
        try:
            return {each.partition: end for each, end in source.end_offsets(source.partitions_of(self.topic)).items()}
        finally:
            source.close()

    def _until(self, holds) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def rebalance(self) -> None:
        """A third worker comes, and goes as it was asked to or by force."""
        if "c" in self.workers:
            worker = self.workers.pop("c")
            worker.send_signal(self.dice.choice((signal.SIGTERM, signal.SIGKILL)))
            worker.wait(PATIENCE_S)
        else:
            self.start("c")

    def store_killed(self) -> None:
        os.kill(self.server.pid, signal.SIGKILL)
        self._store_again()

    def store_rolled_back(self) -> None:
        """The store comes back with an older append-only file; the first time that file is put by.

        Not before every partition is claimed: workers stop at a store that forgot them, and are right to.
        """
        if self.old_store is None:
            store, deadline = ShardStore(self.client, self.clock), time.monotonic() + PATIENCE_S
            while any(self._offsets(store, view) is None for view in self.plan.views):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            self.old_store = self.repo.parent / "older"
            shutil.copytree(self.server.folder / "appendonlydir", self.old_store)
            return
        os.kill(self.server.pid, signal.SIGKILL)
        shutil.rmtree(self.server.folder / "appendonlydir")
        shutil.copytree(self.old_store, self.server.folder / "appendonlydir")
        self._store_again()

    def _store_again(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.server.start()
            except FeatureStoreError:
                # The dead one's lock is let go of in a moment.
                assert time.monotonic() < deadline
                time.sleep(0.05)
            else:
                return

    def replies_cut(self) -> None:
        for _ in range(3):
            self.proxy.cut(self.dice.randrange(1, 40))
            time.sleep(0.1)

    def broker_killed(self) -> None:
        self.broker.kill()
        time.sleep(self.dice.random() / 2)
        self.broker.start()

    def disk_full(self) -> None:
        """A worker can write no file larger than a page for a while."""
        pid = self.workers[self._one()].pid
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            time.sleep(0.6)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)

    # What must hold

    def _read_on(self) -> None:
        """Read online all the while; what was read is kept where nothing was committed meanwhile."""
        client = connect(self.direct, self.repo.parent)
        store = ShardStore(client, self.clock)
        reader = OnlineReader(client, self.plan, self.clock)
        features = tuple(field.name for field in self.plan.view("user_orders").features)
        projection = Projection(view="user_orders", features=features)
        dice = random.Random(0)
        while not self._reading.wait(0.02):
            users = dice.sample(range(USERS), 5)
            with contextlib.suppress(FeatureStoreError):
                before = self._offsets(store)
                result = reader.read([projection], {"user_id": users})
                if before is None or before != self._offsets(store):
                    continue
                whole = all(
                    status in (Status.PRESENT, Status.NULL_VALUE)
                    for column in result.columns
                    for status in column.statuses.tolist()
                )
                if whole:
                    values = {name: result.column("user_orders", name).values.to_pylist() for name in features}
                    self.reads.append((before, users, result.columns[0].instant_us.tolist(), values))
        client.close()

    def _offsets(self, store: ShardStore, view: str = "user_orders") -> tuple[int, ...] | None:
        found = store.registered("shop", view, 1)
        controls = [store.control(Shard("shop", view, 1, each.topic_id, each.partition)) for each in found]
        return None if len(found) < PARTITIONS or None in controls else tuple(each.offset for each in controls)

    def clock(self) -> int:
        return int((time.time() + self.offset_s) * 1e6)

    def finish(self) -> None:
        """Peace: everybody is gone, then one worker reads and stores what there is."""
        for worker in self.workers.values():
            worker.kill()
            worker.wait()
        self.workers.clear()
        worker = self.start("a", "--until-caught-up")
        assert worker.wait(PATIENCE_S) == 0, (self.repo.parent / "a.log").read_text()[-3000:]

    def verify(self) -> int:
        """Raises AssertionError for whatever is wrong; how many reads were compared."""
        expected, rejected, ends = self._recomputed()
        events = read_events(self.settings.event_log / self.topic)
        held = Counter(zip(events[PARTITION].to_pylist(), events[OFFSET].to_pylist(), strict=True))
        assert set(held.values()) == {1}, "the event log repeats offsets"
        names = expected.column_names
        order = [(PARTITION, "ascending"), (OFFSET, "ascending")]
        assert events.select(names).sort_by(order).to_pylist() == expected.sort_by(order).to_pylist()
        kept = read_quarantine(self.settings.quarantine, TOPIC)
        columns = [kept[name].to_pylist() for name in ("partition", "offset", "row", "reason")]
        assert list(zip(*columns, strict=True)) == sorted(rejected)
        self._verify_told(rejected)
        compared = 0
        store = ShardStore(self.client, self.clock)
        for view, (partition, end) in itertools.product(self.plan.views.values(), ends.items()):
            shard = Shard("shop", view.name, 1, partition.topic_id, partition.partition)
            control = store.control(shard)
            assert control is not None
            assert control.offset == end
            stored = {key: self.client.get(key) for key in self.client.keys(f"fs:tile:{shard.tag}:*")}
            audit = audit_shard(view, shard, events, end, stored, now_us=self.clock())
            assert audit.exact, f"{len(audit.different)} of {audit.compared} blocks differ in {shard}"
            compared += audit.compared
        assert compared > 20
        return self._verify_reads(events)

    def _recomputed(self):
        """What the topic holds, read by somebody else and judged in one go: accepted, rejected, ends."""
        source = KafkaSource(KafkaSettings(self.broker.bootstrap_servers), [self.topic], group=f"check-{self.topic}")
        try:
            partitions = source.partitions_of(self.topic)
            ends = source.end_offsets(partitions)
            records: dict = {partition: [] for partition in partitions}
            sought: set = set()
            positions = dict.fromkeys(partitions, 0)
            deadline = time.monotonic() + PATIENCE_S
            while any(positions[each] < ends[each] for each in partitions):
                assert time.monotonic() < deadline
                for change in source.drain_rebalances():
                    for partition in change.partitions:
                        if partition not in sought:
                            source.seek(partition, 0)
                            sought.add(partition)
                for batch in source.poll(100):
                    records[batch.source] += batch.records
                    positions[batch.source] = batch.position_after
        finally:
            source.close()
        pipeline = TopicPipeline(tuple(self.plan.views.values()), self.plan.contracts[TOPIC])
        tables, rejected = [], []
        self.broken: Counter = Counter()
        accounted(self.sent, self.doubtful, Counter(each.value or b"" for held in records.values() for each in held))
        for partition, held in records.items():
            judged = pipeline.judge(
                Batch(self.topic, partition.topic_id, partition.partition, held, 0, ends[partition])
            )
            assert len(judged.events) + len(judged.rejected) == len(held)
            self.broken.update(judged.warned)
            for item in judged.rejected:
                self.broken.update(item.rule_ids or [f"event_{item.reason}"])
            number = pa.array([partition.partition] * len(judged.events), pa.int32())
            tables.append(judged.events.append_column(PARTITION, number))
            rejected += [
                (partition.partition, item.record.offset, item.record.value or b"", item.reason)
                for item in judged.rejected
            ]
        return pa.concat_tables(tables), rejected, ends

    def _verify_told(self, rejected) -> None:
        """Each event that was set aside has a letter, each offset is in one report."""
        told = {one.rule_id: one.rows for one in ViolationStore(self.settings.violations).find()}
        assert told == self.broken
        if not self.letters:
            return
        letters = {
            tuple(int(dict(letter.headers)[f"featurestore-{name}"]) for name in ("partition", "offset"))
            for letter in read_topic(self.broker, f"{self.topic}.dead")
        }
        assert letters == {(partition, offset) for partition, offset, _, _ in rejected}

    def _verify_reads(self, events) -> int:
        """Each value that was read is that of the events below the offsets that the store was at."""
        aggregations = self.plan.view("user_orders").aggregations
        partitions, offsets = events[PARTITION].to_numpy(), events[OFFSET].to_numpy()
        for before, users, instants, values in self.reads:
            counted = events.filter(pa.array(offsets < pa.array(before).to_numpy()[partitions]))
            rows = {"user_id": users, "at": pa.array(instants, pa.int64())}
            expected = windowed_join(
                counted,
                pa.table(rows),
                keys={"user_id": "user_id"},
                event_ts="event_timestamp",
                entity_ts="at",
                aggregations=aggregations,
            )
            for name, found in values.items():
                assert found == expected[name].to_pylist(), f"{name} of users {users} at offsets {before}"
        return len(self.reads)

    def close(self) -> None:
        self._reading.set()
        self._reader.join()
        for worker in self.workers.values():
            worker.kill()
            worker.wait()
        self.publisher.close()
        self.client.close()
        self.proxy.close()
        self.server.stop()


def accounted(sent: Counter[bytes], doubtful: Counter[bytes], held: Counter[bytes]) -> None:
    """Everything that was confirmed is in the topic, once each time it was sent, and nothing else but what may be."""
    lost, more = sent - held, held - sent
    assert not lost, f"{lost.total()} events of {sent.total()} that the broker has confirmed are not in it"
    assert not more - doubtful, f"{(more - doubtful).total()} events are in the topic that nobody has sent"


def run(fleet: Fleet, *, rounds: int = 8, events: int = 200) -> None:
    """The life of a fleet: events come, misfortunes happen, then there is peace."""
    for name in ("a", "b"):
        fleet.start(name)
    fleet.produce(events)
    time.sleep(1.5)
    for _ in range(rounds):
        with contextlib.suppress(KafkaError):
            fleet.misfortune()
        fleet.produce(events)
        time.sleep(fleet.dice.random() * 0.4)
    fleet.finish()
