"""Is a contract file read as it was meant, and refused with its place where it cannot be?"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from validation.contract import Contract, Rule, lint, load_contract, load_contracts
from validation.errors import ContractError

BASE: dict[str, Any] = {
    "apiVersion": "v3.1.0",
    "kind": "DataContract",
    "id": "orders",
    "version": "1.2.0",
    "status": "active",
    "schema": [
        {
            "name": "orders",
            "properties": [
                {"name": "id", "logicalType": "string"},
                {"name": "amount", "logicalType": "number"},
                {"name": "at", "logicalType": "timestamp"},
            ],
        }
    ],
}


def written(tmp_path: Path, **changes: Any) -> Path:
    """A contract file with properties, quality and further keys as given."""
    schema = {**BASE["schema"][0]}
    for key in ("properties", "quality", "customProperties"):
        if key in changes:
            schema[key] = changes.pop(key)
    path = tmp_path / "orders.odcs.yaml"
    path.write_text(yaml.safe_dump({**BASE, "schema": [schema], **changes}, sort_keys=False))
    return path


def of_amount(*quality: dict[str, Any]) -> list[dict[str, Any]]:
    """Properties with quality rules on the amount."""
    return [{"name": "id", "logicalType": "string"}, {"name": "amount", "logicalType": "number", "quality": [*quality]}]


def quality_rules(contract: Contract) -> tuple[Rule, ...]:
    """The rules that are not about the types and the presence of columns, which every contract promises."""
    return tuple(rule for rule in contract.rules if not rule.id.endswith(("_type", "_columns")))


def ge(type_: str, **kwargs: Any) -> dict[str, Any]:
    """A custom rule."""
    body = {"type": type_, "kwargs": kwargs}
    return {"id": "r", "type": "custom", "engine": "great-expectations", "implementation": body}


@pytest.mark.parametrize(
    ("quality", "expectation", "arguments"),
    [
        ({"metric": "nullValues", "mustBe": 0}, "expect_column_values_to_not_be_null", {}),
        (
            {"metric": "nullValues", "mustBeLessOrEqualTo": 25, "unit": "percent"},
            "expect_column_values_to_not_be_null",
            {"mostly": 0.75},
        ),
        (
            {"metric": "invalidValues", "mustBe": 0, "arguments": {"validValues": [1, 2]}},
            "expect_column_values_to_be_in_set",
            {"value_set": [1, 2]},
        ),
        ({"metric": "duplicateValues", "mustBe": 0}, "expect_column_values_to_be_unique", {}),
        (
            {"type": "library", "metric": "missingValues", "mustBe": 0, "arguments": {"missingValues": [-1]}},
            "expect_column_values_to_not_be_in_set",
            {"value_set": [-1]},
        ),
        (ge("expect_column_values_to_be_between", min_value=0), "expect_column_values_to_be_between", {"min_value": 0}),
    ],
)
def test_a_quality_rule_becomes_an_expectation(
    quality: dict[str, Any], expectation: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """Library metrics and custom rules are expectations on their property."""
    (rule,) = quality_rules(load_contract(written(tmp_path, properties=of_amount(quality))))
    assert (rule.expectation, rule.arguments) == (expectation, {"column": "amount", **arguments})


def test_rules_of_the_schema_become_expectations(tmp_path: Path) -> None:
    """rowCount and duplicateValues of the schema, mode, severity and dimension are taken over."""
    quality = [
        {"id": "volume", "metric": "rowCount", "mustBeBetween": [1, 9]},
        {
            "id": "key",
            "metric": "duplicateValues",
            "mustBe": 0,
            "arguments": {"properties": ["id", "at"]},
            "severity": "error",
            "dimension": "consistency",
            "customProperties": [{"property": "mode", "value": "block"}],
        },
    ]
    volume, key = quality_rules(load_contract(written(tmp_path, quality=quality)))
    assert volume.arguments == {"min_value": 1, "max_value": 9}
    assert (key.expectation, key.arguments["column_list"]) == ("expect_compound_columns_to_be_unique", ["id", "at"])
    assert (key.severity, key.mode, key.dimension) == ("critical", "block", "consistency")
    assert (volume.severity, volume.mode, volume.dimension) == ("warning", "observe", "coverage")


def test_what_the_schema_promises_is_a_rule_unless_a_rule_says_it(tmp_path: Path) -> None:
    """required, unique and logicalTypeOptions are promises; an explicit rule takes the place of the same promise."""
    properties = [
        {
            "name": "id",
            "logicalType": "string",
            "required": True,
            "unique": True,
            "logicalTypeOptions": {"minLength": 2},
        },
        {
            "name": "amount",
            "logicalType": "number",
            "required": True,
            "logicalTypeOptions": {"exclusiveMinimum": 0, "maximum": 5},
            "quality": [{"id": "mine", "metric": "nullValues", "mustBe": 0}],
        },
    ]
    mode = [{"property": "schemaMode", "value": "warn"}]
    contract = load_contract(written(tmp_path, properties=properties, customProperties=[]))
    rules = {rule.id: rule for rule in quality_rules(contract)}
    assert list(rules) == ["mine", "id_required", "id_unique", "id_length", "amount_range"]
    bounds = {"min_value": 0, "strict_min": True, "max_value": 5}
    assert rules["amount_range"].arguments == {"column": "amount", **bounds}
    path = written(tmp_path, properties=properties)
    path.write_text(path.read_text() + yaml.safe_dump({"customProperties": mode}))
    assert {rule.mode for rule in load_contract(path).rules} == {"observe", "warn"}


def test_rules_of_other_engines_are_told_not_dropped_silently(tmp_path: Path) -> None:
    """text, sql and other engines' rules stay unjudged, and lint says so."""
    quality = [
        {"id": "words", "type": "text", "description": "verified"},
        {"id": "query", "type": "sql", "query": "SELECT 1", "mustBe": 1},
        {"id": "soda", "type": "custom", "engine": "soda", "implementation": "x"},
    ]
    contract = load_contract(written(tmp_path, quality=quality))
    assert (quality_rules(contract), contract.unjudged) == ((), ("words", "query", "soda"))
    assert sum("nothing here judges it" in remark for remark in lint(contract)) == 3


