"""Are rows that are written online profiled, each once, by the hour, whoever writes them?"""

import contextlib
import threading

import numpy as np
import pyarrow as pa
import pytest
from msgspec.structs import replace

from featurestore import write_profiles
from featurestore.monitor import kept_profiles
from featurestore.monitor.kept_profiles import AT, first_baseline, hour_name, read_kept
from featurestore.plan import Field, JoinKey, Plan, Projection, Service, Source, View
from featurestore.write_profiles import BOUNDARY, FIRST_ROWS, HOUR_US, PROFILE_AGE_US, WriteProfiles, fold_hours
from validation.profile.store import ProfileStore
from validation.whole_file import replace_file

NOW = 472_222 * HOUR_US
UTC = pa.timestamp("us", "UTC")
VIEW = View(
    name="weather",
    version=1,
    kind="latest",
    join_keys=(JoinKey(entity="origin", name="origin", dtype="STRING"),),
    features=(Field(name="temp", dtype="DOUBLE"),),
    ttl_us=0,
    source=Source(name="weather", path="", timestamp_field="ts"),
)
PLAN = Plan(project="p", version=1, digest="", created_us=0, views={"weather": VIEW})


class Clock:
    now_us = NOW

    def __call__(self):
        return self.now_us


def rows(values):
    count = len(values)
    temp = pa.array(values, pa.float64())
    return pa.table({"origin": ["EWR"] * count, "temp": temp, "ts": pa.array([0] * count, pa.int64()).cast(UTC)})


def counted(store, hour=0, segment=""):
    """Rows and greatest value of the view's temperatures in an hour."""
    start = NOW + hour * HOUR_US
    found = [
        one
        for one in read_kept(store, BOUNDARY, "weather", start, start + HOUR_US)
        if (one.feature, one.segment) == ("temp", segment)
    ]
    return [(one.rows, one.high) for one in found]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path):
    return ProfileStore(tmp_path / "profiles")


def test_rows_are_counted_once_by_the_hour_they_were_written_in(store, clock):
    """However often what was gathered is profiled; an hour that is over is not touched by the next one."""
    writer = WriteProfiles(store, clock, writer="w1")
    writer.written(PLAN, VIEW, rows([1.0] * FIRST_ROWS))
    writer.finish()
    writer.written(PLAN, VIEW, rows([5.0] * 7))
    writer.finish()
    clock.now_us += HOUR_US
    writer.written(PLAN, VIEW, rows([9.0] * 3))
    writer.finish()
    assert (counted(store), counted(store, 1)) == ([(FIRST_ROWS + 7, 5.0)], [(3, 9.0)])


def test_each_cohort_that_is_declared_is_counted_too(store, clock):
    """By the tag of the plan's view, or of a service that reads it; what is declared later holds from then on."""
    table = pa.table({"origin": ["EWR", "JFK", "EWR"], "temp": [1.0, 9.0, 2.0]})
    writer = WriteProfiles(store, clock, writer="w1")
    tagged = replace(PLAN, views={"weather": replace(VIEW, tags={"drift_segments": "origin"})})
    asked = Projection(view="weather", features=("temp",), join_key_map={"origin": "airport"})
    service = Service(name="delay", projections=(asked,), tags={"drift_segments": "airport"})
    for plan in (PLAN, tagged, replace(PLAN, services={"delay": service})):
        writer.written(plan, VIEW, table)
        writer.finish()
    assert [counted(store, segment=one) for one in ("", "origin=EWR", "origin=JFK")] == [
        [(9, 9.0)],
        [(4, 2.0)],
        [(2, 9.0)],
    ]


