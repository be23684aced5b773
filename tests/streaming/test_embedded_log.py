"""One partition's log: offsets, repetitions, transactions, and what a crash leaves of it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from streaming.embedded import sequences
from streaming.embedded.batches import read_header
from streaming.embedded.codes import ErrorCode
from streaming.embedded.log import Aborted, PartitionLog
from streaming.embedded.storage import FileStorage, MemoryStorage


def batch(
    *values: bytes,
    timestamp_ms: int = 1_000,
    producer_id: int = -1,
    epoch: int = -1,
    sequence: int = -1,
    transactional: bool = False,
) -> bytes:
    builder = MemoryRecordsBuilder(
        magic=2,
        compression_type=0,
        batch_size=1 << 20,
        transactional=transactional,
        producer_id=producer_id,
        producer_epoch=epoch,
        base_sequence=sequence,
    )
    for number, value in enumerate(values):
        builder.append(timestamp=timestamp_ms + number, key=None, value=value)
    builder.close()
    return bytes(builder.buffer())


def read_values(log: PartitionLog, offset: int = 0, *, committed: bool = False) -> list[bytes]:
    limit = log.stable_end if committed else log.end
    records = MemoryRecords(log.read(offset, 1 << 20, limit))
    found = []
    while one := records.next_batch():
        found += [record.value for record in one if not one.is_control_batch and record.offset >= offset]
    return found


def test_offsets_count_records() -> None:
    """A batch takes as many offsets as it has records."""
    log = PartitionLog(MemoryStorage())
    assert [log.append(batch(b"a", b"b")).base_offset, log.append(batch(b"c")).base_offset] == [0, 2]
    assert (log.end, read_values(log, 1)) == (3, [b"b", b"c"])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(1, 2_000), st.data())
def test_a_read_is_whole_batches_within_its_size(counts: list[int], room: int, data: st.DataObject) -> None:
    """From the batch that holds the offset; as many as fit and at least one; never beyond the limit."""
    log = PartitionLog(MemoryStorage())
    sizes, bases = [], []
    for count in counts:
        raw = batch(*[b"x" * 40] * count)
        bases.append(log.append(raw).base_offset)
        sizes.append(len(raw))
    limit = data.draw(st.sampled_from([*bases[1:], log.end]))
    offset = data.draw(st.integers(0, limit - 1))
    first = max(number for number, base in enumerate(bases) if base <= offset)
    wanted = 0
    for number in range(first, len(bases)):
        if bases[number] >= limit or (wanted and wanted + sizes[number] > room):
            break
        wanted += sizes[number]
    got = log.read(offset, room, limit)
    assert len(got) == wanted
    assert read_header(got).base_offset == bases[first]


def test_a_repeated_batch_is_answered_with_its_first_offset() -> None:
    """An idempotent producer that retries writes once."""
    log = PartitionLog(MemoryStorage())
    first = batch(b"a", b"b", producer_id=7, epoch=0, sequence=0)
    log.append(first)
    log.append(batch(b"c", producer_id=7, epoch=0, sequence=2))
    assert log.append(first) == (ErrorCode.NONE, 0)
    assert read_values(log) == [b"a", b"b", b"c"]


def test_a_lost_batch_is_noticed() -> None:
    """A gap in the sequence is refused: order would be lost."""
    log = PartitionLog(MemoryStorage())
    log.append(batch(b"a", producer_id=7, epoch=0, sequence=0))
    refused = log.append(batch(b"c", producer_id=7, epoch=0, sequence=2))
    assert refused.error is ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER


def test_an_old_epoch_is_fenced() -> None:
    """What a replaced producer still sends is refused."""
    log = PartitionLog(MemoryStorage())
    log.append(batch(b"a", producer_id=7, epoch=1, sequence=0))
    refused = log.append(batch(b"b", producer_id=7, epoch=0, sequence=0))
    assert refused.error is ErrorCode.INVALID_PRODUCER_EPOCH


def test_a_broker_without_sequences_would_write_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: the tests above do see repetitions."""
    monkeypatch.setattr(sequences.Sequences, "judge", lambda self, header: (ErrorCode.NONE, None))
    log = PartitionLog(MemoryStorage())
    again = batch(b"a", producer_id=7, epoch=0, sequence=0)
    log.append(again)
    log.append(again)
    assert read_values(log) == [b"a", b"a"]


