"""What did the rows look like that were written online, hour by hour?

Of every view's rows that became their key's value, whether the API, Feast's SDK or a materialization wrote them,
profiles by the hour of writing, kept at the boundary `online_write` beside those of sources, events, training sets and
answers. Rows are held until there are some, so that their profile is cheap and the baseline, which is of the first of
them, means something; a profile is of constant size, however many rows there are. Each process keeps files of its own,
folded into one a day when their hours are over; an hour is the sum of them all.
"""

import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

import numpy as np
import pyarrow as pa

from featurestore.clock import Clock
from featurestore.monitor.kept_profiles import AT, added, by_segment, first_baseline, hour_name, safe_name
from featurestore.personal import holds_personal
from featurestore.plan import Plan, View, is_personal
from featurestore.segments import segments_of
from validation.errors import PlatformError
from validation.profile.baseline import Baseline, kind_of
from validation.profile.concatenate import alike, concatenate
from validation.profile.fold import alone, fold, stands
from validation.profile.profile import Profile
from validation.profile.store import ProfileStore

BOUNDARY: Final = "online_write"
HOUR_US: Final = 3_600_000_000
PROFILE_AGE_US: Final = 30_000_000
"""How long rows wait for their profile."""
FIRST_ROWS: Final = 1_000
"""A baseline is made of so many rows at least, or of all that there are in the end."""
_HELD_ROWS: Final = 65_536
_LOOSE: Final = 256
"""Of tables that were written so many at most lie singly: one of a single row takes 11 KB."""
_HOURS: Final = 2
SETTLED_US: Final = HOUR_US
"""An hour's files are folded so long after its end."""
_HOUR_FILE: Final = re.compile(r"(?P<view>.+)-(?P<hour>[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2})-[^T]+")
_LOG: Final = logging.getLogger(__name__)


class _Written:
    """The rows of one view: those that wait, and what is known of the last hours."""

    def __init__(self, plan: Plan, view: View) -> None:
        self.plan, self.view = plan, view
        self.tables: list[pa.Table] = []
        self.loose = 0
        """How many of the last tables lie singly."""
        self.rows = 0
        self.hours: dict[int, tuple[int, bool, Sequence[Profile]]] = {}
        """By hour: the number of its file, whether it is there, and what is in it, one a feature and segment."""


