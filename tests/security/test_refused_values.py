"""A value that is refused is told by its place and type, never quoted: it may be someone's secret."""

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from featurestore.coercion import coerce
from featurestore.errors import UsageError
from featurestore.online.keys import EntityKeyCodec
from featurestore.online.types import arrow_type, from_python, to_column
from featurestore.plan import JoinKey

DTYPES = ("INT32", "INT64", "FLOAT", "DOUBLE", "BOOL", "STRING", "BYTES", "UNIX_TIMESTAMP", "INT64_LIST", "STRING_SET")
VALUES = ("mark-31337", 31337.5, 31337 << 70, [31337.5], ["mark-31337"], {"mark": 31337}, Decimal("31337.5"))
COLUMNS = [
    pa.array(["mark-31337"]), pa.array([31337.5]), pa.array([[31337.5]]), pa.array([["mark-31337"]]),
    pa.array([31337 << 40]), pa.array([Decimal("31337.5")]), pa.array([b"mark-31337"]), pa.array([{"mark": "31337"}]),
]  # fmt: skip


def refusal(make: Callable[[Any], object], value: object) -> str | None:
    """What is said of a value; none where it is taken."""
    try:
        make(value)
    except (UsageError, pa.ArrowException, OverflowError) as error:
        return str(error)
    return None


def quoting(ways: Sequence[Callable[[Any], object]], values: Sequence[object]) -> list[str]:
    """The messages that hold the marker, of at least one refusal."""
    told = [said for make in ways for value in values if (said := refusal(make, value)) is not None]
    assert told
    return [said for said in told if "31337" in said]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_feature_of_a_wrong_type(dtype: str) -> None:
    """Neither Python values nor Arrow columns are quoted, whatever they are declared as."""
    ways = (lambda value: coerce([value], dtype), lambda value: from_python([value], dtype, name="f"))
    assert quoting(ways, VALUES) == []
    assert quoting([lambda column: to_column(column, dtype, name="f")], COLUMNS) == []


@pytest.mark.parametrize("dtype", ["INT32", "INT64", "STRING", "BYTES", "UNIX_TIMESTAMP"])
def test_a_key_of_a_wrong_type(dtype: str) -> None:
    """Keys are the names of persons: one alone and a column of them are refused unquoted."""
    keys = EntityKeyCodec((JoinKey(entity="who", name="who", dtype=dtype),))
    one = lambda value: keys.encode({"who": value})  # noqa: E731
    many = lambda value: keys.encode_columns({"who": pa.array([value])}, 1)  # noqa: E731
    assert quoting([one, many], ("mark-31337", 31337.5, [31337.5], {"mark": 31337})) == []


def test_the_search_finds_a_quoted_value() -> None:
    """The fault that the product does not pass on: Arrow's own message quotes."""
    assert quoting([lambda value: pa.array([value], arrow_type("INT64"))], ["mark-31337"])
