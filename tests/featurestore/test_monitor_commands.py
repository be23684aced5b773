"""The monitor's commands: what they print, and their exit codes."""

import json
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from monitored import STAMP, deployment, keep, plan, rides

from featurestore.cli.main import main
from featurestore.clock import system_clock
from featurestore.config import Settings
from featurestore.monitor.evidence import evidence_of
from featurestore.monitor.readiness import score_of
from featurestore.monitor.workspace import workspace
from featurestore.plan import Plan, ServingPolicy
from validation.contract import Column, Contract, Rule

NOW = system_clock()()
ROW = NOW - 60_000_000


@pytest.fixture
def made() -> Plan:
    return plan(rides(freshness_slo_s="120"))


@pytest.fixture
def settings(tmp_path: Path, made: Plan, online_url: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("FEATURESTORE_REDIS_URL", online_url)
    return deployment(tmp_path, made, NOW)


def test_an_audit_without_differences_exits_0(
    settings: Settings, made: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says how many values were compared."""
    keep(settings, made, NOW, 10.0, ROW)
    assert main(["skew", "audit", "--repo", str(settings.repo)]) == 0
    assert "1 values compared, 0 differ" in capsys.readouterr().out


def test_an_unknown_difference_exits_1_and_stays_in_the_history(
    settings: Settings, made: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    """As JSON with the example."""
    keep(settings, made, NOW, 77.0, ROW)
    assert main(["skew", "audit", "--repo", str(settings.repo)]) == 1
    capsys.readouterr()
    assert main(["skew", "history", "--repo", str(settings.repo), "--json"]) == 1
    [audited] = json.loads(capsys.readouterr().out)
    assert audited["skews"][0]["examples"]["unknown"][0]["served"] == 77.0


def test_status_and_alerts_show_what_is_bad(settings: Settings, made: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    """After a round that found a difference without a cause."""
    keep(settings, made, NOW, 77.0, ROW)
    assert main(["monitor", "--once", "--repo", str(settings.repo)]) == 1
    assert main(["alerts", "--repo", str(settings.repo), "--json"]) == 1
    assert main(["status", "--repo", str(settings.repo)]) == 1
    shown = capsys.readouterr().out
    assert "speed" in shown
    assert "1 bad" in shown


def test_what_nobody_measured_is_unknown_not_ok(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    """No answer was kept: nothing can be said."""
    assert main(["status", "--repo", str(settings.repo), "--json"]) == 0
    [feature] = json.loads(capsys.readouterr().out)
    assert (feature["health"], feature["services"]) == ("unknown", ["eta"])


def test_a_good_round_is_ok(settings: Settings, made: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    """Measured, and nothing found."""
    keep(settings, made, NOW, 10.0, ROW)
    assert main(["monitor", "--once", "--repo", str(settings.repo)]) == 0
    capsys.readouterr()
    assert main(["status", "--repo", str(settings.repo), "--json"]) == 0
    [feature] = json.loads(capsys.readouterr().out)
    assert (feature["health"], feature["compared"], feature["budget"]) == ("ok", 1, 0.0)


def test_labels_are_joined_to_what_was_served(
    settings: Settings, made: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told by segment, and kept for the test score."""
    keep(settings, made, NOW, 10.0, ROW)
    labels = pa.table({"driver": [1, 1], "event_timestamp": pa.array([NOW] * 2, STAMP), "p": [0.5, 0.5], "y": [0, 1]})
    pq.write_table(labels, tmp_path / "labels.parquet")
    options = ["--service", "eta", "--prediction", "p", "--label", "y", "--segment", "rides:speed", "--json"]
    assert main(["concept", str(tmp_path / "labels.parquet"), "--repo", str(settings.repo), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(each["segment"], each["bias"]) for each in found] == [({}, 0.0), ({"rides:speed": 10.0}, 0.0)]
    score = score_of(evidence_of(settings, workspace(settings), made, "eta"))
    assert {each.test: each.points for each in score.answers}["M7"] == 1.0


def test_the_score_counts_only_evidence(settings: Settings, made: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    """A bare service scores low and is told what is missing; contracts, audits and policies raise it."""
    bare = score_of(evidence_of(settings, workspace(settings), made, "eta"))
    assert {each.test for each in bare.answers if each.points == 0 and not each.missing} == set()
    # An objective that was declared and never measured, a plan that was changed and never served: intent, no evidence.
    assert {each.test: each.points for each in bare.answers if each.test in ("D6", "M6")} == {"D6": 0.5, "M6": 0.0}
    contract = Contract(
        name="rides", version="1.0.0", source="rides", owner="team",
        columns=(Column(name="speed", logical_type="number"),),
        rules=(
            Rule(id="r", expectation="expect_column_values_to_not_be_null", arguments={"column": "speed"}, mode="warn"),
        ),
    )  # fmt: skip
    service = msgspec.structs.replace(made.services["eta"], policy=ServingPolicy(invalid="null"))
    better = msgspec.structs.replace(made, contracts={"rides": contract}, services={"eta": service})
    keep(settings, better, NOW, 10.0, ROW)
    main(["monitor", "--once", "--repo", str(settings.repo)])
    found = score_of(evidence_of(settings, workspace(settings), better, "eta"))
    points = {each.test: each.points for each in found.answers}
    assert {test: points[test] for test in ("D1", "D4", "D5", "D6", "D7", "M3", "M5", "M6")} == dict.fromkeys(
        ("D1", "D4", "D5", "D6", "D7", "M3", "M5", "M6"), 1.0
    )
    assert found.score > bare.score
    capsys.readouterr()
    assert main(["test-score", "eta", "--repo", str(settings.repo)]) == 0
    assert "of 7" in capsys.readouterr().out
