"""Do event log and quarantine hold each offset once in an object store, and does everybody read them from there?"""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from featurestore.dataset.identity import identify
from featurestore.offline.compaction import compact, read_bucket
from featurestore.offline.connection import Limits, connection
from featurestore.offline.event_log import OFFSET, event_files, next_offset, read_events, stored_ranges, write_events
from featurestore.offline.history import historical_features
from featurestore.offline.sources import scan_parquet
from featurestore.plan import Projection
from streaming.log_replay import EventLogReplay
from streaming.pipeline import TopicPipeline
from streaming.rehearsal import START_US, TOPIC, shop_contract, shop_event, shop_plan
from streaming.sinks import EventLog, Quarantine, RangeSink
from streaming.source.records import Batch, Record, TopicPartition
from validation.place import place_of  # noqa: F401 - of the processes that are killed
from validation.quarantine import Origin, QuarantineSink, Rejected, read_quarantine
from validation.quarantine_compaction import compact_quarantine
from validation.replay import counts, discard
from validation.whole_file import replace_file

PARTITION = TopicPartition(TOPIC, "id-1", 0)
ENTRIES = 300
PIPELINE = TopicPipeline(tuple(shop_plan().views.values()), shop_contract())


def judged(first, last):
    """Offsets `first` to before `last`; every seventh is set aside."""
    records = tuple(
        Record(0, each, b"1", shop_event(random.Random(each), each, START_US, 9) if each % 7 else b"torn", START_US)
        for each in range(first, last)
    )
    return PIPELINE.judge(Batch(TOPIC, "id-1", 0, records, first, last))


def consume(root):
    """One life of a worker's sinks: from the lowest cursor on to the topic's end."""
    found = [
        RangeSink(storage, lambda: START_US, flush_rows=10)
        for storage in (EventLog(root / "event_log"), Quarantine(root / "quarantine", {}))
    ]
    position = min(sink.open(PARTITION, 0) for sink in found)
    while position < ENTRIES:
        batch = judged(position, min(position + 7, ENTRIES))
        for sink in found:
            sink.add(batch)
            sink.flush_due()
        position = batch.batch.position_after
    for sink in found:
        sink.flush_all()


def killed_between_file_and_cursor(root):
    """Lives that end by kill -9 at the n-th move of a cursor; the last one reaches the end."""
    for number in (3, 1, 6, 2, 9):
        code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import streaming.sinks, test_object_store
