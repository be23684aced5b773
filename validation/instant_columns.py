"""The accepted time forms of `validation.instant` for whole Arrow columns.

Apart from it, so that what reads single values loads without Arrow.
"""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from validation.instant import FORMS, UNITS, number_us, text_us


def as_micros(column: Any) -> Any:
    """Arrow timestamps or dates of any unit and zone as int64 microseconds since the epoch; null where null.

    >>> as_micros(pa.array([-1, None], pa.timestamp("ns", "Europe/Berlin"))).to_pylist()
    [-1, None]
    """
    kind = column.type
    if pa.types.is_date(kind):
        # Some writers put a time of day into milliseconds of a date64: it is a date.
        return column.cast(pa.date32()).cast(pa.timestamp("us")).cast(pa.int64())
    ticks = column.cast(pa.int64())
    if kind.unit != "ns":
        return ticks if kind.unit == "us" else pc.multiply_checked(ticks, UNITS[kind.unit])
    # On the integers: Arrow's own flooring goes by the wall clock, which repeats an hour each autumn.
    cut = pc.divide(ticks, 1_000)
    return pc.subtract(cut, pc.less(ticks, pc.multiply(cut, 1_000)).cast(pa.int64()))


def column_us(column: Any, unit: str = "") -> Any:
    """An Arrow column in any accepted form as int64 microseconds; null where null, and where a float is NaN.

    `unit` is the declared one of numbers; empty goes by magnitude. Raises TypeError for types that are no time,
    ValueError for a value that is none.

    >>> column_us(pa.array([1_710_050_400_000, None])).to_pylist()
    [1710050400000000, None]
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return as_micros(column)
    if pa.types.is_null(kind):
        return column.cast(pa.int64())
    if is_text(kind):
        return _by_value(column, text_us)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        numbers = pc.if_else(pc.is_nan(column), None, column) if pa.types.is_floating(kind) else column
        return _by_value(numbers, lambda number: number_us(number, unit))
    raise TypeError(f"{kind} was found; a time is {FORMS}")


def is_text(kind: pa.DataType) -> bool:
    """Whether a plain Arrow type holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _by_value(column: Any, single: Callable[[Any], int]) -> Any:
    """Each distinct value once: files repeat their times."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.large_string())
    encoded = column.dictionary_encode()
    found = pa.array([single(value) for value in encoded.dictionary.to_pylist()], pa.int64())
    return found.take(encoded.indices)
