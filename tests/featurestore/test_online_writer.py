"""Whatever the order, the number and the repetitions of writers, the greatest row of each key stays."""

import multiprocessing
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from featurestore.errors import UsageError
from featurestore.online.codec import RowCodec
from featurestore.online.connection import StoreClient, StorePipeline, connect
from featurestore.online.delete import delete_views
from featurestore.online.keys import EntityKeyCodec, row_key, row_prefixes
from featurestore.online.writer import LEAST, RowWriter
from featurestore.plan import Field, JoinKey, Source, View

NOW = 1_700_000_000_000_000
SECOND = 1_000_000
DAY_MS = 24 * 3_600_000


def view(name: str = "rides", *, ttl_us: int = 0, features: str = "x:INT64") -> View:
    fields = [part.partition(":") for part in features.split()]
    return View(
        name=name,
        version=1,
        kind="latest",
        join_keys=(JoinKey(entity="driver", name="driver_id", dtype="INT64"),),
        features=tuple(Field(name=n, dtype=d) for n, _, d in fields),
        ttl_us=ttl_us,
        source=Source(name=name, path="rides.parquet", timestamp_field="event_timestamp", created_field="created"),
    )


def table(rows: list[tuple[int | None, int | None, int | None, int | None]]) -> pa.Table:
    """Rows of (driver, event us, created us, x)."""
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    stamp = pa.timestamp("us", tz="UTC")
    names = ["driver_id", "event_timestamp", "created", "x"]
    types = [pa.int64(), stamp, stamp, pa.int64()]
    return pa.table({n: pa.array(c, t) for n, c, t in zip(names, columns, types, strict=True)})


def writer(client: StoreClient, of: View, *, now_us: int = NOW) -> RowWriter:
    return RowWriter(client, "ml", of, clock=lambda: now_us)


def held(client: StoreClient, of: View, drivers: range) -> dict[int, tuple[int, int, int | None]]:
    """What the store holds: driver -> (event, created, x)."""
    keys, prefixes = EntityKeyCodec(of.join_keys), row_prefixes("ml", of.name)
    names = [row_key(prefixes, keys.encode({"driver_id": d}) or b"") for d in drivers]
    found = [(d, row) for d, row in zip(drivers, client.mget(names), strict=True) if row is not None]
    read = RowCodec(of.features).decode([row for _, row in found])
    values = zip(read.event_us.tolist(), read.created_us.tolist(), read.columns["x"].to_pylist(), strict=True)
    return dict(zip([d for d, _ in found], values, strict=True))


def write(client: StoreClient, of: View, rows: pa.Table) -> None:
    writer(client, of).write(rows, event_timestamp="event_timestamp", created="created")


def plain_set(client: StoreClient, of: View, rows: pa.Table) -> None:
    """The planted fault: whoever writes last wins."""
    keys = EntityKeyCodec(of.join_keys).encode_columns({"driver_id": rows["driver_id"]}, rows.num_rows)
    times = [rows[name].cast(pa.int64()).to_numpy() for name in ("event_timestamp", "created")]
    packed = RowCodec(of.features).encode({"x": rows["x"]}, *times)
    prefixes = row_prefixes("ml", of.name)
    client.mset({row_key(prefixes, key): row for key, row in zip(keys, packed, strict=True) if key is not None})


class Load(NamedTuple):
    """How much the concurrency check writes."""

    writers: int
    keys: int
    rows: int
    """Of each writer; all of them twice."""


LOAD = Load(writers=4, keys=3_000, rows=8_000)


def _rows(load: Load, seed: int) -> list[tuple[int, int, int, int]]:
    """A writer's rows: some keys, few distinct times, so that ties in event and created time abound."""
    rng = random.Random(seed)
    return [
        (rng.randrange(load.keys), NOW - rng.randrange(5), NOW + rng.randrange(3), rng.randrange(4))
        for _ in range(load.rows)
    ]


def _process(url: str, load: Load, seed: int, put: Callable[[StoreClient, View, pa.Table], None]) -> None:
    client = connect(type("Address", (), {"url": url}), Path())
    rows = _rows(load, seed)
    order = random.Random(seed + 100)
    for _ in range(2):  # everything twice, in another order: duplicates and replays
        order.shuffle(rows)
        for start in range(0, len(rows), 500):
            put(client, view(), table(list(rows[start : start + 500])))


