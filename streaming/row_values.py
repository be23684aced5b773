"""Which form have the values of a decoded row, and which of them may none have?

Join keys have the type of their entity, decimals their declared digits, instants lie within the calendar.
"""

import datetime as dt
import decimal
from collections.abc import Callable, Mapping
from typing import Any, Final

from featurestore.aggregation.values import decimal_of
from streaming.column_types import is_instant
from streaming.event_columns import EventColumns
from streaming.messages import BAD_KEY, KEY_MISMATCH, NO_TIMESTAMP, WRONG_TYPE, Message, Refused

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NAIVE_EPOCH: Final = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - naive input is UTC: it is subtracted from naive values
_MICROSECOND: Final = dt.timedelta(microseconds=1)
_EDGES: Final = (1, 9999)
"""Years in which an offset may carry an instant out of the calendar."""
_EXACT: Final = decimal.Context(prec=50)


def micros(value: dt.datetime | None) -> int:
    """An event time as microseconds; raises Refused where there is none, or none that the calendar has."""
    if value is None:
        raise Refused(NO_TIMESTAMP, "the timestamp is missing or null")
    found = (value - (_NAIVE_EPOCH if value.tzinfo is None else _EPOCH)) // _MICROSECOND
    if not is_instant(found):
        raise Refused(WRONG_TYPE, f"{value.isoformat()} is not within the years 1 to 9999 in UTC")
    return found


def finisher(columns: EventColumns, attributes: Mapping[str, str]) -> Callable[[Any, Message], None] | None:
    """What brings a row into its form, or raises Refused; None where nothing is to be done. `attributes` by column."""
    keys = [(attributes[name], name, dtype) for name, dtype in columns.keys.items()]
    message_key = columns.message_key
    key_attribute = attributes[message_key] if message_key is not None else ""
    instants = [
        attributes[field.name]
        for field in columns.fields
        if field.dtype == "UNIX_TIMESTAMP" and field.name != columns.timestamp_field
    ]
    decimals = [
        (attributes[field.name], field.name, *digits)
        for field in columns.fields
        if (digits := decimal_of(field.dtype)) is not None
    ]
    if not keys and not instants and not decimals and message_key is None:
        return None

    def finish(row: Any, message: Message) -> None:
        for attribute, name, dtype in keys:
            value = getattr(row, attribute)
            if value is not None and (type(value) is not str) is (dtype == "STRING"):
                setattr(row, attribute, _coerced(name, dtype, value))
            elif dtype == "INT32" and value is not None and not -(2**31) <= value < 2**31:
                raise Refused(BAD_KEY, f"join key {name!r} is declared INT32, found an integer beyond its range")
        for attribute in instants:
            value = getattr(row, attribute)
            if value is not None and type(value) is not int and value.year in _EDGES:
                micros(value)
        for attribute, name, precision, scale in decimals:
            value = getattr(row, attribute)
            if value is not None:
                setattr(row, attribute, _exact(name, value, precision, scale))
        if message_key is not None:
            value = getattr(row, key_attribute)
            if (b"" if value is None else str(value).encode()) != (message.key or b""):
                raise Refused(KEY_MISMATCH, f"the message key is not what {message_key} is")

    return finish


def _coerced(name: str, dtype: str, value: str | int) -> str | int:
    if dtype == "STRING":
        return str(value)
    bits = 31 if dtype == "INT32" else 63
    text = str(value)
    digits = text.removeprefix("-")
    # str(int(text)) == text refuses "05", "+5" and "5_0": two spellings must not be one key.
    if len(digits) < 20 and digits.isascii() and digits.isdigit() and str(int(text)) == text:
        number = int(text)
        if -(1 << bits) <= number < 1 << bits:
            return number
    raise Refused(BAD_KEY, f"join key {name!r} is declared {dtype}, found text that is no such integer")


def _exact(name: str, value: decimal.Decimal, precision: int, scale: int) -> decimal.Decimal:
    """The same number with so many digits behind the point."""
    if value.is_finite() and (not value or value.adjusted() < precision - scale):
        exact = value.quantize(decimal.Decimal(1).scaleb(-scale), context=_EXACT)
        if exact == value:
            return exact
    raise Refused(
        WRONG_TYPE, f"column {name!r} is declared DECIMAL({precision},{scale}), which cannot hold the value found"
    )
