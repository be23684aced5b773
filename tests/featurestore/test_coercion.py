"""Values held to their declared Feast type."""

import functools
import math
import uuid
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.coercion import coerce
from featurestore.errors import UsageError
from featurestore.online.types import from_python, to_python

MOMENT = datetime(2024, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (5.0, "INT64", 5),
        (np.int32(5), "INT64", 5),
        (2**60 + 1, "INT64", 2**60 + 1),
        (2.0**53 - 1, "INT64", 2**53 - 1),
        (True, "INT32", 1),
        (5, "DOUBLE", 5.0),
        (np.float32(0.5), "DOUBLE", 0.5),
        (0.1, "FLOAT", float(np.float32(0.1))),
        (np.True_, "BOOL", True),
        (1, "BOOL", True),
        (MOMENT.replace(tzinfo=None), "UNIX_TIMESTAMP", MOMENT),
        (MOMENT.astimezone(timezone(timedelta(hours=2))), "UNIX_TIMESTAMP", MOMENT),
        (MOMENT.timestamp(), "UNIX_TIMESTAMP", MOMENT),
        (np.datetime64("2024-05-01T12:00:00", "us"), "UNIX_TIMESTAMP", MOMENT),
        ((1, 2.0), "INT64_LIST", [1, 2]),
        (np.array([1.5, 2.5]), "DOUBLE_LIST", [1.5, 2.5]),
        (bytearray(b"x"), "BYTES", b"x"),
    ],
)
def test_lossless_changes_are_made(value: object, dtype: str, expected: object) -> None:
    """What loses nothing is taken, as Python's own type."""
    (made,) = coerce([value], dtype)
    assert made == expected
    assert type(made) is type(expected)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (5.5, "INT64"),
        ("5", "INT64"),
        (math.nan, "INT64"),
        (2.0**53, "INT64"),
        (-(2.0**60), "INT64"),
        (np.float32(2**24), "INT32"),
        ([1.0, 2.0**53], "INT64_LIST"),
        (1 << 63, "INT64"),
        (1 << 31, "INT32"),
        (10**400, "DOUBLE"),
        (1e300, "FLOAT"),
        ("1.5", "DOUBLE"),
        (2, "BOOL"),
        (5, "STRING"),
        ("\ud800", "STRING"),
        ("x", "BYTES"),
        ("2024-05-01", "UNIX_TIMESTAMP"),
        (1e300, "UNIX_TIMESTAMP"),
        (5, "INT64_LIST"),
        ([5.5], "INT64_LIST"),
        ([1], "MAP"),
        ({"a": 10**30}, "MAP"),
        ({"a": ["\ud800"]}, "MAP"),
        (functools.reduce(lambda inner, _: [inner], range(65), 1), "VALUE_LIST"),
    ],
)
def test_losses_are_refused_without_the_value(value: object, dtype: str) -> None:
    """What would lose something is refused; the message shows the type found, not the value."""
    with pytest.raises(UsageError) as caught:
        coerce([value], dtype)
    assert repr(value) not in str(caught.value)


@given(st.lists(st.none() | st.integers(-(1 << 63), (1 << 63) - 1)))
def test_int64_survives(values: list[int | None]) -> None:
    """Every INT64 column passes unchanged, nulls included."""
    assert coerce(values, "INT64") == values


@pytest.mark.parametrize(
    ("dtype", "sample"),
    [
        ("INT64", 1),
        ("FLOAT", 0.1),
        ("STRING_LIST", ["a"]),
        ("UNIX_TIMESTAMP", MOMENT),
        ("BYTES_SET", {b"a"}),
        ("UUID", uuid.UUID(int=7)),
        ("DECIMAL", Decimal("1.50")),
        ("MAP", {"a": [1, None]}),
    ],
)
def test_the_store_holds_what_coerce_makes(dtype: str, sample: object) -> None:
    """Coerced values pass through the Arrow form of their type unchanged."""
    values = coerce([sample, None], dtype)
    assert to_python(from_python(values, dtype, name="x"), dtype) == values


def test_unknown_types_are_refused() -> None:
    """A type that cannot be computed is refused by name."""
    with pytest.raises(UsageError, match="FLOWERS"):
        coerce([1], "FLOWERS")
