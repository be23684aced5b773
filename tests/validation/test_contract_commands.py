"""Do the commands answer with the right exit code, and leave nobody waiting?"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from validation.commands import app
from validation.errors import PlatformError

RUN = CliRunner()
VALID = '{"id": "a", "amount": 1.5, "at": "2024-01-01T00:00:00Z"}\n'


@pytest.fixture
def contracts(tmp_path: Path) -> Path:
    """A folder with one contract."""
    aside = [{"property": "mode", "value": "quarantine"}]
    quality = [
        {"id": "positive", "type": "custom", "engine": "great-expectations", "severity": "critical"}
        | {"implementation": {"type": "expect_column_values_to_be_between", "kwargs": {"min_value": 0}}}
        | {"customProperties": aside},
        {"id": "small", "type": "custom", "engine": "great-expectations", "severity": "info"}
        | {"implementation": {"type": "expect_column_values_to_be_between", "kwargs": {"max_value": 100}}},
    ]
    properties = [
        {"name": "id", "logicalType": "string"},
        {"name": "amount", "logicalType": "number", "quality": quality},
        {"name": "at", "logicalType": "timestamp"},
    ]
    contract = {"apiVersion": "v3.1.0", "kind": "DataContract", "id": "orders", "version": "1.0.0", "status": "active"}
    folder = tmp_path / "contracts"
    folder.mkdir()
    text = yaml.safe_dump({**contract, "schema": [{"name": "orders", "properties": properties}]})
    (folder / "orders.odcs.yaml").write_text(text)
    return folder


def judged(contracts: Path, text: str, *options: str, name: str = "orders.jsonl") -> tuple[int, str]:
    """Exit code and output of `contract test` on a file of this text."""
    file = contracts.parent / name
    file.write_text(text)
    result = RUN.invoke(app, ["contract", "test", str(file), "--contracts", str(contracts), *options])
    if isinstance(result.exception, PlatformError):
        return result.exception.exit_code, str(result.exception)
    return result.exit_code, result.output


def test_the_exit_code_tells_the_outcome(contracts: Path) -> None:
    """0 holds, 1 bad data by severity, 3 the check broke, 4 no data."""
    assert judged(contracts, VALID)[0] == 0
    code, output = judged(contracts, VALID + '{"id": "b", "amount": -1}\n')
    assert code == 1
    assert "critical: positive (quarantine): 1 of 2 rows, e.g. rows 1 of orders.jsonl" in output
    assert "2 rows: 1 accepted, 1 to quarantine" in output
    high = '{"id": "b", "amount": 1000, "at": "2024-01-01"}'
    assert judged(contracts, high)[0] == 0, "info does not fail by default"
    assert judged(contracts, high, "--fail-on", "info")[0] == 1
    assert judged(contracts, '{"id": "b"}\n')[0] == 3
    assert judged(contracts, "")[0] == 4


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("orders.parquet", "PAR1 torn", "orders.parquet: the file cannot be read"),
        ("orders.xlsx", "", "found ending '.xlsx'; allowed: .parquet, .csv, .jsonl, .ndjson"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(contracts: Path, name: str, text: str, message: str) -> None:
    """With file, line, column, what was found and what was promised; exit code 1."""
    code, told = judged(contracts, text, name=name)
    assert code == 1
    assert message in told


def test_csv_and_parquet_are_judged_as_json_lines_are(contracts: Path) -> None:
    """The same rows, the same verdict, whatever the file's form."""
    assert judged(contracts, "id,amount,at\na,-1,2024-01-01T00:00:00Z\nb,,\n", name="orders.csv")[0] == 1
    assert judged(contracts, "id,amount,at\na,1,2024-01-01T00:00:00Z\nb,,\n", name="orders.csv")[0] == 0


def test_an_unknown_source_is_named_with_what_exists(contracts: Path) -> None:
    """The contract is found by the file's name, by --source or by --contract."""
    code, told = judged(contracts, VALID, name="sales.jsonl")
    assert (code, "no contract of source 'sales'; what exists: orders" in told) == (2, True)
    assert judged(contracts, VALID, "--source", "orders", name="sales.jsonl")[0] == 0
    assert judged(contracts, VALID, "--contract", str(contracts / "orders.odcs.yaml"), name="sales.jsonl")[0] == 0


def test_rejected_rows_are_listed_and_shown(contracts: Path) -> None:
    """`contract test --quarantine` keeps them, `quarantine list` counts them, `quarantine show` prints them whole."""
    folder, report = contracts.parent / "q", contracts.parent / "report.json"
    judged(contracts, VALID + '{"id": "bäd", "amount": -1}\n', "--quarantine", str(folder), "--report", str(report))
    listed = RUN.invoke(app, ["quarantine", "list", "--folder", str(folder)])
    assert listed.exit_code == 0
    assert "positive" in listed.output
    assert "orders 1.0.0" in listed.output
    shown = RUN.invoke(app, ["quarantine", "show", "orders", "--folder", str(folder), "--rule", "positive"])
    (row,) = [json.loads(line) for line in shown.output.splitlines()]
    assert (row["offset"], row["reason"], row["rule_ids"]) == (1, "contract", ["positive"])
    assert json.loads(row["row"])["id"] == "bäd"
    assert json.loads(report.read_bytes())["quarantined"] == 1
    none = RUN.invoke(app, ["quarantine", "show", "orders", "--folder", str(folder), "--rule", "other"])
    assert "no row in quarantine broke rule 'other'" in none.output
    empty = RUN.invoke(app, ["quarantine", "list", "--folder", str(folder / "none")])
    assert "nothing is in quarantine" in empty.output


