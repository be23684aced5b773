"""Which parts hold more than a number or two: the last k values, distinct values, sketches?

Each has a fixed number of bytes, whatever the events, so that tiles keep them in slots, and each is a commutative
monoid to the bit: the k greatest (time, value) pairs; the set of distinct codes, or "more than the cap"; HyperLogLog
registers (greatest ranks); the counts of the greatest BUCKETS buckets of values (a DDSketch whose buckets are the
leading bits of a double: what lies below them is dropped, in whatever order it came).
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from featurestore.aggregation.lexicon import Lexicon
from featurestore.aggregation.values import Events, Kind, ascending, from_ascending, tidy

Raw = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint64]

HASH = "splitmix64/1 of numbers, xxh3_64 of text, bytes and decimals of more than 18 digits"
"""What distinct values are told apart by: registers of another hash must never be merged with these."""
REGISTER_BITS = 10
REGISTERS = 1 << REGISTER_BITS
"""The standard error of an estimate is 1.04 / sqrt(REGISTERS): 3.25 %."""
BUCKETS = 256
"""Buckets that a sketch of values keeps: eight powers of two on one side of zero."""
_BUCKET_SHIFT = np.uint64(47)
"""Sign, exponent and 5 bits of mantissa remain: a bucket is 1/32 of its power of two wide."""
_COUNT_BITS = np.uint64(40)
_COUNT_MASK = np.uint64((1 << 40) - 1)
_RANKS = 64 - REGISTER_BITS
_INF_ALPHA = 0.7213475204444817
"""1 / (2 ln 2)."""


@dataclass(frozen=True)
class WidePart:
    """One kind of wide part; raw arrays have the groups on their last axis."""

    name: Literal["last_k", "distinct", "registers", "buckets"]
    kind: Kind
    size: int
    """k of last_k, the cap of distinct, the number of registers or buckets."""
    words: int = 0
    """How many words a value of last_k has that is no number; 0: values are numbers."""
    scale: int = 0
    """Buckets of decimals: the digits behind the point of the integers that stand for them."""

    @property
    def dtype(self) -> Any:
        """The numpy type (with shape) of one packed part."""
        match self.name:
            case "last_k":
                return ("<u8", (self.size, 1 + (self.words or 1)))
            case "distinct":
                return ("<u8", (self.size + 1,))
            case "registers":
                return ("u1", (self.size,))
            case "buckets":
                return ("<u8", (self.size,))

    def empty(self, groups: int) -> Raw:
        """The part of no events, for that many groups."""
        kind, shape = self.dtype
        return np.zeros((*reversed(shape), groups), kind)

    def lift(self, events: Events, starts: Ints) -> Raw:
        """The part of every contiguous run of events."""
        if not len(starts):
            return self.empty(0)
        values = events.values
        group = _groups(starts, len(values))
        match self.name:
            case "last_k":
                found = self._greatest(group, ascending(events.ts_us), ascending(values)[None], len(starts))
                return found if events.lexicon is None else self._spelled(found, events.lexicon)
            case "distinct":
                return self._distinct(group, codes_of(events, self.kind), np.zeros(0, np.int64), len(starts))
            case "registers":
                return self._ranks(group, hashes_of(events, self.kind), len(starts))
            case "buckets":
                bucket = ascending(self._floats(events)) >> _BUCKET_SHIFT
                return self._counted(group, bucket, np.ones(len(group), np.uint64), len(starts))

    def reduce(self, raw: Raw, starts: Ints) -> Raw:
        """The merge of contiguous runs; `starts` are the positions, ascending, where runs begin."""
        if not len(starts):
            return self.empty(0)
        group = _groups(starts, raw.shape[-1])
        match self.name:
            case "last_k":
                used, of = np.nonzero(raw[0])
                return self._greatest(group[of], raw[0, used, of], raw[1:, used, of], len(starts))
            case "distinct":
                count = raw[0].astype(np.int64)
                over = group[count > self.size]
                used, of = np.nonzero(np.arange(self.size)[:, None] < np.where(count > self.size, 0, count))
                return self._distinct(group[of], raw[1:][used, of], over, len(starts))
            case "registers":
                return np.maximum.reduceat(raw, starts, axis=-1)
            case "buckets":
                used, of = np.nonzero(raw)
                words = raw[used, of]
                return self._counted(group[of], words >> _COUNT_BITS, words & _COUNT_MASK, len(starts))

    def merge(self, a: Raw, b: Raw) -> Raw:
        """Group by group, the part of the events of both."""
        both = np.stack([a, b], axis=-1).reshape(*a.shape[:-1], 2 * a.shape[-1])
        return self.reduce(both, np.arange(0, both.shape[-1], 2))

    def pack(self, raw: Raw) -> Raw:
        """The wire format, groups first."""
        return raw.T

    def unpack(self, packed: Raw) -> Raw:
        """What `pack` was given."""
        return np.ascontiguousarray(packed.T)

    def _spelled(self, raw: Raw, lexicon: Lexicon) -> Raw:
        """What was made of places in a lexicon, in words."""
        out = self.empty(raw.shape[-1])
        out[0] = raw[0]
        used, of = np.nonzero(raw[0])
        out[1:, used, of] = lexicon.words[:, from_ascending(raw[1, used, of], "int")]
        return out

    def _floats(self, events: Events) -> npt.NDArray[np.float64]:
        if events.lexicon is not None:
            return events.lexicon.floats[events.values]
        return events.values.astype(np.float64) / float(10**self.scale)

    def _greatest(self, group: Ints, ts: Codes, value: Codes, groups: int) -> Raw:
        """The greatest (time, value) pairs of every group, newest first; absent ones are zeros."""
        out = np.zeros((1 + len(value), self.size, groups), np.uint64)
        order = np.lexsort((*value[::-1], ts, group))
        ends = np.cumsum(np.bincount(group, minlength=groups))
        place = ends[group[order]] - 1 - np.arange(len(order))
        kept = np.flatnonzero(place < self.size)
        order, place = order[kept], place[kept]
        out[0, place, group[order]], out[1:, place, group[order]] = ts[order], value[:, order]
        return out

    def _distinct(self, group: Ints, codes: Codes, over: Ints, groups: int) -> Raw:
        """How many distinct codes every group has, then the codes ascending; size + 1 and zeros where too many."""
        out = self.empty(groups)
        order = np.lexsort((codes, group))
        group, codes = group[order], codes[order]
        new = np.ones(len(group), np.bool_)
        new[1:] = (group[1:] != group[:-1]) | (codes[1:] != codes[:-1])
        group, codes = group[new], codes[new]
        count = np.bincount(group, minlength=groups)
        place = np.arange(len(group)) - (np.cumsum(count) - count)[group]
        count[over] = self.size + 1
        kept = np.flatnonzero(count[group] <= self.size)
        out[0] = np.minimum(count, self.size + 1)
        out[1 + place[kept], group[kept]] = codes[kept]
        return out

    def _counted(self, group: Ints, bucket: Codes, count: Codes, groups: int) -> Raw:
        """(bucket, count) words of every group, greatest buckets first; those beyond the size are dropped."""
        out = self.empty(groups)
        order = np.lexsort((bucket, group))
        group, bucket, count = group[order], bucket[order], count[order]
        new = np.ones(len(group), np.bool_)
        new[1:] = (group[1:] != group[:-1]) | (bucket[1:] != bucket[:-1])
        starts = np.flatnonzero(new)
        if not len(starts):
            return out
        group, bucket, count = group[starts], bucket[starts], np.add.reduceat(count, starts)
        place = np.cumsum(np.bincount(group, minlength=groups))[group] - 1 - np.arange(len(group))
        kept = np.flatnonzero(place < self.size)
        out[place[kept], group[kept]] = bucket[kept] << _COUNT_BITS | count[kept]
        return out

    def _ranks(self, group: Ints, hashes: Codes, groups: int) -> Raw:
        """The greatest rank that each register of each group has seen."""
        out = self.empty(groups)
        register = (hashes >> np.uint64(_RANKS)).astype(np.int64)
        rest = hashes & np.uint64((1 << _RANKS) - 1)
        # frexp of an integer below 2**53 tells its bit length exactly; the one bit beyond is split off.
        high = rest >> np.uint64(32)
        low = rest & np.uint64(0xFFFF_FFFF)
        length = np.where(high > 0, 32 + np.frexp(high.astype(np.float64))[1], np.frexp(low.astype(np.float64))[1])
        np.maximum.at(out.reshape(-1), register * groups + group, (_RANKS + 1 - length).astype(np.uint8))
        return out


def codes_of(events: Events, kind: Kind) -> Codes:
    """One uint64 a distinct value; of what is no number, its hash."""
    if events.lexicon is not None:
        return events.lexicon.hashes[events.values]
    # Text that is only counted was hashed when it was read.
    return events.values.view(np.uint64) if kind == "bytes" else ascending(events.values)


def hashes_of(events: Events, kind: Kind) -> Codes:
    """Hashes of values whose every bit depends on all of the value.

    >>> [hex(h) for h in hashes_of(Events(np.array([0, 1]), np.array([7, 7])), "int").tolist()]
    ['0x481ec0a212a9f3db', '0xdc29f439bcbdda2a']
    """
    if kind == "bytes":
        return codes_of(events, kind)
    x = ascending(events.values) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return cast(Codes, x ^ (x >> np.uint64(31)))


def percentile(buckets: Raw, n: Ints, p: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The nearest-rank percentile of k groups of n values, and in which of them it lies below the kept buckets.

    The middle of the bucket that holds the value of rank ceil(p * n): off by at most 1/64 of the value. NaN ranks
    above all numbers. 0 where a group is empty.

    >>> part = WidePart("buckets", "float", BUCKETS)
    >>> words = part.lift(Events(np.arange(1.0, 101.0), np.arange(100)), np.array([0]))
    >>> percentile(words, np.array([100]), 0.5)
    (array([50.5]), array([False]))
    """
    count = (buckets & _COUNT_MASK).astype(np.int64)
    above = n - np.clip(np.ceil(p * n).astype(np.int64), 1, None)
    reached = np.cumsum(count, axis=0) > above
    lost = ~reached[-1] & (n > 0)
    chosen = (buckets[np.argmax(reached, axis=0), np.arange(len(n))] >> _COUNT_BITS).astype(np.uint64)
    # Buckets below zero mirror those above it.
    negative = chosen < _ZERO
    size = np.where(negative, _MIRROR - chosen, chosen)
    low = from_ascending(size << _BUCKET_SHIFT, "float")
    high = from_ascending((size + np.uint64(1)) << _BUCKET_SHIFT, "float")
    # What begins at zero is told as zero; the last bucket of finite numbers and infinity as their beginning.
    middle = low.copy()
    inner = np.flatnonzero(np.isfinite(high) & (low > 0))
    middle[inner] = low[inner] / 2 + high[inner] / 2
    middle = np.where(negative, -middle, middle)
    return np.where((n > 0) & ~lost, tidy(middle), 0.0), lost


