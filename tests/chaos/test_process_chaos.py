"""Does a real worker process that is asked to leave leave nothing undone?"""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from cutting_proxy import CuttingProxy
from topics import read_topic

from featurestore.config import load_settings
from featurestore.offline.event_log import OFFSET, PARTITION, read_events
from featurestore.online.keys import Shard
from featurestore.plan_store import PlanStore
from streaming.audit import audit_shard
from streaming.commit import ShardStore
from streaming.embedded.server import EmbeddedBroker
from streaming.pipeline import TopicPipeline
from streaming.rehearsal import START_US, TOPIC, shop_events, shop_plan
from streaming.source.kafka import KafkaSettings, KafkaSource
from streaming.source.publisher import Publisher
from streaming.source.records import Batch, Record
from validation.profile.store import ProfileStore
from validation.quarantine import read_quarantine
from validation.violations import ViolationStore

PARTITIONS = 4
PATIENCE_S = 60
LOCAL = {"profiles"}
"""What a worker keeps in the data folder of its machine, where events are in an object store."""


@pytest.fixture
def broker():
    with EmbeddedBroker() as running:
        yield str(running.address)


class Deployment:
    """A feature repo with the shop's plan in force, its topic, and worker processes."""

    def __init__(self, folder, online_url, store, servers, environ=None):
        self.environ = environ or {}
        self.repo = folder / "feature_repo"
        self.repo.mkdir()
        (self.repo / "feature_store.yaml").write_text(
            f"project: shop\nregistry: ../data/registry.db\nonline_store:\n  connection: {online_url}\n"
        )
        self.settings = load_settings(self.repo, self.environ)
        self.client = store
        self.servers = servers
        self.plan = shop_plan(second_view=True, keyed=True)
        PlanStore(store, "shop").publish(self.plan)
        self.offset_s = START_US / 1e6 - time.time()
        self.publisher = Publisher(KafkaSettings(servers), TOPIC, partitions=PARTITIONS)
        self.sent = 0
        self.records = []

    def produce(self, events):
        for event in events:
            self.publisher.send(event.key, event.value, timestamp_us=event.arrival_us)
            self.records.append(Record(0, self.sent, event.key, event.value, event.arrival_us))
            self.sent += 1
        self.publisher.flush()

    def move(self):
        """From now on everything is on another machine, whose data folder is empty."""
        repo = self.repo.parent / "next" / "feature_repo"
        shutil.copytree(self.repo, repo)
        self.repo, self.settings = repo, load_settings(repo, self.environ)
        assert not self.settings.data_dir.exists()

    def start(self, name, *more, fault=""):
        """A worker; `fault` is code that it runs first."""
        program = ["-c", f"import sys; from featurestore.cli.main import main\n{fault}\nsys.exit(main())"]
        command = [sys.executable, *program, "stream", "run", "--repo", str(self.repo)]
        command += ["--flush-s", "0.3", "--flush-rows", "200", "--batch", "100", *more]
        command += ["--clock-offset-s", str(self.offset_s), "--instance-id", name]
        environ = {**os.environ, **self.environ, "KAFKA_BOOTSTRAP_SERVERS": self.servers}
        with (self.repo.parent / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environ)

    def finish(self, name, fault=""):
        """How a worker that leaves when it has caught up sums up what it did."""
        worker = self.start(name, "--until-caught-up", fault=fault)
        code, told = worker.wait(PATIENCE_S), (self.repo.parent / f"{name}.log").read_text()
        assert code == 0, told
        return next(line for line in reversed(told.splitlines()) if " events: " in line)

    def verify(self):
        source = KafkaSource(KafkaSettings(self.servers), [TOPIC], group="nobody")
        partitions = source.partitions_of(TOPIC)
        ends = source.end_offsets(partitions)
        source.close()
        assert sum(ends.values()) == self.sent
        events = read_events(self.settings.event_log / TOPIC)
        held = Counter(zip(events[PARTITION].to_pylist(), events[OFFSET].to_pylist(), strict=True))
        assert set(held.values()) == {1}
        kept = read_quarantine(self.settings.quarantine, TOPIC)
        assert len(events) + len(kept) == self.sent
        compared = 0
        for view in self.plan.views.values():
            for partition, end in ends.items():
                shard = Shard("shop", view.name, 1, partition.topic_id, partition.partition)
                assert ShardStore(self.client, lambda: 0).control(shard).offset == end
                stored = {key: self.client.get(key) for key in self.client.keys(f"fs:tile:{shard.tag}:*")}
                now_us = int((time.time() + self.offset_s) * 1e6)
                audit = audit_shard(view, shard, events, end, stored, now_us=now_us)
                assert audit.exact, f"{len(audit.different)} of {audit.compared} differ in {shard}"
                compared += audit.compared
        assert compared > 20
        return len(events)


