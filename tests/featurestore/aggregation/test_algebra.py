"""Is every part a commutative monoid, and are parts merged the same as events taken one by one?"""

import math
from decimal import Context, Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.aggregation.errors import (
    BelowSketch,
    LeavesType,
    MagnitudeTooLarge,
    TooManyDistinct,
    TornTiles,
    ValueTooLong,
)
from featurestore.aggregation.partials import Part
from featurestore.aggregation.read import WindowReader
from featurestore.aggregation.tiles import TileLayout
from featurestore.aggregation.values import Events
from featurestore.aggregation.wide import REGISTERS, WidePart, estimate, percentile
from featurestore.errors import DefinitionError, UsageError
from featurestore.plan import Aggregation

EXACT = Context(prec=60)
FUNCTIONS = ("count", "sum", "mean", "min", "max", "var", "std", "first", "last")
ORDERED = ("min", "max", "first", "last", "last_k")
FLOATS = st.one_of(
    st.none(),
    st.floats(allow_nan=True, allow_infinity=True, width=64).filter(lambda x: not 2.0**78 <= abs(x) < math.inf),
    st.sampled_from([0.0, -0.0, 1e9, 1e9 + 0.1, 1e-300, 2.0**-80, -(2.0**77)]),
)
INTS = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.sampled_from([-(2**63), 2**63 - 1, 0]))
TEXTS = st.none() | st.text(max_size=2) | st.sampled_from(["", "\0", "aaaaaaaab", "aaaaaaaa", "aaaaaaaa\0"])
LONG = st.none() | st.decimals(-(10**28), 10**28, places=4).map(lambda d: d.quantize(Decimal("0.0001"), context=EXACT))
SHORT = st.none() | st.decimals(-999, 999, places=2)
EVENTS = st.lists(
    st.tuples(st.integers(-3, 3), FLOATS, INTS, st.none() | st.booleans(), TEXTS, st.none() | st.binary(), LONG, SHORT)
)
# Machines are shared, and the first use of Arrow imports more of it.
unhurried = settings(deadline=None)


def aggregation(function, column="x", column_dtype="DOUBLE", dtype="DOUBLE", **more):
    return Aggregation(
        feature=f"{column}_{function}", column=column, column_dtype=column_dtype, function=function, dtype=dtype, **more
    )


def all_time(function, column="x", column_dtype="DOUBLE", dtype="DOUBLE", **params):
    return aggregation(function, column, column_dtype, dtype, window_us=None, hop_us=None, params=params)


LAYOUT = TileLayout.of_aggregations(
    [all_time(function) for function in FUNCTIONS if function != "count"]
    + [all_time(function, "i", "INT64") for function in FUNCTIONS]
    + [all_time("last", "b", "BOOL", "BOOL"), all_time("count", "s", "STRING", "INT64")]
    + [
        all_time(function, column, dtype, "DOUBLE_LIST" if function == "last_k" else "INT64", **params)
        for column, dtype in (("x", "DOUBLE"), ("i", "INT64"), ("s", "STRING"))
        for function, params in (("last_k", {"k": 2}), ("count_distinct", {"cap": 3}), ("approx_count_distinct", {}))
        if (function, column) != ("last_k", "s")
    ]
    + [all_time("approx_percentile", p=0.5)]
    + [
        all_time(function, column, dtype, dtype + "_LIST" * (function == "last_k"), k=2, max_bytes=12)
        for column, dtype in (("s", "STRING"), ("y", "BYTES"))
        for function in ORDERED
    ]
    + [
        all_time(function, column, dtype, "DECIMAL" + "_LIST" * (function == "last_k"), k=2)
        for column, dtype in (("long", "DECIMAL(38,4)"), ("short", "DECIMAL(5,2)"))
        for function in (*ORDERED, "sum")
    ]
    + [all_time(function, "long", "DECIMAL(38,4)") for function in ("mean", "var")]
)
LEVEL = LAYOUT.levels[0]


