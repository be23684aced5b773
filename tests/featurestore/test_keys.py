"""Entity keys are Feast's, the same however a value arrives, and no project can reach another's keys."""

from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.api.limits import Limits
from featurestore.api.request import typed_keys
from featurestore.errors import UsageError
from featurestore.online.keys import EntityKeyCodec, Shard, row_key, row_prefixes, schema_key, shards_key, view_prefixes
from featurestore.plan import JoinKey

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
NAMES = st.text(st.sampled_from("ab_ {}:1"), min_size=1, max_size=6)


def codec(**keys: str) -> EntityKeyCodec:
    return EntityKeyCodec([JoinKey(entity=name, name=name, dtype=dtype) for name, dtype in keys.items()])


@given(st.lists(st.tuples(st.none() | st.integers(-(1 << 63), (1 << 63) - 1), st.none() | TEXTS)))
def test_columns_give_the_same_keys_as_rows(rows: list[tuple[int | None, str | None]]) -> None:
    """The vectorised encoding equals the one of single rows, nulls included."""
    keys = codec(number="INT64", name="STRING")
    columns = {
        "number": pa.array([n for n, _ in rows], pa.int64()),
        "name": pa.array([s for _, s in rows], pa.string()),
    }
    assert keys.encode_columns(columns, len(rows)) == [keys.encode({"number": n, "name": s}) for n, s in rows]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([5, -7], pa.int32()),
        pa.array([5.0, -7.0]),
        pa.array(["5", "-7"]),
        pa.array([Decimal("5.00"), Decimal("-7.00")]),
        pa.array([5, -7], pa.int64()).dictionary_encode(),
        pa.chunked_array([pa.array([5]), pa.array([-7])]),
    ],
)
def test_a_value_is_one_key_however_it_arrives(values: pa.Array) -> None:
    """int32, float, text, dictionary and chunks of the same numbers are the same INT64 keys."""
    keys = codec(driver="INT64")
    assert keys.encode_columns({"driver": values}, 2) == [keys.encode({"driver": 5}), keys.encode({"driver": -7})]


@pytest.mark.parametrize(
    "values",
    [
        *(pa.array([5.5]), pa.array(["05"]), pa.array([True]), pa.array([Decimal("5.5")])),
        *(pa.array([2.0**53]), pa.array([-(2.0**60)]), pa.array([2.0**24], pa.float32())),
    ],
)
def test_a_key_that_would_lose_something_is_refused(values: pa.Array) -> None:
    """A fraction, a padded number, a truth value, or a float that may be a rounded integer is no INT64 key."""
    with pytest.raises(UsageError, match="join key 'driver' is declared INT64"):
        codec(driver="INT64").encode_columns({"driver": values}, 1)


@pytest.mark.parametrize("column", [pa.array([2.0**53]), pa.array([-(2.0**60)]), pa.array([2.0**24], pa.float32())])
def test_a_float_that_may_be_a_rounded_integer_is_no_key(column: pa.Array) -> None:
    """From 2^53 on (float32: 2^24) a float stands for several integers; the key is named."""
    with pytest.raises(UsageError, match=r"'number'.*rounded form of another integer"):
        codec(number="INT64").encode_columns({"number": column}, 1)
    if column.type == pa.float64():
        with pytest.raises(UsageError, match=r"'number'.*rounded form of another integer"):
            codec(number="INT64").encode({"number": column[0].as_py()})


def test_a_large_integer_is_a_key_on_every_path() -> None:
    """Integers from 2^53 on are exact as integers and as text, in a request and in a column."""
    keys, odd = codec(number="INT64"), 2**60 + 1
    expected = keys.encode({"number": odd})
    assert keys.encode({"number": odd - 1}) != expected
    assert keys.encode_columns({"number": pa.array([str(odd)])}, 1) == [expected]
    assert typed_keys("number", [odd, str(odd)], "INT64", Limits()) == [odd, odd]
    with pytest.raises(UsageError, match=r"'number'.*rounded form of another integer"):
        typed_keys("number", [float(odd)], "INT64", Limits())


def test_a_nan_beside_whole_numbers_is_no_key() -> None:
    """So pandas says null in a column of integers."""
    keys = codec(driver="INT64")
    assert keys.encode_columns({"driver": pa.array([5.0, float("nan")])}, 2) == [keys.encode({"driver": 5}), None]


def test_a_value_that_may_be_a_rounded_integer_is_refused() -> None:
    """A float of a request is exact below 2^53 alone."""
    keys = codec(driver="INT64")
    assert keys.encode({"driver": 2.0**53 - 1}) == keys.encode({"driver": 2**53 - 1})
    with pytest.raises(UsageError, match="join key 'driver' is declared INT64"):
        keys.encode({"driver": 2.0**53})


def test_a_key_rule_that_takes_any_whole_float_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted fault: a float from 2^53 on is its integer."""
    monkeypatch.setattr("featurestore.online.keys.FLOAT_INTEGERS", {16: 2**99, 32: 2**99, 64: 2**99})
    with pytest.raises(pytest.fail.Exception):
        test_a_float_that_may_be_a_rounded_integer_is_no_key(pa.array([2.0**60]))


def test_a_missing_key_column_is_named() -> None:
    """The message says which column and what there is."""
    with pytest.raises(UsageError, match=r"no column for join key 'driver'; what exists: x"):
        codec(driver="INT64").encode_columns({"x": pa.array([1])}, 1)


def test_an_entityless_view_has_one_key() -> None:
    """Without join keys every row has the same key."""
    keys = codec()
    assert keys.encode_columns({}, 2) == [keys.encode({})] * 2


@given(NAMES, NAMES, NAMES, NAMES)
def test_no_view_reaches_into_another(project: str, view: str, other_project: str, other_view: str) -> None:
    """Keys of two views, or of one view in two projects, never share a deletion prefix."""
    prefixes = view_prefixes(project, view)
    shard = Shard(other_project, other_view, 1, "topic", 0)
    keys = [
        row_key(row_prefixes(other_project, other_view), b"k"),
        schema_key(other_project, other_view),
        shards_key(other_project, other_view, 1),
        shard.control_key,
        shard.tile_prefix(60) + b"1:k",
        shard.seen_key(28),
    ]
    same = (project, view) == (other_project, other_view)
    assert [key.startswith(prefixes) for key in keys] == [same] * len(keys)
