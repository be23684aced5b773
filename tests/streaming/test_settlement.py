"""Definitions hold from when `apply` says so: with workers running, stopped, behind, and for two applies in a row."""

import random
import threading
import time

import msgspec
import pytest

from featurestore.cli.settings import settings_of
from featurestore.offline.event_log import OFFSET, read_events
from featurestore.plan_store import PlanStore
from streaming.assembly import build_sinks, build_worker
from streaming.cluster import kafka_source
from streaming.embedded.server import EmbeddedBroker
from streaming.rehearsal import START_US, shop_event, shop_plan
from streaming.settlement import settle_plan
from streaming.source.kafka import KafkaSettings
from streaming.source.publisher import Publisher
from streaming.worker import News, Pace
from validation.quarantine import read_quarantine

_PATIENCE_S = 30


@pytest.fixture(scope="module")
def broker():
    with EmbeddedBroker() as running:
        yield str(running.address)


class Deployment:
    """A topic of one partition, plans that differ in the greatest amount that is accepted, and workers."""

    def __init__(self, folder, store, broker, topic):
        self.settings = settings_of(folder)
        self.store, self.topic, self.version = store, topic, 0
        self.publisher = Publisher(KafkaSettings(broker), topic, partitions=1)
        self.sent = 0
        self.plan = None

    def plan_of(self, top):
        """The next plan, whose contract has amounts of at most `top`."""
        self.version += 1
        plan = shop_plan(topic=self.topic)
        [name] = plan.contracts
        contract = plan.contracts[name]
        rules = [
            msgspec.structs.replace(rule, arguments={**rule.arguments, "max_value": top})
            if rule.id == "amount_range"
            else rule
            for rule in contract.rules
        ]
        contracts = {name: msgspec.structs.replace(contract, rules=tuple(rules))}
        return msgspec.structs.replace(plan, version=self.version, contracts=contracts)

    def apply(self, top):
        """What `featurestore apply` does once it has compiled a plan."""
        self.plan = self.plan_of(top)
        PlanStore(self.store, "shop").publish(self.plan)
        return list(settle_plan(self.settings, self.plan))

    def send(self, amount, count=1):
        for _ in range(count):
            order = msgspec.json.decode(shop_event(random.Random(0), self.sent, START_US, 5))
            value = msgspec.json.encode({**order, "amount": amount})
            self.publisher.send(b"1", value, timestamp_us=START_US)
            self.sent += 1
        self.publisher.flush()

    def worker(self, plan=None):
        plan = plan or self.plan
        views = tuple(plan.views.values())
        source, _ = kafka_source(self.settings, plan, views, None)
        clock = lambda: START_US  # noqa: E731
        sinks = build_sinks(self.settings, plan, views, clock=clock, flush_s=0.0, flush_rows=1)
        return build_worker(
            self.settings, plan, views, source, sinks, client=self.store, clock=clock, pace=Pace(poll_ms=10)
        )

    def drain(self, plan=None):
        self.worker(plan).run(lambda: False, until_caught_up=True)

    def verdicts(self):
        """By offset whether the event was accepted."""
        accepted = read_events(self.settings.event_log / self.topic)[OFFSET].to_pylist()
        rejected = read_quarantine(self.settings.quarantine)["offset"].to_pylist()
        return [offset in accepted for offset in sorted([*accepted, *rejected])]


@pytest.fixture
def deployment(tmp_path, online_url, store, broker, monkeypatch, request):
    folder = tmp_path / "feature_repo"
    folder.mkdir()
    (folder / "feature_store.yaml").write_text(
        f"project: shop\nregistry: ../data/registry.db\nonline_store:\n  connection: {online_url}\n"
    )
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", broker)
    made = Deployment(folder, store, broker, f"orders-{abs(hash(request.node.name))}")
    yield made
    made.publisher.close()


def test_what_arrives_after_apply_is_judged_by_it_while_no_worker_runs(deployment):
    """The worker comes later, finds events of before and after, and judges each by what was in force when it came."""
    deployment.apply(100)
    deployment.send(50)
    [line] = deployment.apply(20)
    assert "judged by plan version 2" in line
    deployment.send(50)
    deployment.send(10)
    deployment.drain()
    assert deployment.verdicts() == [True, False, True]


def test_a_worker_that_is_behind_judges_what_it_has_not_read_by_what_was_in_force(deployment):
    """What arrived before `apply` stays judged by the definitions of then, however late it is read."""
    deployment.apply(100)
    deployment.send(50)
    deployment.drain()
    deployment.send(50, count=3)
    deployment.apply(20)
    deployment.send(50)
    deployment.drain()
    assert deployment.verdicts() == [True, True, True, True, False]


def test_two_applies_in_a_row_each_hold_for_what_arrived_between(deployment):
    """Nobody consumed in between; the middle definitions judge what arrived while they were in force."""
    deployment.apply(100)
    deployment.send(50)
    deployment.apply(20)
    deployment.send(50)
    deployment.apply(60)
    deployment.send(50)
    deployment.drain()
    assert deployment.verdicts() == [True, False, True]


def test_a_running_worker_goes_by_what_apply_settled_before_it_knows_the_plan(deployment):
    """The worker still has the former plan; the first event after `apply` is judged by the next one."""
    deployment.apply(100)
    deployment.send(50)
    worker, done = deployment.worker(), threading.Event()
    running = threading.Thread(target=worker.run, args=(done.is_set,))
    running.start()
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while worker.counters["events"] < 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        deployment.apply(20)
        deployment.send(50)
        while worker.counters["events"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        done.set()
        running.join()
    assert deployment.verdicts() == [True, False]


def test_where_no_broker_answers_a_worker_settles_on_an_idle_poll(deployment, monkeypatch):
    """`apply` says so; a worker without events settles it, and the next event is judged by it."""
    deployment.apply(100)
    worker = deployment.worker()
    deployment.send(50)
    while worker.counters["events"] < 1:
        worker.turn(10)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    deployment.settings = settings_of(deployment.settings.repo)
    [line] = deployment.apply(20)
    assert "from the next poll of a worker on" in line
    for _ in range(30):
        worker.turn(10)
    deployment.send(50)
    while worker.counters["events"] < 2:
        worker.turn(10)
    worker.leave()
    assert deployment.verdicts() == [True, False]


def test_a_worker_that_takes_a_plan_up_settles_it_before_it_polls(deployment):
    """A plan that reached the worker alone holds for the next event, though nothing came in between."""
    deployment.apply(100)
    deployment.send(50)
    worker = deployment.worker()
    while worker.counters["events"] < 1:
        worker.turn(10)
    plan = deployment.plan_of(20)
    views = tuple(plan.views.values())
    sinks = build_sinks(deployment.settings, plan, views, clock=lambda: START_US, flush_s=0.0, flush_rows=1)
    worker.adopt(News(plan, views, sinks))
    worker.turn(0)
    deployment.send(50)
    while worker.counters["events"] < 2:
        worker.turn(10)
    worker.leave()
    assert deployment.verdicts() == [True, False]


def test_an_apply_that_changes_no_verdict_asks_no_broker(deployment, monkeypatch):
    """Nothing is settled where nothing changes: no line, and no broker is needed."""
    deployment.apply(100)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    deployment.settings = settings_of(deployment.settings.repo)
    assert deployment.apply(100) == []
