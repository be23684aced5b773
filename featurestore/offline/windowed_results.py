"""Where do the windows' values wait until every entity row is answered?

Chunks are answered in any order, several at a time; each writes its values to their rows. So no value is held twice,
and nothing is left to be put in order at the end.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.aggregation.results import Told
from featurestore.aggregation.values import arrow_type
from featurestore.offline.windowed_ranges import Ints
from featurestore.plan import Aggregation


class Results:
    """One column for every aggregation; rows that nobody answers are null. Safe from many threads at once."""

    def __init__(self, aggregations: Sequence[Aggregation], rows: int) -> None:
        self.rows = rows
        self._types = {each.feature: arrow_type(each.dtype) for each in aggregations}
        plain = {name: dtype for name, dtype in self._types.items() if _is_plain(dtype)}
        self._values = {name: np.zeros(rows, _numpy(dtype)) for name, dtype in plain.items()}
        self._null = {name: np.ones(rows, np.bool_) for name in plain}
        # Lists and text have no place of a fixed width: they wait as they come.
        self._pieces: dict[str, list[tuple[Ints, Any]]] = {name: [] for name in self._types if name not in plain}

    def put(self, feature: str, rows: Ints, told: Told | Any) -> None:
        """The feature's values of those rows, which nobody else answers."""
        if feature in self._pieces:
            self._pieces[feature].append((rows, told.arrow() if isinstance(told, Told) else told))
            return
        self._values[feature][rows] = told.values
        self._null[feature][rows] = False if told.nulls is None else told.nulls

    def table(self) -> Any:
        """The columns in the order of the aggregations; takes them out, so that each is freed of what it waited in."""
        return pa.table({name: self._column(name, dtype) for name, dtype in self._types.items()})

    def _column(self, name: str, dtype: Any) -> Any:
        if name in self._values:
            values, null = self._values.pop(name), self._null.pop(name)
            values = values.view("M8[us]") if pa.types.is_timestamp(dtype) else values
            return pa.array(values, dtype, mask=null if null.any() else None)
        place = np.full(self.rows, -1)
        pieces = self._pieces.pop(name)
        if pieces:
            order = np.concatenate([rows for rows, _ in pieces])
            place[order] = np.arange(len(order))
        found = pa.chunked_array([values for _, values in pieces], dtype)
        return found.take(pa.array(place, mask=place < 0))


def _is_plain(dtype: Any) -> bool:
    return bool(
        pa.types.is_integer(dtype)
        or pa.types.is_floating(dtype)
        or pa.types.is_boolean(dtype)
        or pa.types.is_timestamp(dtype)
    )


def _numpy(dtype: Any) -> Any:
    return np.int64 if pa.types.is_timestamp(dtype) else dtype.to_pandas_dtype()
