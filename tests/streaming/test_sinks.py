"""Is every offset in a sink's files once its cursor says so, and in none before?"""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from featurestore.offline.event_log import OFFSET, read_events, stored_ranges
from streaming.pipeline import TopicPipeline
from streaming.rehearsal import START_US, TOPIC, shop_contract, shop_event, shop_plan
from streaming.sinks import EventLog, Quarantine, RangeSink, SinkUnavailable
from streaming.source.records import Batch, Record, TopicPartition
from validation.quarantine import read_quarantine
from validation.whole_file import replace_file

PARTITION = TopicPartition(TOPIC, "id-1", 0)
PIPELINE = TopicPipeline(tuple(shop_plan().views.values()), shop_contract())


class Clock:
    def __init__(self):
        self.now_us = START_US

    def __call__(self):
        return self.now_us


@pytest.fixture
def clock():
    return Clock()


def judged(first, last, *, broken=()):
    """Offsets `first` to before `last`; those in `broken` are set aside."""
    records = tuple(
        Record(
            0,
            offset,
            b"1",
            b"torn" if offset in broken else shop_event(random.Random(offset), offset, START_US, 9),
            START_US,
        )
        for offset in range(first, last)
    )
    return PIPELINE.judge(Batch(TOPIC, "id-1", 0, records, first, last))


def event_log(folder, clock, **options):
    return RangeSink(EventLog(folder), clock, **options)


def offsets(folder):
    return sorted(read_events(folder / TOPIC, schema=PIPELINE.event_schema)[OFFSET].to_pylist())


def test_nothing_is_stored_before_it_is_due(place, clock):
    """Buffered events are in no file, and the cursor says so."""
    sink = event_log(place, clock)
    assert sink.open(PARTITION, 0) == 0
    sink.add(judged(0, 10))
    sink.flush_due()
    assert (sink.cursor(PARTITION), offsets(place)) == (None, [])


@pytest.mark.parametrize("due", ["rows", "age", "asked"])
def test_a_flush_moves_the_cursor_past_what_it_stored(place, clock, due):
    """By rows, by age, or at the end: the next life goes on behind it."""
    sink = event_log(place, clock, flush_rows=10 if due == "rows" else 11, flush_age_us=1_000)
    sink.open(PARTITION, 0)
    sink.add(judged(0, 10))
    if due == "age":
        clock.now_us += 1_000
    if due == "asked":
        sink.flush(PARTITION)
    else:
        sink.flush_due()
    assert offsets(place) == list(range(10))
    assert event_log(place, clock).open(PARTITION, 0) == 10


def test_one_file_at_a_time_and_none_later_than_twice_its_time(place, clock):
    """Events wait for one file; with more partitions than rounds, what is due twice over is stored all the same."""
    sink = event_log(place, clock, flush_rows=1_000, flush_age_us=1_000)
    partitions = [TopicPartition(TOPIC, "id-1", number) for number in range(4)]
    for partition in partitions:
        sink.open(partition, 0)
        clock.now_us += 1
        batch = msgspec.structs.replace(judged(0, 5).batch, partition=partition.partition)
        sink.add(msgspec.structs.replace(judged(0, 5), batch=batch))

    def stored():
        return [partition.partition for partition in partitions if sink.cursor(partition) == 5]

    sink.flush_due()
    assert stored() == []
    clock.now_us += 1_000
    sink.flush_due()
    assert stored() == [0]
    sink.flush_due()
    assert stored() == [0, 1]
    clock.now_us += 1_000
    sink.flush_due()
    assert stored() == [0, 1, 2, 3]


def test_a_sink_skips_what_it_has(place, clock):
    """A replay from a lower offset adds only what is new."""
    sink = event_log(place, clock)
    sink.open(PARTITION, 0)
    sink.add(judged(0, 10))
    sink.flush(PARTITION)
    later = event_log(place, clock)
    assert later.open(PARTITION, 0) == 10
    later.add(judged(0, 8))
    later.add(judged(8, 15))
    later.flush(PARTITION)
    assert offsets(place) == list(range(15))
    assert [(each.first, each.last) for each in stored_ranges(place / TOPIC)] == [(0, 9), (10, 14)]


