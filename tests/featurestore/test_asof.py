"""Does the as-of join give what a few lines of plain Python give, on and around every boundary?"""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.errors import SourceError, UsageError
from featurestore.offline import asof, entity_rows, ties
from featurestore.offline.asof import AsOfResult, as_of_join
from featurestore.offline.asof_view import AsOfView, Feature, Key
from featurestore.offline.connection import Limits
from featurestore.offline.entity_rows import EntityRows
from featurestore.offline.sources import scan_table
from featurestore.online.codec import RowCodec

Row = tuple[object, int | None, int | None, int | None]  # key, event_ts, created_ts, value
Asked = tuple[object, int | None]
LIMITS = Limits(threads=1)
US = pa.timestamp("us", "UTC")


@pytest.fixture(scope="module", autouse=True, params=["in memory", "in SQL"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test runs both ways: with histories held in memory, and as if they were too large for it."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "in SQL":
            patch.setattr(asof, "MEMORY_CELLS", 0)
        yield request.param


def oracle(asked: Sequence[Asked], rows: Sequence[Row], *, ttl: int, created: bool, as_known: bool) -> list[int | None]:
    """The promise, said once more in plain Python; NULL values are the least bytes, then values by their bytes."""
    lowest = -(1 << 70)

    def order(row: Row) -> tuple[int, int, bytes]:
        _, ts, made, value = row
        assert ts is not None
        known = (made if made is not None else lowest) if created else 0
        # The codec's row: a null bit, then the value little-endian, zeros where null.
        return ts, known, bytes([value is None]) + (value or 0).to_bytes(8, "little", signed=True)

    answers: list[int | None] = []
    for key, t in asked:
        seen = [
            row
            for row in rows
            if key is not None and t is not None and row[0] == key and row[1] is not None and row[1] <= t
            if not (as_known and created) or (row[2] is not None and row[2] <= t)
        ]
        best = max(seen, key=order, default=None)
        alive = best is not None and t is not None and best[1] is not None and (ttl == 0 or best[1] + ttl >= t)
        answers.append(best[3] if best is not None and alive else None)
    return answers


def joined(
    asked: Sequence[Asked], rows: Sequence[Row], *, ttl: int = 0, created: bool = True, as_known: bool = False
) -> AsOfResult:
    source = pa.table(
        {
            "id": pa.array([row[0] for row in rows], pa.int64()),
            "ts": pa.array([row[1] for row in rows], US),
            "made": pa.array([row[2] for row in rows], US),
            "value": pa.array([row[3] for row in rows], pa.int64()),
        }
    )
    view = AsOfView(
        name="view",
        scan=scan_table(source, name="source"),
        keys=(Key("id", "id", "INT64"),),
        timestamp="ts",
        created="made" if created else None,
        ttl_us=ttl,
        features=(Feature("value", "value", "INT64"),),
    )
    entities = pa.table({"id": pa.array([k for k, _ in asked], pa.int64()), "t": pa.array([t for _, t in asked], US)})
    return as_of_join(EntityRows(entities, "t"), [view], as_known=as_known, limits=LIMITS)


def values(result: AsOfResult) -> list[int | None]:
    found: list[int | None] = result.table["value"].to_pylist()
    return found


# A handful of instants makes ties likely; neighbours one microsecond apart sit on both sides of every bound.
times = st.sampled_from([-1, 0, 1, 9, 10, 11, 19, 20, 21, 1_700_000_000_000_000])
keys = st.sampled_from([1, 2, None])
numbers = st.one_of(st.none(), st.integers(-3, 3))
rows_of = st.lists(
    st.tuples(keys, st.one_of(st.none(), times), st.one_of(st.none(), times), numbers), min_size=1, max_size=14
)
asked_of = st.lists(st.tuples(keys, st.one_of(st.none(), times)), max_size=8)


def check(asked: list[Asked], rows: list[Row], ttl: int, created: bool, as_known: bool) -> None:
    found = values(joined(asked, rows, ttl=ttl, created=created, as_known=as_known))
    assert found == oracle(asked, rows, ttl=ttl, created=created, as_known=as_known)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(asked_of, rows_of, st.sampled_from([0, 1, 9, 10, 11, 20]), st.booleans(), st.booleans())
def test_join_equals_the_oracle(asked: list[Asked], rows: list[Row], ttl: int, created: bool, as_known: bool) -> None:
    """Ttl bounds, ties, created ties, duplicates, nulls, as known or not: zero differences."""
    check(asked, rows, ttl, created, as_known)


def check_batch(seed: int, cases: int = 100) -> None:
    """A hundred cases in one call: each has keys of its own, so that none sees another's rows."""
    random = Random(seed)
    ttl, created, as_known = random.choice([0, 1, 9, 10, 11, 20]), random.random() < 0.7, random.random() < 0.5
    instants = [-1, 0, 1, 9, 10, 11, 19, 20, 21]
    asked: list[Asked] = []
    rows: list[Row] = []
    expected: list[int | None] = []

    def pick(span: int) -> int | None:
        return None if random.random() < 0.02 else random.choice(instants[:span])

    def key(case: int) -> int | None:
        return None if random.random() < 0.05 else 2 * case + random.randint(0, 1)

    for case in range(cases):
        span = random.randint(2, len(instants))
        mine: list[Row] = [
            (key(case), pick(span), pick(span), random.choice([None, *range(-2, 3)]))
            for _ in range(random.randint(1, 10))
        ]
        mine_asked: list[Asked] = [(key(case), pick(span)) for _ in range(random.randint(1, 5))]
        expected += oracle(mine_asked, mine, ttl=ttl, created=created, as_known=as_known)
        asked, rows = asked + mine_asked, rows + mine
    random.shuffle(rows)
    found = values(joined(asked, rows, ttl=ttl, created=created, as_known=as_known))
    assert found == expected, f"seed {seed}"


def test_join_equals_the_oracle_on_batches() -> None:
    """Four thousand random cases on and around every boundary: zero differences."""
    for seed in range(40):
        check_batch(seed)


@pytest.mark.nightly
@pytest.mark.timeout(7_200)
def test_join_equals_the_oracle_on_very_many_cases() -> None:
    """A hundred thousand random cases: zero differences."""
    for seed in range(1_000, 2_000):
        check_batch(seed)


def check_batches(seeds: range) -> None:
    for seed in seeds:
        check_batch(seed)


def exclusive_ttl(monkeypatch: pytest.MonkeyPatch) -> None:
    correct = asof.join_sql
    monkeypatch.setattr(asof, "join_sql", lambda *a, **k: correct(*a, **k).replace("e.t - h.ts <=", "e.t - h.ts <"))


def exclusive_instant(monkeypatch: pytest.MonkeyPatch) -> None:
    correct = asof.join_sql
    monkeypatch.setattr(asof, "join_sql", lambda *a, **k: correct(*a, **k).replace("e.t >= ", "e.t > "))


def no_tie_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asof, "_settle", lambda *a, **k: None)


def least_bytes_win(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(RowCodec):
        def encode(self, *args: Any) -> list[bytes]:
            return [bytes(255 - byte for byte in row) for row in super().encode(*args)]

    monkeypatch.setattr(ties, "RowCodec", Wrong)


def created_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    correct = asof.join_sql
    monkeypatch.setattr(asof, "join_sql", lambda *a, **k: correct(*a, **(k | {"as_known": False})))


def outdated_rows_show(monkeypatch: pytest.MonkeyPatch) -> None:
    correct = asof.join_sql
    monkeypatch.setattr(
        asof, "join_sql", lambda *a, **k: correct(*a, **k).replace("QUALIFY ts >= max(ts)", "QUALIFY ts <= max(ts)")
    )


@pytest.mark.parametrize(
    "plant", [exclusive_ttl, exclusive_instant, no_tie_break, least_bytes_win, created_is_ignored, outdated_rows_show]
)
def test_planted_fault_is_caught(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle notices each fault that a join could have."""
    plant(monkeypatch)
    with pytest.raises((AssertionError, SourceError)):
        check_batches(range(40))


def test_duplicates_that_differ_are_reported() -> None:
    """Rows equal in key, event and created time but not in value: the choice is told, with how many there were."""
    result = joined([(1, 10), (2, 10)], [(1, 5, 6, 7), (1, 5, 6, 8), (1, 5, 6, 8), (2, 5, 6, 1), (2, 5, 6, 1)])
    (reported,) = result.duplicates
    assert reported.view == "view"
    assert reported.rows.drop(["event_ts", "created_ts"]).to_pylist() == [{"id": 1, "rows": 3}]


def test_the_winner_of_duplicates_does_not_depend_on_the_features_asked_for() -> None:
    """Bytes of all features order duplicates: two requests never mix two rows into one entity."""
    source = pa.table({"id": [1, 1], "ts": pa.array([5, 5], US), "a": [1, 2], "b": [2, 1]})
    every = (Feature("a", "a", "INT64"), Feature("b", "b", "INT64"))
    asked = EntityRows(pa.table({"id": [1], "t": pa.array([9], US)}), "t")

    def ask(*features: Feature) -> dict[str, object]:
        view = AsOfView(
            name="v",
            scan=scan_table(source, name="s"),
            keys=(Key("id", "id", "INT64"),),
            timestamp="ts",
            features=features,
            every_feature=every,
        )
        row: dict[str, object] = as_of_join(asked, [view], limits=LIMITS).table.to_pylist()[0]
        return row

    both = ask(*every)
    assert ask(every[0])["a"] == both["a"]
    assert ask(every[1])["b"] == both["b"]


def view_of(
    source: pa.Table, *features: Feature, keys: Sequence[Key] = (Key("id", "id", "INT64"),), name: str = "v"
) -> AsOfView:
    return AsOfView(name=name, scan=scan_table(source, name=name), keys=tuple(keys), timestamp="ts", features=features)


def ask(entities: pa.Table, *views: AsOfView) -> pa.Table:
    return as_of_join(EntityRows(entities, "t"), list(views), limits=LIMITS).table


def test_order_and_duplicates_of_entity_rows_are_kept() -> None:
    """One output row per entity row, in input order."""
    source = pa.table({"id": [1, 2], "ts": pa.array([0, 0], US), "f": [10, 20]})
    entities = pa.table(
        {"id": [2, 1, 2, 2, 3], "t": pa.array([1, 1, 0, 1, 1], US), "label": ["a", "b", "c", "a", None]}
    )
    result = ask(entities, view_of(source, Feature("f", "f", "INT64")))
    assert result["f"].to_pylist() == [20, 10, 20, 20, None]
    assert result["label"].to_pylist() == entities["label"].to_pylist()


def test_no_entity_rows_give_typed_empty_columns() -> None:
    """Zero rows in, zero rows out, with the features' types."""
    source = pa.table({"id": [1], "ts": pa.array([0], US), "f": [10]})
    result = ask(
        pa.table({"id": pa.array([], pa.int64()), "t": pa.array([], US)}), view_of(source, Feature("f", "f", "INT64"))
    )
    assert result.schema.field("f").type == pa.int64()
    assert len(result) == 0


def test_entityless_view_joins_on_time_alone() -> None:
    """Without keys one row is everybody's."""
    source = pa.table({"ts": pa.array([0, 5], US), "f": [10, 20]})
    result = ask(pa.table({"t": pa.array([4, 5, -1], US)}), view_of(source, Feature("f", "f", "INT64"), keys=()))
    assert result["f"].to_pylist() == [10, 20, None]


def test_one_view_joins_twice_under_two_entity_columns() -> None:
    """The same view by origin and by destination."""
    source = pa.table({"id": ["EWR", "JFK"], "ts": pa.array([0, 0], US), "f": [1.5, 2.5]})
    entities = pa.table({"origin": ["EWR"], "dest": ["JFK"], "t": pa.array([0], US)})
    views = [
        view_of(source, Feature(f"{side}__f", "f", "DOUBLE"), keys=[Key("id", side, "STRING")], name=side)
        for side in ("origin", "dest")
    ]
    assert ask(entities, *views).drop("t").to_pylist() == [
        {"origin": "EWR", "dest": "JFK", "origin__f": 1.5, "dest__f": 2.5}
    ]


def test_entity_rows_are_made_ready_once_for_all_views(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten views of one key: its column is converted once, and registered with SQL once."""
    coerced, registered = [], []
    true_coerce, true_connection = entity_rows.coerce_key, asof.connection

    class Session:
        def __init__(self, session: Any) -> None:
            self._session = session

        def register(self, name: str, table: Any) -> None:
            registered.append(name)
            self._session.register(name, table)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._session, name)

    @contextmanager
    def connection(limits: Limits) -> Iterator[Any]:
        with true_connection(limits) as session:
            yield Session(session)

    monkeypatch.setattr(entity_rows, "coerce_key", lambda *a, **k: coerced.append(1) or true_coerce(*a, **k))
    monkeypatch.setattr(asof, "connection", connection)
    source = pa.table({"id": [1, 2], "ts": pa.array([0, 0], US), "f": [10, 20]})
    views = [view_of(source, Feature(f"f{n}", "f", "INT64"), name=f"v{n}") for n in range(10)]
    result = ask(pa.table({"id": [2, 1], "t": pa.array([1, 1], US)}), *views)
    assert all(result[f"f{n}"].to_pylist() == [20, 10] for n in range(10))
    assert len(coerced) == 1
    assert registered.count("entities0") == (way == "in SQL")
    assert "entities1" not in registered


def test_names_never_collide() -> None:
    """Feature names ending in _y, source columns named like ours, entity columns named like a source's column."""
    source = pa.table({"id": [1], "T": pa.array([3], US), "ts": [99], "price_y": [1], "row": [2], "k0": [3], "c": [4]})
    features = [Feature(name, name, "INT64") for name in ("price_y", "k0", "c", "ts")]
    view = AsOfView(
        name="v",
        scan=scan_table(source, name="s"),
        keys=(Key("id", "id", "INT64"),),
        timestamp="T",
        features=tuple(features),
    )
    entities = pa.table({"id": [1], "price": [7], "row": [8], "f0": [9], "t": pa.array([3], US)})
    found = ask(entities, view).drop("t").to_pylist()
    assert found == [{"id": 1, "price": 7, "row": 8, "f0": 9, "price_y": 1, "k0": 3, "c": 4, "ts": 99}]


def _collections() -> Iterator[tuple[str, pa.Array]]:
    """Lists and sets of everything; a set is a list to Arrow."""
    items: dict[str, tuple[pa.DataType, object]] = {
        "BYTES": (pa.binary(), b"\x00"),
        "STRING": (pa.string(), "é"),
        "INT32": (pa.int32(), 2**31 - 1),
        "INT64": (pa.int64(), 2**53 + 1),
        "DOUBLE": (pa.float64(), 0.1),
        "FLOAT": (pa.float32(), 0.5),
        "BOOL": (pa.bool_(), True),
        "UNIX_TIMESTAMP": (US, datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
        "UUID": (pa.string(), "8f1f3c7e-5a55-4d0e-9d5b-0d6f1f4b2c3d"),
        "TIME_UUID": (pa.string(), "8f1f3c7e-5a55-1d0e-9d5b-0d6f1f4b2c3d"),
        "DECIMAL": (pa.decimal128(20, 3), Decimal("12345678901234567.001")),
        "VALUE": (pa.list_(pa.int64()), [1, 2]),
    }
    for name, (dtype, value) in items.items():
        for kind in ("LIST", "SET"):
            yield f"{name}_{kind}", pa.array([[value, value] if kind == "LIST" else [value], None], pa.list_(dtype))
    for name, dtype in {
        "JSON": pa.string(),
        "MAP": pa.map_(pa.string(), pa.string()),
        "STRUCT": pa.struct([("a", pa.int64())]),
    }.items():
        one = {"JSON": "[1]", "MAP": [("a", "b")], "STRUCT": {"a": 1}}[name]
        yield f"{name}_LIST", pa.array([[one], None], pa.list_(dtype))


TYPED: list[tuple[str, pa.Array]] = [
    ("INT64", pa.array([2**63 - 1, None])),
    ("INT32", pa.array([-(2**31), None], pa.int32())),
    ("DOUBLE", pa.array([0.1, None])),
    ("FLOAT", pa.array([0.1, None], pa.float32())),
    ("STRING", pa.array(["é\0", None])),
    ("BYTES", pa.array([b"\x00\xff", None])),
    ("BOOL", pa.array([True, None])),
    ("UNIX_TIMESTAMP", pa.array([-1_000_000, None], US)),
    ("INT64_LIST", pa.array([[1, None, 2**62], None])),
    ("STRING_LIST", pa.array([["a", ""], None])),
    ("VALUE_LIST", pa.array([[[1], [], None], None])),
    ("MAP", pa.array([[("a", "b")], None], pa.map_(pa.string(), pa.string()))),
    ("STRUCT", pa.array([{"a": 1, "b": "x"}, None])),
    ("DECIMAL", pa.array([Decimal("1.0000000001"), None], pa.decimal128(38, 10))),
    ("STRING", pa.array(["a", None]).dictionary_encode()),
    ("JSON", pa.array(['{"a": [1]}', None])),
    ("UUID", pa.array(["8f1f3c7e-5a55-4d0e-9d5b-0d6f1f4b2c3d", None])),
    ("TIME_UUID", pa.array([b"0123456789abcdef", None], pa.binary(16))),
    ("PDF_BYTES", pa.array([b"%PDF", None])),
    ("IMAGE_BYTES", pa.array([b"\x89PNG", None])),
    ("ZONED_TIMESTAMP", pa.array([1, None], pa.timestamp("us", "Asia/Kolkata"))),
    ("SCALAR_MAP", pa.array([[("a", 1.5)], None], pa.map_(pa.string(), pa.float64()))),
    *_collections(),
]


@pytest.mark.parametrize(("dtype", "column"), TYPED, ids=[f"{dtype}-{column.type}"[:40] for dtype, column in TYPED])
def test_types_are_exact_beside_null(dtype: str, column: pa.Array) -> None:
    """Values come back as they are in the source; a NULL in the chosen row and a missing row are NULL."""
    source = pa.table({"id": [1, 2], "ts": pa.array([0, 0], US), "f": column})
    result = ask(pa.table({"id": [1, 2, 3], "t": pa.array([0, 0, 0], US)}), view_of(source, Feature("f", "f", dtype)))
    assert result["f"].to_pylist() == [*column.to_pylist(), None]
    decoded = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    assert result.schema.field("f").type == decoded


def test_every_type_that_feast_has_is_tried() -> None:
    """A type that a later Feast adds has to be looked at here."""
    from feast.value_type import ValueType

    assert {dtype for dtype, _ in TYPED} == {each.name for each in ValueType} - {"UNKNOWN", "NULL"}


def test_values_take_their_declared_type() -> None:
    """Offline values are those that would be stored and served: 32 bits for FLOAT, no -0.0, NaN of pandas as NULL."""
    source = pa.table({"id": [1, 2], "ts": pa.array([0, 0], US), "a": [0.1, -0.0], "b": [1.0, float("nan")]})
    entities = pa.table({"id": [1, 2], "t": pa.array([0, 0], US)})
    result = ask(entities, view_of(source, Feature("a", "a", "FLOAT"), Feature("b", "b", "INT64")))
    assert str(result["a"].to_pylist()) == "[0.10000000149011612, 0.0]"
    assert result["b"].to_pylist() == [1, None]
    with pytest.raises(SourceError, match=r"feature 'a' is declared INT64, its source holds double"):
        ask(entities, view_of(source, Feature("a", "a", "INT64")))


def clocks() -> list[tuple[str, pa.Array]]:
    """One instant, 100 us before the epoch, in every form a column can give it."""
    return [
        ("ns floored", pa.array([-99_001], pa.timestamp("ns"))),
        ("ns zoned", pa.array([-99_001], pa.timestamp("ns", "America/New_York"))),
        ("us naive", pa.array([-100], pa.timestamp("us"))),
        ("us zoned", pa.array([-100], pa.timestamp("us", "Asia/Kolkata"))),
        ("text UTC", pa.array(["1969-12-31T23:59:59.999900Z"])),
        ("text offset", pa.array(["1970-01-01 05:29:59.999900+05:30"])),
        ("text naive", pa.array(["1969-12-31T23:59:59.999900"])),
    ]


@pytest.mark.parametrize(("form", "column"), clocks(), ids=[form for form, _ in clocks()])
@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_every_form_of_a_timestamp_is_the_same_instant(
    form: str, column: pa.Array, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nanoseconds are floored, naive is UTC, whatever the machine's own zone, on both sides of the join."""
    monkeypatch.setenv("TZ", zone)
    source = pa.table({"id": [1], "ts": column, "f": [1]})
    around = pa.table({"id": [1, 1], "t": pa.array([-101, -100], US)})
    assert ask(around, view_of(source, Feature("f", "f", "INT64")))["f"].to_pylist() == [None, 1]
    exact = pa.table({"id": [1, 1], "ts": pa.array([-100, -99], US), "f": [1, 2]})
    asked = ask(pa.table({"id": [1], "t": column}), view_of(exact, Feature("f", "f", "INT64")))
    assert asked["f"].to_pylist() == [1]
    assert asked.schema.field("t").type == US


def test_days_of_daylight_saving_are_not_special() -> None:
    """The hour that happens twice is two instants; a ttl of a day is 24 hours, not a civil day."""
    zone = ZoneInfo("America/New_York")
    first = datetime(2024, 11, 3, 1, 30, tzinfo=zone).astimezone(UTC)
    second = datetime(2024, 11, 3, 1, 30, fold=1, tzinfo=zone).astimezone(UTC)
    source = pa.table({"id": [1, 1], "ts": pa.array([first, second], pa.timestamp("us", str(zone))), "f": [1, 2]})
    view = AsOfView(
        name="v",
        scan=scan_table(source, name="s"),
        keys=(Key("id", "id", "INT64"),),
        timestamp="ts",
        ttl_us=86_400_000_000,
        features=(Feature("f", "f", "INT64"),),
    )
    day = timedelta(days=1)
    asked = [first, second - timedelta(microseconds=1), second, second + day, second + day + timedelta(microseconds=1)]
    entities = pa.table({"id": [1] * 5, "t": pa.array(asked, pa.timestamp("us", str(zone)))})
    assert ask(entities, view)["f"].to_pylist() == [1, 1, 2, 2, None]


@pytest.mark.parametrize(
    ("declared", "side", "other"),
    [
        ("INT64", pa.array(["5"]), pa.array([5], pa.int32())),
        ("INT64", pa.array([5.0]), pa.array(["5"])),
        ("INT32", pa.array([5], pa.uint8()), pa.array([5.0])),
        ("STRING", pa.array([5]), pa.array(["5"]).dictionary_encode()),
        ("STRING", pa.array(["5"], pa.large_string()), pa.array([5], pa.int16())),
        ("BYTES", pa.array([b"5"]), pa.array([b"5"], pa.large_binary())),
        ("UNIX_TIMESTAMP", pa.array([5], US), pa.array([5_000], pa.timestamp("ns"))),
        ("BOOL", pa.array([True]), pa.array([True])),
    ],
)
def test_keys_meet_in_the_declared_type(declared: str, side: pa.Array, other: pa.Array) -> None:
    """5 and "5" are one key of an entity, on whichever side they stand."""
    keys = [Key("id", "id", declared)]
    for left, right in ((side, other), (other, side)):
        source = pa.table({"id": left, "ts": pa.array([0], US), "f": [1]})
        entities = pa.table({"id": right, "t": pa.array([0], US)})
        assert ask(entities, view_of(source, Feature("f", "f", "INT64"), keys=keys))["f"].to_pylist() == [1]


@pytest.mark.parametrize(
    ("declared", "column", "message"),
    [
        ("INT64", pa.array([1.5]), "holds double, its entity is declared INT64"),
        ("INT64", pa.array(["05"]), "holds string, its entity is declared INT64"),
        ("STRING", pa.array([1.5]), "holds double, its entity is declared STRING"),
        ("INT64", pa.array([True]), "holds bool, its entity is declared INT64"),
    ],
)
def test_a_lossy_key_is_refused_with_both_types(declared: str, column: pa.Array, message: str) -> None:
    """No key is rounded, truncated or guessed; the entity rows' column is named."""
    source = pa.table({"id": pa.array(["1"]), "ts": pa.array([0], US), "f": [1]})
    view = view_of(source, Feature("f", "f", "INT64"), keys=[Key("id", "id", declared)])
    with pytest.raises(UsageError, match=f"entity rows, join key 'id' {message}"):
        ask(pa.table({"id": column, "t": pa.array([0], US)}), view)


def test_a_source_key_that_cannot_be_converted_is_refused() -> None:
    """Both types are said, where the column cannot and where one row cannot; never the key."""
    features = [Feature("f", "f", "INT64")]
    entities = pa.table({"id": [1], "t": pa.array([0], US)})
    source = pa.table({"id": pa.array([True]), "ts": pa.array([0], US), "f": [1]})
    with pytest.raises(SourceError, match="join key 'id' is bool there, its entity is declared INT64"):
        ask(entities, view_of(source, *features))
    source = pa.table({"id": pa.array([1.5]), "ts": pa.array([0], US), "f": [1]})
    with pytest.raises(SourceError, match="declared INT64, a double there cannot become one without loss"):
        ask(entities, view_of(source, *features))


def test_what_is_wrong_with_a_request_is_said_before_any_work() -> None:
    """Missing columns, clashing names and timestamps that are none: one line that names them."""
    source = pa.table({"id": [1], "ts": pa.array([0], US), "f": [1], "label": ["x"]})
    good = pa.table({"id": [1], "t": pa.array([0], US), "label": ["a"]})
    f = Feature("f", "f", "INT64")
    with pytest.raises(UsageError, match="no timestamp column 't'; did you mean"):
        EntityRows(pa.table({"id": [1], "tt": [0]}), "t")
    with pytest.raises(UsageError, match="0, which is no instant from 1990 to 2100"):
        EntityRows(pa.table({"id": [1], "t": [0]}), "t")
    with pytest.raises(UsageError, match="'yesterday' is no ISO 8601 instant"):
        EntityRows(pa.table({"t": ["yesterday"]}), "t")
    with pytest.raises(UsageError, match="no join key 'driver'"):
        ask(good, view_of(source, f, keys=[Key("id", "driver", "INT64")]))
    with pytest.raises(UsageError, match="'label' of view 'v' has the name of an entity column"):
        ask(good, view_of(source, Feature("label", "label", "STRING")))
    with pytest.raises(UsageError, match="'f' of view 'w' has the name of a feature of view 'v'"):
        ask(good, view_of(source, f), view_of(source, f, name="w"))
    with pytest.raises(SourceError, match="v has no feature column 'g'"):
        ask(good, view_of(source, Feature("g", "g", "INT64")))
    wrong = pa.table({"id": [True], "f": [1]})
    with pytest.raises(SourceError, match="column 'id' is bool, not a time"):
        ask(good, AsOfView(name="v", scan=scan_table(wrong, name="v"), keys=(), timestamp="id", features=(f,)))
    with pytest.raises(SourceError, match="v has no rows"):
        ask(good, view_of(source.slice(0, 0), f))


def test_many_threads_join_at_once() -> None:
    """Calls share nothing: eight threads get eight right answers."""
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            check_batch(seed, cases=30)
        except BaseException as error:  # noqa: BLE001 (handed to the main thread)
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_feast_is_never_imported() -> None:
    """The kernel is for any process: it reaches neither Feast nor Great Expectations."""
    code = "import sys, featurestore.offline.asof; print({'feast', 'great_expectations', 'redis'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "set()"
