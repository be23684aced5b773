"""How do many small files of an event log become few while others read and write it?

Adjacent ranges of a partition are written again as one range, its parts cut by day of arrival and by bucket of the
message key, so that a worker can take one bucket of all days. Ranges are merged with others of their size: a row is
written again a few times in its life, whatever the log's length. In this order:

1. every part of the new range is finished, synced, and put in its place; from the last one on, readers leave out the
   files of the ranges within it;
2. a grace later those files are deleted: a reader that listed them meanwhile has read them by then.

A crash before the end of 1 leaves parts of a range that is not complete: readers take each offset once, as ever, and a
later compaction supersedes them. Which offsets are stored, and the multiset of rows, are what they were.
"""

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from featurestore.errors import SourceError
from featurestore.offline.column_types import concatenated
from featurestore.offline.event_log import (
    ARRIVAL,
    OFFSET,
    PARTITION,
    TOPIC_ID,
    EventFile,
    OffsetRange,
    complete_ranges,
    each_offset_once,
    event_files,
    every_file,
    file_name,
    needed,
    overlaps,
    read_part,
    write_whole,
)
from validation.file_check import damage
from validation.place import Place

FAN_IN: Final = 8
"""So many adjacent ranges of about one size become one."""
SMALL_BYTES: Final = 64 << 10
LARGE_BYTES: Final = 64 << 20
"""Ranges of this size are left as they are: one is held in memory at a time."""
BUCKET_BYTES: Final = 8 << 20
MOST_BUCKETS: Final = 64
GRACE_S: Final = 900.0
_DAY_US: Final = 86_400_000_000


class Compacted(msgspec.Struct, frozen=True):
    """What came of it: files written and deleted."""

    written: int = 0
    deleted: int = 0


def compact(
    folder: Place,
    *,
    key_column: str | None = None,
    partitions: Iterable[tuple[str, int]] | None = None,
    fan_in: int = FAN_IN,
    grace_s: float = GRACE_S,
    now_s: float | None = None,
) -> Compacted:
    """Compact a topic's folder, or those of its (topic id, partition) pairs; raises OSError and SourceError.

    `fan_in` 2 makes one of whatever is adjacent and not large yet. Superseded files are deleted once what supersedes
    them is `grace_s` old. Two that compact one folder at once do no harm.
    """
    own = None if partitions is None else set(partitions)
    written = 0
    while run := _run(event_files(folder), own, fan_in):
        written += _write(folder, run, key_column)
    deleted = _delete_superseded(folder, own, time.time() if now_s is None else now_s, grace_s)
    return Compacted(written, deleted)


def bucket_of(values: Any, buckets: int) -> npt.NDArray[np.int64]:
    """int64[n]: the bucket of each key, by its text; null is bucket 0. `buckets` is a power of two.

    A key's bucket of half as many buckets is its bucket modulo that many.

    >>> bucket_of(pa.array(["a", "b", None, "a"]), 4).tolist()
    [3, 3, 0, 3]
    """
    column = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    encoded = pc.dictionary_encode(column)
    hashes = [
        xxhash.xxh64_intdigest(value if isinstance(value, bytes) else str(value).encode()) % buckets
        for value in encoded.dictionary.to_pylist()
    ]
    codes = pc.fill_null(encoded.indices, len(hashes)).to_numpy(zero_copy_only=False).astype(np.int64)
    found: npt.NDArray[np.int64] = np.array([*hashes, 0], np.int64)[codes]
    return found


def read_bucket(folder: Place, key_column: str, bucket: int, buckets: int) -> pa.Table:
    """The events of one bucket of keys, each offset once; all buckets together are `read_events`.

    Files that were cut by buckets are read where they may hold some; others are read and filtered.
    """
    files = event_files(folder)
    parts = dict[str, pa.Table]()
    for file in files:
        apart = min(file.buckets, buckets)
        if file.bucket % apart == bucket % apart:
            table = _sound_part(file)
            parts[str(file.path)] = table.filter(pa.array(bucket_of(table[key_column], buckets) == bucket))
    if not parts:
        return pa.table({})
    table = concatenated(parts, name=f"the event log {folder}", apart="text")
    return each_offset_once(table) if overlaps(files) else table


def _run(
    files: Sequence[EventFile], own: set[tuple[str, int]] | None, fan_in: int
) -> list[tuple[OffsetRange, list[EventFile]]]:
    """Adjacent complete ranges that are to become one, with their files; empty where nothing is due."""
    stored = complete_ranges(files)
    held: dict[OffsetRange, list[EventFile]] = {each: [] for each in sorted(stored)}
    for file in files:
        if file.range in held and (own is None or (file.range.topic_id, file.range.partition) in own):
            held[file.range].append(file)
    sized = [(each, parts, sum(_size(part.path) for part in parts)) for each, parts in held.items() if parts]
    for tier in range(_tier(LARGE_BYTES) + 1):
        run: list[tuple[OffsetRange, list[EventFile]]] = []
        size = 0
        for place, (each, parts, own_bytes) in enumerate(sized):
            fits = _tier(own_bytes) <= tier and own_bytes < LARGE_BYTES
            if run and not (fits and _adjacent(run[-1][0], each) and size + own_bytes <= 2 * LARGE_BYTES):
                if len(run) >= fan_in:
                    return run
                run, size = [], 0
            if fits:
                run.append((each, parts))
                size += own_bytes
            if place == len(sized) - 1 and len(run) >= fan_in:
                return run
    return []


