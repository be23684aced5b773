"""One round of the monitor: audits, objectives, alerts, and what broke on the way."""

from pathlib import Path

import pytest
from monitored import deployment, keep, plan, rides
from prometheus_client import generate_latest

from featurestore.config import Settings
from featurestore.errors import SourceError
from featurestore.monitor.alerts import Alert, Finding
from featurestore.monitor.causes import Cause
from featurestore.monitor.metrics import MonitorMetrics
from featurestore.monitor.round import Monitor
from featurestore.monitor.served import HOUR_US
from featurestore.monitor.skew_history import SkewHistory
from featurestore.monitor.workspace import workspace
from featurestore.plan import Plan

NOW = 1_700_000_000_000_000 // HOUR_US * HOUR_US + 30 * 60_000_000


class Collected:
    """A sink that keeps what it was told."""

    name = "collected"

    def __init__(self) -> None:
        self.told: list[Alert] = []

    def send(self, alert: Alert) -> None:
        self.told.append(alert)


def monitor(settings: Settings, sink: Collected, **more: object) -> Monitor:
    return Monitor(workspace(settings), settings.repo, lambda: NOW, sinks=[sink], **more)


@pytest.fixture
def made() -> Plan:
    return plan(rides(freshness_slo_s="120", arrival_slo_s="5"))


@pytest.fixture
def settings(tmp_path: Path, made: Plan) -> Settings:
    return deployment(tmp_path, made, NOW)


def test_a_good_hour_raises_nothing(settings: Settings, made: Plan) -> None:
    """Served values hold, are fresh, and came in time."""
    keep(settings, made, NOW - 3 * 60_000_000 + 120_000_000, 10.0, NOW - 60_000_000)
    sink = Collected()
    found = monitor(settings, sink).round(made)
    assert [(each.compared, each.differing) for each in found.audits] == [(1, {})]
    assert {each.objective.indicator: (each.good, each.total) for each in found.budgets} == {
        "freshness": (1, 1),
        "arrival": (1, 1),
    }
    assert sink.told == []


def test_a_value_that_nothing_explains_is_a_critical_alert(settings: Settings, made: Plan) -> None:
    """It names the feature, the owner and an example, and is in the history; the next round does not tell it again."""
    keep(settings, made, NOW - 60_000_000, 77.0, NOW - 60_000_000)
    sink = Collected()
    watch = monitor(settings, sink)
    watch.round(made)
    watch.round(made)
    [alert] = sink.told
    assert alert.finding.severity == "critical"
    assert alert.finding.owner == "team@example.org"
    assert all(text in alert.finding.detail for text in ("'driver': 1", "77.0", "10.0"))
    [audited] = SkewHistory(workspace(settings).skew).between(0, NOW)
    assert audited.differing == {Cause.UNKNOWN: 1}


def test_stale_values_burn_the_budget(settings: Settings, made: Plan) -> None:
    """Every answer of the hour is ten minutes old where two are allowed."""
    for ago in range(12):
        at_us = NOW - ago * 300_000_000
        keep(settings, made, at_us, 10.0, at_us - 600_000_000)
    sink = Collected()
    monitor(settings, sink).round(made)
    assert "slo:rides:freshness" in {alert.finding.key for alert in sink.told}


def test_a_check_that_breaks_is_told_and_the_others_go_on(settings: Settings, made: Plan) -> None:
    """A source that is gone: neither good nor bad data; what others look at is still looked at."""
    keep(settings, made, NOW - 60_000_000, 10.0, NOW - 60_000_000)
    (settings.repo / "rides.parquet").unlink()
    sink = Collected()
    drifted = Finding(key="drift:rides", severity="informative", title="drift", detail="")
    monitor(settings, sink, looks={"drift:": lambda _: [drifted]}).round(made)
    keys = {alert.finding.key for alert in sink.told}
    assert {"broken:skew audit", "broken:objectives of view rides", "drift:rides"} == keys


def test_a_look_that_breaks_ends_no_alert(settings: Settings, made: Plan) -> None:
    """Not knowing is not being well: the planted fault would close the alert."""
    answers: list[object] = [
        [Finding(key="drift:rides", severity="critical", title="d", detail="")],
        SourceError("torn"),
    ]

    def look(_: Plan) -> list[Finding]:
        answer = answers.pop(0)
        if isinstance(answer, SourceError):
            raise answer
        return answer

    watch = monitor(settings, Collected(), looks={"drift:": look})
    watch.round(made)
    watch.round(made)
    assert {alert.finding.key for alert in watch.book.open()} == {"drift:rides", "broken:drift"}


def test_late_rows_change_the_history(settings: Settings, made: Plan) -> None:
    """The hour is audited again: what was right turns out to have been without a late row."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from monitored import STAMP

    keep(settings, made, NOW - 60_000_000, 10.0, NOW - 60_000_000)
    watch = monitor(settings, Collected())
    assert [each.differing for each in watch.round(made).audits] == [{}]
    late = pa.table(
        {"driver": [1], "ts": pa.array([NOW - 60_000_000 - 0], STAMP), "made": pa.array([NOW], STAMP), "speed": [11.0]}
    )
    path = settings.repo / "rides.parquet"
    pq.write_table(pa.concat_tables([pq.read_table(path), late]), path)
    assert [each.differing for each in watch.round(made).audits] == [{Cause.CORRECTION: 1}]


def test_metrics_tell_the_last_round(settings: Settings, made: Plan) -> None:
    """Alerts by severity, budgets, and differences by cause."""
    keep(settings, made, NOW - 60_000_000, 77.0, NOW - 60_000_000)
    watch, metrics = monitor(settings, Collected()), MonitorMetrics()
    metrics.take(watch.round(made), watch.book.open(), NOW)
    told = generate_latest(metrics.registry).decode()
    assert 'featurestore_alerts{severity="critical"} 1.0' in told
    assert 'featurestore_skew_differing{cause="unknown"} 1.0' in told
    assert 'featurestore_error_budget_spent{indicator="freshness",view="rides"} 0.0' in told