class WriteProfiles:
    """What one process has written; safe among threads. A Look that looks at no answers."""

    name = "write profiles"

    def __init__(self, store: ProfileStore, clock: Clock, *, writer: str) -> None:
        """`writer` is this process's name, another one after each start: its files are replaced as hours fill."""
        self._store, self._clock, self._writer = store, clock, writer
        self._views: dict[str, _Written] = {}
        self._since_us = clock()
        self._lock = threading.Lock()

    def written(self, plan: Plan, view: View, table: pa.Table) -> None:
        """Takes rows that were written, under the view's names. An error is logged: the rows are written.

        Of personal data there is no profile: its quantiles and categories are values of somebody.
        """
        if holds_personal(plan, view.name) or is_personal(view.tags):
            return
        times = {view.source.timestamp_field, view.source.created_field}
        names = [field.name for field in table.schema if kind_of(field.type) is not None and field.name not in times]
        if not table.num_rows or not names:
            return
        now_us = self._clock()
        at = pa.array([now_us] * table.num_rows, pa.int64()).view(pa.timestamp("us", "UTC"))
        with self._lock:
            held = self._views.setdefault(view.name, _Written(plan, view))
            held.plan = plan
            held.tables.append(table.select(names).add_column(0, AT, at))
            held.loose += 1
            held.rows += table.num_rows
            if held.rows >= _HELD_ROWS:
                self._profile(held)
            elif held.loose >= _LOOSE:
                self._pack(held)

    @contextmanager
    def beside(self, plan: Plan, view: View) -> Iterator[Callable[[pa.Table], None]]:
        """Takes rows as `written` does, on a thread of its own: their profiles take time that the store works in.

        The rows of one call wait at most, so that memory does not grow. In the end all are profiled.
        """
        running: list[Future[None]] = []
        with ThreadPoolExecutor(1) as pool:

            def take(table: pa.Table) -> None:
                while running:
                    running.pop().result()
                running.append(pool.submit(self.written, plan, view, table))

            try:
                yield take
            finally:
                for each in running:
                    each.result()
                self.finish()

    def share(self, plan: Plan, service: str | None) -> float:  # noqa: ARG002 - the protocol's signature
        """See Look: no answers."""
        return 0.0

    def look(self, served: object) -> None:
        """See Look."""

    def rest(self) -> None:
        """See Look: profiles what has waited long enough."""
        if self._clock() - self._since_us >= PROFILE_AGE_US:
            self._since_us = self._clock()
            self._profile_all(FIRST_ROWS)

    def finish(self) -> None:
        """See Look: profiles what there is."""
        self._profile_all(1)

    def _profile_all(self, least_rows: int) -> None:
        with self._lock:
            for held in self._views.values():
                if held.rows >= least_rows or (held.rows and held.hours):
                    self._profile(held)

    def _pack(self, held: _Written) -> None:
        """Makes one table of those that lie singly: most writes are of few rows, and a table costs more than they."""
        held.tables[-held.loose :] = [table.combine_chunks() for table in alike(held.tables[-held.loose :])]
        held.loose = 0

    def _profile(self, held: _Written) -> None:
        tables, held.tables, held.loose, held.rows = held.tables, [], 0, 0
        name = held.view.name
        try:
            whole = concatenate(tables)
            groups = alike(tables) if whole.left_out else [whole.table]
            # Keys name rows: they may be a million different words, and no model sees them.
            keys = {key.name for key in held.view.join_keys}
            baseline = first_baseline(self._store, BOUNDARY, name, max(groups, key=len), sorted(keys))
            # What the plan says of the view: Feast's SDK makes a view of its own object, without tags.
            segments = segments_of(held.plan, [held.plan.views.get(name, held.view)])
            hours: dict[int, list[Profile]] = {}
            for table in groups:
                for profile in by_segment(
                    table, baseline, BOUNDARY, segments, time_column=AT, entities=sorted(keys), threads=1
                ):
                    hours.setdefault((profile.hour_us or 0) // HOUR_US, []).append(profile)
            with alone(self._store, BOUNDARY):
                for hour, made in sorted(hours.items()):
                    self._put(held, hour, made, baseline)
            for hour in sorted(held.hours)[:-_HOURS]:
                del held.hours[hour]
        except (PlatformError, OSError, pa.ArrowException) as error:
            _LOG.warning("rows written to view %r are not profiled: %s", name, error)

    def _put(self, held: _Written, hour: int, made: Sequence[Profile], baseline: Baseline) -> None:
        """Adds to this process's file of an hour; to a new one where the last was folded with others of its day."""
        part, stored, known = held.hours.get(hour, (0, False, ()))
        name = f"{safe_name(held.view.name)}-{hour_name(hour)}-{self._writer}"
        if stored and not stands(self._store, BOUNDARY, baseline.id, f"{name}.{part}", _day_file(f"{name}.{part}")):
            part, known = part + 1, ()
        profiles = added(known, made)
        held.hours[hour] = part, False, profiles
        self._store.put(f"{name}.{part}", profiles, boundary=BOUNDARY, baseline=baseline)
        held.hours[hour] = part, True, profiles


def fold_hours(store: ProfileStore, now_us: int) -> None:
    """Makes one file a view and day of what all processes wrote in hours that ended a while ago.

    Safe beside writers and readers, and where it is killed; raises ProfileError, OSError.
    """
    by_day: dict[tuple[str, str], list[str]] = {}
    for path in store.paths(BOUNDARY):
        named = _HOUR_FILE.fullmatch(path.stem)
        if named and int(np.datetime64(named["hour"], "us").astype(np.int64)) + HOUR_US + SETTLED_US <= now_us:
            by_day.setdefault((path.parent.name, _day_file(path.stem)), []).append(path.stem)
    for (baseline_id, into), names in by_day.items():
        with alone(store, BOUNDARY):
            fold(store, BOUNDARY, store.baseline(baseline_id), into, names)


def _day_file(name: str) -> str:
    """The file of a day that a process's file of an hour is folded into.

    >>> _day_file("weather-2023-11-14T22-17-1700000000.0")
    'weather-2023-11-14'
    """
    named = _HOUR_FILE.fullmatch(name)
    assert named is not None, name
    return f"{named['view']}-{named['hour'][:10]}"