left, moved = [{number}], streaming.sinks.hint_file
def hint_file(path, data):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    moved(path, data)
streaming.sinks.hint_file = hint_file
test_object_store.consume(test_object_store.place_of({str(root)!r}))
"""
        life = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=120)
        assert life.returncode == -signal.SIGKILL, life.stderr.decode()
    consume(root)


def all_is_there_once(root):
    events, kept = read_events(root / "event_log" / TOPIC), read_quarantine(root / "quarantine")
    offsets = [*events[OFFSET].to_pylist(), *kept["offset"].to_pylist()]
    assert sorted(offsets) == list(range(ENTRIES))
    assert len(kept) == len(range(0, ENTRIES, 7))


def test_kill_between_file_and_cursor_loses_and_doubles_nothing(in_bucket):
    """Accepted + quarantined = produced, whatever was put when the cursor had not moved."""
    killed_between_file_and_cursor(in_bucket)
    all_is_there_once(in_bucket)


def test_a_cursor_moved_before_its_file_is_caught(in_bucket, monkeypatch):
    """A planted fault: what was buffered when the process was killed is nowhere."""

    def flush(self, partition):
        buffer = self._buffers.get(partition)
        if buffer is not None and buffer.since_us is not None:
            self._move(partition, buffer.position)
            if buffer.first > 50:
                raise SystemExit
            self._storage.store(partition, buffer.batches, buffer.first, buffer.position - 1)
            buffer.first = buffer.moved = buffer.position
            buffer.batches, buffer.rows, buffer.size_bytes, buffer.since_us = [], 0, 0, None

    with monkeypatch.context() as patch:
        patch.setattr(RangeSink, "flush", flush)
        with pytest.raises(SystemExit):
            consume(in_bucket)
    consume(in_bucket)
    with pytest.raises(AssertionError):
        all_is_there_once(in_bucket)


def some_events(first, last, **more):
    rows = range(first, last)
    table = {
        OFFSET: pa.array(rows, pa.int64()),
        "_arrival": pa.array(
            [START_US + 30 * 3_600_000_000 * (each // 40) for each in rows], pa.timestamp("us", "UTC")
        ),
        "event_timestamp": pa.array([START_US + each for each in rows], pa.timestamp("us", "UTC")),
        "user_id": pa.array([each % 9 for each in rows], pa.int64()),
        "amount": pa.array([each / 4 for each in rows]),
    }
    return pa.table({**table, **{name: pa.array([value] * len(rows)) for name, value in more.items()}})


@pytest.fixture
def two(tmp_path, in_bucket):
    """The same log on a disk and in a bucket: overlapping ranges, several days, a column that came later."""
    logs = (tmp_path / "event_log" / TOPIC, in_bucket / "event_log" / TOPIC)
    for log in logs:
        for first in range(0, 200, 20):
            more = {"page": "late"} if first > 100 else {}
            write_events(
                log, some_events(first, first + 20, **more), topic_id="id-1", partition=0, first=first, last=first + 19
            )
        write_events(log, some_events(30, 50), topic_id="id-1", partition=0, first=30, last=49)
    return logs


def ordered(table):
    return sorted(table.to_pylist(), key=lambda row: row[OFFSET])


def names(log):
    return sorted(str(file.path.relative_to(log)) for file in event_files(log))


def as_sql(log, repo):
    scan = scan_parquet(str(log), repo=repo, name="log", columns=["page"])
    with connection(Limits()) as session:
        found = session.sql(f"SELECT * FROM {scan.register(session, 'rows')}").to_arrow_table()
    return {field.name: str(field.type) for field in scan.schema}, ordered(found)


def test_a_log_in_a_bucket_is_read_as_one_on_a_disk(two, tmp_path):
    """Files, ranges, cursors, rows, buckets of keys, and what SQL makes of them: before and after compaction."""
    disk, objects = two
    for _ in range(2):
        assert names(objects) == names(disk)
        assert stored_ranges(objects) == stored_ranges(disk)
        assert next_offset(objects, "id-1", 0) == next_offset(disk, "id-1", 0) == 200
        assert ordered(read_events(objects)) == ordered(read_events(disk))
        assert ordered(read_bucket(objects, "user_id", 1, 4)) == ordered(read_bucket(disk, "user_id", 1, 4))
        assert as_sql(objects, tmp_path) == as_sql(disk, tmp_path)
        done = [
            compact(log, key_column="user_id", fan_in=2, grace_s=0.0, now_s=time.time() + 60) for log in (disk, objects)
        ]
        assert done[0] == done[1]
    assert len(names(objects)) < 10


def test_views_are_joined_and_pinned_from_a_bucket(two, tmp_path):
    """Training reads the log where it is, windows included, and its identity is that of the same rows on a disk."""
    plan, rows = (
        shop_plan(),
        pa.table({"user_id": [1, 2, 8], "event_timestamp": pa.array([START_US + 150] * 3, pa.timestamp("us", "UTC"))}),
    )
    found, pinned = [], []
    for log in two:
        view = plan.view("user_orders")
        source = msgspec.structs.replace(view.source, path=str(log))
        there = msgspec.structs.replace(plan, views={"user_orders": msgspec.structs.replace(view, source=source)})
        features = tuple(field.name for field in view.features)
        found.append(historical_features(there, [Projection(view=view.name, features=features)], rows, repo=tmp_path))
        pinned.append(identify(source, tmp_path))
        replay = EventLogReplay(log, view)
        [stretch] = replay.stretches()
        found[-1] = found[-1].to_pylist(), [ordered(each.events) for each in replay.batches(stretch, 45)]
    assert found[0] == found[1]
    assert (pinned[0].ranges, pinned[0].rows_digest) == (pinned[1].ranges, pinned[1].rows_digest)


def test_rows_in_a_bucket_are_given_up_once(in_bucket):
    """The quarantine is compacted, read and decided upon there; a lock that an earlier version has left is none."""
    sink, origin = QuarantineSink(in_bucket, source="orders"), Origin(name="orders", id="id-1")
    for first in range(0, 40, 4):
        rows = [Rejected(offset=each, row=b"x", reason="malformed") for each in range(first, first + 4, 2)]
        assert sink.store(origin, first, first + 3, rows) is not None
    before = read_quarantine(in_bucket).to_pylist()
    assert compact_quarantine(sink.folder, fan_in=2, grace_s=0.0, now_s=time.time() + 60) == (1, 10)
    assert read_quarantine(in_bucket).to_pylist() == before
    assert sink.next_offset(origin) == 40
    replace_file(sink.folder / "attempts" / ".lock", b"host, process 7")
    assert discard(in_bucket, "orders", reason="test", now_us=START_US).discarded == 20
    assert discard(in_bucket, "orders", reason="test", now_us=START_US).discarded == 0
    assert counts(in_bucket, "orders") == {"quarantined": 20, "open": 0, "accepted": 0, "discarded": 20}


@pytest.mark.parametrize("before", ["take", "carried_out"])
def test_a_process_that_is_killed_deciding_holds_nobody_up(in_bucket, before):
    """kill -9 before the decisions are there, and before they are carried out: the next one needs nobody's hand."""
    sink = QuarantineSink(in_bucket, source="orders")
    rows = [Rejected(offset=each, row=b"x", reason="malformed") for each in range(4)]
    sink.store(Origin(name="orders", id="id-1"), 0, 3, rows)
    code = f"""
import os, signal
from validation.decision_log import DecisionLog
from validation.place import place_of
from validation.replay import discard
DecisionLog.{before} = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
discard(place_of({str(in_bucket)!r}), "orders", reason="killed", now_us={START_US})
"""
    life = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=120)
    assert life.returncode == -signal.SIGKILL, life.stderr.decode()
    assert discard(in_bucket, "orders", reason="next", now_us=START_US).discarded == (4 if before == "take" else 0)
    assert counts(in_bucket, "orders") == {"quarantined": 4, "open": 0, "accepted": 0, "discarded": 4}
