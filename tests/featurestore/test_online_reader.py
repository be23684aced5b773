"""What is read is what holds at the reading instant: aged, decayed, complete or said not to be, in one round trip."""

import json
import random
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from featurestore.aggregation.tiles import SPAN, TileLayout
from featurestore.errors import NotExact, StaleStore, StoreUnavailable, UnknownName, UsageError
from featurestore.online.connection import StoreClient
from featurestore.online.keys import EntityKeyCodec, Shard, row_key, row_prefixes, shards_key, tile_key
from featurestore.online.reader import OnlineReader
from featurestore.online.result import Column, Status
from featurestore.online.sealed import sealed
from featurestore.online.writer import RowWriter
from featurestore.plan import Aggregation, Field, JoinKey, Plan, Projection, Source, View

NOW = 1_700_000_000_123_456
SECOND, MINUTE, HOUR, DAY = 1_000_000, 60_000_000, 3_600_000_000, 86_400_000_000
DRIVER = (JoinKey(entity="driver", name="driver_id", dtype="INT64"),)


def latest(name: str = "rides", *, ttl_us: int = 0, keys: tuple[JoinKey, ...] = DRIVER, **features: str) -> View:
    return View(
        name=name,
        version=1,
        kind="latest",
        join_keys=keys,
        features=tuple(Field(name=n, dtype=d) for n, d in features.items()),
        ttl_us=ttl_us,
        source=Source(name=name, path="x.parquet", timestamp_field="event_timestamp"),
    )


def put(client: StoreClient, view: View, rows: list[dict[str, object]], *, now_us: int = NOW) -> None:
    """Rows with `at` (event us), keys and features."""
    names = [key.name for key in view.join_keys] + [field.name for field in view.features]
    columns = {name: pa.array([row.get(name) for row in rows]) for name in names}
    columns["event_timestamp"] = pa.array([row["at"] for row in rows], pa.timestamp("us", tz="UTC"))
    RowWriter(client, "ml", view, clock=lambda: now_us).write(pa.table(columns), event_timestamp="event_timestamp")


def reader(client: StoreClient, *views: View, now_us: int = NOW) -> OnlineReader:
    plan = Plan(project="ml", version=1, digest="", created_us=0, views={view.name: view for view in views})
    return OnlineReader(client, plan, lambda: now_us)


def project(view: View, *features: str, **more: object) -> Projection:
    return Projection(view=view.name, features=features or tuple(f.name for f in view.features), **more)  # type: ignore[arg-type]


def shown(column: Column) -> list[tuple[object, str]]:
    return [(v, Status(s).name) for v, s in zip(column.to_python(), column.statuses.tolist(), strict=True)]


def test_values_nulls_and_absences_are_told_apart(store: StoreClient) -> None:
    """PRESENT, NULL_VALUE and NOT_FOUND, in the order of the rows, duplicates kept, a null key found nowhere."""
    view = latest(x="DOUBLE", s="STRING")
    put(
        store,
        view,
        [{"driver_id": 1, "x": 1.5, "s": None, "at": NOW - 7}, {"driver_id": 2, "x": None, "s": "b", "at": NOW}],
    )
    result = reader(store, view).read([project(view)], {"driver_id": [2, 1, 9, None, 1]})
    x, s = result.columns
    gone = (None, "NOT_FOUND")
    assert shown(x) == [(None, "NULL_VALUE"), (1.5, "PRESENT"), gone, gone, (1.5, "PRESENT")]
    assert shown(s) == [("b", "PRESENT"), (None, "NULL_VALUE"), gone, gone, (None, "NULL_VALUE")]
    assert x.event_us.tolist() == [NOW, NOW - 7, 0, 0, NOW - 7]
    assert x.instant_us.tolist() == [NOW] * 5
    assert result.rows == 5


def test_a_value_counts_until_its_ttl_has_passed_inclusive(store: StoreClient) -> None:
    """event time + ttl >= t is PRESENT; one microsecond later OUTSIDE_MAX_AGE, without the value, with its time."""
    view = latest(ttl_us=HOUR, x="INT64")
    put(store, view, [{"driver_id": d, "x": d, "at": NOW - HOUR - d + 1} for d in (1, 2)])
    [x] = reader(store, view).read([project(view)], {"driver_id": [1, 2]}).columns
    assert shown(x) == [(1, "PRESENT"), (None, "OUTSIDE_MAX_AGE")]
    assert x.event_us.tolist() == [NOW - HOUR, NOW - HOUR - 1]


