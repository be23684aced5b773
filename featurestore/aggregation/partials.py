"""What must be kept of some events so that their aggregate can be told, and merged with that of others?

A *part* is one such thing (a count, the limbs of a sum, the greatest value) for k groups at a time: an array whose
last axis is the groups. Every part is a commutative monoid whose identity is all zeros, so that events and parts may
be merged in any order and grouping with the same bits. `Part.of` lifts events, `Part.reduce` merges contiguous runs,
`pack` and `unpack` are the wire format.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.aggregation import fixedpoint as fp
from featurestore.aggregation.errors import MagnitudeTooLarge, ValueTooLong
from featurestore.aggregation.lexicon import DECIMAL_WORDS, Lexicon, greater, greatest, of_text, text_words
from featurestore.aggregation.values import (
    Events,
    Kind,
    Numbers,
    ascending,
    decimal_of,
    descending,
    from_ascending,
    from_descending,
    hash_bytes,
    kind_of,
    long_decimals,
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

_ZERO = np.uint64(0)
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
_ORDERED = ("min", "max", "first", "last", "last_k")
"""Functions that keep values themselves: of text and bytes, in slots of a declared length."""
_LONGEST_BYTES = 1024
_LARGEST_SLOT = 1 << 16
"""Bytes that last_k may keep of a column in one slot."""


@dataclass(frozen=True)
class Part:
    """One kind of part of one kind of values."""

    name: _Narrow
    kind: Kind
    words: int = 0
    """How many words a value has that is no number; 0: values are numbers."""

    @property
    def dtype(self) -> Any:
        """The numpy type (with shape) of one packed part."""
        if self.name in ("sum", "square"):
            return ("<u4", (self._limbs,))
        if self.name in ("first", "last"):
            return ("<u8", (1 + (self.words or 1),))
        if self.words and self.name in ("min", "max"):
            return ("<u8", (self.words,))
        return "<i8" if self.name in ("n", "odd") else "<u8"

    @property
    def ranked(self) -> Self:
        """The same part of places in a lexicon, which are integers; `spell` leads back. Itself where values are."""
        return replace(self, kind="int", words=0) if self.words and self.name in _ORDERED else self

    def spell(self, raw: Raw, lexicon: Lexicon | None) -> Raw:
        """What `ranked` made of places in a lexicon, as this part."""
        if lexicon is None or not self.words or self.name not in _ORDERED:
            return raw
        some = np.flatnonzero(raw[0] if raw.ndim > 1 else raw)
        out = self.empty(raw.shape[-1])
        match self.name:
            case "min":
                out[:, some] = ~lexicon.words[:, from_descending(raw[some], "int")]
            case "max":
                out[:, some] = lexicon.words[:, from_ascending(raw[some], "int")]
            case _:
                out[0] = raw[0]
                out[1:, some] = lexicon.words[:, from_ascending(raw[1, some], "int")]
        return out

    def empty(self, groups: int) -> Raw:
        """The part of no events, for that many groups."""
        dtype = self.dtype
        if not isinstance(dtype, tuple):
            return np.zeros(groups, dtype)
        return np.zeros((*dtype[1], groups), np.int64 if self.name in ("sum", "square") else dtype[0])

    def of(self, events: Events) -> Raw:
        """The part of every event alone."""
        values = events.values
        if events.lexicon is not None and self.ranked is not self:
            return self.spell(self.ranked.of(Events(values, events.ts_us)), events.lexicon)
        match self.name:
            case "n":
                return np.ones(len(events.ts_us), np.int64)
            case "sum" | "square" if events.lexicon is not None:
                limbs = events.lexicon.limbs if self.name == "sum" else events.lexicon.square_limbs
                return limbs[:, values]
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
        if events.lexicon is not None and self.ranked is not self:
            # Places are compared, and words made of those that win.
            return self.spell(self.ranked.lift(Events(events.values, events.ts_us), starts), events.lexicon)
        raw = self.of(events)
        return raw if len(starts) == len(events.ts_us) else self.reduce(raw, starts)

    def reduce(self, raw: Raw, starts: Ints) -> Raw:
        """The merge of contiguous runs; `starts` are the positions, ascending, where runs begin."""
        match self.name:
            case "n" | "sum" | "square":
                return np.add.reduceat(raw, starts, axis=-1)
            case "odd":
                return np.bitwise_or.reduceat(raw, starts)
            case "min" | "max" if not self.words:
                return np.maximum.reduceat(raw, starts)
            case "min" | "max" | "first" | "last" if self.words:
                return greatest(raw, starts)
            case _:
                # The greatest time, then the greatest value among those that have it.
                ts = np.maximum.reduceat(raw[0], starts)
                ends = np.append(starts[1:], raw.shape[1])
                ties = raw[0] == np.repeat(ts, ends - starts)
                return np.stack([ts, np.maximum.reduceat(np.where(ties, raw[1], np.uint64(0)), starts)])

    def reduce_tiles(self, packed: Raw, runs: Ints) -> Raw:
        """The merge of contiguous runs of tiles of each of k groups: [..., runs, groups].

        `packed` is the wire format [groups, tiles, ...], read where it lies; `runs` are the tiles where runs begin,
        ascending, the first 0. Only of values that are numbers.
        """
        match self.name:
            case "n":
                return np.add.reduceat(packed, runs, axis=1).T
            case "sum" | "square":
                limbs = np.add.reduceat(packed, runs, axis=1, dtype=np.int64)
                # Two's complement: the sign is the last limb's.
                limbs[..., -1] = np.add.reduceat(packed[..., -1].view("<i4"), runs, axis=1, dtype=np.int64)
                return limbs.T
            case "odd":
                return np.bitwise_or.reduceat(packed, runs, axis=1).T
            case "min" | "max":
                return np.maximum.reduceat(packed, runs, axis=1).T
            case "first" | "last":
                ts, values = packed[..., 0], packed[..., 1]
                out = np.empty((2, len(runs), len(packed)), np.uint64)
                best = np.maximum.reduceat(ts, runs, axis=1)
                run = np.zeros(ts.shape[1], np.int64)
                run[runs[1:]] = 1
                values = np.where(ts == best.take(run.cumsum(), axis=1), values, _ZERO)
                out[0], out[1] = best.T, np.maximum.reduceat(values, runs, axis=1).T
                return out

    def merge(self, a: Raw, b: Raw) -> Raw:
        """Group by group, the part of the events of both."""
        match self.name:
            case "n" | "sum" | "square":
                return a + b
            case "odd":
                return a | b
            case "min" | "max" if not self.words:
                return np.maximum(a, b)
            case "min" | "max" | "first" | "last" if self.words:
                return np.where(greater(b, a), b, a)
            case _:
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
        if self.kind != "int":
            return fp.SUM_LIMBS if self.name == "sum" else fp.SQUARE_LIMBS
        return fp.INT_SUM_LIMBS if self.name == "sum" else fp.INT_SQUARE_LIMBS

    def _limbs_of(self, values: Numbers) -> Raw:
        if values.dtype == np.int64:
            return fp.int_limbs(values) if self.name == "sum" else fp.int_square_limbs(values)
        finite = np.isfinite(values)
        grid = fp.cut(values if finite.all() else np.where(finite, values, 0.0))
        return fp.sum_limbs(grid) if self.name == "sum" else fp.square_limbs(grid)


class Read(NamedTuple):
    """The values of one column."""

    values: Numbers
    """Numbers, places in the lexicon, or (where values are only counted) their hashes."""
    present: Mask | None
    """Which are there; None: all are."""
    lexicon: Lexicon | None


@dataclass(frozen=True)
class ColumnParts:
    """The parts that a set of aggregations needs of one column."""

    column: str
    dtype: str
    parts: tuple[Part | WidePart, ...]
    max_bytes: int = 0
    """The longest text that is kept; 0: text is only counted."""

    @property
    def kind(self) -> Kind:
        """How the column's values are aggregated."""
        return kind_of(self.dtype, self.column)

    @property
    def sums_floats(self) -> bool:
        """Whether magnitudes of 2**78 and more must be kept out of the column."""
        return self.kind == "float" and any(part.name == "sum" for part in self.parts)

    @property
    def scale(self) -> int | None:
        """The digits behind the point of a column of decimals; None: it holds something else."""
        digits = decimal_of(self.dtype)
        return None if digits is None else digits[1]

    def read(self, column: Any) -> Read:
        """The values of an Arrow (chunked) array; raises ValueTooLong where a text does not fit its slots."""
        found, long = self._read(column)
        if long is not None and long.any():
            raise ValueTooLong(self.column, np.flatnonzero(long).tolist(), self.max_bytes)
        return found

    def _read(self, column: Any) -> tuple[Read, Mask | None]:
        """The values, and which of them are too long."""
        if self.kind != "bytes":
            return Read(*numbers(column, name=self.column, dtype=self.dtype), None), None
        if self.scale is not None:
            places, lexicon, present = long_decimals(column, name=self.column, dtype=self.dtype)
            return Read(places, present, lexicon), None
        column = whole(column)
        present = present_of(column)
        if self.max_bytes:
            if pa.types.is_null(column.type):
                column = column.cast(pa.string())
            places, lexicon, long = of_text(column, self.max_bytes)
            return Read(places, present, lexicon), long
        if not any(part.name in _WIDE for part in self.parts):
            return Read(np.zeros(len(column), np.int64), present, None), None
        return Read(hash_bytes(column), present, None), None

    def too_large(self, column: Any) -> Mask | None:
        """Which values' magnitudes cannot be summed exactly; None where all can."""
        if not self.sums_floats:
            return None
        mask = _too_large(self.read(column).values)
        return mask if mask.any() else None

    def too_long(self, column: Any) -> Mask | None:
        """Which values do not fit their slots; None where all do."""
        if not self.max_bytes:
            return None
        column = whole(column)
        if pa.types.is_null(column.type):
            return None
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        mask: Mask = pc.fill_null(pc.greater(pc.binary_length(column), self.max_bytes), fill_value=False).to_numpy(
            zero_copy_only=False
        )
        return mask if mask.any() else None

    def refuse_too_large(self, values: Numbers) -> None:
        """Raise MagnitudeTooLarge, naming rows, where a value cannot be summed exactly."""
        if self.sums_floats and (mask := _too_large(values)).any():
            raise MagnitudeTooLarge(self.column, np.flatnonzero(mask).tolist())


