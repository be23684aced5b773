"""What are the parts of any ranges of sorted events?

The events of a chunk are sorted by key and time, so a window is a range of positions. Sums of ranges are differences
of prefix sums, extremes come from a table of doubling lengths, first and last are the range's ends.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from featurestore.aggregation.partials import ColumnParts, Part, PartName, Raw, Read
from featurestore.aggregation.values import Events, Numbers, ascending
from featurestore.aggregation.wide import WidePart

Ints = npt.NDArray[np.int64]
_AT_A_TIME = 4_000_000

Span = tuple[Ints, Ints]
"""Positions [from, to) of q ranges; empty where to <= from."""


class SortedColumn:
    """The non-null values of one column of sorted events."""

    def __init__(self, kept: ColumnParts, read: Read, key: Ints, ts_us: Ints) -> None:
        """Values sorted by key, then time."""
        values, present, lexicon = read
        self.kept = kept
        self._before: Ints | None = None
        if present is not None:
            self._before = np.concatenate(([0], np.cumsum(present)))
            some = np.flatnonzero(present)
            values, key, ts_us = values[some], key[some], ts_us[some]
        self.key, self.values, self.ts_us = key, values, ts_us
        self._events = Events(values, ts_us, lexicon)
        self._prefixes: dict[PartName, dict[int, Ints]] = {}

    def locate(self, span: Span) -> Span:
        """Positions among the non-null values, of positions among all events; never to < from."""
        start, end = span
        end = np.maximum(start, end)
        return (start, end) if self._before is None else (self._before[start], self._before[end])

    def at(self, positions: Ints) -> tuple[Events, Ints]:
        """The non-null values at positions among all events, and which of those positions they are."""
        if self._before is None:
            return self._events.take(positions), np.arange(len(positions))
        there = np.flatnonzero(self._before[positions + 1] > self._before[positions])
        return self._events.take(self._before[positions[there]]), there

    def parts(self, spans: Sequence[Span], names: Sequence[frozenset[PartName]]) -> list[dict[PartName, Raw]]:
        """For every (located) span the parts named, in the form that `Part.reduce` returns."""
        found: list[dict[PartName, Raw]] = [{} for _ in spans]
        for part in self.kept.parts:
            wanted = [i for i in range(len(spans)) if part.name in names[i]]
            chosen = [spans[i] for i in wanted]
            for i, raw in zip(wanted, self._part(part, chosen), strict=True):
                found[i][part.name] = raw
        return found

    def _part(self, part: Part | WidePart, spans: Sequence[Span]) -> list[Raw]:
        match part.name:
            case "n":
                return [end - start for start, end in spans]
            case "sum" | "square":
                return [self._differences(part, span) for span in spans]
            case "odd":
                return [self._flags(part, span) for span in spans]
            case "min" | "max":
                ranked = part.ranked
                codes = ranked.of(Events(self.values, self.ts_us))
                return [part.spell(raw, self._events.lexicon) for raw in range_max(codes, spans)]
            case "first" | "last":
                return [self._end(part, span) for span in spans]
            case "last_k":
                return [self._one_by_one(part, self._newest(part.size, span)) for span in spans]
            case "distinct" | "registers" | "buckets":
                return [self._one_by_one(part, span) for span in spans]

    def _prefix(self, part: Part) -> dict[int, Ints]:
        """Running sums of every limb that is not zero throughout (or count of every flag), from 0."""
        if part.name not in self._prefixes:
            raw = part.of(self._events)
            if part.name == "odd":
                raw = np.stack([raw >> bit & 1 for bit in range(3)])
            self._prefixes[part.name] = {
                j: np.concatenate((np.zeros(1, np.int64), np.cumsum(limb))) for j, limb in enumerate(raw) if limb.any()
            }
        return self._prefixes[part.name]

    def _differences(self, part: Part, span: Span) -> Raw:
        start, end = span
        out = part.empty(len(start))
        for j, prefix in self._prefix(part).items():
            np.subtract(prefix[end], prefix[start], out=out[j])
        return out

    def _flags(self, part: Part, span: Span) -> Raw:
        start, end = span
        out = part.empty(len(start))
        for bit, prefix in self._prefix(part).items():
            out |= (prefix[end] > prefix[start]).astype(np.int64) << bit
        return out

    def _end(self, part: Part, span: Span) -> Raw:
        start, end = span
        some = np.flatnonzero(end > start)
        out = part.empty(len(start))
        at = end[some] - 1 if part.name == "last" else start[some]
        out[:, some] = part.of(Events(self._greatest_of_ties[at], self.ts_us[at], self._events.lexicon))
        return out

    def _newest(self, k: int, span: Span) -> Span:
        """The last k positions of every range, and those that tie with the first of them."""
        start, end = span
        first = np.maximum(start, end - k)
        if not len(self._tie_start):
            return span
        tie = self._tie_start[np.minimum(first, len(self._tie_start) - 1)]
        return np.where(end > start, np.maximum(start, tie), start), end

    def _one_by_one(self, part: WidePart, span: Span) -> Raw:
        out = part.empty(len(span[0]))
        for rows, at, owner in one_by_one(span):
            out[..., rows] = part.lift(self._events.take(at), np.flatnonzero(np.diff(owner, prepend=-1)))
        return out

    @cached_property
    def _new(self) -> npt.NDArray[np.bool_]:
        """Where another key or time begins."""
        new = np.ones(len(self.values), np.bool_)
        new[1:] = (self.ts_us[1:] != self.ts_us[:-1]) | (self.key[1:] != self.key[:-1])
        return new

    @cached_property
    def _tie_start(self) -> Ints:
        """At every position the first one of its key and time."""
        return np.maximum.accumulate(np.where(self._new, np.arange(len(self._new)), 0))

    @cached_property
    def _greatest_of_ties(self) -> Numbers:
        """At every position the greatest value of its key and time: a range never cuts through a tie."""
        new = self._new
        if new.all():
            return self.values
        run = np.cumsum(new) - 1
        order = np.lexsort((ascending(self.values), run))
        last = np.flatnonzero(np.concatenate((new[1:], [True])))
        greatest: Numbers = self.values[order][last][run]
        return greatest


def one_by_one(span: Span) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Batches of (rows, positions, index into rows of each position's owner) that cover all ranges."""
    start, end = span
    rows = np.flatnonzero(end > start)
    lengths = (end - start)[rows]
    number = (np.cumsum(lengths) - lengths) // _AT_A_TIME
    for batch in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(number)) + 1):
        if len(batch):
            length = lengths[batch]
            owner = np.repeat(np.arange(len(batch)), length)
            before = np.cumsum(length) - length
            at = np.arange(len(owner)) + np.repeat(start[rows[batch]] - before, length)
            yield rows[batch], at, owner


def range_max(codes: Raw, spans: Sequence[Span]) -> list[Raw]:
    """The greatest of uint64 `codes` in every range of every span; 0 where a range is empty.

    >>> range_max(np.array([3, 9, 4], np.uint64), [(np.array([0, 1, 2]), np.array([2, 1, 3]))])
    [array([9, 0, 4], dtype=uint64)]
    """
    # A table of doubling lengths, of which only one length is held at a time.
    out = [np.zeros(len(start), np.uint64) for start, _ in spans]
    levels = [np.frexp(np.maximum(end - start, 0).astype(np.float64))[1] - 1 for start, end in spans]
    deepest = max((int(level.max()) for level in levels if len(level)), default=-1)
    table = codes
    for level in range(deepest + 1):
        length = 1 << level
        for result, (start, end), depth in zip(out, spans, levels, strict=True):
            at = np.flatnonzero(depth == level)
            if len(at):
                result[at] = np.maximum(table[start[at]], table[end[at] - length])
        if level < deepest:
            table = np.maximum(table[:-length], table[length:])
    return out
