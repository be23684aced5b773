"""How is a check written in DuckDB's SQL, for columns of these physical types?

Columns are `v0`, `v1`, … of a prepared selection: NaN is NULL there and an instant is its microseconds. Values are
parameters; column names stand in the text as quoted identifiers. None where SQL would not answer as Python does: other
physical types than promised, or a regular expression that RE2 reads in another way. Then rows are judged in Python.
"""

import json
import math
import re
from collections.abc import Mapping
from itertools import combinations
from typing import Any, Final

import pyarrow as pa

from validation.check import (
    UNTYPED,
    Across,
    Aggregate,
    Between,
    Check,
    Compare,
    Condition,
    Conforms,
    Group,
    InSet,
    IsNull,
    Matches,
    Null,
    OfType,
    Pair,
    Unique,
)
from validation.compiled.relation import ROW, quoted
from validation.instant import DAY_US, RANGES
from validation.mixed import is_mixed
from validation.shape import WIDTHS, physical_type

_ATOM = r"""[A-Za-z0-9 _\-/:,@#%&~=<>!'";.]|\\[.\-/+*?()\[\]{}|^$\\]"""
_CLASS = r"""\[\^?(?:[A-Za-z0-9]-[A-Za-z0-9]|[A-Za-z0-9 _.,:;@#%/+*=!?]|\\[\-\]\\.])+\]"""
_REPEAT = r"(?:[*+?]|\{\d{1,3}(?:,\d{0,3})?\})\??"
_SHARED: Final = re.compile(rf"(\^?(?:(?:{_ATOM}|{_CLASS}|\))(?:{_REPEAT})?|\((?:\?:)?|\|)*)(\$?)")
"""Regular expressions that Python and RE2 read alike: no classes of Unicode, lookaround, flags or back references."""
_FAMILIES: Final = {
    "string": ("string",),
    "integer": ("integer", "number"),
    "number": ("integer", "number"),
    "boolean": ("boolean",),
    "date": ("instant",),
    "timestamp": ("instant",),
}
"""Logical type -> families of physical types that hold its values as they are."""
_EXPECTED: Final = {
    **_FAMILIES,
    "integer": ("integer", "number", "decimal"),
    "number": ("integer", "number", "decimal"),
    "time": ("time",),
    "array": ("list",),
    "vector": ("list",),
    "object": ("struct", "map"),
    "map": ("struct", "map"),
}
"""Logical type -> families of physical types whose values may be of it."""
_COUNTED: Final = frozenset({"distinct", "distinct_share", "non_null_share"})
"""Statistics that are counts of any values."""
_INT64: Final = range(-(2**63), 2**63)


def kind(physical: pa.DataType) -> str:
    """The family of a physical type: integer, number, string, boolean, instant or other.

    >>> kind(pa.int32()), kind(pa.large_string()), kind(pa.date32())
    ('integer', 'string', 'instant')
    """
    for test, name in (
        (pa.types.is_integer, "integer"),
        (pa.types.is_floating, "number"),
        (pa.types.is_boolean, "boolean"),
        (pa.types.is_string, "string"),
        (pa.types.is_large_string, "string"),
        (pa.types.is_timestamp, "instant"),
        (pa.types.is_date, "instant"),
    ):
        if test(physical):
            return name
    return "other"


def physical_family(physical: pa.DataType) -> str:
    """The family of a physical type, with those that SQL leaves to Python; other where none is known.

    >>> physical_family(pa.int8()), physical_family(pa.list_(pa.int8())), physical_family(pa.decimal128(9, 2))
    ('integer', 'list', 'decimal')
    """
    for test, name in (
        (pa.types.is_decimal, "decimal"),
        (pa.types.is_time, "time"),
        (pa.types.is_map, "map"),
        (pa.types.is_struct, "struct"),
        (pa.types.is_nested, "list"),
        (pa.types.is_binary, "binary"),
        (pa.types.is_large_binary, "binary"),
        (pa.types.is_fixed_size_binary, "binary"),
        (pa.types.is_duration, "duration"),
    ):
        if test(physical):
            return name
    return kind(physical)


