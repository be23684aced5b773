"""About which keys, at which instants, does the caller ask?

Entity rows stay the caller's: order, duplicates and column types are kept. What the joins need of them, instants in
int64 microseconds and keys in their entity's declared type, is computed beside them.
"""

import json
import re
from collections.abc import Callable, Collection, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import UsageError
from featurestore.offline.sql_types import is_string
from featurestore.offline.windowed_keys import KeyIndex
from featurestore.online.types import FLOAT_INTEGERS
from validation.errors import did_you_mean
from validation.instant_columns import column_us

Instants = tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]

_KEY_TYPES: dict[str, pa.DataType] = {
    "STRING": pa.string(),
    "BYTES": pa.binary(),
    "BOOL": pa.bool_(),
    "INT32": pa.int64(),
    "INT64": pa.int64(),
    "FLOAT": pa.float64(),
    "DOUBLE": pa.float64(),
    "UNIX_TIMESTAMP": pa.int64(),
}
_UNNAMED_INDEX = re.compile(r"__index_level_\d+__")


class EntityRows:
    """The caller's rows, with the instant of each and its keys on demand.

    `t_us` and `has_t` have one element a row; where `has_t` is false the row has no timestamp and gets no feature.
    Raises UsageError where the timestamp column is missing or holds no timestamps.
    """

    def __init__(self, table: pa.Table, timestamp: str) -> None:
        repeated = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
        if repeated:
            raise UsageError(f"entity rows have two columns of the name {repeated[0]!r}; rename one")
        self.table, self.timestamp = table, timestamp
        self.t_us, self.has_t = instants(
            _column(table, timestamp, "timestamp column"), place=f"entity rows, column {timestamp!r}"
        )
        self._keys: dict[tuple[str, str], pa.ChunkedArray] = {}
        self._joinable: dict[tuple[tuple[str, str], ...], Joinable] = {}

    def __len__(self) -> int:
        return len(self.t_us)

    def key(self, column: str, declared: str) -> pa.ChunkedArray:
        """The key column in its entity's declared type, converted once; raises UsageError, naming both types."""
        if (column, declared) not in self._keys:
            values = _column(self.table, column, "join key")
            self._keys[column, declared] = coerce_key(values, declared, place=f"entity rows, join key {column!r}")
        return self._keys[column, declared]

    def joinable(self, keys: tuple[tuple[str, str], ...]) -> "Joinable":
        """The rows that can be joined by those (column, declared type), made ready once for all views of these keys."""
        if keys not in self._joinable:
            self._joinable[keys] = Joinable.of(self, keys)
        return self._joinable[keys]

    def normalized(self) -> pa.Table:
        """The caller's table, its timestamp column as timestamp[us, UTC]; all else untouched."""
        position = self.table.column_names.index(self.timestamp)
        column = pa.array(self.t_us, mask=~self.has_t).cast(pa.timestamp("us", "UTC"))
        return self.table.set_column(position, pa.field(self.timestamp, column.type), column)

    def bounds_us(self) -> tuple[int, int] | None:
        """The least and greatest instant; None where no row has one."""
        known = self.t_us[self.has_t]
        return (int(known.min()), int(known.max())) if len(known) else None


def without_index(table: pa.Table, needed: Collection[str] | None, *, folders: Collection[str] = ()) -> pa.Table:
    """The table without the columns that pandas makes of an index, and without its own notes.

    An index says where a row lay, which a model must not learn. A named one stays where it is `needed`, as a join key
    or an instant may be; so do columns of partition `folders`. None: every name is needed.

    >>> without_index(pa.table({"x": [1], "__index_level_0__": [7]}), ()).column_names
    ['x']
    """
    try:
        noted = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", [])
    except (ValueError, AttributeError):
        noted = []
    index = {name for name in noted if isinstance(name, str)} | set(folders)
    kept = [
        name
        for name in table.column_names
        if not _UNNAMED_INDEX.fullmatch(name) and (needed is None or name not in index or name in needed)
    ]
    return (table if len(kept) == table.num_columns else table.select(kept)).replace_schema_metadata()