def event(x):
    return (0, x, 1, True, "", b"", None, None)


def slots(events, group=None):
    columns = {
        "x": pa.array([e[1] for e in events], pa.float64()),
        "i": pa.array([e[2] for e in events], pa.int64()),
        "b": pa.array([e[3] for e in events], pa.bool_()),
        "s": pa.array([e[4] for e in events], pa.string()),
        "y": pa.array([None if e[5] is None else e[5][:12] for e in events], pa.binary()),
        "long": pa.array([e[6] for e in events], pa.decimal128(38, 4)),
        "short": pa.array([e[7] for e in events], pa.decimal128(5, 2)),
    }
    group = np.zeros(len(events), np.int64) if group is None else np.array(group, np.int64)
    return LEVEL.aggregate(
        group, max(1, *(group + 1)) if len(group) else 1, np.array([e[0] for e in events], np.int64), columns
    )


@unhurried
@given(EVENTS, EVENTS)
def test_merge_commutes(a, b):
    """Which side comes first cannot be told from the bytes."""
    assert LEVEL.merge(slots(a), slots(b)).tobytes() == LEVEL.merge(slots(b), slots(a)).tobytes()


@unhurried
@given(EVENTS, EVENTS, EVENTS)
def test_merge_associates(a, b, c):
    """How merges are grouped cannot be told from the bytes."""
    a, b, c = slots(a), slots(b), slots(c)
    assert LEVEL.merge(LEVEL.merge(a, b), c).tobytes() == LEVEL.merge(a, LEVEL.merge(b, c)).tobytes()


@unhurried
@given(EVENTS)
def test_zeros_are_the_identity(events):
    """All-zero bytes are the slot of no events."""
    zeros = LEVEL.decode(bytes(LEVEL.slot_bytes))
    assert slots([]).tobytes() == zeros.tobytes()
    assert LEVEL.merge(slots(events), zeros).tobytes() == slots(events).tobytes()


@unhurried
@given(EVENTS.flatmap(lambda events: st.tuples(st.just(events), st.permutations(events))))
def test_parts_equal_one_by_one(both):
    """Aggregated at once, in any order, and merged one event at a time: the same bytes."""
    events, shuffled = both
    one_by_one = slots([])
    for event in shuffled:
        one_by_one = LEVEL.merge(one_by_one, slots([event]))
    assert one_by_one.tobytes() == slots(events).tobytes()


def test_planted_tie_of_the_later_slot_is_caught(monkeypatch):
    """A merge that lets the second side win ties commutes no more, and is seen."""
    true = Part.merge

    def faulty(self, a, b):
        return np.where(b[0] >= a[0], b, a) if self.name == "last" else true(self, a, b)

    monkeypatch.setattr(Part, "merge", faulty)
    with pytest.raises(AssertionError):
        test_merge_commutes.hypothesis.inner_test([event(1.0)], [event(2.0)])


def test_planted_forgotten_flags_are_caught(monkeypatch):
    """A merge that keeps one side's NaN and infinities commutes no more, and is seen."""
    true = Part.merge
    monkeypatch.setattr(Part, "merge", lambda self, a, b: a if self.name == "odd" else true(self, a, b))
    with pytest.raises(AssertionError):
        test_merge_commutes.hypothesis.inner_test([event(math.nan)], [event(2.0)])


@unhurried
@given(EVENTS.filter(len).flatmap(lambda events: st.tuples(st.just(events), st.permutations(range(len(events))))))
def test_groups_do_not_mix(both):
    """Every group of a batch gets the slot that its own events alone would give."""
    events, order = both
    group = [n % 3 for n in order]
    found = slots(events, group)
    for code in range(len(found)):
        alone = slots([event for event, of in zip(events, group, strict=True) if of == code])
        assert found[code].tobytes() == alone[0].tobytes()


