"""What does the online store answer? A column per feature: values, statuses, ages and the instant they hold at."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.errors import UnknownName
from featurestore.online.numbers import Numbers
from featurestore.online.types import from_python, to_python

Instants = npt.NDArray[np.int64]


class Status(IntEnum):
    """What a value is; the numbers up to 4 are those of Feast's FieldStatus."""

    PRESENT = 1
    NULL_VALUE = 2
    """The store holds a null (or an empty window gives one)."""
    NOT_FOUND = 3
    """The store holds nothing for this entity key, or held its row before the feature existed."""
    OUTSIDE_MAX_AGE = 4
    """The store holds a value older than the view's ttl; it is not given."""
    INCOMPLETE = 5
    """The value is given, but its window reaches before the view's history."""


Held: TypeAlias = pa.Array | Numbers | list[Any]
"""The values of one column, as they came: Arrow of the type's form, stored numbers, or Python values."""


class Column(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One feature of every entity row, in their order; the arrays are all as long as there are rows.

    Columns of one view share the arrays that are equal.
    """

    view: str
    """The name the view goes by in this request."""
    feature: str
    dtype: str
    held: Held
    """Null unless PRESENT or INCOMPLETE."""
    statuses: npt.NDArray[np.uint8]
    event_us: Instants
    """Event time of the row, of the newest event for windowed features; 0 where there is none."""
    instant_us: Instants
    """The reading instant t: the value is exactly what holds at t."""

    @property
    def values(self) -> pa.Array:
        """Typed as `featurestore.online.types.arrow_type(dtype)`."""
        if isinstance(self.held, Numbers):
            return self.held.arrow()
        return from_python(self.held, self.dtype, name=self.feature) if isinstance(self.held, list) else self.held

    def to_python(self) -> list[Any]:
        """The values as Python values: None for null, dicts for maps and structs, aware datetimes for timestamps."""
        if isinstance(self.held, Numbers):
            return self.held.tolist()
        return self.held if isinstance(self.held, list) else to_python(self.held, self.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class OnlineResult:
    """The answer to one read: columns in the order of the projections and of their features."""

    rows: int
    columns: tuple[Column, ...]

    def column(self, view: str, feature: str) -> Column:
        """The column of one feature; raises UnknownName."""
        for column in self.columns:
            if (column.view, column.feature) == (view, feature):
                return column
        raise UnknownName("column", f"{view}:{feature}", names(self.columns))


def names(columns: Sequence[Column]) -> list[str]:
    """The columns as feature references."""
    return [f"{column.view}:{column.feature}" for column in columns]
