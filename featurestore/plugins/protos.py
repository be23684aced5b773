"""How do Feast's protobuf values become columns, and columns protobuf values again?

Feast's SDK hands over one message a value. Unlike Feast's own conversions, NaN stays NaN and a null is a null.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from feast.protos.feast.types import Value_pb2 as messages
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type, python_values_to_proto_values
from feast.value_type import ValueType

from featurestore.online.types import NESTED, from_python, item_of, to_python

NULL_TIMESTAMP = -(1 << 63)
"""What Feast writes for a null inside a list of timestamps."""
_SCALARS = {
    **{name: f"{name.lower()}_val" for name in ("INT32", "INT64", "DOUBLE", "FLOAT", "STRING", "BOOL", "BYTES")},
    **{name: f"{name.lower()}_val" for name in ("JSON", "UUID", "TIME_UUID", "DECIMAL")},
    "PDF_BYTES": "bytes_val",
    "IMAGE_BYTES": "bytes_val",
}
_HELD_ITEM = {"PDF_BYTES": "BYTES", "IMAGE_BYTES": "BYTES"}


def scalar(value: Value) -> Any:
    """The one value of a scalar message, None where it is null; for entity keys."""
    kind = value.WhichOneof("val")
    return None if kind is None else getattr(value, kind)


def to_column(values: Sequence[Value | None], dtype: str, *, name: str) -> pa.Array:
    """Messages as a column of the Feast type; raises UsageError where one does not fit.

    >>> to_column([Value(int64_val=5), Value(), None], "INT64", name="n").to_pylist()
    [5, None, None]
    """
    return from_python([None if value is None else _python(value, dtype) for value in values], dtype, name=name)


def from_column(column: pa.Array, dtype: str) -> list[Value]:
    """A column of the Feast type as messages; instants are whole seconds, as Feast has them.

    Feast's lists have no nulls. A list that holds one becomes Feast's list of values, each of which may be unset: its
    SDK reads both alike.

    >>> [value.WhichOneof("val") for value in from_column(pa.array([1.5, None]), "DOUBLE")]
    ['double_val', None]
    """
    values = to_python(column, dtype)
    if dtype in ("MAP_LIST", "STRUCT_LIST") and any(None in value for value in values if isinstance(value, list)):
        return [_with_nulls(value, dtype) for value in values]
    if dtype in NESTED:
        return _nested(values, dtype)
    make = _maker(dtype)
    return [Value() if value is None else make(value) for value in values]


def _with_nulls(value: Any, dtype: str) -> Value:
    """A list of maps or structs, some of them null: Feast's own messages for such lists have none."""
    if not isinstance(value, list) or None not in value:
        return _nested([value], dtype)[0]
    members = _nested(value, dtype.removesuffix("_LIST"))
    return Value(list_val=messages.RepeatedValue(val=members))


def _nested(values: Sequence[Any], dtype: str) -> list[Value]:
    return list(python_values_to_proto_values(list(values), ValueType[dtype]))


def _python(value: Value, dtype: str) -> Any:
    if dtype in NESTED:
        return feast_value_type_to_python_type(value)
    found = scalar(value)
    if found is None:
        return None
    item = item_of(dtype)
    if item is None:
        return _instant(found) if dtype == "UNIX_TIMESTAMP" else found
    members = list(getattr(found, "val", found))
    if value.WhichOneof("val") in ("list_val", "set_val"):
        members = [scalar(member) for member in members]
    return [_instant(member) for member in members] if item == "UNIX_TIMESTAMP" else members


def _instant(seconds: Any) -> datetime | None:
    if not isinstance(seconds, int) or seconds == NULL_TIMESTAMP:
        return None
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


def _seconds(value: datetime | None) -> int:
    return NULL_TIMESTAMP if value is None else (value - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)


def _maker(dtype: str) -> Callable[[Any], Value]:
    if dtype == "UNIX_TIMESTAMP":
        return lambda value: Value(unix_timestamp_val=_seconds(value))
    item = item_of(dtype)
    if item is None:
        field = _SCALARS[dtype]
        return lambda value: Value(**{field: value})
    collection = dtype.removeprefix(f"{item}_").title()
    kind = {"UNIX_TIMESTAMP": "Int64", "PDF_BYTES": "Bytes", "IMAGE_BYTES": "Bytes"}.get(item) or (
        item.title() if f"{item.title()}{collection}" in messages.DESCRIPTOR.message_types_by_name else "String"
    )
    message = getattr(messages, f"{kind}{collection}")
    field = f"{'bytes' if kind == 'Bytes' else item.lower()}_{collection.lower()}_val"
    if item == "UNIX_TIMESTAMP":
        return lambda value: Value(**{field: message(val=[_seconds(member) for member in value])})
    single = _maker(_HELD_ITEM.get(item, item))
    nullable = "set_val" if collection == "Set" else "list_val"

    def made(value: Any) -> Value:
        if None in value:
            members = [Value() if each is None else single(each) for each in value]
            return Value(**{nullable: messages.RepeatedValue(val=members)})
        return Value(**{field: message(val=value)})

    return made
