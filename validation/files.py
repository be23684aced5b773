"""How does a producer's file become a table?

Parquet, CSV and JSON lines, by the ending of the name. Columns get the physical types that the contract's logical types
stand for, where their values allow it; a column with other values holds them as the file has them, to be judged.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from validation.check import ARRIVAL, INSTANTS, UNTYPED
from validation.contract import Contract
from validation.instant import DAY_US, iso, number_us, to_us
from validation.lines import ForeignData, Unread, UnreadableData, csv_records, json_objects, text_of
from validation.mixed import is_mixed, mixed, values_of

_PHYSICAL: Final[Mapping[str, pa.DataType]] = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "timestamp": pa.timestamp("us", "UTC"),
    "date": pa.date32(),
}
_NESTED: Final = frozenset({"object", "array", "map", "vector"})
_EXACT: Final = 2**53
"""Integers up to here are exact as floats."""
_UNQUOTED: Final = frozenset({"integer", "number", "boolean"})
"""Logical types of which no value is a text in JSON."""


def read_data(path: Path, contract: Contract, *, arrival_us: int | None = None) -> pa.Table:
    """The rows of a file, all of which can be read, as `read_rows` has them; raises UnreadableData."""
    table, unread = read_rows(path, contract, arrival_us=arrival_us)
    if unread:
        raise UnreadableData(f"{path}: line {unread[0].line}: {unread[0].why}")
    return table


def read_rows(path: Path, contract: Contract, *, arrival_us: int | None = None) -> tuple[pa.Table, Sequence[Unread]]:
    """The rows of a file, and those that cannot be read.

    With `arrival_us` a file without `_arrival` gets it: the instant at which it landed. A column with a value that is
    not of its promised type is a mixed one (`validation.mixed`). Raises UnreadableData for the file as a whole.
    """
    path = Path(path)
    readers: Mapping[str, Callable[[Path, Contract], tuple[pa.Table, Sequence[Unread]]]] = {
        ".parquet": _parquet,
        ".csv": _csv,
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UnreadableData(f"{path}: found ending {path.suffix!r}; allowed: {', '.join(readers)}")
    try:
        table, unread = reader(path, contract)
    except FileNotFoundError as error:
        raise UnreadableData(f"{path}: no such file") from error
    except MemoryError as error:
        raise UnreadableData(f"{path}: the file needs more memory than there is; check it in parts") from error
    except (OSError, pa.ArrowException) as error:
        raise UnreadableData(f"{path}: the file cannot be read: {' '.join(str(error).split())}") from error
    if arrival_us is not None and ARRIVAL not in table.column_names:
        arrivals = pa.array([arrival_us], pa.timestamp("us", "UTC")).take(
            pa.nulls(table.num_rows, pa.int8()).fill_null(0)
        )
        table = table.append_column(ARRIVAL, arrivals)
    return table, unread


def digest_of(path: Path) -> str:
    """SHA-256 of a file: what it is called as the origin of rows."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parquet(path: Path, contract: Contract) -> tuple[pa.Table, Sequence[Unread]]:
    table = pq.read_table(path, partitioning=None)
    table.validate(full=True)  # text of no encoding would stop whoever looks at it later
    for number, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            plain = table.column(number).cast(field.type.value_type)
            table = table.set_column(number, field.name, plain)
        if pa.types.is_integer(field.type) and contract.types.get(field.name) == "timestamp":
            times = _of_values(field.name, table.column(number).to_pylist(), contract)
            table = table.set_column(number, field.name, times)
    return table, ()


def _csv(path: Path, contract: Contract) -> tuple[pa.Table, Sequence[Unread]]:
    data, unread = text_of(path), list[Unread]()
    try:
        # Pairs of quotes alone: one that is never closed would take what follows into its field in silence.
        table = _csv_table(data) if data.count(b'"') % 2 == 0 else None
    except (pa.ArrowInvalid, UnicodeDecodeError):
        table = None
    if table is None:
        try:
            data, unread = csv_records(data)
        except ValueError as error:
            raise ForeignData(f"{path}: {error}") from error
        table = _csv_table(data)
    columns = {
        name: _of_values(name, _present(table.column(name), contract.types.get(name)), contract, csv=True)
        for name in table.column_names
    }
    return pa.table(columns), unread


def _csv_table(data: bytes) -> pa.Table:
    """The records of CSV, all as text."""
    lines = pacsv.ParseOptions(newlines_in_values=True)
    with pacsv.open_csv(pa.BufferReader(data), parse_options=lines) as reader:
        names = reader.schema.names
    # "NA" and "null" are words. An empty field is missing; one in quotes is empty text, which the file says plainly.
    options = pacsv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    return pacsv.read_csv(pa.BufferReader(data), convert_options=options, parse_options=lines)


def _present(column: pa.ChunkedArray, logical: str | None) -> list[str | None]:
    """The texts of a column; some writers put every field in quotes, and empty text is no number and no instant."""
    texts: list[str | None] = column.to_pylist()
    return texts if logical in (None, "string") else [text or None for text in texts]


def _json_lines(path: Path, contract: Contract) -> tuple[pa.Table, Sequence[Unread]]:
    rows, unread = json_objects(text_of(path))
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        return pa.table({name: pa.nulls(len(rows)) for name in contract.types}).slice(0, len(rows)), unread
    return pa.table({name: _of_values(name, [row.get(name) for row in rows], contract) for name in names}), unread


