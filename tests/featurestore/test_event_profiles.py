"""Does each accepted event count once in the profiles of its hour, whatever happens while they are made?"""

import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest

from featurestore import event_profiles
from featurestore.event_profiles import BOUNDARY, EventProfiles, read_event_profiles
from featurestore.monitor.kept_profiles import AT
from featurestore.offline.compaction import compact
from featurestore.offline.event_log import ARRIVAL, OFFSET, event_files, read_events, write_events
from featurestore.plan import Field, JoinKey, Source, Topic, View
from validation.profile import store as profile_store
from validation.profile.build import profile_table
from validation.profile.store import ProfileStore

HOUR_US = 3_600_000_000
START_US = 1_700_000_000_000_000 // HOUR_US * HOUR_US
LATER_S = 1e12
TS = pa.timestamp("us", "UTC")
VIEW = View(
    name="taps", version=1, kind="latest", join_keys=(JoinKey(entity="user", name="user", dtype="INT64"),),
    features=(Field(name="amount", dtype="DOUBLE"),), ttl_us=0,
    source=Source(
        name="taps", path="event_log/taps", timestamp_field="ts", field_mapping={"event_time": "ts"},
        topic=Topic(name="taps", bootstrap_servers="", message_format="json", event_id="id"),
    ),
)  # fmt: skip


def event(offset: int, partition: int) -> dict[str, object]:
    """What lies at an offset: one in five was set aside, one in seven is up to five hours late."""
    rng = random.Random(f"{partition} {offset}")
    late_us = rng.randrange(5) * HOUR_US if rng.random() < 1 / 7 else 0
    arrival_us = START_US + offset * HOUR_US // 50
    return {
        "id": f"{partition}-{offset}",
        "user": rng.randrange(40),
        "amount": rng.choice([None, float("nan"), rng.gauss(10, 3), rng.gauss(10, 3)]),
        "town": rng.choice(["Oslo", "Rome", None]),
        "event_time": arrival_us - late_us,
        ARRIVAL: arrival_us,
        OFFSET: offset,
        "there": rng.random() < 0.8,
    }


def rows(first: int, last: int, partition: int) -> pa.Table:
    """The accepted events of a range; its last offset is one."""
    found = [event(offset, partition) for offset in range(first, last + 1)]
    kept = [each for each in found if each.pop("there") or each[OFFSET] == last]
    table = pa.Table.from_pylist(kept)
    for name in ("event_time", ARRIVAL):
        table = table.set_column(table.column_names.index(name), name, table[name].cast(TS))
    return table


class Log:
    """A topic's event log that grows."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder = folder / "event_log" / "taps"
        self.rng = random.Random(seed)
        self.ends = {0: 100, 1: 0}

    def grow(self, ranges: int = 3, partition: int | None = None, topic_id: str = "a-1") -> None:
        for _ in range(ranges):
            chosen = self.rng.choice([0, 1]) if partition is None else partition
            first, last = self.ends[chosen], self.ends[chosen] + self.rng.randrange(1, 25)
            write_events(
                self.folder, rows(first, last, chosen), topic_id=topic_id, partition=chosen, first=first, last=last
            )
            self.ends[chosen] = last + 1

    def read(self) -> pa.Table:
        table = read_events(self.folder)
        return table.set_column(0, AT, table["event_time"]).drop_columns(["event_time"])


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Blocks of 8, 32, 128 … offsets, so that a few hundred events cross them all."""
    for name, value in {"SMALLEST": 8, "AT_ONCE": 128, "LARGEST": 2048, "FIRST_ROWS": 20}.items():
        monkeypatch.setattr(event_profiles, name, value)


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path)


@pytest.fixture
def store(tmp_path):
    return ProfileStore(tmp_path / "profiles")


def profiler(log, store, **more):
    return EventProfiles(log.folder, store, [VIEW], **more)


def counted(store):
    """Rows of a feature by hour, over all baselines."""
    found = {}
    for each in read_event_profiles(store, VIEW, 0, 2**62):
        if each.feature == "user" and not each.segment:
            found[each.hour_us] = found.get(each.hour_us, 0) + each.rows
    return found


