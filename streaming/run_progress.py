"""Who sees how far a run over history is: on the screen now, in its record later?"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from featurestore.clock import Clock
from featurestore.errors import FeatureStoreError
from streaming.run_record import RunRecord, RunRecords, State
from validation.terminal import Console

_WRITTEN_EVERY_S: Final = 1.0


class RunProgress:
    """A run's bar and its record."""

    def __init__(self, bar: Progress, records: RunRecords, record: RunRecord, clock: Clock) -> None:
        self._bar, self._records, self._record, self._clock = bar, records, record, clock
        self._task = bar.add_task(f"{record.view} version {record.version}: {record.state}", total=None)
        self._written_s = 0.0
        self._waits_for: Sequence[str] = ()

    def begin(self, offsets: int) -> None:
        """So many offsets of the event log are to be gone through."""
        self._bar.update(self._task, total=offsets)
        self._put(offsets=offsets, offsets_left=offsets)

    def moved(self, offsets: int, events: int) -> None:
        """So many of them were, with so many events; the record says so within a second or so."""
        self._record = msgspec.structs.replace(
            self._record, offsets_left=self._record.offsets_left - offsets, events=self._record.events + events
        )
        self._bar.advance(self._task, offsets)
        if time.monotonic() - self._written_s > _WRITTEN_EVERY_S:
            self._put()

    def told(self, state: State, **changes: Any) -> bool:
        """The run is there now; whether it is done."""
        self._put(state=state, **changes)
        self._bar.update(self._task, description=f"{self._record.view} version {self._record.version}: {state}")
        return state == "done"

    def waits_for(self, names: Sequence[str]) -> None:
        """These are to take the version over; said once each time that they are others."""
        if names and names != self._waits_for:
            self._waits_for = names
            self._bar.console.print(
                f"{self._record.view} version {self._record.version}: waits for {', '.join(names)} to take it over",
                markup=False,
                highlight=False,
            )

    def _put(self, **changes: Any) -> None:
        self._record = msgspec.structs.replace(self._record, updated_us=self._clock(), **changes)
        self._records.write(self._record)
        self._written_s = time.monotonic()


@contextmanager
def shown(records: RunRecords, record: RunRecord, clock: Clock) -> Iterator[RunProgress]:
    """Show and record a run meanwhile; what ends it badly is recorded too."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        progress = RunProgress(bar, records, record, clock)
        try:
            yield progress
        except FeatureStoreError as error:
            progress.told("failed", message=str(error))
            raise
