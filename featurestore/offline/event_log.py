"""How are accepted events kept on disk, so that each is read exactly once?

One folder per topic, one subfolder per UTC day of arrival:

    <event log>/<topic>/day=2026-01-31/<topic id>-<partition>-<first>-<last>-<part>of<parts>.parquet

A write covers the offsets `first`..`last` of one partition and makes one part per day of arrival. `first`..`last` is
what was consumed, rejected records and holes included, so that the next write starts at `last + 1`. Names follow from
the range alone: the same range written again replaces itself. A range counts as stored when all its parts are there;
ranges may overlap after a crash, and readers take each (topic id, partition, offset) once.

Compaction (`featurestore.offline.compaction`) writes adjacent ranges again as one, its parts cut by day and by bucket
of the message key (`…-<part>of<parts>-b<bucket>of<buckets>.parquet`). Once such a range is stored, readers leave out
the files of the ranges within it, which are deleted later: a reader that listed them meanwhile still finds them.

Rows are the event's columns, untransformed, with `_topic_id` (string), `_partition` (int32), `_offset` (int64) and
`_arrival` (timestamp[us, UTC]).
"""

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Final
from urllib.parse import quote, unquote

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.errors import SourceError, UsageError
from featurestore.offline.column_types import concatenated
from validation.errors import did_you_mean
from validation.file_check import UNSEALED, seal, without_check
from validation.place import Place, readable
from validation.whole_file import whole_file

TOPIC_ID: Final = "_topic_id"
PARTITION: Final = "_partition"
OFFSET: Final = "_offset"
ARRIVAL: Final = "_arrival"
PROVENANCE: Final = pa.schema(
    [
        (TOPIC_ID, pa.string()),
        (PARTITION, pa.int32()),
        (OFFSET, pa.int64()),
        (ARRIVAL, pa.timestamp("us", "UTC")),
    ]
)
"""The columns that every row of an event log carries beside the event's own."""

_NAME = re.compile(
    r"(?P<topic>.+)-(?P<partition>\d+)-(?P<first>\d+)-(?P<last>\d+)-(?P<part>\d+)of(?P<parts>\d+)"
    r"(?:-b(?P<bucket>\d+)of(?P<buckets>\d+))?\.parquet"
)
_DAY_US = 86_400_000_000
_WRITERS = 8


class OffsetRange(msgspec.Struct, frozen=True, order=True):
    """Offsets `first`..`last`, both included, of one partition of one topic."""

    topic_id: str
    partition: int
    first: int
    last: int


class EventFile(msgspec.Struct, frozen=True, order=True):
    """One file of an event log: part `part` of `parts` (from 1) of a range.

    Of `buckets` buckets of message keys it holds number `bucket` (from 0); one bucket is all keys.
    """

    range: OffsetRange
    part: int
    parts: int
    path: Place
    bucket: int = 0
    buckets: int = 1


def file_name(covered: OffsetRange, part: int, parts: int, *, bucket: int = 0, buckets: int = 1) -> str:
    """The file's name within its day's folder.

    >>> file_name(OffsetRange("a-b", 3, 10, 19), 1, 2)
    'a-b-3-10-19-1of2.parquet'
    >>> file_name(OffsetRange("a-b", 3, 10, 19), 1, 2, bucket=1, buckets=4)
    'a-b-3-10-19-1of2-b1of4.parquet'
    """
    topic = quote(covered.topic_id, safe="")
    keys = f"-b{bucket}of{buckets}" if buckets > 1 else ""
    return f"{topic}-{covered.partition}-{covered.first}-{covered.last}-{part}of{parts}{keys}.parquet"


