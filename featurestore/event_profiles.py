"""What did the accepted events of a topic look like, hour by hour of event time?

Profiles are made of the event log's files, at leisure: nothing waits for them. A file of profiles is of a range of
offsets of one partition, and named by it. Which offsets are profiled is what the names say: there is no other cursor
that could run ahead of them, or be lost.

1. Events that are stored and not profiled yet are, in blocks of offsets; an hour that they come late to gets more rows.
2. A block's file is put whole, under its offsets: of the smallest blocks also the part that is there so far.
3. Neighbours become one; a grace later what lies within a larger file is deleted.

A block of level n holds SMALLEST * FAN_IN**n offsets and begins at a multiple of that, so that of any two ranges that
anybody writes one lies within the other, or they are apart; readers leave out what lies within another. So each offset
counts once after a crash between any two steps, beside a zombie, and when several profile one partition.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.errors import SourceError
from featurestore.monitor.kept_profiles import (
    AT,
    added,
    by_segment,
    first_baseline,
    kept_baseline,
    read_all_kept,
    safe_name,
)
from featurestore.offline.event_log import ARRIVAL, OFFSET, PROVENANCE, EventFile, complete_ranges, event_files
from featurestore.plan import View
from validation.place import Place, readable
from validation.profile.baseline import Baseline, Kind, kind_of
from validation.profile.build import HOUR_US
from validation.profile.concatenate import alike, concatenate
from validation.profile.profile import Profile
from validation.profile.ranges import RangeFile, parse_range, range_name, widest
from validation.profile.store import ProfileStore

BOUNDARY: Final = "event"
SMALLEST: Final = 1 << 10
FAN_IN: Final = 4
AT_ONCE: Final = SMALLEST * FAN_IN**4
"""Offsets that are profiled into one file."""
LARGEST: Final = SMALLEST * FAN_IN**8
MOST_HELD: Final = 16_384
"""Profiles in one file, if it is not of the smallest block: of numbers one takes 2 KB."""
FIRST_ROWS: Final = 1_000
"""A baseline is made of so many events at least, or of all that there are where no more come for a while."""
FIRST_WAIT_S: Final = 600.0
GRACE_S: Final = 900.0
_BATCH: Final = 32_768
_NULLS: Final[Mapping[Kind, pa.DataType]] = {"number": pa.float64(), "category": pa.string()}


def _no_rest(took_s: float) -> None:
    """Goes on at once."""


class Profiled(msgspec.Struct, frozen=True):
    """What one pass did."""

    events: int = 0
    written: int = 0
    deleted: int = 0


class _Stretch(msgspec.Struct, frozen=True):
    """The files of a range of an event log, and the offsets for which they are read: `first` to before `after`."""

    files: tuple[EventFile, ...]
    first: int
    after: int


class EventProfiles:
    """The profiles of one topic's events. Raises SourceError, OSError, ProfileError and Arrow's errors."""

    def __init__(self, folder: Place, store: ProfileStore, views: Sequence[View], segments: Sequence[str] = ()) -> None:
        """`folder` is the topic's event log, `views` read the topic; `segments` are columns as producers name them."""
        self._folder = folder
        self._store = store
        self._timestamp = _producer_name(views[0], views[0].source.timestamp_field)
        ids = {view.source.topic.event_id for view in views if view.source.topic is not None}
        self._left_out = {*PROVENANCE.names, self._timestamp, *ids}
        self._segments = tuple(segments)
        self._keys = [_producer_name(views[0], key.name) for key in views[0].join_keys]
        self._footers: dict[Place, pq.FileMetaData] = {}
        """Of the files of this pass."""
        self._baselines: dict[str, Baseline] = {}
        self._rest: Callable[[float], object] = _no_rest

    def run(
        self,
        own: Collection[tuple[str, int]] | None = None,
        *,
        strangers: bool = False,
        last: bool = False,
        stop: Callable[[], bool] = lambda: False,
        rest: Callable[[float], object] = _no_rest,
        now_s: float | None = None,
    ) -> Profiled:
        """Profile what is new of these (topic id, partition) pairs, of all without them.

        `strangers` adds the topic ids that none of `own` has: a former topic's, files'. `last` waits for nothing.
        `rest` is told how many seconds of the processor each piece of the work took, and may let others have it.
        """
        files = event_files(self._folder)
        complete = complete_ranges(files)
        found: dict[tuple[str, int], list[EventFile]] = {}
        for file in files:
            if file.range in complete:
                found.setdefault((file.range.topic_id, file.range.partition), []).append(file)
        known = {topic_id for topic_id, _ in own or ()}
        self._footers.clear()
        self._rest = rest
        done = Profiled()
        now_s = time.time() if now_s is None else now_s
        for place, there in sorted(found.items()):
            if own is None or place in own or (strangers and place[0] not in known):
                log = f"{_short(self._folder.name)}-{safe_name(place[0])}-{place[1]}"
                more = self._partition(log, _stretches(there), now_s, last=last, stop=stop)
                done = Profiled(done.events + more.events, done.written + more.written, done.deleted + more.deleted)
        return done

    def _partition(
        self, log: str, stretches: Sequence[_Stretch], now_s: float, *, last: bool, stop: Callable[[], bool]
    ) -> Profiled:
        files = [each for each in map(parse_range, self._store.paths(BOUNDARY)) if each is not None and each.log == log]
        needed = widest(files)
        position, end = _end_of(needed), stretches[-1].after
        events = written = 0
        for first, after in blocks(stretches[0].first if position is None else position, end):
            age_s = now_s - stretches[0].files[0].path.stat().st_mtime
            patient = not last and after - first < SMALLEST and age_s < FIRST_WAIT_S
            if stop() or (patient and self._baseline(stretches, first, after, make=False) is None):
                break
            rows, count = self._block(log, stretches, first, after)
            events, written = events + rows, written + count
        if written:
            needed = widest(each for each in map(parse_range, self._store.paths(BOUNDARY)) if each and each.log == log)
            written += self._merge(log, needed)
        return Profiled(events, written, _delete(files, needed, now_s))

    def _block(self, log: str, stretches: Sequence[_Stretch], first: int, after: int) -> tuple[int, int]:
        """Profile a block, or the blocks within it where it has too many hours and segments; events and files."""
        baseline = self._baseline(stretches, first, after, make=True)
        assert baseline is not None
        made: list[Profile] = []
        rows, began_s = 0, time.thread_time()
        for table in _gathered(self._rows(stretches, first, after, self._kinds(stretches, first, after))):
            many = max(len(made), _slices(table, self._segments) * len(baseline.features)) > MOST_HELD
            if many and after - first > SMALLEST:
                step = (after - first) // FAN_IN
                parts = [self._block(log, stretches, start, start + step) for start in range(first, after, step)]
                return sum(count for count, _ in parts), sum(files for _, files in parts)
            more = by_segment(table, baseline, BOUNDARY, self._segments, time_column=AT, entities=self._keys, threads=1)
            made = added(made, more)
            rows += len(table)
            self._rest(time.thread_time() - began_s)
            began_s = time.thread_time()
        self._store.put(range_name(log, first, after - 1), made, boundary=BOUNDARY, baseline=baseline)
        return rows, 1

    def _baseline(self, stretches: Sequence[_Stretch], first: int, after: int, *, make: bool) -> Baseline | None:
        """The baseline of the columns that events have here: made of the first ones from here on, once.

        Without `make` None where there is none and these are too few.
        """
        kinds = self._kinds(stretches, first, after)
        digest = hashlib.sha256(repr(sorted(kinds.items())).encode()).hexdigest()[:8]
        name = f"{self._folder.name} {digest}"
        known = self._baselines.get(name) or kept_baseline(self._store, BOUNDARY, name)
        if known is not None:
            return self._baselines.setdefault(name, known)
        rows, parts = 0, []
        # Of whole files: the events of a block may all have been set aside.
        begin = next(each.first for each in stretches if each.after > first)
        for table in self._rows(stretches, begin, stretches[-1].after, kinds):
            parts.append(table)
            rows += len(table)
            if rows >= FIRST_ROWS:
                break
        if not make and rows < FIRST_ROWS:
            return None
        whole = concatenate(parts)
        # No integer is rounded for a baseline: where types differ, it is made of those rows that are most.
        events = max(alike(parts), key=len) if whole.left_out else whole.table
        for place, field in enumerate(events.schema):
            if pa.types.is_null(field.type):
                events = events.set_column(place, field.name, events[field.name].cast(_NULLS[kinds[field.name]]))
        return first_baseline(self._store, BOUNDARY, name, events)

    def _kinds(self, stretches: Sequence[_Stretch], first: int, after: int) -> dict[str, Kind]:
        """The columns that are profiled, and as what; where that has changed, as the newest events have it."""
        kinds: dict[str, Kind] = {}
        for each in stretches:
            if each.first < after and first < each.after:
                for field in self._footer(each.files[-1].path).schema.to_arrow_schema():
                    if (kind := kind_of(field.type)) is not None and field.name not in self._left_out:
                        kinds[field.name] = kind
        return kinds

    def _footer(self, path: Place) -> pq.FileMetaData:
        if path not in self._footers:
            self._footers[path] = pq.read_metadata(readable(path))
        return self._footers[path]

    def _rows(
        self, stretches: Sequence[_Stretch], first: int, after: int, kinds: Mapping[str, Kind]
    ) -> Iterator[pa.Table]:
        """The events at the offsets `first` to before `after`, with their instants, in pieces and in any order."""
        for each in stretches:
            low, high = max(each.first, first), min(each.after, after)
            for file in each.files if low < high else ():
                try:
                    for table in self._part(file, low, high, kinds):
                        yield self._conformed(table, kinds)
                except pa.ArrowInvalid as error:
                    raise SourceError(f"the event log's file {file.path} cannot be profiled: {error}") from error

    def _part(self, file: EventFile, first: int, after: int, kinds: Mapping[str, Kind]) -> Iterator[pa.Table]:
        footer = self._footer(file.path)
        schema = footer.schema.to_arrow_schema()
        there = [each.name for each in schema if kind_of(each.type) == kinds.get(each.name, "")]
        columns = [*there, *({self._timestamp} & {*schema.names}), ARRIVAL, OFFSET]
        # Texts as dictionaries, which is how they lie there: half the time.
        texts = [name for name in there if kinds[name] == "category"]
        with pq.ParquetFile(readable(file.path), metadata=footer, read_dictionary=texts) as stored:
            groups = _groups(stored, first, after)
            for batch in stored.iter_batches(_BATCH, row_groups=groups, columns=columns, use_threads=False):
                table = pa.Table.from_batches([batch])
                if file.range.first < first or file.range.last >= after:
                    offsets = table[OFFSET]
                    table = table.filter(pc.and_(pc.greater_equal(offsets, first), pc.less(offsets, after)))
                if len(table):
                    yield table

    def _conformed(self, table: pa.Table, kinds: Mapping[str, Kind]) -> pa.Table:
        instants = [
            table[name].cast(pa.timestamp("us", "UTC"))
            for name in (self._timestamp, ARRIVAL)
            if name in table.column_names
        ]
        columns = {AT: instants[0] if not instants[0].null_count else pc.coalesce(*instants)}
        for name in kinds:
            columns[name] = table[name] if name in table.column_names else pa.chunked_array([pa.nulls(len(table))])
        return pa.table(columns)

    def _merge(self, log: str, needed: Sequence[RangeFile]) -> int:
        """Makes one file of whole neighbours, level by level; how many."""
        written, size = 0, SMALLEST
        known = {(each.first, each.last + 1 - each.first): each.path for each in needed}
        while size < LARGEST:
            for start in sorted(first for first, held in known if held == size and first % (size * FAN_IN) == 0):
                paths = [known.get((start + place * size, size)) for place in range(FAN_IN)]
                group = [path for path in paths if path is not None]
                same = len(group) == FAN_IN and len({path.parent for path in group}) == 1
                if same and sum(pq.read_metadata(path).num_rows for path in group) <= MOST_HELD:
                    profiles = [profile for path in group for profile in self._store.of_file(path)]
                    baseline = self._store.baseline(group[0].parent.name)
                    name = range_name(log, start, start + size * FAN_IN - 1)
                    known[start, size * FAN_IN] = self._store.put(name, profiles, boundary=BOUNDARY, baseline=baseline)
                    written += 1
            size *= FAN_IN
        return written


