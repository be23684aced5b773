"""Do the metrics say what happened, and health and readiness what is so?"""

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from featurestore.plan_store import PlanStore
from streaming.claim_record import ClaimRecord
from streaming.health import HealthServer, Pulse, not_ready
from streaming.judged import Judged
from streaming.metrics import MeasuredStore, StreamMetrics
from streaming.rehearsal import START_US, TOPIC, shop_events, shop_plan
from streaming.sinks import EventLog, Quarantine, RangeSink
from streaming.source.kafka import KafkaSettings
from streaming.source.publisher import Publisher
from streaming.source.scripted import Crash, ScriptedLog, ScriptedSource
from streaming.standing import Standing
from streaming.worker import Pace, Worker

RULE = "amount_range"


def samples(text):
    """(name, labels) -> value of an exposition."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(found, name, **labels):
    """The sum of a metric's samples that carry these labels."""
    return sum(value for (own, held), value in found.items() if own == name and labels.items() <= dict(held).items())


class Shop:
    """A worker over a scripted topic, with metrics."""

    def __init__(self, client, folder):
        self.log = ScriptedLog()
        self.log.create(TOPIC, partitions=2, topic_id="id-1")
        self.now_us = START_US
        self.registry = CollectorRegistry()
        self.metrics = StreamMetrics(self.registry, lambda: self.now_us)
        self.client, self.folder = client, folder

    def send(self, count):
        for event in shop_events(random.Random(3), count, start_us=self.now_us):
            self.log.append(TOPIC, len(event.key or b"") % 2, event.value, key=event.key, timestamp_us=event.arrival_us)
            self.now_us = event.arrival_us

    def worker(self, **options):
        plan = shop_plan()
        storages = [EventLog(self.folder / "event_log"), Quarantine(self.folder / "quarantine", plan.contracts)]
        worker = Worker(
            ScriptedSource(self.log, [TOPIC], max_records=25),
            MeasuredStore(self.client, lambda: self.now_us, self.metrics.committed),
            [RangeSink(storage, lambda: self.now_us, **options) for storage in storages],
            plan,
            views=tuple(plan.views.values()),
            record=ClaimRecord(self.folder / "event_log"),
            clock=lambda: self.now_us,
            new_token=lambda: "t",
            pace=Pace(poll_ms=0),
            sleep=lambda seconds: None,
            on_committed=self.metrics.judged,
        )
        self.metrics.follow(worker)
        return worker

    def exposed(self):
        return samples(generate_latest(self.registry).decode())


@pytest.fixture
def shop(store, tmp_path):
    return Shop(store, tmp_path)


def test_every_event_is_accounted_for_by_reason_and_rule(shop):
    """events = accepted + rejected; contract rejections name their rules."""
    shop.send(400)
    shop.worker().run(lambda: False, until_caught_up=True)
    found = shop.exposed()
    events = total(found, "featurestore_stream_events_total", topic=TOPIC)
    accepted = total(found, "featurestore_stream_accepted_total")
    assert events == 400 == accepted + total(found, "featurestore_stream_rejected_total")
    assert total(found, "featurestore_stream_rejected_total", reason="malformed") > 0
    assert total(found, "featurestore_stream_rules_broken_total", rule=RULE, effect="quarantine") > 0
    assert total(found, "featurestore_stream_rules_broken_total", rule="page_path", effect="warn") > 0
    assert total(found, "featurestore_stream_arrival_to_commit_seconds_count") == accepted
    commits = total(found, "featurestore_stream_commits_total")
    assert total(found, "featurestore_stream_commit_seconds_count") == commits > 10


def test_lag_ages_and_sinks_follow_the_worker(shop):
    """What is still to be read, how old it is, and what is not in files yet."""
    shop.send(200)
    worker = shop.worker(flush_rows=10**6, flush_age_us=10**15)
    assert not_ready(worker.standing()) is not None
    worker.turn(0)
    found = shop.exposed()
    done = total(found, "featurestore_stream_events_total")
    assert total(found, "featurestore_stream_lag_records") == 200 - done > 0
    assert total(found, "featurestore_stream_lag_seconds") > 0
    assert total(found, "featurestore_stream_sink_behind_records", sink="event_log") == done
    while worker.turn(0):
        pass
    assert not_ready(worker.standing()) is None
    found = shop.exposed()
    assert total(found, "featurestore_stream_lag_records") == 0 == total(found, "featurestore_stream_lag_seconds")
    assert total(found, "featurestore_stream_event_age_seconds", view="user_orders", partition="0") >= 0
    worker._sinks[0].flush_all()
    found = shop.exposed()
    assert total(found, "featurestore_stream_sink_behind_records", sink="event_log") == 0
    assert total(found, "featurestore_stream_sink_behind_records", sink="quarantine") == 200
    worker.leave()


