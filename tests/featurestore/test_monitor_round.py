"""One round of the monitor: audits, objectives, alerts, and what broke on the way."""

from pathlib import Path
from shutil import rmtree

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from monitored import STAMP, deployment, keep, plan, rides
from prometheus_client import generate_latest

from featurestore.config import Settings
from featurestore.dataset.build import Request, build
from featurestore.dataset.rebuild import retriever
from featurestore.errors import SourceError
from featurestore.monitor.alerts import Alert, Finding
from featurestore.monitor.causes import Cause
from featurestore.monitor.kept_profiles import read_kept
from featurestore.monitor.metrics import MonitorMetrics
from featurestore.monitor.model_drift import last_check
from featurestore.monitor.profiles import read_arrived
from featurestore.monitor.round import Monitor
from featurestore.monitor.served import HOUR_US
from featurestore.monitor.skew_history import SkewHistory
from featurestore.monitor.workspace import workspace
from featurestore.plan import Plan
from featurestore.promises_kept import kept
from featurestore.write_profiles import WriteProfiles
from validation.contract import Column, Contract
from validation.profile.store import ProfileStore
from validation.promise import Promise

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
    drifted = Finding(key="other:rides", severity="informative", title="drift", detail="")
    monitor(settings, sink, looks={"other:": lambda _: [drifted]}).round(made)
    keys = {alert.finding.key for alert in sink.told}
    broken = {"broken:skew audit of view rides", "broken:objectives of view rides", "broken:profile of source rides"}
    assert keys == broken | {"other:rides"}


def test_a_look_that_breaks_ends_no_alert(settings: Settings, made: Plan) -> None:
    """Not knowing is not being well: the planted fault would close the alert."""
    answers: list[object] = [
        [Finding(key="other:rides", severity="critical", title="d", detail="")],
        SourceError("torn"),
    ]

    def look(_: Plan) -> list[Finding]:
        answer = answers.pop(0)
        if isinstance(answer, SourceError):
            raise answer
        return answer

    watch = monitor(settings, Collected(), looks={"other:": look})
    watch.round(made)
    watch.round(made)
    assert {alert.finding.key for alert in watch.book.open()} == {"other:rides", "broken:other"}


def test_late_rows_change_the_history(settings: Settings, made: Plan) -> None:
    """The hour is audited again: what was right turns out to have been without a late row."""
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


def train(settings: Settings, made: Plan) -> None:
    """A training set of the service: 300 rides of speeds around 10."""
    rng = np.random.default_rng(0)
    at = pa.array(NOW - 86_400_000_000 + np.arange(300) * 1_000_000, pa.int64()).cast(STAMP)
    rows = pa.table({"driver": range(1_000, 1_300), "ts": at, "made": at, "speed": rng.normal(10, 1, 300)})
    path = settings.repo / "rides.parquet"
    pq.write_table(pa.concat_tables([pq.read_table(path), rows]), path)
    request = Request(name="first", features=("service:eta",), full_feature_names=True)
    entity_rows = pa.table({"driver": range(1_000, 1_300), "event_timestamp": at})
    build(
        request, entity_rows, plan=made, repo=settings.repo, folder=workspace(settings).datasets,
        retrieve=retriever(made, settings.repo, "event_timestamp"), clock=lambda: NOW,
    )  # fmt: skip


@pytest.mark.parametrize(("shift", "drifted"), [(0.0, False), (1.0, True)])
def test_answers_are_held_to_the_training_set(settings: Settings, made: Plan, shift: float, drifted: bool) -> None:
    """A shift of a standard deviation in what is served is told with feature, size and owner; none raises nothing."""
    train(settings, made)
    rng = np.random.default_rng(1)
    speeds = rng.normal(10 + shift, 1, 200).tolist()
    keep(settings, made, NOW - 60_000_000, speeds, NOW - 60_000_000, drivers=range(200))
    watch = monitor(settings, Collected())
    watch.round(made)
    found = [alert.finding for alert in watch.book.open() if alert.finding.key.startswith("drift:")]
    assert [(each.view, each.feature, each.severity) for each in found] == [("rides", "speed", "informative")] * drifted
    checked = last_check(workspace(settings).drift, "eta")
    assert checked is not None
    assert (checked.dataset, checked.rows) == ("first", 200)


def test_drivers_that_are_asked_again_and_again_do_not_drift(settings: Settings, made: Plan) -> None:
    """Twenty drivers, each thirty times: what is served counts as twenty, and says so."""
    train(settings, made)
    alarms = 0
    for seed in range(8):
        speeds = np.repeat(np.random.default_rng(seed).normal(10, 1, 20), 30).tolist()
        rmtree(workspace(settings).served, ignore_errors=True)
        keep(settings, made, NOW - 60_000_000, speeds, NOW - 60_000_000, drivers=[*np.repeat(range(20), 30).tolist()])
        watch = monitor(settings, Collected())
        watch.round(made)
        checked = last_check(workspace(settings).drift, "eta")
        assert checked is not None
        assert (checked.rows, round(checked.report.findings[0].counted_current)) == (600, 20)
        alarms += checked.report.drifted
    assert alarms <= 2


def served_by_hour(settings: Settings) -> dict[int | None, int]:
    """How many answers the kept profiles count, by hour."""
    store = ProfileStore(workspace(settings).profiles)
    [baseline] = {path.parent.name for path in store.paths("served")}
    return {each.hour_us: each.rows for each in store.read(boundary="served", baseline=baseline)}


