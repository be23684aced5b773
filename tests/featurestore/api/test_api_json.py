"""Feast's JSON is written by views at once; it says what one column at a time would."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.api.answer import Answered, feast_json, json_values
from featurestore.online.numbers import Numbers

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


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_number_for_is_a_word(value: float) -> None:
    """NaN and infinities are never null, however the values are held."""
    ones, at = np.ones(1, np.uint8), np.zeros(1, np.int64)
    for held in ([value], Numbers("DOUBLE", np.array([value]))):
        [result] = json.loads(feast_json([Answered("x", "DOUBLE", held, ones, at, None)], 0))["results"]
        assert result["values"] == [json_values([value], "DOUBLE")[0]] != [None]
