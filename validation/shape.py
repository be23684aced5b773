"""Judge one value by what a contract's schema says of it: type, width, multiples, items, nested properties.

A shape is the part of an ODCS property that concerns values, as plain JSON: `logicalType`, `physicalType`,
`logicalTypeOptions`, `enum`, `required`, `items`, `properties`, `map`. None and NaN are missing: what may be missing is
said by `required`. Instants are also given as integers, their microseconds.
"""

import datetime as dt
import decimal
import json
import math
import numbers
import operator
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import cache
from typing import Any, Final

from validation.formats import PATTERNS
from validation.instant import DAY_US, to_us
from validation.pattern import searcher

Misfit = Callable[[Any], bool]
"""Whether a value breaks the shape; a missing value does not."""
WIDTHS: Final[Mapping[str, tuple[int, int]]] = {
    **{f"i{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64, 128)},
    **{f"u{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64, 128)},
}
"""Name of an integer's width -> the least and the greatest integer of it."""
_FLOAT32_MAX: Final = 3.4028234663852886e38
_VECTOR: Final[Mapping[str, str]] = {"int8": "i8", "uint8": "u8"}
_PHYSICAL: Final = re.compile(r"([a-z0-9 _]*[a-z0-9])\s*(?:[(\[]\s*(\d+)\s*(?:,\s*(\d+)\s*)?[)\]])?")
_FAMILIES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("tinyint", "int8", "byte"), "i8"),
    **dict.fromkeys(("smallint", "int2", "int16", "short", "smallserial"), "i16"),
    **dict.fromkeys(("int", "integer", "int4", "int32", "mediumint", "serial"), "i32"),
    **dict.fromkeys(("bigint", "int64", "long", "bigserial"), "i64"),
    **dict.fromkeys(("uint8", "uint16", "uint32", "uint64", "hugeint"), "integer"),
    **dict.fromkeys(("double", "double precision", "float8", "float64", "real", "float4", "float32"), "number"),
    **dict.fromkeys(("float", "binary_float", "binary_double"), "number"),
    **dict.fromkeys(("decimal", "numeric", "number", "bignumeric", "money"), "decimal"),
    **dict.fromkeys(("varchar", "varchar2", "nvarchar", "nvarchar2", "character varying", "char", "nchar"), "string"),
    **dict.fromkeys(("character", "bpchar", "text", "string", "str", "clob", "large_string", "uuid"), "string"),
    **dict.fromkeys(("tinytext", "mediumtext", "longtext", "utf8"), "string"),
    **dict.fromkeys(("bool", "boolean", "bit"), "boolean"),
    **dict.fromkeys(("date", "date32", "date64"), "date"),
    **dict.fromkeys(
        ("timestamp", "timestamptz", "datetime", "datetime2", "timestamp_ntz", "timestamp_tz"), "timestamp"
    ),
    **dict.fromkeys(("timestamp_ltz", "timestamp with time zone", "timestamp without time zone"), "timestamp"),
    **dict.fromkeys(("datetimeoffset", "smalldatetime"), "timestamp"),
    **dict.fromkeys(("time", "time32", "time64"), "time"),
    **dict.fromkeys(("array", "list"), "array"),
    **dict.fromkeys(("struct", "record", "object"), "object"),
}
"""Name of a physical type, in lower case -> its family, or the width of its integers."""
_LOGICAL: Final[Mapping[str, str]] = {**dict.fromkeys(("i8", "i16", "i32", "i64"), "integer"), "decimal": "number"}
_HOLDS: Final[Mapping[str, frozenset[str]]] = {
    "integer": frozenset({"integer", "number"}),
    "number": frozenset({"integer", "number"}),
    "date": frozenset({"date", "timestamp", "string"}),
    "timestamp": frozenset({"date", "timestamp", "string"}),
    "time": frozenset({"time", "string"}),
    "string": frozenset({"string"}),
    "boolean": frozenset({"boolean"}),
    "array": frozenset({"array"}),
    "vector": frozenset({"array"}),
    "object": frozenset({"object"}),
    "map": frozenset({"object"}),
}
"""Logical type -> the physical ones that hold its values; date held by text is ISO 8601."""


def physical_type(text: str) -> tuple[str, int | None, int | None]:
    """Family and sizes of a physical type's name; the family is empty where the name is not known.

    >>> physical_type("VARCHAR(20)"), physical_type("numeric(9, 2)"), physical_type("BIGINT"), physical_type("geometry")
    (('string', 20, None), ('decimal', 9, 2), ('i64', None, None), ('', None, None))
    """
    found = _PHYSICAL.fullmatch(text.strip().lower())
    if found is None or found[1] not in _FAMILIES:
        return "", None, None
    return _FAMILIES[found[1]], int(found[2]) if found[2] else None, int(found[3]) if found[3] else None


def logical_of(physical: str) -> str:
    """The logical type that a physical type's name stands for; empty where none is known.

    >>> logical_of("NUMBER(38,0)"), logical_of("varchar(3)"), logical_of("geometry")
    ('number', 'string', '')
    """
    family, _, _ = physical_type(physical)
    return _LOGICAL.get(family, family)


