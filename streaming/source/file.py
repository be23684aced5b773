"""How is a file read as if it were a topic?

A file is a topic of one partition: its digest is the topic id, so that the same bytes are the same topic wherever they
lie; the row number is the offset. It is finite: once `poll` has reached `end_offsets`, nothing more will come.
"""

import codecs
import hashlib
import mmap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import orjson
import pyarrow as pa

from featurestore.errors import SourceError, UnknownName
from streaming.source.json_rows import encode_rows
from streaming.source.parquet_events import check_columns, keys_of, open_parquet, times_of
from streaming.source.records import (
    Assigned,
    Batch,
    NotAssigned,
    OffsetGone,
    Rebalance,
    Record,
    TopicPartition,
)
from validation.instant import number_us, text_us

_DIGEST_CHARACTERS = 32


class _Rows(Protocol):
    """The rows of one file, addressed by number."""

    count: int

    def read(self, first: int, stop: int) -> list[Record]:
        """Rows `[first, stop)`, or fewer where that is cheaper, at least one."""
        ...


class FileSource:
    """A Source over one Parquet or JSON-lines file.

    A Parquet row becomes a JSON value; a JSON line is the value as it stands, sound or not. `key` and `timestamp` name
    columns (for JSON lines top-level fields); without `timestamp`, or where a line has none that can be read, a
    record's time is `arrival_us`, when the file landed. Raises SourceError, UnknownColumn.
    """

    def __init__(
        self,
        path: Path,
        *,
        topic: str,
        arrival_us: int,
        key: str | None = None,
        timestamp: str | None = None,
        max_records: int = 5_000,
    ) -> None:
        self._rows: _Rows
        if not path.is_file():
            raise SourceError(f"there is no file {path}")
        if path.suffix == ".parquet":
            self._rows = _ParquetRows(path, key, timestamp, arrival_us)
        elif path.suffix in (".jsonl", ".ndjson", ".json"):
            self._rows = _JsonLines(path, key, timestamp, arrival_us)
        else:
            raise SourceError(f"{path}: files of events end in .parquet, .jsonl or .ndjson")
        self.partition = TopicPartition(topic, digest_of(path), 0)
        self._max_records = max_records
        self._rebalances: list[Rebalance] = [Assigned((self.partition,))]
        self._position: int | None = None
        self._paused = False

    def drain_rebalances(self) -> list[Rebalance]:
        """See Source: the one partition, once."""
        drained, self._rebalances = self._rebalances, []
        return drained

    def poll(self, timeout_ms: int) -> list[Batch]:  # noqa: ARG002 - a file has nothing to wait for
        """See Source."""
        first, end = self._position, self._rows.count
        if first is None or self._paused or first == end:
            return []
        if not 0 <= first < end:
            raise OffsetGone(self.partition, first, 0, end)
        records = self._rows.read(first, min(first + self._max_records, end))
        self._position = first + len(records)
        return [Batch(self.partition.topic, self.partition.topic_id, 0, records, first, self._position)]

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """See Source."""
        if partition != self.partition:
            raise NotAssigned(partition)
        self._position = offset

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """See Source."""
        self._paused = self._paused or self.partition in partitions

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """See Source."""
        self._paused = self._paused and self.partition not in partitions

    def partitions_of(self, topic: str) -> tuple[TopicPartition, ...]:
        """See Source."""
        if topic != self.partition.topic:
            raise UnknownName("topic", topic, [self.partition.topic])
        return (self.partition,)

    def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """See Source."""
        return dict.fromkeys(partitions, 0)

    def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """See Source: the number of rows."""
        return dict.fromkeys(partitions, self._rows.count)

    def known_end(self, partition: TopicPartition) -> int | None:  # noqa: ARG002 - there is one
        """See Source."""
        return self._rows.count

    def close(self) -> None:
        """See Source."""
        self._position = None


def digest_of(path: Path) -> str:
    """What stands for the bytes of a file: 32 hexadecimal digits of their SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGEST_CHARACTERS]


class _ParquetRows:
    """Decodes one row group at a time and keeps the last one, for reading goes forward."""

    def __init__(self, path: Path, key: str | None, timestamp: str | None, arrival_us: int) -> None:
        self._path, self._key, self._timestamp, self._arrival_us = path, key, timestamp, arrival_us
        with open_parquet(path) as file:
            check_columns(path, file.schema_arrow, key=key, timestamp=timestamp)
            sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.count = int(self._starts[-1])
        self._group = -1
        self._table: pa.Table | None = None

    def read(self, first: int, stop: int) -> list[Record]:
        group = int(np.searchsorted(self._starts, first, side="right")) - 1
        if group != self._group:
            with open_parquet(self._path) as file:
                self._table = file.read_row_group(group).combine_chunks()
            self._group = group
        assert self._table is not None
        start, end = int(self._starts[group]), int(self._starts[group + 1])
        stop = min(stop, end)
        records: list[Record] = []
        for batch in self._table.slice(first - start, stop - first).to_batches():
            times: Sequence[int] = [self._arrival_us] * batch.num_rows
            if self._timestamp is not None:
                times = times_of(self._path, batch, self._timestamp)
            for key, value, ts_us in zip(keys_of(batch, self._key), encode_rows(batch), times, strict=True):
                records.append(Record(0, first + len(records), key, value, ts_us))
        return records


class _JsonLines:
    """Finds the line ends once; a line is read from the file when it is asked for."""

    def __init__(self, path: Path, key: str | None, timestamp: str | None, arrival_us: int) -> None:
        self._path, self._key, self._timestamp, self._arrival_us = path, key, timestamp, arrival_us
        size = path.stat().st_size
        ends = np.zeros(0, np.int64)
        if size:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                view = np.frombuffer(data, np.uint8)
                ends = np.flatnonzero(view == ord("\n")).astype(np.int64)
                del view  # a mapping cannot be closed while something looks at it
            if not len(ends) or ends[-1] != size - 1:
                ends = np.append(ends, size)  # the last line has no newline
        self._starts = np.concatenate([[0], ends + 1])
        self.count = len(ends)

    def read(self, first: int, stop: int) -> list[Record]:
        with self._path.open("rb") as file:
            file.seek(int(self._starts[first]))
            lines = [file.readline().rstrip(b"\r\n") for _ in range(first, stop)]
        if first == 0 and lines:
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
        return [self._record(offset, line) for offset, line in enumerate(lines, start=first)]

    def _record(self, offset: int, line: bytes) -> Record:
        key, ts_us = None, self._arrival_us
        if self._key is not None or self._timestamp is not None:
            fields = _fields(line)
            found = fields.get(self._key) if self._key is not None else None
            key = None if found is None else str(found).encode()
            if self._timestamp is not None:
                ts_us = _microseconds(fields.get(self._timestamp), self._arrival_us)
        return Record(0, offset, key, line, ts_us)


def _fields(line: bytes) -> dict[str, object]:
    """The line's object; empty where it is none: what is wrong with it is for the decoder to say."""
    try:
        document = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _microseconds(found: object, otherwise: int) -> int:
    try:
        if isinstance(found, (int, float)) and not isinstance(found, bool):
            return number_us(found)
        return text_us(found) if isinstance(found, str) else otherwise
    except (ValueError, OverflowError):
        return otherwise