def stale_keys(
    client: StoreClient, url: str, put: Callable[[StoreClient, View, pa.Table], None], load: Load = LOAD
) -> int:
    """How many keys do not hold the greatest of all rows that several processes wrote at once."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_process, args=(url, load, seed, put)) for seed in range(load.writers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * load.writers
    greatest: dict[int, tuple[int, int, int]] = {}
    for seed in range(load.writers):
        for driver, *row in _rows(load, seed):
            greatest[driver] = max(greatest.get(driver, (0, 0, 0)), (row[0], row[1], row[2]))
    found = held(client, view(), range(load.keys))
    return sum(found.get(driver) != row for driver, row in greatest.items())


def test_concurrent_writers_leave_no_stale_value(store: StoreClient, online_url: str) -> None:
    """Several processes, random order, everything twice: every key holds its greatest row."""
    assert stale_keys(store, online_url, write) == 0


@pytest.mark.nightly
def test_many_writers_leave_no_stale_value(store: StoreClient, online_url: str) -> None:
    """The same with 8 processes and 100,000 keys."""
    assert stale_keys(store, online_url, write, Load(writers=8, keys=100_000, rows=100_000)) == 0


def test_the_same_check_catches_a_plain_set(store: StoreClient, online_url: str) -> None:
    """Planted fault: last writer wins. The check above must see it."""
    assert stale_keys(store, online_url, plain_set) > 0


def test_a_correction_arrives_and_an_older_row_does_not(store: StoreClient) -> None:
    """At equal event time the later created wins; an earlier event never does."""
    of = view()
    for rows in (
        [(1, NOW - 10, NOW - 10, 1)],
        [(1, NOW - 10, NOW - 5, 2)],
        [(1, NOW - 20, NOW, 3)],
        [(1, NOW - 10, None, 4)],
    ):
        write(store, of, table(rows))
    assert held(store, of, range(2)) == {1: (NOW - 10, NOW - 5, 2)}


def test_a_null_created_is_below_every_other(store: StoreClient) -> None:
    """A row with a null created time loses to any other of its event time, and is kept where it is alone."""
    of = view()
    write(store, of, table([(1, NOW, None, 9), (1, NOW, NOW - 10**15, 1), (2, NOW, None, 5)]))
    assert held(store, of, range(3)) == {1: (NOW, NOW - 10**15, 1), 2: (NOW, LEAST, 5)}


def test_ties_go_to_the_greatest_bytes_in_any_order(store: StoreClient) -> None:
    """Equal times: the same row wins whichever comes first, in one write and in two."""
    rows = [(1, NOW, NOW, x) for x in (3, -1, 300, None)]
    seen = set()
    for i, order in enumerate((rows, rows[::-1], rows[2:] + rows[:2])):
        of = view(f"v{i}")
        write(store, of, table(order[:2]))
        write(store, of, table(order[2:]))
        seen.add(held(store, of, range(2))[1])
    assert len(seen) == 1


def test_without_a_created_column_a_later_write_is_a_correction(store: StoreClient) -> None:
    """The write's own instant takes the place of the created time."""
    of = view()
    for x, now_us in ((1, NOW), (2, NOW + 1)):
        writer(store, of, now_us=now_us).write(table([(1, NOW, None, x)]), event_timestamp="event_timestamp")
    assert held(store, of, range(2)) == {1: (NOW, NOW + 1, 2)}


def test_rows_ahead_of_the_clock_are_set_aside(store: StoreClient) -> None:
    """A row dated beyond the tolerance is returned, not written; one within it is written."""
    of = view()
    rows = table([(1, NOW + 5 * SECOND, NOW, 1), (2, NOW + 5 * SECOND + 1, NOW, 2)])
    result = writer(store, of).write(rows, event_timestamp="event_timestamp", created="created")
    assert (result.written, result.superseded) == (1, 0)
    assert result.ahead.equals(rows.slice(1))
    assert set(held(store, of, range(3))) == {1}


def test_counts_add_up(store: StoreClient) -> None:
    """Written, superseded, unkeyed and ahead are all the rows."""
    rows = [(1, NOW, NOW, 1), (1, NOW - 1, NOW, 2), (2, NOW, NOW, 3), (None, NOW, NOW, 4), (3, None, NOW, 5)]
    far = [(4, NOW + 10**9, NOW, 6)]
    result = writer(store, view()).write(table(rows + far), event_timestamp="event_timestamp", created="created")
    assert (result.written, result.superseded, result.unkeyed, result.ahead.num_rows) == (2, 1, 2, 1)
    again = writer(store, view()).write(table(rows), event_timestamp="event_timestamp", created="created")
    assert (again.written, again.superseded) == (0, 3)


def test_those_that_became_their_keys_value_are_told(store: StoreClient) -> None:
    """Each key's greatest row, once: neither what lost within the write or to the store, nor what was there."""
    of, told = view(), []

    def became(rows: pa.Table) -> None:
        told.append(sorted(zip(rows["driver_id"].to_pylist(), rows["x"].to_pylist(), strict=True)))

    first = [(1, NOW, NOW, 10), (2, NOW, NOW, 20), (1, NOW, NOW + 1, 11), (None, NOW, NOW, 0)]
    many = [(driver, NOW, NOW, driver) for driver in range(2, 2_000)]
    for rows in (first, first, many):
        writer(store, of).write(table(rows), event_timestamp="event_timestamp", created="created", became=became)
    assert told == [[(1, 11), (2, 20)], [(driver, driver) for driver in range(3, 2_000)]]