def test_counts_go_on_when_a_worker_follows_another(shop):
    """A new Plan starts a new worker in the same process; counters never go back."""
    shop.send(50)
    shop.worker().run(lambda: False, until_caught_up=True)
    before = total(shop.exposed(), "featurestore_stream_claims_total")
    shop.worker().run(lambda: False, until_caught_up=True)
    assert total(shop.exposed(), "featurestore_stream_claims_total") == 2 * before == 4


def test_failures_make_a_worker_unready_until_a_good_round(shop):
    """Why is told; a round that works makes it ready again."""
    shop.send(10)
    for partition in (0, 1):
        shop.log.accident(TOPIC, partition, Crash())
    worker = shop.worker()
    reasons = {not_ready(worker.standing())}
    for _ in range(6):
        worker.turn(0)
        reasons.add(not_ready(worker.standing()))
    assert {"the consumer group has not assigned anything yet", None} <= reasons
    assert any("failed in a row" in (reason or "") for reason in reasons)
    assert total(shop.exposed(), "featurestore_stream_retries_total") == 2
    worker.leave()


def ask(address, path):
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_a_loop_that_hangs_is_unhealthy(shop):
    """Alive is who comes round; unknown paths are told what there is."""
    now = [0.0]
    pulse = Pulse(lambda: now[0])
    standing = [None]
    with HealthServer("127.0.0.1", 0, registry=shop.registry, pulse=pulse, standing=lambda: standing[0]) as server:
        assert ask(server.address, "/health")[0] == 200
        assert ask(server.address, "/ready")[0] == 503
        assert ask(server.address, "/nothing")[0] == 404
        standing[0] = Standing(plan_version=3, partitions=(), to_claim=0, assigned=True, failures=0, counters={})
        status, body = ask(server.address, "/ready")
        assert (status, json.loads(body)) == (200, {"status": "ready", "plan_version": 3, "partitions": 0})
        now[0] = 61.0
        assert ask(server.address, "/health")[0] == 503
        pulse.beat()
        assert ask(server.address, "/health")[0] == 200


def test_what_sinks_hold_is_bounded_by_memory(shop):
    """Past the bound everything is stored, whatever rows and age say; nothing is read on before that."""
    shop.send(300)
    worker = shop.worker(flush_rows=10**6, flush_age_us=10**15)
    worker._pace = Pace(poll_ms=0, buffered_bytes=4_000)
    held = 0
    while worker.turn(0):
        held = max(held, *(sink.size_bytes for sink in worker._sinks))
    assert 0 < held <= 4_000
    assert len(list((shop.folder / "event_log").rglob("*.parquet"))) > 2
    worker.leave()


@pytest.mark.kafka
def test_a_process_answers_and_leaves_when_asked(tmp_path, online_url, store, broker):
    """The real process on a broker: ready, its metrics true, and SIGTERM ends it with code 0 and all in files."""
    folder = tmp_path / "feature_repo"
    folder.mkdir()
    (folder / "feature_store.yaml").write_text(
        f"project: shop\nregistry: ../data/registry.db\nonline_store:\n  connection: {online_url}\n"
    )
    topic = broker.topic(2)
    PlanStore(store, "shop").publish(shop_plan(topic=topic))
    publisher = Publisher(KafkaSettings(broker.bootstrap_servers), topic)
    for event in shop_events(random.Random(0), 300, start_us=START_US):
        publisher.send(event.key, event.value, timestamp_us=event.arrival_us)
    publisher.flush()
    publisher.close()
    command = [sys.executable, "-m", "featurestore.cli.main", "stream", "run", "--repo", str(folder)]
    command += ["--metrics-port", "0", "--flush-s", "600", "--clock-offset-s", str(START_US / 1e6 - time.time())]
    environ = {**os.environ, "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ) as worker:
        try:
            address = worker.stderr.readline().strip().removeprefix("metrics: http://").removesuffix("/metrics")
            deadline = time.monotonic() + 60
            events, found = 0, None
            while events < 300:
                assert time.monotonic() < deadline, found
                time.sleep(0.05)
                found = samples(ask(address, "/metrics")[1])
                events = total(found, "featurestore_stream_events_total", topic=topic)
            assert ask(address, "/health")[0] == 200
            assert ask(address, "/ready")[0] == 200
            assert total(found, "featurestore_stream_claims_total") == 2
            assert not list((tmp_path / "data" / "event_log").rglob("*.parquet"))
            worker.send_signal(signal.SIGTERM)
            out, _ = worker.communicate(timeout=30)
        finally:
            worker.kill()
    assert worker.returncode == 0
    assert out.startswith("300 events: ")
    assert list((tmp_path / "data" / "event_log").rglob("*.parquet"))


def test_the_observer_sees_every_batch_once_it_is_committed(shop):
    """What is counted is what took effect: offsets without a gap or repeat."""
    shop.send(120)
    worker = shop.worker()
    seen = []
    worker._on_committed = seen.append
    worker.run(lambda: False, until_caught_up=True)
    assert all(isinstance(judged, Judged) for judged in seen)
    offsets = [(each.batch.partition, record.offset) for each in seen for record in each.batch.records]
    assert len(offsets) == len(set(offsets)) == 120
