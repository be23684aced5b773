"""Served and offline values are compared to the bit, and whatever differs is found."""

import math
import struct

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import UsageError
from featurestore.monitor.parity import compare, differing


def bits(value: float | None) -> object:
    """The oracle: None, the one NaN, or the eight bytes."""
    if value is None:
        return None
    return "nan" if math.isnan(value) else struct.pack("<d", value)


floats = st.lists(st.tuples(st.none() | st.floats(), st.none() | st.floats()), max_size=30)


@settings(deadline=None)  # the first example pays for Arrow's start
@given(floats)
def test_floats_differ_by_their_bits(pairs: list[tuple[float | None, float | None]]) -> None:
    """Nulls, zeros of both signs and NaNs included."""
    here, there = (pa.array([pair[side] for pair in pairs], pa.float64()) for side in (0, 1))
    assert differing(here, there).tolist() == [bits(one) != bits(other) for one, other in pairs]


def table(**columns: list[object]) -> pa.Table:
    return pa.table(columns)


STATUSES = {"flights": ["PRESENT", "PRESENT", "NOT_FOUND"], "mean": ["PRESENT", "NULL_VALUE", "NOT_FOUND"]}


def test_equal_tables_have_no_difference() -> None:
    """Every value counts as compared, under its status."""
    served = table(flights=[3, 0, None], mean=[1.5, None, None])
    result = compare(served, STATUSES, served, STATUSES)
    assert (result.compared, result.differences) == (6, ())
    assert result.statuses == {"PRESENT": 3, "NOT_FOUND": 2, "NULL_VALUE": 1}


@pytest.mark.parametrize(
    ("offline", "statuses"),
    [
        ([math.nextafter(1.5, 2), None], ["PRESENT", "NULL_VALUE"]),
        ([1.5, 0.0], ["PRESENT", "NULL_VALUE"]),
        ([1.5, None], ["PRESENT", "NOT_FOUND"]),
        ([1.5, None], ["INCOMPLETE", "NULL_VALUE"]),
    ],
)
def test_one_bit_one_null_and_one_status_are_found(offline: list[object], statuses: list[str]) -> None:
    """The planted faults: the last bit of a float, a null for a zero, a status that is not what the sources give."""
    expected = {"mean": ["PRESENT", "NULL_VALUE"]}
    result = compare(table(mean=[1.5, None]), {"mean": statuses}, table(mean=pa.array(offline, pa.float64())), expected)
    assert len(result.differences) == 1
    assert result.differences[0].column == "mean"


def test_what_cannot_be_compared_is_no_success() -> None:
    """A missing or further column, a missing row, another type, nothing at all: errors, not equality."""
    served = table(mean=[1.5])
    present = {"mean": ["PRESENT"]}
    for offline in (table(other=[1.5]), table(mean=[1.5], other=[1]), table(mean=[1.5, 1.5]), table(mean=[1])):
        with pytest.raises(UsageError):
            compare(served, present, offline, present)
    for nothing in (served.slice(1), table()):
        with pytest.raises(UsageError):
            compare(nothing, present, nothing, present)