def test_the_source_is_the_schema_or_what_it_names(tmp_path: Path) -> None:
    """A contract is linked to a Feast source by name."""
    assert load_contract(written(tmp_path)).source == "orders"
    linked = [{"property": "feastSource", "value": "orders_topic"}]
    assert load_contract(written(tmp_path, customProperties=linked)).source == "orders_topic"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "Contract"}, "found kind 'Contract'"),
        ({"apiVersion": "v2.2.0"}, "apiVersion 'v2.2.0'; expected kind: DataContract, apiVersion: v3.1.0"),
        (
            {"properties": [{"name": "a", "logicalType": "str"}]},
            ".properties[0].logicalType: found 'str'; allowed: string",
        ),
        (
            {"properties": of_amount({"metric": "nulValues", "mustBe": 0})},
            "schema[0].properties[1].quality[0]: found metric 'nulValues'; allowed: nullValues",
        ),
        ({"properties": of_amount({"metric": "nullValues"})}, "found 0 operators; expected exactly one"),
        ({"properties": of_amount({"metric": "nullValues", "mustBe": "no"})}, "mustBe: found 'no'; expected a number"),
        (
            {"properties": of_amount({"metric": "nullValues", "mustbe": 0})},
            "unknown key 'mustbe'; did you mean 'mustBe'?",
        ),
        (
            {"properties": of_amount(ge("expect_column_values_to_be_betwen", min_value=0))},
            "did you mean 'expect_column_values_to_be_between'?",
        ),
        (
            {"properties": of_amount(ge("expect_column_values_to_be_between", minValue=0, max_value=1))},
            "unknown argument 'minValue'; did you mean 'min_value'?",
        ),
        (
            {"properties": of_amount(ge("expect_column_values_to_be_between", min_value=2, max_value=1))},
            "min_value 2 is greater than max_value 1",
        ),
        (
            {"properties": of_amount(ge("expect_column_values_to_be_in_set", value_set=["a"]))},
            "argument 'value_set' is 'a'; allowed: a number, as 'amount' is one",
        ),
        (
            {"properties": of_amount(ge("expect_column_values_to_not_be_null", column="amont"))},
            "names no promised column: 'amont'; did you mean 'amount'?",
        ),
        (
            {"properties": of_amount(ge("expect_column_values_to_not_be_null", mostly=95))},
            "argument 'mostly' is 95; allowed: a share between 0 and 1",
        ),
        (
            {"properties": of_amount({**ge("expect_column_values_to_not_be_null"), "severity": "grave"})},
            ".severity: found 'grave'; allowed: critical, warning, info",
        ),
        (
            {
                "properties": of_amount(
                    {
                        **ge("expect_column_values_to_not_be_null"),
                        "customProperties": [{"property": "mode", "value": "reject"}],
                    }
                )
            },
            "found 'reject'; allowed: observe, warn, quarantine, block",
        ),
        (
            {
                "properties": of_amount(
                    ge("expect_column_values_to_not_be_null"), ge("expect_column_values_to_be_unique")
                )
            },
            "rule id 'r' is given twice",
        ),
        (
            {
                "properties": [
                    {
                        "name": "id",
                        "logicalType": "string",
                        "quality": [ge("expect_column_values_to_match_regex", regex="(")],
                    }
                ]
            },
            "a Python regular expression",
        ),
    ],
)
def test_a_wrong_contract_is_one_line_with_its_place(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """The error names the file and the path, what was found and what is allowed."""
    path = written(tmp_path, **changes)
    with pytest.raises(ContractError) as caught:
        load_contract(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_names_its_line(tmp_path: Path) -> None:
    """The line of the value that is wrong stands after the file's name."""
    path = written(tmp_path, properties=[{"name": "a", "logicalType": "str"}])
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "logicalType: str" in text)
    with pytest.raises(ContractError, match=rf"orders\.odcs\.yaml:{line}: "):
        load_contract(path)


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "kind: DataContract\nkind: DataContract\n", "\x00"])
def test_a_torn_file_is_refused(text: str, tmp_path: Path) -> None:
    """No YAML, no mapping, or a key given twice: refused by name."""
    path = tmp_path / "torn.odcs.yaml"
    path.write_text(text)
    with pytest.raises(ContractError, match=r"torn\.odcs\.yaml"):
        load_contract(path)
    with pytest.raises(ContractError, match="cannot be read"):
        load_contract(tmp_path / "absent.odcs.yaml")


