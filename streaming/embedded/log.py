"""What does one partition hold, and what may be read of it?"""

import asyncio
from bisect import bisect_left, bisect_right
from typing import NamedTuple

from streaming.embedded import batches
from streaming.embedded.batches import Header
from streaming.embedded.codes import ErrorCode
from streaming.embedded.sequences import Sequences
from streaming.embedded.storage import Storage


class Appended(NamedTuple):
    """What became of a produce request in one partition; `base_offset` is -1 with an error."""

    error: ErrorCode
    base_offset: int


class Aborted(NamedTuple):
    """One aborted transaction: its records lie in `[first_offset, last_offset]`, the marker last."""

    producer_id: int
    first_offset: int
    last_offset: int


class PartitionLog:
    """An append-only log of record batches, indexed by offset and time.

    Opening one over storage that holds batches recovers everything from them: offsets, producers, transactions left
    open. A batch that was cut short by a crash ends the log there: it was never acknowledged.
    """

    def __init__(self, storage: Storage, *, beginning: int = 0) -> None:
        self.end = 0
        self.beginning = beginning
        self.watchers: set[asyncio.Event] = set()
        self._storage = storage
        self._bases: list[int] = []
        self._starts: list[int] = []
        self._newest_ms: list[int] = []  # running maximum, so that it can be searched
        self._sequences = Sequences()
        self._open: dict[int, int] = {}
        self._aborted: list[Aborted] = []
        self._recover()

    @property
    def stable_end(self) -> int:
        """Where readers of committed records must stop: the first offset of the oldest open transaction."""
        return min(self._open.values(), default=self.end)

    def append(self, data: bytes, *, append_time_ms: int | None = None) -> Appended:
        """Append the one batch that a producer sent; a repetition is answered with its first offset.

        `append_time_ms` replaces the producer's timestamps where the topic says so.
        """
        try:
            parts = list(batches.split(data))
        except batches.OldFormat:
            return Appended(ErrorCode.UNSUPPORTED_FOR_MESSAGE_FORMAT, -1)
        except batches.CorruptBatch:
            return Appended(ErrorCode.CORRUPT_MESSAGE, -1)
        if len(parts) != 1:
            return Appended(ErrorCode.INVALID_RECORD, -1)
        [(header, batch)] = parts
        if header.producer_id >= 0:
            error, before = self._sequences.judge(header)
            if error:
                return Appended(error, -1)
            if before is not None:
                return Appended(ErrorCode.NONE, before)
        offset = self.end
        batches.place(batch, offset, append_time_ms)
        self._write(batch, batches.read_header(batch))
        return Appended(ErrorCode.NONE, offset)

    def end_transaction(self, producer_id: int, producer_epoch: int, now_ms: int, *, commit: bool) -> None:
        """Write the marker that ends a producer's transaction here; it takes an offset of its own."""
        batch = batches.marker(producer_id, producer_epoch, now_ms, commit=commit)
        batches.place(batch, self.end, None)
        self._write(batch, batches.read_header(batch))

    def open_producers(self) -> list[int]:
        """Producers with a transaction open here."""
        return list(self._open)

    def read(self, offset: int, max_bytes: int, limit: int) -> bytes:
        """Whole batches from the one that holds `offset`, below `limit`; at least one, however large."""
        if offset >= limit:
            return b""
        first = max(bisect_right(self._bases, offset) - 1, 0)
        last = bisect_left(self._bases, limit)
        start = self._starts[first]
        # A batch starts where the one before ends: the greatest start that fits is the end of what fits.
        stop = bisect_right(self._starts, start + max_bytes, lo=first + 1, hi=last) - 1
        if self._end_of(last - 1) <= start + max_bytes:
            stop = last
        stop = max(stop, first + 1)
        return self._storage.read(start, self._end_of(stop - 1) - start)

    def aborted_from(self, offset: int, limit: int) -> list[Aborted]:
        """Aborted transactions that touch `[offset, limit)`: their records are in what `read` returns."""
        return [gone for gone in self._aborted if gone.last_offset >= offset and gone.first_offset < limit]

    def at_time(self, timestamp_ms: int) -> tuple[int, int] | None:
        """Offset and time (ms) of the first record not older than `timestamp_ms`, None where all are."""
        for number in range(bisect_left(self._newest_ms, timestamp_ms), len(self._bases)):
            found = batches.first_at_or_after(self._batch(number), timestamp_ms)
            if found and found[0] >= self.beginning:
                return found
        return None

    def newest(self) -> tuple[int, int] | None:
        """Offset and time (ms) of the record with the greatest time."""
        return self.at_time(self._newest_ms[-1]) if self._newest_ms else None

    def delete_before(self, offset: int) -> None:
        """Let no one read below `offset`. The bytes stay where they are."""
        self.beginning = max(self.beginning, min(offset, self.end))

    def close(self) -> None:
        """Close the storage."""
        self._storage.close()

    def _write(self, batch: bytearray, header: Header) -> None:
        self._storage.append(batch)
        self._index(header, batch)
        for watcher in self.watchers:
            watcher.set()

    def _index(self, header: Header, batch: bytes | bytearray) -> None:
        self._bases.append(header.base_offset)
        self._starts.append(self._storage.size - header.size_bytes)
        newest = self._newest_ms[-1] if self._newest_ms else -1
        self._newest_ms.append(max(newest, header.max_timestamp_ms))
        self.end = header.base_offset + header.last_delta + 1
        if header.producer_id < 0:
            return
        self._sequences.note(header, header.base_offset)
        if header.control:
            first = self._open.pop(header.producer_id, None)
            if first is not None and batches.ends_in_abort(batch):
                self._aborted.append(Aborted(header.producer_id, first, header.base_offset))
        elif header.transactional:
            self._open.setdefault(header.producer_id, header.base_offset)

    def _recover(self) -> None:
        size, at = self._storage.size, 0
        self._storage.size = 0
        while at < size:
            head = self._storage.read(at, min(61, size - at))
            try:
                header = batches.read_header(head)
                batch = batches.checked(self._storage.read(at, header.size_bytes), 0, header)
            except batches.CorruptBatch:
                break
            at += header.size_bytes
            self._storage.size = at
            self._index(header, batch)
        if at < size:
            self._storage.cut(at)

    def _end_of(self, number: int) -> int:
        return self._starts[number + 1] if number + 1 < len(self._starts) else self._storage.size

    def _batch(self, number: int) -> bytes:
        return self._storage.read(self._starts[number], self._end_of(number) - self._starts[number])
