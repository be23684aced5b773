"""Do the join, the tiles and their reader give the bits that arithmetic on fractions gives?"""

import datetime as dt
import math
import struct
from collections import defaultdict
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.aggregation import fixedpoint, lexicon, partials, read, rings, tiles
from featurestore.aggregation.errors import LeavesType, MagnitudeTooLarge, ValueTooLong
from featurestore.aggregation.read import WindowReader
from featurestore.aggregation.tiles import SPAN, TileLayout
from featurestore.aggregation.windows import DAY_US, HOUR_US, MINUTE_US
from featurestore.errors import DefinitionError, UsageError
from featurestore.offline import windowed_chunk, windowed_ranges, windowed_spill
from featurestore.offline.windowed import windowed_join
from featurestore.offline.windowed_spill import windowed_join_batches
from featurestore.plan import Aggregation

WINDOWS = [
    (HOUR_US, 5 * MINUTE_US),
    (DAY_US, HOUR_US),
    (7 * DAY_US, HOUR_US),
    (30 * DAY_US, DAY_US),
    (10 * MINUTE_US, 10 * MINUTE_US),
    (None, None),
]
FUNCTIONS = ("count", "sum", "mean", "min", "max", "var", "std", "first", "last")
ORIGIN = 600 * 32 * DAY_US
"""An instant where hops, tiles and blocks of all levels begin."""
NAN, INF = float("nan"), float("inf")
EXACT = Context(prec=60)


class Event(NamedTuple):
    key: str | None
    ts: int | None
    arrival: int
    x: float | None
    i: int | None
    s: str | None = None
    y: bytes | None = None
    d: Decimal | None = None
    w: Decimal | None = None
    b: bool | None = None
    at: int | None = None
    day: int | None = None


COLUMNS = {
    "x": "DOUBLE",
    "i": "INT64",
    "s": "STRING",
    "y": "BYTES",
    "d": "DECIMAL(12,3)",
    "w": "DECIMAL(38,10)",
    "b": "BOOL",
    "at": "UNIX_TIMESTAMP",
    "day": "DATE",
}
ARROW = {
    "x": pa.float64(),
    "i": pa.int64(),
    "s": pa.string(),
    "y": pa.binary(),
    "d": pa.decimal128(12, 3),
    "w": pa.decimal128(38, 10),
    "b": pa.bool_(),
    "at": pa.timestamp("us", tz="UTC"),
    "day": pa.date32(),
}
NUMBERS = ("x", "i")
ORDERED = ("min", "max", "first", "last", "last_k")
SUMMED = ("sum", "mean", "var", "std")
WIDE = {
    "last_k": {"k": 3.0},
    "count_distinct": {"cap": 12.0},
    "approx_count_distinct": {},
    "approx_percentile": {"p": 0.4},
}


def suits(function, column):
    if column in NUMBERS or "count" in function or function in ORDERED:
        return True
    return column in ("d", "w", "b") and function in (*SUMMED, "approx_percentile")


def dtype_of(function, column):
    if function in ("count", "count_distinct", "approx_count_distinct"):
        return "INT64"
    dtype = COLUMNS[column].partition("(")[0].replace("DATE", "UNIX_TIMESTAMP")
    if function in ("mean", "var", "std", "approx_percentile") or (function, column) == ("max", "d"):
        dtype = "DOUBLE"
    if (function, column) == ("sum", "b"):
        dtype = "INT64"
    return dtype + "_LIST" if function == "last_k" else dtype


AGGREGATIONS = [
    Aggregation(
        feature=f"{column}_{function}_{window}",
        column=column,
        column_dtype=COLUMNS[column],
        function=function,
        dtype=dtype_of(function, column),
        window_us=window,
        hop_us=hop,
        params=WIDE.get(function, {}) | ({"max_bytes": 9.0} if column in ("s", "y") and function in ORDERED else {}),
    )
    for window, hop in WINDOWS
    for column in COLUMNS
    for function in (*FUNCTIONS, *WIDE)
    if suits(function, column)
    # What is no float or integer differs in its values, not in its windows: three are enough.
    if column in NUMBERS or window in (HOUR_US, 10 * MINUTE_US, None)
    # Wide parts make slots of kilobytes: two windows, one of them the only one of its hop, are enough.
    if function not in WIDE or window in (HOUR_US, 10 * MINUTE_US)
]
OF_NUMBERS = [each for each in AGGREGATIONS if each.column in NUMBERS]
OF_OTHERS = [each for each in AGGREGATIONS if each.column not in NUMBERS]