def test_lint_remarks_and_fails(contracts: Path) -> None:
    """Exit code 1 where a reviewer would say something."""
    result = RUN.invoke(app, ["contract", "lint", str(contracts)])
    assert result.exit_code == 1
    assert "no owner is given" in result.output
    flights = Path(__file__).parents[2] / "feature_repo" / "contracts"
    assert RUN.invoke(app, ["contract", "lint", str(flights)]).exit_code == 0


def test_lint_names_examples_that_break_the_contract(contracts: Path) -> None:
    """By value and rule, or type; what keeps it is not named, and no list is refused with its place."""
    path = contracts / "orders.odcs.yaml"
    document = yaml.safe_load(path.read_text())
    given = {"amount": [1.5, -1, "much"], "at": ["2024-01-01T00:00:00Z", "soon"], "id": ["a", 7]}
    for item in document["schema"][0]["properties"]:
        item["examples"] = given[item["name"]]
    path.write_text(yaml.safe_dump(document))
    told = RUN.invoke(app, ["contract", "lint", str(path)]).output
    assert [line.strip() for line in told.splitlines() if ": example " in line] == [
        "column 'id': example 7 is no string",
        "column 'amount': example -1 breaks rule positive",
        "column 'amount': example 'much' is no number",
        "column 'at': example 'soon' is no timestamp",
    ]
    document["schema"][0]["properties"][0]["examples"] = "a"
    path.write_text(yaml.safe_dump(document))
    refused = RUN.invoke(app, ["contract", "lint", str(path)]).exception
    assert "schema[0].properties[0].examples: found 'a'; expected a list" in str(refused)


def test_inside_the_feature_repo_the_same_folders_are_meant(
    contracts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside feature_store.yaml the contracts are in ./contracts and the quarantine in ../data."""
    (tmp_path / "feature_store.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert "contracts/orders.odcs.yaml" in RUN.invoke(app, ["contract", "lint"]).output
    assert "../data/quarantine: nothing" in RUN.invoke(app, ["quarantine", "list"]).output


def test_export_gives_a_suite_that_great_expectations_reads(contracts: Path) -> None:
    """The exported JSON has every rule with its id and severity."""
    path = contracts / "orders.odcs.yaml"
    result = RUN.invoke(app, ["contract", "export", str(path), "--to", "great-expectations"])
    suite = json.loads(result.output)
    ids = ["positive", "small", "id_type", "amount_type", "at_type", "orders_columns"]
    assert [e["meta"]["rule_id"] for e in suite["expectations"]] == ids
    assert suite["expectations"][0]["severity"] == "critical"


@pytest.mark.parametrize(
    "module",
    [
        *("validation.commands", "validation.compiled.rows", "validation.compiled.batch"),
        *("streaming.worker", "streaming.rule_windows"),
    ],
)
def test_what_must_be_light_imports_nothing_heavy(module: str) -> None:
    """Neither Feast nor Great Expectations nor pandas; the commands not even Arrow or YAML."""
    heavy = ["feast", "great_expectations", "pandas"] + (["pyarrow", "yaml"] if module.endswith("commands") else [])
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_form_of_the_verdict_is_written(contracts: Path) -> None:
    """`--report`, `--html`, `--junit` and `--sarif`, with the views that the plan names."""
    folder = contracts.parent
    view = {"name": "v", "source": {"name": "orders"}, "features": [{"name": "amount"}]}
    (folder / "plan.json").write_text(json.dumps({"views": {"v": view}}))
    options = [f"--{form}={folder / form}" for form in ("report", "html", "junit", "sarif")]
    low = '{"id": "b", "amount": -1, "at": null}\n'
    code, _ = judged(contracts, low, *options, f"--plan={folder / 'plan.json'}")
    assert code == 1
    assert json.loads((folder / "report").read_bytes())["affected"] == ["view v"]
    assert json.loads((folder / "sarif").read_bytes())["runs"][0]["results"][0]["level"] == "error"
    assert b"<failure" in (folder / "junit").read_bytes()
    assert b"view v" in (folder / "html").read_bytes()


def test_the_mode_at_the_boundary_counts(contracts: Path) -> None:
    """A rule that quarantines events only observes a producer's file where the contract says so."""
    path = contracts / "orders.odcs.yaml"
    path.write_text(path.read_text().replace("property: mode\n", "property: mode.event\n"))
    code, told = judged(contracts, '{"id": "b", "amount": -1, "at": null}\n')
    assert (code, "positive (observe)" in told, "1 accepted, 0 to quarantine" in told) == (1, True, True)
    path.write_text(path.read_text().replace("mode.event", "mode.evening"))
    assert "no boundary 'evening'; did you mean 'event'?" in judged(contracts, VALID)[1]
