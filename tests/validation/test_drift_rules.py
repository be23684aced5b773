"""Is a rule about drift kept like any other: in contract test, in every mode, as Great Expectations judges it?"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from validation.change import changes
from validation.commands import app
from validation.compiled.batch import compile_batch
from validation.contract import Contract, lint, load_contract
from validation.errors import ContractError
from validation.suite import ResultForm, judge
from validation.verdict import Verdict

STAMP = pa.timestamp("us", "UTC")


def rows(count: int, *, seed: int, shift: float = 0.0, new: str = "") -> pa.Table:
    rng = np.random.default_rng(seed)
    carrier = np.array(["AA", "B6", "UA"], object)[rng.integers(0, 3, count)]
    carrier[: count // 20] = new or "AA"
    return pa.table(
        {
            "fare": pa.array(rng.lognormal(2, 0.5, count) + shift, mask=rng.random(count) < 0.05),
            "stops": pa.array(rng.integers(0, 4, count), mask=rng.random(count) < 0.05),
            "carrier": pa.array(carrier.tolist(), pa.string()),
            "at": pa.array(np.arange(count) * 3_600_000_000, STAMP),
        }
    )


def contract(folder: Path, *rules: dict[str, Any], mode: str = "block") -> Path:
    quality = [
        {
            "id": f"drift_{number}",
            "type": "custom",
            "engine": "great-expectations",
            "severity": "critical",
            "implementation": {"type": "expect_table_to_not_drift", "kwargs": {"reference": "train.parquet", **rule}},
            "customProperties": [{"property": "mode", "value": mode}],
        }
        for number, rule in enumerate(rules)
    ]
    types = {"fare": "number", "stops": "integer", "carrier": "string", "at": "timestamp"}
    path = folder / "fares.odcs.yaml"
    body = {
        "apiVersion": "v3.1.0",
        "kind": "DataContract",
        "id": "fares",
        "version": "1.0.0",
        "schema": [
            {
                "name": "fares",
                "properties": [{"name": name, "logicalType": logical} for name, logical in types.items()],
                "quality": quality,
            }
        ],
    }
    path.write_text(yaml.safe_dump(body))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pq.write_table(rows(2_000, seed=1), tmp_path / "train.parquet")
    return tmp_path


ALL: dict[str, Any] = {"columns": ["fare", "stops", "carrier"], "seed": 3}
BATCHES = {
    "same": rows(600, seed=2),
    "shifted": rows(600, seed=3, shift=3.0),
    "new carrier": rows(600, seed=4, new="ZZ"),
    "empty": rows(600, seed=2).slice(0, 0),
    "without carrier": rows(600, seed=2).drop_columns(["carrier"]),
}


def both(meant: Contract, table: pa.Table) -> tuple[Verdict, Verdict]:
    return compile_batch(meant).run(table), judge(meant, table)


@pytest.mark.parametrize("batch", BATCHES)
def test_compiled_and_great_expectations_say_the_same(folder: Path, batch: str) -> None:
    """Outcome, success and what was observed agree to the last digit, with nulls in every column."""
    rules = [ALL, {"columns": ["fare"], "segments": ["carrier"]}, {"columns": ["stops"], "time_column": "at"}]
    meant = load_contract(contract(folder, *rules))
    if batch == "without carrier":
        meant = load_contract(contract(folder, ALL))
    ours, theirs = both(meant, BATCHES[batch])
    told = [[(r.rule_id, r.outcome, r.success, r.observed) for r in verdict.rules] for verdict in (ours, theirs)]
    assert told[0] == told[1]
    expected = {"same": "passed", "shifted": "failed", "new carrier": "failed", "empty": "no data"}
    assert ours.rules[0].outcome == expected.get(batch, "broken")


def test_a_rule_takes_rows_of_one_entity_together(folder: Path) -> None:
    """Rows that are asked for again and again are no drift where the rule names the entity, to both judges."""
    table = pq.read_table(folder / "train.parquet")
    pq.write_table(table.append_column("stop", pa.array(range(len(table)))), folder / "train.parquet")
    again = table.take(np.repeat(np.random.default_rng(5).choice(len(table), 60, replace=False), 10))
    keys = np.repeat(np.arange(60), 10)
    rule = {"columns": ["fare", "carrier"], "entities": ["stop"]}
    path = contract(folder, rule)
    body = yaml.safe_load(path.read_text())
    body["schema"][0]["properties"].append({"name": "stop", "logicalType": "integer"})
    path.write_text(yaml.safe_dump(body))
    ours, theirs = both(load_contract(path), again.append_column("stop", pa.array(keys)))
    assert ours.rules[0].observed == theirs.rules[0].observed
    assert ours.rules[0].outcome == "passed"


def test_contract_test_blocks_a_drifted_file_and_tells_what_drifted(folder: Path) -> None:
    """A file that drifted exits with 1 and its report names the features; one that did not exits with 0."""
    path = contract(folder, ALL)
    report = folder / "report.json"
    for name, code in (("same", 0), ("shifted", 1)):
        pq.write_table(BATCHES[name], folder / "fares.parquet")
        call = ["contract", "test", str(folder / "fares.parquet"), "--contract", str(path), "--report", str(report)]
        result = CliRunner().invoke(app, call)
        assert result.exit_code == code, result.output
    told = json.loads(report.read_text())
    assert told["action"].startswith("blocked")
    assert told["violations"][0]["observed"]["strongest"][0]["feature"] == "fare"
    assert told["violations"][0]["observed"]["false_alarm_rate"] <= 0.05


@pytest.mark.parametrize("mode", ["observe", "warn"])
def test_a_rule_that_observes_or_warns_stops_nothing(folder: Path, mode: str) -> None:
    """The mode decides what a drift does, as for any rule."""
    verdict = compile_batch(load_contract(contract(folder, ALL, mode=mode))).run(BATCHES["shifted"])
    assert (verdict.outcome, verdict.blocked) == ("failed", ())


def test_a_reference_that_is_gone_is_a_broken_check(folder: Path) -> None:
    """Without the reference nothing is judged: that is no drift and no pass."""
    meant = load_contract(contract(folder, ALL))
    (folder / "train.parquet").unlink()
    rule = compile_batch(meant).run(BATCHES["same"]).rules[0]
    assert rule.outcome == "broken"
    assert "no such file" in rule.reason


def test_the_least_effect_is_the_contracts(folder: Path) -> None:
    """A shift below the stated effect passes, however significant."""
    least = {"wasserstein_sd": 5.0, "columns": ["fare"]}
    assert compile_batch(load_contract(contract(folder, least))).run(BATCHES["shifted"]).rules[0].outcome == "passed"


def test_a_verdict_is_great_expectations_own_result_too(folder: Path) -> None:
    """The library's tools get the verdict with what was observed."""
    meant = load_contract(contract(folder, ALL))
    result = ResultForm(meant).of(compile_batch(meant).run(BATCHES["shifted"])).results[0]
    assert result.success is False
    assert result.result["observed_value"]["alarms"] == 1