def columns_of(aggregations: Sequence[Aggregation], every: Sequence[Aggregation] = ()) -> tuple[ColumnParts, ...]:
    """What must be kept of every column, sorted by name; raises DefinitionError for what cannot be aggregated.

    A part has the size that `every` aggregation of its column needs, where these are more.
    """
    grouped: dict[str, list[Aggregation]] = {}
    for aggregation in aggregations:
        check(aggregation)
        grouped.setdefault(aggregation.column, []).append(aggregation)
    return tuple(
        _column(column, grouped[column], [*grouped[column], *(each for each in every if each.column == column)])
        for column in sorted(grouped)
    )


def _column(column: str, aggregations: Sequence[Aggregation], every: Sequence[Aggregation]) -> ColumnParts:
    dtypes = sorted({aggregation.column_dtype for aggregation in every})
    if len(dtypes) > 1:
        raise DefinitionError(f"column {column!r} is declared both {' and '.join(dtypes)}")
    kind = kind_of(dtypes[0], column)
    lengths = sorted({max_bytes_of(each) for each in every if each.function in _ORDERED})
    if len(lengths) > 1:
        raise DefinitionError(
            f"column {column!r} is declared with a max_bytes of {' and of '.join(map(str, lengths))}; choose one"
        )
    max_bytes = lengths[0] if lengths else 0
    words = 0
    if kind == "bytes":
        words = DECIMAL_WORDS if decimal_of(dtypes[0]) else text_words(max_bytes)
    sizes: dict[str, int] = {}
    for aggregation in every:
        for name in _PARTS[aggregation.function]:
            sizes[name] = max(sizes.get(name, 0), size_of(aggregation))
    needed = {name for aggregation in aggregations for name in _PARTS[aggregation.function]}
    narrow = [
        Part(name, kind, words if name in _ORDERED else 0)
        for name in _NARROW
        if name in needed and not (name == "odd" and kind != "float")
    ]
    digits = decimal_of(dtypes[0])
    scale = 0 if digits is None else digits[1]
    wide = [
        WidePart(name, kind, sizes[name], words if name in _ORDERED else 0, scale) for name in _WIDE if name in needed
    ]
    return ColumnParts(column, dtypes[0], (*narrow, *wide), max_bytes)


