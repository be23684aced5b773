"""One exact type for a column that several files store in different types.

Arrow and DuckDB promote int64 beside double to double, and 2^60 + 1 becomes 2^60. Here every file is read in its own
types and cast to one type, value by value: a value that the cast would change is an error that names the file.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import duckdb
import pyarrow as pa

from featurestore.errors import SourceError
from featurestore.offline.connection import first_line
from featurestore.offline.sql_types import identifier, instant, is_string, literal, whole_number

INSTANT = pa.timestamp("us", "UTC")
_INTEGERS = {
    pa.int8(): "TINYINT",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.uint8(): "UTINYINT",
    pa.uint16(): "USMALLINT",
    pa.uint32(): "UINTEGER",
    pa.uint64(): "UBIGINT",
}
_PLAIN = {
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
    pa.binary(): "BLOB",
    pa.bool_(): "BOOLEAN",
    pa.date32(): "DATE",
    INSTANT: "TIMESTAMPTZ",
}
_MOST_DIGITS = 38


def plain(dtype: pa.DataType) -> pa.DataType:
    """The type without its encoding: a dictionary's values, one of the forms of text, of bytes and of lists.

    >>> plain(pa.dictionary(pa.int8(), pa.large_string()))
    DataType(string)
    """
    if pa.types.is_dictionary(dtype):
        return plain(dtype.value_type)
    if is_string(dtype):
        return pa.string()
    if pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype) or pa.types.is_fixed_size_binary(dtype):
        return pa.binary()
    if pa.types.is_float16(dtype):
        return pa.float32()
    if pa.types.is_date64(dtype):
        return pa.date32()
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype):
        return pa.list_(plain(dtype.value_type))
    if pa.types.is_struct(dtype):
        return pa.struct([(field.name, plain(field.type)) for field in dtype])
    return dtype


def one_type(types: Iterable[pa.DataType], declared: str | None = None) -> pa.DataType | None:
    """The type that can hold the values of all of them, None where there is none.

    `declared` is the Feast value type that the column is read as: integers and floats together are integers where
    integers are declared, and floats otherwise. Whether a single value can be cast is for `exact_sql` to say.

    >>> one_type([pa.int64(), pa.float64()], "INT64"), one_type([pa.int64(), pa.float64()])
    (DataType(int64), DataType(double))
    >>> one_type([pa.int64(), pa.string()]) is None
    True
    """
    found = list(dict.fromkeys(each for each in map(plain, types) if not pa.types.is_null(each)))
    if len(found) < 2:
        return found[0] if found else pa.null()
    if declared in ("INT32", "INT64") and all(_is_number(each) or is_string(each) for each in found):
        return pa.int64()
    if declared in ("FLOAT", "DOUBLE") and all(map(_is_number, found)):
        return pa.float64()
    if declared == "STRING" and all(is_string(each) or pa.types.is_integer(each) for each in found):
        return pa.string()
    if declared == "UNIX_TIMESTAMP" and all(_is_time(each) or is_string(each) for each in found):
        return INSTANT
    return _common(found, declared)


def exact_sql(value: str, found: pa.DataType, wanted: pa.DataType, refused: str) -> str | None:
    """SQL that gives `value`, an expression of one type, as another; None where no value could be cast.

    `refused` is SQL that raises, for a value that the cast would change.

    >>> exact_sql('"x"', pa.int32(), pa.int64(), "error('no')")
    '"x"::BIGINT'
    """
    found = plain(found)
    if found == wanted:
        return value
    if pa.types.is_null(found):
        return f"NULL::{_sql_type(wanted)}"
    if wanted == pa.int64():
        return whole_number(value, found, refused)
    if wanted in (pa.float64(), pa.string()) or pa.types.is_integer(wanted) or pa.types.is_decimal(wanted):
        return _scalar(value, found, wanted, refused)
    if wanted == INSTANT:
        plain_name = value[1:-1].replace('""', '"')
        top = value == identifier(plain_name)
        if not (_is_time(found) or is_string(found)) or (not top and not pa.types.is_date(found) and _is_ns(found)):
            return None
        return f"make_timestamptz({instant(plain_name, found, place='')})" if top else f"{value}::TIMESTAMPTZ"
    if pa.types.is_list(wanted) and pa.types.is_list(found):
        item = exact_sql("item", found.value_type, wanted.value_type, refused)
        return None if item is None else f"list_transform({value}, lambda item: {item})"
    if pa.types.is_struct(wanted) and pa.types.is_struct(found):
        return _struct(value, found, wanted, refused)
    return None


def exact_select(schema: pa.Schema, wanted: pa.Schema, *, place: str, name: str) -> str:
    """A SELECT list that gives rows of one schema in another's columns; absent ones are NULL.

    `place` is SQL that tells which file a row is in, for errors; `name` is the source.
    """
    listed = []
    for field in wanted:
        index = schema.get_field_index(field.name)
        column = identifier(field.name)
        if index < 0:
            listed.append(f"NULL::{_sql_type(plain(field.type))} AS {column}")
            continue
        found = schema.field(index).type
        told = f"{name}: column {field.name!r} of "
        needed = f" is {found}; {_named(field.type)} is needed, and one of its values would change"
        refused = f"error({literal(told)} || {place} || {literal(needed)})"
        cast = exact_sql(column, found, plain(field.type), refused)
        if cast is None:
            raise SourceError(f"{told}some files is {found}, which cannot become {field.type}")
        listed.append(f"{cast} AS {column}")
    return ", ".join(listed)


def unified(
    schemas: Mapping[str, pa.Schema], declared: Mapping[str, str] | None = None
) -> tuple[pa.Schema, dict[str, str]]:
    """One schema for files (name -> its schema), and which columns have none: column -> which files disagree.

    Where all files that have a column store it in one type, it keeps that type.
    """
    types: dict[str, dict[pa.DataType, str]] = {}
    for file, schema in schemas.items():
        for field in schema:
            types.setdefault(field.name, {}).setdefault(field.type, file)
    fields, apart = [], {}
    for column, found in types.items():
        if len(found) == 1:
            fields.append(pa.field(column, next(iter(found))))
            continue
        one = one_type(found, (declared or {}).get(column))
        if one is None:
            apart[column] = ", ".join(f"{dtype} in {file}" for dtype, file in found.items())
        else:
            fields.append(pa.field(column, one))
    return pa.schema(fields), apart


def concatenated(
    tables: Mapping[str, pa.Table],
    *,
    name: str,
    declared: Mapping[str, str] | None = None,
    apart: Literal["error", "text"] = "error",
) -> pa.Table:
    """The rows of tables (file -> its rows) in order; columns that some lack are null there.

    `apart` says what becomes of a column whose types have nothing in common. Raises SourceError for it, and where a
    value would change.
    """
    schemas = {file: table.schema for file, table in tables.items()}
    if len({schema.remove_metadata() for schema in schemas.values()}) == 1:
        return pa.concat_tables([table.replace_schema_metadata() for table in tables.values()])
    wanted, differing = unified(schemas, declared)
    for column, why in differing.items():
        if apart == "error":
            raise SourceError(f"{name}: its files disagree about the type of column {column!r}: {why}")
        wanted = wanted.append(pa.field(column, pa.string()))
        tables = {file: _as_text(table, column) for file, table in tables.items()}
    return pa.concat_tables([cast_exactly(table, wanted, file=file, name=name) for file, table in tables.items()])


def cast_exactly(table: pa.Table, wanted: pa.Schema, *, file: str, name: str) -> pa.Table:
    """The rows in the wanted columns, as `exact_select` has them; raises SourceError."""
    moved = []
    for field in wanted:
        index = table.schema.get_field_index(field.name)
        if index < 0:
            moved.append(pa.chunked_array([pa.nulls(len(table), field.type)]))
        elif table.schema.field(index).type == field.type:
            moved.append(table.column(index))
        else:
            moved.append(_cast_column(table.select([index]), field, file, name))
    return pa.table(moved, schema=wanted)


def _as_text(table: pa.Table, column: str) -> pa.Table:
    index = table.schema.get_field_index(column)
    if index < 0 or is_string(table.schema.field(index).type):
        return table
    with duckdb.connect(":memory:", config={"autoinstall_known_extensions": False}) as session:
        session.register("held", table.select([column]))
        session.execute("SET TimeZone = 'UTC'")
        found = session.sql(f"SELECT {identifier(column)}::VARCHAR AS {identifier(column)} FROM held").to_arrow_table()
    return table.set_column(index, column, found.column(0))


def _cast_column(column: pa.Table, field: pa.Field, file: str, name: str) -> pa.ChunkedArray:
    select = exact_select(column.schema, pa.schema([field]), place=literal(file), name=name)
    try:
        with duckdb.connect(":memory:", config={"autoinstall_known_extensions": False}) as session:
            session.register("held", column)
            session.execute("SET TimeZone = 'UTC'")
            found = session.sql(f"SELECT {select} FROM held").to_arrow_table()
    except duckdb.Error as error:
        raise SourceError(first_line(error)) from error
    return found.column(0).cast(field.type)


def _common(found: Sequence[pa.DataType], declared: str | None) -> pa.DataType | None:
    if all(map(pa.types.is_integer, found)):
        unsigned = all(map(pa.types.is_unsigned_integer, found))
        return pa.uint64() if unsigned and pa.uint64() in found else pa.int64()
    if all(pa.types.is_integer(each) or pa.types.is_floating(each) for each in found):
        return pa.float32() if all(each == pa.float32() for each in found) else pa.float64()
    if all(pa.types.is_integer(each) or pa.types.is_decimal(each) for each in found):
        whole = max(each.precision - each.scale if pa.types.is_decimal(each) else 20 for each in found)
        scale = max(each.scale if pa.types.is_decimal(each) else 0 for each in found)
        return pa.decimal128(whole + scale, scale) if whole + scale <= _MOST_DIGITS else None
    if all(map(_is_time, found)):
        return INSTANT
    if all(map(pa.types.is_list, found)):
        item = None if declared is None else declared.rpartition("_")[0]
        one = one_type([each.value_type for each in found], item)
        return None if one is None else pa.list_(one)
    if all(map(pa.types.is_struct, found)):
        names = dict.fromkeys(field.name for each in found for field in each)
        fields = {
            name: one_type([each.field(name).type for each in found if each.get_field_index(name) >= 0])
            for name in names
        }
        return None if None in fields.values() else pa.struct(list(fields.items()))
    return None


def _scalar(value: str, found: pa.DataType, wanted: pa.DataType, refused: str) -> str | None:
    cast = f"TRY_CAST({value} AS {_sql_type(wanted)})"
    if wanted == pa.string():
        return f"{value}::VARCHAR" if pa.types.is_integer(found) else None
    if not _is_number(found):
        return None
    back = f"TRY_CAST({cast} AS {'HUGEINT' if pa.types.is_integer(found) else _sql_type(found)})"
    if found == pa.float32() and wanted == pa.float64():
        return f"{value}::DOUBLE"
    return f"CASE WHEN {value} IS NULL THEN NULL WHEN {back} = {value} THEN {cast} ELSE {refused} END"


def _struct(value: str, found: pa.DataType, wanted: pa.DataType, refused: str) -> str | None:
    parts = []
    for field in wanted:
        index = found.get_field_index(field.name)
        inside = f"NULL::{_sql_type(field.type)}"
        if index >= 0:
            cast = exact_sql(
                f"struct_extract({value}, {literal(field.name)})", found.field(index).type, field.type, refused
            )
            if cast is None:
                return None
            inside = cast
        parts.append(f"{identifier(field.name)} := {inside}")
    return f"CASE WHEN {value} IS NULL THEN NULL ELSE struct_pack({', '.join(parts)}) END"


def _sql_type(dtype: pa.DataType) -> str:
    if pa.types.is_list(dtype):
        return f"{_sql_type(dtype.value_type)}[]"
    if pa.types.is_struct(dtype):
        return f"STRUCT({', '.join(f'{identifier(field.name)} {_sql_type(field.type)}' for field in dtype)})"
    if pa.types.is_map(dtype):
        return f"MAP({_sql_type(plain(dtype.key_type))}, {_sql_type(plain(dtype.item_type))})"
    if pa.types.is_decimal(dtype):
        return f"DECIMAL({dtype.precision}, {dtype.scale})"
    if pa.types.is_timestamp(dtype):
        return "TIMESTAMPTZ" if dtype.tz else "TIMESTAMP_NS" if dtype.unit == "ns" else "TIMESTAMP"
    if pa.types.is_time(dtype):
        return "TIME"
    if pa.types.is_duration(dtype):
        return "INTERVAL"
    return _INTEGERS.get(dtype) or _PLAIN.get(dtype) or "INTEGER"


def _named(dtype: pa.DataType) -> str:
    return "an integer" if dtype == pa.int64() else str(dtype)


def _is_number(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_decimal(dtype))


def _is_time(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(dtype) or pa.types.is_date(dtype))


def _is_ns(dtype: pa.DataType) -> bool:
    return not pa.types.is_timestamp(dtype) or bool(dtype.unit == "ns") or dtype.tz is None