def oracle(events, key, t, window, hop, column, *, as_known):
    """What every function tells of the window, by definition."""
    start = -math.inf if window is None else t // hop * hop - window
    inside = [e for e in events if e.key == key and e.ts is not None and start <= e.ts <= t]
    if as_known:
        inside = [e for e in inside if e.arrival <= t]
    found = [(e.ts, getattr(e, column)) for e in inside if getattr(e, column) is not None]
    values = [value for _, value in found]
    n = len(values)
    counts = {"count": n, "count_distinct": len({bits(plain(value)) for value in values})}
    counts["approx_count_distinct"] = estimated({hashed(value, column) for value in values})
    if n == 0:
        return counts
    result = {**counts, "first": end(found, min), "last": end(found, max)}
    nan = any(value != value for value in values)
    result["min"], result["max"] = (NAN, NAN) if nan else (plain(min(values)), plain(max(values)))
    newest = sorted(found, key=lambda pair: (pair[0], rank(pair[1])), reverse=True)
    result["last_k"] = [plain(value) for _, value in newest[:3]]
    if suits("sum", column):
        result |= summed(values, column)
    return {name: told(value, column, name) for name, value in result.items()}


def summed(values, column):
    """Sums, their quotients and the percentile, of numbers."""
    n = len(values)
    strange = [value for value in values if not math.isfinite(value)]
    exact = [Fraction(value) for value in values if math.isfinite(value)]
    cut = [Fraction(int(value * 2**80), 2**80) for value in exact] if column == "x" else exact
    total = sum(strange) + 0.0 if strange else float(sum(cut))
    middle = sorted(values, key=rank)[math.ceil(0.4 * n) - 1]
    if column in ("d", "w"):
        scale = -int(middle.as_tuple().exponent)
        middle = float(int(middle.scaleb(scale, EXACT))) / float(10**scale)
    result = {"sum": total, "mean": total / n, "approx_percentile": bucket_middle(middle)}
    if n > 1:
        spread = (n * sum(value * value for value in cut) - sum(cut) ** 2) / (n * (n - 1))
        result["var"] = NAN if strange else float(spread)
        result["std"] = math.sqrt(result["var"])
    if column in ("i", "b"):
        result["sum"] = sum(values)
    if column in ("d", "w"):
        with localcontext(EXACT):
            result["sum"] = sum(values)
    return result


def told(value, column, function):
    """A value as its feature's type has it."""
    if isinstance(value, list):
        return [told(each, column, function) for each in value]
    if isinstance(value, Decimal):
        return float(value) if dtype_of(function, column) == "DOUBLE" else f"{value:f}"
    if dtype_of(function, column).startswith("UNIX_TIMESTAMP"):
        return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=value * DAY_US ** (column == "day"))
    return value


def plain(value):
    """A float without -0.0; anything else as it is."""
    return value + 0 if isinstance(value, float) else value


def rank(value):
    """What sorts values, NaN above all."""
    return (value != value, value)


def end(found, which):
    """The greatest value (NaN above all) of those at the first or last time."""
    time = which(ts for ts, _ in found)
    return plain(max((value for ts, value in found if ts == time), key=rank))


