"""How do the bytes of a fetch become records without a detour?

kafka-python builds two objects for each message, one of 13 fields; that costs more than decoding and checking it. The
decoder here goes over the bytes of a batch once and makes one Record each. Checksums, aborted transactions and control
batches stay kafka-python's: only the reading of records is replaced, in one consumer.
"""

from collections.abc import Iterator
from typing import Any

from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError

from streaming.source.compression import uncompress
from streaming.source.records import Header, Record

MOST_RECORDS = 1_000_000
"""Of one batch: a record takes 7 bytes of a batch and hundreds of ours."""
_READ_COMMITTED = 1
_VARINT_BITS = 70


def read_flat(consumer: Any) -> None:
    """Let a KafkaConsumer deliver Records from now on; its other clients in this process are not touched."""
    consumer._fetcher.PartitionRecords = _FlatRecords  # noqa: SLF001 - the one seam that the client leaves


class _FlatRecords(Fetcher.PartitionRecords):  # type: ignore[misc]  # kafka-python is untyped
    """What is left to hand over of one partition's fetch; `next_fetch_offset` follows what was handed over."""

    def _unpack_records(self, tp: Any, records: Any, _key: None, _value: None) -> Iterator[Record]:
        last = None
        while (batch := records.next_batch()) is not None:
            last = batch
            if batch.magic != 2:
                raise CorruptRecordError(f"{tp} holds message format v{batch.magic}; v2 is the only one read")
            if self.check_crcs and not batch.validate_crc():
                raise CorruptRecordError(f"a batch of {tp} at offset {batch.base_offset} failed its checksum")
            self.leader_epoch = batch.leader_epoch
            if not self._is_visible(batch):
                self.next_fetch_offset = batch.next_offset
                continue
            for record in decode_batch(batch, tp.partition):
                self.records_read += 1
                self.next_fetch_offset = record.offset + 1
                yield record
            self.bytes_read += batch.size_in_bytes
        if last is not None:
            # The end of the last batch, even where compaction took its last record.
            self.next_fetch_offset = last.next_offset
        self.drain()

    def _is_visible(self, batch: Any) -> bool:
        """Whether the batch holds records for this reader; keeps track of the aborted transactions on the way."""
        if self.isolation_level == _READ_COMMITTED and batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return False
        return not batch.is_control_batch


def decode_batch(batch: Any, partition: int) -> list[Record]:
    """All records of one batch (format v2), in order. Raises CorruptRecordError where the bytes make no sense.

    A header key that is not UTF-8 is read with replacement characters: it must not stop its neighbours.
    """
    if batch.records_count > MOST_RECORDS:
        raise CorruptRecordError(
            f"the batch at offset {batch.base_offset} has {batch.records_count} records, at most {MOST_RECORDS}"
        )
    uncompress(batch)
    data, at = bytes(batch._buffer), batch._pos  # noqa: SLF001
    append_ms = batch.max_timestamp if batch.timestamp_type == 1 else None
    try:
        records, end = _decode(
            data, at, batch.records_count, partition, batch.base_offset, batch.first_timestamp, append_ms
        )
    except IndexError as error:
        raise CorruptRecordError(f"the batch at offset {batch.base_offset} ends within a record") from error
    if end != len(data):
        raise CorruptRecordError(f"{len(data) - end} bytes after the last record of the batch at {batch.base_offset}")
    return records


def _decode(  # noqa: C901 - its varints are unrolled
    data: bytes, pos: int, count: int, partition: int, base: int, first_ms: int, append_ms: int | None
) -> tuple[list[Record], int]:
    # One loop with its five varints unrolled: a call each would double its time.
    records: list[Record] = []
    add = records.append
    append_us = None if append_ms is None else append_ms * 1000
    for _ in range(count):
        byte = data[pos]
        pos += 1
        raw, shift = byte & 0x7F, 7
        while byte & 0x80:
            byte = data[pos]
            pos += 1
            raw |= (byte & 0x7F) << shift
            shift += 7
            if shift > _VARINT_BITS:
                raise CorruptRecordError("a record with a number that does not end")
        end = pos + (raw >> 1)
        pos += 1  # the record's attributes: none are defined
        byte = data[pos]
        pos += 1
        raw, shift = byte & 0x7F, 7
        while byte & 0x80:
            byte = data[pos]
            pos += 1
            raw |= (byte & 0x7F) << shift
            shift += 7
            if shift > _VARINT_BITS:
                raise CorruptRecordError("a record with a number that does not end")
        ts_us = (first_ms + ((raw >> 1) ^ -(raw & 1))) * 1000 if append_us is None else append_us
        byte = data[pos]
        pos += 1
        raw, shift = byte & 0x7F, 7
        while byte & 0x80:
            byte = data[pos]
            pos += 1
            raw |= (byte & 0x7F) << shift
            shift += 7
            if shift > _VARINT_BITS:
                raise CorruptRecordError("a record with a number that does not end")
        offset = base + (raw >> 1)
        byte = data[pos]
        pos += 1
        raw, shift = byte & 0x7F, 7
        while byte & 0x80:
            byte = data[pos]
            pos += 1
            raw |= (byte & 0x7F) << shift
            shift += 7
            if shift > _VARINT_BITS:
                raise CorruptRecordError("a record with a number that does not end")
        if raw & 1:
            key = None
        else:
            key = data[pos : pos + (raw >> 1)]
            pos += raw >> 1
        byte = data[pos]
        pos += 1
        raw, shift = byte & 0x7F, 7
        while byte & 0x80:
            byte = data[pos]
            pos += 1
            raw |= (byte & 0x7F) << shift
            shift += 7
            if shift > _VARINT_BITS:
                raise CorruptRecordError("a record with a number that does not end")
        if raw & 1:
            value = None
        else:
            value = data[pos : pos + (raw >> 1)]
            pos += raw >> 1
        headers: tuple[Header, ...] = ()
        if data[pos]:
            headers, pos = _headers(data, pos)
        else:
            pos += 1
        if pos != end:
            raise CorruptRecordError(f"the record at offset {offset} says it ends at byte {end}, but ends at {pos}")
        add(Record(partition, offset, key, value, ts_us, headers))
    return records, pos


def _headers(data: bytes, pos: int) -> tuple[tuple[Header, ...], int]:
    count, pos = _varint(data, pos)
    if count < 0:
        raise CorruptRecordError(f"a record with {count} headers")
    headers: list[Header] = []
    for _ in range(count):
        size, pos = _varint(data, pos)
        if size < 0:
            raise CorruptRecordError(f"a header key of {size} bytes")
        name = data[pos : pos + size].decode("utf-8", "replace")
        pos += size
        size, pos = _varint(data, pos)
        value = None if size < 0 else data[pos : pos + size]
        pos += max(size, 0)
        headers.append((name, value))
    return tuple(headers), pos


def _varint(data: bytes, pos: int) -> tuple[int, int]:
    """A zig-zag varint and the position after it.

    >>> _varint(bytes([0x03, 0xAC, 0x02]), 0), _varint(bytes([0x03, 0xAC, 0x02]), 1)
    ((-2, 1), (150, 3))
    """
    raw, shift = 0, 0
    while True:
        byte = data[pos]
        pos += 1
        raw |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return (raw >> 1) ^ -(raw & 1), pos
        shift += 7
        if shift > _VARINT_BITS:
            raise CorruptRecordError("a header with a number that does not end")
