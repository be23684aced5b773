"""Rows survive the codec bit for bit, whatever their types, and stay readable when a view's features change."""

import math
import struct
import uuid
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import StaleStore, UsageError
from featurestore.online import nested
from featurestore.online.codec import RowCodec, fingerprint_of
from featurestore.online.types import SCALARS, arrow_type, from_python, to_column, to_python
from featurestore.plan import Field

INSTANTS = st.integers(-(1 << 62), 1 << 62)
MOMENTS = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(lambda t: t.replace(microsecond=0, tzinfo=UTC))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES: dict[str, st.SearchStrategy[object]] = {
    "INT32": st.integers(-(1 << 31), (1 << 31) - 1),
    "INT64": st.integers(-(1 << 63), (1 << 63) - 1),
    "FLOAT": st.floats(width=32),
    "DOUBLE": st.floats(),
    "BOOL": st.booleans(),
    "UNIX_TIMESTAMP": MOMENTS,
    **dict.fromkeys(["STRING", "JSON", "UUID", "TIME_UUID", "DECIMAL"], TEXTS),
    **dict.fromkeys(["BYTES", "PDF_BYTES", "IMAGE_BYTES"], st.binary()),
}
LISTS = {f"{item}_LIST": st.lists(st.none() | VALUES[item], max_size=5) for item in SCALARS}
SETS = {f"{item}_SET": st.lists(VALUES[item], max_size=5) for item in ("INT64", "STRING", "BYTES", "BOOL")}
SETS["DOUBLE_SET"] = st.lists(st.floats(allow_nan=False), max_size=5)
TYPES = VALUES | LISTS | SETS


