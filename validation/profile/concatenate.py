"""Concatenation of tables whose columns may differ in type, for profiles and drift checks.

Arrow's permissive promotion fails as a whole for one column, and takes decimals for doubles. Here each column is
promoted alone, and a column without an exact common type is left out, with the reason.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

_EXACT_INTEGERS = 2**53
"""From here on a double may be the rounded form of another integer."""


class Concatenated(NamedTuple):
    """The rows of all tables in order, and the columns that are not among them."""

    table: pa.Table
    left_out: dict[str, str]
    """Column -> the reason."""

    @property
    def reasons(self) -> list[str]:
        """What is left out, for people."""
        return [f"{name} ({why})" for name, why in self.left_out.items()]


def concatenate(tables: Sequence[pa.Table]) -> Concatenated:
    """Concatenate tables; a column that some lack is null there, and no integer is rounded.

    >>> rows = concatenate([pa.table({"id": [2**60 + 1], "x": [1]}), pa.table({"id": [0.5], "x": [0.5]})])
    >>> rows.table.to_pylist(), rows.left_out
    ([{'x': 1.0}, {'x': 0.5}], {'id': 'int64 and double have no exact common type'})
    """
    tables = [table.replace_schema_metadata() for table in tables]
    if all(table.schema.equals(tables[0].schema) for table in tables[1:]):
        return Concatenated(pa.concat_tables(tables), {})
    columns, left_out = {}, {}
    for name in dict.fromkeys(name for table in tables for name in table.column_names):
        parts = [table[name] if name in table.column_names else pa.nulls(len(table)) for table in tables]
        try:
            columns[name] = _one_column(parts)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            types = dict.fromkeys(str(part.type) for part in parts if not pa.types.is_null(part.type))
            left_out[name] = f"{' and '.join(types)} have no exact common type"
    return Concatenated(pa.table(columns), left_out)


def alike(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """Concatenate those tables that have the same types; each has all columns, null where it lacks one.

    >>> [table.num_rows for table in alike([pa.table({"x": [1]}), pa.table({"x": ["a"]}), pa.table({"x": [2]})])]
    [2, 1]
    """
    names = dict.fromkeys(name for table in tables for name in table.column_names)
    found: dict[pa.Schema, list[pa.Table]] = {}
    for table in tables:
        for name in names:
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(len(table)))
        table = table.select(list(names)).replace_schema_metadata()
        found.setdefault(table.schema, []).append(table)
    return [pa.concat_tables(some) for some in found.values()]


def _one_column(parts: Sequence[pa.ChunkedArray | pa.Array]) -> pa.ChunkedArray:
    found = {part.type for part in parts if not pa.types.is_null(part.type)}
    if len(found) > 1:
        # A dictionary merges with its like alone.
        parts = [part.cast(part.type.value_type) if pa.types.is_dictionary(part.type) else part for part in parts]
        if any(map(pa.types.is_floating, found)):
            _refuse_large_decimals(parts)
    alone = [pa.table({"": part}) for part in parts]
    return pa.concat_tables(alone, promote_options="permissive").column(0)


def _refuse_large_decimals(parts: Sequence[pa.ChunkedArray | pa.Array]) -> None:
    """Arrow checks integers that become doubles, but no decimals."""
    for part in parts:
        if pa.types.is_decimal(part.type):
            most = pc.max(pc.abs(part)).as_py()
            if most is not None and most >= _EXACT_INTEGERS:
                raise pa.ArrowInvalid(f"{part.type} holds integers that a double would round")
