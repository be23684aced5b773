"""Rows become the JSON that a row-by-row encoder would write."""

import json
import math
from datetime import UTC, date, datetime
from decimal import Decimal

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import UsageError
from streaming.source.json_rows import encode_rows, microseconds, rfc3339

VALUES = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint8(): st.integers(0, 255),
    pa.float64(): st.floats(allow_nan=False, allow_infinity=False),
    pa.string(): st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    pa.bool_(): st.booleans(),
    pa.list_(pa.int64()): st.lists(st.integers(0, 9), max_size=3),
}


@given(st.data())
def test_every_value_reads_back(data: st.DataObject) -> None:
    """Whatever the columns hold, a JSON parser gets the same values, nulls included, floats to the last bit."""
    kinds = data.draw(st.lists(st.sampled_from(sorted(VALUES, key=str)), min_size=1, max_size=4))
    count = data.draw(st.integers(0, 5))
    columns = [data.draw(st.lists(st.none() | VALUES[kind], min_size=count, max_size=count)) for kind in kinds]
    names = [f'c"{number}' for number in range(len(kinds))]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    rows = pa.RecordBatch.from_arrays(arrays, names=names)
    assert [json.loads(document) for document in encode_rows(rows)] == rows.to_pylist()


@given(st.lists(st.datetimes(min_value=datetime(1, 1, 1), max_value=datetime(9999, 12, 31)), min_size=1))
def test_times_are_rfc3339(moments: list[datetime]) -> None:
    """The text names the same instant, with microseconds only where there are any."""
    texts = rfc3339(pa.array(moments, pa.timestamp("us"))).to_pylist()
    for moment, text in zip(moments, texts, strict=True):
        assert datetime.fromisoformat(text) == moment.replace(tzinfo=UTC)
        assert text.endswith("Z")
        assert ("." in text) == bool(moment.microsecond)


@given(st.integers(-(2**60), 2**60))
def test_nanoseconds_are_floored(nanos: int) -> None:
    """Before 1970 too."""
    assert microseconds(pa.array([nanos], pa.int64()).cast(pa.timestamp("ns"))).to_pylist() == [nanos // 1000]


def test_zones_are_utc() -> None:
    """A zoned timestamp is written as the instant it is."""
    moment = datetime(2024, 3, 31, 1, 30, tzinfo=UTC)
    texts = rfc3339(pa.array([moment], pa.timestamp("us", tz="Europe/Berlin")))
    assert texts.to_pylist() == ["2024-03-31T01:30:00Z"]


def test_what_json_lacks_is_null_or_text() -> None:
    """NaN and infinities become null; decimals and dates become strings."""
    rows = pa.record_batch(
        {
            "f": pa.array([math.nan, math.inf]),
            "d": pa.array([Decimal("1.50"), None]),
            "t": pa.array([date(2024, 1, 2), None]),
        }
    )
    assert [orjson.loads(document) for document in encode_rows(rows)] == [
        {"f": None, "d": "1.50", "t": "2024-01-02"},
        {"f": None, "d": None, "t": None},
    ]


@pytest.mark.parametrize("column", [pa.array([b"x"]), pa.array([[b"x"]])])
def test_bytes_are_refused_by_name(column: pa.Array) -> None:
    """JSON has no bytes, at the top or within."""
    with pytest.raises(UsageError, match="column 'raw'"):
        encode_rows(pa.record_batch({"raw": column}))
