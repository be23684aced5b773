"""Events of other definitions: a value that the view's type cannot hold never becomes null in silence."""

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from featurestore.errors import SourceError
from featurestore.plan import Field, JoinKey, Source, View
from streaming.fitting import Fitting
from streaming.judged import Judged
from streaming.source.records import Batch

ODD = 2**60 + 1
LOST = {
    "integer to double": (pa.array([ODD, 5, None]), "DOUBLE", [5.0, None]),
    "integer to float": (pa.array([2**25 + 1, 5]), "FLOAT", [5.0]),
    "integer to narrow integer": (pa.array([2**40, 5]), "INT32", [5]),
    "fraction to integer": (pa.array([1.5, 5.0, None]), "INT64", [5, None]),
    "rounded integer": (pa.array([2.0**53, 5.0]), "INT64", [5]),
    "text to integer": (pa.array(["x", "05", "5"]), "INT64", [5]),
    "number to truth": (pa.array([2, 1]), "BOOL", [True]),
    "list": (pa.array([[ODD], [5]]), "DOUBLE_LIST", [[5.0]]),
    "decimal to double": (pa.array([Decimal(ODD), Decimal(5)]), "DOUBLE", [5.0]),
    "number to time": (pa.array([5]), "UNIX_TIMESTAMP", []),
}
KEPT = {
    "small integers": (pa.array([5, None]), "DOUBLE", [5.0, None]),
    "whole doubles": (pa.array([5.0, float("nan")]), "INT64", [5, None]),
    "double to float": (pa.array([0.5]), "FLOAT", [0.5]),
    "integer to text": (pa.array([ODD]), "STRING", [str(ODD)]),
    "integer to decimal": (pa.array([5]), "DECIMAL(10,2)", [Decimal("5.00")]),
}


def view(dtype: str) -> View:
    return View(
        name="taps", version=1, kind="latest", join_keys=(JoinKey(entity="user", name="user", dtype="INT64"),),
        features=(Field(name="x", dtype=dtype),), ttl_us=0, source=Source(name="taps", path="p", timestamp_field="ts"),
    )  # fmt: skip


def judged(column: pa.Array) -> Judged:
    numbers = np.arange(len(column))
    events = pa.table({"user": numbers, "x": column})
    batch = Batch("taps", "id", 0, [], 0, len(column))
    return Judged(batch, events, numbers, numbers, numbers, ())


@pytest.mark.parametrize("case", LOST.values(), ids=LOST.keys())
def test_an_event_whose_value_would_change_is_set_aside_with_a_reason(case, caplog) -> None:
    """The other events keep their values; the log says which column of which view, and how many events."""
    column, dtype, expected = case
    fitted = Fitting(view(dtype)).fit(judged(column))
    assert fitted.events["x"].to_pylist() == expected
    assert len(fitted.offsets) == len(expected)
    lost = len(column) - len(expected)
    assert f"view 'taps': column 'x' is {column.type} in the event log" in caplog.text
    assert f"values of {lost} events would change" in caplog.text


@pytest.mark.parametrize("case", LOST.values(), ids=LOST.keys())
def test_a_history_whose_value_would_change_is_refused(case) -> None:
    """What a backfill reads is refused with the view, the column and the first offset."""
    column, dtype, _ = case
    with pytest.raises(SourceError, match=r"view 'taps': column 'x'.*the first at offset 0"):
        Fitting(view(dtype), refuse=True).fit(judged(column))


@pytest.mark.parametrize("case", KEPT.values(), ids=KEPT.keys())
def test_a_value_that_does_not_change_is_cast(case, caplog) -> None:
    """A changed type alone sets nothing aside."""
    column, dtype, expected = case
    assert Fitting(view(dtype), refuse=True).fit(judged(column)).events["x"].to_pylist() == expected
    assert not caplog.records
