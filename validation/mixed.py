"""Columns of mixed types: values that are not of their column's type, kept as JSON beside those that are.

An Arrow column has one type. A column of a file with one bad value is an `arrow.json` column: the values that are of
the promised type in that type's form, the others as the file has them. Null stays null.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

MIXED: Final = pa.json_(pa.string())


def is_mixed(physical: pa.DataType) -> bool:
    """Whether a column holds values of several types.

    >>> is_mixed(mixed([1, "a"]).type), is_mixed(pa.string())
    (True, False)
    """
    return isinstance(physical, pa.JsonType)


def mixed(values: Sequence[Any]) -> pa.Array:
    """The values as one column."""
    texts = [None if value is None else json.dumps(value, ensure_ascii=False, default=str) for value in values]
    return pa.array(texts, pa.string()).cast(MIXED)


def values_of(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """The values of a column, mixed or not.

    >>> values_of(mixed([1, "a", None, [1.5]]))
    [1, 'a', None, [1.5]]
    """
    if not is_mixed(column.type):
        found: list[Any] = column.to_pylist()
        return found
    return [None if text is None else json.loads(text) for text in column.to_pylist()]


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table, as `to_pylist` gives them where no column is mixed."""
    if not any(is_mixed(field.type) for field in table.schema):
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows
    columns: Mapping[str, list[Any]] = {name: values_of(table.column(name)) for name in table.column_names}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