def read_event_profiles(store: ProfileStore, view: View, start_us: int, end_us: int) -> list[Profile]:
    """The profiles of a view's events of the hours in [start, end), under the producers' names.

    Where the topic's columns have changed, each set of columns has a baseline and profiles of its own.
    """
    topic = view.source.topic
    return [] if topic is None else read_all_kept(store, BOUNDARY, f"{topic.name} ", start_us, end_us)


def blocks(position: int, end: int) -> Iterator[tuple[int, int]]:
    """The blocks, `first` to before `after`, that have the offsets from `position` to before `end`.

    The first one may begin before `position`, the last one is as far as it is there.

    >>> list(blocks(2_000, 5_000))
    [(1024, 2048), (2048, 3072), (3072, 4096), (4096, 5000)]
    >>> list(blocks(5_000, 5_000))
    []
    """
    first = position // SMALLEST * SMALLEST
    while position < end and first < end:
        size = SMALLEST
        while size < AT_ONCE and first % (size * FAN_IN) == 0 and first + size * FAN_IN <= end:
            size *= FAN_IN
        yield first, min(first + size, end)
        first += size


def _stretches(files: Sequence[EventFile]) -> list[_Stretch]:
    """The files of one partition's complete ranges, without a gap from the lowest on, each offset once."""
    by_range: dict[tuple[int, int], list[EventFile]] = {}
    for file in files:
        by_range.setdefault((file.range.first, file.range.last), []).append(file)
    found: list[_Stretch] = []
    for (first, last), stored in sorted(by_range.items()):
        after = found[-1].after if found else first
        if first > after:
            break
        if last >= after:
            found.append(_Stretch(_one_split(stored), after, last + 1))
    return found


