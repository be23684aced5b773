"""Contracts that others write load; one test for each reason for which contracts of others were once refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from validation.commands import app
from validation.contract import Contract, lint, load_contract, load_contract_file
from validation.errors import ContractError
from validation.judging import judge_file

RUN = CliRunner()
HEAD = {"apiVersion": "v3.0.2", "kind": "DataContract", "id": "shop", "version": "1.0.0", "status": "active"}


def written(folder: Path, *schema: dict[str, Any], **more: Any) -> Path:
    """A contract file of these schema objects."""
    path = folder / "shop.odcs.yaml"
    path.write_text(yaml.safe_dump({**HEAD, **({"schema": [*schema]} if schema else {}), **more}, sort_keys=False))
    return path


def obj(name: str, *properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A schema object."""
    return {"name": name, **({"properties": [*properties]} if properties else {}), **more}


def loaded(folder: Path, *schema: dict[str, Any], **more: Any) -> Contract:
    """The contract of one schema object."""
    return load_contract(written(folder, *schema, **more))


ID = {"name": "id", "logicalType": "integer", "primaryKey": True}


def test_several_schema_objects_are_several_contracts(tmp_path: Path) -> None:
    """Each by its name; the file's name or --source says which one a file is held to."""
    path = written(tmp_path, obj("orders", ID), obj("lines", ID, {"name": "n", "logicalType": "integer"}))
    orders, lines = load_contract_file(path)
    assert [(one.name, one.source) for one in (orders, lines)] == [("shop.orders", "orders"), ("shop.lines", "lines")]
    (tmp_path / "lines.csv").write_text("id,n\n1,2\n")
    (tmp_path / "other.csv").write_text("id,n\n1,2\n")
    call = ["contract", "test", str(tmp_path / "lines.csv"), "--contract", str(path)]
    assert RUN.invoke(app, call).exit_code == 0
    assert RUN.invoke(app, [*call, "--source", "orders"]).output.count("shop.orders 1.0.0: passed") == 1
    other = RUN.invoke(app, ["contract", "test", str(tmp_path / "other.csv"), "--contract", str(path)])
    assert "found 2 schema objects: orders, lines; expected one, or --source" in str(other.exception)
    shown = RUN.invoke(app, ["contract", "lint", str(path)]).output
    assert ": orders 1.0.0: " in shown
    assert ": lines 1.0.0: " in shown


def test_a_contract_without_a_schema_loads_and_lint_says_so(tmp_path: Path) -> None:
    """Contracts may be about servers, roles or service levels alone."""
    path = written(tmp_path, servers=[{"server": "s", "type": "kafka", "host": "h", "format": "avro"}])
    assert load_contract_file(path) == ()
    shown = RUN.invoke(app, ["contract", "lint", str(path)])
    assert (shown.exit_code, "no schema object: no rows are judged" in shown.output) == (1, True)
    with pytest.raises(ContractError, match="found 0 schema objects"):
        load_contract(path)


def test_an_object_without_properties_loads_and_lint_says_so(tmp_path: Path) -> None:
    """A topic whose schema lies in a registry."""
    contract = loaded(tmp_path, obj("orders", physicalType="topic"))
    assert contract.columns == ()
    assert any("names no properties: its columns are not judged" in line for line in lint(contract))


def test_a_logical_type_follows_from_the_physical_one(tmp_path: Path) -> None:
    """Where a tool wrote none; what is known of neither has no type, and its other rules are judged."""
    kinds = {
        "varchar(20)": "string",
        "BIGINT": "integer",
        "NUMERIC(9,2)": "number",
        "timestamptz": "timestamp",
        "bool": "boolean",
        "DATE": "date",
        "struct": "object",
        "uuid": "string",
        "geometry": "",
    }
    properties = [{"name": f"c{n}", "physicalType": kind} for n, kind in enumerate(kinds)]
    contract = loaded(tmp_path, obj("orders", *properties))
    assert list(contract.types.values()) == list(kinds.values())


def test_a_column_without_a_type_is_judged_by_its_other_rules(tmp_path: Path) -> None:
    """Presence, repetition, bounds and sets need no type."""
    quality = [{"id": "known", "metric": "invalidValues", "arguments": {"validValues": [1, 2]}, "mustBe": 0}]
    prop = {"name": "v", "required": True, "unique": True, "quality": quality}
    contract = loaded(tmp_path, obj("rows", prop))
    (tmp_path / "rows.jsonl").write_text('{"v": 1}\n{"v": 1}\n{"v": null}\n{"v": 3}\n')
    told = judge_file(tmp_path / "rows.jsonl", contract, now_us=0).verdict
    failed = {rule.rule_id: rule.unexpected for rule in told.rules if rule.outcome == "failed"}
    assert failed == {"v_required": 1, "v_unique": 2, "known": 1}