def test_a_row_ahead_of_the_clock_moves_its_instant(store: StoreClient) -> None:
    """A row dated within the tolerance counts, at its own time."""
    view = latest(x="INT64")
    put(store, view, [{"driver_id": 1, "x": 1, "at": NOW + 3 * SECOND}, {"driver_id": 2, "x": 2, "at": NOW}])
    [x] = reader(store, view).read([project(view)], {"driver_id": [1, 2]}).columns
    assert x.instant_us.tolist() == [NOW + 3 * SECOND, NOW]
    assert shown(x) == [(1, "PRESENT"), (2, "PRESENT")]


def test_everything_is_one_round_trip(store: StoreClient) -> None:
    """Several views of several entities take one MGET."""
    other = (JoinKey(entity="city", name="city", dtype="STRING"),)
    views = [latest("a", x="INT64"), latest("b", y="STRING"), latest("c", keys=other, z="DOUBLE"), windowed()]
    tiles(store, views[3], [(0, "LGA", NOW - 5, 1.0)])
    rows = {"driver_id": [1, 2], "city": ["x", "y"], "origin": ["LGA", "JFK"]}
    one = reader(store, *views)
    one.read([project(view) for view in views], rows)
    before = store.info("commandstats")["cmdstat_mget"]["calls"]
    total = store.info("stats")["total_commands_processed"]
    one.read([project(view) for view in views], rows)
    assert store.info("commandstats")["cmdstat_mget"]["calls"] == before + 1
    assert store.info("stats")["total_commands_processed"] <= total + 3  # the MGET and two INFO


def test_join_key_maps_and_aliases(store: StoreClient) -> None:
    """One view may be read twice, by different columns, under different names."""
    view = latest(x="INT64")
    put(store, view, [{"driver_id": d, "x": d * 10, "at": NOW} for d in (1, 2)])
    projections = [
        project(view, alias="from", join_key_map={"driver_id": "seller"}),
        project(view, alias="to", join_key_map={"driver_id": "buyer"}),
    ]
    result = reader(store, view).read(projections, {"seller": [1, 2], "buyer": [2, 3]})
    assert result.column("from", "x").to_python() == [10, 20]
    assert result.column("to", "x").to_python() == [20, None]


def test_an_entityless_view_is_read_for_every_row(store: StoreClient) -> None:
    """Without join keys there is one row, whatever the entity rows."""
    view = latest(keys=(), x="INT64")
    put(store, view, [{"x": 7, "at": NOW}])
    assert reader(store, view).read([project(view)], {"any": [1, 2]}).columns[0].to_python() == [7, 7]
    assert reader(store, view).read([project(view)], {}).columns[0].to_python() == [7]


def test_rows_of_older_layouts_are_read(store: StoreClient) -> None:
    """A feature added since is NOT_FOUND in old rows, one removed is ignored, one widened is converted."""
    old = latest(x="INT32", gone="STRING", s="STRING")
    new = latest(added="BOOL", s="INT64", x="INT64")
    put(store, old, [{"driver_id": d, "x": d, "gone": "g", "s": "text", "at": NOW} for d in (1, 2, 3)])
    put(store, new, [{"driver_id": 2, "x": None, "added": True, "s": 5, "at": NOW}], now_us=NOW + 1)
    result = reader(store, new).read([project(new)], {"driver_id": [3, 2, 1]})
    assert shown(result.column("rides", "x")) == [(3, "PRESENT"), (None, "NULL_VALUE"), (1, "PRESENT")]
    assert shown(result.column("rides", "added")) == [(None, "NOT_FOUND"), (True, "PRESENT"), (None, "NOT_FOUND")]
    assert shown(result.column("rides", "s")) == [(None, "NOT_FOUND"), (5, "PRESENT"), (None, "NOT_FOUND")]


def test_a_row_of_an_unknown_layout_is_an_error(store: StoreClient) -> None:
    """A layout that the store does not describe is never guessed."""
    view = latest(x="INT64")
    put(store, latest(y="INT64"), [{"driver_id": 1, "y": 1, "at": NOW}])
    store.delete(b"fs:schema:{2:ml 5:rides}")
    with pytest.raises(StaleStore, match=r"'rides'.*materialize the view again"):
        reader(store, view).read([project(view)], {"driver_id": [1]})


