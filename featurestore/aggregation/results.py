"""Which value does a feature take, given the parts of its window's events?

The same code ends all three paths (joins offline, tiles in the stream, merges in the reader). Null is "no such
value": an empty window, or the variance of one event. NaN is a number that was among the events, or what IEEE makes
of infinities.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.aggregation import fixedpoint as fp
from featurestore.aggregation.errors import BelowSketch, LeavesType, TooManyDistinct
from featurestore.aggregation.lexicon import decimal_text, to_binary, to_ints
from featurestore.aggregation.partials import MINUS_INF, NAN, PLUS_INF, ColumnParts, Ints, Mask, PartName, Raw, size_of
from featurestore.aggregation.values import Kind, arrow_type, from_ascending, from_descending
from featurestore.aggregation.variance import variance
from featurestore.aggregation.wide import BUCKETS, estimate, percentile
from featurestore.plan import Aggregation

Floats = npt.NDArray[np.float64]

EVERY = slice(None)
_CHOSEN = ("min", "max", "first", "last")
_END: dict[str, Literal["first", "last"]] = {"first": "first", "last": "last"}
_INT_BOUNDS = {"INT32": (-(1 << 31), (1 << 31) - 1), "INT64": (-(1 << 63), (1 << 63) - 1)}


class Told(NamedTuple):
    """The values of one feature before Arrow: numpy's type of the feature's (instants: int64 microseconds)."""

    dtype: str
    values: Any
    nulls: Mask | None
    """None: none is null."""

    def arrow(self) -> Any:
        """pa.Array of the feature's type."""
        values = self.values.view("M8[us]") if self.dtype == "UNIX_TIMESTAMP" else self.values
        return pa.array(values, arrow_type(self.dtype), mask=self.nulls)


