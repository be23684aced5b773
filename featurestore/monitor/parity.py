"""Is what was served what an offline read gives, to the bit?

Two columns agree where both are null or both hold the same bits: 0.1 + 0.2 is not 0.3, -0.0 is not 0.0, one NaN is
another. A served status must be the one that the sources give.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import UsageError


@dataclass(frozen=True)
class Difference:
    """One value, or its status, that was served but does not hold offline."""

    column: str
    row: int
    served: object
    offline: object
    status: str
    expected_status: str


@dataclass(frozen=True)
class Comparison:
    """How many values were compared, by status, and which differ."""

    rows: int
    columns: int
    statuses: Mapping[str, int]
    differences: tuple[Difference, ...]

    @property
    def compared(self) -> int:
        """The number of values that were compared."""
        return self.rows * self.columns


def compare(
    served: pa.Table, statuses: Mapping[str, pa.Array], offline: pa.Table, expected: Mapping[str, pa.Array]
) -> Comparison:
    """Compares every offline column with the served column of its name, and their statuses, row by row.

    `statuses` and `expected` hold names of statuses by column. Raises UsageError where a column or row is missing on a
    side or has another type there, or where there is nothing to compare: that is no success.
    """
    strange = sorted(set(served.column_names) ^ set(offline.column_names))
    if strange or served.num_rows != offline.num_rows or not served.num_rows or not served.num_columns:
        raise UsageError(
            f"served {served.num_rows} rows of {served.num_columns} columns, read {offline.num_rows} rows of "
            f"{offline.num_columns} offline; columns on one side only: {', '.join(strange) or 'none'}"
        )
    found: list[Difference] = []
    counted: dict[str, int] = {}
    for name in served.column_names:
        here, there = _flat(served[name]), _flat(offline[name])
        status, due = (pa.array(each[name], pa.string()) for each in (statuses, expected))
        found += _differences(name, here, there, status, due)
        for entry in pc.value_counts(status).to_pylist():
            counted[entry["values"]] = counted.get(entry["values"], 0) + entry["counts"]
    return Comparison(rows=served.num_rows, columns=served.num_columns, statuses=counted, differences=tuple(found))


def differing(here: pa.Array, there: pa.Array) -> npt.NDArray[np.bool_]:
    """Where two arrays of one type differ in a bit; raises UsageError where their types differ.

    >>> differing(pa.array([0.1 + 0.2, None, 1.0]), pa.array([0.3, None, 1.0])).tolist()
    [True, False, False]
    """
    if here.type != there.type:
        raise UsageError(f"values of type {here.type} cannot be compared with values of type {there.type}")
    absent, gone = (each.is_null().to_numpy(zero_copy_only=False) for each in (here, there))
    if pa.types.is_floating(here.type):
        one, other = (_bits(each) for each in (here, there))
        unequal = one != other
    else:
        unequal = pc.fill_null(pc.not_equal(here, there), fill_value=False).to_numpy(zero_copy_only=False)
    result: npt.NDArray[np.bool_] = (absent != gone) | (~absent & ~gone & unequal)
    return result


def comparable(values: pa.Array) -> list[object]:
    """The values as Python values that are equal where their bits are: floats as their bits, None for null.

    >>> comparable(pa.array([0.0, None])) == comparable(pa.array([-0.0, None]))
    False
    """
    if not pa.types.is_floating(values.type):
        return list(values.to_pylist())
    gone = values.is_null().to_pylist()
    return [None if none else bits for none, bits in zip(gone, _bits(values).tolist(), strict=True)]


def _differences(
    name: str, here: pa.Array, there: pa.Array, status: pa.Array, expected: pa.Array
) -> Iterator[Difference]:
    other_status = pc.not_equal(status, expected).to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(differing(here, there) | other_status).tolist():
        values = (here[row].as_py(), there[row].as_py(), status[row].as_py(), expected[row].as_py())
        yield Difference(name, row, *values)


def _bits(values: pa.Array) -> npt.NDArray[np.int64]:
    numbers = pc.fill_null(values, 0.0).to_numpy(zero_copy_only=False).astype(np.float64)
    # Hardware makes NaNs of many patterns; to us there is one.
    numbers[np.isnan(numbers)] = np.nan
    bits: npt.NDArray[np.int64] = numbers.view(np.int64)
    return bits


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks()