@pytest.fixture
def deployment(tmp_path, online_url, store, broker):
    deployment = Deployment(tmp_path, online_url, store, broker)
    yield deployment
    deployment.publisher.close()


def test_a_worker_that_is_asked_to_leave_commits_stores_and_leaves(deployment):
    """SIGTERM: the batch is finished, files are written, the exit code is 0, nothing is read twice."""
    deployment.produce(shop_events(random.Random(1), 500, start_us=START_US - 20_000 * 500_000))
    worker = deployment.start("a", "--flush-s", "60", "--flush-rows", "100000")
    deadline = time.monotonic() + PATIENCE_S
    store = ShardStore(deployment.client, lambda: 0)
    while time.monotonic() < deadline:
        offsets = [
            control.offset
            if (control := store.control(Shard("shop", "page_orders", 1, entry.topic_id, entry.partition)))
            else 0
            for entry in store.registered("shop", "page_orders", 1)
        ]
        if sum(offsets) == deployment.sent:
            break
        time.sleep(0.05)
    assert not (deployment.settings.event_log / TOPIC / "day=2023-11-14").exists()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(PATIENCE_S) == 0
    assert deployment.verify() > 100


@pytest.fixture
def remote(tmp_path, online_url, store, broker, in_bucket):
    """A deployment whose events are in an object store."""
    deployment = Deployment(tmp_path, online_url, store, broker, {"FEATURESTORE_EVENTS_URL": str(in_bucket)})
    yield deployment
    deployment.publisher.close()


def letters_of(deployment):
    """Partition and offset of what each dead letter is about."""
    found = read_topic(SimpleNamespace(bootstrap_servers=deployment.servers), f"{TOPIC}.dead")
    headers = [dict(each.headers) for each in found]
    return Counter(tuple(int(each[f"featurestore-{name}"]) for name in ("partition", "offset")) for each in headers)


def told_of(deployment):
    """How many rows broke each rule, by what is told, and by all events judged in one go."""
    told = {one.rule_id: one.rows for one in ViolationStore(deployment.settings.violations).find()}
    judged = TopicPipeline(tuple(deployment.plan.views.values()), deployment.plan.contracts[TOPIC]).judge(
        Batch(TOPIC, "", 0, deployment.records, 0, deployment.sent)
    )
    broken = Counter(judged.warned)
    for item in judged.rejected:
        broken.update(item.rule_ids or [f"event_{item.reason}"])
    return told, broken


