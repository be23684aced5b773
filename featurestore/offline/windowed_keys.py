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
    field_of(table.schema, name, what)
    return table.column(name)


def field_of(schema: Any, name: str, what: str) -> Any:
    """The field of that name; raises UsageError where the schema has none, or several."""
    found = schema.get_all_field_indices(name)
    if not found:
        raise UsageError(f"the {what} have no column {name!r}; {did_you_mean(name, schema.names)}")
    if len(found) > 1:
        raise UsageError(f"the {what} have {len(found)} columns {name!r}; leave one")
    return schema.field(found[0])


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


class KeyIndex:
    """Codes of the entity rows' keys: from 0, in the order of their first rows; -1 is a null key.

    >>> asked = pa.table({"id": ["y", "z", "y"]})
    >>> index = KeyIndex(asked, {"k": "id"}, pa.schema({"k": pa.string()}))
    >>> index.rows, index.size
    (array([0, 1, 0]), 2)
    >>> index.codes(pa.table({"k": ["x", "y", None]}))
    array([-1,  0, -1])
    """

    def __init__(self, entity_rows: Any, keys: Mapping[str, str], events: Any) -> None:
        """`keys` maps columns of the events to those of the entity rows; `events` is the events' schema.

        Raises UsageError where a key column is missing or the two sides' types cannot be compared.
        """
        self._columns: list[tuple[str, Any, Any, Any]] = []
        self.rows = np.zeros(len(entity_rows), np.int64)
        self.size = 1 if len(entity_rows) else 0
        for event_column, entity_column in keys.items():
            right = column_of(entity_rows, entity_column, "entity rows")
            left = field_of(events, event_column, "events").type
            common = _common(left, right.type, event_column, entity_column)
            right = right.cast(common)
            known = pc.unique(right).drop_null()
            pairs = _find(right, known)
            known_pairs = None
            # The codes of the first column alone are dense already.
            if self._columns:
                pairs = _pair(self.rows, pairs, len(known))
                known_pairs = pc.unique(pa.array(pairs[pairs >= 0]))
            self._columns.append((event_column, common, known, known_pairs))
            self.rows = pairs if known_pairs is None else _find(pa.array(pairs), known_pairs)
            self.size = len(known if known_pairs is None else known_pairs)

    def codes(self, events: Any) -> Ints:
        """Codes of the events' keys; -1 also where no entity row has the key."""
        found = np.zeros(len(events), np.int64)
        for name, common, known, known_pairs in self._columns:
            code = _find(events.column(name).cast(common), known)
            found = code if known_pairs is None else _find(pa.array(_pair(found, code, len(known))), known_pairs)
        return found


def _pair(so_far: Ints, code: Ints, count: int) -> Ints:
    return np.where((so_far < 0) | (code < 0), -1, so_far * count + code)


def _find(values: Any, known: Any) -> Ints:
    found: Ints = pc.fill_null(pc.index_in(values, value_set=known), -1).to_numpy(zero_copy_only=False).astype(np.int64)
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