def _of_values(name: str, values: Sequence[Any], contract: Contract, *, csv: bool = False) -> pa.Array:
    """A column of the promised type where each value is of it, else a mixed one, which is judged value by value."""
    logical = {ARRIVAL: "timestamp", **contract.types}.get(name, UNTYPED)
    if logical in _NESTED:
        return mixed([_nested(value) if csv else value for value in values])
    if logical not in _PHYSICAL:
        try:
            return pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            return mixed(values)
    typed, found = [], True
    # JSON says which type a value has; CSV has text alone.
    convert = _CONVERT[logical] if csv or logical not in _UNQUOTED else partial(_unquoted, _CONVERT[logical])
    for value in values:
        try:
            typed.append(None if value is None else convert(value))
        except (TypeError, ValueError, KeyError, OverflowError):
            typed.append(value)
            found = False
    if not found:
        return mixed(list(map(_said, values, typed)) if logical in INSTANTS else typed)
    return _column(typed, logical)


def _said(value: Any, typed: Any) -> Any:
    """A time in a mixed column: text where it is one, else a form that no reader takes for microseconds."""
    if isinstance(value, str) and not value.isdigit():
        return value
    if value is not typed and typed is not None:
        return iso(typed)
    return (
        float(value) if type(value) is int and abs(value) <= _EXACT else value if type(value) is not int else str(value)
    )


def _unquoted(convert: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, str):
        raise TypeError(value)
    return convert(value)


def _nested(text: str | None) -> Any:
    """What a text of CSV holds: JSON, else itself, which is neither list nor object."""
    try:
        return None if text is None else msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def table_of_rows(rows: Sequence[Mapping[str, Any]], contract: Contract, origin: Path = Path("rows")) -> pa.Table:
    """Rows of JSON as a table with the promised types; `origin` is what an UnreadableData calls them.

    >>> unpromised = Contract(name="", version="", source="", columns=(), rules=())
    >>> table_of_rows([{"a": 1}, {"b": None}], unpromised).to_pylist()
    [{'a': 1, 'b': None}, {'a': None, 'b': None}]
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _typed(origin, name, [row.get(name) for row in rows], contract) for name in names}
    return pa.table(columns) if columns else pa.table({name: pa.nulls(0) for name in contract.types})


def _typed(path: Path, name: str, values: Sequence[Any], contract: Contract) -> pa.Array:
    """A column of the promised type; a column that is not promised is read as it comes."""
    logical = {ARRIVAL: "timestamp", **contract.types}.get(name, UNTYPED)
    if logical not in _PHYSICAL:
        try:
            return pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return pa.array([None if value is None else str(value) for value in values], pa.string())
    typed = []
    for number, value in enumerate(values, 1):
        try:
            typed.append(None if value is None else _CONVERT[logical](value))
        except (TypeError, ValueError, KeyError) as error:
            raise UnreadableData(f"{path}: line {number}: column {name!r} is {value!r}; promised: {logical}") from error
    return _column(typed, logical)


def _column(typed: Sequence[Any], logical: str) -> pa.Array:
    if logical not in INSTANTS:
        return pa.array(typed, _PHYSICAL[logical])
    instants = pa.array(typed, pa.timestamp("us", "UTC"))
    return instants.cast(_PHYSICAL[logical], safe=False)


def with_instants(table: pa.Table, contract: Contract) -> pa.Table:
    """The table with each mixed column of instants as one of timestamps, null where a value is none."""
    for number, field in enumerate(table.schema):
        if not is_mixed(field.type) or {ARRIVAL: "timestamp", **contract.types}.get(field.name) not in INSTANTS:
            continue
        instants = pa.array(map(_instant, values_of(table.column(number))), pa.timestamp("us", "UTC"))
        table = table.set_column(number, field.name, instants)
    return table


def _instant(value: object) -> int | None:
    try:
        return _instant_us(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _instant_us(value: object) -> int | None:
    found = to_us(value)
    if found is not None and not -(2**63) <= found < 2**63:
        raise ValueError(value)
    return found


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _integer(value: object) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise TypeError(value)
    if isinstance(value, str) and "_" in value:  # Python's own way to write a number
        raise ValueError(value)
    number = int(value)  # type: ignore[call-overload]  # what it refuses is told by the caller
    if not -(2**63) <= number < 2**63:
        raise ValueError(value)
    return int(number)


def _number(value: object) -> float:
    if isinstance(value, bool):
        raise TypeError(value)
    if isinstance(value, str) and "_" in value:
        raise ValueError(value)
    return float(value)  # type: ignore[arg-type]  # what it refuses is told by the caller


def _boolean(value: object) -> bool:
    return value if isinstance(value, bool) else {"true": True, "false": False}[str(value).lower()]


def _date(value: object) -> int | None:
    if isinstance(value, int | float):
        raise TypeError(value)
    found = _instant_us(value)
    if found is not None and found % DAY_US:
        raise ValueError(value)  # a time of day
    return found


def _time(value: object) -> int | None:
    """Any form of `validation.instant`; in CSV a number is text."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number_us(value)
    return _instant_us(value)


_CONVERT: Final[Mapping[str, Callable[[Any], Any]]] = {
    "string": _text,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "timestamp": _time,
    "date": _date,
}