def _one_split(files: Sequence[EventFile]) -> tuple[EventFile, ...]:
    """The parts of a range, where it is stored in several ways those of one that is whole."""
    splits: dict[tuple[int, int], list[EventFile]] = {}
    for file in files:
        splits.setdefault((file.parts, file.buckets), []).append(file)
    return next(
        tuple(sorted(some)) for (parts, _), some in splits.items() if len({each.part for each in some}) == parts
    )


def _groups(stored: pq.ParquetFile, first: int, after: int) -> list[int]:
    """The row groups that may hold offsets from `first` to before `after`."""
    place = stored.schema_arrow.names.index(OFFSET)
    found = []
    for number in range(stored.metadata.num_row_groups):
        held = stored.metadata.row_group(number).column(place).statistics
        if held is None or not held.has_min_max or (held.min < after and held.max >= first):
            found.append(number)
    return found


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in fewer tables, each column in its own type: one of few rows costs as much as one of thousands."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(map(len, held)) >= _BATCH:
            yield from alike(held)
            held = []
    if held:
        yield from alike(held)


def _end_of(files: Sequence[RangeFile]) -> int | None:
    """Up to where ranges have every offset, from the lowest on; None without any."""
    end: int | None = None
    for each in files:
        if end is not None and each.first > end:
            break
        end = max(end or 0, each.last + 1)
    return end


def _delete(files: Sequence[RangeFile], needed: Sequence[RangeFile], now_s: float) -> int:
    """Deletes what has lain within another file for a grace: who has listed it may still read it until then."""
    deleted = 0
    for each in files:
        if each in needed:
            continue
        if any(each.within(other) and now_s - other.path.stat().st_mtime >= GRACE_S for other in needed):
            each.path.unlink(missing_ok=True)
            deleted += 1
    return deleted


def _slices(table: pa.Table, segments: Sequence[str]) -> int:
    """Hours, and hours of each segment, at most."""
    low, high = (pc.floor_temporal(each, unit="hour").value for each in pc.min_max(table[AT]).values())
    there = [name for name in segments if name in table.column_names]
    hours = min((high - low) // HOUR_US + 1, len(table))
    return int(hours + sum(min(hours * len(pc.unique(table[name])), len(table)) for name in there))


def _producer_name(view: View, name: str) -> str:
    return next((old for old, new in view.source.field_mapping.items() if new == name), name)


def _short(topic: str) -> str:
    """A topic's name within the names of files, which have an end."""
    name = safe_name(topic)
    return name if len(name) <= 64 else f"{name[:55]}={hashlib.sha256(topic.encode()).hexdigest()[:8]}"