def conforms(check: Conforms, s: "Selection") -> str | None:
    """Whether a value breaks a shape, where the column's physical type and little more decide; None where Python must.

    A column of another family breaks the shape with every value. Text is read as an instant or a time in Python, unless
    the contract says that the physical type is one.
    """
    shape = json.loads(check.shape)
    logical, family = shape.get("logicalType", UNTYPED), physical_family(s.physical[check.column])
    declared = physical_type(shape.get("physicalType", ""))[0]
    if family == "other" or logical not in _EXPECTED:
        return None
    if family not in _EXPECTED[logical]:
        as_text = logical in {"date", "timestamp", "time"} and family == "string" and declared in {"", "string"}
        as_number = logical in {"date", "timestamp"} and family == "integer" and declared in {"integer", *WIDTHS}
        if logical == "timestamp" and family == "integer" and not as_number:
            known = " OR ".join(
                f"{s.local(check.column)} BETWEEN {s.parameter(low)} AND {s.parameter(high - 1)}"
                for low, high in RANGES.values()
            )
            return f"NOT ({known})"
        return None if as_text or as_number else "TRUE"
    value = s.local(check.column)
    size = physical_type(shape.get("physicalType", ""))[1]
    if logical == "integer" and family == "integer" and set(shape) == {"logicalType", "physicalType"}:
        low, high = WIDTHS.get(declared, (None, None))
        if low is not None and high is not None and low in _INT64 and high in _INT64:
            return f"NOT ({value} BETWEEN {s.parameter(low)} AND {s.parameter(high)})"
    if (
        logical == "string"
        and family == "string"
        and set(shape) == {"logicalType", "physicalType"}
        and size is not None
    ):
        return f"length({value}) > {s.parameter(size)}"
    if family == "instant" and set(shape) <= {"logicalType", "physicalType"}:
        timed = logical == "date" and not pa.types.is_date(s.physical[check.column])
        return f"({value} % {s.parameter(DAY_US)} <> 0)" if timed else "FALSE"
    if set(shape) != {"logicalType"}:
        return _multiple(shape, family, value, s)
    if logical == "integer" and family == "number":
        return f"(isinf({value}) OR {value} <> trunc({value}))"
    return None if logical == "integer" and family == "decimal" else "FALSE"


def _multiple(shape: dict[str, Any], family: str, value: str, s: "Selection") -> str | None:
    step = shape.get("logicalTypeOptions", {}).get("multipleOf")
    alone = set(shape) == {"logicalType", "logicalTypeOptions"} and set(shape["logicalTypeOptions"]) == {"multipleOf"}
    if not alone or family != "integer" or not isinstance(step, int) or step not in _INT64:
        return None
    return f"({value} % {s.parameter(step)} <> 0)"


def re2(pattern: str) -> str | None:
    r"""The pattern for RE2, where it means there what Python means by it; else None.

    >>> re2("^[A-Z]{2}$") == r"^[A-Z]{2}\n?\z"
    True
    >>> re2(r"\d+")
    """
    found = _SHARED.fullmatch(pattern)
    if found is None:
        return None
    # Python's `$` also matches before a newline that ends the text.
    return found[1] + (r"\n?\z" if found[2] else "")


class Selection:
    """The prepared columns and parameters that the expressions of one statement share."""

    def __init__(self, physical: Mapping[str, pa.DataType], logical: Mapping[str, str]) -> None:
        self.physical, self._logical = physical, logical
        self.parameters: dict[str, Any] = {}
        self._columns: dict[str, str] = {}

    def kind(self, column: str) -> str:
        """The family of a column's physical type; other where its logical type is of another family."""
        found = kind(self.physical[column])
        if self._logical[column] == UNTYPED:
            return found
        return found if found in _FAMILIES.get(self._logical[column], ()) else "other"

    def logical(self, column: str) -> str:
        """The column's logical type."""
        return self._logical[column]

    def local(self, column: str) -> str:
        """The name of a prepared column."""
        return self._columns.setdefault(column, f"v{len(self._columns)}")

    def parameter(self, value: Any) -> str:
        """A placeholder of a value."""
        name = f"p{len(self.parameters)}"
        self.parameters[name] = value
        return f"${name}"

    def select(self, table: str) -> str:
        """The prepared selection, with `n`, the row's number."""
        prepared = ", ".join(f"{self._prepare(column)} AS {local}" for column, local in self._columns.items())
        return f"SELECT {prepared}{', ' if prepared else ''}{quoted(ROW)} AS n FROM {table}"  # noqa: S608  # quoted

    def _prepare(self, column: str) -> str:
        name, physical = quoted(column), self.physical[column]
        if kind(physical) == "number":
            return f"nullif({name}::DOUBLE, 'nan'::DOUBLE) + 0.0"  # + 0.0: one zero, not two
        if pa.types.is_date(physical):
            return f"epoch_us({name}::TIMESTAMP)"
        if kind(physical) == "instant" and pa.types.is_timestamp(physical) and physical.unit == "ns":
            # Floored by hand: DuckDB has no epoch_us of zoned nanoseconds, and its division truncates towards zero.
            return f"((epoch_ns({name}) - ((epoch_ns({name}) % 1000) + 1000) % 1000) // 1000)"
        return f"epoch_us({name})" if kind(physical) == "instant" else name


