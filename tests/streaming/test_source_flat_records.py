"""The flat decoder against kafka-python's own, byte for byte."""

import contextlib
import struct
from typing import Any

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import FetchResponse
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder
from kafka.structs import TopicPartition

from streaming.embedded.batches import marker, place
from streaming.source.flat_records import _FlatRecords, decode_batch

NONE, GZIP, LZ4 = 0, 1, 3
TP = TopicPartition("t", 5)
Aborted = FetchResponse.FetchableTopicResponse.PartitionData.AbortedTransaction

blobs = st.none() | st.binary(max_size=200)
headers = st.lists(st.tuples(st.text(max_size=70), blobs), max_size=3)
messages = st.lists(st.tuples(blobs, blobs, st.integers(0, 2**41), headers), min_size=1, max_size=80)


def build(rows: list[Any], *, codec: int = NONE, producer_id: int = -1, base: int = 0, sequence: int = 0) -> bytearray:
    """A batch of (key, value, time in ms, headers)."""
    builder = MemoryRecordsBuilder(
        magic=2,
        compression_type=codec,
        batch_size=1 << 24,
        transactional=producer_id >= 0,
        producer_id=producer_id,
        producer_epoch=0 if producer_id >= 0 else -1,
        base_sequence=sequence if producer_id >= 0 else -1,
    )
    for key, value, timestamp_ms, found in rows:
        builder.append(timestamp=timestamp_ms, key=key, value=value, headers=found)
    builder.close()
    batch = bytearray(builder.buffer())
    place(batch, base, None)
    return batch


def unpack(kind: type, data: bytes, offset: int, aborted: list[Any] | None, polls: int) -> tuple[list[Any], list[int]]:
    """All records that a fetch from `offset` delivers in polls of that size, and the position after each poll."""
    left = kind(offset, TP, MemoryRecords(data), isolation_level=1, aborted_transactions=aborted)
    records, positions = [], []
    while left:
        records += left.take(polls)
        positions.append(left.next_fetch_offset)
    return records, positions


def same(data: bytes, offset: int = 0, aborted: list[Any] | None = None, polls: int = 7) -> None:
    ours, our_positions = unpack(_FlatRecords, data, offset, aborted, polls)
    theirs, their_positions = unpack(Fetcher.PartitionRecords, data, offset, aborted, polls)
    assert [(r.partition, r.offset, r.key, r.value, r.timestamp_us, list(r.headers)) for r in ours] == [
        (r.partition, r.offset, r.key, r.value, r.timestamp * 1000, r.headers) for r in theirs
    ]
    assert our_positions == their_positions


@given(messages, st.sampled_from([NONE, GZIP, LZ4]), st.integers(0, 80), st.integers(1, 100))
def test_every_batch_reads_the_same(rows: list[Any], codec: int, offset: int, polls: int) -> None:
    """Keys, values, times, headers, offsets and positions, from any offset, in polls of any size."""
    same(bytes(build(rows, codec=codec)), min(offset, len(rows) - 1), polls=polls)


@given(messages, st.integers(0, 2**41))
def test_append_time_reads_the_same(rows: list[Any], append_ms: int) -> None:
    """With LogAppendTime all records of a batch carry the batch's time."""
    batch = build(rows)
    place(batch, 0, append_ms)
    same(bytes(batch))


@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from([-1, 7, 8]), st.booleans()), min_size=1, max_size=8))
def test_transactions_read_the_same(plan: list[tuple[int, int, bool]]) -> None:
    """Plain, committed and aborted batches and their markers, mixed: the same records, the same positions."""
    data, base, aborted = b"", 0, []
    for number, (count, producer_id, commit) in enumerate(plan):
        rows = [(None, b"%d" % number, 5, [])] * count
        data += bytes(build(rows, producer_id=producer_id, base=base))
        if producer_id >= 0:
            if not commit:
                aborted.append(Aborted(producer_id=producer_id, first_offset=base))
            end = marker(producer_id, 0, 5, commit=commit)
            place(end, base + count, None)
            data += bytes(end)
            base += 1
        base += count
    same(data, aborted=aborted, polls=3)


def test_a_header_that_is_not_utf8_does_not_stop_its_neighbours() -> None:
    """kafka-python would refuse the whole batch for ever."""
    batch = build([(None, b"a", 5, [("hh", b"x")]), (None, b"b", 5, [])])
    batch[batch.index(b"hh")] = 0xFF
    struct.pack_into(">I", batch, 17, crc32c(memoryview(batch)[21:]))
    records, _ = unpack(_FlatRecords, bytes(batch), 0, None, 10)
    assert [(record.value, record.headers) for record in records] == [(b"a", (("\ufffdh", b"x"),)), (b"b", ())]
    with pytest.raises(CorruptRecordError):
        unpack(Fetcher.PartitionRecords, bytes(batch), 0, None, 10)


@given(messages, st.integers(0), st.integers(1, 255))
def test_a_flipped_byte_never_passes(rows: list[Any], where: int, flip: int) -> None:
    """The checksum is still looked at."""
    batch = build(rows)
    batch[21 + where % (len(batch) - 21)] ^= flip
    with pytest.raises(CorruptRecordError):
        unpack(_FlatRecords, bytes(batch), 0, None, 10)


@given(messages, st.integers(0), st.integers(1, 255))
def test_nonsense_under_a_right_checksum_is_an_error_not_a_crash(rows: list[Any], where: int, flip: int) -> None:
    """A producer's bug: either records or CorruptRecordError, nothing else."""
    raw = build(rows)
    raw[61 + where % (len(raw) - 61)] ^= flip
    batch = MemoryRecords(bytes(raw)).next_batch()
    with contextlib.suppress(CorruptRecordError):
        decode_batch(batch, 0)
