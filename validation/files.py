"""How does a producer's file become a table?

Parquet, CSV and JSON lines, by the ending of the name. Columns get the physical types that the contract's logical types
stand for, where their values allow it; what is not of its type is told with its line, since no rule could judge it.
"""

import codecs
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from validation.check import ARRIVAL
from validation.contract import Contract
from validation.errors import PlatformError
from validation.instant import number_us, to_us

_PHYSICAL: Final[Mapping[str, pa.DataType]] = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "timestamp": pa.timestamp("us", "UTC"),
    "date": pa.date32(),
}


class UnreadableData(PlatformError):
    """A producer's file that is missing, torn, or holds a value of another type than promised."""


def read_data(path: Path, contract: Contract, *, arrival_us: int | None = None) -> pa.Table:
    """The rows of a file; with `arrival_us` a file without `_arrival` gets it: the instant at which it landed.

    Raises UnreadableData, with the line and column of a value that is not of its promised type.
    """
    path = Path(path)
    readers: Mapping[str, Callable[[Path, Contract], pa.Table]] = {
        ".parquet": _parquet,
        ".csv": _csv,
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UnreadableData(f"{path}: found ending {path.suffix!r}; allowed: {', '.join(readers)}")
    try:
        table = reader(path, contract)
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
    return table


def digest_of(path: Path) -> str:
    """SHA-256 of a file: what it is called as the origin of rows."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parquet(path: Path, _: Contract) -> pa.Table:
    table = pq.read_table(path, partitioning=None)
    table.validate(full=True)  # text of no encoding would stop whoever looks at it later
    return table


def _csv(path: Path, contract: Contract) -> pa.Table:
    table = pacsv.read_csv(path, convert_options=_as_text(path))
    columns = {
        name: _typed(path, name, _present(table.column(name), contract.types.get(name)), contract, first_line=2)
        for name in table.column_names
    }
    return pa.table(columns)


def _as_text(path: Path) -> pacsv.ConvertOptions:
    with pacsv.open_csv(path) as reader:
        names = reader.schema.names
    # "NA" and "null" are words. An empty field is missing; one in quotes is empty text, which the file says plainly.
    return pacsv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )


def _present(column: pa.ChunkedArray, logical: str | None) -> list[str | None]:
    """The texts of a column; some writers put every field in quotes, and empty text is no number and no instant."""
    texts: list[str | None] = column.to_pylist()
    return texts if logical in (None, "string") else [text or None for text in texts]


def _json_lines(path: Path, contract: Contract) -> pa.Table:
    rows: list[Mapping[str, Any]] = []
    for number, line in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UnreadableData(f"{path}: line {number}: no JSON: {error}") from error
        if not isinstance(row, dict):
            raise UnreadableData(f"{path}: line {number}: found {type(row).__name__}; expected an object")
        rows.append(row)
    return table_of_rows(rows, contract, path)


def table_of_rows(rows: Sequence[Mapping[str, Any]], contract: Contract, origin: Path = Path("rows")) -> pa.Table:
    """Rows of JSON as a table with the promised types; `origin` is what an UnreadableData calls them.

    >>> unpromised = Contract(name="", version="", source="", columns=(), rules=())
    >>> table_of_rows([{"a": 1}, {"b": None}], unpromised).to_pylist()
    [{'a': 1, 'b': None}, {'a': None, 'b': None}]
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _typed(origin, name, [row.get(name) for row in rows], contract, first_line=1) for name in names}
    return pa.table(columns) if columns else pa.table({name: pa.nulls(0) for name in contract.types})


def _typed(path: Path, name: str, values: Sequence[Any], contract: Contract, *, first_line: int) -> pa.Array:
    """A column of the promised type; a column that is not promised is read as it comes."""
    logical = {ARRIVAL: "timestamp", **contract.types}.get(name, "")
    if logical not in _PHYSICAL:
        try:
            return pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return pa.array([None if value is None else str(value) for value in values], pa.string())
    typed = []
    for number, value in enumerate(values, first_line):
        try:
            typed.append(None if value is None else _CONVERT[logical](value))
        except (TypeError, ValueError, KeyError) as error:
            raise UnreadableData(f"{path}: line {number}: column {name!r} is {value!r}; promised: {logical}") from error
    physical = _PHYSICAL[logical]
    if logical in {"timestamp", "date"}:
        return pa.array(typed, pa.timestamp("us", "UTC")).cast(physical)
    return pa.array(typed, physical)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _integer(value: object) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise TypeError(value)
    number = int(value)  # type: ignore[call-overload]  # what it refuses is told by the caller
    if not -(2**63) <= number < 2**63:
        raise ValueError(value)
    return int(number)


def _number(value: object) -> float:
    if isinstance(value, bool):
        raise TypeError(value)
    return float(value)  # type: ignore[arg-type]  # what it refuses is told by the caller


def _boolean(value: object) -> bool:
    return value if isinstance(value, bool) else {"true": True, "false": False}[str(value).lower()]


def _time(value: object) -> int | None:
    """Any form of `validation.instant`; in CSV a number is text."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    return number_us(value) if type(value) in (int, float) else to_us(value)  # type: ignore[arg-type]  # just looked at


_CONVERT: Final[Mapping[str, Callable[[Any], Any]]] = {
    "string": _text,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "timestamp": _time,
    "date": to_us,
}
