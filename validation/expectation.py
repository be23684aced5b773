"""What does an expectation mean?

A Great Expectations type and its arguments become one Check. Types that Great Expectations knows and no Check exists
for are judged by it alone, on batches.
"""

import json
from collections.abc import Callable, Mapping
from typing import Final, Literal

from validation.arguments import Arguments
from validation.check import (
    ARRIVAL,
    INSTANTS,
    UNTYPED,
    Across,
    Aggregate,
    Between,
    Check,
    Columns,
    Compare,
    Condition,
    Conforms,
    Drift,
    Expectation,
    Group,
    Ignore,
    InSet,
    IsNull,
    Matches,
    Null,
    OfType,
    Pair,
    RowCheckable,
    Unique,
)
from validation.errors import ContractError, did_you_mean
from validation.pattern import NotLinear
from validation.shape import misfit_of

_PAIR_IGNORE: Final[Mapping[str, Ignore]] = {
    "both_values_are_missing": "all",
    "either_value_is_missing": "any",
    "neither": "none",
}
_ROW_IGNORE: Final[Mapping[str, Ignore]] = {
    "all_values_are_missing": "all",
    "any_value_is_missing": "any",
    "never": "none",
}
_ORDERED: Final = frozenset({"integer", "number", *INSTANTS})
"""Logical types that Great Expectations compares with bounds; it refuses text."""
_STATISTICS: Final = {
    "mean": "mean",
    "min": "min",
    "max": "max",
    "sum": "sum",
    "stdev": "stdev",
    "median": "median",
    "unique_value_count": "distinct",
    "proportion_of_unique_values": "distinct_share",
    "proportion_of_non_null_values": "non_null_share",
}


def _ordered_column(a: Arguments) -> str:
    column = a.column()
    if a.types[column] not in {*_ORDERED, UNTYPED}:
        raise ContractError(
            f"{a.expectation}: column {column!r} is a {a.types[column]}; allowed: {', '.join(sorted(_ORDERED))}"
        )
    return column


def _text_column(a: Arguments) -> str:
    column = a.column()
    if a.types[column] not in {"string", UNTYPED}:
        raise ContractError(f"{a.expectation}: column {column!r} is a {a.types[column]}; allowed: string")
    return column


def _between(a: Arguments) -> Between:
    column = _ordered_column(a)
    return Between(column, *a.between(a.bound("min_value", column), a.bound("max_value", column)))


def _lengths(a: Arguments) -> Between:
    column = _text_column(a)
    return Between(column, *a.between(a.integer("min_value"), a.integer("max_value")), of="length")


def _length(a: Arguments) -> Between:
    column, value = _text_column(a), a.integer("value")
    if value is None:
        raise a.wrong("value", value, "an integer")
    return Between(column, value, value, strict_low=False, strict_high=False, of="length")


def _in_set(*, negate: bool) -> Callable[[Arguments], InSet]:
    def build(a: Arguments) -> InSet:
        column = a.column()
        return InSet(column, a.values("value_set", column), negate)

    return build


def _regex(name: str, *, negate: bool) -> Callable[[Arguments], Matches]:
    def build(a: Arguments) -> Matches:
        column = _text_column(a)
        match_on = "any"
        if name == "regex_list" and not negate:
            match_on = str(a.take("match_on", "any"))
            if match_on not in {"any", "all"}:
                raise a.wrong("match_on", match_on, "any, all")
        return Matches(column, a.patterns(name), match_on == "all", negate)

    return build


def _of_type(a: Arguments) -> OfType:
    column, name = a.column(), a.take("type_")
    if name not in {"str", "int", "float", "bool"}:
        raise a.wrong("type_", name, "str, int, float, bool")
    return OfType(column, str(name))


def _conforms(a: Arguments) -> Conforms:
    column, shape = a.column(), a.take("shape")
    if not isinstance(shape, dict) or not shape:
        raise a.wrong("shape", shape, "a mapping such as {logicalType: array, items: {logicalType: string}}")
    text = json.dumps(shape, sort_keys=True)
    try:
        misfit_of(text)
    except (NotLinear, TypeError, ValueError, KeyError) as error:
        raise ContractError(f"{a.expectation}: the shape of column {column!r} cannot be judged: {error}") from error
    return Conforms(column, text)


