"""How does SQL read a column's instants and entity keys, whatever type the file gave them?

Instants are BIGINT microseconds since the epoch in UTC: naive ones are UTC, nanoseconds are floored (DuckDB would
round), strings are ISO 8601. Keys are coerced to the entity's declared type and refused where that loses something.
"""

from collections.abc import Callable

import pyarrow as pa

from featurestore.errors import SourceError
from featurestore.online.types import FLOAT_INTEGERS
from validation.instant import FORMS, ISO_PATTERN, NO_UNIT, RANGES, UNITS

_ZONE = r"[Tt ].*(Z|z|[+-]\d{2}(:?\d{2})?)$"


def identifier(name: str) -> str:
    """A column's name, quoted.

    >>> identifier('a "b"')
    '"a ""b\"""'
    """
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string, quoted.

    >>> literal("it's")
    "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"


def instant(column: str, dtype: pa.DataType, *, place: str, unit: str = "") -> str:
    """The column's instants as BIGINT microseconds, by the one table of forms (`validation.instant`).

    NULL stays NULL, DuckDB's infinities become NULL. `unit` is the declared one of numbers; empty goes by magnitude.
    Raises SourceError, naming `place`, for a type that is no time; a single value that is none is an error when it is
    met.

    >>> instant("ts", pa.timestamp("us", "UTC"), place="source 's'")
    'epoch_us("ts")'
    """
    name = identifier(column)
    if pa.types.is_timestamp(dtype):
        if dtype.unit != "ns":
            return f"epoch_us({name})"
        # Integer division truncates towards zero and epoch_us rounds; an instant before 1970 must be floored too.
        return f"((epoch_ns({name}) - ((epoch_ns({name}) % 1000) + 1000) % 1000) // 1000)"
    if pa.types.is_date(dtype):
        return f"epoch_us({name})"
    if is_string(dtype):
        return _text_instant(name, _refused(place, column, name, ", which is no ISO 8601 instant"))
    if pa.types.is_integer(dtype) or pa.types.is_floating(dtype):
        return _number_instant(name, dtype, unit, _refused(place, column, name, NO_UNIT))
    raise SourceError(f"{place}: column {column!r} is {dtype}, not a time; expected {FORMS}")


def earliest(column: str, dtype: pa.DataType, t_us: int) -> str | None:
    """A filter on the raw column that row-group statistics can answer: at or after `t_us`; None where there is none."""
    return _bound(column, dtype, ">=", t_us)


def latest(column: str, dtype: pa.DataType, t_us: int) -> str | None:
    """As `earliest`: at or before `t_us`."""
    return _bound(column, dtype, "<=", t_us)


def entity_key(column: str, dtype: pa.DataType, declared: str, *, place: str) -> str:
    """A source's key column in the entity's declared type (a Feast value type's name).

    Raises SourceError with both types where no value could be converted without loss; a single value that cannot is an
    error when it is met.

    >>> entity_key("id", pa.int32(), "INT64", place="source 's'")
    '"id"::BIGINT'
    """
    name = identifier(column)
    sql: str | None = None
    if pa.types.is_null(dtype) and declared in _SQL_TYPES:
        sql = f"{name}::{_SQL_TYPES[declared]}"
    elif declared in {"INT32", "INT64"}:
        # The type alone: the key may be of somebody whose data is personal.
        lost = literal(
            f"{place}: join key {column!r} is declared {declared}, a {dtype} there cannot become one without loss"
        )
        sql = whole_number(name, dtype, f"error({lost})")
    elif declared == "STRING":
        sql = name if is_string(dtype) else f"{name}::VARCHAR" if pa.types.is_integer(dtype) else None
    elif declared == "UNIX_TIMESTAMP":
        sql = instant(column, dtype, place=place)
    elif any(accepts(dtype) for accepts in _SAME_KIND.get(declared, ())):
        sql = f"{name}::{_SQL_TYPES[declared]}"
    if sql is None:
        raise SourceError(f"{place}: join key {column!r} is {dtype} there, its entity is declared {declared}")
    return sql


def is_string(dtype: pa.DataType) -> bool:
    """Whether the type holds text, dictionary-encoded or not.

    >>> is_string(pa.dictionary(pa.int8(), pa.large_string()))
    True
    """
    if pa.types.is_dictionary(dtype):
        return is_string(dtype.value_type)
    return bool(pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype))


_SQL_TYPES = {
    "INT32": "BIGINT",
    "INT64": "BIGINT",
    "STRING": "VARCHAR",
    "BYTES": "BLOB",
    "BOOL": "BOOLEAN",
    "FLOAT": "DOUBLE",
    "DOUBLE": "DOUBLE",
    "UNIX_TIMESTAMP": "BIGINT",
}