@pytest.mark.parametrize(
    "spoil", [lambda raw: raw[:-1], lambda raw: raw[:-1] + b"\xff", lambda raw: b"", lambda raw: b"x"]
)
def test_damaged_batches_are_refused(spoil: object) -> None:
    """Cut short, a flipped byte, nothing, rubbish: nothing is written."""
    log = PartitionLog(MemoryStorage())
    assert callable(spoil)
    assert log.append(spoil(batch(b"abc"))).error in (ErrorCode.CORRUPT_MESSAGE, ErrorCode.INVALID_RECORD)
    assert log.end == 0


def test_committed_readers_stop_at_the_oldest_open_transaction() -> None:
    """Its end frees what lies behind it."""
    log = PartitionLog(MemoryStorage())
    log.append(batch(b"t", producer_id=7, epoch=0, sequence=0, transactional=True))
    log.append(batch(b"plain"))
    assert (log.stable_end, read_values(log, committed=True)) == (0, [])
    log.end_transaction(7, 0, 5_000, commit=True)
    assert (log.stable_end, log.end) == (3, 3)
    assert log.aborted_from(0, log.end) == []


def test_aborted_transactions_are_listed_where_they_matter() -> None:
    """With the first offset and the marker; not beyond."""
    log = PartitionLog(MemoryStorage())
    log.append(batch(b"plain"))
    log.append(batch(b"t", producer_id=7, epoch=0, sequence=0, transactional=True))
    log.end_transaction(7, 0, 5_000, commit=False)
    log.append(batch(b"later"))
    gone = Aborted(7, 1, 2)
    assert [log.aborted_from(0, 4), log.aborted_from(2, 4), log.aborted_from(3, 4), log.aborted_from(0, 1)] == [
        [gone], [gone], [], [],
    ]  # fmt: skip


def test_offsets_are_found_by_time() -> None:
    """The first record not older, even where times do not ascend."""
    log = PartitionLog(MemoryStorage())
    log.append(batch(b"a", b"b", timestamp_ms=1_000))
    log.append(batch(b"c", timestamp_ms=500))
    log.append(batch(b"d", timestamp_ms=2_000))
    assert [log.at_time(ts) for ts in (0, 1_001, 1_500, 2_001)] == [(0, 1_000), (1, 1_001), (3, 2_000), None]
    assert log.newest() == (3, 2_000)


def test_append_time_replaces_the_producers() -> None:
    """And the batch stays sound."""
    log = PartitionLog(MemoryStorage())
    log.append(batch(b"a", timestamp_ms=5), append_time_ms=9_000)
    one = MemoryRecords(log.read(0, 1 << 20, log.end)).next_batch()
    assert one.validate_crc()
    assert [record.timestamp for record in one] == [9_000]


def test_a_log_on_disk_is_found_again(tmp_path: Path) -> None:
    """Records, repetitions, open and aborted transactions: all of it is in the batches."""
    log = PartitionLog(FileStorage(tmp_path / "0.log"))
    first = batch(b"a", producer_id=7, epoch=0, sequence=0, transactional=True)
    log.append(first)
    log.end_transaction(7, 0, 5_000, commit=False)
    log.append(batch(b"b", producer_id=7, epoch=0, sequence=1, transactional=True))
    log.close()
    again = PartitionLog(FileStorage(tmp_path / "0.log"))
    assert (again.end, again.stable_end, again.open_producers()) == (3, 2, [7])
    assert again.aborted_from(0, 3) == [Aborted(7, 0, 1)]
    assert again.append(batch(b"b", producer_id=7, epoch=0, sequence=1, transactional=True)) == (ErrorCode.NONE, 2)
    again.close()


@given(cut=st.integers(1, 200))
def test_a_crash_in_a_write_loses_only_that_write(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """Wherever the file was cut, the whole batches before it are kept and writing goes on after them."""
    path = tmp_path_factory.mktemp("log") / "0.log"
    log = PartitionLog(FileStorage(path))
    values = [b"%d" % number for number in range(3)]
    ends = []
    for value in values:
        log.append(batch(value))
        ends.append(path.stat().st_size)
    log.close()
    size = max(0, ends[-1] - cut)
    with path.open("r+b") as file:
        file.truncate(size)
    again = PartitionLog(FileStorage(path))
    whole = sum(end <= size for end in ends)
    assert read_values(again) == values[:whole]
    assert again.append(batch(b"new")).base_offset == whole
    assert read_values(again) == [*values[:whole], b"new"]
    again.close()
