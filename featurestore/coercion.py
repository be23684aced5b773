"""Which values may become a value of a Feast type, without loss?

What user code returns and what a caller sends are held to the declared type here, by one rule: 5.0 is a fine INT64,
5.5 and "5" are not. Errors name the type that was found, never the value: a value may be someone's secret.
"""

import math
import struct
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from featurestore.errors import UsageError
from featurestore.online.keys import may_be_rounded
from featurestore.online.nested import pack
from featurestore.online.types import FLOAT_INTEGERS
from validation.instant import NO_UNIT, number_us, unit_of

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INT_BITS = {"INT32": 31, "INT64": 63}
_PLAIN: dict[str, frozenset[type]] = {
    "DOUBLE": frozenset({float, type(None)}),
    "BOOL": frozenset({bool, type(None)}),
    "BYTES": frozenset({bytes, type(None)}),
}
"""Column types that need no look at the single values."""
_NESTED = frozenset({"MAP", "MAP_LIST", "STRUCT", "STRUCT_LIST", "VALUE_LIST", "VALUE_SET", "SCALAR_MAP"})
_DEEPEST = 64
"""Deeper values would exhaust the stack of what encodes them."""


def coerce(values: Sequence[object], dtype: str) -> list[Any]:
    """The values as Python values of a Feast type, null where they are null.

    Integers may be whole floats below 2^53, from where on a float may be a rounded integer; numbers are cut to float32
    for FLOAT; timestamps are aware datetimes in UTC (naive ones are UTC, numbers are in the unit that their magnitude
    says); numpy scalars become Python's. Raises UsageError where that would lose something, naming the type found.

    >>> coerce([1.0, None, True], "INT64")
    [1, None, 1]
    """
    found = set(map(type, values))
    if found <= _PLAIN.get(dtype, frozenset()):
        return list(values)
    single = _converter(dtype)
    return [None if value is None else single(value) for value in values]


def _converter(dtype: str) -> Callable[[object], object]:
    if dtype in _INT_BITS:
        return lambda value: _integer(value, dtype)
    if dtype in _NESTED:
        return lambda value: _nested(value, dtype)
    for collection in ("_LIST", "_SET"):
        if dtype.endswith(collection):
            item = dtype.removesuffix(collection)
            return lambda value: _collection(value, dtype, item)
    try:
        return _SCALARS[dtype]
    except KeyError:
        known = ", ".join(sorted({*_INT_BITS, *_SCALARS, *_NESTED}))
        raise UsageError(f"values of type {dtype} cannot be computed or sent; known: {known}, and lists") from None


def _refusal(value: object, dtype: str, why: str = "") -> UsageError:
    return UsageError(f"declared {dtype}, found {why or type(value).__name__}")


def _native(value: object) -> object:
    # numpy scalars and zero-dimensional arrays, without importing numpy here.
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "shape", None) == () else value


def _integer(value: object, dtype: str) -> int:
    # numpy's narrow floats become Python's wide ones.
    bits = 8 * min(getattr(value, "itemsize", 8), 8)
    value = _native(value)
    if isinstance(value, float) and value.is_integer():
        if abs(value) >= FLOAT_INTEGERS[bits]:
            raise _refusal(value, dtype, may_be_rounded(bits))
        value = int(value)
    if not isinstance(value, int):
        raise _refusal(value, dtype, "a fraction" if isinstance(value, float) else "")
    bound = 1 << _INT_BITS[dtype]
    if not -bound <= value < bound:
        raise _refusal(value, dtype, "an integer beyond its range")
    return int(value)


def _double(value: object) -> float:
    value = _native(value)
    if not isinstance(value, (int, float)):
        raise _refusal(value, "DOUBLE")
    try:
        return float(value)
    except OverflowError:
        raise _refusal(value, "DOUBLE", "an integer beyond its range") from None


def _float(value: object) -> float:
    number = _double(value)
    try:
        return float(struct.unpack("<f", struct.pack("<f", number))[0])
    except OverflowError:
        raise _refusal(value, "FLOAT", "a number beyond its range") from None


def _bool(value: object) -> bool:
    value = _native(value)
    if value in (0, 1) and isinstance(value, (int, float)):
        return bool(value)
    raise _refusal(value, "BOOL")


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise _refusal(value, "STRING")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _refusal(value, "STRING", "text with half a surrogate pair") from None
    return str(value)


def _bytes(value: object) -> bytes:
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    raise _refusal(value, "BYTES")


def _timestamp(value: object) -> datetime:
    value = _native(value)
    if isinstance(value, datetime):
        plain = datetime(*value.timetuple()[:6], value.microsecond, tzinfo=value.tzinfo or UTC, fold=value.fold)
        return plain.astimezone(UTC)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        # The value itself is not told: it may be someone's secret.
        if unit_of(value) is None:
            raise _refusal(value, "UNIX_TIMESTAMP", f"a number{NO_UNIT}")
        return _EPOCH + timedelta(microseconds=number_us(value))
    raise _refusal(value, "UNIX_TIMESTAMP")


def _collection(value: object, dtype: str, item: str) -> list[Any]:
    to_list = getattr(value, "tolist", None)
    members = to_list() if callable(to_list) else value
    if not isinstance(members, (list, tuple, set, frozenset)):
        raise _refusal(value, dtype)
    return coerce(list(members), item)


def _nested(value: object, dtype: str) -> object:
    if not isinstance(value, dict if dtype in ("MAP", "STRUCT", "SCALAR_MAP") else (list, tuple, set)):
        raise _refusal(value, dtype)
    level: list[object] = [value]
    for _ in range(_DEEPEST):
        level = [item for each in level for item in _members(each)]
        if not level:
            # What cannot be stored cannot be answered either: integers beyond 64 bits, half surrogate pairs.
            pack(value)
            return value
    raise _refusal(value, dtype, f"a value nested more than {_DEEPEST} deep")


def _members(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, (list, tuple, set, frozenset)) else ()


def _text(value: object) -> str:
    return _string(str(value) if isinstance(value, (uuid.UUID, Decimal)) else value)


_SCALARS: dict[str, Callable[[object], object]] = {
    "DOUBLE": _double,
    "FLOAT": _float,
    "BOOL": _bool,
    "STRING": _string,
    "BYTES": _bytes,
    "PDF_BYTES": _bytes,
    "IMAGE_BYTES": _bytes,
    "JSON": _text,
    "UUID": _text,
    "TIME_UUID": _text,
    "DECIMAL": _text,
    "UNIX_TIMESTAMP": _timestamp,
}
