"""What do the windows of some entity rows hold, among the events of some keys?

A chunk holds all events of its keys, sorted by key and time; a window is then a range of positions, found by two
binary searches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from featurestore.aggregation.partials import ColumnParts, PartName, Raw, Read, columns_of
from featurestore.aggregation.tiles import hop_of
from featurestore.aggregation.windows import window_start
from featurestore.offline.windowed_ranges import Ints, SortedColumn, Span
from featurestore.plan import Aggregation

Found = dict[str, dict[PartName, Raw]]
"""Column -> part -> its value for every entity row."""


@dataclass(frozen=True)
class Window:
    """Aggregations that share a window and a hop."""

    window_us: int | None
    hop_us: int
    aggregations: tuple[Aggregation, ...]

    @cached_property
    def columns(self) -> tuple[ColumnParts, ...]:
        """What this window needs of every column."""
        return columns_of(self.aggregations)

    @cached_property
    def names(self) -> dict[str, frozenset[PartName]]:
        """Column -> the parts that this window needs of it."""
        return {kept.column: frozenset(part.name for part in kept.parts) for kept in self.columns}


def windows_of(aggregations: Sequence[Aggregation]) -> list[Window]:
    """The distinct windows; raises DefinitionError where a window and its hop do not go together."""
    grouped: dict[tuple[int | None, int], list[Aggregation]] = {}
    for aggregation in aggregations:
        grouped.setdefault((aggregation.window_us, hop_of(aggregation)), []).append(aggregation)
    return [Window(window_us, hop_us, tuple(group)) for (window_us, hop_us), group in grouped.items()]


@dataclass(frozen=True)
class Events:
    """Events with their keys as codes (-1: no entity row has it) and their columns as numbers."""

    code: Ints
    ts_us: Ints
    arrival_us: Ints | None
    columns: tuple[tuple[ColumnParts, Read], ...]

    @cached_property
    def first_us(self) -> int:
        """The earliest event time."""
        return int(self.ts_us.min()) if len(self.ts_us) else 0

    @cached_property
    def span_us(self) -> int:
        """More than any event time is after the first."""
        return int(self.ts_us.max()) - self.first_us + 2 if len(self.ts_us) else 2

    def take(self, at: Ints) -> "Events":
        """The events at those positions."""
        columns = tuple(
            (kept, Read(values[at], None if present is None else present[at], lexicon))
            for kept, (values, present, lexicon) in self.columns
        )
        arrival_us = None if self.arrival_us is None else self.arrival_us[at]
        return Events(self.code[at], self.ts_us[at], arrival_us, columns)


class Chunk:
    """All events of some keys, sorted."""

    def __init__(self, events: Events) -> None:
        """`events` in any order; (greatest code - least code) * their span must be below 2**62."""
        self._first_us, self._span_us = events.first_us, events.span_us
        self._first_code = int(events.code.min()) if len(events.code) else 0
        place = (events.code - self._first_code) * self._span_us + (events.ts_us - self._first_us)
        order = np.argsort(place)
        self._place = place[order]
        self.events = events.take(order)
        self.columns = [
            SortedColumn(kept, read, self.events.code, self.events.ts_us) for kept, read in self.events.columns
        ]

    def spans(self, windows: Sequence[Window], code: Ints, t_us: Ints) -> list[Span]:
        """For every window the positions of the events inside it, for entity rows of these codes and times."""
        key = (code - self._first_code) * self._span_us
        # One before the key's first place and one after its last stand for all times outside its events.
        end = np.searchsorted(self._place, key + np.clip(t_us - self._first_us, -1, self._span_us - 1), "right")
        found = []
        for window in windows:
            if window.window_us is None:
                start_us = np.zeros(len(t_us), np.int64)
            else:
                start_us = window_start(t_us, window.window_us, window.hop_us) - self._first_us
            place = key + np.clip(start_us, 0, self._span_us - 1)
            found.append((np.searchsorted(self._place, place, "left"), end))
        return found

    def parts(self, windows: Sequence[Window], code: Ints, t_us: Ints) -> list[Found]:
        """For every window the parts it needs of every column."""
        return self.parts_of(windows, self.spans(windows, code, t_us))

    def parts_of(self, windows: Sequence[Window], spans: Sequence[Span]) -> list[Found]:
        """The same, of known positions."""
        found: list[Found] = [{} for _ in windows]
        for column in self.columns:
            name = column.kept.column
            wanted = [i for i, window in enumerate(windows) if name in window.names]
            located = [column.locate(spans[i]) for i in wanted]
            parts = column.parts(located, [windows[i].names[name] for i in wanted])
            for i, part in zip(wanted, parts, strict=True):
                found[i][name] = part
        return found