def judged_physical(logical: str, physical: str) -> bool:
    """Whether a physical type says something of a column's values: it is known, and can hold the logical type."""
    return not logical or logical_of(physical) in _HOLDS.get(logical, frozenset())


def misfit_of(shape: str) -> Misfit:
    """The function that judges values by a shape, given as JSON.

    >>> bad = misfit_of('{"logicalType": "array", "items": {"logicalType": "integer"}}')
    >>> bad([1, 2]), bad([1, "x"]), bad("x"), bad(None)
    (False, True, True, False)
    """
    return _of_text(shape)


@cache
def _of_text(shape: str) -> Misfit:
    return _misfit(json.loads(shape))


def _misfit(shape: Mapping[str, Any]) -> Misfit:
    checks = [*_type_checks(shape), *_option_checks(shape), *_inner_checks(shape)]

    def misfit(value: Any) -> bool:
        return not is_missing(value) and any(check(value) for check in checks)

    return misfit


def is_missing(value: Any) -> bool:
    """Whether a value is None, NaN or pandas' NaT.

    >>> is_missing(None), is_missing(float("nan")), is_missing([])
    (True, True, False)
    """
    if value is None:
        return True
    return isinstance(value, float | Decimal | dt.datetime | numbers.Number) and value != value


def _is_integer(value: Any) -> bool:
    if isinstance(value, numbers.Integral):
        return not isinstance(value, bool)
    if isinstance(value, float | Decimal):
        return math.isfinite(value) and value == int(value)
    return isinstance(value, numbers.Real) and float(value).is_integer()


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real | Decimal) and not _is_boolean(value)


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool) or value.__class__.__name__ in {"bool_", "bool"}


def _is_instant(value: Any) -> bool:
    try:
        found = to_us(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return found is not None and -(2**63) <= found < 2**63


def _is_day(value: Any) -> bool:
    """Whether a value is an instant at midnight (UTC): a date has no time of day."""
    return _is_instant(value) and (to_us(value) or 0) % DAY_US == 0


def _is_time(value: Any) -> bool:
    return _time(value) is not None


def _time(value: Any) -> dt.time | None:
    if isinstance(value, dt.time):
        return value
    try:
        return dt.time.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _is_array(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str | bytes | Mapping)


def _is_mapping(value: Any) -> bool:
    # Arrow gives a map as a list of pairs.
    return isinstance(value, Mapping) or (
        isinstance(value, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value)
    )


_TYPES: Final[Mapping[str, Callable[[Any], bool]]] = {
    "string": lambda value: isinstance(value, str),
    "integer": _is_integer,
    "number": _is_number,
    "boolean": _is_boolean,
    "date": _is_day,
    "timestamp": _is_instant,
    "time": _is_time,
    "array": _is_array,
    "vector": _is_array,
    "object": _is_mapping,
    "map": _is_mapping,
}


def _type_checks(shape: Mapping[str, Any]) -> list[Misfit]:
    logical = shape.get("logicalType", "")
    checks: list[Misfit] = []
    if logical in _TYPES:
        fits = _TYPES[logical]
        checks.append(lambda value: not fits(value))
    options = shape.get("logicalTypeOptions", {})
    if logical == "integer" and options.get("format") in WIDTHS:
        checks.append(_outside(*WIDTHS[options["format"]]))
    if logical == "number" and options.get("format") == "f32":
        checks.append(lambda value: math.isfinite(value) and abs(value) > _FLOAT32_MAX)
    physical = shape.get("physicalType", "")
    if physical and judged_physical(logical, physical):
        checks += _physical_checks(*physical_type(physical))
    return checks


def _physical_checks(family: str, size: int | None, scale: int | None) -> list[Misfit]:
    if family in WIDTHS:
        return [lambda value: not _is_integer(value), _outside(*WIDTHS[family])]
    if family == "integer":
        return [lambda value: not _is_integer(value)]
    if family == "string" and size is not None:
        return [lambda value: isinstance(value, str) and len(value) > size]
    if family == "decimal" and size is not None:
        return [lambda value: _too_precise(value, size, scale or 0)]
    return []


def _outside(low: int, high: int) -> Misfit:
    return lambda value: not low <= value <= high


def _too_precise(value: Any, precision: int, scale: int) -> bool:
    exact = exact_decimal(value)
    if exact is None:
        return True
    _, digits, exponent = exact.normalize(_WIDE).as_tuple()
    if not isinstance(exponent, int):
        return True
    return max(0, -exponent) > scale or (len(digits) + exponent > precision - scale and any(digits))


_WIDE: Final = decimal.Context(prec=1_000, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)


def exact_decimal(value: Any) -> Decimal | None:
    """A number as people write it: 0.1 is one tenth; None for infinities and what is no number.

    >>> exact_decimal(0.1), exact_decimal(float("inf"))
    (Decimal('0.1'), None)
    """
    if not _is_number(value):
        return None
    found = value if isinstance(value, Decimal) else Decimal(str(value))
    return found if found.is_finite() else None


def is_multiple(value: Any, of: Any) -> bool:
    """Whether a number is a multiple of another, both as people write them.

    >>> is_multiple(0.3, 0.1), is_multiple(2**60 + 1, 2), is_multiple(float("inf"), 1)
    (True, False, False)
    """
    number, step = exact_decimal(value), exact_decimal(of)
    return number is not None and step is not None and _WIDE.remainder(number, step) == 0


def _option_checks(shape: Mapping[str, Any]) -> list[Misfit]:
    logical, options = shape.get("logicalType", ""), shape.get("logicalTypeOptions", {})
    checks: list[Misfit] = []
    if (step := options.get("multipleOf")) is not None:
        checks.append(lambda value: not is_multiple(value, step))
    checks += [
        _beyond(compare, _ORDERED.get(logical, _as_is), options[name])
        for name, compare in _BREACHES.items()
        if options.get(name) is not None
    ]
    for kinds, least, most in _SIZES:
        if logical in kinds and (least in options or most in options):
            checks.append(_sized(options.get(least, 0), options.get(most, math.inf)))
    if logical == "string":
        patterns = [options.get("pattern"), PATTERNS.get(str(options.get("format", "")))]
        checks += [_unmatched(pattern) for pattern in patterns if pattern]
    if options.get("uniqueItems") is True:
        checks.append(lambda value: len({_identity(item) for item in value}) < len(value))
    if logical == "object" and isinstance(options.get("required"), list):
        names = options["required"]
        checks.append(lambda value: any(is_missing(dict(value).get(name)) for name in names))
    if logical == "vector":
        checks += _vector_checks(options)
    if (listed := shape.get("enum")) is not None:
        allowed = {_identity(value) for value in listed}
        checks.append(lambda value: _identity(value) not in allowed)
    return checks


def _as_is(value: Any) -> Any:
    return value


_ORDERED: Final[Mapping[str, Callable[[Any], Any]]] = {"date": to_us, "timestamp": to_us, "time": _time}
_BREACHES: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "minimum": operator.lt,
    "exclusiveMinimum": operator.le,
    "maximum": operator.gt,
    "exclusiveMaximum": operator.ge,
}
_SIZES: Final = (
    (("string",), "minLength", "maxLength"),
    (("array", "vector"), "minItems", "maxItems"),
    (("object", "map"), "minProperties", "maxProperties"),
)