def test_dates_stay_text_and_are_instants_in_rules(tmp_path: Path) -> None:
    """YAML's dates would not be JSON; an instant's bound is compared in UTC."""
    properties = [
        {
            "name": "at",
            "logicalType": "timestamp",
            "quality": [ge("expect_column_values_to_be_between", min_value="2024-01-01")],
        }
    ]
    path = written(tmp_path, properties=properties)
    path.write_text(path.read_text().replace("'2024-01-01'", "2024-01-01"))
    contract = load_contract(path)
    assert contract.rules[0].arguments["min_value"] == "2024-01-01"
    assert contract.expectations()[0].check.low == 1_704_067_200_000_000  # type: ignore[union-attr]


def test_two_contracts_of_one_source_are_refused(tmp_path: Path) -> None:
    """Otherwise which of them holds would depend on the order of files."""
    path = written(tmp_path)
    assert list(load_contracts(tmp_path)) == ["orders"]
    (tmp_path / "z.odcs.yaml").write_text(path.read_text())
    with pytest.raises(ContractError, match="has a contract already"):
        load_contracts(tmp_path)
    assert load_contracts(tmp_path / "none") == {}


def test_lint_names_a_mode_that_cannot_be_kept(tmp_path: Path) -> None:
    """A rule about many rows cannot set one row aside."""
    aside = [{"property": "mode", "value": "quarantine"}]
    quality = [{"id": "u", "metric": "duplicateValues", "mustBe": 0, "customProperties": aside}]
    contract: Contract = load_contract(written(tmp_path, properties=of_amount(*quality)))
    assert any("rule 'u' cannot quarantine" in remark for remark in lint(contract))


def with_parameters(tmp_path: Path, *quality: dict[str, Any], **parameters: Any) -> Path:
    """A contract whose rules name parameters."""
    path = written(tmp_path, properties=of_amount(*quality))
    given = [{"property": f"parameter.{name}", "value": value} for name, value in parameters.items()]
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "customProperties": given}))
    return path


def test_parameters_take_the_place_of_what_names_them(tmp_path: Path) -> None:
    """As in a Great Expectations suite, at any depth; values keep their types."""
    limit = ge("expect_column_values_to_be_between", max_value={"$PARAMETER": "limit"}, mostly={"$PARAMETER": "share"})
    kinds = {**ge("expect_column_values_to_be_in_set", value_set={"$PARAMETER": "known"}), "id": "k"}
    path = with_parameters(tmp_path, limit, kinds, limit=9.5, share=0.9, known=[1, 2])
    (first, second) = quality_rules(load_contract(path))
    assert (first.arguments["max_value"], first.arguments["mostly"]) == (9.5, 0.9)
    assert second.arguments["value_set"] == [1, 2]


def test_an_unknown_parameter_is_refused_by_name(tmp_path: Path) -> None:
    """With its place, and the nearest that exists."""
    limit = ge("expect_column_values_to_be_between", max_value={"$PARAMETER": "limits"})
    with pytest.raises(ContractError, match=r"no parameter 'limits'.*did you mean 'limit'"):
        load_contract(with_parameters(tmp_path, limit, limit=1))