class ColumnResult:
    """The aggregates of one column for k groups; what several functions share is computed once."""

    def __init__(self, kept: ColumnParts, parts: Mapping[PartName, Raw]) -> None:
        self.kind: Kind = kept.kind
        self.scale = kept.scale
        self.parts = parts
        self.n: Ints = parts["n"]

    @cached_property
    def _empty(self) -> Mask:
        """One array for all functions that need a value, so that who takes it apart does so once."""
        empty: Mask = self.n == 0
        return empty

    def _without(self, at: slice) -> Mask:
        return self._empty if at is EVERY else self._empty[at]

    @cached_property
    def _unit(self) -> int:
        return fp.UNIT if self.kind == "float" else 0

    @cached_property
    def _odd(self) -> Ints | None:
        odd = self.parts.get("odd")
        return odd if odd is not None and odd.any() else None

    @cached_property
    def _total(self) -> Floats:
        if self.scale is not None:
            return self._quotients(fp.to_ints(self.parts["sum"]))
        total = fp.round_to_float(self.parts["sum"], self._unit)
        if self._odd is not None:
            nan = (self._odd & NAN != 0) | (self._odd & (PLUS_INF | MINUS_INF) == PLUS_INF | MINUS_INF)
            total[self._odd & PLUS_INF != 0] = np.inf
            total[self._odd & MINUS_INF != 0] = -np.inf
            total[nan] = np.nan
        return total

    def _variance(self, at: slice) -> Floats:
        if self.scale is not None:
            parts = (self.n[at].tolist(), *(fp.to_ints(self.parts[name][:, at]) for name in ("sum", "square")))
            unit = 10 ** (2 * self.scale)
            return np.array(
                [
                    (n * square - total * total) / (n * (n - 1) * unit) if n > 1 else np.nan
                    for n, total, square in zip(*parts, strict=True)
                ],
                np.float64,
            )
        values = variance(self.n[at], self.parts["sum"][:, at], self.parts["square"][:, at], self._unit)
        if self._odd is not None:
            values[self._odd[at] != 0] = np.nan
        return values

    def tells_numbers(self, aggregation: Aggregation) -> bool:
        """Whether `told` gives a Told, one number a group; else a pa.Array."""
        if aggregation.function == "last_k":
            return False
        if self.kind == "bytes" or self.scale is not None:
            return aggregation.function not in (*_CHOSEN, "sum")
        return True

    def value(self, aggregation: Aggregation, at: slice = EVERY) -> Any:
        """pa.Array of the feature's type, of the groups `at`; raises what `told` raises."""
        found = self.told(aggregation, at)
        return found.arrow() if isinstance(found, Told) else found

    def told(self, aggregation: Aggregation, at: slice = EVERY) -> Told | Any:
        """The values of the groups `at`; a pa.Array where they are lists.

        Raises LeavesType, whose rows count from the first group of `at`, where an exact integer does not fit.
        """
        if aggregation.function == "last_k":
            return self._last_k(aggregation, at)
        if aggregation.function in _CHOSEN and (self.kind == "bytes" or self.scale is not None):
            return self._values(aggregation, self._chosen(aggregation.function, at), self._without(at))
        if aggregation.function == "sum" and aggregation.dtype == "DECIMAL":
            return self._decimals(fp.to_ints(self.parts["sum"][:, at]), self._without(at))
        found = self.numbers(aggregation, at)
        return found if found.nulls is None or found.nulls.any() else found._replace(nulls=None)

    def numbers(self, aggregation: Aggregation, at: slice = EVERY) -> Told:
        """As `told`, of what `tells_numbers`; its mask may be of nothing, and is one array for most functions."""
        values, null = self._numbers(aggregation, at)
        return Told(aggregation.dtype, _typed(aggregation, values, null), null)

    def _numbers(self, aggregation: Aggregation, at: slice) -> tuple[Any, Mask | None]:
        """Numbers, and which are null."""
        n = self.n[at]
        match aggregation.function:
            case "count":
                return n, None
            case "count_distinct":
                return self._distinct(aggregation, at), None
            case "approx_count_distinct":
                return estimate(self.parts["registers"][:, at]), None
            case "sum" if self.kind == "int" and aggregation.dtype in _INT_BOUNDS:
                return self._whole_sum(aggregation, at), self._without(at)
            case "sum":
                return self._total[at], self._without(at)
            case "mean":
                return self._total[at] / np.maximum(n, 1), self._without(at)
            case "var":
                return self._variance(at), n < 2
            case "std":
                return np.sqrt(self._variance(at)), n < 2
            case "approx_percentile":
                return self._percentile(aggregation, at), self._without(at)
            case other:
                return self._chosen(other, at), self._without(at)

    def _chosen(self, function: str, at: slice) -> Any:
        """The one value that min, max, first or last takes; in words where values are no numbers."""
        if self.kind == "bytes":
            raw = self.parts["min" if function == "min" else "max" if function == "max" else _END[function]][..., at]
            if function in _END:
                return raw[1:]
            return np.where(raw.any(axis=0), ~raw, np.uint64(0)) if function == "min" else raw
        if function == "min":
            return from_descending(self.parts["min"][at], self.kind)
        if function == "max":
            return from_ascending(self.parts["max"][at], self.kind)
        end: Raw = self.parts[_END[function]]
        return from_ascending(end[1, at], self.kind)

    def _values(self, aggregation: Aggregation, values: Raw, null: Mask) -> Any:
        """Told values of a column of text, bytes or decimals, as they are kept: words, or units of the last digit."""
        if self.scale is None:
            return to_binary(values, null if null.any() else None, arrow_type(aggregation.dtype))
        units = to_ints(values) if self.kind == "bytes" else values.tolist()
        if aggregation.dtype == "DECIMAL":
            return self._decimals(units, null)
        return _told(aggregation, self._quotients(np.where(null, 0, np.array(units, object)).tolist()), null)

    def _decimals(self, units: list[int], null: Mask) -> Any:
        return decimal_text(
            [None if no else unit for unit, no in zip(units, null.tolist(), strict=True)], self.scale or 0
        )

    def _quotients(self, units: list[int]) -> Floats:
        """Units of the last digit as doubles, rounded once."""
        unit = 10 ** (self.scale or 0)
        return np.array([value / unit for value in units], np.float64)

    def _last_k(self, aggregation: Aggregation, at: slice) -> Any:
        k = size_of(aggregation)
        length = np.minimum(self.n[at], k)
        kept = np.arange(k) < length[:, None]
        item = msgspec.structs.replace(aggregation, dtype=aggregation.dtype.removesuffix("_LIST"))
        if self.kind == "bytes":
            words = np.moveaxis(self.parts["last_k"][1:, :k, at], 1, 2)[:, kept]
            found = self._values(item, words, np.zeros(words.shape[1], np.bool_))
        else:
            numbers = from_ascending(self.parts["last_k"][1, :k, at].T[kept], self.kind)
            if self.scale is not None:
                found = self._values(item, numbers, np.zeros(len(numbers), np.bool_))
            else:
                found = _told(item, numbers, None)
        values = found.arrow() if isinstance(found, Told) else found
        offsets = pa.array(np.concatenate(([0], np.cumsum(length))), pa.int32())
        return pa.ListArray.from_arrays(offsets, values, type=arrow_type(aggregation.dtype), mask=pa.array(length == 0))

    def _percentile(self, aggregation: Aggregation, at: slice) -> Floats:
        values, lost = percentile(self.parts["buckets"][:, at], self.n[at], aggregation.params["p"])
        if lost.any():
            raise BelowSketch(
                aggregation.feature,
                np.flatnonzero(lost).tolist(),
                reason=f"lies below the greatest {BUCKETS} buckets of values",
                advice="ask for a higher percentile, or aggregate values that span fewer powers of two",
            )
        return values

    def _distinct(self, aggregation: Aggregation, at: slice) -> Ints:
        count: Ints = self.parts["distinct"][0, at].astype(np.int64)
        cap = size_of(aggregation)
        if (count > cap).any():
            raise TooManyDistinct(
                aggregation.feature,
                np.flatnonzero(count > cap).tolist(),
                reason=f"counts more than its declared cap of {cap} distinct values",
                advice="raise the cap or use approx_count_distinct",
            )
        return count

    def _whole_sum(self, aggregation: Aggregation, at: slice) -> Ints:
        limbs = fp.carry(self.parts["sum"][:, at].copy())
        low: Ints = (limbs[1] << 32) + limbs[0]
        # It fits int64 where everything above the low 64 bits repeats their sign.
        misfit = (limbs[2] - ((limbs[2] >> 31) << 32) != low >> 63) | (limbs[3] != low >> 63)
        _refuse(aggregation, misfit)
        return low