def _tier(size: int) -> int:
    return 0 if size < SMALL_BYTES else 1 + int(math.log(size / SMALL_BYTES, FAN_IN))


def _adjacent(one: OffsetRange, other: OffsetRange) -> bool:
    same = (one.topic_id, one.partition) == (other.topic_id, other.partition)
    return same and other.first <= one.last + 1


def _size(path: Place) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _write(folder: Place, run: list[tuple[OffsetRange, list[EventFile]]], key_column: str | None) -> int:
    """Write the ranges as one; the number of its files."""
    ranges = [each for each, _ in run]
    covered = OffsetRange(ranges[0].topic_id, ranges[0].partition, ranges[0].first, max(each.last for each in ranges))
    files = [file for _, parts in run for file in parts]
    tables = _by_schema([_sound_part(file) for file in files])
    if overlaps(files):
        tables = _each_once(tables)
    tables = [
        table.sort_by([(TOPIC_ID, "ascending"), (PARTITION, "ascending"), (OFFSET, "ascending")]) for table in tables
    ]
    days = [pc.cast(table[ARRIVAL], pa.int64()).to_numpy() // _DAY_US for table in tables]
    cuts = [np.zeros(len(table), np.int64) for table in tables]
    buckets = 1
    if all(key_column in table.column_names for table in tables):
        wanted = sum(_size(file.path) for file in files) // len(np.unique(np.concatenate(days))) // BUCKET_BYTES
        buckets = min(1 << max(int(wanted).bit_length(), 0), MOST_BUCKETS)
        cuts = [bucket_of(table[key_column], buckets) for table in tables]
    places = sorted(
        {
            (day, cut, number)
            for number in range(len(tables))
            for day, cut in zip(days[number].tolist(), cuts[number].tolist(), strict=True)
        }
    )
    for part, (day, bucket, number) in enumerate(places, start=1):
        name = file_name(covered, part, len(places), bucket=bucket, buckets=buckets)
        write_whole(
            tables[number].filter(pa.array((days[number] == day) & (cuts[number] == bucket))),
            folder / f"day={np.datetime64(int(day), 'D')}" / name,
        )
    return len(places)


def _by_schema(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """The rows in as few tables as there are sets of column types: compaction changes no value, so it casts none.

    Columns that some lack are null there.
    """
    groups: list[tuple[dict[str, pa.DataType], list[pa.Table]]] = []
    for table in tables:
        types = {field.name: field.type for field in table.schema}
        for known, alike in groups:
            if all(known.get(name, dtype) == dtype for name, dtype in types.items()):
                known.update(types)
                alike.append(table)
                break
        else:
            groups.append((types, [table]))
    return [pa.concat_tables(alike, promote_options="default") for _, alike in groups]


def _each_once(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """Each (topic id, partition, offset) once among all of them."""
    owner = pa.concat_arrays([pa.repeat(pa.scalar(number), len(table)) for number, table in enumerate(tables)])
    place = pa.concat_arrays([pa.array(np.arange(len(table))) for table in tables])
    identity = pa.concat_tables([table.select([TOPIC_ID, PARTITION, OFFSET]) for table in tables])
    once = each_offset_once(identity.append_column("owner", owner).append_column("place", place))
    return [
        table.take(once.filter(pc.equal(once["owner"], number))["place"])
        for number, table in enumerate(tables)
        if pc.any(pc.equal(once["owner"], number)).as_py()
    ]


def _delete_superseded(folder: Place, own: set[tuple[str, int]] | None, now_s: float, grace_s: float) -> int:
    files = every_file(folder)
    kept = set(needed(files))
    newest: dict[OffsetRange, float] = {}
    for each in complete_ranges(kept):
        newest[each] = max(_written_s(file.path) for file in kept if file.range == each)
    deleted = 0
    for file in files:
        mine = own is None or (file.range.topic_id, file.range.partition) in own
        if file in kept or not mine:
            continue
        if any(_within(file.range, each) and now_s - newest[each] >= grace_s for each in newest):
            file.path.unlink(missing_ok=True)
            deleted += 1
    return deleted


def _within(inner: OffsetRange, outer: OffsetRange) -> bool:
    same = (inner.topic_id, inner.partition) == (outer.topic_id, outer.partition)
    return same and outer.first <= inner.first and inner.last <= outer.last


def _written_s(path: Place) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return math.inf  # somebody else compacted it away: whatever it superseded waits for the next time


def _sound_part(file: EventFile) -> pa.Table:
    """All rows of a file; damage must not be written again under a check of its own. Raises SourceError."""
    try:
        found = damage(file.path)
    except OSError as error:
        raise SourceError(f"the event log's file {file.path} cannot be read: {error}") from error
    if found:
        raise SourceError(f"the event log's file {found}; restore it from a backup, then compact again")
    return read_part(file.path, None)[0]
