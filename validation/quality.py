"""Which expectations does an ODCS quality rule stand for?

Library metrics and `custom` rules with `engine: great-expectations` become expectations; `text` rules and those of
other engines (sql, soda, …) are not judged here, and lint says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

from validation.odcs import Place

ENGINES: Final = ("great-expectations", "greatExpectations", "great_expectations")
METRICS: Final = ("nullValues", "missingValues", "invalidValues", "duplicateValues", "rowCount")
OPERATORS: Final = (
    "mustBe",
    "mustNotBe",
    "mustBeGreaterThan",
    "mustBeGreaterOrEqualTo",
    "mustBeLessThan",
    "mustBeLessOrEqualTo",
    "mustBeBetween",
    "mustNotBeBetween",
)
_FORMER: Final[Mapping[str, str]] = {
    "nullCheck": "nullValues",
    "nullCount": "nullValues",
    "duplicateCount": "duplicateValues",
    "duplicateCheck": "duplicateValues",
    "validValues": "invalidValues",
    "rowCountCheck": "rowCount",
}
"""Rules of 3.0, by the metrics that they became."""
DIMENSIONS: Final = (
    "accuracy",
    "completeness",
    "conformity",
    "consistency",
    "coverage",
    "timeliness",
    "uniqueness",
)


@dataclass(frozen=True, slots=True)
class Stated:
    """An expectation a quality rule stands for; `suffix` tells several of one rule apart."""

    expectation: str
    arguments: Mapping[str, Any]
    dimension: str
    suffix: str = ""


class NotJudged(Exception):
    """A quality rule that the standard allows and nothing here judges, with the reason."""


def stated_by(item: Place, column: str | None) -> list[Stated]:
    """The expectations of one quality rule of a column (None: of the whole table).

    Raises ContractError with the place of what is wrong, and NotJudged where the rule is left to others.
    """
    kind = item.choice("type", ("text", "library", "sql", "custom"), "library")
    if kind in {"text", "sql"}:
        raise NotJudged("is text or another engine's: nothing here judges it")
    if kind == "custom":
        if item.text("engine") not in ENGINES:
            raise NotJudged("is text or another engine's: nothing here judges it")
        return [_great_expectations(item, column)]
    metric = _metric(item)
    if metric not in METRICS:
        raise item.error(f"found metric {metric!r}; allowed: {', '.join(METRICS)}")
    if metric == "rowCount":
        return [_row_count(item, column)]
    if metric == "duplicateValues":
        return [_duplicates(item, column)]
    if column is None:
        raise item.error(f"metric {metric} belongs to a property, not to the whole schema")
    return _values(item, metric, column)


def _metric(item: Place) -> str:
    """The metric by its name in 3.1; `rule`, its name before, was free text."""
    if item.value.get("metric") is not None:
        return item.text("metric")
    rule = item.text("rule", "")
    metric = _FORMER.get(rule, rule)
    if metric not in METRICS:
        told = f"rule {rule!r}" if rule else "a rule without a metric"
        raise NotJudged(f"is {told}: nothing here judges it; metrics are {', '.join(METRICS)}")
    return metric


def _great_expectations(item: Place, column: str | None) -> Stated:
    place = item.child("implementation")
    body = place.value
    if isinstance(body, str):
        try:
            body = yaml.safe_load(body)
        except yaml.YAMLError as error:
            raise place.error(f"no readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(body, dict):
        raise place.error("found no mapping; expected type and kwargs of a Great Expectations expectation")
    name = body.get("type", body.get("expectation_type"))
    arguments = body.get("kwargs", {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise place.error(f"found type {name!r} and kwargs {arguments!r}; expected an expectation type and a mapping")
    takes_column = name.startswith(("expect_column_", "expect_select_column")) and "_pair_" not in name
    reference = arguments.get("reference")
    if name.endswith("_to_not_drift") and isinstance(reference, str):
        # A contract's reference lies relative to the contract, whoever reads it from where.
        arguments = {**arguments, "reference": (item.file.parent / reference).resolve().as_posix()}
    if column is not None and takes_column and not {"column", "column_list"} & set(arguments):
        arguments = {"column": column, **arguments}
    return Stated(name, arguments, _dimension(name))


def _dimension(expectation: str) -> str:
    for word, dimension in (
        ("null", "completeness"),
        ("row_count", "coverage"),
        ("unique", "uniqueness"),
        ("ahead_of", "timeliness"),
        ("pair", "consistency"),
        ("multicolumn", "consistency"),
    ):
        if word in expectation:
            return dimension
    return "conformity"


def _operator(item: Place) -> tuple[str, Any]:
    found = [(name, item.value[name]) for name in OPERATORS if name in item.value]
    if len(found) != 1:
        raise item.error(f"found {len(found)} operators; expected exactly one of {', '.join(OPERATORS)}")
    return found[0]


def _allowance(item: Place, metric: str) -> dict[str, Any]:
    """`mostly` for a metric that counts bad rows: none allowed, or at most so many percent."""
    operator, value = _operator(item)
    if operator in {"mustBe", "mustBeLessOrEqualTo"} and value == 0:
        return {}
    if (
        item.text("unit", "rows") == "percent"
        and operator == "mustBeLessOrEqualTo"
        and isinstance(value, int | float)
        and 0 <= value <= 100
    ):
        return {"mostly": 1 - value / 100}
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number and not (isinstance(value, list) and operator.endswith("Between")):
        raise item.child(operator).error(f"found {value!r}; expected a number")
    raise NotJudged(
        f"asks {metric} for {operator} {value!r}: it is not judged; "
        "judged are mustBe: 0, and mustBeLessOrEqualTo with unit: percent"
    )


def _values(item: Place, metric: str, column: str) -> list[Stated]:
    allowance = _allowance(item, metric)
    arguments = item.mapping("arguments")
    if metric == "nullValues":
        return [
            Stated("expect_column_values_to_not_be_null", {"column": column, **allowance}, "completeness"),
        ]
    if metric == "missingValues":
        missing = arguments.get("missingValues")
        if not isinstance(missing, list) or not missing:
            raise item.error("missingValues needs the argument missingValues: a list such as [null, '', 'N/A']")
        stated = []
        if None in missing:
            stated.append(Stated("expect_column_values_to_not_be_null", {"column": column}, "completeness", "_null"))
        if texts := [value for value in missing if value is not None]:
            listed = {"column": column, "value_set": texts, **allowance}
            stated.append(Stated("expect_column_values_to_not_be_in_set", listed, "completeness"))
        if allowance and len(stated) > 1:
            raise item.error("a percentage over nulls and listed values together cannot be judged; write two rules")
        return stated
    valid, pattern = arguments.get("validValues"), arguments.get("pattern")
    if valid is None:
        valid = item.value.get("validValues")  # where 3.0 had them
    if (valid is None) == (pattern is None):
        raise item.error("invalidValues needs exactly one of the arguments validValues, pattern")
    if valid is not None:
        if not isinstance(valid, list):
            raise item.child("arguments").error(f"found validValues {valid!r}; expected a list")
        # A missing value is never invalid; that one may be missing is said by the absence of a null rule.
        listed = {"column": column, "value_set": [value for value in valid if value is not None], **allowance}
        return [Stated("expect_column_values_to_be_in_set", listed, "conformity")]
    return [
        Stated("expect_column_values_to_match_regex", {"column": column, "regex": pattern, **allowance}, "conformity"),
    ]


def _duplicates(item: Place, column: str | None) -> Stated:
    allowance = _allowance(item, "duplicateValues")
    if column is not None:
        return Stated("expect_column_values_to_be_unique", {"column": column, **allowance}, "uniqueness")
    columns = item.mapping("arguments").get("properties")
    if not isinstance(columns, list) or not columns:
        raise item.error("duplicateValues of a schema needs the argument properties: a list of its properties")
    if len(columns) == 1:
        return Stated("expect_column_values_to_be_unique", {"column": columns[0], **allowance}, "uniqueness")
    return Stated("expect_compound_columns_to_be_unique", {"column_list": columns, **allowance}, "uniqueness")


def _row_count(item: Place, column: str | None) -> Stated:
    if column is not None:
        raise item.error("metric rowCount belongs to the schema, not to a property")
    operator, value = _operator(item)
    bounds: dict[str, Any]
    match operator, value:
        case "mustBe", int():
            bounds = {"min_value": value, "max_value": value}
        case "mustBeBetween", [low, high]:
            # The standard says both "∈ [a, b]" and "greater than a and less than b": the ends belong to it here.
            bounds = {"min_value": low, "max_value": high}
        case "mustBeGreaterThan" | "mustBeGreaterOrEqualTo", int():
            bounds = {"min_value": value, "strict_min": operator == "mustBeGreaterThan"}
        case "mustBeLessThan" | "mustBeLessOrEqualTo", int():
            bounds = {"max_value": value, "strict_max": operator == "mustBeLessThan"}
        case _:
            if not operator.startswith("mustNot"):
                raise item.child(operator).error(f"found {value!r}; rowCount takes integers")
            raise NotJudged(f"asks rowCount for {operator} {value!r}: it is not judged")
    return Stated("expect_table_row_count_to_be_between", bounds, "coverage")