def test_wrong_requests_are_refused_before_any_work(store: StoreClient) -> None:
    """Unknown names, missing or unfit key columns and ragged rows are named."""
    view = latest(x="INT64")
    one = reader(store, view)
    with pytest.raises(UnknownName, match="feature in view 'rides' 'z'"):
        one.read([project(view, "z")], {"driver_id": [1]})
    with pytest.raises(UnknownName, match="no feature view 'ride'; did you mean 'rides'"):
        one.read([Projection(view="ride", features=("x",))], {"driver_id": [1]})
    with pytest.raises(UsageError, match="the entity rows lack 'driver_id'"):
        one.read([project(view)], {"rider": [1]})
    with pytest.raises(UsageError, match="join key 'driver_id' is declared INT64"):
        one.read([project(view)], {"driver_id": ["x"]})
    with pytest.raises(UsageError, match="differ in length"):
        one.read([project(view)], {"driver_id": [1], "b": [1, 2]})


def test_as_of_a_latest_row_is_exact_or_refused(store: StoreClient) -> None:
    """An instant before the row that is held, in the future, or of a row that may have expired is refused."""
    view = latest(ttl_us=HOUR, x="INT64")
    put(store, view, [{"driver_id": 1, "x": 1, "at": NOW - MINUTE}])
    one = reader(store, view)
    [x] = one.read([project(view)], {"driver_id": [1, 2]}, at_us=NOW - MINUTE).columns
    assert shown(x) == [(1, "PRESENT"), (None, "NOT_FOUND")]
    for at_us, driver, why in (
        (NOW - MINUTE - 1, 1, "newer than as_of"),
        (NOW + 1, 1, "future"),
        (NOW - 3 * DAY, 2, "expired"),
    ):
        with pytest.raises(NotExact, match=why):
            one.read([project(view)], {"driver_id": [driver]}, at_us=at_us)


# Windowed views

ORIGIN = (JoinKey(entity="origin", name="origin", dtype="STRING"),)
WINDOWS = {"1h": (HOUR, 5 * MINUTE), "6h": (6 * HOUR, 5 * MINUTE), "7d": (7 * DAY, HOUR), "ever": (None, None)}


def windowed() -> View:
    aggregations = tuple(
        Aggregation(
            feature=f"{function}_{name}",
            column="delay",
            column_dtype="DOUBLE",
            function=function,
            dtype="INT64" if function == "count" else "DOUBLE",
            window_us=window_us,
            hop_us=hop_us,
        )
        for name, (window_us, hop_us) in WINDOWS.items()
        for function in ("count", "mean", "max")
    )
    return View(
        name="departures",
        version=3,
        kind="windowed",
        join_keys=ORIGIN,
        features=tuple(Field(name=a.feature, dtype=a.dtype) for a in aggregations),
        ttl_us=0,
        source=Source(name="departures", path="log", timestamp_field="event_timestamp"),
        columns=(Field(name="origin", dtype="STRING"), Field(name="delay", dtype="DOUBLE")),
        aggregations=aggregations,
    )


Event = tuple[int, str, int, float]
"""Partition, origin, event us, delay."""


