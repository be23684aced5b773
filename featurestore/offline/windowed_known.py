"""What had the windows of some entity rows been known to hold, when only arrived events count?

An event counts where it had arrived by the entity row's time t. Events are split by how late they came. Within a
class that came at most L late, every event up to t - L had arrived, and those before the first that was on its way
are a range like any other; what is left is short and looked at one by one. Parts of the classes merge.
"""

from collections.abc import Sequence

import numpy as np

from featurestore.aggregation import windows as time
from featurestore.aggregation.partials import ColumnParts, Part, Raw
from featurestore.aggregation.wide import WidePart
from featurestore.offline.windowed_chunk import Chunk, Events, Found, Window
from featurestore.offline.windowed_ranges import Ints, SortedColumn, Span, one_by_one

_LATENESS_US = (time.SECOND_US, time.MINUTE_US, time.HOUR_US, time.DAY_US)


class KnownChunk:
    """All events of some keys, sorted, each with its arrival."""

    def __init__(self, events: Events) -> None:
        """`events` in any order, with arrivals."""
        assert events.arrival_us is not None
        self._columns = [kept for kept, _ in events.columns]
        late = np.searchsorted(_LATENESS_US, events.arrival_us - events.ts_us, "left")
        self._classes = [_Class(events.take(np.flatnonzero(late == c))) for c in np.unique(late)]
        if not self._classes:
            self._classes = [_Class(events)]

    def parts(self, windows: Sequence[Window], code: Ints, t_us: Ints) -> list[Found]:
        """For every window the parts it needs of every column, of what had arrived."""
        found = self._classes[0].parts(windows, code, t_us)
        for late in self._classes[1:]:
            more = late.parts(windows, code, t_us)
            found = [_merge(self._columns, a, b) for a, b in zip(found, more, strict=True)]
        return found


class _Class:
    """Events that came about equally late."""

    def __init__(self, events: Events) -> None:
        self._chunk = Chunk(events)
        arrival = self._chunk.events.arrival_us
        assert arrival is not None
        code = self._chunk.events.code
        self._arrival = arrival
        # Ranks, so that key and arrival fit one integer; the latest arrival so far restarts with every key.
        self._arrivals, rank = np.unique(arrival, return_inverse=True)
        self._latest = np.maximum.accumulate(code * (len(self._arrivals) + 1) + rank) if len(code) else rank
        # Where the events of the same key and time begin: ranges must not cut through a tie.
        new = np.append((np.diff(code, prepend=-1) != 0) | (np.diff(self._chunk.events.ts_us, prepend=0) != 0), [True])
        self._tie_start = np.maximum.accumulate(np.where(new, np.arange(len(code) + 1), 0))
        starts = np.flatnonzero(np.diff(code, prepend=-1))
        self._keys = code[starts]
        self._earliest = np.minimum.reduceat(arrival, starts) if len(starts) else arrival

    def parts(self, windows: Sequence[Window], code: Ints, t_us: Ints) -> list[Found]:
        spans = self._chunk.spans(windows, code, t_us)
        # The first position of the key whose event, or one before it, was still on its way.
        known = np.searchsorted(self._arrivals, t_us, "right") - 1
        settled = np.searchsorted(self._latest, code * (len(self._arrivals) + 1) + known, "right")
        settled = self._tie_start[settled]
        if len(self._keys):
            key = np.minimum(np.searchsorted(self._keys, code), len(self._keys) - 1)
            nothing = self._earliest[key] > t_us
            spans = [(start, np.where(nothing, start, end)) for start, end in spans]
        found = self._chunk.parts_of(
            windows, [(start, np.clip(settled, start, np.maximum(start, end))) for start, end in spans]
        )
        for window, parts, (start, end) in zip(windows, found, spans, strict=True):
            self._add_unsettled(window, parts, (np.maximum(start, settled), end), t_us)
        return found

    def _add_unsettled(self, window: Window, parts: Found, span: Span, t_us: Ints) -> None:
        """Merge into `parts` the events of `span` that had arrived."""
        for rows, at, owner in one_by_one(span):
            arrived = self._arrival[at] <= t_us[rows][owner]
            at, owner = at[arrived], owner[arrived]
            if not len(at):
                continue
            for column in self._chunk.columns:
                if column.kept.column in window.names:
                    for part in column.kept.parts:
                        if part.name in window.names[column.kept.column]:
                            _add(part, parts[column.kept.column][part.name], column, rows, at, owner)


def _add(part: Part | WidePart, into: Raw, column: SortedColumn, rows: Ints, at: Ints, owner: Ints) -> None:
    events, there = column.at(at)
    owner = owner[there]
    if not len(owner):
        return
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    to = rows[owner[starts]]
    into[..., to] = part.merge(into[..., to], part.lift(events, starts))


def _merge(columns: Sequence[ColumnParts], a: Found, b: Found) -> Found:
    return {
        kept.column: {
            part.name: part.merge(a[kept.column][part.name], b[kept.column][part.name])
            for part in kept.parts
            if part.name in a[kept.column]
        }
        for kept in columns
        if kept.column in a
    }
