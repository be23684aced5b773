"""Served answers are looked at again after the response: contracts judge a sample, and no request waits for it."""

import threading
import time
from types import SimpleNamespace

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from featurestore.api.again import Again, Served, Wanted
from featurestore.api.metrics import Metrics
from featurestore.api.served_rules import ContractLook
from featurestore.errors import DefinitionError
from featurestore.online.connection import StoreClient
from featurestore.online.result import OnlineResult
from featurestore.plan import Plan
from featurestore.plan_store import PlanStore
from validation.contract import Column, Contract, Rule
from validation.violations import ViolationStore

BETWEEN = "expect_column_values_to_be_between"
NOT_NULL = "expect_column_values_to_not_be_null"
PLAN = Plan(project="p", version=1, digest="", created_us=0)
ANSWER = Served(PLAN, "s", 0, None, None, OnlineResult(1, ()), {}, {}, tuple)


class Recorder:
    """A look that remembers, and waits or fails where told."""

    name = "recorder"

    def __init__(self, share=1.0, gate=None, fails=False):
        self.of, self.gate, self.fails, self.seen, self.finished = share, gate, fails, [], 0

    def share(self, plan, service):
        if isinstance(self.of, Exception):
            raise self.of
        return self.of

    def look(self, served):
        if self.gate is not None:
            self.gate.wait(10)
        if self.fails:
            raise ValueError("planted")
        self.seen.append(served)

    def rest(self):
        pass

    def finish(self):
        self.finished += 1


def count(registry, look, outcome):
    return registry.get_sample_value("featurestore_served_again_total", {"look": look, "outcome": outcome}) or 0


def test_an_answer_that_finds_the_queue_full_is_dropped_and_counted():
    """A look that hangs costs memory for so many answers and no more; looked at + dropped = wanted."""
    registry, gate = CollectorRegistry(), threading.Event()
    look = Recorder(gate=gate)
    again = Again([look], Metrics(registry), waiting=10, pause_s=0.001, budget=1.0)
    wanted = again.of(PLAN)
    again.start()
    started = time.perf_counter()
    for _ in range(100):
        wanted.put(wanted.by("s"), ANSWER)
    assert time.perf_counter() - started < 1, "putting must not wait for the look"
    gate.set()
    again.stop()
    assert look.finished == 1
    assert count(registry, "recorder", "looked_at") == len(look.seen) <= 11
    assert count(registry, "recorder", "dropped") == 100 - len(look.seen)


def test_a_look_that_fails_ends_neither_the_thread_nor_the_others():
    """Its failure is counted; the others see every answer."""
    registry = CollectorRegistry()
    bad, good = Recorder(fails=True), Recorder()
    bad.name = "bad"
    again = Again([bad, good], Metrics(registry), pause_s=0.001, budget=1.0)
    wanted = again.of(PLAN)
    again.start()
    for _ in range(5):
        wanted.put(wanted.by("s"), ANSWER)
    again.stop()
    assert (len(good.seen), count(registry, "bad", "failed")) == (5, 5)


def test_a_share_is_a_share_and_a_wrong_one_costs_no_answer():
    """A quarter of the answers is wanted; a look whose definition is wrong wants none."""
    wanted = Wanted(PLAN, [Recorder(0.25), Recorder(DefinitionError("planted"))], lambda *_: None)
    found = sum(bool(wanted.by("s")) for _ in range(4_000))
    assert 850 < found < 1_150


def test_a_look_takes_its_share_of_the_processor():
    """Looks that burn 10 ms each get through about a budget's worth in a second."""

    class Burner(Recorder):
        def look(self, served):
            until = time.thread_time() + 0.01
            while time.thread_time() < until:
                pass
            self.seen.append(served)

    look = Burner()
    again = Again([look], Metrics(CollectorRegistry()), pause_s=0.001, budget=0.1)
    wanted = again.of(PLAN)
    again.start()
    for _ in range(100):
        wanted.put(wanted.by("s"), ANSWER)
    time.sleep(1.0)
    seen = len(look.seen)
    again._queue.clear()
    again.stop()
    assert seen <= 12