def tiles(
    client: StoreClient, view: View, events: Sequence[Event], complete: dict[int, int | None] | None = None
) -> None:
    """What the stream would have stored: tiles of every shard, and the list of shards."""
    keys = EntityKeyCodec(view.join_keys)
    complete = complete or {partition: None for partition, *_ in events}
    for level in TileLayout.of(view).levels:
        for partition, origin, at, delay in events:
            shard = Shard("ml", view.name, view.version, "t", partition)
            tile = int(level.tile(np.array([at]))[0])
            fresh = level.aggregate(np.array([0]), 1, np.array([at]), {"delay": pa.array([delay])})
            name = tile_key(shard.tile_prefix(level.hop_us), tile // SPAN, keys.encode({"origin": origin}) or b"")
            place = tile % SPAN * level.slot_bytes
            held = client.getrange(name, place, place + level.slot_bytes - 1)
            old = level.decode(held if len(held) == level.slot_bytes else bytes(level.slot_bytes))
            client.setrange(name, place, level.merge(old, fresh).tobytes())
    states = [{"topic_id": "t", "partition": p, "complete_from_us": since} for p, since in complete.items()]
    client.set(shards_key("ml", view.name, view.version), sealed(json.dumps(states).encode()))


def expected(events: Sequence[Event], origin: str, t: int) -> dict[str, float | int | None]:
    """Brute force: the definition of a window, event by event."""
    values: dict[str, float | int | None] = {}
    for name, (window_us, hop_us) in WINDOWS.items():
        since = -(1 << 63) if window_us is None or hop_us is None else t // hop_us * hop_us - window_us
        inside = [delay for _, o, at, delay in events if o == origin and since <= at <= t]
        values[f"count_{name}"] = len(inside)
        values[f"mean_{name}"] = sum(inside) / len(inside) if inside else None
        values[f"max_{name}"] = max(inside) if inside else None
    return values


def read_all(one: OnlineReader, view: View, origins: list[str], at_us: int | None = None) -> dict[str, Column]:
    result = one.read([project(view)], {"origin": origins}, at_us=at_us)
    return {column.feature: column for column in result.columns}


def test_windows_are_merged_over_shards_and_decay(store: StoreClient) -> None:
    """Every window equals brute force at instants that pass with no new event, whichever shard holds an event."""
    rng = random.Random(5)
    view, origins = windowed(), ["LGA", "JFK", "EWR", "none"]
    edges = [0, 1, -1, 5 * MINUTE, HOUR, 6 * HOUR, 7 * DAY]
    start = NOW // HOUR * HOUR
    ages = [abs(rng.choice(edges) + rng.choice([0, 1, -1, rng.randrange(8 * DAY)])) for _ in range(300)]
    events = [(rng.randrange(3), rng.choice(origins[:3]), start - age, float(rng.randrange(-90, 90))) for age in ages]
    tiles(store, view, events)
    for later in (0, 1, 5 * MINUTE - 1, 5 * MINUTE, HOUR - 1, HOUR, 6 * HOUR, DAY, 8 * DAY):
        columns = read_all(reader(store, view, now_us=start + later), view, origins)
        for row, origin in enumerate(origins):
            want = expected(events, origin, start + later)
            got = {name: column.to_python()[row] for name, column in columns.items()}
            assert got == want, (origin, later)
            newest = max((at for _, o, at, _ in events if o == origin), default=0)
            assert columns["count_ever"].event_us.tolist()[row] == newest


def test_an_empty_window_is_zero_and_null(store: StoreClient) -> None:
    """A key without events counts 0, its mean is a null value; both are answers."""
    view = windowed()
    tiles(store, view, [(0, "LGA", NOW, 1.0)])
    columns = read_all(reader(store, view), view, ["JFK"])
    assert shown(columns["count_1h"]) == [(0, "PRESENT")]
    assert shown(columns["mean_1h"]) == [(None, "NULL_VALUE")]


def test_nothing_streamed_is_not_zero(store: StoreClient) -> None:
    """Without any shard there is no count, not even 0; a null key has none either."""
    view = windowed()
    assert shown(read_all(reader(store, view), view, ["JFK"])["count_1h"]) == [(None, "NOT_FOUND")]
    tiles(store, view, [(0, "LGA", NOW, 1.0)])
    result = reader(store, view).read([project(view, "count_1h")], {"origin": [None, "LGA"]})
    assert shown(result.columns[0]) == [(None, "NOT_FOUND"), (1, "PRESENT")]


def test_windows_older_than_the_history_are_incomplete(store: StoreClient) -> None:
    """A window that reaches before any shard's history says so, beside its value."""
    view = windowed()
    tiles(store, view, [(0, "LGA", NOW, 2.0)], {0: None, 1: NOW - 2 * HOUR})
    columns = read_all(reader(store, view), view, ["LGA"])
    assert shown(columns["count_1h"]) == [(1, "PRESENT")]
    assert shown(columns["count_6h"]) == shown(columns["count_ever"]) == [(1, "INCOMPLETE")]
    tiles(store, view, [], {0: None, 1: None})
    assert shown(read_all(reader(store, view), view, ["LGA"])["count_ever"]) == [(1, "PRESENT")]


def test_a_shard_that_appears_is_merged_at_once(store: StoreClient) -> None:
    """The list of shards is remembered, and checked in every read."""
    view = windowed()
    one = reader(store, view)
    tiles(store, view, [(0, "LGA", NOW, 1.0)])
    assert read_all(one, view, ["LGA"])["count_1h"].to_python() == [1]
    tiles(store, view, [(4, "LGA", NOW, 1.0)], {0: None, 4: None})
    assert read_all(one, view, ["LGA"])["count_1h"].to_python() == [2]


def test_a_key_with_events_ahead_of_the_clock_is_read_at_its_newest(store: StoreClient) -> None:
    """Its instant moves, other keys' stay; both are exact there."""
    view = windowed()
    ahead = NOW // HOUR * HOUR + HOUR + 2 * SECOND  # the clock stands just before the hour, the event just after it
    events: list[Event] = [
        (0, "LGA", ahead, 5.0),
        (0, "LGA", ahead - HOUR - 10 * SECOND, 7.0),
        (1, "JFK", ahead - 5 * SECOND, 1.0),
    ]
    events.append((0, "LGA", ahead - 4 * SECOND, 3.0))
    tiles(store, view, events)
    columns = read_all(reader(store, view, now_us=ahead - 3 * SECOND), view, ["JFK", "LGA"])
    instants = columns["count_1h"].instant_us.tolist()
    assert instants[0] == ahead - 3 * SECOND
    assert instants[1] == ahead  # the all-time tile shows the event, wherever its own block lies
    for row, origin in enumerate(["JFK", "LGA"]):
        want = expected(events, origin, instants[row])
        assert {name: column.to_python()[row] for name, column in columns.items()} == want


def test_as_of_for_windows_is_exact_or_refused(store: StoreClient) -> None:
    """As of the newest event is exact; before it, or where tiles may have expired, refused."""
    view = windowed()
    events: list[Event] = [(0, "LGA", NOW - 2 * MINUTE, 5.0), (0, "LGA", NOW - 61 * MINUTE, 7.0)]
    tiles(store, view, events)
    one = reader(store, view)
    columns = read_all(one, view, ["LGA"], at_us=NOW - MINUTE)
    want = expected(events, "LGA", NOW - MINUTE)
    assert {name: column.to_python()[0] for name, column in columns.items()} == want
    with pytest.raises(NotExact, match="newer than as_of"):
        read_all(one, view, ["LGA"], at_us=NOW - 3 * MINUTE)
    with pytest.raises(NotExact, match="expired"):
        read_all(one, view, ["JFK"], at_us=NOW - 30 * DAY)


def test_a_torn_list_of_shards_is_an_error(store: StoreClient) -> None:
    """It is never taken for an empty one."""
    view = windowed()
    store.set(shards_key("ml", view.name, view.version), b"[{")
    with pytest.raises(StaleStore, match="list of shards of view 'departures'"):
        read_all(reader(store, view), view, ["LGA"])


def test_a_torn_row_is_an_error(store: StoreClient) -> None:
    """A row cut short is never decoded."""
    view = latest(x="INT64")
    put(store, view, [{"driver_id": 1, "x": 1, "at": NOW}])
    name = row_key(row_prefixes("ml", "rides"), EntityKeyCodec(DRIVER).encode({"driver_id": 1}) or b"")
    store.set(name, (store.get(name) or b"")[:-1])
    with pytest.raises(StaleStore, match="torn"):
        reader(store, view).read([project(view)], {"driver_id": [1]})


def test_a_key_that_never_stands_still_is_an_error(store: StoreClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock far behind the events ends in StoreUnavailable or an answer at the newest event, never a loop."""
    view = windowed()
    tiles(store, view, [(0, "LGA", NOW, 1.0)])
    one = reader(store, view, now_us=NOW - 4 * SECOND)
    fresh = iter(range(1, 100))
    plain = OnlineReader._mget

    def race(self: OnlineReader, names: list[bytes]) -> list[bytes | None]:
        tiles(store, view, [(0, "LGA", NOW + next(fresh), 1.0)])
        return plain(self, names)

    monkeypatch.setattr(OnlineReader, "_mget", race)
    with pytest.raises(StoreUnavailable, match="faster than they are read"):
        read_all(one, view, ["LGA"])