def considered(check: Check, s: Selection) -> str:
    """The rows that a check considers."""
    match check:
        case Null() | Aggregate():
            return "TRUE"
        case Pair(a, b):
            return _ignoring((a, b), check.ignore, s)
        case Across(columns) | Unique(columns):
            return _ignoring(columns, check.ignore, s)
        case Between(column) | InSet(column) | Matches(column) | OfType(column) | Conforms(column):
            return f"{s.local(column)} IS NOT NULL"
        case _:
            raise AssertionError(check)


def _ignoring(columns: tuple[str, ...], ignore: str, s: Selection) -> str:
    joiner = {"all": " OR ", "any": " AND ", "none": ""}[ignore]
    return joiner.join(f"{s.local(column)} IS NOT NULL" for column in columns) if joiner else "TRUE"


def bad(check: Check, s: Selection) -> str | None:
    """Whether a considered row is unexpected, never NULL; None where Python must say."""
    match check:
        case Null(column, null):
            return f"{s.local(column)} IS {'NOT ' if null else ''}NULL"
        case Between():
            return _between(check, s)
        case InSet(column, values, negate):
            if s.kind(column) == "other":
                return None
            # A constant that the column's type cannot hold is never met.
            members = [constant for value in values if (constant := _constant(value, s.kind(column))) is not None]
            listed = ", ".join(s.parameter(constant) for constant in members)
            inside = f"{s.local(column)} IN ({listed})" if listed else "FALSE"
            return inside if negate else f"NOT {inside}"
        case Matches(column, patterns, on_all, negate):
            translated = [re2(pattern) for pattern in patterns]
            if s.kind(column) != "string" or None in translated:
                return None
            joiner = " AND " if on_all else " OR "
            found = joiner.join(f"regexp_matches({s.local(column)}, {s.parameter(text)})" for text in translated)
            return f"({found})" if negate else f"NOT ({found})"
        case OfType(column, type_):
            family = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}[type_]
            return "FALSE" if kind(s.physical[column]) == family else "TRUE"
        case Conforms():
            return conforms(check, s)
        case Pair(a, b, op, _, slack_us):
            return _pair(a, b, op, slack_us, s)
        case Across():
            return _across(check, s)
        case _:
            return None


def _between(check: Between, s: Selection) -> str | None:
    family, value = s.kind(check.column), s.local(check.column)
    if check.of == "length":
        if family != "string":
            return None
        value, family = f"length({value})", "integer"
    parts = []
    for bound, strict, op in ((check.low, check.strict_low, ">"), (check.high, check.strict_high, "<")):
        if bound is None:
            continue
        if family == "integer" and isinstance(bound, float) and not bound.is_integer():
            # An integer is at least 0.5 where it is above 0; so it is compared with integers alone.
            bound, strict = (math.floor(bound) if op == ">" else math.ceil(bound)), True
        constant = _constant(bound, family)
        if constant is None:
            return None
        parts.append(f"{value} {op}{'' if strict else '='} {s.parameter(constant)}")
    return f"NOT ({' AND '.join(parts)})"


def _constant(value: object, family: str) -> Any:
    """The value as DuckDB compares it with columns of that family exactly as Python does; None where it does not.

    >>> _constant(1, "number"), _constant(2**53 + 1, "number"), _constant(0.5, "integer")
    (1.0, None, None)
    """
    if isinstance(value, str):
        return value if family == "string" else None
    if isinstance(value, bool):
        return value if family == "boolean" else None
    if not isinstance(value, int | float):
        return None
    if family == "number":
        return float(value) if float(value) == value else None
    return int(value) if family in {"integer", "instant"} and value == int(value) and int(value) in _INT64 else None


def _alike(columns: tuple[str, ...], s: Selection) -> bool:
    families = {s.kind(column) for column in columns}
    return len(families) == 1 and "other" not in families