_SAME_KIND: dict[str, tuple[Callable[[pa.DataType], bool], ...]] = {
    "BYTES": (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary),
    "BOOL": (pa.types.is_boolean,),
    "FLOAT": (pa.types.is_floating,),
    "DOUBLE": (pa.types.is_floating,),
}


def whole_number(value: str, dtype: pa.DataType, refused: str) -> str | None:
    """SQL that gives `value`, an expression of that type, as BIGINT; None for a type that holds no whole numbers.

    A float counts below 2^53 (2^24 for float32): above, it may stand for a neighbour that it cannot hold. NaN is NULL.
    `refused` is SQL that raises, for all other values.
    """
    if pa.types.is_uint64(dtype):
        return f"CASE WHEN {value} <= {2**63 - 1} OR {value} IS NULL THEN {value}::BIGINT ELSE {refused} END"
    if pa.types.is_integer(dtype):
        return f"{value}::BIGINT"
    if pa.types.is_floating(dtype):
        # NaN is how a float column of whole numbers says NULL. Not by isnan(), which DuckDB 2.0.0 takes for false where
        # a Parquet file's statistics name a greatest value: these leave NaN out.
        nan = f"(NOT isfinite({value}) AND abs({value}) <> 'infinity')"
        exact = f"abs({value}) < {FLOAT_INTEGERS[dtype.bit_width]} AND {value} = floor({value})"
        return f"CASE WHEN {value} IS NULL OR {nan} THEN NULL WHEN {exact} THEN {value}::BIGINT ELSE {refused} END"
    if pa.types.is_decimal(dtype):
        whole = f"TRY_CAST({value} AS BIGINT)"
        return f"CASE WHEN {value} IS NULL THEN NULL WHEN {whole} = {value} THEN {whole} ELSE {refused} END"
    if is_string(dtype):
        # "05" and "5" are two strings and must not become one number.
        whole = f"TRY_CAST({value} AS BIGINT)"
        return f"CASE WHEN {value} IS NULL THEN NULL WHEN {whole}::VARCHAR = {value} THEN {whole} ELSE {refused} END"
    return None


def _refused(place: str, column: str, name: str, why: str) -> str:
    return f"error({literal(f'{place}: column {column!r} holds ')} || {name}::VARCHAR || {literal(why)})"


def _text_instant(name: str, refused: str) -> str:
    text = f"regexp_replace(upper({name}), '[.,](\\d{{1,6}})\\d*', '.\\1')"
    zoned = f"epoch_us(TRY_CAST({text} AS TIMESTAMPTZ))"
    naive = f"epoch_us(TRY_CAST({text} AS TIMESTAMP))"
    read = f"CASE WHEN regexp_matches({name}, {literal(_ZONE)}) THEN {zoned} ELSE {naive} END"
    matched = f"regexp_matches({name}, {literal(ISO_PATTERN)})"
    return f"CASE WHEN {name} IS NULL THEN NULL ELSE coalesce(CASE WHEN {matched} THEN {read} END, {refused}) END"


def _number_instant(name: str, dtype: pa.DataType, unit: str, refused: str) -> str:
    whole = pa.types.is_integer(dtype)

    def micros(of: str) -> str:
        if of == "ns":
            return (
                f"floor({name} / 1000)::BIGINT"
                if not whole
                else f"(({name}::HUGEINT - ({name}::HUGEINT % 1000 + 1000) % 1000) // 1000)::BIGINT"
            )
        return (
            f"({name}::HUGEINT * {UNITS[of]})::BIGINT"
            if whole
            else f"round_even({name}::DOUBLE * {UNITS[of]}, 0)::BIGINT"
        )

    # NaN by way of isfinite, as in `_whole_number`.
    absent = f"{name} IS NULL" if whole else f"{name} IS NULL OR (NOT isfinite({name}) AND abs({name}) <> 'infinity')"
    if unit:
        return f"CASE WHEN {absent} THEN NULL ELSE {micros(unit)} END"
    ranges = " ".join(
        f"WHEN {name} >= {low} AND {name} < {high} THEN {micros(of)}" for of, (low, high) in RANGES.items()
    )
    return f"CASE WHEN {absent} THEN NULL {ranges} ELSE {refused} END"


def _bound(column: str, dtype: pa.DataType, operator: str, t_us: int) -> str | None:
    # Beyond these DuckDB's literals overflow; and a bound of nanoseconds would have to be rounded the right way.
    if not pa.types.is_timestamp(dtype) or dtype.unit == "ns" or abs(t_us) > 200_000 * 365 * 86_400_000_000:
        return None
    maker = "make_timestamp" if dtype.tz is None else "make_timestamptz"
    return f"{identifier(column)} {operator} {maker}({t_us}::BIGINT)"
