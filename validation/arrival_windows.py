"""What do rules about many events say of a stream? Windows of arrival time, judged as batches are.

Repetition, shares (`mostly`) and statistics concern many events. They are judged over windows of arrival, partition by
partition in the order of the offsets, never over what a poll happened to bring: a window is the events between two
multiples of its length, cut where it holds more than so many. An event that arrived before the window began, by a
producer's clock, counts in the window that is open. So a window and its verdict follow from the log alone.

Only windows that were seen from their first event are judged: after a restart in the middle of one, from the next on.
Rules about the number of rows and about columns are left out: windows have no volume that a contract could promise.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from validation.check import Aggregate, Columns, Expectation, RowCheckable, Unique
from validation.contract import Contract
from validation.verdict import Sample, Verdict

if TYPE_CHECKING:
    from validation.compiled.batch import BatchCheck

WINDOW_US: Final = 3_600_000_000
"""An hour: shares and statistics of a handful of events say little, and closing a window costs about a millisecond,
which a replay of a year in windows of minutes would pay a hundred thousand times."""
ROWS: Final = 100_000
"""The most events of one window: what a partition holds in memory."""
Ints = npt.NDArray[np.int64]


class Closed(msgspec.Struct, frozen=True, kw_only=True):
    """One window that has ended."""

    start_us: int
    """The window is the arrivals from here on, for its length."""
    first: int
    """The offsets of its first and last event."""
    last: int
    verdict: Verdict
    """Of its samples the row is the event's offset."""


def of_windows(contract: Contract) -> Contract | None:
    """The rules of a contract that are judged over windows of events, as they are kept there; None without any.

    They observe or warn: `block` is a matter of batches.
    """
    kept = contract.at("event")
    rules = tuple(
        msgspec.structs.replace(rule, mode="observe" if rule.mode == "observe" else "warn")
        for rule, meaning in zip(kept.rules, kept.expectations(), strict=True)
        if _over_many(meaning)
    )
    return msgspec.structs.replace(kept, rules=rules) if rules else None


def _over_many(meaning: Expectation) -> bool:
    if isinstance(meaning.check, Aggregate):
        return meaning.check.column is not None
    return (
        isinstance(meaning.check, Unique | RowCheckable)
        and not meaning.by_row
        and not isinstance(meaning.check, Columns)
    )


class ArrivalWindows:
    """The windows of one partition under the rules of one contract (`of_windows`)."""

    def __init__(self, contract: Contract, *, window_us: int = WINDOW_US, rows_at_most: int = ROWS) -> None:
        self.contract = contract
        self._columns = tuple(dict.fromkeys(name for meaning in contract.expectations() for name in meaning.columns))
        self._window_us, self._most = window_us, rows_at_most
        self._compiled: BatchCheck | None = None
        self._next: int | None = None
        self._window: int | None = None
        self._whole = False
        self._tables: list[pa.Table] = []
        self._offsets: list[Ints] = []
        self._rows = 0
        self.unseen = 0
        """Windows that were not judged because their beginning was not seen."""

    def add(self, events: pa.Table, arrival_us: Ints, offsets: Ints, *, before: int, after: int) -> Iterator[Closed]:
        """Takes the accepted events of offsets `before` to before `after`, ascending; gives the windows that ended.

        Offsets that were taken already are skipped; after a gap the window that is open is given up.
        """
        if self._next is not None and after <= self._next:
            return
        if self._next is None:
            self._whole = before == 0
        elif before > self._next:
            self._give_up()
        elif before < self._next:
            start = int(np.searchsorted(offsets, self._next))
            events, arrival_us, offsets = events.slice(start), arrival_us[start:], offsets[start:]
        self._next = after
        if not len(offsets):
            return
        windows = np.maximum.accumulate(arrival_us // self._window_us)
        if self._window is not None:
            windows = np.maximum(windows, self._window)
        ends = [*(np.flatnonzero(np.diff(windows)) + 1).tolist(), len(windows)]
        narrow = events.select([name for name in self._columns if name in events.column_names])
        start = 0
        for end in ends:
            yield from self._take(int(windows[start]), narrow.slice(start, end - start), offsets[start:end])
            start = end

    def _take(self, window: int, events: pa.Table, offsets: Ints) -> Iterator[Closed]:
        if self._window is not None and window != self._window:
            yield from self._close()
            self._whole = True
        self._window = window
        while len(offsets):
            some = min(self._most - self._rows, len(offsets))
            if self._whole:
                self._tables.append(events.slice(0, some))
                self._offsets.append(offsets[:some])
            self._rows += some
            events, offsets = events.slice(some), offsets[some:]
            if self._rows == self._most:
                yield from self._close()

    def _check(self) -> "BatchCheck":
        # Only here: a worker that restarts is waited for, and DuckDB takes a twentieth of its start.
        from validation.compiled.batch import compile_batch

        if self._compiled is None:
            self._compiled = compile_batch(self.contract)
        return self._compiled

    def _close(self) -> Iterator[Closed]:
        if not self._whole:
            self.unseen += 1
        elif self._rows:
            assert self._window is not None
            offsets = np.concatenate(self._offsets)
            verdict = self._check().run(pa.concat_tables(self._tables))
            yield Closed(
                start_us=self._window * self._window_us,
                first=int(offsets[0]),
                last=int(offsets[-1]),
                verdict=_by_offset(verdict, offsets),
            )
        self._tables, self._offsets, self._rows = [], [], 0

    def _give_up(self) -> None:
        self.unseen += 1
        self._tables, self._offsets, self._rows = [], [], 0
        self._window, self._whole = None, False


def _by_offset(verdict: Verdict, offsets: Ints) -> Verdict:
    rules = tuple(
        msgspec.structs.replace(
            rule, samples=tuple(Sample(row=int(offsets[each.row]), values=each.values) for each in rule.samples)
        )
        for rule in verdict.rules
    )
    return msgspec.structs.replace(verdict, rules=rules)