def _beyond(breach: Callable[[Any, Any], bool], ordered: Callable[[Any], Any], given: Any) -> Misfit:
    bound = ordered(given)
    if bound is None:
        raise ValueError(f"{given!r} is no time of day")

    def misfit(value: Any) -> bool:
        try:
            return breach(ordered(value), bound)
        except TypeError:
            return True  # a value that cannot be compared is not within bounds

    return misfit


def _unmatched(pattern: str) -> Misfit:
    found = searcher(pattern)
    return lambda value: not found(value)


def _sized(low: float, high: float) -> Misfit:
    return lambda value: not low <= len(value) <= high


def _vector_checks(options: Mapping[str, Any]) -> list[Misfit]:
    checks: list[Misfit] = []
    if (dimensions := options.get("dimensions")) is not None:
        checks.append(lambda value: len(value) != dimensions)
    element = options.get("elementType", "float32")
    if element == "binary":
        inner = _misfit({"logicalType": "integer", "logicalTypeOptions": {"minimum": 0, "maximum": 1}})
    elif element in _VECTOR:
        inner = _misfit({"logicalType": "integer", "logicalTypeOptions": {"format": _VECTOR[element]}})
    else:
        inner = _misfit({"logicalType": "number"})
    checks.append(lambda value: any(is_missing(item) or inner(item) for item in value))
    return checks


def _identity(value: Any) -> Any:
    """What tells values apart: 1 and 1.0 are one, 1 and true are two; lists and objects by their members."""
    if isinstance(value, Mapping):
        return ("object", frozenset((name, _identity(inner)) for name, inner in value.items()))
    if _is_array(value):
        return ("array", tuple(_identity(inner) for inner in value))
    return ("boolean", bool(value)) if _is_boolean(value) else ("value", value)


def _inner_checks(shape: Mapping[str, Any]) -> list[Misfit]:
    checks: list[Misfit] = []
    if (items := shape.get("items")) is not None:
        each, needed = _misfit(items), items.get("required") is True
        checks.append(lambda value: any(each(item) or (needed and is_missing(item)) for item in value))
    if (properties := shape.get("properties")) is not None:
        members = [(inner["name"], _misfit(inner), inner.get("required") is True) for inner in properties]

        def misfits(value: Any) -> bool:
            given = dict(value)
            return any(
                bad(given.get(name)) or (needed and is_missing(given.get(name))) for name, bad, needed in members
            )

        checks.append(misfits)
    if (pair := shape.get("map")) is not None:
        of_key, of_value = _misfit(pair["key"]), _misfit(pair["value"])
        needed = pair["value"].get("required") is True
        checks.append(
            lambda value: any(
                of_key(key) or of_value(inner) or (needed and is_missing(inner)) for key, inner in dict(value).items()
            )
        )
    return checks