def test_a_column_rule_needs_no_column_name(tmp_path: Path) -> None:
    """Below a property the rule is about that property."""
    pq.write_table(rows(500, seed=1), tmp_path / "train.parquet")
    path = contract(tmp_path, ALL)
    body = yaml.safe_load(path.read_text())
    kwargs = {"reference": "train.parquet"}
    body["schema"][0]["properties"][0]["quality"] = [
        {
            "id": "fare_drift",
            "type": "custom",
            "engine": "great-expectations",
            "implementation": {"type": "expect_column_to_not_drift", "kwargs": kwargs},
        }
    ]
    path.write_text(yaml.safe_dump(body))
    ours, theirs = both(load_contract(path), BATCHES["shifted"])
    assert ours.rule("fare_drift").outcome == theirs.rule("fare_drift").outcome == "failed"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"columns": ["fair"]}, "did you mean 'fare'"),
        ({"columns": ["fare"], "block_hours": 24}, "with a time_column"),
        ({"columns": ["fare"], "family_rate": 2}, "between 0 and 1"),
        ({"columns": ["fare"], "sed": 1}, "did you mean 'seed'"),
        ({"columns": ["fare"], "cohens_w": 0}, "above 0"),
    ],
)
def test_wrong_arguments_are_named(folder: Path, wrong: dict[str, Any], message: str) -> None:
    """A wrong argument is an error of the contract, with its place."""
    with pytest.raises(ContractError, match=message):
        load_contract(contract(folder, wrong))


def test_a_drift_rule_cannot_set_rows_aside(folder: Path) -> None:
    """No single row drifts: lint says so; and a change of the reference breaks both sides."""
    assert any(
        "cannot quarantine" in remark for remark in lint(load_contract(contract(folder, ALL, mode="quarantine")))
    )
    before = load_contract(contract(folder, ALL))
    after = load_contract(contract(folder, {**ALL, "reference": "other.parquet"}))
    assert [change.breaks for change in changes(before, after)] == [("consumers", "producers")]