def test_the_files_alone_tell_the_cursor(place, clock):
    """The hint may be lost, torn or behind: names are enough."""
    sink = event_log(place, clock)
    sink.open(PARTITION, 0)
    sink.add(judged(0, 10))
    sink.flush(PARTITION)
    [hint] = (place / TOPIC / "_cursors").iterdir()
    for content in ("", "7", None):
        hint.unlink() if content is None else replace_file(hint, content.encode())
        assert event_log(place, clock).cursor(PARTITION) == 10


def test_ranges_with_nothing_to_store_are_not_replayed_and_leave_no_gap(place, clock):
    """A quarantine that stays empty moves its cursor all the same; its next file covers the silence."""
    sink = RangeSink(Quarantine(place, {TOPIC: shop_contract()}), clock)
    sink.open(PARTITION, 0)
    sink.add(judged(0, 10, broken=[3]))
    sink.flush(PARTITION)
    sink.add(judged(10, 50))
    sink.flush(PARTITION)
    later = RangeSink(Quarantine(place, {TOPIC: shop_contract()}), clock)
    assert later.open(PARTITION, 0) == 50
    later.add(judged(50, 60, broken=[55]))
    later.flush(PARTITION)
    names = sorted(path.name for path in (place / TOPIC).glob("*.parquet"))
    assert names == ["id-1-0-0-9.parquet", "id-1-0-10-59.parquet"]
    assert read_quarantine(place)["offset"].to_pylist() == [3, 55]


def test_a_full_disk_stores_nothing_and_loses_nothing(place, clock):
    """The cursor stays; what was buffered is read again."""

    class Full(EventLog, frozen=True):
        def store(self, partition, batches, first, last):
            raise OSError(28, "No space left on device")

    sink = RangeSink(Full(place), clock)
    sink.open(PARTITION, 0)
    sink.add(judged(0, 10))
    with pytest.raises(SinkUnavailable, match="No space left"):
        sink.flush(PARTITION)
    assert sink.cursor(PARTITION) is None
    assert event_log(place, clock).open(PARTITION, 0) == 0


def test_a_rejected_event_is_kept_whole_with_its_reason(place, clock):
    """Enough to repair and replay it, and to tell its producer."""
    sink = RangeSink(Quarantine(place, {TOPIC: shop_contract()}), clock)
    sink.open(PARTITION, 0)
    sink.add(judged(0, 3, broken=[1]))
    sink.flush(PARTITION)
    [row] = read_quarantine(place).to_pylist()
    assert (row["row"], row["key"], row["reason"], row["offset"], row["origin"]) == (
        b"torn",
        b"1",
        "malformed",
        1,
        TOPIC,
    )
    assert (row["contract"], row["contract_version"], row["attempt"]) == (TOPIC, "1.0.0", 1)


def test_a_record_without_a_possible_arrival_can_be_kept(place, clock):
    """Its time is no instant: quarantine keeps the rest of it."""
    sink = RangeSink(Quarantine(place, {}), clock)
    sink.open(PARTITION, 0)
    records = (Record(0, 0, None, b"torn", (2**63 - 1) * 1000),)
    sink.add(PIPELINE.judge(Batch(TOPIC, "id-1", 0, records, 0, 1)))
    sink.flush(PARTITION)
    [row] = read_quarantine(place).to_pylist()
    assert (row["row"], row["arrival"]) == (b"torn", None)


def test_a_closed_partition_is_forgotten(place, clock):
    """What another owner will replay is not stored here as well."""
    sink = event_log(place, clock)
    sink.open(PARTITION, 0)
    sink.add(judged(0, 10))
    sink.close(PARTITION)
    sink.flush(PARTITION)
    assert offsets(place) == []