def test_an_hour_keeps_its_answers_while_the_window_moves_past_it(settings: Settings, made: Plan) -> None:
    """The window begins within an hour: what it has left is not all that there was."""
    train(settings, made)
    hour_us = NOW // HOUR_US * HOUR_US
    for minute in range(0, 60, 10):
        keep(settings, made, hour_us + minute * 60_000_000, [10.0] * 5, hour_us)
    now_us = hour_us + HOUR_US
    watch = Monitor(workspace(settings), settings.repo, lambda: now_us, sinks=[Collected()])
    for _ in range(4):
        watch.round(made)
        assert served_by_hour(settings) == {hour_us: 30}
        now_us += 24 * HOUR_US - 25 * 60_000_000 if now_us == hour_us + HOUR_US else 10 * 60_000_000
    checked = last_check(workspace(settings).drift, "eta")
    assert checked is not None
    assert 0 < checked.rows < 30


def test_answers_whose_file_comes_late_change_the_history_of_their_hour(settings: Settings, made: Plan) -> None:
    """A process that could not write its file for hours; also where the window is shorter than that."""
    made = plan(rides(), drift_window_h="1")
    train(settings, made)
    hour_us = NOW // HOUR_US * HOUR_US
    keep(settings, made, NOW, [10.0] * 5, NOW)
    now_us = hour_us + HOUR_US
    watch = Monitor(workspace(settings), settings.repo, lambda: now_us, sinks=[Collected()])
    watch.round(made)
    assert served_by_hour(settings) == {hour_us: 5}
    now_us += 2 * HOUR_US
    keep(settings, made, NOW + 1, [11.0] * 3, NOW)
    watch.round(made)
    assert served_by_hour(settings) == {hour_us: 8}


def test_what_arrived_is_profiled_by_the_hour_and_late_rows_change_it(settings: Settings, made: Plan) -> None:
    """The source's rows of the last hours; a row that is there in the next round counts too."""
    watch, store = monitor(settings, Collected()), ProfileStore(workspace(settings).profiles)
    watch.round(made)
    hour_us = NOW // HOUR_US * HOUR_US

    def rows() -> list[tuple[int | None, int]]:
        found = read_arrived(store, made.views["rides"], 0, NOW)
        return [(each.hour_us, each.rows) for each in found if each.feature == "speed"]

    assert rows() == [(hour_us, 1)]
    late = pa.array([NOW - 30_000_000], STAMP)
    path = settings.repo / "rides.parquet"
    row = pa.table({"driver": [2], "ts": late, "made": late, "speed": [12.0]})
    pq.write_table(pa.concat_tables([pq.read_table(path), row]), path)
    watch.round(made)
    assert rows() == [(hour_us, 2)]


def test_promises_of_time_are_looked_at_every_round(settings: Settings, made: Plan) -> None:
    """A stream that nothing came through has no data; what was found is there for every process's metrics."""
    view = next(iter(made.views.values()))
    promise = Promise(id="fresh", kind="freshness", column=view.source.timestamp_field, limit_us=60_000_000)
    column = Column(name=view.source.timestamp_field, logical_type="timestamp")
    topic = view.source.topic
    contract = Contract(
        name="rides", version="1", source=topic.name if topic else view.source.name, columns=(column,), rules=(),
        sla=(promise,),
    )  # fmt: skip
    promised = msgspec.structs.replace(made, contracts={contract.source: contract})
    monitor(settings, Collected()).round(promised)
    (looked,) = kept(settings.promises)
    assert (looked.looked_us, set(looked.outcomes)) == (NOW, {"fresh"})


def test_cohorts_are_kept_at_each_boundary(settings: Settings, made: Plan) -> None:
    """Source, training set and answers: of all rows, and of every value of what a tag of the service or view names."""
    view = msgspec.structs.replace(made.views["rides"], tags={"drift_segments": "speed"})
    made = plan(view, drift_segments="driver")
    train(settings, made)
    keep(settings, made, NOW - 60_000_000, [10.0, 11.0], NOW - 60_000_000)
    monitor(settings, Collected()).round(made)
    store = ProfileStore(workspace(settings).profiles)

    def kept(boundary: str) -> set[str]:
        [baseline] = [path.name for path in (store.folder / boundary).iterdir()]
        return {each.segment for each in store.read(boundary=boundary, baseline=baseline)}

    assert kept("source") == {"", "driver=1", "speed=10"}
    assert kept("served") == {"", "driver=1"}
    trained = kept("training")
    assert len(trained) == 257  # of 300 drivers 256, and all
    assert all(each == "" or each.startswith("driver=") for each in trained)


def test_files_of_written_rows_profiles_become_few(settings: Settings, made: Plan) -> None:
    """What processes wrote hours ago lies in one file a view and day after the next round."""
    store = ProfileStore(workspace(settings).profiles)
    for number in range(3):
        writer = WriteProfiles(store, lambda: NOW - 3 * HOUR_US, writer=f"w{number}")
        writer.written(made, made.views["rides"], pa.table({"driver": [1], "speed": [10.0]}))
        writer.finish()
    monitor(settings, Collected()).round(made)
    assert [path.stem for path in store.paths("online_write")] == ["rides-2023-11-14"]
    assert [one.rows for one in read_kept(store, "online_write", "rides", 0, NOW)] == [3]
