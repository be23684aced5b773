"""Does a worker with a slow store or disk hold no more than it is allowed to, and lose nothing?"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featurestore.errors import StoreUnavailable
from featurestore.offline.event_log import read_events
from featurestore.plan_store import PlanStore
from streaming.claim_record import ClaimRecord
from streaming.commit import ShardStore
from streaming.embedded.server import EmbeddedBroker
from streaming.rehearsal import START_US, TOPIC, shop_event, shop_plan
from streaming.sinks import EventLog, Quarantine, RangeSink
from streaming.source.kafka import KafkaSettings, KafkaSource
from streaming.source.publisher import Publisher
from streaming.source.scripted import ScriptedLog, ScriptedSource
from streaming.worker import Pace, Worker
from validation.quarantine import read_quarantine

PATIENCE_S = 60


@pytest.fixture(scope="module")
def servers():
    with EmbeddedBroker() as running:
        yield str(running.address)


class Away(ShardStore):
    """A store that does not answer claims and commits while it is `away`."""

    away = False

    def claim(self, *arguments, **options):
        self._refuse()
        return super().claim(*arguments, **options)

    def commit(self, *arguments, **options):
        self._refuse()
        return super().commit(*arguments, **options)

    def _refuse(self):
        if self.away:
            raise StoreUnavailable("scripted: away")


def made(source, store, folder, **options):
    plan = shop_plan()
    storages = [EventLog(folder / "event_log"), Quarantine(folder / "quarantine", plan.contracts)]
    return Worker(
        source,
        store,
        [RangeSink(storage, lambda: START_US, flush_rows=50) for storage in storages],
        plan,
        views=tuple(plan.views.values()),
        record=ClaimRecord(folder / "event_log"),
        clock=lambda: START_US,
        new_token=lambda: "t",
        **options,
    )


class Watched(ScriptedSource):
    """Notes what is handed over while the store is away."""

    handed = 0

    def poll(self, timeout_ms):
        batches = super().poll(timeout_ms)
        self.handed += sum(len(batch.records) for batch in batches)
        return batches


def test_nothing_is_fetched_that_nobody_can_take(store, tmp_path):
    """While the store is away partitions are paused: polled all the same, but nothing comes; afterwards all does."""
    log = ScriptedLog()
    log.create(TOPIC, partitions=2, topic_id="id-1")
    for number in range(200):
        log.append(TOPIC, number % 2, shop_event(random.Random(number), number, START_US, 20), timestamp_us=START_US)
    source = Watched(log, [TOPIC], max_records=10)
    away = Away(store, lambda: START_US)
    worker = made(source, away, tmp_path, sleep=lambda seconds: None)
    worker.turn(0)
    away.away = True
    worker.turn(0)
    handed = source.handed
    for _ in range(20):
        worker.turn(0)
    assert source.handed == handed
    away.away = False
    worker.run(lambda: False, until_caught_up=True)
    assert len(read_events(tmp_path / "event_log" / TOPIC)) == 200
    assert worker.counters["strays"] == 0


@pytest.mark.kafka
def test_a_worker_whose_store_is_away_for_long_stays_in_its_group(store, tmp_path, servers):
    """It goes on polling: one that did not for `max_poll_interval_ms` would be put out, and others with it."""
    publisher = Publisher(KafkaSettings(servers), TOPIC, partitions=2)
    for number in range(50):
        publisher.send(b"%d" % number, shop_event(random.Random(number), number, START_US, 20), timestamp_us=START_US)
    publisher.flush()
    settings = KafkaSettings(servers, session_timeout_ms=1_000, max_poll_interval_ms=1_000)
    source, rebalances = KafkaSource(settings, [TOPIC], group="patient"), []
    drain = source.drain_rebalances

    def noted():
        rebalances.extend(drained := drain())
        return drained

    source.drain_rebalances = noted
    away = Away(store, lambda: START_US)
    worker = made(source, away, tmp_path, pace=Pace(longest_backoff_s=0.1))
    deadline = time.monotonic() + PATIENCE_S
    while worker.counters["events"] < 50:
        assert time.monotonic() < deadline
        worker.turn(50)
    away.away, known, until = True, len(rebalances), time.monotonic() + 3
    publisher.send(b"50", shop_event(random.Random(0), 50, START_US, 20), timestamp_us=START_US)
    publisher.flush()
    while time.monotonic() < until:
        worker.turn(50)
    away.away = False
    while worker.counters["events"] < 51:
        assert time.monotonic() < deadline
        worker.turn(50)
    assert rebalances[known:] == []
    worker.leave()
    publisher.close()


def _most_memory(folder, online_url, servers, topic, memory_mb):
    """A worker process that never writes a file for any other reason reads all of a topic; its peak, in bytes."""
    repo = folder / "feature_repo"
    repo.mkdir(parents=True)
    (repo / "feature_store.yaml").write_text(
        f"project: shop\nregistry: ../data/registry.db\nonline_store:\n  connection: {online_url}\n"
    )
    command = [sys.executable, "-m", "featurestore.cli.main", "stream", "run", "--repo", str(repo)]
    command += ["--flush-s", "3600", "--flush-rows", "1000000", "--until-caught-up", "--no-dead-letters"]
    command += ["--memory-mb", str(memory_mb), "--clock-offset-s", str(START_US / 1e6 - time.time())]
    environ = {**os.environ, "KAFKA_BOOTSTRAP_SERVERS": servers}
    worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environ)
    most_kb = 0
    while worker.poll() is None:
        # Its own high water: what wait4 tells begins with what the process had before it became a worker, ours.
        lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
        most_kb = max(most_kb, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
        time.sleep(0.02)
    assert worker.returncode == 0
    assert len(read_quarantine(folder / "data" / "quarantine", TOPIC)) == 1_600
    return most_kb * 1024


@pytest.mark.slow
@pytest.mark.kafka
def test_the_setting_of_memory_bounds_the_process(store, online_url, tmp_path, servers):
    """Of 80 MB that wait in the topic, a worker that may keep 16 MB takes far less than one that may keep them all."""
    topic = "much"
    PlanStore(store, "shop").publish(shop_plan(topic=topic))
    publisher = Publisher(KafkaSettings(servers), topic, partitions=2)
    noise = random.Random(0)
    for number in range(1_600):
        publisher.send(b"%d" % number, noise.randbytes(50_000), timestamp_us=START_US)
    publisher.flush()
    publisher.close()
    all_of_it = _most_memory(tmp_path / "all", online_url, servers, topic, 4_096)
    plan = PlanStore(store, "shop").load()
    store.flushall()
    PlanStore(store, "shop").publish(plan)
    bounded = _most_memory(tmp_path / "bounded", online_url, servers, topic, 16)
    assert all_of_it - bounded > 50 << 20, (all_of_it >> 20, bounded >> 20)