@unhurried
@given(EVENTS)
def test_reduce_equals_merges(events):
    """A run of slots reduced is the merge of its slots."""
    parts = [slots([event]) for event in events] + [slots([])] * 2
    merged = parts[0]
    for part in parts[1:]:
        merged = LEVEL.merge(merged, part)
    assert LEVEL.reduce(np.concatenate(parts), np.array([0])).tobytes() == merged.tobytes()


def test_newest_is_kept_without_values():
    """An event whose values are all null still counts as seen, also before the epoch."""
    slot = slots([(-5, *[None] * 7)])
    assert (slot["rows"][0], slot["newest"][0]) == (1, -5)


def test_too_large_floats_are_named():
    """A magnitude of 2**78 is an error that names its row, where it would be summed."""
    columns = {"x": pa.array([1.0, 2.0**78, math.inf, None, -1e300])}
    layout = TileLayout.of_aggregations([all_time("mean")])
    with pytest.raises(MagnitudeTooLarge) as caught:
        layout.levels[0].aggregate(np.zeros(5, np.int64), 1, np.zeros(5, np.int64), columns)
    assert caught.value.rows == [1, 4]
    assert layout.too_large(columns).tolist() == [False, True, False, False, True]


def test_too_large_floats_may_be_compared():
    """Greatest and least have no such limit."""
    layout = TileLayout.of_aggregations([all_time("max")])
    assert layout.too_large({"x": pa.array([1e300])}) is None


@pytest.mark.parametrize(
    ("dtype", "values"), [("INT64", [2**63 - 1, 1]), ("INT32", [2**31]), ("INT64", [-(2**63), -1])]
)
def test_integer_sum_that_leaves_its_type_is_named(dtype, values):
    """An exact sum is never wrapped around or rounded into its type."""
    reader = WindowReader(TileLayout.of_aggregations([all_time("sum", "i", "INT64", dtype)]))
    level = reader.layout.levels[0]
    slot = level.aggregate(np.zeros(len(values), np.int64), 1, np.zeros(len(values), np.int64), {"i": pa.array(values)})
    with pytest.raises(LeavesType) as caught:
        reader.values(0, [[[None]], [[slot.tobytes()]]])
    assert (caught.value.feature, caught.value.rows) == ("i_sum", [1])


def test_integer_sum_may_pass_beyond_its_type_and_return():
    """Partials are wider than the type: only the result must fit."""
    reader = WindowReader(TileLayout.of_aggregations([all_time("sum", "i", "INT64", "INT64")]))
    level = reader.layout.levels[0]
    events = pa.array([2**63 - 1, 2**63 - 1, -(2**63), 1])
    slot = level.aggregate(np.zeros(4, np.int64), 1, np.zeros(4, np.int64), {"i": events})
    assert reader.values(0, [[[slot.tobytes()]]]).columns["i_sum"].to_pylist() == [2**63 - 1]


@pytest.mark.parametrize("stored", [LEVEL.slot_bytes + 1, 2 * LEVEL.slot_bytes])
def test_blocks_of_another_layout_are_refused(stored):
    """Neither a part of a slot nor more slots than a block has are read as something."""
    with pytest.raises(TornTiles):
        WindowReader(LAYOUT).values(0, [[[None]], [[bytes(stored)]]])


def test_nobody_asked_about_is_no_row():
    """Without entities there are the features and no values."""
    found = WindowReader(LAYOUT).values(0, [])
    assert {len(column) for column in found.columns.values()} == {0}
    assert len(found.newest_us) == 0


def test_events_before_1970_are_the_newest_where_there_are_no_others():
    """An empty slot, whose time is zero, is no event of 1970."""
    hourly = Aggregation(
        feature="n",
        column="x",
        column_dtype="DOUBLE",
        function="count",
        dtype="INT64",
        window_us=3_600_000_000,
        hop_us=3_600_000_000,
    )
    reader = WindowReader(TileLayout.of_aggregations([hourly]))
    slot = reader.layout.levels[0].aggregate(np.zeros(1, np.int64), 1, np.array([-5]), {"x": pa.array([1.0])})
    place = bytes(31 * reader.layout.levels[0].slot_bytes)
    found = reader.values(-1, [[[place + slot.tobytes()]], [[None]]])
    assert found.newest_us.tolist() == [-5, 0]
    assert found.columns["n"].to_pylist() == [1, 0]