def _greater(a: Arguments) -> Pair:
    op: Literal[">", ">="] = ">=" if a.flag("or_equal") else ">"
    return Pair(*_alike(a), op, a.choice("ignore_row_if", _PAIR_IGNORE, "both_values_are_missing"))


def _equal(a: Arguments) -> Pair:
    return Pair(*_alike(a), "==", a.choice("ignore_row_if", _PAIR_IGNORE, "both_values_are_missing"))


def _ahead(a: Arguments) -> Pair:
    first, second = a.column("column_A"), a.take("column_B", ARRIVAL)
    tolerance_s = a.number("tolerance_s") or 0.0
    if tolerance_s < 0:
        raise a.wrong("tolerance_s", tolerance_s, "seconds, 0 or more")
    for name, column in (("column_A", first), ("column_B", second)):
        if a.types.get(str(column)) not in INSTANTS:
            raise a.wrong(name, column, "a column of instants (date, timestamp)")
    ignore = a.choice("ignore_row_if", _PAIR_IGNORE, "either_value_is_missing")
    return Pair(first, str(second), "ahead", ignore, round(tolerance_s * 1_000_000))


def _alike(a: Arguments) -> tuple[str, str]:
    first, second = a.column("column_A"), a.column("column_B")
    kinds = {"integer": "number", "date": "timestamp"}
    types = [a.types[first], a.types[second]]
    if UNTYPED not in types and kinds.get(types[0], types[0]) != kinds.get(types[1], types[1]):
        raise ContractError(
            f"{a.expectation}: {first!r} is a {types[0]} and {second!r} a {types[1]}: they cannot be compared"
        )
    return first, second


def _across(op: Literal["equal", "unique", "sum"]) -> Callable[[Arguments], Across]:
    def build(a: Arguments) -> Across:
        columns, total = a.column_list("column_list", 2), 0.0
        if op == "sum":
            given = a.number("sum_total")
            if given is None:
                raise a.wrong("sum_total", given, "a finite number")
            total = given
            for column in columns:
                if a.types[column] not in {"integer", "number", UNTYPED}:
                    raise ContractError(f"{a.expectation}: column {column!r} is a {a.types[column]}, not a number")
        return Across(columns, op, a.choice("ignore_row_if", _ROW_IGNORE, "all_values_are_missing"), total)

    return build


def _unique(a: Arguments) -> Unique:
    return Unique((a.column(),), "any")


def _compound(a: Arguments) -> Unique:
    columns = a.column_list("column_list", 2)
    return Unique(columns, a.choice("ignore_row_if", _ROW_IGNORE, "all_values_are_missing"))


def _statistic(function: str) -> Callable[[Arguments], Aggregate]:
    def build(a: Arguments) -> Aggregate:
        column = a.column()
        counted = function in {"distinct", "distinct_share", "non_null_share"}
        if not counted and a.types[column] not in {"integer", "number", UNTYPED}:
            raise ContractError(f"{a.expectation}: column {column!r} is a {a.types[column]}, not a number")
        bound = a.integer if function == "distinct" else a.number
        low, high, strict_low, strict_high = a.between(bound("min_value"), bound("max_value"))
        return Aggregate(column, function, low, high, strict_low, strict_high)  # type: ignore[arg-type]  # numbers

    return build


def _row_count(a: Arguments) -> Aggregate:
    low, high, strict_low, strict_high = a.between(a.integer("min_value"), a.integer("max_value"))
    return Aggregate(None, "rows", low, high, strict_low, strict_high)  # type: ignore[arg-type]  # integers


def _row_count_equal(a: Arguments) -> Aggregate:
    value = a.integer("value")
    if value is None:
        raise a.wrong("value", value, "an integer")
    return Aggregate(None, "rows", value, value, strict_low=False, strict_high=False)


