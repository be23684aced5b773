"""What does the online store answer? A column per feature: values, statuses, ages and the instant they hold at."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
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


class Block(msgspec.Struct, frozen=True, eq=False, gc=False):
    """All features of one view, where they share statuses and times: one object in place of a column for each."""

    view: str
    """The name the view goes by in this request."""
    features: tuple[str, ...]
    dtypes: tuple[str, ...]
    held: npt.NDArray[Any] | list[tuple[Any, ...]]
    """Stored numbers of one type, by feature and then by row, none null; or Python values, a tuple for each row."""
    statuses: bytes
    """Of each row."""
    event_us: Instants | list[int]
    instant_us: Instants | list[int] | None
    """None: `t_us` for every row."""
    t_us: int
    oldest_us: int
    """The least event time there is; 0 where there is none."""

    def columns(self) -> list[Column]:
        """The block as columns."""
        statuses = np.frombuffer(self.statuses, np.uint8)
        event_us = np.asarray(self.event_us, np.int64)
        if self.instant_us is None:
            instant_us = np.full(len(statuses), self.t_us, np.int64)
        else:
            instant_us = np.asarray(self.instant_us, np.int64)
        columns = []
        by_feature = self.held if isinstance(self.held, np.ndarray) else zip(*self.held, strict=True)
        for name, dtype, values in zip(self.features, self.dtypes, by_feature, strict=True):
            held = Numbers(dtype, values) if isinstance(values, np.ndarray) else [*values]
            columns.append(Column(self.view, name, dtype, held, statuses, event_us, instant_us))
        return columns


@dataclass(frozen=True, eq=False)
class OnlineResult:
    """The answer to one read, in the order of the projections and of their features."""

    rows: int
    parts: Sequence[Block | Column]
    """Views as blocks where that is possible, else a column for each feature."""

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """A column for each feature."""
        columns: list[Column] = []
        for part in self.parts:
            if isinstance(part, Block):
                columns += part.columns()
            else:
                columns.append(part)
        return tuple(columns)

    def column(self, view: str, feature: str) -> Column:
        """The column of one feature; raises UnknownName."""
        for column in self.columns:
            if (column.view, column.feature) == (view, feature):
                return column
        raise UnknownName("column", f"{view}:{feature}", names(self.columns))


def names(columns: Sequence[Column]) -> list[str]:
    """The columns as feature references."""
    return [f"{column.view}:{column.feature}" for column in columns]