def test_text_that_does_not_fit_is_named():
    """A text longer than its slot is an error that names its row, and so never cut; UTF-8 is what is counted."""
    columns = {"s": pa.array(["aaaa", "éé", None, "ééa", ""])}
    layout = TileLayout.of_aggregations([all_time("last", "s", "STRING", "STRING", max_bytes=4)])
    with pytest.raises(ValueTooLong, match="max_bytes") as caught:
        layout.levels[0].aggregate(np.zeros(5, np.int64), 1, np.zeros(5, np.int64), columns)
    assert (caught.value.rows, caught.value.max_bytes) == ([3], 4)
    assert layout.too_long(columns).tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("values", [pa.array([1.5]), pa.array(["1.234"]), pa.array(["abc"]), pa.array([10**6])])
def test_what_is_no_such_decimal_is_refused(values):
    """Floats, digits beyond the scale and numbers beyond the precision do not become decimals silently."""
    layout = TileLayout.of_aggregations([all_time("last", "d", "DECIMAL(5,2)", "DECIMAL")])
    with pytest.raises(UsageError, match="'d' is declared decimal"):
        layout.levels[0].aggregate(np.zeros(1, np.int64), 1, np.zeros(1, np.int64), {"d": values})


def test_dates_are_the_instants_at_which_they_begin():
    """The greatest of dates is told as an instant, whether a date or its instant was stored."""
    for values in (pa.array([19_000, 18_000], pa.date32()), pa.array([19_000 * 86_400, 0], pa.timestamp("s"))):
        reader = WindowReader(TileLayout.of_aggregations([all_time("max", "x", "DATE", "UNIX_TIMESTAMP")]))
        slot = reader.layout.levels[0].aggregate(np.zeros(2, np.int64), 1, np.zeros(2, np.int64), {"x": values})
        [found] = reader.values(0, [[[slot.tobytes()]]]).columns["x_max"].cast(pa.int64()).to_pylist()
        assert found == 19_000 * 86_400 * 1_000_000


@pytest.mark.parametrize(
    "wrong",
    [
        all_time("last", "s", "STRING", "STRING"),
        all_time("last", "s", "STRING", "STRING", max_bytes=0),
        all_time("last", "s", "STRING", "BYTES", max_bytes=8),
        all_time("last_k", "s", "STRING", "STRING_LIST", max_bytes=1024, k=1000),
        all_time("mean", "s", "STRING", "DOUBLE"),
        all_time("sum", "d", "DECIMAL(10,2)", "INT64"),
        all_time("sum", "d", "DECIMAL(39,2)", "DECIMAL"),
        all_time("sum", "d", "DATE", "UNIX_TIMESTAMP"),
        all_time("median"),
        all_time("sum", "s", "STRING", "STRING"),
        all_time("sum", "x", "DOUBLE", "INT64"),
        all_time("mean", "i", "INT64", "INT64"),
        all_time("sum", "t", "UNIX_TIMESTAMP", "INT64"),
        all_time("max", "l", "INT64_LIST", "INT64"),
        all_time("last_k", dtype="DOUBLE_LIST"),
        all_time("last_k", dtype="DOUBLE_LIST", k=1.5),
        all_time("last_k", dtype="DOUBLE", k=2),
        all_time("count_distinct", dtype="INT64", cap=0),
        all_time("approx_percentile", p=50),
    ],
)
def test_what_cannot_be_told_is_refused(wrong):
    """A function, its column and its feature's type must go together."""
    with pytest.raises(DefinitionError):
        TileLayout.of_aggregations([wrong])