def _exists(a: Arguments) -> Columns:
    return Columns((a.column(),), exact=False)


def _column_set(a: Arguments) -> Columns:
    exact = a.take("exact_match", default=True)
    return Columns(a.column_list("column_set"), exact is True)


def _drift(columns: Callable[[Arguments], tuple[str, ...]]) -> Callable[[Arguments], Drift]:
    def build(a: Arguments) -> Drift:
        named, reference = columns(a), a.take("reference")
        if not isinstance(reference, str) or not reference:
            raise a.wrong("reference", reference, "the path of a training set, a file or a folder")
        time_column, hours = a.take("time_column"), a.number("block_hours")
        if time_column is not None and a.types.get(str(time_column)) != "timestamp":
            raise a.wrong("time_column", time_column, "a column of instants (timestamp)")
        if hours is not None and (hours <= 0 or time_column is None):
            raise a.wrong("block_hours", hours, "hours above 0, with a time_column")
        rate, seed = a.number("family_rate"), a.integer("seed")
        if rate is not None and not 0 < rate < 1:
            raise a.wrong("family_rate", rate, "a share between 0 and 1")
        least = [(name, a.number(name)) for name in ("wasserstein_sd", "cohens_w", "missing", "new")]
        for name, value in least:
            if value is not None and value <= 0:
                raise a.wrong(name, value, "the least effect that counts, above 0")
        segments = a.column_list("segments") if a.left.get("segments") is not None else ()
        entities = a.column_list("entities") if a.left.get("entities") is not None else ()
        return Drift(
            named,
            reference,
            segments,
            None if time_column is None else str(time_column),
            hours,
            0.05 if rate is None else rate,
            seed or 0,
            tuple((name, float(value)) for name, value in least if value is not None),
            entities,
        )

    return build


COMPILED: Final[Mapping[str, Callable[[Arguments], Check]]] = {
    "expect_column_values_to_not_be_null": lambda a: Null(a.column(), null=False),
    "expect_column_values_to_be_null": lambda a: Null(a.column(), null=True),
    "expect_column_values_to_be_between": _between,
    "expect_column_values_to_be_in_set": _in_set(negate=False),
    "expect_column_values_to_not_be_in_set": _in_set(negate=True),
    "expect_column_values_to_match_regex": _regex("regex", negate=False),
    "expect_column_values_to_not_match_regex": _regex("regex", negate=True),
    "expect_column_values_to_match_regex_list": _regex("regex_list", negate=False),
    "expect_column_values_to_not_match_regex_list": _regex("regex_list", negate=True),
    "expect_column_value_lengths_to_be_between": _lengths,
    "expect_column_value_lengths_to_equal": _length,
    "expect_column_values_to_be_of_type": _of_type,
    "expect_column_values_to_conform_to_schema": _conforms,
    "expect_column_pair_values_a_to_be_greater_than_b": _greater,
    "expect_column_pair_values_to_be_equal": _equal,
    "expect_column_pair_values_a_to_not_be_ahead_of_b": _ahead,
    "expect_multicolumn_sum_to_equal": _across("sum"),
    "expect_multicolumn_values_to_be_equal": _across("equal"),
    "expect_select_column_values_to_be_unique_within_record": _across("unique"),
    "expect_column_values_to_be_unique": _unique,
    "expect_compound_columns_to_be_unique": _compound,
    **{f"expect_column_{name}_to_be_between": _statistic(function) for name, function in _STATISTICS.items()},
    "expect_table_row_count_to_be_between": _row_count,
    "expect_table_row_count_to_equal": _row_count_equal,
    "expect_column_to_exist": _exists,
    "expect_column_to_not_drift": _drift(lambda a: (a.column(),)),
    "expect_table_to_not_drift": _drift(lambda a: a.column_list("columns")),
    "expect_table_columns_to_match_set": _column_set,
}
"""Expectation type -> how its arguments become a Check. `…_ahead_of_b`, `…_to_not_drift` and `…_conform_to_schema` are
ours, given to GE by `validation.suite`."""