class Slow(EventLog, frozen=True):
    """A disk that takes its time: nothing is stored before `go` is set; where it is full, nothing is at all."""

    go: threading.Event
    full: bool = False

    def store(self, partition, batches, first, last):
        assert self.go.wait(20)
        if self.full:
            raise OSError(28, "No space left on device")
        super().store(partition, batches, first, last)


@pytest.fixture
def writer():
    with ThreadPoolExecutor(1) as thread:
        yield thread


def test_no_event_waits_for_a_file(tmp_path, clock, writer):
    """The next ones are taken meanwhile, into the next range; a flush waits for both."""
    disk = Slow(tmp_path, threading.Event())
    sink = RangeSink(disk, clock, flush_rows=10, writer=writer)
    sink.open(PARTITION, 0)
    sink.add(judged(0, 10))
    sink.flush_due()
    sink.add(judged(10, 30))
    sink.flush_due()
    assert (sink.cursor(PARTITION), sink.behind(PARTITION)) == (None, 30)
    held = sink.size_bytes
    disk.go.set()
    sink.flush(PARTITION)
    assert held > sink.size_bytes == 0
    assert (sink.cursor(PARTITION), sink.behind(PARTITION)) == (30, 0)
    assert [(each.first, each.last) for each in stored_ranges(tmp_path / TOPIC)] == [(0, 9), (10, 29)]
    assert offsets(tmp_path) == list(range(30))


def test_what_the_writer_could_not_store_is_read_again(tmp_path, clock, writer):
    """It is told with the next look; the partition is opened again, where the files end."""
    disk = Slow(tmp_path, threading.Event(), full=True)
    sink = RangeSink(disk, clock, flush_rows=10, writer=writer)
    sink.open(PARTITION, 0)
    sink.add(judged(0, 10))
    sink.flush_due()
    sink.add(judged(10, 30))
    disk.go.set()
    writer.submit(int).result()
    with pytest.raises(SinkUnavailable, match="No space left"):
        sink.flush_due()
    sink.flush_all()
    assert (sink.cursor(PARTITION), offsets(tmp_path)) == (None, [])
    assert sink.open(PARTITION, 0) == 0


def test_a_partition_is_opened_behind_the_file_that_is_being_written(tmp_path, clock, writer):
    """Else its events would be read, and stored, twice."""
    disk = Slow(tmp_path, threading.Event())
    sink = RangeSink(disk, clock, flush_rows=10, writer=writer)
    sink.open(PARTITION, 0)
    sink.add(judged(0, 10))
    sink.flush_due()
    threading.Timer(0.2, disk.go.set).start()
    assert sink.open(PARTITION, 0) == 10


class OvertakenQuarantine(Quarantine):
    """Before a claim asks for the n-th time where it ends, whoever is taken for dead stores more."""

    meanwhile: list

    def cursor(self, partition):
        if self.meanwhile:
            self.meanwhile.pop()()
        return super().cursor(partition)


@pytest.mark.parametrize("before", [1, 2])
def test_what_another_stores_during_a_claim_is_told_from_our_own(place, clock, before):
    """A file is named by what is in it: the range after what the claim found, whatever is there by then."""
    other = RangeSink(Quarantine(place, {}), clock)

    def stores(first, last):
        other.open(PARTITION, 0)
        other.add(judged(first, last, broken=range(first, last)))
        other.flush(PARTITION)

    stores(0, 10)
    meanwhile = [lambda: stores(10, 20), *[lambda: None] * (before - 1)]
    sink = RangeSink(OvertakenQuarantine(place, {}, meanwhile), clock)
    position = sink.open(PARTITION, 0)
    sink.add(judged(position, 20, broken=range(position, 20)))
    sink.flush(PARTITION)
    assert read_quarantine(place)["offset"].to_pylist() == list(range(20))
    assert sink.cursor(PARTITION) == 20
