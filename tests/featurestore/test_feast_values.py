"""A value is the same in training, through Feast's SDK and over HTTP, wherever Feast's messages can hold it."""

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from feast.type_map import feast_value_type_to_python_type

from featurestore.api.answer import json_values
from featurestore.online.types import arrow_type, from_python, to_column, to_python
from featurestore.plugins.protos import from_column
from featurestore.plugins.protos import to_column as of_messages

LISTS = {
    "STRING_LIST": ["a", None, ""],
    "INT32_LIST": [1, None, 0],
    "INT64_LIST": [(1 << 53) + 1, None],
    "DOUBLE_LIST": [1.5, None],
    "FLOAT_LIST": [None, 0.5],
    "BOOL_LIST": [True, None, False],
    "BYTES_LIST": [b"\0", None],
    "UNIX_TIMESTAMP_LIST": [datetime(2024, 3, 10, tzinfo=UTC), None],
}


@pytest.mark.parametrize("dtype", LISTS)
def test_a_null_inside_a_list_is_null_for_the_sdk(dtype: str) -> None:
    """Never 0, "" or False, which nobody wrote; and lists without one stay Feast's own lists."""
    value: Any = LISTS[dtype]
    column = from_python([value, None, []], dtype, name="f")
    messages = from_column(column, dtype)
    assert [feast_value_type_to_python_type(each) for each in messages] == [value, None, []]
    whole = from_column(from_python([value[:1] if value[0] is not None else value[1:]], dtype, name="f"), dtype)
    assert whole[0].WhichOneof("val") == f"{dtype.lower()}_val"
    assert of_messages(messages, dtype, name="f").equals(column)


@pytest.mark.parametrize("dtype", ["STRING_SET", "INT64_SET"])
def test_a_null_inside_a_set_comes_back(dtype: str) -> None:
    """Members are ordered, null last."""
    column = from_python([["1", None] if dtype == "STRING_SET" else [1, None]], dtype, name="f")
    assert of_messages(from_column(column, dtype), dtype, name="f").equals(column)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("second", [1_710_050_400, 0, -1])
def test_timestamp_features_are_whole_seconds_everywhere(unit: str, second: int) -> None:
    """Feast's messages have no fraction of a second, so no path has one; before 1970 it is floored too."""
    per_second = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[unit]
    column = pa.array([second * per_second + per_second - 1], pa.timestamp(unit, "UTC"))
    held = to_column(column, "UNIX_TIMESTAMP", name="f")
    assert held.cast(pa.int64()).to_pylist() == [second * 1_000_000]
    [message] = from_column(held, "UNIX_TIMESTAMP")
    assert message.unix_timestamp_val == second
    assert json_values(to_python(held, "UNIX_TIMESTAMP"), "UNIX_TIMESTAMP") == [second]
    listed = to_column(pa.array([[column[0].as_py() if unit != "ns" else None]]), "UNIX_TIMESTAMP_LIST", name="f")
    assert listed.type == arrow_type("UNIX_TIMESTAMP_LIST")
