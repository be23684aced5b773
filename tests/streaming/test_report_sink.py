"""Is every offset in exactly one report, whatever crashes, and is a report small, masked and right?"""

import random
from collections import Counter

import msgspec
import pytest

from streaming.messages import MALFORMED
from streaming.pipeline import TopicPipeline
from streaming.rehearsal import START_US, TOPIC, shop_contract, shop_events, shop_plan
from streaming.report_sink import Reports, count, reached
from streaming.sinks import RangeSink, SinkUnavailable
from streaming.source.records import Batch, Record, TopicPartition
from validation.contract import Column
from validation.tally import Tally
from validation.violations import ViolationStore

PARTITION = TopicPartition(TOPIC, "id-1", 0)
PLAN = shop_plan()
VIEWS = tuple(PLAN.views.values())
COLUMNS = tuple(
    Column(name=each.name, logical_type=each.logical_type, classification="pii" if each.name == "page" else "")
    for each in shop_contract().columns
)
CONTRACT = msgspec.structs.replace(shop_contract(), owner="shop-team", columns=COLUMNS)
PIPELINE = TopicPipeline(VIEWS, CONTRACT)
RECORDS = [
    Record(0, offset, event.key, event.value, event.arrival_us)
    for offset, event in enumerate(shop_events(random.Random(7), 600))
]


def judged(first, last):
    """Offsets `first` to before `last`, one in eight broken in some way."""
    return PIPELINE.judge(Batch(TOPIC, "id-1", 0, tuple(RECORDS[first:last]), first, last))


def sink(folder, store=ViolationStore):
    reports = Reports(store(folder), {TOPIC: CONTRACT}, reached(PLAN, VIEWS), lambda: START_US)
    return RangeSink(reports, lambda: START_US)


def expected(first, last):
    """Rule id -> events that broke it, one by one."""
    found = Counter()
    for offset in range(first, last):
        one = judged(offset, offset + 1)
        for item in one.rejected:
            found.update(item.rule_ids or [f"event_{item.reason}"])
        found.update(one.warned)
    return dict(found)


def told(folder):
    return {one.rule_id: one for one in ViolationStore(folder).find()}


def test_a_report_counts_what_each_event_broke(tmp_path):
    """By rule, of all events that were judged, with what was done about it and what it reaches."""
    reports = sink(tmp_path)
    reports.open(PARTITION, 0)
    for first in range(0, 600, 50):
        reports.add(judged(first, first + 50))
    reports.flush(PARTITION)
    found = told(tmp_path)
    assert {name: one.rows for name, one in found.items()} == expected(0, 600)
    assert {(one.evaluated, one.allowed, one.count) for one in found.values()} == {(600, 0, 1)}
    malformed = found[f"event_{MALFORMED}"]
    assert (malformed.severity, malformed.mode, malformed.boundary) == ("critical", "quarantine", "event")
    assert (malformed.producer, malformed.origin, malformed.origin_id, malformed.origin_partition) == (
        *("shop-team", TOPIC),
        *("id-1", 0),
    )
    assert malformed.origin_range == (0, 599)
    assert malformed.affected == ("view user_orders",)
    assert malformed.replay == f"featurestore quarantine replay {TOPIC}"
    assert malformed.event_window is not None


def test_a_column_that_is_personal_is_masked_in_every_sample(tmp_path):
    """In those of rules, and in what a message that could not be read is said to hold."""
    reports = sink(tmp_path)
    reports.open(PARTITION, 0)
    reports.add(judged(0, 600))
    reports.flush(PARTITION)
    found = told(tmp_path)
    assert {sample.values["page"] for sample in found["page_path"].samples} == {"***"}
    assert {sample.values["found"] for sample in found["event_malformed"].samples} == {"***"}
    assert b"/p/" not in (tmp_path / f"{TOPIC}.json").read_bytes()


def lives(folder, store=ViolationStore):
    """Three lives of a worker: the first reports and loses the hint of its cursor, the second stores nothing."""
    first = sink(folder, store)
    first.open(PARTITION, 0)
    first.add(judged(0, 300))
    first.flush(PARTITION)
    for hint in (folder / "_stream" / TOPIC / "_cursors").iterdir():
        hint.unlink()
    second = sink(folder, store)
    second.add(judged(second.open(PARTITION, 0), 400))
    third = sink(folder, store)
    third.add(judged(third.open(PARTITION, 0), 600))
    third.flush(PARTITION)