class Joinable:
    """The entity rows of which neither key nor instant is NULL."""

    def __init__(self, table: pa.Table, keys: Sequence[str]) -> None:
        self.table = table
        """`row` (its position among all), `t` and the keys k0.., in their declared types."""
        self._names = keys

    @classmethod
    def of(cls, asked: EntityRows, keys: Sequence[tuple[str, str]]) -> "Joinable":
        """Those of the caller's rows."""
        table = pa.table({"row": np.arange(len(asked)), "t": asked.t_us})
        usable = asked.has_t
        names = [f"k{number}" for number in range(len(keys))]
        for name, (column, declared) in zip(names, keys, strict=True):
            values = asked.key(column, declared)
            table = table.append_column(name, values)
            if values.null_count:
                usable = usable & values.is_valid().to_numpy()
        # A NULL never joins; left in, a NULL instant would sort above every other.
        return cls(table if usable.all() else table.filter(pa.array(usable)), names)

    @cached_property
    def index(self) -> KeyIndex:
        """The keys as small integers."""
        return KeyIndex(self.table, {name: name for name in self._names}, self.table.schema)


def instants(column: pa.ChunkedArray, *, place: str) -> Instants:
    """Microseconds since the epoch in UTC, and where there is one; naive is UTC, nanoseconds are floored.

    Any form that `validation.instant` knows is read. Raises UsageError, naming `place`, for what is no instant.

    >>> times, known = instants(pa.chunked_array([pa.array([-1, None], pa.timestamp("ns"))]), place="here")
    >>> times.tolist(), known.tolist()
    ([-1, 0], [True, False])
    """
    try:
        found = column_us(column.combine_chunks())
    except (TypeError, ValueError) as error:
        raise UsageError(f"{place}: {error}") from error
    times = pc.fill_null(found, 0).to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(times, np.int64), found.is_valid().to_numpy(zero_copy_only=False)


def coerce_key(column: pa.ChunkedArray, declared: str, *, place: str) -> pa.ChunkedArray:
    """A key column in the entity's declared type: int32 5, int64 5 and "5" are one INT64 key.

    Whole numbers and their plain decimal text become integers, integers become text; NULL and NaN of a float column are
    NULL. Raises UsageError, with both types, where a value would lose something.

    >>> coerce_key(pa.chunked_array([["5", None]]), "INT64", place="here").to_pylist()
    [5, None]
    """
    dtype = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    column = column.cast(dtype) if dtype != column.type else column
    target = _KEY_TYPES.get(declared)
    if target is None:
        raise UsageError(f"{place}: entities of type {declared} cannot be joined; {did_you_mean(declared, _KEY_TYPES)}")
    if pa.types.is_null(dtype):
        return pa.chunked_array([pa.nulls(len(column), target)])
    if declared == "UNIX_TIMESTAMP":
        times, known = instants(column, place=place)
        return pa.chunked_array([pa.array(times, mask=~known)])
    allowed = any(accepts(dtype) for accepts in _ACCEPTED[declared])
    if allowed:
        if pa.types.is_floating(dtype) and declared.startswith("INT"):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, dtype), column)
            _refuse_rounded(column, place)
        try:
            key = column.cast(pa.int32()).cast(target) if declared == "INT32" else column.cast(target)
        except pa.ArrowInvalid as error:
            raise UsageError(f"{place} holds {dtype}, its entity is declared {declared}: {error}") from error
        # "05" and "5" are two strings and must not become one number.
        if not (is_string(dtype) and declared.startswith("INT")) or key.cast(dtype).equals(column):
            return key
    raise UsageError(
        f"{place} holds {dtype}, its entity is declared {declared}; convert the column without losing anything"
    )


def _refuse_rounded(column: pa.ChunkedArray, place: str) -> None:
    """A float beyond its exact integers may stand for another key: pandas makes floats of integers beside a null."""
    bound = FLOAT_INTEGERS[column.type.bit_width]
    most = pc.max(pc.abs(column)).as_py()
    if most is not None and most >= bound:
        raise UsageError(
            f"{place} holds {column.type}, and {most!r} in it may be the rounded form of another integer (from {bound} "
            "on); keep integers beside nulls as integers: pandas' Int64, or an Arrow table"
        )


_ACCEPTED: dict[str, tuple[Callable[[pa.DataType], bool], ...]] = {
    "STRING": (is_string, pa.types.is_integer),
    "BYTES": (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary),
    "BOOL": (pa.types.is_boolean,),
    "FLOAT": (pa.types.is_floating,),
    "DOUBLE": (pa.types.is_floating,),
    **dict.fromkeys(("INT32", "INT64"), (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, is_string)),
}


def _column(table: pa.Table, name: str, what: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise UsageError(f"entity rows have no {what} {name!r}; {did_you_mean(name, table.column_names)}")
    return table[name]
