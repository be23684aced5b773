"""Is an event log after compaction what it was before, at every moment in between too?"""

import random
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from featurestore.dataset.identity import differences, identify
from featurestore.offline import compaction
from featurestore.offline.compaction import bucket_of, compact, read_bucket
from featurestore.offline.connection import Limits, connection
from featurestore.offline.event_log import (
    ARRIVAL,
    OFFSET,
    event_files,
    every_file,
    next_offset,
    overlaps,
    parse_name,
    read_events,
    stored_ranges,
    write_events,
)
from featurestore.offline.sources import scan_parquet
from featurestore.plan import Source, Topic

DAY_US = 86_400_000_000
LATER_S = 1e12


def events(first, last, rng, *, more=False):
    """Some of the offsets, over three days, with keys; null keys too."""
    offsets = [offset for offset in range(first, last + 1) if rng.random() < 0.8] or [last]
    arrival = [1_700_000_000_000_000 + (offset // 30) * DAY_US + offset for offset in offsets]
    columns = {
        "user": pa.array([None if offset % 17 == 0 else offset % 23 for offset in offsets], pa.int64()),
        "amount": pa.array([offset / 3 for offset in offsets]),
        OFFSET: pa.array(offsets, pa.int64()),
        ARRIVAL: pa.array(arrival, pa.timestamp("us", "UTC")),
    }
    if more:
        columns["note"] = pa.array([f"n{offset}" for offset in offsets])
    return pa.table(columns)


def fill(folder, seed, ranges=14):
    """Ranges of two partitions, some of them overlapping, a few without their last part, a column that came late."""
    rng = random.Random(seed)
    for partition in range(2):
        first = 0
        for number in range(ranges):
            last = first + rng.randrange(1, 12)
            table = events(first, last, random.Random(f"{partition}"), more=number > 7)
            paths = write_events(folder, table, topic_id="a-1", partition=partition, first=first, last=last)
            if len(paths) > 1 and rng.random() < 0.3:
                paths[-1].unlink()  # a crash between parts: the range is stored again, longer
                table = events(first, last + 3, random.Random(f"{partition}"), more=number > 7)
                write_events(folder, table, topic_id="a-1", partition=partition, first=first, last=last + 3)
                last += 3
            first = last + 1 - (rng.randrange(3) if rng.random() < 0.2 else 0)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "log" / "taps"
    fill(place, 0)
    return place


def rows(folder):
    table = read_events(folder)
    names = sorted(table.column_names)
    return sorted(map(repr, table.select(names).to_pylist()))


def cursors(folder):
    return [next_offset(folder, "a-1", partition) for partition in range(3)]


@pytest.mark.parametrize("seed", range(2))
def test_rows_offsets_and_digest_are_what_they_were(tmp_path, seed):
    """Far fewer files; the same rows, each once; the same cursors; a training set that pinned it still verifies."""
    place = tmp_path / "log" / "taps"
    fill(place, seed)
    topic = Topic(name="taps", bootstrap_servers="", message_format="json")
    source = Source(name="taps", path="log/taps", timestamp_field="ts", topic=topic)
    before, told, pinned = rows(place), cursors(place), identify(source, tmp_path)
    files = len(event_files(place))
    done = compact(place, key_column="user", now_s=LATER_S)
    assert done.written > 0
    assert done.deleted > 0
    assert (rows(place), cursors(place)) == (before, told)
    assert not differences(pinned, identify(source, tmp_path))
    assert not differences(pinned, identify(source, tmp_path, like=pinned))
    assert len(every_file(place)) < files / 2
    compact(place, key_column="user", fan_in=2, now_s=LATER_S)
    assert (rows(place), cursors(place)) == (before, told)
    assert len(stored_ranges(place)) == 2
    assert not overlaps(event_files(place))
    assert compact(place, fan_in=2, now_s=LATER_S) == compaction.Compacted()


def test_what_sql_reads_is_the_same(folder):
    """Joins scan files themselves: superseded ones are left out, those that wait for deletion too."""

    def read():
        scan = scan_parquet(folder, repo=folder, name="taps")
        with connection(Limits()) as session:
            found = session.sql(f"SELECT user, amount, _offset, _partition FROM {scan.register(session, 'x')}")
            return sorted(map(repr, found.to_arrow_table().to_pylist()))

    before = read()
    compact(folder, key_column="user")
    assert len(every_file(folder)) > len(event_files(folder))
    assert read() == before
    compact(folder, key_column="user", now_s=LATER_S)
    assert read() == before


@pytest.mark.parametrize("cut", [1, 8])
def test_buckets_of_keys_are_the_log_taken_apart(folder, monkeypatch, cut):
    """Each event is in one bucket, whatever the files were cut by; a bucket reads the files that may hold it."""
    monkeypatch.setattr(compaction, "BUCKET_BYTES", (1 << 40) if cut == 1 else 1_000)
    compact(folder, key_column="user", fan_in=2, now_s=LATER_S)
    assert (max(file.buckets for file in event_files(folder)) > 1) is (cut > 1)
    parts = [read_bucket(folder, "user", bucket, 4) for bucket in range(4)]
    names = sorted(read_events(folder).column_names)
    together = sorted(repr(row) for part in parts for row in part.select(names).to_pylist())
    assert together == rows(folder)
    keys = [set(part["user"].to_pylist()) for part in parts]
    assert sum(map(len, keys)) == len(set().union(*keys))
    assert np.array_equal(bucket_of(pa.array(range(99)), 8) % 4, bucket_of(pa.array(range(99)), 4))


class CrashError(BaseException):
    """The process ends here."""


def at_every_step(monkeypatch, look):
    """Call `look` before and after each file is written or deleted."""
    whole, unlink = compaction.write_whole, type(Path()).unlink

    def write(table, target):
        look()
        whole(table, target)
        look()

    def remove(path, missing_ok=False):
        unlink(path, missing_ok=missing_ok)
        if path.suffix == ".parquet":
            look()

    monkeypatch.setattr(compaction, "write_whole", write)
    monkeypatch.setattr(type(Path()), "unlink", remove)


def test_readers_see_each_offset_once_at_every_moment(folder, monkeypatch):
    """Between any two steps the log is whole, and its cursors stand."""
    before, told = rows(folder), cursors(folder)
    looked = []

    def look():
        assert (rows(folder), cursors(folder)) == (before, told)
        looked.append(1)

    at_every_step(monkeypatch, look)
    compact(folder, key_column="user", now_s=LATER_S)
    assert len(looked) > 20


@pytest.mark.parametrize("seed", range(4))
def test_a_crash_anywhere_loses_and_repeats_nothing(folder, monkeypatch, seed):
    """Whatever was half done; the next compaction cleans up, and writing goes on in between."""
    rng = random.Random(seed)
    steps = [rng.randrange(1, 60)]

    def step():
        steps[0] -= 1
        if steps[0] == 0:
            raise CrashError

    before = rows(folder)
    with monkeypatch.context() as patch:
        at_every_step(patch, step)
        try:
            compact(folder, key_column="user", now_s=LATER_S)
        except CrashError:
            assert rows(folder) == before
    first = next_offset(folder, "a-1", 0)
    table = events(first, first + 9, rng, more=True)
    write_events(folder, table, topic_id="a-1", partition=0, first=first, last=first + 9)
    before, told = rows(folder), cursors(folder)
    compact(folder, key_column="user", fan_in=2, now_s=LATER_S)
    assert (rows(folder), cursors(folder)) == (before, told)
    assert len(stored_ranges(folder)) == 2


def test_deleting_before_the_new_file_is_there_is_caught(folder, monkeypatch):
    """The planted fault: whoever looks in between misses events."""
    whole = compaction.write_whole

    def hasty(table, target):
        new = parse_name(target).range
        for file in every_file(folder):
            if file.range != new and compaction._within(file.range, new):
                file.path.unlink()
        whole(table, target)

    before = rows(folder)

    def look():
        assert rows(folder) == before

    monkeypatch.setattr(compaction, "write_whole", hasty)
    at_every_step(monkeypatch, look)
    with pytest.raises(AssertionError):
        compact(folder, key_column="user", now_s=LATER_S)


def test_superseded_files_stay_for_those_who_listed_them(folder):
    """Nothing is deleted before the grace is over; meanwhile nobody reads it twice."""
    listed = event_files(folder)
    assert compact(folder).deleted == 0
    assert all(file.path.exists() for file in listed)
    assert compact(folder, now_s=time.time() + compaction.GRACE_S - 60).deleted == 0
    assert compact(folder, now_s=time.time() + compaction.GRACE_S + 60).deleted > 0


def test_a_worker_compacts_its_own_partitions_alone(folder):
    """What others hold is theirs."""
    compact(folder, partitions=[("a-1", 1)], fan_in=2, now_s=LATER_S)
    ranges = stored_ranges(folder)
    assert len([each for each in ranges if each.partition == 1]) == 1
    assert len([each for each in ranges if each.partition == 0]) > 10