def parse_name(path: Place) -> EventFile | None:
    """What a file's name says; None where it is no name of an event log.

    >>> from pathlib import Path
    >>> parse_name(Path("a-b-3-10-19-1of2.parquet")).range
    OffsetRange(topic_id='a-b', partition=3, first=10, last=19)
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    first, last = int(match["first"]), int(match["last"])
    covered = OffsetRange(unquote(match["topic"]), int(match["partition"]), first, last)
    return EventFile(
        covered,
        int(match["part"]),
        int(match["parts"]),
        path,
        int(match["bucket"] or 0),
        int(match["buckets"] or 1),
    )


def write_events(
    folder: Place, events: pa.Table, *, topic_id: str, partition: int, first: int, last: int
) -> tuple[Place, ...]:
    """Store the accepted events among the offsets `first`..`last` of a partition in the topic's folder.

    `events` holds the event's columns, `_offset` and `_arrival`, neither null; `_topic_id` and `_partition` are added.
    Each part appears whole or not at all (`validation.whole_file`). After a
    crash between parts the range does not count as stored (`next_offset`), and writing it again is harmless. Without
    events nothing is written, and the paths are empty: let the next write's range start here.
    Raises UsageError where the columns or offsets do not fit.
    """
    covered = OffsetRange(topic_id, partition, first, last)
    table = _with_provenance(events, covered)
    days = pc.cast(table[ARRIVAL], pa.int64()).to_numpy() // _DAY_US
    present = np.unique(days)

    def write_day(part: int) -> Place:
        day = present[part - 1]
        target = folder / f"day={np.datetime64(int(day), 'D')}" / file_name(covered, part, len(present))
        write_whole(table if len(present) == 1 else table.filter(pa.array(days == day)), target)
        return target

    if len(present) == 1:
        return (write_day(1),)  # on this thread: a new one would first have to be given its memory
    # A replay of history writes hundreds of days at once and would wait for the disk most of the time; the parts'
    # order means nothing, for the range counts when all of them are there.
    with ThreadPoolExecutor(_WRITERS) as writers:
        return tuple(writers.map(write_day, range(1, len(present) + 1)))


def read_events(
    folder: Place,
    *,
    columns: Sequence[str] | None = None,
    schema: pa.Schema | None = None,
    within: Sequence[OffsetRange] | None = None,
) -> pa.Table:
    """The events of a topic's folder, each (topic id, partition, offset) once; in order of range and part.

    `columns` names what to read, None everything; provenance columns come only when named. A column that older files
    lack is null there. A folder that does not exist, or is empty, is an empty table where `schema` says what its
    columns would be; otherwise SourceError, as for a torn file and for a column that no file has.

    A column that files store in several types is cast to one of them without loss, or an error names the file. Where
    all columns are read, one whose types have nothing in common is read as text. `within` keeps the rows at the offsets
    of those ranges (`pinned`), in the types that their own files have: what was appended since changes nothing.
    """
    files = event_files(folder)
    if not files:
        if schema is None:
            raise SourceError(f"the event log {folder} holds no events; {_neighbours(folder)}")
        empty: pa.Table = schema.empty_table()
        return empty if columns is None else empty.select(list(columns))
    overlapping = overlaps(files)
    identity = [TOPIC_ID, PARTITION, OFFSET] if overlapping else []
    wanted = None if columns is None else [*dict.fromkeys([*columns, *identity])]
    if within is not None and wanted is not None:
        wanted = [*dict.fromkeys([*wanted, TOPIC_ID, PARTITION, OFFSET])]
    parts, known = dict[str, pa.Table](), set[str]()
    for file in files:
        part, names = read_part(file.path, wanted)
        parts[str(file.path)] = part if within is None else pinned(part, within)
        known.update(names)
    if within is not None:
        parts = {path: part for path, part in parts.items() if len(part)} or dict([parts.popitem()])
    if columns is not None:
        for column in columns:
            if column not in known:
                raise SourceError(f"the event log {folder} has no column {column!r}; {did_you_mean(column, known)}")
    table = concatenated(parts, name=f"the event log {folder}", apart="error" if columns is not None else "text")
    if overlapping:
        table = each_offset_once(table)
    return table if columns is None else table.select(list(columns))


def pinned(rows: pa.Table, ranges: Sequence[OffsetRange]) -> pa.Table:
    """The rows of an event log at the offsets of those ranges; needs the provenance columns."""
    offsets = rows[OFFSET].to_numpy()
    partitions = rows[PARTITION].to_numpy()
    inside = np.zeros(rows.num_rows, bool)
    for topic_id in {each.topic_id for each in ranges}:
        of_topic = pc.equal(rows[TOPIC_ID], topic_id).to_numpy()
        for each in ranges:
            if each.topic_id == topic_id:
                inside |= of_topic & (partitions == each.partition) & (offsets >= each.first) & (offsets <= each.last)
    return rows.filter(pa.array(inside))


def event_files(folder: Place) -> tuple[EventFile, ...]:
    """The files that a reader of a topic's folder needs, ordered by range and part; none without the folder."""
    return needed(every_file(folder))


def every_file(folder: Place) -> tuple[EventFile, ...]:
    """All files of a topic's folder, those included that compaction has superseded and not deleted yet."""
    return tuple(sorted(file for path in folder.glob("day=*/*.parquet") if (file := parse_name(path)) is not None))


def needed(files: Sequence[EventFile]) -> tuple[EventFile, ...]:
    """The files without those of a range that lies within another one whose parts are all there; the order stays.

    >>> from pathlib import Path
    >>> [small, large] = [EventFile(OffsetRange("t", 0, 0, last), 1, 1, Path(str(last))) for last in (9, 99)]
    >>> needed([small, large]) == (large,)
    True
    """
    within: set[OffsetRange] = set()
    widest: OffsetRange | None = None
    stored = complete_ranges(files)
    # By first offset, the longest first: a range lies within another exactly where the widest so far ends behind it.
    every = {file.range for file in files}
    for each in sorted(every, key=lambda r: (r.topic_id, r.partition, r.first, -r.last)):
        same = widest is not None and (widest.topic_id, widest.partition) == (each.topic_id, each.partition)
        if same and widest is not None and each.last <= widest.last:
            within.add(each)
        elif each in stored and (not same or widest is None or each.last > widest.last):
            widest = each
    return tuple(file for file in files if file.range not in within)