JUDGED_BY_GE: Final = frozenset(
    f"expect_{name}"
    for name in (
        "column_distinct_values_to_be_in_set",
        "column_distinct_values_to_contain_set",
        "column_distinct_values_to_equal_set",
        "column_kl_divergence_to_be_less_than",
        "column_most_common_value_to_be_in_set",
        "column_pair_values_to_be_in_set",
        "column_quantile_values_to_be_between",
        "column_type_to_be",
        "column_value_z_scores_to_be_less_than",
        "column_values_to_be_dateutil_parseable",
        "column_values_to_be_decreasing",
        "column_values_to_be_in_type_list",
        "column_values_to_be_increasing",
        "column_values_to_be_json_parseable",
        "column_values_to_match_json_schema",
        "column_values_to_match_like_pattern",
        "column_values_to_match_like_pattern_list",
        "column_values_to_match_strftime_format",
        "column_values_to_not_be_outliers",
        "column_values_to_not_match_like_pattern",
        "column_values_to_not_match_like_pattern_list",
        "query_results_to_match_comparison",
        "table_column_count_to_be_between",
        "table_column_count_to_equal",
        "table_columns_to_match_ordered_list",
        "table_row_count_to_equal_other_table",
    )
)
"""Types of Great Expectations 1.24 that have no compiled form (a test compares the list with the library's own)."""


def parse_expectation(type_: str, arguments: Mapping[str, object], types: Mapping[str, str]) -> Expectation:
    """The meaning of an expectation over columns of the given logical types; raises ContractError.

    >>> parse_expectation("expect_column_values_to_be_between", {"column": "x", "min_value": 0}, {"x": "number"}).check
    Between(column='x', low=0, high=None, strict_low=False, strict_high=False, of='value')
    """
    if type_ in JUDGED_BY_GE:
        return Expectation(type_, None)
    if type_ not in COMPILED:
        raise ContractError(f"no expectation {type_!r}; {did_you_mean(type_, [*COMPILED, *JUDGED_BY_GE])}")
    taken = Arguments(type_, arguments, {ARRIVAL: "timestamp", **types})
    check = COMPILED[type_](taken)
    mostly = taken.number("mostly") if isinstance(check, RowCheckable | Unique) else None
    if mostly is not None and not 0 <= mostly <= 1:
        raise taken.wrong("mostly", mostly, "a share between 0 and 1")
    where = taken.take("row_condition") if not isinstance(check, Columns | Drift) else None
    condition = None if where is None else _condition(taken, where)
    taken.finish()
    return Expectation(type_, check, 1.0 if mostly is None else float(mostly), condition)


_OPERATORS: Final = ("==", "!=", "<", "<=", ">", ">=", "IN", "NOT_IN")


def _condition(a: Arguments, value: object) -> Condition:
    """A row condition in the dict form that Great Expectations serialises."""
    if not isinstance(value, dict):
        raise a.wrong("row_condition", value, "a mapping with type: comparison, nullity, and, or")
    match value.get("type"):
        case "and" | "or" as op if value.get("conditions"):
            return Group(op, tuple(_condition(a, part) for part in value["conditions"]))
        case "nullity":
            return IsNull(_condition_column(a, value), value.get("is_null") is True)
        case "comparison" if value.get("operator") in _OPERATORS:
            column, op, constant = _condition_column(a, value), value["operator"], value.get("parameter")
            if op in {"IN", "NOT_IN"}:
                if not isinstance(constant, list | tuple):
                    raise a.wrong("row_condition", constant, f"a list, as the operator is {op}")
                return Compare(column, op, tuple(a.typed("row_condition", item, column) for item in constant))
            return Compare(column, op, a.typed("row_condition", constant, column))
        case _:
            raise a.wrong("row_condition", value, f"type: comparison ({' '.join(_OPERATORS)}), nullity, and, or")


def _condition_column(a: Arguments, value: Mapping[str, object]) -> str:
    column = value.get("column")
    name = column.get("name") if isinstance(column, dict) else column
    return a.known("row_condition", name)