@pytest.mark.parametrize(
    ("dtype", "arrow", "values", "least"),
    [
        ("INT32", pa.int32(), [3, -4], -4),
        ("FLOAT", pa.float32(), [1.5, -0.25], -0.25),
        ("BOOL", pa.bool_(), [True, False], False),
    ],
)
def test_types_return_as_they_came(dtype, arrow, values, least):
    """A least value has its column's type."""
    reader = WindowReader(TileLayout.of_aggregations([all_time("min", "x", dtype, dtype)]))
    slot = reader.layout.levels[0].aggregate(
        np.zeros(2, np.int64), 1, np.zeros(2, np.int64), {"x": pa.array(values, arrow)}
    )
    found = reader.values(0, [[[slot.tobytes()]]]).columns["x_min"]
    assert (found.type, found.to_pylist()) == (arrow, [least])


def test_more_distinct_values_than_the_cap_are_named():
    """An exact count is never cut at its cap."""
    reader = WindowReader(TileLayout.of_aggregations([all_time("count_distinct", dtype="INT64", cap=2)]))
    level = reader.layout.levels[0]
    slot = level.aggregate(np.array([0, 0, 0, 1, 1]), 2, np.arange(5), {"x": pa.array([1.0, 2.0, 3.0, 1.0, 1.0])})
    assert reader.values(9, [[[slot[1:].tobytes()]]]).columns["x_count_distinct"].to_pylist() == [1]
    with pytest.raises(TooManyDistinct) as caught:
        reader.values(9, [[[slot[1:].tobytes()]], [[slot[:1].tobytes()]]])
    assert caught.value.rows == [1]


def test_two_lengths_of_one_column_are_refused():
    """Which events are set aside must not depend on which of its features is asked for."""
    some = [all_time(function, "s", "STRING", "STRING", max_bytes=n) for function, n in (("first", 8), ("last", 9))]
    with pytest.raises(DefinitionError, match="8 and of 9"):
        TileLayout.of_aggregations(some)


def test_estimates_are_near():
    """1,024 registers estimate within five standard errors, from one value to a million."""
    part = WidePart("registers", "int", REGISTERS)
    for n in (1, 10, 1_000, 5_000, 100_000, 1_000_000):
        events = Events(np.arange(n), np.zeros(n, np.int64))
        found = int(estimate(part.lift(events, np.array([0])))[0])
        assert abs(found - n) <= 5 * 0.0325 * n


def test_percentiles_are_near():
    """Off by at most a 64th of the value, at any rank of values on both sides of zero."""
    values = np.random.default_rng(0).normal(0, 10, 1_001)
    part = WidePart("buckets", "float", 4_096)
    words = part.lift(Events(values, np.arange(1_001)), np.array([0]))
    for p in (0.0, 0.01, 0.3, 0.5, 0.99, 1.0):
        exact = float(np.quantile(values, p, method="inverted_cdf"))
        found, lost = percentile(words, np.array([1_001]), p)
        assert not lost[0]
        assert abs(found[0] - exact) <= abs(exact) / 64


def test_percentile_below_its_sketch_is_named():
    """A percentile that the kept buckets do not reach is never guessed, however the sketch was merged."""
    values = 2.0 ** np.arange(-200, 200)
    reader = WindowReader(TileLayout.of_aggregations([all_time("approx_percentile", p=0.1)]))
    level = reader.layout.levels[0]
    parts = [
        level.aggregate(np.zeros(100, np.int64), 1, np.arange(100), {"x": pa.array(some)})
        for some in (values[::4], values[1::4], values[2::4], values[3::4])
    ]
    whole = level.aggregate(np.zeros(400, np.int64), 1, np.arange(400), {"x": pa.array(values)})
    slots = np.concatenate(parts)
    assert level.reduce(slots[[2, 0, 3, 1]], np.array([0]))["x.buckets"].tobytes() == whole["x.buckets"].tobytes()
    with pytest.raises(BelowSketch):
        reader.values(400, [[[whole.tobytes()]]])