def complete_ranges(files: Iterable[EventFile]) -> frozenset[OffsetRange]:
    """The ranges of which every part is among the files."""
    seen: dict[tuple[OffsetRange, int], set[int]] = {}
    for file in files:
        seen.setdefault((file.range, file.parts), set()).add(file.part)
    return frozenset(covered for (covered, parts), there in seen.items() if len(there) == parts)


def stored_ranges(folder: Place) -> tuple[OffsetRange, ...]:
    """The ranges whose parts are all stored, in order, without those that compaction has made one of."""
    return tuple(sorted(complete_ranges(event_files(folder))))


def next_offset(folder: Place, topic_id: str, partition: int) -> int | None:
    """The offset a sink goes on from: the contiguous end of the stored ranges, from the lowest on; None without any."""
    end: int | None = None
    for covered in stored_ranges(folder):
        if (covered.topic_id, covered.partition) != (topic_id, partition):
            continue
        if end is not None and covered.first > end:
            break
        end = max(end or 0, covered.last + 1)
    return end


def overlaps(files: Iterable[EventFile]) -> bool:
    """Whether two files may hold the same offset: their ranges overlap, or one range is stored in two ways.

    >>> from pathlib import Path
    >>> a, b = (EventFile(OffsetRange("t", 0, f, f + 9), 1, 1, Path(str(f))) for f in (0, 10))
    >>> overlaps([a, b]), overlaps([a, a])
    (False, True)
    """
    parts: dict[OffsetRange, list[tuple[int, int]]] = {}
    for file in files:
        parts.setdefault(file.range, []).append((file.parts, file.part))
    for split in parts.values():
        if len({count for count, _ in split}) > 1 or len(set(split)) < len(split):
            return True
    ordered = sorted(parts)
    return any(
        (a.topic_id, a.partition) == (b.topic_id, b.partition) and b.first <= a.last for a, b in pairwise(ordered)
    )


def write_whole(table: pa.Table, target: Place) -> None:
    """A Parquet file that appears at once, durably, in place of another of that name."""
    write_pieces([table], table.schema, target)


def write_pieces(pieces: Iterable[pa.Table], schema: pa.Schema, target: Place) -> None:
    """As `write_whole`, of rows that come in pieces."""
    with whole_file(target) as file:
        with pq.ParquetWriter(file, without_check(schema), compression="zstd") as writer:
            for piece in pieces:
                writer.write_table(piece)
            writer.add_key_value_metadata(UNSEALED)
        seal(file)


def _with_provenance(events: pa.Table, covered: OffsetRange) -> pa.Table:
    for column in (OFFSET, ARRIVAL):
        if column not in events.column_names:
            raise UsageError(f"events for the log lack {column!r}; they have {events.column_names}")
        if events[column].null_count:
            raise UsageError(f"events for the log have nulls in {column!r}")
    rows = len(events)
    if rows:
        low, high = pc.min_max(events[OFFSET]).as_py().values()
        if low < covered.first or high > covered.last:
            raise UsageError(f"events at offsets {low}..{high} do not lie in the range {covered.first}..{covered.last}")
    constants = {TOPIC_ID: covered.topic_id, PARTITION: covered.partition}
    table = events.drop_columns([name for name in PROVENANCE.names if name in events.column_names])
    for field in PROVENANCE:
        column = (
            pa.repeat(pa.scalar(constants[field.name], field.type), rows)
            if field.name in constants
            else events[field.name].cast(field.type)
        )
        table = table.append_column(pa.field(field.name, field.type, nullable=False), column)
    return table


def read_part(path: Place, wanted: Sequence[str] | None) -> tuple[pa.Table, list[str]]:
    """A file's columns among `wanted` (None: all), and the names of all that it has; raises SourceError."""
    try:
        with pq.ParquetFile(readable(path)) as file:
            names = file.schema_arrow.names
            table = file.read(columns=None if wanted is None else [name for name in wanted if name in names])
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(f"the event log's file {path} cannot be read as Parquet: {error}") from error
    return table, names


def each_offset_once(table: pa.Table) -> pa.Table:
    """The rows without those whose (topic id, partition, offset) another one has; by ascending offset."""
    order = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in (TOPIC_ID, PARTITION, OFFSET)])
    ordered = table.select([TOPIC_ID, PARTITION, OFFSET]).take(order)
    first = np.ones(len(table), dtype=bool)
    for name in ordered.column_names:
        column = ordered[name].combine_chunks()
        changed = pc.not_equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
        first[1:] = changed if name == TOPIC_ID else first[1:] | changed
    return table.take(order.filter(pa.array(first)))


def _neighbours(folder: Place) -> str:
    if not folder.parent.is_dir():
        return f"its parent folder {folder.parent} does not exist either"
    there = sorted(path.name for path in folder.parent.iterdir() if path.is_dir())
    return f"{folder.parent} has {', '.join(there) if there else 'no topics'}"
