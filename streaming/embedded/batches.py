"""What does a record batch say about itself, and how is one stamped, checked and ended?

Only the 61 bytes of a batch's header are read and written here (message format v2); records inside stay compressed as
the producer sent them.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from crc32c import crc32c
from kafka.record import MemoryRecords

_HEADER = struct.Struct(">qiibIhiqqqhii")
_FIXED = _HEADER.size
_LENGTH_AT, _EPOCH_AT, _CRC_AT, _ATTRIBUTES_AT, _MAX_TIMESTAMP_AT = 8, 12, 17, 21, 35
_APPEND_TIME, _TRANSACTIONAL, _CONTROL = 0x08, 0x10, 0x20


class CorruptBatch(ValueError):
    """Bytes that are no record batch, or whose checksum does not agree."""


class OldFormat(ValueError):
    """A batch older than message format v2 (Kafka 0.11)."""


class Header(NamedTuple):
    """The header of one batch, as far as the broker cares. Times are milliseconds; -1 means none."""

    base_offset: int
    size_bytes: int
    attributes: int
    last_delta: int
    max_timestamp_ms: int
    producer_id: int
    producer_epoch: int
    base_sequence: int

    @property
    def transactional(self) -> bool:
        """Part of a transaction: readers of committed records wait for its end."""
        return bool(self.attributes & _TRANSACTIONAL)

    @property
    def control(self) -> bool:
        """The marker that ends a transaction; no client sees it as a record."""
        return bool(self.attributes & _CONTROL)


def read_header(data: bytes | bytearray, at: int = 0) -> Header:
    """The header at byte `at`. Raises CorruptBatch when the bytes end before the batch does, OldFormat."""
    if len(data) - at < _FIXED:
        raise CorruptBatch(f"a batch header has {_FIXED} bytes, found {len(data) - at}")
    (base, length, _, magic, _, attributes, last_delta, _, newest, producer, epoch, sequence, _) = _HEADER.unpack_from(
        data, at
    )
    if magic != 2:
        raise OldFormat(f"message format v{magic}; v2 is the only one kept")
    size = length + 12
    if size < _FIXED:
        raise CorruptBatch(f"a batch of {size} bytes")
    return Header(base, size, attributes, last_delta, newest, producer, epoch, sequence)


def checked(data: bytes | bytearray, at: int, header: Header) -> bytearray:
    """A copy of the batch at byte `at`. Raises CorruptBatch when it is cut short or its checksum disagrees."""
    batch = bytearray(data[at : at + header.size_bytes])
    if len(batch) < header.size_bytes:
        raise CorruptBatch(f"a batch of {header.size_bytes} bytes was cut after {len(batch)}")
    (stated,) = struct.unpack_from(">I", batch, _CRC_AT)
    if crc32c(memoryview(batch)[_ATTRIBUTES_AT:]) != stated:
        raise CorruptBatch("checksum mismatch")
    return batch


def split(data: bytes) -> Iterator[tuple[Header, bytearray]]:
    """The batches that a producer sent together. Raises CorruptBatch, OldFormat."""
    at = 0
    while at < len(data):
        header = read_header(data, at)
        yield header, checked(data, at, header)
        at += header.size_bytes


def place(batch: bytearray, offset: int, append_time_ms: int | None) -> None:
    """Give the batch its offset, and where a time is given, that time in place of the producer's."""
    struct.pack_into(">q", batch, 0, offset)
    struct.pack_into(">i", batch, _EPOCH_AT, 0)
    if append_time_ms is not None:
        (attributes,) = struct.unpack_from(">h", batch, _ATTRIBUTES_AT)
        struct.pack_into(">h", batch, _ATTRIBUTES_AT, attributes | _APPEND_TIME)
        struct.pack_into(">q", batch, _MAX_TIMESTAMP_AT, append_time_ms)
        struct.pack_into(">I", batch, _CRC_AT, crc32c(memoryview(batch)[_ATTRIBUTES_AT:]))


def marker(producer_id: int, producer_epoch: int, now_ms: int, *, commit: bool) -> bytearray:
    """The control batch that ends a transaction in one partition.

    >>> header = read_header(marker(7, 0, 1_000, commit=False))
    >>> header.control, header.transactional, header.producer_id
    (True, True, 7)
    """
    # attributes, timestamp delta, offset delta; key: version 0 and type; value: version 0 and coordinator epoch 0
    record = b"\0\0\0" + b"\x08" + struct.pack(">hh", 0, int(commit)) + b"\x0c" + struct.pack(">hi", 0, 0) + b"\0"
    records = bytes([len(record) * 2]) + record
    attributes = _TRANSACTIONAL | _CONTROL
    body = struct.pack(">hiqqqhii", attributes, 0, now_ms, now_ms, producer_id, producer_epoch, -1, 1) + records
    head = struct.pack(">qiibI", 0, 9 + len(body), 0, 2, crc32c(body))
    return bytearray(head + body)


def ends_in_abort(batch: bytes | bytearray) -> bool:
    """Whether a control batch aborts its transaction."""
    return bool(next(MemoryRecords(bytes(batch)).next_batch()).abort)


def first_at_or_after(batch: bytes, timestamp_ms: int) -> tuple[int, int] | None:
    """Offset and time (ms) of the batch's first record that is not older than `timestamp_ms`."""
    for record in MemoryRecords(batch).next_batch():
        if record.timestamp >= timestamp_ms:
            return record.offset, record.timestamp
    return None
