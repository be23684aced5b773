"""Which numbers does an Arrow column hand to the algebra?

Floats become float64 with one NaN and no -0.0; INT32, INT64, BOOL and UNIX_TIMESTAMP (microseconds) become int64.
`ascending` and `descending` turn either into uint64 that sort alike, so that every "greatest" and "least" of the
algebra is a maximum of unsigned integers whose identity is 0.
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from featurestore.errors import DefinitionError, UsageError

Kind = Literal["float", "int", "bytes"]
Codes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Numbers = npt.NDArray[Any]
"""float64 or int64."""

_KINDS: dict[str, Kind] = {
    "FLOAT": "float",
    "DOUBLE": "float",
    "INT32": "int",
    "INT64": "int",
    "BOOL": "int",
    "UNIX_TIMESTAMP": "int",
    "STRING": "bytes",
    "BYTES": "bytes",
}
_ARROW = {
    "FLOAT": pa.float32(),
    "DOUBLE": pa.float64(),
    "INT32": pa.int32(),
    "INT64": pa.int64(),
    "BOOL": pa.bool_(),
    "UNIX_TIMESTAMP": pa.timestamp("us", tz="UTC"),
    "STRING": pa.string(),
    "BYTES": pa.binary(),
}
_SIGN = np.uint64(1 << 63)
_LEAST = np.int64(-(1 << 63))


@dataclass(frozen=True)
class Events:
    """The non-null values of one column, with the event times that go with them."""

    values: Numbers
    ts_us: Ints

    def take(self, index: Any) -> "Events":
        """The events at these positions."""
        return Events(self.values[index], self.ts_us[index])


def kind_of(dtype: str, column: str) -> Kind:
    """How values of a column of that Feast type are aggregated; raises DefinitionError for other types."""
    try:
        return _KINDS[dtype]
    except KeyError:
        raise DefinitionError(
            f"column {column!r} is {dtype}, which cannot be aggregated; what can be: {', '.join(_KINDS)}"
        ) from None


def arrow_type(dtype: str) -> Any:
    """The Arrow type of a Feast type, lists included.

    >>> str(arrow_type("DOUBLE_LIST"))
    'list<item: double>'
    """
    if dtype.endswith("_LIST"):
        return pa.list_(_ARROW[dtype.removesuffix("_LIST")])
    return _ARROW[dtype]


def numbers(column: Any, *, name: str, dtype: str) -> tuple[Numbers, npt.NDArray[np.bool_] | None]:
    """The numbers of an Arrow (chunked) array and which of them are there (None: all); where null, 0.

    Raises UsageError where a value cannot be its declared type without loss.

    >>> numbers(pa.array([1.5, None, -0.0]), name="fare", dtype="DOUBLE")
    (array([1.5, 0. , 0. ]), array([ True, False,  True]))
    """
    column = whole(column)
    kind = kind_of(dtype, name)
    try:
        if pa.types.is_null(column.type):
            column = column.cast(_ARROW[dtype])
        elif dtype == "UNIX_TIMESTAMP" and pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("us", tz=column.type.tz), safe=False)
        elif dtype in ("FLOAT", "BOOL") and column.type != _ARROW[dtype]:
            column = column.cast(_ARROW[dtype])
        present = present_of(column)
        plain = column.cast(pa.float64() if kind == "float" else pa.int64())
        if present is not None:
            plain = plain.fill_null(0)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UsageError(f"column {name!r} is declared {dtype}; {column.type} was found: {error}") from error
    values: Numbers = plain.to_numpy(zero_copy_only=False)
    return (tidy(values) if values.dtype == np.float64 else values), present


def whole(column: Any) -> Any:
    """A chunked array as one array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def present_of(column: Any) -> npt.NDArray[np.bool_] | None:
    """Which values of an array are not null; None where all are."""
    return column.is_valid().to_numpy(zero_copy_only=False) if column.null_count else None


def hash_bytes(column: Any) -> Numbers:
    """xxh3_64 of every string (UTF-8) or bytes of an Arrow (chunked) array, as int64; where null, 0.

    >>> hash_bytes(pa.array(["a", None, "a"])).tolist()
    [-1817709641818812897, 0, -1817709641818812897]
    """
    column = whole(column)
    coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    hashes = [xxhash.xxh3_64_intdigest(value) for value in _as_bytes(coded.dictionary).to_pylist()]
    known = np.array([0, *hashes], np.uint64).view(np.int64)
    return cast(Numbers, known[coded.indices.cast(pa.int64()).fill_null(-1).to_numpy() + 1])


def _as_bytes(dictionary: Any) -> Any:
    return dictionary if pa.types.is_large_binary(dictionary.type) else dictionary.cast(pa.binary())


def tidy(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The same floats with -0.0 as 0.0 and every NaN the same NaN."""
    x = x + 0.0
    strange = np.isnan(x)
    if strange.any():
        x[strange] = np.nan
    return x


def ascending(values: Numbers) -> Codes:
    """uint64 that sort as the values do; NaN is greatest.

    >>> x = np.array([float("-inf"), -1.0, 0.0, float("nan")])
    >>> bool((np.diff(ascending(x).astype(object)) > 0).all())
    True
    """
    if values.dtype == np.float64:
        bits = values.view(np.int64)
        return np.where(bits < 0, ~bits, bits ^ _LEAST).view(np.uint64)
    return cast(Codes, (values ^ _LEAST).view(np.uint64))


def from_ascending(codes: Codes, kind: Kind) -> Numbers:
    """The values that `ascending` was given."""
    if kind == "float":
        return np.where(codes & _SIGN, codes ^ _SIGN, ~codes).view(np.float64)
    return cast(Numbers, (codes ^ _SIGN).view(np.int64))


def descending(values: Numbers) -> Codes:
    """uint64 that sort opposite to the values, except that NaN is greatest here too."""
    return ascending(tidy(-values) if values.dtype == np.float64 else ~values)


def from_descending(codes: Codes, kind: Kind) -> Numbers:
    """The values that `descending` was given."""
    values = from_ascending(codes, kind)
    return tidy(-values) if kind == "float" else ~values