def bits(value: object) -> object:
    """What has to be equal: the bits of floats (with one NaN and one zero), everything else itself."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack("<d", value + 0.0)
    if isinstance(value, list):
        return [bits(item) for item in value]
    return value


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Field], dict[str, list[object]], list[int], list[int]]:
    """Features of random types, and rows of random values with nulls."""
    dtypes = draw(st.lists(st.sampled_from(sorted(TYPES)), max_size=12))
    rows = draw(st.integers(0, 5))
    fields = [Field(name=f"f{i}", dtype=dtype) for i, dtype in enumerate(dtypes)]
    columns = {f.name: draw(st.lists(st.none() | TYPES[f.dtype], min_size=rows, max_size=rows)) for f in fields}
    times = st.lists(INSTANTS, min_size=rows, max_size=rows)
    return fields, columns, draw(times), draw(times)


def encoded(codec: RowCodec, columns: dict[str, list[object]], event: list[int], created: list[int]) -> list[bytes]:
    arrays = {f.name: from_python(columns[f.name], f.dtype, name=f.name) for f in codec.features}
    return codec.encode(arrays, np.array(event, np.int64), np.array(created, np.int64))


@settings(max_examples=300, deadline=None)
@given(tables())
def test_rows_come_back_bit_for_bit(table: tuple[list[Field], dict[str, list[object]], list[int], list[int]]) -> None:
    """Every value of every type, null or not, and both times are what was written; NaN is no null."""
    fields, columns, event, created = table
    codec = RowCodec(fields)
    read = codec.decode(encoded(codec, columns, event, created))
    assert read.event_us.tolist() == event
    assert read.created_us.tolist() == created
    for field in fields:
        got, given_values = read.columns[field.name], columns[field.name]
        assert got.type == arrow_type(field.dtype)
        got.validate(full=True)
        if field.dtype.endswith("_SET"):
            given_values = [None if v is None else sorted(set(v)) for v in given_values]  # type: ignore[call-overload]
        assert bits(got.to_pylist()) == bits(given_values)


@settings(max_examples=100, deadline=None)
@given(tables(), st.randoms(use_true_random=False), st.data())
def test_old_rows_stay_readable(
    table: tuple[list[Field], dict[str, list[object]], list[int], list[int]], random: object, data: st.DataObject
) -> None:
    """The stored schema alone reads rows of an older layout, all features or some of them."""
    fields, columns, event, created = table
    codec = RowCodec(fields)
    rows = encoded(codec, columns, event, created)
    later = RowCodec.of_schema(codec.schema)
    assert later.fingerprint == codec.fingerprint
    names = data.draw(st.sets(st.sampled_from([f.name for f in fields]))) if fields else set()
    read = later.decode(rows, [*names, "added_since"])
    assert set(read.columns) == names
    for name in names:
        whole = codec.decode(rows).columns[name]
        assert read.columns[name].equals(whole) or bits(read.columns[name].to_pylist()) == bits(whole.to_pylist())


def test_reordering_features_changes_no_byte_and_other_changes_show_in_the_fingerprint() -> None:
    """The order of features means nothing; a new name or type is another layout."""
    a, b = Field(name="a", dtype="INT64"), Field(name="b", dtype="STRING")
    assert RowCodec([a, b]).fingerprint == RowCodec([b, a]).fingerprint
    others = [[a], [a, b, Field(name="c", dtype="BOOL")], [Field(name="a", dtype="DOUBLE"), b]]
    assert len({RowCodec(fields).fingerprint for fields in [[a, b], *others]}) == 4


@given(st.lists(st.tuples(INSTANTS, INSTANTS), min_size=2, max_size=2))
def test_byte_order_is_time_order(times: list[tuple[int, int]]) -> None:
    """Rows sort by event time, then created time, as bytes."""
    codec = RowCodec([])
    rows = codec.encode({}, np.array([e for e, _ in times]), np.array([c for _, c in times]))
    assert (rows[0] < rows[1]) == (times[0] < times[1])


def test_equal_values_have_equal_bytes() -> None:
    """-0.0 is 0.0, every NaN is the same, what lies under a null does not show, a set has no order."""
    codec = RowCodec([Field(name="x", dtype="DOUBLE"), Field(name="s", dtype="INT64_SET")])
    other_nan = struct.unpack("<d", struct.pack("<Q", 0xFFF8000000000001))[0]
    hidden = pa.Array.from_buffers(
        pa.float64(), 2, [pa.py_buffer(b"\x02"), pa.py_buffer(struct.pack("<dd", 7.0, 1.0))], null_count=1
    )
    t = np.zeros(2, np.int64)
    sets = pa.array([[1, 2], [2, 1]])
    one = codec.encode({"x": pa.array([-0.0, math.nan]), "s": sets}, t, t)
    two = codec.encode({"x": pa.array([0.0, other_nan]), "s": pa.array([[2, 1], [1, 2, 2]])}, t, t)
    assert one == two
    nans = to_column(pa.array([[math.nan, 1.0, None, other_nan, -0.0, 0.0]]), "DOUBLE_SET", name="s").to_pylist()
    assert str(nans) == "[[0.0, 1.0, nan, None]]"
    null = codec.encode({"x": pa.array([None, 1.0]), "s": sets}, t, t)
    assert null == codec.encode({"x": hidden, "s": sets}, t, t)


def test_slices_and_chunks_are_encoded_as_the_whole() -> None:
    """Arrow's offsets and chunks leave no trace."""
    codec = RowCodec([Field(name=n, dtype=d) for n, d in [("l", "STRING_LIST"), ("s", "STRING"), ("b", "BOOL")]])
    columns = {
        "l": pa.array([["a", None], None, [], ["bcd"]]),
        "s": pa.array(["x", None, "yz", ""]),
        "b": pa.array([True, None, False, True]),
    }
    t = np.arange(4)
    whole = codec.encode(columns, t, t)
    part = codec.encode({n: a.slice(1, 3) for n, a in columns.items()}, t[1:], t[1:])
    chunked = codec.encode({n: pa.chunked_array([a.slice(0, 1), a.slice(1)]) for n, a in columns.items()}, t, t)
    assert whole == chunked
    assert whole[1:] == part


def test_timestamps_are_floored_to_seconds_and_naive_is_utc() -> None:
    """A source's fractions before 1970 go down, not towards zero."""
    column = to_column(pa.array([-1, 1_999], pa.timestamp("ns")), "UNIX_TIMESTAMP", name="t")
    assert column.cast(pa.int64()).to_pylist() == [-1_000_000, 0]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (pa.array([1.5]), "INT64"),
        (pa.array([2**40]), "INT32"),
        (pa.array(["x"]), "DOUBLE"),
        (pa.array([2**53 + 1]), "DOUBLE"),
        (pa.array([math.nan]), "INT64"),
        (pa.array([[1.5]]), "INT64_LIST"),
        (pa.array([["5"]]), "INT64_LIST"),
        (pa.array(["5"]), "INT64"),
        (pa.array([5]), "STRING"),
        (pa.array([5]), "BOOL"),
        (pa.array([5]), "UNIX_TIMESTAMP"),
    ],
)
def test_a_value_that_would_lose_something_is_refused(values: pa.Array, dtype: str) -> None:
    """The error names the column, its declared type and the type found."""
    with pytest.raises(UsageError, match=rf"column 'fare' is declared {dtype}"):
        to_column(values, dtype, name="fare")


