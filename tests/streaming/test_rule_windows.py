"""Rules about many events of a topic are told by windows of arrival: once, whoever reads them."""

import random

import msgspec

from streaming.pipeline import TopicPipeline
from streaming.rehearsal import START_US, TOPIC, shop_contract, shop_events, shop_plan
from streaming.report_sink import reached
from streaming.rule_windows import RuleWindows
from streaming.source.records import Batch, Record
from validation.contract import Rule
from validation.violations import ViolationStore

PLAN = shop_plan()
VIEWS = tuple(PLAN.views.values())
SECOND = 1_000_000
RULES = (
    Rule(id="page_once", expectation="expect_column_values_to_be_unique", arguments={"column": "page"}, mode="warn"),
    Rule(
        id="page_mostly",
        expectation="expect_column_values_to_be_in_set",
        arguments={"column": "page", "value_set": ["nowhere"], "mostly": 0.5},
        mode="block",
    ),
)
CONTRACT = msgspec.structs.replace(shop_contract(), owner="shop-team", rules=(*shop_contract().rules, *RULES))
PIPELINE = TopicPipeline(VIEWS, CONTRACT)
RECORDS = [
    Record(0, offset, event.key, event.value, START_US + offset * SECOND)
    for offset, event in enumerate(shop_events(random.Random(7), 600))
]


def judged(first, last):
    return PIPELINE.judge(Batch(TOPIC, "id-1", 0, tuple(RECORDS[first:last]), first, last))


def worker(folder, heard=None):
    count = (lambda *told: heard.append(told)) if heard is not None else (lambda *_: None)
    windows = RuleWindows(
        ViolationStore(folder), reached(PLAN, VIEWS), lambda: START_US, counted=count, window_us=60 * SECOND
    )
    return windows.judged


def told(folder):
    return {one.rule_id: one for one in ViolationStore(folder).find()}


def test_each_window_is_told_with_its_offsets_and_counted(tmp_path):
    """Nine whole minutes have ended; every failing one is folded into one violation with its rows."""
    heard = []
    hear = worker(tmp_path, heard)
    for first in range(0, 600, 35):
        hear(judged(first, min(first + 35, 600)))
    once = told(tmp_path)["page_once"]
    assert heard.count((TOPIC, "page_once", "failed")) == once.count
    assert (once.boundary, once.producer, once.origin, once.origin_partition) == ("event", "shop-team", TOPIC, 0)
    assert once.action == "none: every row passed"
    assert set(told(tmp_path)) == {"page_once", "page_mostly"}


def test_polls_and_owners_change_nothing(tmp_path):
    """However the log is cut, and whoever replays it after a crash, the same windows are told, each once."""
    alone, many = tmp_path / "alone", tmp_path / "many"
    worker(alone)(judged(0, 600))
    for _ in range(2):
        hear = worker(many)
        for first in range(0, 600, 7):
            hear(judged(first, min(first + 7, 600)))
    assert {name: (one.rows, one.count) for name, one in told(many).items()} == {
        name: (one.rows, one.count) for name, one in told(alone).items()
    }


def test_a_topic_without_such_rules_costs_nothing(tmp_path):
    """No window is held for it."""
    pipeline = TopicPipeline(VIEWS, shop_contract())
    windows = RuleWindows(ViolationStore(tmp_path), {}, lambda: START_US)
    windows.judged(pipeline.judge(Batch(TOPIC, "id-1", 0, tuple(RECORDS[:50]), 0, 50)))
    assert list(windows._windows.values()) == [None]
