"""What must be kept of some events so that their aggregate can be told, and merged with that of others?

A *part* is one such thing (a count, the limbs of a sum, the greatest value) for k groups at a time: an array whose
last axis is the groups. Every part is a commutative monoid whose identity is all zeros, so that events and parts may
be merged in any order and grouping with the same bits. `Part.of` lifts events, `Part.reduce` merges contiguous runs,
`pack` and `unpack` are the wire format.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from featurestore.aggregation import fixedpoint as fp
from featurestore.aggregation.errors import MagnitudeTooLarge
from featurestore.aggregation.values import (
    Events,
    Kind,
    Numbers,
    ascending,
    descending,
    hash_bytes,
    kind_of,
    numbers,
    present_of,
    whole,
)
from featurestore.aggregation.wide import BUCKETS, REGISTERS, WidePart
from featurestore.errors import DefinitionError
from featurestore.plan import Aggregation

Raw = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_Narrow: TypeAlias = Literal["n", "sum", "odd", "square", "min", "max", "first", "last"]
_Wide: TypeAlias = Literal["last_k", "distinct", "registers", "buckets"]
PartName: TypeAlias = _Narrow | _Wide

NAN, PLUS_INF, MINUS_INF = 1, 2, 4
"""Flags of the part `odd`: which non-finite floats were among the events; they are kept out of the sums."""

_NARROW: tuple[_Narrow, ...] = ("n", "sum", "odd", "square", "min", "max", "first", "last")
_WIDE: tuple[_Wide, ...] = ("last_k", "distinct", "registers", "buckets")
_PARTS = {
    "count": ("n",),
    "sum": ("n", "sum", "odd"),
    "mean": ("n", "sum", "odd"),
    "var": ("n", "sum", "odd", "square"),
    "std": ("n", "sum", "odd", "square"),
    "min": ("n", "min"),
    "max": ("n", "max"),
    "first": ("n", "first"),
    "last": ("n", "last"),
    "last_k": ("n", "last_k"),
    "count_distinct": ("n", "distinct"),
    "approx_count_distinct": ("n", "registers"),
    "approx_percentile": ("n", "buckets"),
}
_FIXED_SIZES = {"approx_count_distinct": REGISTERS, "approx_percentile": BUCKETS}
_COUNTS = ("approx_count_distinct", "count", "count_distinct")
_SIZES = {"last_k": ("k", 1024), "count_distinct": ("cap", 4096)}
"""The parameter that sets a function's width, and the largest one allowed: every slot is that wide."""
_FLOAT_RESULTS = {"mean", "var", "std", "approx_percentile"}