@pytest.mark.parametrize(
    ("values", "dtype", "read"),
    [
        (pa.array([5.0, None]), "INT64", [5, None]),
        (pa.array([True, False]), "INT32", [1, 0]),
        (pa.array([0, 1]), "BOOL", [False, True]),
        (pa.array([None, None]), "STRING", [None, None]),
        (pa.array(["a"], pa.large_string()), "STRING", ["a"]),
        (pa.array(["a", "a"]).dictionary_encode(), "STRING", ["a", "a"]),
        (pa.array([[1.0, 2.0]], pa.list_(pa.float64(), 2)), "FLOAT_LIST", [[1.0, 2.0]]),
        (pa.array([[1], None], pa.large_list(pa.int32())), "INT64_LIST", [[1], None]),
        (pa.array([None], pa.null()), "INT64_LIST", [None]),
        (pa.array([Decimal("1.10")]), "DECIMAL", ["1.10"]),
    ],
)
def test_what_loses_nothing_is_taken(values: pa.Array, dtype: str, read: list[object]) -> None:
    """Other Arrow types of the same values become the declared type."""
    column = to_column(values, dtype, name="x")
    assert (column.type, column.to_pylist()) == (arrow_type(dtype), read)


def test_a_torn_row_is_an_error_not_a_value() -> None:
    """A row cut anywhere is refused."""
    codec = RowCodec([Field(name="s", dtype="STRING"), Field(name="x", dtype="INT64")])
    [row] = codec.encode({"s": pa.array(["hello"]), "x": pa.array([1])}, np.array([1]), np.array([1]))
    for cut in range(len(row)):
        with pytest.raises(StaleStore, match="torn"):
            codec.decode([row[:cut]])
    with pytest.raises(StaleStore, match="torn"):
        fingerprint_of(row[:10])


def test_a_missing_column_is_named() -> None:
    """Rows without a declared feature are refused, with what exists."""
    with pytest.raises(UsageError, match=r"no column 'x'.*what exists: y"):
        RowCodec([Field(name="x", dtype="INT64")]).encode({"y": pa.array([1])}, np.array([1]), np.array([1]))


NESTED_VALUES = {
    "MAP": {"b": 1, "a": {"x": [1.5, None, "s"]}, "z": b"\x00"},
    "STRUCT": {"a": 1, "b": math.inf},
    "STRUCT_LIST": [{"a": 1}, {"a": None}],
    "MAP_LIST": [{"k": datetime(2020, 1, 1, tzinfo=UTC)}, {}],
    "VALUE_LIST": [[1, 2], [], [3]],
    "VALUE_SET": [{1, 2}, {"a"}],
    "SCALAR_MAP": {1: "a", 2: Decimal("1.10"), uuid.UUID(int=5): None},
}


@pytest.mark.parametrize("dtype", NESTED_VALUES)
def test_nested_values_come_back(dtype: str) -> None:
    """Maps, structs and nested collections are read as they were written."""
    codec = RowCodec([Field(name="n", dtype=dtype)])
    column = from_python([NESTED_VALUES[dtype], None], dtype, name="n")
    t = np.zeros(2, np.int64)
    read = codec.decode(codec.encode({"n": column}, t, t)).columns["n"]
    assert to_python(read, dtype) == [NESTED_VALUES[dtype], None]


@pytest.mark.parametrize("zone", [UTC, ZoneInfo("America/New_York"), timezone(timedelta(hours=5, minutes=30))])
def test_a_zoned_timestamp_keeps_its_zone(zone: ZoneInfo) -> None:
    """The instant and the zone both come back."""
    moment = datetime(2013, 7, 1, 12, 0, 0, 123456, tzinfo=zone)
    back = nested.unpack(nested.pack(moment))
    assert back == moment
    assert back.utcoffset() == moment.utcoffset()


def test_arrow_maps_and_structs_are_read_as_dicts() -> None:
    """Arrow's own map and struct columns are accepted for MAP and STRUCT."""
    maps = pa.array([[("a", 1.0)], None], pa.map_(pa.string(), pa.float64()))
    assert to_python(to_column(maps, "MAP", name="m"), "MAP") == [{"a": 1.0}, None]
    structs = pa.array([{"a": 1, "b": "x"}])
    assert to_python(to_column(structs, "STRUCT", name="s"), "STRUCT") == [{"a": 1, "b": "x"}]


@given(st.recursive(st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | TEXTS | st.binary(), st.lists))
def test_nested_bytes_are_exact(value: object) -> None:
    """Any tree of plain values comes back."""
    assert nested.unpack(nested.pack(value)) == value


def test_what_cannot_be_nested_is_refused() -> None:
    """An integer beyond 64 bits or a foreign object is an error, never a guess."""
    for value in (1 << 70, object()):
        with pytest.raises(UsageError, match="cannot be stored"):
            nested.pack({"a": value})