def _typed(aggregation: Aggregation, values: Any, null: Mask | None) -> Any:
    """Values of the feature's type, of any value where null."""
    match aggregation.dtype:
        case "INT32":
            low, high = _INT_BOUNDS["INT32"]
            misfit = (values < low) | (values > high)
            _refuse(aggregation, misfit if null is None else misfit & ~null)
            return values.astype(np.int32, copy=False)
        case "BOOL":
            return values.astype(np.bool_)
        case "FLOAT":
            with np.errstate(over="ignore"):
                return values.astype(np.float32)
        case "DOUBLE":
            return values.astype(np.float64, copy=False)
        case "UNIX_TIMESTAMP":
            # Features are whole seconds, as Feast's messages have them.
            return values // 1_000_000 * 1_000_000
    return values


def _told(aggregation: Aggregation, values: Any, null: Mask | None) -> Told:
    return Told(aggregation.dtype, _typed(aggregation, values, null), null if null is not None and null.any() else None)


def _refuse(aggregation: Aggregation, misfit: Mask) -> None:
    if misfit.any():
        raise LeavesType(
            aggregation.feature,
            np.flatnonzero(misfit).tolist(),
            reason=f"does not fit {aggregation.dtype}",
            advice="declare a wider type (INT64, DOUBLE)",
        )
