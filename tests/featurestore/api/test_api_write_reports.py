"""Does a write that is refused reach those who look after its contract?"""

import threading

import msgspec
import pytest

from featurestore.api.faults import Refused
from featurestore.api.limits import Limits
from featurestore.api.writes import WriteRequest, Writes, appender
from featurestore.online.writer import RowWriter
from featurestore.write_reports import REPORT_AGE_US, WriteReports
from validation.contract import Column, Contract, Rule
from validation.violations import ViolationStore

CONTRACT = Contract(
    name="weather",
    version="2.0.0",
    source="weather",
    owner="met-office",
    columns=(
        Column(name="origin", logical_type="string"),
        Column(name="temp_f", logical_type="number", classification="confidential"),
        Column(name="wind_mph", logical_type="number"),
        Column(name="note", logical_type="string"),
    ),
    rules=(
        Rule(
            id="warm",
            expectation="expect_column_values_to_be_between",
            arguments={"column": "temp_f", "min_value": 0},
            mode="block",
        ),
        Rule(
            id="calm",
            expectation="expect_column_values_to_be_between",
            arguments={"column": "wind_mph", "max_value": 50},
            mode="warn",
        ),
        Rule(
            id="noted",
            expectation="expect_column_values_to_not_be_null",
            arguments={"column": "note"},
            mode="observe",
        ),
        Rule(
            id="mostly_calm",
            expectation="expect_column_values_to_be_between",
            arguments={"column": "wind_mph", "max_value": 20, "mostly": 0.5},
            mode="block",
        ),
    ),
)


class Clock:
    now_us = 0

    def __call__(self) -> int:
        return self.now_us


@pytest.fixture
def clock(project) -> Clock:
    found = Clock()
    found.now_us = project.NOW_US
    return found


@pytest.fixture
def written(landed, project, tmp_path, clock):
    """Writes over the tests' plan with a contract, what they report to, and the store behind."""
    store = ViolationStore(tmp_path / "violations")
    reports = WriteReports(store.record, clock, writer="w1")
    plan = msgspec.structs.replace(project.make_plan(), contracts={"weather": CONTRACT})
    writes = Writes(
        plan, lambda view: RowWriter(landed, plan.project, view, clock=clock), appender(tmp_path), clock, Limits(),
        reports.judged,
    )  # fmt: skip

    def write(*temperatures: float, wind: float = 1.0, note: str | None = "n") -> None:
        rows = len(temperatures)
        df = {
            "origin": ["EWR"] * rows, "temp_f": list(temperatures), "wind_mph": [wind] * rows, "station": [1] * rows,
            "note": [note] * rows, "event_timestamp": ["2024-06-01T11:59:00Z"] * rows,
        }  # fmt: skip
        writes.write(WriteRequest(feature_view_name="weather", df=df))

    return write, reports, store


def test_refused_writes_become_one_violation(written) -> None:
    """Counted over all rows that were judged, masked, with what it reaches; told by age, not by request."""
    write, reports, store = written
    write(1.0, 2.0)
    for _ in range(3):
        with pytest.raises(Refused):
            write(5.0, -40.0)
    reports.rest()
    assert store.find() == []
    reports.finish()
    (one,) = store.find()
    assert (one.boundary, one.producer, one.rule_id, one.origin) == (
        "online_write", "met-office", "warm", "writes to view weather",
    )  # fmt: skip
    assert (one.count, one.rows, one.evaluated, one.allowed) == (1, 3, 8, 0)
    assert {sample.values["temp_f"] for sample in one.samples} == {"***"}
    assert "view weather" in one.affected
    assert "service delay" in one.affected
    assert one.action == (
        "refused: of requests with rows that break a rule of mode quarantine or block nothing was written"
    )
    assert one.event_window == ("2024-06-01T11:59:00+00:00", "2024-06-01T11:59:00+00:00")


def test_rules_that_observe_or_warn_are_told_and_the_rows_are_written(written) -> None:
    """Each in its mode; a rule about a share of many rows says nothing of a request."""
    write, reports, store = written
    write(1.0, 2.0, wind=99.0, note=None)
    write(3.0)
    reports.finish()
    found = {one.rule_id: one for one in store.find()}
    assert {(rule, one.mode, one.rows, one.evaluated) for rule, one in found.items()} == {
        ("calm", "warn", 2, 3), ("noted", "observe", 2, 3),
    }  # fmt: skip
    assert {one.action for one in found.values()} == {"none: the rows were written"}


def test_they_are_told_when_they_are_due(written, clock) -> None:
    """And folded with what was told before."""
    write, reports, store = written
    for _ in range(2):
        with pytest.raises(Refused):
            write(-1.0)
        clock.now_us += REPORT_AGE_US
        reports.rest()
    assert [(one.count, one.rows) for one in store.find()] == [(2, 2)]


def test_good_writes_are_told_to_nobody(written) -> None:
    """No violation, no file."""
    write, reports, store = written
    write(1.0)
    reports.finish()
    assert not store.folder.exists()


def test_writers_at_once_are_all_counted(written) -> None:
    """Requests are answered by threads."""
    write, reports, store = written

    def refused() -> None:
        for _ in range(20):
            with pytest.raises(Refused):
                write(-1.0)

    threads = [threading.Thread(target=refused) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reports.finish()
    assert store.find()[0].rows == 80