def hashed(value, column):
    """64 bits that tell a value from others: xxh3 of text, bytes and long decimals, splitmix64 of other codes."""
    if isinstance(value, str | bytes):
        return xxhash.xxh3_64_intdigest(value.encode() if isinstance(value, str) else value)
    if column == "w":
        return xxhash.xxh3_64_intdigest((int(value.scaleb(10, EXACT)) + 2**127).to_bytes(16, "big"))
    if column == "d":
        value = int(value.scaleb(3, EXACT))
    if column == "day":
        value *= DAY_US
    if isinstance(value, float):
        value = NAN if math.isnan(value) else value + 0
        code = struct.unpack(">Q", struct.pack(">d", value))[0]
        code = ~code % 2**64 if code >> 63 else code + 2**63
    else:
        code = value + 2**63
    x = (code + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def estimated(hashes):
    """How many distinct values HyperLogLog of 1,024 registers sees."""
    registers = {}
    for h in hashes:
        registers[h >> 54] = max(registers.get(h >> 54, 0), 55 - (h % 2**54).bit_length())
    if not registers:
        return 0
    share = sigma = 1 - len(registers) / 1024
    power = 1.0
    for _ in range(60):
        share *= share
        sigma, power = sigma + share * power, 2 * power
    total = float(sum(Fraction(1, 2**rank) for rank in registers.values())) + 1024 * sigma
    return round(1024 * 1024 / (2 * math.log(2)) / total)


def bucket_middle(value):
    """The middle of the bucket of a value: a 32nd of a power of two."""
    value = float(value)
    if not math.isfinite(value):
        return value
    if abs(value) < 2.0**-1022:
        return 0.0  # the cases hold no larger ones below the normal doubles
    width = 2.0 ** (math.frexp(value)[1] - 6)
    place = int(abs(value) / width)
    return math.copysign(place * width / 2 + (place + 1) * width / 2, value)


def bits(value):
    if isinstance(value, list):
        return [bits(each) for each in value]
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack(">d", value)
    return value


def wanted(events, rows, *, as_known=False, aggregations=AGGREGATIONS):
    """feature -> one value a row, as bits."""
    columns, of_key = defaultdict(list), defaultdict(list)
    for event in events:
        of_key[event.key].append(event)
    for key, t in rows:
        found = {}
        for a in aggregations:
            group = (a.window_us, a.hop_us, a.column)
            if group not in found:
                found[group] = (
                    {} if key is None or t is None else oracle(of_key[key], key, t, *group, as_known=as_known)
                )
            columns[a.feature].append(bits(whole_seconds(a, found[group].get(a.function))))
    return dict(columns)


def whole_seconds(aggregation, value):
    """Features that are timestamps are whole seconds, as Feast's messages have them."""
    if not aggregation.dtype.startswith("UNIX_TIMESTAMP") or value is None:
        return value
    return [each.replace(microsecond=0) for each in value] if isinstance(value, list) else value.replace(microsecond=0)


def table(events):
    stamp = pa.timestamp("us", tz="UTC")
    return pa.table(
        {
            "k": pa.array([e.key for e in events], pa.string()),
            "ts": pa.array([e.ts for e in events], stamp),
            "arrival": pa.array([e.arrival for e in events], stamp),
            **{name: pa.array([getattr(e, name) for e in events], kind) for name, kind in ARROW.items()},
        }
    )


def joined(events, rows, *, as_known=False, chunk_rows=1_000_000, aggregations=AGGREGATIONS, buckets=0):
    """The join of events in memory, or with buckets of events that come in batches and wait on disk."""
    asked = pa.table(
        {"id": pa.array([k for k, _ in rows], pa.string()), "at": pa.array([t for _, t in rows], pa.int64())}
    )
    more = {
        "keys": {"k": "id"},
        "event_ts": "ts",
        "entity_ts": "at",
        "aggregations": aggregations,
        "arrival": "arrival",
        "as_known": as_known,
        "chunk_rows": chunk_rows,
    }
    data = table(events)
    if buckets:
        batches = data.to_batches(max_chunksize=97)
        result = windowed_join_batches(batches, asked, schema=data.schema, folder=None, buckets=buckets, **more)
    else:
        result = windowed_join(data, asked, **more)
    return as_bits({name: result[name] for name in result.column_names})


def as_bits(columns):
    return {name: [bits(value) for value in column.to_pylist()] for name, column in columns.items()}


class Stream:
    """Tiles of several shards, updated by batches of events in any order, as a worker would."""

    def __init__(self, shards, aggregations):
        self.layout = TileLayout.of_aggregations(aggregations)
        self.reader = WindowReader(self.layout)
        self.shards = [{} for _ in range(shards)]

    def add(self, shard, events):
        data = table(events)
        ts = np.array([e.ts for e in events], np.int64)
        for level in self.layout.levels:
            places = list(zip([e.key for e in events], level.tile(ts).tolist(), strict=True))
            order = {place: code for code, place in enumerate(dict.fromkeys(places))}
            group = np.array([order[place] for place in places], np.int64)
            new = level.aggregate(group, len(order), ts, {name: data[name] for name in COLUMNS})
            blocks = [self.block(shard, level, key, tile) for key, tile in order]
            at = [tile % SPAN * level.slot_bytes for _, tile in order]
            old = b"".join(bytes(block[i : i + level.slot_bytes]) for block, i in zip(blocks, at, strict=True))
            for block, i, slot in zip(blocks, at, level.merge(level.decode(old), new), strict=True):
                block[i : i + level.slot_bytes] = slot.tobytes()

    def block(self, shard, level, key, tile):
        """The stored bytes, long enough for that tile."""
        block = self.shards[shard].setdefault((key, level.hop_us, tile // SPAN), bytearray())
        block.extend(bytes(max(0, (tile % SPAN + 1) * level.slot_bytes - len(block))))
        return block

    def read(self, keys, t):
        payloads = [
            [[bytes(shard.get((key, *block), b"")) or None for shard in self.shards] for block in self.reader.blocks(t)]
            for key in keys
        ]
        found = self.reader.values(t, payloads)
        assert (found.newest_us <= t).all()
        return as_bits(found.columns)


def streamed(events, rows, rng, shards=3, aggregations=AGGREGATIONS):
    """What readers were told at every row's time, of what had arrived by then."""
    stream = Stream(shards, aggregations)
    columns = {a.feature: [None] * len(rows) for a in aggregations}
    coming = sorted((e for e in events if e.key is not None and e.ts is not None), key=lambda e: max(e.arrival, e.ts))
    asked = sorted((t, number) for number, (key, t) in enumerate(rows) if key is not None and t is not None)
    for t in dict.fromkeys(t for t, _ in asked):
        ready = [e for e in coming if max(e.arrival, e.ts) <= t]
        coming = coming[len(ready) :]
        for chosen in np.array_split(rng.permutation(len(ready)), 2):
            where = rng.integers(0, shards, len(chosen))
            for shard in range(shards):
                some = [ready[n] for n, s in zip(chosen, where, strict=True) if s == shard]
                if some:
                    stream.add(shard, some)
        numbers = [number for when, number in asked if when == t]
        for feature, values in stream.read([rows[number][0] for number in numbers], t).items():
            for number, value in zip(numbers, values, strict=True):
                columns[feature][number] = value
    return columns


EDGES = [
    0,
    *(w for w, _ in WINDOWS if w),
    *(h for _, h in WINDOWS if h),
    SPAN * 5 * MINUTE_US,
    SPAN * HOUR_US,
    SPAN * DAY_US,
]
FLOATS = [
    [1e9, 1e9 + 1, 1e9 + 0.1, 1e9 - 1e-6],
    [0.1, 1.1, -2.5, 3.0, 1e-3],
    [0.0, -0.0, 5e-324, -1e-300, 2.0**-81, -(2.0**-80), 2.0**-27 - 2.0**-81],
    [NAN, INF, -INF, 1.0, -0.0],
    [2.0**77, -(2.0**77), 1e15, 1e-15, 3.3],
]
INTS = [[0, 1, -1], [10**9, 10**9 + 1], [2**58, -(2**58), 7], [2**31, -(2**31), 2**32 + 1]]
OTHERS = {
    "s": ["", "a", "b", "é", "a\0", "\0", "\U0001f600", "\uffff", "zzzzzzzzz", "zzzzzzzz"],
    "y": [b"", b"\0", b"\0\0", b"\xff" * 9, b"\xff" * 8, b"a"],
    "d": [Decimal(v).scaleb(-3) for v in (0, 1, -1, 999_999_999_999, -999_999_999_999, 100, 5)],
    "w": [Decimal(v).scaleb(-10, EXACT) for v in (0, 1, -1, 10**38 - 1, 1 - 10**38, 2**64, -(2**64), 2**63)],
    "b": [True, False],
    "at": [0, -1, ORIGIN, ORIGIN + 1],
    "day": [0, -1, 19_000],
}


def draw(rng, cases, events=12, rows=4):
    """Cases on and around every edge, a key each; some keys, times and values are null."""
    made, asked = [], []

    def instant():
        edge = int(rng.choice(EDGES)) * int(rng.integers(-1, 3)) - int(rng.choice(EDGES))
        return ORIGIN + edge + int(rng.integers(-1, 2))

    moments = [instant() for _ in range(24)]  # shared, so that the stream is read at few of them
    for case in range(cases):
        key = f"key {case}"
        floats, ints = FLOATS[rng.integers(len(FLOATS))], INTS[rng.integers(len(INTS))]
        for _ in range(events):
            ts = instant() if rng.random() < 0.8 or not made else made[-1].ts
            late = int(rng.choice([0, 0, 0, -1, 1, 999_999, MINUTE_US, HOUR_US + 1, 40 * DAY_US]))
            x = None if rng.random() < 0.1 else float(rng.choice(floats))
            i = None if rng.random() < 0.1 else int(rng.choice(ints))
            other = {
                name: None if rng.random() < 0.1 else some[int(rng.integers(len(some)))]
                for name, some in OTHERS.items()
            }
            made.append(Event(key, ts, (ts or 0) + late, x, i, **other))
        asked += [(key, moments[int(rng.integers(len(moments)))]) for _ in range(rows)]
    for _ in range(max(1, cases // 20)):
        made += [
            made[int(rng.integers(len(made)))],
            Event(None, ORIGIN, ORIGIN, 1.0, 1),
            Event("key 0", None, ORIGIN, 1.0, 1),
        ]
        asked += [asked[0], (None, ORIGIN), ("key 0", None), ("no such key", ORIGIN)]
    made = [made[n] for n in rng.permutation(len(made))]
    return made, [asked[n] for n in rng.permutation(len(asked))]


def differences(found, expected):
    return [
        (feature, row, found[feature][row], value)
        for feature, values in expected.items()
        for row, value in enumerate(values)
        if found[feature][row] != value
    ]


def compare_all(seed, cases, some=OF_NUMBERS):
    rng = np.random.default_rng(seed)
    events, rows = draw(rng, cases)
    plain = wanted(events, rows, aggregations=some)
    known = wanted(events, rows, as_known=True, aggregations=some)
    on_disk = int(rng.choice([1, 7, 200]))
    for as_known, expected in ((False, plain), (True, known)):
        # Each of the two on disk in every other case: the kernel is the same there.
        for buckets in [0, on_disk] if seed % 2 == as_known else [0]:
            found = joined(
                events,
                rows,
                as_known=as_known,
                chunk_rows=int(rng.choice([60, 1_000_000])),
                aggregations=some,
                buckets=buckets,
            )
            assert not differences(found, expected)
    rows = [row for row in rows if row[0] is not None and row[1] is not None]
    events = [e for e in events if e.key is not None and e.ts is not None]
    known = wanted(events, rows, as_known=True, aggregations=some)
    assert not differences(streamed(events, rows, rng, aggregations=some), known)


@pytest.mark.parametrize("seed", range(6))
def test_join_tiles_and_fractions_agree(seed):
    """2,400 keys and instants on and around every edge: no path differs from another in one bit."""
    compare_all(seed, cases=100)


@pytest.mark.parametrize("seed", range(2))
def test_join_tiles_and_fractions_agree_about_what_is_no_number(seed):
    """Text, bytes, decimals, truth values, instants and dates: no path differs from another in one bit."""
    compare_all(seed, cases=40, some=OF_OTHERS)


@pytest.mark.parametrize("fault", [None, 1e30])
def test_a_join_on_disk_leaves_nothing_behind(tmp_path, fault):
    """Whether it ends well or not."""
    data = table([Event("a", ORIGIN, ORIGIN, 1.0, 1)] if fault is None else [Event("a", ORIGIN, ORIGIN, fault, 1)])
    asked = pa.table({"id": ["a"], "at": pa.array([ORIGIN], pa.int64())})
    more = {"keys": {"k": "id"}, "event_ts": "ts", "entity_ts": "at", "aggregations": AGGREGATIONS}
    try:
        windowed_join_batches([data], asked, schema=data.schema, folder=tmp_path, buckets=7, **more)
    except MagnitudeTooLarge:
        assert fault
    assert not list(tmp_path.iterdir())


def test_keys_of_several_columns():
    """A key is all of its columns; a null in any of them is no key."""
    second = pa.timestamp("s")
    events = pa.table({"a": ["p", "p", None, "q"], "b": [1, 2, 1, 1], "ts": pa.array([1, 1, 1, 1], second)})
    rows = {
        "a": ["p", None, "p", "q", "q"],
        "c": pa.array([2, 1, 1, 1, 3], pa.int32()),
        "at": pa.array([9] * 5, second),
    }
    count = Aggregation(
        feature="n", column="b", column_dtype="INT64", function="sum", dtype="INT64", window_us=None, hop_us=None
    )
    found = windowed_join(
        events, pa.table(rows), keys={"a": "a", "b": "c"}, event_ts="ts", entity_ts="at", aggregations=[count]
    )
    assert found["n"].to_pylist() == [2, None, 1, 1, None]


def test_view_without_entities():
    """No key columns: every row sees every event."""
    events = pa.table({"x": [1, 2], "ts": pa.array([1, 5], pa.int64())})
    total = Aggregation(
        feature="n", column="x", column_dtype="INT64", function="sum", dtype="INT64", window_us=None, hop_us=None
    )
    rows = pa.table({"at": pa.array([0, 1, 9], pa.int64())})
    found = windowed_join(events, rows, keys={}, event_ts="ts", entity_ts="at", aggregations=[total])
    assert found["n"].to_pylist() == [None, 1, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": {"k": "nowhere"}}, "no column 'nowhere'"),
        ({"event_ts": "tss"}, "did you mean 'ts'"),
        ({"keys": {"i": "id"}}, "int64.*string"),
        ({"event_ts": "x"}, "must hold timestamps; double"),
        ({"as_known": True, "arrival": None}, "needs the events' arrival"),
    ],
)
def test_bad_input_is_named_before_any_work(change, message):
    """What is missing or cannot be compared is told with what exists."""
    given = {"keys": {"k": "id"}, "event_ts": "ts", "entity_ts": "at", "aggregations": AGGREGATIONS[:1], **change}
    rows = pa.table({"id": ["a"], "at": pa.array([0], pa.int64())})
    with pytest.raises(UsageError, match=message):
        windowed_join(table([]), rows, **given)


@pytest.mark.parametrize("buckets", [0, 3])
def test_sums_that_leave_their_type_name_entity_rows(buckets):
    """The positions in the error are those of the entity rows, whatever the chunks."""
    events = [Event("a", ORIGIN, ORIGIN, None, 2**62), Event("a", ORIGIN, ORIGIN, None, 2**62)]
    total = [a for a in AGGREGATIONS if a.feature == "i_sum_None"]
    with pytest.raises(LeavesType) as caught:
        joined(events, [("b", ORIGIN), ("a", ORIGIN - 1), ("a", ORIGIN)], aggregations=total, buckets=buckets)
    assert caught.value.rows == [2]


@pytest.mark.parametrize("buckets", [0, 3])
def test_values_too_large_to_sum_are_refused_where_they_are_asked_about(buckets):
    """In memory as on disk: an event that no entity row's key has harms nobody."""
    events = [Event("a", ORIGIN, ORIGIN, 1.0, 1), Event("b", ORIGIN, ORIGIN, 2.0**78, 1)]
    assert joined(events, [("a", ORIGIN)], buckets=buckets)["x_sum_None"] == [bits(1.0)]
    with pytest.raises(MagnitudeTooLarge, match="row 1" if not buckets else "row 0"):
        joined(events, [("b", ORIGIN)], buckets=buckets)
    texts = [Event("a", ORIGIN, ORIGIN, 1.0, 1, s="a"), Event("b", ORIGIN, ORIGIN, 1.0, 1, s="long" * 99)]
    of_text = [a for a in OF_OTHERS if a.column == "s" and a.function == "max"]
    assert joined(texts, [("a", ORIGIN)], buckets=buckets, aggregations=of_text)
    with pytest.raises(ValueTooLong):
        joined(texts, [("b", ORIGIN)], buckets=buckets, aggregations=of_text)


INSTANTS = st.builds(
    lambda edge, times, off: ORIGIN + times * edge + off, st.sampled_from(EDGES), st.integers(-2, 2), st.integers(-1, 1)
)
EVENTS = st.builds(
    lambda key, ts, late, x, i, others: Event(key, ts, ts + late, x, i, **others),
    st.sampled_from("ab"),
    INSTANTS,
    st.sampled_from([0, 0, 1, -1, HOUR_US, 2 * DAY_US]),
    st.none() | st.sampled_from([value for some in FLOATS for value in some]) | st.floats(-(2.0**77), 2.0**77),
    st.none() | st.sampled_from([value for some in INTS for value in some]) | st.integers(-(2**60), 2**60),
    st.fixed_dictionaries(
        {
            **{name: st.none() | st.sampled_from(some) for name, some in OTHERS.items()},
            "s": st.none() | st.sampled_from(OTHERS["s"]) | st.text(max_size=2),
            "y": st.none() | st.binary(max_size=9),
            "d": st.none() | st.decimals(-999_999_999, 999_999_999, places=3),
        }
    ),
)


SMALLEST = (st.lists(EVENTS, max_size=8), st.lists(st.tuples(st.sampled_from("ab"), INSTANTS), min_size=1, max_size=4))


@pytest.mark.parametrize("some", [OF_NUMBERS, OF_OTHERS], ids=["numbers", "others"])
@settings(deadline=None, max_examples=40)
@given(*SMALLEST)
def test_smallest_cases_agree(some, events, rows):
    """Any few events and rows: the join, the as-known join and the tiles agree with fractions."""
    plain = wanted(events, rows, aggregations=some)
    known = wanted(events, rows, as_known=True, aggregations=some)
    for buckets in (0, 2):
        assert not differences(joined(events, rows, aggregations=some, buckets=buckets), plain)
        assert not differences(joined(events, rows, as_known=True, aggregations=some, buckets=buckets), known)
    assert not differences(streamed(events, rows, np.random.default_rng(0), aggregations=some), known)


@pytest.mark.nightly
@pytest.mark.timeout(0)
def test_join_tiles_and_fractions_agree_on_many():
    """1e5 keys and instants on and around every edge: no path differs from another in one bit."""
    for seed in range(1000, 1250):
        compare_all(seed, cases=100)
    for seed in range(2000, 2080):
        compare_all(seed, cases=100, some=OF_OTHERS)


def assert_caught(seeds=range(10), some=OF_NUMBERS):
    def differs(seed):
        try:
            compare_all(seed, cases=40, some=some)
        except AssertionError:
            return True
        return False

    assert any(differs(seed) for seed in seeds)


def test_planted_text_order_is_caught(monkeypatch):
    """Words that do not tell "a" from "a" and a zero byte sort differently."""
    true = lexicon.of_text

    def faulty(column, max_bytes):
        places, found, long = true(column, max_bytes)
        return places, lexicon.Lexicon(np.vstack([found.words[:-1], np.minimum(found.words[-1:], 1)])), long

    monkeypatch.setattr(partials, "of_text", faulty)
    assert_caught(some=[each for each in OF_OTHERS if each.column == "s"])


def test_planted_comparison_of_first_words_is_caught(monkeypatch):
    """A merge that compares long values by their beginning alone differs."""
    monkeypatch.setattr(partials, "greatest", lambda words, starts: words[:, starts])
    assert_caught(some=[each for each in OF_OTHERS if each.column in ("s", "w")])


def test_planted_exclusive_window_start_is_caught(monkeypatch):
    """A join whose windows leave out their first instant differs."""
    monkeypatch.setattr(windowed_chunk, "window_start", lambda t, w, h: t // h * h - w + 1)
    assert_caught()


def test_planted_window_that_moves_with_its_head_is_caught(monkeypatch):
    """A join whose windows' tails do not move in hops differs."""
    monkeypatch.setattr(windowed_chunk, "window_start", lambda t, w, h: t - w)
    assert_caught()


@pytest.mark.parametrize("buckets", [0, 4])
def test_planted_hop_that_does_not_divide_is_caught(monkeypatch, buckets):
    """A join whose windows move by steps of another length than the declared hop differs, in memory and on disk."""
    monkeypatch.setattr(windowed_chunk, "window_start", lambda t, w, h: t // (h + 1) * (h + 1) - w)
    rng = np.random.default_rng(1)
    events, rows = draw(rng, 40)
    found = joined(events, rows, aggregations=OF_NUMBERS, buckets=buckets)
    assert differences(found, wanted(events, rows, aggregations=OF_NUMBERS))


def test_planted_bucket_that_cuts_a_key_is_caught(monkeypatch):
    """Events of a key in another bucket than its entity rows are missed by the join on disk."""
    true = windowed_spill._bucket
    monkeypatch.setattr(windowed_spill, "_bucket", lambda code, *at: np.where(code % 7 == 3, 0, true(code, *at)))
    events, rows = draw(np.random.default_rng(1), 40)
    expected = wanted(events, rows, aggregations=OF_NUMBERS)
    with pytest.raises((AssertionError, IndexError, ValueError)):
        assert not differences(joined(events, rows, aggregations=OF_NUMBERS, buckets=5), expected)


def test_planted_tie_is_caught(monkeypatch):
    """A join that takes any of the events at the last instant differs."""
    monkeypatch.setattr(windowed_ranges.SortedColumn, "_greatest_of_ties", property(lambda self: self.values))
    assert_caught()


@pytest.mark.parametrize(("first", "last"), [(-1, 0), (1, 0), (0, -1)])
def test_planted_tile_off_by_one_is_caught(monkeypatch, first, last):
    """A reader that takes a tile more or fewer at either end differs."""
    true = read.tiles_of
    monkeypatch.setattr(read, "tiles_of", lambda *at: tuple(np.add(true(*at), (first, last)).tolist()))
    assert_caught()


def test_many_keys_are_read_a_few_at_a_time(monkeypatch):
    """However little of the blocks is laid out at once, the answers are the same."""
    monkeypatch.setattr(rings, "_AT_ONCE_BYTES", 1)
    compare_all(3, cases=10)


def test_planted_lost_sign_is_caught(monkeypatch):
    """A reader that takes the last limb of a sum for a number without sign differs."""
    true = partials.Part.reduce_tiles

    def faulty(self, packed, runs):
        return (
            np.add.reduceat(packed, runs, axis=1, dtype=np.int64).T if self.name == "sum" else true(self, packed, runs)
        )

    monkeypatch.setattr(partials.Part, "reduce_tiles", faulty)
    assert_caught(some=[each for each in OF_NUMBERS if (each.column, each.function) == ("x", "sum")])


def test_planted_value_of_another_event_is_caught(monkeypatch):
    """A reader that takes the greatest value, whenever it was, for the last one differs."""
    true = partials.Part.reduce_tiles

    def faulty(self, packed, runs):
        if self.name == "last":
            return np.maximum.reduceat(packed, runs, axis=1).T
        return true(self, packed, runs)

    monkeypatch.setattr(partials.Part, "reduce_tiles", faulty)
    assert_caught(some=[each for each in OF_NUMBERS if each.function == "last"])


def test_planted_tile_edge_is_caught(monkeypatch):
    """Tiles that hold their end instead of their beginning differ."""
    monkeypatch.setattr(tiles.Level, "tile", lambda self, ts: (ts - 1) // (self.hop_us or 1 << 60))
    assert_caught()


def test_planted_float_sums_are_caught(monkeypatch):
    """Tiles that add doubles instead of limbs differ."""
    true = partials.Part.merge

    def faulty(self, a, b):
        if self.name != "sum" or self.kind != "float":
            return true(self, a, b)
        both = fixedpoint.round_to_float(a) + fixedpoint.round_to_float(b)
        return fixedpoint.sum_limbs(fixedpoint.cut(both))

    monkeypatch.setattr(partials.Part, "merge", faulty)
    assert_caught(some=[each for each in OF_NUMBERS if each.function in ("sum", "mean")])


def test_planted_negative_zero_is_caught(monkeypatch):
    """A least value that is -0.0 differs."""
    monkeypatch.setattr("featurestore.aggregation.values.tidy", lambda x: np.where(np.isnan(x), np.nan, x))
    assert_caught()


@pytest.mark.parametrize("path", [lambda some: joined([], [], aggregations=some), TileLayout.of_aggregations])
def test_hop_that_does_not_divide_is_refused(path):
    """A window that its hop does not divide has no exact value on any path."""
    crooked = msgspec.structs.replace(AGGREGATIONS[0], hop_us=7 * MINUTE_US)
    with pytest.raises(DefinitionError, match="does not divide"):
        path([crooked])
