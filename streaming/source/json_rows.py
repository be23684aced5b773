"""How does a row of a table read as a JSON message?

One JSON object a row, in the order of the columns; a null is `null`. Times are RFC 3339 in UTC with a `Z`, with
microseconds only where there are any; naive ones are UTC and nanoseconds are floored. JSON has no NaN and no
infinities: they become `null`. Decimals and dates are strings. Whole columns are encoded at once, by Arrow.
"""

from collections.abc import Callable

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import UsageError
from validation.instant_columns import as_micros

_NEEDS_ESCAPE = r'["\\\x00-\x1f]'
_MICROSECONDS = 1_000_000


def encode_rows(rows: pa.RecordBatch) -> list[bytes]:
    """The rows as JSON documents, in order. Raises UsageError for a column that JSON cannot hold (binary, union).

    >>> [*encode_rows(pa.record_batch({"id": ["a", None], "n": [1, 2]}))]
    [b'{"id":"a","n":1}', b'{"id":null,"n":2}']
    """
    if not rows.num_columns:
        return [b"{}"] * rows.num_rows
    parts: list[pa.Array | str] = []
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        parts.append(("," if parts else "{") + orjson.dumps(name).decode() + ":")
        parts.append(pc.fill_null(_encoded(name, column).cast(pa.large_string()), "null"))
    pieces = [_text(part) if isinstance(part, str) else part for part in parts]
    documents = pc.binary_join_element_wise(*pieces, _text("}"), _text(""))
    return list(documents.cast(pa.large_binary()).to_pylist())


def rfc3339(times: pa.Array) -> pa.Array:
    """Timestamps as strings such as `2013-01-01T10:15:00Z`, with `.123456` where a second is not whole.

    >>> rfc3339(pa.array([0, 1], pa.timestamp("us"))).to_pylist()
    ['1970-01-01T00:00:00Z', '1970-01-01T00:00:00.000001Z']
    """
    stamps = microseconds(times).cast(pa.timestamp("us"))
    seconds = pc.floor_temporal(stamps, unit="second")
    texts = seconds.cast(pa.timestamp("s")).cast(pa.large_string())
    whole = pc.equal(seconds, stamps)
    if not pc.all(whole).as_py():
        texts = pc.if_else(whole, texts, stamps.cast(pa.large_string()))
    return pc.binary_join_element_wise(pc.replace_substring(texts, " ", "T"), _text("Z"), _text(""))


def microseconds(times: pa.Array) -> pa.Array:
    """Timestamps of any unit and zone as int64 microseconds since the epoch, UTC; nanoseconds floored.

    >>> microseconds(pa.array([-1], pa.timestamp("ns"))).to_pylist()
    [-1]
    """
    return as_micros(times)


def _encoded(name: str, column: pa.Array) -> pa.Array:
    """Each value as JSON text, null where the value is."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    for matches, encode in _ENCODERS:
        if matches(kind):
            return encode(column)
    if pa.types.is_nested(kind):
        return _one_by_one(name, column)
    raise UsageError(f"column {name!r} is {kind}, which JSON cannot hold; drop it or cast it")


def _strings(column: pa.Array) -> pa.Array:
    column = column.cast(pa.large_string())
    if pc.any(pc.match_substring_regex(column, _NEEDS_ESCAPE)).as_py():
        return pa.array([None if text is None else orjson.dumps(text).decode() for text in column.to_pylist()])
    return _quoted(column)


def _quoted(column: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(_text('"'), column.cast(pa.large_string()), _text('"'), _text(""))


def _text(constant: str) -> pa.Scalar:
    return pa.scalar(constant, pa.large_string())


def _floats(column: pa.Array) -> pa.Array:
    if not len(column):
        return pa.array([], pa.large_string())
    # Shortest digits that read back as the same double; orjson writes a whole array at once.
    numbers = pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False)
    texts = orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].decode().split(",")
    return pc.if_else(column.is_valid(), pa.array(texts, pa.large_string()), None)


def _one_by_one(name: str, column: pa.Array) -> pa.Array:
    def refuse(value: object) -> object:
        raise UsageError(f"column {name!r} holds a {type(value).__name__} within {column.type}, which JSON cannot hold")

    try:
        return pa.array(
            [None if value is None else orjson.dumps(value, refuse).decode() for value in column.to_pylist()]
        )
    except orjson.JSONEncodeError as error:
        if isinstance(error.__cause__, UsageError):
            raise error.__cause__ from None
        raise


_ENCODERS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array], pa.Array]], ...] = (
    (
        lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind),
        _strings,
    ),
    (pa.types.is_timestamp, lambda column: _quoted(rfc3339(column))),
    (pa.types.is_floating, _floats),
    (lambda kind: pa.types.is_integer(kind) or pa.types.is_boolean(kind), lambda column: column.cast(pa.string())),
    (
        lambda kind: pa.types.is_date(kind) or pa.types.is_decimal(kind) or pa.types.is_time(kind),
        lambda column: _quoted(column.cast(pa.string())),
    ),
    (pa.types.is_null, lambda column: column.cast(pa.string())),
)
