"""An alert is told once, again when it lasts or gets worse, and when it ends."""

import logging
from pathlib import Path

import msgspec
import pytest

from featurestore.errors import FeatureStoreError
from featurestore.monitor.alerts import AGAIN_US, KEPT, Alert, AlertBook, Finding, LogSink, SinkFailed

LATE = Finding(
    key="slo:rides:freshness", severity="informative", title="late", detail="5 s", owner="team", evidence="status"
)
WORSE = msgspec.structs.replace(LATE, severity="critical")


class Time:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_us = 1_000

    def __call__(self) -> int:
        return self.now_us


class Collected:
    """A sink that keeps what it was told, and fails as often as it is asked to."""

    def __init__(self, name: str = "collected", fails: int = 0) -> None:
        self.name, self.fails = name, fails
        self.told: list[Alert] = []

    def send(self, alert: Alert) -> None:
        if self.fails:
            self.fails -= 1
            raise SinkFailed("away")
        self.told.append(alert)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def book(tmp_path: Path, time: Time) -> AlertBook:
    return AlertBook(tmp_path / "alerts.json", time)


def test_a_condition_that_lasts_is_told_once_and_counted(book: AlertBook) -> None:
    """Found three times: one alert, told once, count 3."""
    sink = Collected()
    for _ in range(3):
        book.look("slo:", [LATE])
        book.tell([sink])
    assert [alert.finding for alert in sink.told] == [LATE]
    assert [alert.count for alert in book.open()] == [3]


def test_it_is_told_again_after_a_day(book: AlertBook, time: Time) -> None:
    """An open alert that nobody mended is not forgotten."""
    sink = Collected()
    for moment in (0, AGAIN_US - 1, AGAIN_US):
        time.now_us = 1_000 + moment
        book.look("slo:", [LATE])
        book.tell([sink])
    assert len(sink.told) == 2


def test_getting_critical_is_news(book: AlertBook) -> None:
    """The same condition, told as informative and then as critical; back to informative is none."""
    sink = Collected()
    for finding in (LATE, WORSE, LATE):
        book.look("slo:", [finding])
        book.tell([sink])
    assert [alert.finding.severity for alert in sink.told] == ["informative", "critical"]


def test_the_end_is_told_and_a_return_is_new(book: AlertBook) -> None:
    """Not found any more within its scope: ended; found again: it begins anew."""
    sink = Collected()
    for found in ([LATE], [], [LATE]):
        book.look("slo:", found)
        book.tell([sink])
    assert [(alert.is_open, alert.count) for alert in sink.told] == [(True, 1), (False, 1), (True, 1)]


def test_other_scopes_do_not_end_it(book: AlertBook) -> None:
    """A look at skew says nothing of freshness."""
    book.look("slo:", [LATE])
    assert book.look("skew:", []) == []
    assert [alert.finding.key for alert in book.open()] == [LATE.key]


def test_a_sink_that_fails_is_told_later_and_others_now(book: AlertBook) -> None:
    """At least once to each: the planted fault is a sink that is away for two rounds."""
    away, here = Collected("away", fails=2), Collected("here")
    book.look("slo:", [LATE])
    assert [book.tell([away, here]) for _ in range(3)] == [
        {"away": 0, "here": 1},
        {"away": 0, "here": 0},
        {"away": 1, "here": 0},
    ]


def test_critical_alerts_come_first(book: AlertBook) -> None:
    """Whatever their age."""
    book.look("slo:", [msgspec.structs.replace(WORSE, key="slo:a"), LATE])
    assert [alert.finding.severity for alert in book.open()] == ["critical", "informative"]


def test_ended_alerts_are_bounded(book: AlertBook) -> None:
    """The file grows with what is open, not with time."""
    book.look("x:", [msgspec.structs.replace(LATE, key=f"x:{number}") for number in range(KEPT + 50)])
    book.look("x:", [])
    book.look("x:", [])
    assert len(book.all()) == KEPT


def test_the_log_says_title_owner_and_evidence(book: AlertBook, caplog: pytest.LogCaptureFixture) -> None:
    """A critical alert is an error in the log."""
    book.look("slo:", [WORSE])
    with caplog.at_level(logging.INFO):
        book.tell([LogSink()])
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert all(text in record.getMessage() for text in ("late", "5 s", "team", "status"))


def test_a_torn_file_is_named(tmp_path: Path, time: Time) -> None:
    """With what to do about it."""
    (tmp_path / "alerts.json").write_text("{")
    with pytest.raises(FeatureStoreError, match=r"alerts\.json.*move the file away"):
        AlertBook(tmp_path / "alerts.json", time).open()