def max_bytes_of(aggregation: Aggregation) -> int:
    """The longest text that a feature of text or bytes keeps, 0 for other columns and functions.

    Raises DefinitionError where it is not declared, or so large that slots would be.
    """
    if aggregation.function not in _ORDERED or aggregation.column_dtype not in ("STRING", "BYTES"):
        return 0
    size = aggregation.params.get("max_bytes")
    if size is None or size != int(size) or not 1 <= size <= _LONGEST_BYTES:
        raise DefinitionError(
            f"feature {aggregation.feature!r}: {aggregation.function} of text needs a whole max_bytes from 1 to "
            f"{_LONGEST_BYTES}, {'none was' if size is None else size} found; every tile keeps so many bytes, and "
            f"longer values are set aside. Say it in the view's tag '{aggregation.feature}.max_bytes'"
        )
    if aggregation.function == "last_k" and size * aggregation.params.get("k", 1) > _LARGEST_SLOT:
        raise DefinitionError(
            f"feature {aggregation.feature!r}: k times max_bytes is more than {_LARGEST_SLOT} bytes for every tile"
        )
    return int(size)


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
    if column in ("STRING", "BYTES") and function not in (*_COUNTS, *_ORDERED):
        raise DefinitionError(f"{where}: of text and bytes only {', '.join((*_COUNTS, *_ORDERED))} can be told")
    max_bytes_of(aggregation)
    if column in ("UNIX_TIMESTAMP", "DATE") and function in _FLOAT_RESULTS | {"sum"}:
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
    if column in ("UNIX_TIMESTAMP", "DATE"):
        return ("UNIX_TIMESTAMP",)
    if column in ("STRING", "BYTES"):
        return (column,)
    if decimal_of(column) is not None:
        return ("DECIMAL", *floats)
    if column == "BOOL" and function != "sum":
        return ("BOOL", *ints, *floats)
    return floats if kind == "float" else ints + floats