def test_a_crash_repeats_and_loses_no_offset(tmp_path):
    """Also where the store was written and the cursor's hint was not."""
    lives(tmp_path)
    assert {name: one.rows for name, one in told(tmp_path).items()} == expected(0, 600)


def test_a_store_that_forgets_how_far_it_is_would_be_caught(tmp_path):
    """The planted fault: counts written without the offset beside them are counted again."""

    class Forgetful(ViolationStore):
        def record(self, report, *, again=False, stretch=None):
            return super().record(msgspec.structs.replace(report, report_id="x"), again=True)

    lives(tmp_path, Forgetful)
    assert {name: one.rows for name, one in told(tmp_path).items()} != expected(0, 600)


def test_an_owner_that_was_overtaken_reports_nothing(tmp_path):
    """Both read the same offsets; the slower one learns of it and claims again."""
    slow, quick = sink(tmp_path), sink(tmp_path)
    for each in (slow, quick):
        each.open(PARTITION, 0)
        each.add(judged(0, 300))
    quick.flush(PARTITION)
    with pytest.raises(SinkUnavailable, match="up to 300"):
        slow.flush(PARTITION)
    assert {name: one.rows for name, one in told(tmp_path).items()} == expected(0, 300)
    assert slow.open(PARTITION, 0) == 300


def test_sound_events_leave_no_report_and_are_not_read_again(tmp_path):
    """The cursor moves past what nothing is told of."""
    clean = [record for record in RECORDS if not PIPELINE.judge(_alone(record)).rejected]
    reports = sink(tmp_path)
    reports.open(PARTITION, 0)
    sound = [each for each in clean if not PIPELINE.judge(_alone(each)).marked][:10]
    moved = tuple(msgspec.structs.replace(each, offset=number) for number, each in enumerate(sound))
    reports.add(PIPELINE.judge(Batch(TOPIC, "id-1", 0, moved, 0, 10)))
    reports.flush(PARTITION)
    assert told(tmp_path) == {}
    assert sink(tmp_path).open(PARTITION, 0) == 10


def _alone(record):
    return Batch(TOPIC, "id-1", 0, (record,), record.offset, record.offset + 1)


def test_a_rule_about_most_events_is_told_by_others():
    """Its share is judged over windows of arrival; here it would be told twice."""
    rules = [msgspec.structs.replace(CONTRACT.rules[4], arguments={"column": "amount", "max_value": 1, "mostly": 0.9})]
    tally = Tally(msgspec.structs.replace(CONTRACT, rules=tuple(rules)))
    tally.accepted(judged(0, 100).offsets, judged(0, 100).ts_us)
    tally.broke([rules[0].id], 0, {"amount": 2})
    assert tally.report(report_id="r", now_us=0, origin=TOPIC) is None


def test_a_million_violations_make_a_small_report():
    """Counts grow, samples do not."""
    tally = Tally(CONTRACT)
    for offset in range(1_000_000):
        tally.set_aside("contract", "", ("amount_range",), offset, {"amount": -1}, START_US)
    report = tally.report(report_id="r", now_us=0, origin=TOPIC)
    assert report is not None
    assert (report.violations[0].failed, len(report.violations[0].samples)) == (1_000_000, 5)
    assert len(report.encode()) < 4_000


def test_a_topic_without_a_contract_is_reported_too(tmp_path):
    """To nobody but those who see everything."""
    pipeline = TopicPipeline(VIEWS)
    tally = Tally(msgspec.structs.replace(CONTRACT, rules=(), owner=""))
    count(pipeline.judge(Batch(TOPIC, "id-1", 0, tuple(RECORDS[:100]), 0, 100)), tally)
    report = tally.report(report_id="r", now_us=0, origin=TOPIC)
    assert report is not None
    assert report.producer == ""
    reports = RangeSink(Reports(ViolationStore(tmp_path), {}, {}, lambda: 0), lambda: 0)
    reports.open(PARTITION, 0)
    reports.add(pipeline.judge(Batch(TOPIC, "id-1", 0, tuple(RECORDS[:100]), 0, 100)))
    reports.flush(PARTITION)
    assert {(one.source, one.producer) for one in ViolationStore(tmp_path).find()} == {(TOPIC, "")}