def test_what_waits_together_may_be_of_two_hours(store, clock):
    """Each row counts in its own."""
    writer = WriteProfiles(store, clock, writer="w1")
    writer.written(PLAN, VIEW, rows([1.0] * 4))
    clock.now_us += HOUR_US
    writer.written(PLAN, VIEW, rows([2.0] * 5))
    clock.now_us -= HOUR_US  # a clock that was set back
    writer.written(PLAN, VIEW, rows([3.0]))
    writer.finish()
    writer.written(PLAN, VIEW, rows([4.0]))
    writer.finish()
    assert (counted(store), counted(store, 1)) == ([(6, 4.0)], [(5, 2.0)])


def test_processes_add_up(store, clock):
    """Each has files of its own, a process that was started again too."""
    for name in ("w1", "w2", "w1-again"):
        writer = WriteProfiles(store, clock, writer=name)
        writer.written(PLAN, VIEW, rows([1.0, 2.0]))
        writer.finish()
    assert counted(store) == [(6, 2.0)]


def test_the_first_profile_waits_for_enough_rows(store, clock):
    """A baseline of one row would have no edges; in the end there is one all the same. No rows, no file."""
    writer = WriteProfiles(store, clock, writer="w1")
    writer.written(PLAN, VIEW, rows([]))
    writer.written(PLAN, VIEW, rows([1.0]))
    clock.now_us += PROFILE_AGE_US
    writer.rest()
    assert not store.folder.exists()
    writer.written(PLAN, VIEW, rows([2.0] * FIRST_ROWS))
    writer.rest()
    assert not store.folder.exists()  # not due
    clock.now_us += PROFILE_AGE_US
    writer.rest()
    assert counted(store) == [(FIRST_ROWS + 1, 2.0)]


def test_memory_is_bounded(store, clock):
    """A flood of rows is profiled as it comes."""
    writer = WriteProfiles(store, clock, writer="w1")
    for _ in range(5):
        writer.written(PLAN, VIEW, rows(np.zeros(30_000)))
    assert writer._views["weather"].rows < 65_536
    writer.finish()
    assert counted(store) == [(150_000, 0.0)]


def test_what_is_profiled_beside_a_write_is_all_there_in_the_end(store, clock):
    """Many rows in a few pieces; memory holds two of them at most. A write that broke off wrote what it gave."""
    writer, most = WriteProfiles(store, clock, writer="w1"), 0
    with contextlib.suppress(OSError), writer.beside(PLAN, VIEW) as take:
        for number in range(6):
            take(rows(np.full(50_000, float(number))))
            most = max(most, sum(held.rows for held in writer._views.values()))
        raise OSError("the store went away")
    assert counted(store) == [(300_000, 5.0)]
    assert most <= 100_000


def test_keys_are_no_features(store, clock):
    """They name rows: a million different words would be a profile that takes longer than the write."""
    writer = WriteProfiles(store, clock, writer="w1")
    writer.written(PLAN, VIEW, rows([1.0, 2.0]))
    writer.finish()
    assert {one.feature for one in read_kept(store, BOUNDARY, "weather", NOW, NOW + HOUR_US)} == {"temp"}


def test_writes_of_one_row_lie_together(store, clock):
    """A table costs more than its row: rows that wait are few tables, and each counts."""
    writer = WriteProfiles(store, clock, writer="w1")
    most = 0
    for number in range(2_000):
        writer.written(PLAN, VIEW, rows([float(number)]))
        most = max(most, len(writer._views["weather"].tables))
    assert most < 300
    writer.finish()
    assert counted(store) == [(2_000, 1_999.0)]


def test_rows_that_do_not_go_together_are_told_and_the_others_are_profiled(store, clock, caplog):
    """Writes of one row whose column changes its kind, more than lie singly: no writer hears an error."""
    writer = WriteProfiles(store, clock, writer="w1")
    for number in range(256):
        writer.written(PLAN, VIEW, pa.table({"origin": ["EWR"], "temp": ["warm"] if number % 2 else [1.0]}))
    writer.written(PLAN, VIEW, rows([2.0, 3.0]))
    writer.finish()
    assert "column 'temp' is string, and was a number before: it is not profiled" in caplog.text
    assert counted(store) == [(130, 3.0)]