@dataclass(frozen=True)
class Part:
    """One kind of part of one kind of values."""

    name: _Narrow
    kind: Kind

    @property
    def dtype(self) -> Any:
        """The numpy type (with shape) of one packed part."""
        if self.name in ("sum", "square"):
            return ("<u4", (self._limbs,))
        if self.name in ("first", "last"):
            return ("<u8", (2,))
        return "<i8" if self.name in ("n", "odd") else "<u8"

    def empty(self, groups: int) -> Raw:
        """The part of no events, for that many groups."""
        dtype = self.dtype
        if not isinstance(dtype, tuple):
            return np.zeros(groups, dtype)
        return np.zeros((*dtype[1], groups), np.int64 if self.name in ("sum", "square") else dtype[0])

    def of(self, events: Events) -> Raw:
        """The part of every event alone."""
        values = events.values
        match self.name:
            case "n":
                return np.ones(len(events.ts_us), np.int64)
            case "sum" | "square":
                return self._limbs_of(values)
            case "odd":
                return odd_flags(values)
            case "min":
                return descending(values)
            case "max":
                return ascending(values)
            case "first":
                return np.stack([descending(events.ts_us), ascending(values)])
            case "last":
                return np.stack([ascending(events.ts_us), ascending(values)])

    def lift(self, events: Events, starts: Ints) -> Raw:
        """The part of every contiguous run of events."""
        raw = self.of(events)
        return raw if len(starts) == len(events.ts_us) else self.reduce(raw, starts)

    def reduce(self, raw: Raw, starts: Ints) -> Raw:
        """The merge of contiguous runs; `starts` are the positions, ascending, where runs begin."""
        match self.name:
            case "n" | "sum" | "square":
                return np.add.reduceat(raw, starts, axis=-1)
            case "odd":
                return np.bitwise_or.reduceat(raw, starts)
            case "min" | "max":
                return np.maximum.reduceat(raw, starts)
            case "first" | "last":
                # The greatest time, then the greatest value among those that have it.
                ts = np.maximum.reduceat(raw[0], starts)
                ends = np.append(starts[1:], raw.shape[1])
                ties = raw[0] == np.repeat(ts, ends - starts)
                return np.stack([ts, np.maximum.reduceat(np.where(ties, raw[1], np.uint64(0)), starts)])

    def merge(self, a: Raw, b: Raw) -> Raw:
        """Group by group, the part of the events of both."""
        match self.name:
            case "n" | "sum" | "square":
                return a + b
            case "odd":
                return a | b
            case "min" | "max":
                return np.maximum(a, b)
            case "first" | "last":
                return np.where((b[0] > a[0]) | ((b[0] == a[0]) & (b[1] > a[1])), b, a)

    def pack(self, raw: Raw) -> Raw:
        """The wire format, groups first; may change `raw`."""
        return fp.pack(raw) if self.name in ("sum", "square") else raw.T

    def unpack(self, packed: Raw) -> Raw:
        """What `pack` was given."""
        if self.name in ("sum", "square"):
            return fp.unpack(packed)
        return np.ascontiguousarray(packed.T)

    @property
    def _limbs(self) -> int:
        if self.kind == "float":
            return fp.SUM_LIMBS if self.name == "sum" else fp.SQUARE_LIMBS
        return fp.INT_SUM_LIMBS if self.name == "sum" else fp.INT_SQUARE_LIMBS

    def _limbs_of(self, values: Numbers) -> Raw:
        if values.dtype == np.int64:
            return fp.int_limbs(values) if self.name == "sum" else fp.int_square_limbs(values)
        finite = np.isfinite(values)
        grid = fp.cut(values if finite.all() else np.where(finite, values, 0.0))
        return fp.sum_limbs(grid) if self.name == "sum" else fp.square_limbs(grid)


@dataclass(frozen=True)
class ColumnParts:
    """The parts that a set of aggregations needs of one column."""

    column: str
    dtype: str
    parts: tuple[Part | WidePart, ...]

    @property
    def kind(self) -> Kind:
        """How the column's values are aggregated."""
        return kind_of(self.dtype, self.column)

    @property
    def sums_floats(self) -> bool:
        """Whether magnitudes of 2**78 and more must be kept out of the column."""
        return self.kind == "float" and any(part.name == "sum" for part in self.parts)

    def read(self, column: Any) -> tuple[Numbers, Mask | None]:
        """Numbers of an Arrow (chunked) array and which are there; strings and bytes are told by their hashes."""
        if self.kind == "bytes":
            present = present_of(whole(column))
            if not any(part.name in _WIDE for part in self.parts):
                return np.zeros(len(column), np.int64), present
            return hash_bytes(column), present
        return numbers(column, name=self.column, dtype=self.dtype)

    def too_large(self, column: Any) -> Mask | None:
        """Which values' magnitudes cannot be summed exactly; None where all can."""
        if not self.sums_floats:
            return None
        mask = _too_large(self.read(column)[0])
        return mask if mask.any() else None

    def refuse_too_large(self, values: Numbers) -> None:
        """Raise MagnitudeTooLarge, naming rows, where a value cannot be summed exactly."""
        if self.sums_floats and (mask := _too_large(values)).any():
            raise MagnitudeTooLarge(self.column, np.flatnonzero(mask).tolist())


def columns_of(aggregations: Sequence[Aggregation]) -> tuple[ColumnParts, ...]:
    """What must be kept of every column, sorted by name; raises DefinitionError for what cannot be aggregated."""
    grouped: dict[str, list[Aggregation]] = {}
    for aggregation in aggregations:
        check(aggregation)
        grouped.setdefault(aggregation.column, []).append(aggregation)
    return tuple(_column(column, grouped[column]) for column in sorted(grouped))


