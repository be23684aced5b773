"""Which entity rows could an event count for?

Keys become small integers: equal keys of events and entity rows have the same code, whatever their columns' widths.
Times become int64 microseconds.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import UsageError
from validation.errors import did_you_mean

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_PER_MICROSECOND = {"s": 1_000_000, "ms": 1_000, "us": 1}


def column_of(table: Any, name: str, what: str) -> Any:
    """The column of that name; raises UsageError where the table has none, or several."""
    found = table.schema.get_all_field_indices(name)
    if not found:
        raise UsageError(f"the {what} have no column {name!r}; {did_you_mean(name, table.column_names)}")
    if len(found) > 1:
        raise UsageError(f"the {what} have {len(found)} columns {name!r}; leave one")
    return table.column(found[0])


def instants(column: Any, name: str) -> tuple[Ints, Mask]:
    """Microseconds since the epoch and which of them are there; where null, 0.

    Naive timestamps are UTC, nanoseconds are floored, integers are microseconds. Raises UsageError for other types.

    >>> instants(pa.chunked_array([pa.array([-1, None, 2999], pa.timestamp("ns"))]), "at")
    (array([-1,  0,  2]), array([ True, False,  True]))
    """
    present = pc.is_valid(column).to_numpy()
    if pa.types.is_timestamp(column.type):
        unit = column.type.unit
        raw: Ints = pc.fill_null(column.cast(pa.int64()), 0).to_numpy()
        return (raw // 1000 if unit == "ns" else raw * _PER_MICROSECOND[unit]), present
    if pa.types.is_date(column.type):
        return instants(column.cast(pa.timestamp("us")), name)
    if pa.types.is_integer(column.type):
        return pc.fill_null(column.cast(pa.int64()), 0).to_numpy(), present
    raise UsageError(f"column {name!r} must hold timestamps; {column.type} was found")


def key_codes(events: Any, entity_rows: Any, keys: Mapping[str, str]) -> tuple[Ints, Ints, int]:
    """Codes of the events' keys, of the entity rows' keys, and how many there are.

    Codes run from 0 over the keys of the entity rows; -1 is a null key, or an event's that no entity row has.
    Raises UsageError where a key column is missing or the two sides' types cannot be compared.

    >>> a, b = pa.table({"k": ["x", "y", None]}), pa.table({"id": ["y", "z", "y"]})
    >>> key_codes(a, b, {"k": "id"})
    (array([-1,  0, -1]), array([0, 1, 0]), 2)
    """
    ours = np.zeros(len(events), np.int64)
    theirs = np.zeros(len(entity_rows), np.int64)
    size = 1 if len(entity_rows) else 0
    for event_column, entity_column in keys.items():
        left = column_of(events, event_column, "events")
        right = column_of(entity_rows, entity_column, "entity rows")
        common = _common(left.type, right.type, event_column, entity_column)
        left, right = left.cast(common), right.cast(common)
        known = pc.unique(right).drop_null()
        ours, theirs, size = _together((ours, _find(left, known)), (theirs, _find(right, known)), len(known))
    return ours, theirs, size


def _together(ours: tuple[Ints, Ints], theirs: tuple[Ints, Ints], size: int) -> tuple[Ints, Ints, int]:
    """Dense codes of pairs (code so far, code of one more column)."""
    pairs = [np.where((a < 0) | (b < 0), -1, a * size + b) for a, b in (ours, theirs)]
    if not theirs[0].any():  # the first column's codes are dense already
        return pairs[0], pairs[1], size
    known = pc.unique(pa.array(pairs[1][pairs[1] >= 0]))
    return _find(pa.array(pairs[0]), known), _find(pa.array(pairs[1]), known), len(known)


def _find(values: Any, known: Any) -> Ints:
    found: Ints = pc.fill_null(pc.index_in(values, value_set=known), -1).to_numpy().astype(np.int64)
    return found


def _common(left: Any, right: Any, event_column: str, entity_column: str) -> Any:
    """The type in which keys of both sides are compared."""
    kinds = [_kind(side) for side in (left, right)]
    some = [kind for kind in kinds if kind is not None] or [pa.int64()]
    if len({str(kind) for kind in some}) > 1:
        raise UsageError(
            f"key column {event_column!r} of the events is {left}, {entity_column!r} of the entity rows is {right}; "
            "cast one to the other's type"
        )
    return some[0]


def _kind(dtype: Any) -> Any:
    if pa.types.is_dictionary(dtype):
        return _kind(dtype.value_type)
    if pa.types.is_null(dtype):
        return None
    if pa.types.is_integer(dtype):
        return pa.int64()
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype):
        return pa.string()
    if pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype):
        return pa.binary()
    if pa.types.is_timestamp(dtype):
        return pa.timestamp("us", dtype.tz)
    return dtype
