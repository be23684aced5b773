"""Whatever way a latest row takes, one by one or column by column, the answer is the same."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.api.answer import json_values
from featurestore.errors import StaleStore
from featurestore.online.codec import RowCodec
from featurestore.online.connection import StoreClient
from featurestore.online.latest import LatestView
from featurestore.online.numbers import Numbers
from featurestore.online.result import Block, Column, OnlineResult
from featurestore.online.schemas import Schemas
from featurestore.plan import Field, JoinKey, Source, View

NOW = 1_700_000_000_000_000
TTL = 3_600_000_000
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "INT32": st.integers(-(1 << 31), (1 << 31) - 1),
    "INT64": st.integers(-(1 << 63), (1 << 63) - 1),
    "FLOAT": st.floats(width=32),
    "DOUBLE": st.floats(),
    "BOOL": st.booleans(),
    "STRING": st.text(max_size=5),
    "BYTES": st.binary(max_size=5),
}
FIELDS = tuple(Field(name=f"{dtype.lower()}_{i}", dtype=dtype) for dtype in VALUES for i in (0, 1))
# Ages on and around the edges of ttl and clock.
EVENTS = st.sampled_from([NOW - TTL - 1, NOW - TTL, NOW - 1, NOW, NOW + 1, NOW + TTL])


def view_of(store: Any, *, ttl_us: int, fields: tuple[Field, ...] = FIELDS) -> LatestView:
    view = View(
        name="v",
        version=1,
        kind="latest",
        join_keys=(JoinKey(entity="e", name="e", dtype="INT64"),),
        features=fields,
        ttl_us=ttl_us,
        source=Source(name="v", path="x", timestamp_field="ts"),
    )
    return LatestView.of("p", view, Schemas(store, "p", view))


def told(parts: Sequence[Block | Column]) -> list[object]:
    """Everything an answer says; NaN equals NaN, 1 is not True, 0.0 is not -0.0."""
    columns = OnlineResult(0, parts).columns
    return [
        (
            *(c.view, c.feature, c.dtype, repr(c.to_python()), str(c.values.type), repr(c.values.to_pylist())),
            *(c.statuses.tolist(), c.event_us.tolist(), c.instant_us.tolist()),
        )
        for c in columns
    ]


@st.composite
def cases(
    draw: st.DrawFn,
    fields: Sequence[Field] = FIELDS,
    named: Sequence[Field] = FIELDS,
    null: st.SearchStrategy[Any] | None = None,
) -> tuple[list[bytes | None], list[int], list[str], int]:
    count = draw(st.integers(1, 4))
    null = st.none() if null is None else null
    data = {f.name: draw(st.lists(null | VALUES[f.dtype], min_size=count, max_size=count)) for f in fields}
    types = {"FLOAT": pa.float32(), "INT32": pa.int32(), "BYTES": pa.binary(), "STRING": pa.string()}
    columns = {f.name: pa.array(data[f.name], types.get(f.dtype)) for f in fields}
    event_us = np.array(draw(st.lists(EVENTS, min_size=count, max_size=count)))
    rows: list[bytes | None] = [*RowCodec(fields).encode(columns, event_us, event_us)]
    whole = draw(st.booleans())
    held = [row if whole or draw(st.integers(0, 3)) else None for row in rows]
    place = draw(st.lists(st.integers(0 if whole else -1, count - 1), min_size=1, max_size=6))
    names = draw(st.lists(st.sampled_from([f.name for f in named]), min_size=1, max_size=5, unique=True))
    return held, place, names, draw(st.sampled_from([0, TTL]))


@settings(max_examples=300, deadline=None)
@given(cases())
def test_rows_one_by_one_equal_rows_by_column(case: tuple[list[bytes | None], list[int], list[str], int]) -> None:
    """Values, types, statuses, times and instants are those of the columns' way."""
    held, place, names, ttl_us = case
    view = view_of(None, ttl_us=ttl_us)
    many = view._many("a", names, held, place, NOW, as_of=False, now_us=NOW)
    rows = [None if at < 0 else held[at] for at in place]
    wanted = view._want(tuple(names))
    few = view._few("a", wanted, rows, NOW)
    assert few is not None
    assert told(few) == told(many)


@pytest.mark.parametrize("dtype", ["INT32", "INT64", "FLOAT", "DOUBLE", "BOOL"])
def test_rows_all_at_once_equal_rows_by_column(dtype: str) -> None:
    """Numbers of one type are decoded in a few calls, beside others of the view, and say what the columns say."""
    others = {"DOUBLE": "INT32"}.get(dtype, "DOUBLE")
    fields = (*(Field(name=f"a{i}", dtype=dtype) for i in range(3)), Field(name="b", dtype=others))
    taken = 0

    @settings(max_examples=150, deadline=None)
    @given(cases(fields, fields[:3], st.nothing()))
    def check(case: tuple[list[bytes | None], list[int], list[str], int]) -> None:
        nonlocal taken
        held, place, names, ttl_us = case
        view = view_of(None, ttl_us=ttl_us, fields=fields)
        rows = [None if at < 0 else held[at] for at in place]
        found = view._at_once("a", view._want(tuple(names)), rows, NOW)
        if found is not None:
            taken += 1
            assert told(found) == told(view._many("a", names, held, place, NOW, as_of=False, now_us=NOW))

    check()
    assert taken > 10


@pytest.mark.parametrize("dtype", ["INT32", "INT64", "FLOAT", "DOUBLE", "BOOL"])
@settings(deadline=None)
@given(data=st.data())
def test_json_of_stored_numbers_is_that_of_their_values(dtype: str, data: st.DataObject) -> None:
    """Writing the stored bytes as JSON gives the very text that the Python values give."""
    values = data.draw(st.lists(VALUES[dtype], min_size=1, max_size=9))
    codec = RowCodec([Field(name="x", dtype=dtype)])
    times = np.zeros(len(values), np.int64)
    kind = {"INT32": pa.int32(), "FLOAT": pa.float32()}.get(dtype)
    held = codec.numbers(codec.encode({"x": pa.array(values, kind)}, times, times))[2]["x"]
    assert isinstance(held, Numbers)
    written = held.json()
    slow = orjson.dumps(json_values(held.tolist(), dtype))
    assert written == slow or (written is None and (b"NaN" in slow or b"Infinity" in slow))


def test_a_torn_row_is_refused_both_ways(store: StoreClient) -> None:
    """One byte too few, one too many: an error, never a value."""
    view = view_of(store, ttl_us=0)
    names = [field.name for field in FIELDS]
    nothing = {f.name: pa.nulls(1) for f in FIELDS}
    [row] = RowCodec(FIELDS).encode(nothing, np.array([NOW]), np.array([NOW]))
    wanted = view._want(tuple(names))
    for torn in (row[:-1], row + b"x", row[:30]):
        with pytest.raises(StaleStore, match="torn"):
            view._few("a", wanted, [torn], NOW)
        with pytest.raises(StaleStore, match="torn"):
            view._many("a", names, [torn], None, NOW, as_of=False, now_us=NOW)