def test_an_answer_that_nobody_wants_costs_next_to_nothing():
    """Asking who wants it takes under 5 us, with two looks of small shares."""
    wanted = Wanted(PLAN, [Recorder(1e-9), Recorder(1e-9)], lambda *_: None)
    best = min(_seconds(wanted) for _ in range(20))
    assert best / 1_000 < 5e-6


def _seconds(wanted):
    started = time.perf_counter()
    for _ in range(1_000):
        wanted.by("s")
    return time.perf_counter() - started


def contract(source, *rules, **columns):
    made = tuple(Column(name=name, logical_type=kind) for name, kind in columns.items())
    return Contract(name=source.replace(":", "_"), version="1", source=source, columns=made, rules=rules, owner="met")


def rule(rule_id, type_, column, modes=None, **arguments):
    return Rule(
        id=rule_id, expectation=type_, arguments={"column": column, **arguments}, mode="block", modes=modes or {}
    )


@pytest.fixture
def judged(project: SimpleNamespace, landed: StoreClient, tmp_path):
    """Serves with contracts; asks; gives the violations found and the metrics' registry."""

    def ask(*contracts, **body):
        plan = msgspec.structs.replace(project.make_plan(2), contracts={each.name: each for each in contracts})
        services = {"delay": msgspec.structs.replace(plan.services["delay"], tags={"contract_rate": "1"})}
        plan = msgspec.structs.replace(plan, services=services)
        PlanStore(landed, project.name).publish(plan)
        registry = CollectorRegistry()
        metrics, store = Metrics(registry), ViolationStore(tmp_path)
        look = ContractLook(store.record, metrics, lambda: project.NOW_US, writer="1")
        app = project.make_app(landed, metrics=metrics, again=Again([look], metrics, budget=1.0))
        with project.serve(app) as http:
            answer = http.post("/get-online-features", content=msgspec.json.encode(body))
            assert answer.status_code == 200, answer.text
        return {one.rule_id: one for one in store.find()}, registry

    return ask


def test_what_was_answered_is_held_to_the_contract_of_its_source(judged):
    """A rule about values that are there fails with its counts; a null rule of the source's says nothing of answers."""
    weather = contract(
        "weather",
        rule("cool", BETWEEN, "temp_f", max_value=30),
        rule("warm", BETWEEN, "temp_f", min_value=0),
        rule("there", NOT_NULL, "temp_f"),
        rule("elsewhere", BETWEEN, "pressure", min_value=0),
        temp_f="number",
        pressure="number",
    )
    body = {"feature_service": "delay", "entities": {"origin": ["EWR", "JFK"], "plane": [7, 7], "sched_hour": [1, 2]}}
    found, registry = judged(weather, **body)
    assert list(found) == ["cool"]
    cool = found["cool"]
    assert (cool.boundary, cool.origin, cool.rows, cool.evaluated) == ("online_serve", "service delay", 1, 1)
    assert cool.samples[0].values == {"temp_f": 39.02}
    assert {"view weather", "service delay"} <= set(cool.affected)
    sample = {"contract": "weather", "rule": "warm", "outcome": "kept"}
    assert registry.get_sample_value("featurestore_served_contract_rows_total", sample) == 1


def test_a_rule_with_a_mode_for_answers_is_held_whatever_it_says(judged):
    """`mode.online_serve` asks for it: the missing temperature of JFK is a violation then."""
    weather = contract("weather", rule("there", NOT_NULL, "temp_f", {"online_serve": "warn"}), temp_f="number")
    body = {"feature_service": "delay", "entities": {"origin": ["EWR", "JFK"], "plane": [7, 7], "sched_hour": [1, 2]}}
    found, _ = judged(weather, **body)
    assert (found["there"].rows, found["there"].mode) == (1, "warn")


def test_a_services_contract_is_about_what_goes_out(judged):
    """Computed features and missing values are its business; a plain request for the features is not."""
    delay = contract("service:delay", rule("headwind", NOT_NULL, "headwind"), headwind="number")
    body = {"feature_service": "delay", "entities": {"origin": ["EWR", "LGA"], "plane": [7, 7], "sched_hour": [1, 2]}}
    found, _ = judged(delay, **body)
    assert found["headwind"].rows == 1
    assert found["headwind"].count == 1