def test_a_row_outlives_its_ttl_by_a_day_of_the_writers_clock(store: StoreClient) -> None:
    """The key goes a day after the ttl; a clock in another year changes nothing."""
    of = view(ttl_us=60 * SECOND)
    write(store, of, table([(1, NOW, NOW, 1), (2, NOW - 10**15, NOW, 1)]))
    prefixes, keys = row_prefixes("ml", of.name), EntityKeyCodec(of.join_keys)
    left = [store.pttl(row_key(prefixes, keys.encode({"driver_id": d}) or b"")) for d in (1, 2)]
    assert left == pytest.approx([DAY_MS + 60_000, DAY_MS], abs=5_000)
    write(store, view(), table([(1, NOW, NOW, 1)]))
    assert store.pttl(row_key(prefixes, keys.encode({"driver_id": 1}) or b"")) == -1


def test_a_server_without_its_scripts_gets_them_again(store: StoreClient) -> None:
    """A restart forgets scripts; the writer goes on."""
    one = writer(store, view())
    one.write(table([(1, NOW, NOW, 1)]), event_timestamp="event_timestamp", created="created")
    store.script_flush()
    one.write(table([(2, NOW, NOW, 2)]), event_timestamp="event_timestamp", created="created")
    assert set(held(store, view(), range(3))) == {1, 2}


def test_a_missing_timestamp_column_is_named(store: StoreClient) -> None:
    """The message says which column and what there is."""
    with pytest.raises(UsageError, match=r"no timestamp column 'when'.*driver_id"):
        writer(store, view()).write(table([(1, NOW, NOW, 1)]), event_timestamp="when")


def test_an_empty_table_writes_nothing(store: StoreClient) -> None:
    """No rows, no error, no key but the layout's."""
    result = writer(store, view()).write(table([]), event_timestamp="event_timestamp", created="created")
    assert (result.written, result.superseded, result.ahead.num_rows) == (0, 0, 0)


def test_deleting_touches_one_view_of_one_project(store: StoreClient) -> None:
    """A project whose name ends like another's, and a view whose name starts like another's, keep their rows."""
    rows = table([(d, NOW, NOW, 1) for d in range(1_200)])
    for project, name in (("ml", "a"), ("team_ml", "a"), ("ml", "a_b"), ("ml", "b")):
        RowWriter(store, project, view(name), clock=lambda: NOW).write(rows, event_timestamp="event_timestamp")
    assert delete_views(store, "ml", ["a", "b"]) == 2 * 1_201
    assert store.dbsize() == 2 * 1_201
    assert held(store, view("a"), range(1_200)) == {}
    assert len(held(store, view("a_b"), range(1_200))) == 1_200
    assert delete_views(store, "ml", []) == 0


def test_two_writers_of_different_layouts_agree(store: StoreClient) -> None:
    """During a deployment old and new code write the same keys: the later row wins, whichever its layout."""
    old, new = view(), view(features="x:INT64 y:DOUBLE")
    wide = table([(1, NOW, NOW, 1)]).append_column("y", pa.array([0.5]))
    writer(store, new).write(wide, event_timestamp="event_timestamp", created="created")
    write(store, old, table([(1, NOW - 1, NOW, 7)]))
    raw = store.get(row_key(row_prefixes("ml", "rides"), EntityKeyCodec(old.join_keys).encode({"driver_id": 1}) or b""))
    assert isinstance(raw, bytes)
    assert RowCodec(new.features).decode([raw]).event_us.tolist() == [NOW]


def test_large_writes_report_progress_in_rounds(store: StoreClient) -> None:
    """Progress adds up to the rows given."""
    n = 60_000
    rows = pa.table(
        {
            "driver_id": pa.array(np.arange(n)),
            "event_timestamp": pa.array(np.full(n, NOW), pa.timestamp("us")),
            "x": pa.array(np.arange(n)),
        }
    )
    told: list[int] = []
    result = writer(store, view()).write(rows, event_timestamp="event_timestamp", progress=told.append)
    assert (sum(told), len(told), result.written) == (n, 2, n)


def test_scripts_lost_between_two_chunks(store: StoreClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was stored before the server forgot its scripts is counted, and given to `became`, once."""
    execute = StorePipeline.execute

    def forgetful(pipeline: StorePipeline, raise_on_error: bool = True) -> list[object]:
        monkeypatch.setattr(StorePipeline, "execute", execute)
        pipeline.script_flush()
        pipeline.command_stack.insert(1, pipeline.command_stack.pop())
        told = pipeline.execute(raise_on_error)
        return [*told[:1], *told[2:]]

    monkeypatch.setattr(StorePipeline, "execute", forgetful)
    drivers, became = range(3_000), []
    rows = table([(driver, NOW, NOW, driver) for driver in drivers])
    told = writer(store, view()).write(rows, event_timestamp="event_timestamp", created="created", became=became.append)
    assert (told.written, told.superseded) == (3_000, 0)
    assert sum(part.num_rows for part in became) == 3_000
    assert len(held(store, view(), drivers)) == 3_000