def test_integers_and_doubles_of_one_column_are_both_profiled(store, clock, caplog):
    """Integers that no double holds, beside doubles: each is profiled in its own type."""
    writer = WriteProfiles(store, clock, writer="w1")
    for temp in ([2**60 + 1], [0.5], [2]):
        writer.written(PLAN, VIEW, pa.table({"origin": ["EWR"], "temp": temp}))
    writer.finish()
    assert counted(store) == [(3, float(2**60))]
    assert not caplog.records


def test_what_cannot_be_profiled_is_told_and_the_rows_are_written(store, clock, caplog):
    """A column that changed its kind."""
    writer = WriteProfiles(store, clock, writer="w1")
    writer.written(PLAN, VIEW, rows([1.0]))
    writer.finish()
    writer.written(PLAN, VIEW, pa.table({"origin": ["EWR"], "temp": ["warm"]}))
    writer.finish()
    assert "it is not profiled" in caplog.text
    assert counted(store) == [(1, 1.0)]


def test_files_of_hours_that_are_over_become_one_a_day(store, clock):
    """Of all processes; the hour that is not over yet keeps its files, and each row counts once, by its hour."""
    views = [VIEW, replace(VIEW, name="weather-2")]
    for hour in range(3):
        for name in ("7-1", "sdk-9-2"):
            writer = WriteProfiles(store, clock, writer=name)
            for view in views:
                writer.written(PLAN, view, rows([float(hour)]))
            writer.finish()
        clock.now_us += HOUR_US
    fold_hours(store, clock.now_us)
    day = str(np.datetime64(NOW, "us"))[:10]
    assert [path.stem for path in store.paths(BOUNDARY)] == sorted(
        name
        for view in ("weather", "weather-2")
        for name in (
            f"{view}-{day}",
            *(f"{view}-{hour_name(NOW // HOUR_US + 2)}-{each}.0" for each in ("7-1", "sdk-9-2")),
        )
    )
    assert [counted(store, hour) for hour in range(3)] == [[(2, float(hour))] for hour in range(3)]


def test_a_process_goes_on_after_its_file_was_folded(store, clock, monkeypatch):
    """A clock that is behind another's: what it adds is in another file, and what it had put is not put again."""
    writer = WriteProfiles(store, clock, writer="w1")
    for number in range(1, 4):
        writer.written(PLAN, VIEW, rows([float(number)] * number))
        writer.finish()
        fold_hours(store, clock.now_us + 2 * HOUR_US)
        if number == 2:
            writer.written(PLAN, VIEW, rows([0.0]))
            writer.finish()
    assert counted(store) == [(7, 3.0)]
    # Planted fault: a process that takes its file for granted puts again what was folded.
    monkeypatch.setattr(write_profiles, "stands", lambda *_: True)
    writer.written(PLAN, VIEW, rows([3.0]))
    writer.finish()
    assert counted(store) != [(8, 3.0)]


def first_baselines(store, count):
    """The baselines that writers get who begin at the same time."""
    gate = threading.Barrier(count)
    found = []

    def begin(number):
        table = pa.table({AT: pa.array([NOW], UTC), "temp": [float(number)]})
        gate.wait()
        found.append(first_baseline(store, BOUNDARY, "weather", table).id)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return set(found)


def test_of_writers_that_begin_together_all_have_one_baseline(store):
    """Else their profiles could not be merged."""
    for number in range(20):
        assert len(first_baselines(ProfileStore(store.folder / str(number)), 8)) == 1


def test_a_baseline_that_is_replaced_would_be_caught(store, monkeypatch):
    """The planted fault: the last one wins, and earlier ones went on with theirs."""

    def replaced(path, data):
        replace_file(path, data)
        return data

    monkeypatch.setattr(kept_profiles, "first_file", replaced)
    assert max(len(first_baselines(ProfileStore(store.folder / str(number)), 8)) for number in range(20)) > 1