def estimate(registers: Raw) -> Ints:
    """How many distinct values made these registers (uint8[REGISTERS, k]): int64[k], the nearest integer.

    Ertl's improved estimator (New cardinality estimation algorithms for HyperLogLog sketches, 2017). The harmonic
    sum is an exact integer and the rest single IEEE operations: equal registers give equal estimates everywhere.

    >>> estimate(np.zeros((REGISTERS, 1), np.uint8)).tolist()
    [0]
    """
    high = _HIGH[registers].sum(axis=0)
    low = _LOW[registers].sum(axis=0)
    zeros = (registers == 0).sum(axis=0)
    total = high * 2.0**-32 + low * 2.0**-64 + _SIGMA[zeros]
    return cast(Ints, np.rint(_INF_ALPHA * REGISTERS * REGISTERS / total).astype(np.int64))


def _sigma(share: float) -> float:
    if share == 1.0:
        return float("inf")
    result, power = share, 1.0
    while True:
        share *= share
        before = result
        result += share * power
        power += power
        if result == before:
            return result


_HIGH = np.array([2 ** (32 - rank) if 1 <= rank <= 32 else 0 for rank in range(256)], np.int64)
_LOW = np.array([2 ** (64 - rank) if 32 < rank <= 64 else 0 for rank in range(256)], np.int64)
_SIGMA = np.array([REGISTERS * _sigma(zeros / REGISTERS) for zeros in range(REGISTERS + 1)])


_ZERO = ascending(np.zeros(1))[0] >> _BUCKET_SHIFT
_MIRROR = np.uint64(2) * _ZERO - np.uint64(1)


def _groups(starts: Ints, length: int) -> Ints:
    return np.repeat(np.arange(len(starts)), np.diff(starts, append=length))