def _column(column: str, aggregations: Sequence[Aggregation]) -> ColumnParts:
    dtypes = sorted({aggregation.column_dtype for aggregation in aggregations})
    if len(dtypes) > 1:
        raise DefinitionError(f"column {column!r} is declared both {' and '.join(dtypes)}")
    kind = kind_of(dtypes[0], column)
    sizes: dict[str, int] = {}
    for aggregation in aggregations:
        for name in _PARTS[aggregation.function]:
            sizes[name] = max(sizes.get(name, 0), size_of(aggregation))
    narrow = [Part(name, kind) for name in _NARROW if name in sizes and not (name == "odd" and kind == "int")]
    wide = [WidePart(name, kind, sizes[name]) for name in _WIDE if name in sizes]
    return ColumnParts(column, dtypes[0], (*narrow, *wide))


def size_of(aggregation: Aggregation) -> int:
    """k of last_k, the cap of count_distinct; raises DefinitionError where it is not declared or too large."""
    if aggregation.function not in _SIZES:
        return _FIXED_SIZES.get(aggregation.function, 0)
    name, largest = _SIZES[aggregation.function]
    size = aggregation.params.get(name)
    if size is None or size != int(size) or not 1 <= size <= largest:
        raise DefinitionError(
            f"feature {aggregation.feature!r}: {aggregation.function} needs a whole {name} from 1 to {largest}, "
            f"{'none was' if size is None else size} found; say it in the view's tag '{aggregation.feature}.{name}'"
        )
    return int(size)


def check(aggregation: Aggregation) -> None:
    """Raise DefinitionError where a function, its column's type and its feature's type do not go together."""
    function, column, dtype = aggregation.function, aggregation.column_dtype, aggregation.dtype
    where = f"feature {aggregation.feature!r}: {function} of {aggregation.column!r} ({column}) as {dtype}"
    kind = kind_of(column, aggregation.column)
    if function not in _PARTS:
        raise DefinitionError(f"{where}: no such function here; what exists: {', '.join(_PARTS)}")
    size_of(aggregation)
    if function == "approx_percentile" and not 0 <= aggregation.params.get("p", -1) <= 1:
        raise DefinitionError(f"{where}: needs a p from 0 to 1; say it in the view's tag '{aggregation.feature}.p'")
    if kind == "bytes" and function not in _COUNTS:
        raise DefinitionError(f"{where}: of strings and bytes only {', '.join(_COUNTS)} can be told")
    if column == "UNIX_TIMESTAMP" and function in _FLOAT_RESULTS | {"sum"}:
        raise DefinitionError(f"{where}: instants have no {function}")
    if dtype not in _results(function, column, kind):
        raise DefinitionError(f"{where}: declare the feature {' or '.join(_results(function, column, kind))}")


def _results(function: str, column: str, kind: Kind) -> tuple[str, ...]:
    floats, ints = ("DOUBLE", "FLOAT"), ("INT64", "INT32")
    if function in _FLOAT_RESULTS:
        return floats
    if function == "last_k":
        return tuple(f"{dtype}_LIST" for dtype in _results("last", column, kind))
    if function in _COUNTS:
        return ints + floats
    if column == "UNIX_TIMESTAMP":
        return ("UNIX_TIMESTAMP",)
    if column == "BOOL" and function != "sum":
        return ("BOOL", *ints, *floats)
    return floats if kind == "float" else ints + floats


def odd_flags(values: Numbers) -> Ints:
    """NAN, PLUS_INF, MINUS_INF or 0 for every float."""
    flags: Ints = (np.isnan(values) * NAN + np.isposinf(values) * PLUS_INF + np.isneginf(values) * MINUS_INF).astype(
        np.int64
    )
    return flags


def too_large(aggregations: Sequence[Aggregation], columns: Mapping[str, Any]) -> Mask | None:
    """Which events hold a magnitude of 2**78 or more in a column that is summed; None where none does.

    Such events are set aside by the stream; offline they are an error.
    """
    found: Mask | None = None
    for kept in columns_of(aggregations):
        mask = kept.too_large(columns[kept.column])
        if mask is not None:
            found = mask if found is None else found | mask
    return found


def _too_large(values: Numbers) -> Mask:
    mask: Mask = np.isfinite(values) & (np.abs(values) >= fp.LIMIT)
    return mask