def _pair(a: str, b: str, op: str, slack_us: int, s: Selection) -> str | None:
    if not _alike((a, b), s):
        return None
    left, right = s.local(a), s.local(b)
    if op == "ahead":
        return f"coalesce({left} > {right}::HUGEINT + {s.parameter(slack_us)}, TRUE)"
    return f"coalesce(NOT {left} {'=' if op == '==' else op} {right}, TRUE)"


def _across(check: Across, s: Selection) -> str | None:
    if not _alike(check.columns, s):
        return None
    values = [s.local(column) for column in check.columns]
    if check.op == "sum":
        whole = s.kind(check.columns[0]) == "integer"
        constant = _constant(check.total, "integer" if whole else "number")
        if constant is None:
            return None
        total = " + ".join(f"{value}::HUGEINT" if whole else value for value in values)
        return f"coalesce({total} <> {s.parameter(constant)}, TRUE)"
    pairs = combinations(values, 2) if check.op == "unique" else ((values[0], value) for value in values[1:])
    same = [f"{left} IS NOT DISTINCT FROM {right}" for left, right in pairs]
    return "(" + " OR ".join(same) + ")" if check.op == "unique" else "NOT (" + " AND ".join(same) + ")"


_FUNCTIONS: Final = {
    "mean": "avg({v})",
    "min": "min({v})",
    "max": "max({v})",
    "sum": "coalesce(sum({v}), 0)",
    "median": "median({v})",
    "distinct": "count(DISTINCT {v})",
}


def statistic(check: Aggregate, where: str, s: Selection) -> str | None:
    """The SQL of an aggregate rule's statistic over the rows that meet the condition."""
    only = f" FILTER (WHERE {where})"
    if check.column is None:
        return f"count(*){only}"
    family, value = s.kind(check.column), s.local(check.column)
    if is_mixed(s.physical[check.column]) and check.function not in _COUNTED:
        # A statistic is one of the values that are of the column's type; the others break the rule about the type.
        text = f"{value}::VARCHAR"
        integer = f"CASE WHEN regexp_full_match({text}, '-?[0-9]+') THEN TRY_CAST({text} AS BIGINT) END"
        family = s.logical(check.column)
        value = f"({integer})" if family == "integer" else f"TRY_CAST({text} AS DOUBLE)"
    if family not in {"integer", "number"} and check.function not in _COUNTED:
        return None
    if check.function == "stdev":
        # DuckDB refuses infinities here; pandas answers NaN, which is no value.
        finite = f" FILTER (WHERE {where} AND isfinite({value}::DOUBLE))"
        return (
            f"CASE WHEN bool_or(isinf({value}::DOUBLE)){only} THEN NULL ELSE stddev_samp({value}::DOUBLE){finite} END"
        )
    if check.function == "distinct_share":
        return f"coalesce(count(DISTINCT {value}){only} / nullif(count({value}){only}, 0), 0)"
    if check.function == "non_null_share":
        return f"coalesce(count({value}){only} / nullif(count(*){only}, 0), 0)"
    aggregate = _FUNCTIONS[check.function].format(v=value)
    return f"coalesce(sum({value}){only}, 0)" if check.function == "sum" else f"{aggregate}{only}"


def condition(where: Condition | None, s: Selection) -> str | None:
    """A row condition, never NULL: a missing value meets `!=`, NOT_IN and null conditions alone."""
    match where:
        case None:
            return "TRUE"
        case Group(op, conditions):
            parts = [condition(part, s) for part in conditions]
            return None if None in parts else "(" + f" {op.upper()} ".join(str(part) for part in parts) + ")"
        case IsNull(column, null):
            return f"{s.local(column)} IS {'' if null else 'NOT '}NULL"
        case Compare(column, op, value):
            constants = value if isinstance(value, tuple) else (value,)
            known = [_constant(constant, s.kind(column)) for constant in constants]
            if None in known:
                return None
            listed = [s.parameter(constant) for constant in known]
            unmet = "TRUE" if op in {"!=", "NOT_IN"} else "FALSE"
            if op in {"IN", "NOT_IN"}:
                inside = f"{s.local(column)} {op.replace('_', ' ')} ({', '.join(listed)})" if listed else unmet
                return f"coalesce({inside}, {unmet})"
            return f"coalesce({s.local(column)} {'=' if op == '==' else op} {listed[0]}, {unmet})"
