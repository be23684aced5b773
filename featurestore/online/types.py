"""How does each Feast type look as an Arrow column? Every `ValueType` of Feast has one form here.

Maps, structs, nested lists and zoned timestamps have no one Arrow type (a map's values may be of any): their columns
are binary, as `featurestore.online.nested` packs them, and `to_python` gives the values.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import UsageError
from featurestore.online.nested import pack, unpack
from validation.instant_columns import column_us

FIXED: dict[str, tuple[str, pa.DataType]] = {
    "INT32": ("<i4", pa.int32()),
    "INT64": ("<i8", pa.int64()),
    "FLOAT": ("<f4", pa.float32()),
    "DOUBLE": ("<f8", pa.float64()),
    "BOOL": ("|u1", pa.bool_()),
    "UNIX_TIMESTAMP": ("<i8", pa.timestamp("us", tz="UTC")),
}
"""Types of fixed width: the numpy type of the stored bytes, the Arrow type of the column."""
FLOAT_INTEGERS = {16: 2**11, 32: 2**24, 64: 2**53}
"""Bits of a float -> the first integer that may be the rounded form of another one."""
_TEXT = {"STRING", "JSON", "UUID", "TIME_UUID", "DECIMAL"}
_BYTES = {"BYTES", "PDF_BYTES", "IMAGE_BYTES"}
NESTED = frozenset(
    ["MAP", "MAP_LIST", "STRUCT", "STRUCT_LIST", "VALUE_LIST", "VALUE_SET", "SCALAR_MAP", "ZONED_TIMESTAMP"]
)
"""Types without one Arrow type."""
SCALARS = frozenset([*FIXED, *_TEXT, *_BYTES])


_KINDS = {
    "null": (pa.types.is_null,),
    "truth": (pa.types.is_boolean,),
    "number": (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal),
    "text": (
        *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary),
    ),
    "instant": (pa.types.is_timestamp, pa.types.is_date),
    "list": (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
}


def item_of(dtype: str) -> str | None:
    """The element type of a list or set of scalars; None for any other type.

    >>> item_of("DOUBLE_LIST"), item_of("STRING"), item_of("MAP_LIST")
    ('DOUBLE', None, None)
    """
    item, _, collection = dtype.rpartition("_")
    return item if collection in ("LIST", "SET") and item in SCALARS else None


def arrow_type(dtype: str) -> pa.DataType:
    """The Arrow type of a column of that Feast type; raises UsageError for a type that Feast has not.

    >>> arrow_type("INT64_LIST")
    ListType(list<item: int64>)
    """
    if dtype in FIXED:
        return FIXED[dtype][1]
    if dtype in _TEXT:
        return pa.string()
    if dtype in _BYTES or dtype in NESTED:
        return pa.binary()
    if item := item_of(dtype):
        return pa.list_(arrow_type(item))
    raise UsageError(f"values of type {dtype} cannot be stored online; what can be: {', '.join(sorted(SCALARS))}, …")


def to_column(values: pa.Array | pa.ChunkedArray, dtype: str, *, name: str) -> pa.Array:
    """The values as one array of the Feast type's form, canonical: one NaN, no -0.0, sets sorted.

    Timestamps, in any form that `validation.instant` knows, are floored to whole seconds. Raises UsageError, naming
    the column, where a value would lose something.

    >>> to_column(pa.array([1, None]), "DOUBLE", name="fare").to_pylist()
    [1.0, None]
    """
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    wanted = arrow_type(dtype)
    if dtype in NESTED:
        return _packed(array, dtype, name)
    try:
        array = _plain(array, wanted)
        item = item_of(dtype)
        if item is None:
            return _canonical(array)
        array = pa.ListArray.from_arrays(
            _offsets(array), _canonical(array.flatten()), mask=array.is_null() if array.null_count else None
        )
        return _sorted_sets(array) if dtype.endswith("_SET") else array
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        raise UsageError(
            f"column {name!r} is declared {dtype}; {values.type} was found, and a value cannot become one without loss"
        ) from None


def from_python(values: Sequence[object], dtype: str, *, name: str) -> pa.Array:
    """Python values as a column of the Feast type; raises UsageError, naming the column, where one does not fit."""
    if dtype in NESTED:
        return pa.array([None if value is None else pack(value) for value in values], pa.binary())
    try:
        return to_column(pa.array(values, arrow_type(dtype)), dtype, name=name)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        # Arrow's message quotes the value, which may be someone's secret.
        raise UsageError(f"column {name!r} is declared {dtype}: a value cannot become one without loss") from None


def to_python(column: pa.Array, dtype: str) -> list[object]:
    """The values of a column of that Feast type as Python values.

    >>> to_python(pa.array([1.5, None]), "DOUBLE")
    [1.5, None]
    """
    values: list[Any] = column.to_pylist()
    if dtype in NESTED:
        return [None if value is None else unpack(value) for value in values]
    return values


def as_instants(array: Any, *, unit: str = "") -> Any:
    """Any accepted form of times as an array of instants to the microsecond; raises ArrowTypeError for all else.

    >>> as_instants(pa.array(["2024-03-10 06:00:00.5Z", None])).cast(pa.int64()).to_pylist()
    [1710050400500000, None]
    """
    try:
        return column_us(array, unit).cast(FIXED["UNIX_TIMESTAMP"][1])
    except (TypeError, ValueError) as error:
        raise pa.ArrowTypeError(str(error)) from error


def whole_seconds(instants: pa.Array) -> pa.Array:
    """Timestamp features are whole seconds on every path: Feast's messages hold no fraction.

    >>> whole_seconds(pa.array([-1, 1_999_999], pa.timestamp("us", "UTC"))).cast(pa.int64()).to_pylist()
    [-1000000, 1000000]
    """
    micros = instants.cast(pa.int64())
    second = pa.scalar(1_000_000, pa.int64())
    seconds = pc.divide(micros, second)
    floored = pc.subtract(seconds, pc.less(micros, pc.multiply(seconds, second)).cast(pa.int64()))
    return pc.multiply(floored, second).cast(instants.type)


def _plain(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_timestamp(wanted):
        return whole_seconds(as_instants(array))
    if array.type == wanted and wanted != arrow_type("UNIX_TIMESTAMP_LIST"):
        return array
    _refuse_other_kind(array, wanted)
    if pa.types.is_list(wanted):
        array = (
            array
            if pa.types.is_list(array.type)
            else array.cast(pa.list_(getattr(array.type, "value_type", wanted.value_type)))
        )
        return pa.ListArray.from_arrays(
            _offsets(array),
            _plain(array.flatten(), wanted.value_type),
            mask=array.is_null() if array.null_count else None,
        )
    if pa.types.is_float32(wanted) and pa.types.is_float64(array.type):
        return array.cast(wanted, safe=False)
    return array.cast(wanted)


def _refuse_other_kind(array: pa.Array, wanted: pa.DataType) -> None:
    """Arrow would parse "5" as 5, print 5 as "5" and take 5 for true: we do not."""
    found, asked = _kind(array.type), _kind(wanted)
    if found in (asked, "null") or (found, asked) == ("truth", "number"):
        return
    if pa.types.is_decimal(array.type) and asked == "text":
        return
    if (found, asked) == ("number", "truth") and not pc.any(
        pc.and_(pc.not_equal(array, 0), pc.not_equal(array, 1))
    ).as_py():
        return
    raise pa.ArrowTypeError(f"{found} is no {asked}")


def _kind(kind: pa.DataType) -> str:
    for name, tests in _KINDS.items():
        if any(test(kind) for test in tests):
            return name
    return str(kind)


def _offsets(array: pa.ListArray) -> pa.Array:
    # Recomputed: the array may be a slice, and a null's slot may hide items that flatten() leaves out.
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def _canonical(array: pa.Array) -> pa.Array:
    if not pa.types.is_floating(array.type):
        return array
    zero = pa.scalar(0.0, array.type)
    array = pc.add(array, zero)
    strange = pc.is_nan(array)
    return pc.if_else(strange, pa.scalar(float("nan"), array.type), array) if pc.any(strange).as_py() else array


def _sorted_sets(array: pa.ListArray) -> pa.Array:
    return pa.array([None if row is None else _members(row) for row in array.to_pylist()], array.type)


def _members(row: list[Any]) -> list[Any]:
    """Each member once, ascending, then NaN, then null."""
    distinct = {"nan" if item != item else ("member", item): item for item in row}
    return sorted(distinct.values(), key=lambda item: (item is None, item != item, item))


def _packed(array: pa.Array, dtype: str, name: str) -> pa.Array:
    if pa.types.is_binary(array.type):
        return array
    values = [value if value is None else _as_map(value, array.type) for value in array.to_pylist()]
    try:
        return pa.array([None if value is None else pack(value) for value in values], pa.binary())
    except UsageError as error:
        raise UsageError(f"column {name!r} is declared {dtype}: {error}") from error


def _as_map(value: Any, kind: pa.DataType) -> Any:
    # Arrow hands out maps as lists of pairs, at every depth.
    if value is None:
        return None
    if pa.types.is_map(kind):
        return {key: _as_map(item, kind.item_type) for key, item in value}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_as_map(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind):
        return {field.name: _as_map(value[field.name], field.type) for field in kind}
    return value
