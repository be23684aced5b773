"""Feast's JSON is written by views at once; it says what one column at a time would."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.api.answer import Answered, json_values
from featurestore.api.feast_json import feast_json
from featurestore.online.numbers import Numbers
from featurestore.online.result import Block

KINDS = {"INT64": np.int64, "DOUBLE": np.float64, "FLOAT": np.float32, "BOOL": np.bool_}
VALUES = {
    "INT64": st.integers(-(1 << 63), (1 << 63) - 1),
    "DOUBLE": st.floats(),
    "FLOAT": st.floats(width=32),
    "BOOL": st.booleans(),
    "STRING": st.text(st.sampled_from('a],["null'), max_size=6),
}


@st.composite
def answers(draw: st.DrawFn) -> list[Answered]:
    rows = draw(st.integers(1, 3))
    shared = [(np.full(rows, status, np.uint8), np.full(rows, status * 1_000_000)) for status in (1, 2)]
    columns = []
    for i in range(draw(st.integers(1, 6))):
        dtype = draw(st.sampled_from(list(VALUES)))
        maybe = VALUES[dtype] if draw(st.booleans()) else st.none() | VALUES[dtype]
        values = draw(st.lists(maybe, min_size=rows, max_size=rows))
        held: list[object] | Numbers = values
        if dtype in KINDS and draw(st.booleans()):
            nulls = np.array([value is None for value in values])
            raw = np.array([0 if value is None else value for value in values], KINDS[dtype])
            held = Numbers(dtype, raw, nulls if nulls.any() else None)
        statuses, event_us = draw(st.sampled_from(shared))
        columns.append(Answered(f"c{i}", dtype, held, statuses, event_us, event_us))
    return columns


@settings(max_examples=400, deadline=None)
@given(answers())
def test_views_at_once_say_what_columns_say(columns: list[Answered]) -> None:
    """Whatever shares what, every result holds its own column's values, statuses and times."""
    results = json.loads(feast_json(columns, 1_000_000))["results"]
    assert len(results) == len(columns)
    for column, result in zip(columns, results, strict=True):
        want = json_values([*column.values], column.dtype)
        assert [repr(value) for value in result["values"]] == [repr(value) for value in want]
        assert result["statuses"] == [{1: "PRESENT", 2: "NULL_VALUE"}[status] for status in column.statuses.tolist()]
        assert result["event_timestamps"] == [
            f"1970-01-01T00:00:0{at // 1_000_000}Z" for at in column.event_us.tolist()
        ]


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    rows, features = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    one_type = draw(st.booleans())
    dtypes = draw(st.lists(st.sampled_from(list(VALUES)), min_size=features, max_size=features))
    if one_type:
        dtypes = [draw(st.sampled_from(list(KINDS)))] * features
        table = draw(st.tuples(*(st.tuples(*[VALUES[dtypes[0]]] * rows) for _ in dtypes)))
        held: object = np.array(table, KINDS[dtypes[0]])
    else:
        held = [draw(st.tuples(*(st.none() | VALUES[dtype] for dtype in dtypes))) for _ in range(rows)]
    instants = st.integers(0, 1 << 50)
    event_us = draw(st.lists(instants, min_size=rows, max_size=rows))
    late = draw(st.none() | st.lists(instants, min_size=rows, max_size=rows))
    return Block(
        "v",
        tuple(f"f{i}" for i in range(features)),
        tuple(dtypes),
        held,
        bytes(draw(st.lists(st.integers(1, 4), min_size=rows, max_size=rows))),
        event_us if draw(st.booleans()) else np.array(event_us),
        late if late is None or draw(st.booleans()) else np.array(late),
        draw(instants),
        0,
    )


@settings(max_examples=300, deadline=None)
@given(block=blocks(), same=st.booleans())
def test_a_block_says_what_its_columns_say(block: Block, *, same: bool) -> None:
    """A view written at once is to the byte what its columns are, one after the other."""
    columns = [Answered.of(column, column.feature) for column in block.columns()]
    instant_us = block.t_us if same else block.t_us - 1
    names = json.dumps([*block.features], separators=(",", ":")).encode()
    at_once = feast_json([block], instant_us, names)
    assert at_once == feast_json(columns, instant_us)
    assert json.loads(at_once)["metadata"]["feature_names"] == [*block.features]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_number_for_is_a_word(value: float) -> None:
    """NaN and infinities are never null, however the values are held."""
    ones, at = np.ones(1, np.uint8), np.zeros(1, np.int64)
    for held in ([value], Numbers("DOUBLE", np.array([value]))):
        [result] = json.loads(feast_json([Answered("x", "DOUBLE", held, ones, at, None)], 0))["results"]
        assert result["values"] == [json_values([value], "DOUBLE")[0]] != [None]
