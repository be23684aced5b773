"""Which numbers does an Arrow column hand to the algebra?

Floats become float64 with one NaN and no -0.0; INT32, INT64, BOOL, UNIX_TIMESTAMP and DATE (microseconds) become
int64, and so do decimals of up to 18 digits, in units of their last one. Text, bytes and longer decimals become places
in a `Lexicon`. `ascending` and `descending` turn either into uint64 that sort alike, so that every "greatest" and
"least" of the algebra is a maximum of unsigned integers whose identity is 0.
"""

import re
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from featurestore.aggregation.lexicon import Lexicon, of_decimals
from featurestore.errors import DefinitionError, UsageError
from validation.instant_columns import as_micros

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
    "DATE": "int",
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
    "DATE": pa.date32(),
    "DECIMAL": pa.string(),
}
_DECIMAL = re.compile(r"DECIMAL\((\d+),(\d+)\)")
SHORT_DECIMAL: Final = 18
"""Decimals of up to so many digits are int64."""
_LONGEST_DECIMAL: Final = 38
_SIGN = np.uint64(1 << 63)
_LEAST = np.int64(-(1 << 63))


@dataclass(frozen=True)
class Events:
    """The non-null values of one column, with the event times that go with them."""

    values: Numbers
    ts_us: Ints
    lexicon: Lexicon | None = None
    """Where there is one, values are places in it."""

    def take(self, index: Any) -> "Events":
        """The events at these positions."""
        return Events(self.values[index], self.ts_us[index], self.lexicon)


def decimal_of(dtype: str) -> tuple[int, int] | None:
    """Precision and scale of a decimal column's type; None for other types. Raises DefinitionError where it has none.

    >>> decimal_of("DECIMAL(10,2)"), decimal_of("INT64")
    ((10, 2), None)
    """
    if not dtype.startswith("DECIMAL("):
        return None
    found = _DECIMAL.fullmatch(dtype)
    precision, scale = map(int, found.groups()) if found else (0, 0)
    if not 0 <= scale <= precision or not 1 <= precision <= _LONGEST_DECIMAL:
        raise DefinitionError(f"{dtype}: a decimal has 1 to {_LONGEST_DECIMAL} digits, up to all behind the point")
    return precision, scale


def kind_of(dtype: str, column: str) -> Kind:
    """How values of a column of that Feast type are aggregated; raises DefinitionError for other types."""
    digits = decimal_of(dtype)
    if digits is not None:
        return "int" if digits[0] <= SHORT_DECIMAL else "bytes"
    try:
        return _KINDS[dtype]
    except KeyError:
        raise DefinitionError(
            f"column {column!r} is {dtype}, which cannot be aggregated; what can be: {', '.join(_KINDS)}, DECIMAL(p,s)"
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
    if (digits := decimal_of(dtype)) is not None:
        _, low, present = _halves(column, name, *digits)
        return low, present
    try:
        if pa.types.is_null(column.type):
            column = column.cast(_ARROW[dtype])
        elif dtype == "UNIX_TIMESTAMP" and pa.types.is_timestamp(column.type):
            column = as_micros(column).cast(pa.timestamp("us", tz=column.type.tz))
        elif dtype in ("DATE", "UNIX_TIMESTAMP") and (dtype == "DATE" or pa.types.is_date(column.type)):
            # A date is the instant at which it begins, in UTC.
            column = column.cast(pa.date32()).cast(pa.timestamp("us"))
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


def long_decimals(column: Any, *, name: str, dtype: str) -> tuple[Ints, Lexicon, npt.NDArray[np.bool_] | None]:
    """Places of the decimals of an Arrow (chunked) array in their lexicon, and which of them are there (None: all).

    Raises UsageError where a value is no such decimal.
    """
    digits = decimal_of(dtype)
    assert digits is not None  # the kind says so
    high, low, present = _halves(whole(column), name, *digits)
    places, lexicon = of_decimals(high, low, digits[1])
    return places, lexicon, present


def _halves(column: Any, name: str, precision: int, scale: int) -> tuple[Ints, Ints, npt.NDArray[np.bool_] | None]:
    """The 128-bit units of decimals as high and low int64, 0 where null; and which are there."""
    wanted = pa.decimal128(precision, scale)
    try:
        if pa.types.is_floating(column.type):
            raise UsageError(f"column {name!r} is declared {wanted}; {column.type} was found: floats are no decimals")
        column = column if column.type == wanted else column.cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UsageError(f"column {name!r} is declared {wanted}; {column.type} was found: {error}") from error
    data = column.buffers()[1]
    halves = np.zeros((len(column), 2), np.int64)
    if data is not None:
        halves[:] = np.frombuffer(data, "<i8").reshape(-1, 2)[column.offset : column.offset + len(column)]
    present = present_of(column)
    if present is not None:
        halves[~present] = 0
    return np.ascontiguousarray(halves[:, 1]), np.ascontiguousarray(halves[:, 0]), present


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
        bits = codes.view(np.int64)
        return np.where(bits < 0, bits ^ _LEAST, ~bits).view(np.float64)
    return cast(Numbers, (codes ^ _SIGN).view(np.int64))


def descending(values: Numbers) -> Codes:
    """uint64 that sort opposite to the values, except that NaN is greatest here too."""
    return ascending(tidy(-values) if values.dtype == np.float64 else ~values)


def from_descending(codes: Codes, kind: Kind) -> Numbers:
    """The values that `descending` was given."""
    values = from_ascending(codes, kind)
    return tidy(-values) if kind == "float" else ~values
