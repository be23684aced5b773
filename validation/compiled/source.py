"""How is a check written in Python?

Text of expressions over locals `v0`, `v1`, … (a column's value, None where missing) and constants `k0`, `k1`, ….
Nothing a user chose, no name and no value, ever stands in the text: names and values are constants of the namespace.
"""

import json
from typing import Any

from validation.check import (
    INSTANTS,
    Across,
    Between,
    Compare,
    Condition,
    Conforms,
    Group,
    InSet,
    IsNull,
    Matches,
    OfType,
    Pair,
    RowCheckable,
)
from validation.instant import DAY_US
from validation.pattern import searcher
from validation.shape import WIDTHS, misfit_of, physical_type

_CLASSES = {"string": str, "integer": int, "number": float, "boolean": bool, "date": int, "timestamp": int}
"""Logical type -> the class of most of its values; instants are microseconds by then."""
_TYPES = {"str": str, "int": int, "float": float, "bool": bool}


class Namespace:
    """Locals of columns and constants of values, in order of first use."""

    def __init__(self) -> None:
        self.columns: dict[str, str] = {}
        self.constants: dict[str, Any] = {}

    def local(self, column: str) -> str:
        """The local that holds a column's value."""
        return self.columns.setdefault(column, f"v{len(self.columns)}")

    def constant(self, value: Any) -> str:
        """The name a value goes by."""
        name = f"k{len(self.constants)}"
        self.constants[name] = value
        return name


def bad_value(check: RowCheckable, ns: Namespace) -> str:
    """An expression that is true where a value of one column that is not missing is unexpected."""
    match check:
        case Between(column, low, high, strict_low, strict_high, of):
            value = ns.local(column)
            if of == "length":
                value = f"len({_text(value)})"
            left = "" if low is None else f"{ns.constant(low)} {'<' if strict_low else '<='} "
            right = "" if high is None else f" {'<' if strict_high else '<='} {ns.constant(high)}"
            return f"not {left}{value}{right}"
        case InSet(column, values, negate):
            return f"{ns.local(column)} {'' if negate else 'not '}in {ns.constant(frozenset(values))}"
        case Matches(column, patterns, on_all, negate):
            text = _text(ns.local(column))
            joiner = " and " if on_all else " or "
            found = joiner.join(f"{ns.constant(searcher(pattern))}({text})" for pattern in patterns)
            return f"({found})" if negate else f"not ({found})"
        case OfType(column, type_):
            wrong = f"not isinstance({ns.local(column)}, {ns.constant(_TYPES[type_])})"
            # Python's booleans are integers; columns of booleans are not.
            return f"{wrong} or {ns.local(column)}.__class__ is {ns.constant(bool)}" if type_ == "int" else wrong
        case Conforms(column, shape):
            return _conforms(ns.local(column), shape, ns)
        case _:
            raise AssertionError(check)  # null rules need no value, rules of several columns have bad_row


def _conforms(local: str, shape: str, ns: Namespace) -> str:
    """Most values are of the class that their type has in Python: the shape is asked of the others alone."""
    said = json.loads(shape)
    logical = said.get("logicalType", "")
    plain = _CLASSES.get(logical) if set(said) <= {"logicalType", "physicalType"} else None
    misfits = f"{ns.constant(misfit_of(shape))}({local})"
    if plain is None:
        return misfits
    other = f"{local}.__class__ is not {ns.constant(plain)}"
    family, size, _ = physical_type(said.get("physicalType", ""))
    if plain is str and size is not None:
        return f"({other} or len({local}) > {ns.constant(size)}) and {misfits}"
    if logical == "integer" and family in WIDTHS:
        low, high = (ns.constant(bound) for bound in WIDTHS[family])
        return f"({other} or not {low} <= {local} <= {high}) and {misfits}"
    if logical in INSTANTS:
        timed = f" or {local} % {ns.constant(DAY_US)}" if logical == "date" else ""
        return f"({other} or not {ns.constant(-(2**63))} <= {local} < {ns.constant(2**63)}{timed}) and {misfits}"
    return misfits if size is not None else f"{other} and {misfits}"


def bad_row(check: Pair | Across, ns: Namespace) -> tuple[str, str]:
    """Expressions of several columns: whether the row is considered, and whether it is unexpected."""
    columns = (check.a, check.b) if isinstance(check, Pair) else check.columns
    values = [ns.local(column) for column in columns]
    considered = {
        "all": " or ".join(f"{value} is not None" for value in values),
        "any": " and ".join(f"{value} is not None" for value in values),
        "none": "True",
    }[check.ignore]
    missing = " or ".join(f"{value} is None" for value in values)
    match check:
        case Pair(_, _, "ahead", _, slack_us):
            return considered, f"{missing} or {values[0]} > {values[1]} + {ns.constant(slack_us)}"
        case Pair(_, _, op):
            return considered, f"{missing} or not {values[0]} {op} {values[1]}"
        case Across(_, "sum", _, total):
            return considered, f"{missing} or {' + '.join(values)} != {ns.constant(total)}"
        case Across(_, "equal"):
            return considered, f"not {' == '.join(values)}"
        case Across():
            return considered, f"len({{{', '.join(values)}}}) < {len(values)}"


def bad_whole_row(check: Pair | Across, ns: Namespace) -> str:
    """One expression of several columns: whether the row is considered and unexpected; a pair asks each value once."""
    considered, bad = bad_row(check, ns)
    if not isinstance(check, Pair) or check.op == "ahead":
        return f"({considered}) and ({bad})"
    a, b = ns.local(check.a), ns.local(check.b)
    one_missing = {"all": f"{b} is not None", "any": "False", "none": "True"}[check.ignore]
    other_missing = {"all": "True", "any": "False", "none": "True"}[check.ignore]
    unequal = f"{a} != {b}" if check.op == "==" else f"not {a} {check.op} {b}"
    return f"{one_missing} if {a} is None else {other_missing} if {b} is None else {unequal}"


def holds(where: Condition, ns: Namespace) -> str:
    """An expression of a row condition; a missing value meets `!=`, NOT_IN and null conditions alone."""
    match where:
        case Group(op, conditions):
            return "(" + f" {op} ".join(holds(part, ns) for part in conditions) + ")"
        case IsNull(column, null):
            return f"{ns.local(column)} is {'' if null else 'not '}None"
        case Compare(column, "IN" | "NOT_IN" as op, value):
            values = frozenset(value if isinstance(value, tuple) else (value,))
            return f"{ns.local(column)} {'in' if op == 'IN' else 'not in'} {ns.constant(values)}"
        case Compare(column, "==" | "!=" as op, value):
            return f"{ns.local(column)} {op} {ns.constant(value)}"
        case Compare(column, op, value):
            local = ns.local(column)
            return f"({local} is not None and {local} {op} {ns.constant(value)})"


def _text(value: str) -> str:
    return f"({value} if {value}.__class__ is str else str({value}))"
