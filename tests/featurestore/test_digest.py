"""Digests identify data, not its storage."""

import datetime as dt
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.dataset.digest import multiset_digest, table_digest

COLUMNS = {
    "int64": pa.array([1, None, 2**62], pa.int64()),
    "int8": pa.array([1, None, -3], pa.int8()),
    "float": pa.array([0.5, None, float("nan")], pa.float32()),
    "double": pa.array([-0.0, None, float("inf")]),
    "string": pa.array(["a", None, ""]),
    "binary": pa.array([b"\x00", None, b""]),
    "bool": pa.array([True, None, False]),
    "timestamp": pa.array([dt.datetime(2013, 1, 1, tzinfo=dt.UTC), None, None], pa.timestamp("us", "UTC")),
    "list": pa.array([[1, None], None, []], pa.list_(pa.int64())),
    "nested": pa.array([[["a"], None], None, [[]]], pa.list_(pa.list_(pa.string()))),
    "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": ""}]),
    "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
    "decimal": pa.array([Decimal("1.50"), None, Decimal("-2.00")], pa.decimal128(10, 2)),
    "null": pa.nulls(3),
    "dictionary": pa.array(["x", None, "y"]).dictionary_encode(),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("digest", [table_digest, multiset_digest])
def test_chunks_do_not_matter(name, digest):
    """A table split into slices and put together again has the digest it had."""
    table = pa.table({"x": COLUMNS[name]})
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1, 0), table.slice(1, 2)])
    assert digest(pieces) == digest(table)


@pytest.mark.parametrize("name", [name for name in COLUMNS if name != "null"])
@pytest.mark.parametrize("digest", [table_digest, multiset_digest])
def test_every_row_counts(name, digest):
    """Losing a row, or a value to null, changes the digest."""
    table = pa.table({"x": COLUMNS[name]})
    nulled = pa.table({"x": pa.concat_arrays([pa.nulls(1, table["x"].type), COLUMNS[name].slice(1)])})
    assert len({digest(table), digest(table.slice(1)), digest(table.slice(0, 2)), digest(nulled)}) == 4


def test_order_counts_for_tables_alone():
    """Row order changes the table's digest and not the multiset's."""
    table = pa.table({"x": [1, 2, 3], "y": ["a", "b", None]})
    turned = table.take([2, 0, 1])
    assert table_digest(table) != table_digest(turned)
    assert multiset_digest(table) == multiset_digest(turned)


def test_values_may_not_swap_rows():
    """A multiset of rows is not a multiset of columns."""
    assert multiset_digest(pa.table({"x": [1, 2], "y": [1, 2]})) != multiset_digest(
        pa.table({"x": [1, 2], "y": [2, 1]})
    )


def test_what_lies_under_a_null_does_not_matter():
    """Two arrays equal but for the bytes under their nulls have one digest."""
    mask = pa.py_buffer(b"\x01")
    one, two = (pa.Array.from_buffers(pa.int64(), 2, [mask, pa.array([7, x]).buffers()[1]]) for x in (1, 2))
    assert table_digest(pa.table({"x": one})) == table_digest(pa.table({"x": two}))


@given(st.lists(st.tuples(st.integers(-5, 5), st.one_of(st.none(), st.text(max_size=3)))), st.randoms())
def test_multisets_forget_order(rows, random):
    """Any permutation of any rows has one multiset digest."""
    turned = list(rows)
    random.shuffle(turned)
    schema = pa.schema([("n", pa.int64()), ("s", pa.string())])
    tables = [pa.Table.from_pylist([{"n": n, "s": s} for n, s in each], schema) for each in (rows, turned)]
    assert multiset_digest(tables[0]) == multiset_digest(tables[1])