def odd_flags(values: Numbers) -> Ints:
    """NAN, PLUS_INF, MINUS_INF or 0 for every float."""
    flags: Ints = (np.isnan(values) * NAN + np.isposinf(values) * PLUS_INF + np.isneginf(values) * MINUS_INF).astype(
        np.int64
    )
    return flags


def too_large(kept_columns: Sequence[ColumnParts], columns: Mapping[str, Any]) -> Mask | None:
    """Which events hold a magnitude of 2**78 or more in a column that is summed; None where none does.

    Such events are set aside by the stream; offline they are an error.
    """
    found: Mask | None = None
    for kept in kept_columns:
        mask = kept.too_large(columns[kept.column])
        if mask is not None:
            found = mask if found is None else found | mask
    return found


def too_long(kept_columns: Sequence[ColumnParts], columns: Mapping[str, Any]) -> Mask | None:
    """Which events hold text or bytes that do not fit the slots of their column; None where none does."""
    found: Mask | None = None
    for kept in kept_columns:
        mask = kept.too_long(columns[kept.column])
        if mask is not None:
            found = mask if found is None else found | mask
    return found


def _too_large(values: Numbers) -> Mask:
    mask: Mask = np.isfinite(values) & (np.abs(values) >= fp.LIMIT)
    return mask