@pytest.mark.parametrize(
    ("quality", "remark"),
    [
        ({"type": "sql", "query": "SELECT 1", "mustBeLessThan": 5}, "is text or another engine's"),
        ({"type": "custom", "engine": "soda", "implementation": "x"}, "is text or another engine's"),
        ({"name": "q", "mustBeLessOrEqualTo": 5}, "a rule without a metric: nothing here judges it"),
        ({"rule": "countCheck", "mustBe": 0}, "rule 'countCheck': nothing here judges it"),
        ({"metric": "nullValues", "mustBeLessThan": 10}, "nullValues for mustBeLessThan 10: it is not judged"),
        ({"metric": "duplicateValues", "mustBeBetween": [0, 5]}, "it is not judged"),
        ({"metric": "invalidValues", "arguments": {"validValues": [1]}, "mustNotBe": 3}, "it is not judged"),
    ],
)
def test_quality_rules_that_are_left_to_others_are_named(tmp_path: Path, quality: dict[str, Any], remark: str) -> None:
    """They refuse nothing: lint says that they are not judged here."""
    contract = loaded(tmp_path, obj("rows", {**ID, "quality": [quality]}))
    assert any(remark in line for line in lint(contract)), lint(contract)


def test_rules_by_their_names_of_version_three_are_judged(tmp_path: Path) -> None:
    """`rule` became `metric`; a null among valid values says that a value may be missing."""
    quality = [
        {"id": "a", "rule": "nullCheck", "mustBe": 0},
        {"id": "b", "rule": "duplicateCount", "mustBe": 0},
        {"id": "c", "metric": "invalidValues", "arguments": {"validValues": [1, None]}, "mustBe": 0},
    ]
    rules = {rule.id: rule for rule in loaded(tmp_path, obj("rows", {**ID, "quality": quality})).rules}
    assert rules["a"].expectation == "expect_column_values_to_not_be_null"
    assert rules["b"].expectation == "expect_column_values_to_be_unique"
    assert rules["c"].arguments["value_set"] == [1]


@pytest.mark.parametrize(
    "level",
    [
        {"property": "freshness", "value": 1, "unit": "d"},
        {"property": "latency", "value": 4, "unit": "d", "element": "rows"},
        {"property": "latency", "value": 4, "unit": "d", "element": "rows.id"},
        {"property": "latency", "value": 4, "unit": "d", "element": "elsewhere.at"},
        {"property": "latency", "value": "1h"},
        {"property": "freshness", "value": 1, "unit": "y", "element": "rows.at"},
        {"property": "volume", "value": "many"},
        {"property": "retention", "value": 3, "unit": "y"},
        {"property": "generalAvailability", "value": "2022-05-12T09:30:10-08:00"},
    ],
)
def test_service_levels_about_something_else_are_named(tmp_path: Path, level: dict[str, Any]) -> None:
    """An element that is a table, another object's column or no column of instants; a value in words or years."""
    contract = loaded(tmp_path, obj("rows", ID, {"name": "at", "logicalType": "timestamp"}), slaProperties=[level])
    assert contract.sla == ()
    assert any(f"'sla {level['property']}'" in line for line in lint(contract))


def test_people_servers_prices_and_roles_are_read(tmp_path: Path) -> None:
    """In the forms of 3.0 and of 3.1."""
    contract = loaded(
        tmp_path,
        obj("rows", ID),
        team=[{"username": "a@example.org", "role": "owner", "dateIn": "2024-01-01"}],
        support=[{"channel": "#help"}],
        price={"priceAmount": 1, "priceCurrency": "EUR", "priceUnit": "month"},
        roles=[{"role": "reader", "access": "read"}],
        servers=[{"server": "s", "type": "s3", "location": "s3://x", "format": "parquet", "anything": 1}],
        slaDefaultElement="rows.at",
        tags=["a"],
        description={"purpose": None, "usage": "u"},
    )
    assert (contract.support, contract.description) == ("#help", "")
    assert any("slaDefaultElement is not judged" in line for line in lint(contract))


def test_times_of_day_are_bounded(tmp_path: Path) -> None:
    """Bounds of a logical type `time` are judged."""
    prop = {"name": "v", "logicalType": "time", "logicalTypeOptions": {"minimum": "08:00:00"}}
    assert [rule.id for rule in loaded(tmp_path, obj("rows", prop)).rules] == ["v_type", "v_range", "rows_columns"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": None}, "version: found None; expected text"),
        ({"servers": [{"servr": "s", "type": "s3"}]}, "unknown key 'servr'; did you mean 'server'?"),
        ({"servers": [{"server": "s", "typ": "s3"}]}, "unknown key 'typ'; did you mean 'type'?"),
        ({"schemas": []}, "unknown key 'schemas'; did you mean 'schema'?"),
        ({"apiVersion": "v2.2.2"}, "expected kind: DataContract, apiVersion: v3.1.0"),
    ],
)
def test_what_the_standard_does_not_allow_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """With file and field."""
    path = written(tmp_path, obj("rows", ID), **changes)
    with pytest.raises(ContractError) as caught:
        load_contract_file(path)
    assert message in str(caught.value)