def stored(log):
    """Rows of the event log by hour of event time."""
    found = {}
    for at in log.read()[AT].cast(pa.int64()).to_pylist():
        found[at // HOUR_US * HOUR_US] = found.get(at // HOUR_US * HOUR_US, 0) + 1
    return found


def same(log, store, segments=()):
    """Each event of the log counts once, and the profiles are those of the whole log, to the bit."""
    assert counted(store) == stored(log)
    made = read_event_profiles(store, VIEW, 0, 2**62)
    baseline = store.baseline(made[0].baseline)
    whole = profile_table(log.read(), baseline, boundary=BOUNDARY, time_column=AT, segments=segments, entities=["user"])
    assert sorted(each.digest() for each in made) == sorted(each.digest() for each in whole)
    return made


@pytest.mark.parametrize("seed", range(4))
def test_profiles_are_those_of_the_whole_log_at_once(log, store, seed):
    """However it grew, was compacted and looked at meanwhile; late events are in the history of their hour."""
    log.rng.seed(seed)
    for turn in range(12):
        log.grow(log.rng.randrange(4))
        if turn % 3 == 2:
            compact(log.folder, fan_in=2, now_s=LATER_S)
        profiler(log, store).run(last=True, now_s=LATER_S if turn % 2 else None)
    made = same(log, store)
    assert {each.feature for each in made} == {"user", "amount", "town"}  # neither instants nor the event's id


def test_few_files_are_left(log, store):
    """Neighbours become one file, and what lies within it is deleted a grace later, not at once."""
    for _ in range(45):
        log.grow(1, partition=1)
        profiler(log, store).run(last=True)
    many = len(store.paths(BOUNDARY))
    assert profiler(log, store).run(now_s=LATER_S).deleted > 0
    assert len(store.paths(BOUNDARY)) < 16 < many
    assert profiler(log, store).run(last=True, now_s=LATER_S) == event_profiles.Profiled()  # nothing new
    same(log, store)


def test_cohorts_are_profiled_too(log, store):
    """Each value of a segment's column, beside all rows."""
    log.grow(10)
    profiler(log, store, segments=["town"]).run()
    made = same(log, store, segments=["town"])
    assert {each.segment for each in made} == {"", "town=Oslo", "town=Rome", "town="}


class Crash(Exception):
    """The process ends here."""


class Crashing(ProfileStore):
    """Ends before or after its n-th file."""

    def __init__(self, folder, number, *, after):
        super().__init__(folder)
        self.number, self.after = number, after

    def put(self, source_id, profiles, **more):
        self.number -= 1
        if self.number < 0 and not self.after:
            raise Crash
        path = super().put(source_id, profiles, **more)
        if self.number < 0:
            raise Crash
        return path


class NameFirst(Crashing):
    """Planted: the name, which is the cursor, is there before what it promises, and the process ends in between."""

    def put(self, source_id, profiles, **more):
        self.number -= 1
        if self.number < 0:
            ProfileStore.put(self, source_id, [], **more)
            raise Crash
        return ProfileStore.put(self, source_id, profiles, **more)


def crashed(log, store, make):
    """Profiles that were begun over and over, each time cut short at another file."""
    crashes = 0
    for number in range(12):
        log.grow(2)
        crashing = make(store.folder, number % 4)
        with suppress(Crash):
            profiler(log, crashing).run(last=True)
        crashes += crashing.number < 0
    assert crashes > 6
    profiler(log, store).run(last=True)


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_around_a_file_neither_loses_nor_repeats_events(log, store, after):
    """Before the file, or between the file and whatever would come next."""
    crashed(log, store, lambda folder, number: Crashing(folder, number, after=after))
    same(log, store)


def test_a_cursor_that_moved_before_the_file_is_caught(log, store):
    """The planted fault loses events."""
    crashed(log, store, lambda folder, number: NameFirst(folder, number, after=False))
    assert sum(counted(store).values()) < sum(stored(log).values())


def test_readers_that_take_every_file_are_caught(log, store, monkeypatch):
    """The planted fault counts events of a block once more in the larger one."""
    for _ in range(10):
        log.grow(2)
        profiler(log, store).run(last=True)
    same(log, store)
    monkeypatch.setattr(profile_store, "each_offset_once", list)
    assert sum(counted(store).values()) > sum(stored(log).values())


class Beside(ProfileStore):
    """Lets another worker make a whole pass before each of its files."""

    def __init__(self, folder, other):
        super().__init__(folder)
        self.other = other

    def put(self, source_id, profiles, **more):
        self.other()
        return super().put(source_id, profiles, **more)


def taken_over(log, store):
    """A zombie goes on writing what it saw, while its successor profiles a log that has grown since."""

    def successor():
        log.grow(1)
        profiler(log, store).run(last=True)

    for _ in range(8):
        log.grow(2)
        profiler(log, Beside(store.folder, successor)).run(last=True)


def test_a_zombie_beside_its_successor_changes_nothing(log, store):
    """Both write; each event counts once."""
    taken_over(log, store)
    same(log, store)


def test_blocks_that_begin_where_a_worker_stands_are_caught(log, store, monkeypatch):
    """The planted fault: ranges of two workers overlap, and events count twice."""

    def ragged(position, end):
        while position < end:
            after = min(position + log.rng.randrange(5, 12), end)
            yield position, after
            position = after

    monkeypatch.setattr(event_profiles, "blocks", ragged)
    taken_over(log, store)
    assert sum(counted(store).values()) > sum(stored(log).values())


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import test_event_profiles as t
from featurestore import event_profiles
for name, value in dict(SMALLEST=8, AT_ONCE=128, LARGEST=2048, FIRST_ROWS=20).items():
    setattr(event_profiles, name, value)

class Killed(t.ProfileStore):
    left = 3
    def put(self, *arguments, **more):
        super().put(*arguments, **more)
        Killed.left -= 1
        if not Killed.left:
            os.kill(os.getpid(), signal.SIGKILL)

t.EventProfiles(t.Path({log!r}), Killed(t.Path({store!r})), [t.VIEW]).run(last=True)
"""


def test_a_process_that_is_killed_behind_a_file_is_continued(log, store):
    """kill -9 between a file and the rest."""
    log.grow(12)
    script = KILLED.format(tests=str(Path(__file__).parent), log=str(log.folder), store=str(store.folder))
    ended = subprocess.run([sys.executable, "-c", script], check=False, env={**os.environ})
    assert ended.returncode == -signal.SIGKILL
    assert 0 < sum(counted(store).values()) < sum(stored(log).values())
    log.grow(3)
    profiler(log, store).run(last=True)
    same(log, store)


def test_replayed_backfilled_and_former_events_count_beside_the_others(log, store):
    """Each topic id has offsets of its own; who has the first partition looks after those that nobody holds."""
    log.grow(6)
    log.ends = {0: 3, 1: 0}
    log.grow(4, topic_id="a-1.replay")
    log.ends = {0: 0, 1: 0}
    log.grow(2, partition=0, topic_id="0123456789abcdef")
    mine = [("a-1", 0), ("a-1", 1), ("a-1.replay", 0), ("a-1.replay", 1)]
    profiler(log, store).run(mine, last=True)
    assert sum(counted(store).values()) < sum(stored(log).values())
    profiler(log, store).run(mine, strangers=True, last=True)
    same(log, store)


def test_another_set_of_columns_has_a_baseline_of_its_own(log, store):
    """A column that comes later, and one whose kind changes, within a block: each event counts once."""
    log.grow(6, partition=1)
    profiler(log, store).run(last=True)
    first, last = log.ends[1], log.ends[1] + 2
    more = rows(first, last, 1).append_column("note", pa.array(["n"] * len(rows(first, last, 1))))
    more = more.set_column(more.column_names.index("town"), "town", pa.array(range(len(more)), pa.int64()))
    write_events(log.folder, more, topic_id="a-1", partition=1, first=first, last=last)
    log.ends[1] = last + 1
    profiler(log, store).run(last=True)
    made = read_event_profiles(store, VIEW, 0, 2**62)
    notes = [each for each in made if each.feature == "note"]
    assert sum(each.rows - each.nulls for each in notes) == len(more)
    assert len({each.baseline for each in made}) == 2
    assert sum(counted(store).values()) == sum(len(rows_of) for rows_of in _tables(log))


def _tables(log):
    return [pa.parquet.read_table(file.path, partitioning=None) for file in event_files(log.folder)]


def test_memory_is_bounded_where_every_event_has_another_hour(log, store, monkeypatch):
    """Blocks with too many hours are profiled in smaller ones, and stay so."""
    monkeypatch.setattr(event_profiles, "MOST_HELD", 12)
    log.grow(30)
    profiler(log, store).run(last=True)
    widest = max(pa.parquet.read_metadata(path).num_rows for path in store.paths(BOUNDARY))
    assert widest <= 8 * 3
    same(log, store)


def test_the_first_profile_waits_for_enough_events(log, store):
    """A baseline of two events would have no edges; when no more have come for a while, it is made all the same."""
    first, last = 0, 2
    write_events(log.folder, rows(first, last, 1), topic_id="a-1", partition=1, first=first, last=last)
    assert profiler(log, store).run().written == 0
    assert not store.folder.exists()
    assert profiler(log, store).run(now_s=LATER_S).written == 1
    same(log, store)