def test_workers_that_are_killed_are_followed_on_other_machines(remote, in_bucket):
    """kill -9, over and over, while files are put and compacted: a machine goes on that has nothing of its own.

    Event log and quarantine have each offset once, tiles are exact, each event that was set aside is in one report, and
    has a letter at least.
    """
    dice = random.Random(5)
    events = shop_events(dice, 1_500, start_us=START_US - 20_000 * 500_000)
    for _ in range(3):
        remote.produce(itertools.islice(events, 500))
        worker = remote.start("a", "--compact-s", "0.5")
        deadline = time.monotonic() + PATIENCE_S
        while not list(in_bucket.glob("event_log/*/*/*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(dice.random())
        worker.kill()
        worker.wait()
        remote.move()
    remote.finish("a")
    assert remote.verify() > 1_000
    told, broken = told_of(remote)
    assert told == broken
    letters, kept = letters_of(remote), read_quarantine(remote.settings.quarantine, TOPIC)
    assert set(letters) == set(zip(kept["partition"].to_pylist(), kept["offset"].to_pylist(), strict=True))
    local = {each.name for each in remote.settings.data_dir.iterdir()}
    assert local <= LOCAL


FORGETFUL = """
from featurestore.config import Settings
Settings.{name} = property(lambda self: self.data_dir / "{name}")
"""


def profiles_of(deployment):
    """What is in each file of the profiles of events."""
    store = ProfileStore(deployment.settings.data_dir / "profiles")
    return {path.name: repr(store.of_file(path)) for path in store.paths("event")}


@pytest.mark.parametrize("forgets", [None, "dead_letters", "violations"])
def test_whoever_takes_over_on_another_machine_repeats_nothing(remote, forgets):
    """Nothing is read or told again where the machine before was left in order; its profiles are made of the event log.

    Planted faults: cursors in the data folder of the machine that is gone make the next one begin at the beginning.
    """
    fault = "" if forgets is None else FORGETFUL.format(name=forgets)
    remote.produce(shop_events(random.Random(7), 150, start_us=START_US - 20_000 * 500_000))
    assert remote.finish("a", fault).startswith("150 events: ")
    before = letters_of(remote), told_of(remote), profiles_of(remote)
    remote.move()
    assert remote.finish("a", fault).startswith("0 events: ") is (forgets is None)
    assert (letters_of(remote) == before[0]) is (forgets != "dead_letters")
    if forgets is None:
        assert (told_of(remote), profiles_of(remote)) == before[1:]
        assert before[2]


@pytest.mark.parametrize("fault", ["", "import streaming.claim_record as c; c.ClaimRecord.holds = lambda *_: False"])
def test_a_store_that_lost_its_state_is_known_on_another_machine(remote, fault):
    """Which shards were ever written is told beside the events; without that (the fault) zero would be served."""
    remote.produce(shop_events(random.Random(8), 60, start_us=START_US - 20_000 * 500_000))
    remote.finish("a")
    remote.client.flushall()
    PlanStore(remote.client, "shop").publish(remote.plan)
    remote.move()
    worker = remote.start("a", "--until-caught-up", fault=fault)
    assert (worker.wait(PATIENCE_S) != 0) is (not fault)
    assert ("lost" in (remote.repo.parent / "a.log").read_text()) is (not fault)


def test_a_store_that_answers_slowly_costs_time_alone(tmp_path, embedded_server, store, broker):
    """Each reply 200 ms late: nobody dies, commits twice, or is put out of the group, whose session is 6 s."""
    proxy = CuttingProxy(embedded_server.address)
    deployment = Deployment(tmp_path, f"redis://127.0.0.1:{proxy.port}/0", store, broker)
    dice = random.Random(3)
    deployment.produce(shop_events(dice, 120, start_us=START_US - 20_000 * 500_000))
    try:
        worker = deployment.start("a", "--session-timeout-s", "6")
        deadline = time.monotonic() + PATIENCE_S
        while sum(offsets_of(deployment)) < deployment.sent:
            assert worker.poll() is None, (tmp_path / "a.log").read_text()[-3000:]
            assert time.monotonic() < deadline, (tmp_path / "a.log").read_text()[-3000:]
            time.sleep(0.1)
        proxy.delay_s = 0.2
        epochs = [control.epoch for control in controls_of(deployment)]
        slow_since = time.monotonic()
        while time.monotonic() < slow_since + 7:
            deployment.produce(shop_events(dice, 40, start_us=START_US))
            while sum(offsets_of(deployment)) < deployment.sent:
                assert worker.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert [control.epoch for control in controls_of(deployment)] == epochs, "somebody claimed again"
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(PATIENCE_S) == 0
        assert deployment.verify() > 80
    finally:
        proxy.delay_s = 0.0
        worker.kill()
        worker.wait()
        proxy.close()
        deployment.publisher.close()


def controls_of(deployment, view="page_orders"):
    shards = ShardStore(deployment.client, lambda: 0)
    found = [Shard("shop", view, 1, each.topic_id, each.partition) for each in shards.registered("shop", view, 1)]
    return [control for shard in sorted(found, key=lambda each: each.partition) if (control := shards.control(shard))]


def offsets_of(deployment):
    return [control.offset for control in controls_of(deployment)]


@pytest.mark.parametrize(("delay_ms", "least_s", "most_s"), [(0, 0.0, 1.5), (1_000, 0.3, 2.5)])
def test_a_lone_event_is_readable_within_the_delay_that_was_allowed(deployment, delay_ms, least_s, most_s):
    """At once without one; held back for a fuller batch with one, but no longer than it says, and a margin."""
    events = shop_events(random.Random(6), 40, start_us=START_US - 20_000 * 500_000)
    deployment.produce(itertools.islice(events, 20))
    worker = deployment.start("a", "--max-delay-ms", str(delay_ms))
    try:
        deadline = time.monotonic() + PATIENCE_S
        while sum(offsets_of(deployment)) < deployment.sent:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(2 * delay_ms / 1000)  # the fetch that is under way begins anew
        took = []
        for _ in range(3):
            deployment.produce(itertools.islice(events, 1))
            sent = time.monotonic()
            while sum(offsets_of(deployment)) < deployment.sent:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            took.append(time.monotonic() - sent)
        assert max(took) <= most_s
        # A fetch may have waited already when an event comes: not each one is held back for as long.
        assert max(took) >= least_s
    finally:
        worker.kill()
        worker.wait()
