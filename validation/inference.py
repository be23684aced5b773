"""What would a contract say of data like this?

A first contract from one file: types, what never was missing, short enumerations, bounds, keys. All rules observe,
since one file proves nothing: a person decides what is a promise.
"""

import datetime as dt
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import yaml

from validation.check import ARRIVAL
from validation.compiled.sql import kind
from validation.contract import Column, Contract
from validation.files import UnreadableData, read_data
from validation.instant import to_us

ENUMERATION: Final = 12
"""The most distinct texts that are taken for an enumeration."""
TABLE_ROWS: Final = 1_000_000
"""The most rows of a table that are looked at."""
_EXAMPLES: Final = 3
_LOOKED_AT: Final = 100
"""Rows among which examples are looked for."""
_SHORT: Final = 40
_REPEATS: Final = 5
"""How many rows there must be per distinct text for it to be one."""
_LOGICAL: Final[Mapping[str, str]] = {
    "integer": "integer",
    "number": "number",
    "string": "string",
    "boolean": "boolean",
    "instant": "timestamp",
}
_PERSONAL: Final = re.compile(
    r"(^|_)(e?mail|phone|mobile|(first|last|full|sur)_?name|address|street|birth(day|date)?|dob|ssn|passport|iban|ip)(_|$)",
    re.IGNORECASE,
)
_INSTANT: Final = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?")
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_INTEGER: Final = re.compile(r"-?(0|[1-9]\d{0,17})")
_NUMBER: Final = re.compile(r"-?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[Nn]a[Nn]|-?[Ii]nf(inity)?")


def read_sample(path: Path) -> pa.Table:
    """The rows of a .parquet, .csv or .jsonl file with the types that their values show; raises UnreadableData.

    Of a folder of Parquet files (a table; partition folders become columns) the first `TABLE_ROWS` rows.
    """
    if path.is_dir():
        return _read_table(path)
    bare = Contract(name="", version="", source="", columns=(), rules=())
    table = read_data(path, bare)
    # CSV has texts alone; elsewhere a text of digits is a text, and only instants have no form of their own.
    csv = Path(path).suffix.lower() == ".csv"
    columns = [Column(name=name, logical_type=_shown(table.column(name), csv=csv)) for name in table.column_names]
    return read_data(path, Contract(name="", version="", source="", columns=tuple(columns), rules=()))


def _read_table(folder: Path) -> pa.Table:
    try:
        table = pads.dataset(folder, format="parquet", partitioning="hive")
        if not table.files:
            raise UnreadableData(f"{folder}: the folder holds no Parquet files (*.parquet)")
        return table.head(TABLE_ROWS)
    except (OSError, pa.ArrowInvalid) as error:
        raise UnreadableData(f"{folder}: the table cannot be read: {' '.join(str(error).split())}") from error


def _shown(column: pa.ChunkedArray, *, csv: bool = False) -> str:
    """The logical type that values show; texts are looked at one by one, for numbers only where all are texts."""
    if pa.types.is_date(column.type):
        return "date"
    for test, logical in (
        (pa.types.is_decimal, "number"),
        (pa.types.is_time, "time"),
        (pa.types.is_struct, "object"),
        (pa.types.is_map, "object"),
        (pa.types.is_nested, "array"),
    ):
        if test(column.type):
            return logical
    found = kind(column.type)
    if found != "string":
        return _LOGICAL.get(found, "string")
    texts = {value for value in column.to_pylist() if value is not None}
    if csv and texts and texts <= {"true", "false", "True", "False"}:
        return "boolean"
    numbers = ((_INTEGER, "integer"), (_NUMBER, "number")) if csv else ()
    for pattern, logical in (*numbers, (_DAY, "date"), (_INSTANT, "timestamp")):
        if texts and all(pattern.fullmatch(text) for text in texts):
            return logical if logical in {"integer", "number"} or _instants(texts) else "string"
    return "string"


def _instants(texts: Iterable[str]) -> bool:
    try:
        return all(to_us(text) is not None for text in texts)
    except ValueError:
        return False


def infer(table: pa.Table, *, source: str, owner: str = "") -> dict[str, Any]:
    """An ODCS document about rows like these; it loads, and the rows keep it.

    >>> found = infer(pa.table({"id": ["a", "b"]}), source="orders")
    >>> found["schema"][0]["properties"][0]["quality"][0]["id"]
    'id_present'
    """
    names = [name for name in table.column_names if name != ARRIVAL]
    if not names:
        raise UnreadableData(f"source {source!r}: found no columns; a contract names the columns it promises")
    quality: list[dict[str, Any]] = [{**_observed("some_rows"), "metric": "rowCount", "mustBeGreaterThan": 0}]
    return {
        "apiVersion": "v3.1.0",
        "kind": "DataContract",
        "id": source,
        "name": source,
        "version": "0.1.0",
        "status": "draft",
        "schema": [
            {
                "name": source,
                "logicalType": "object",
                "customProperties": [{"property": "feastSource", "value": source}],
                "properties": [_property(name, table.column(name)) for name in names],
                "quality": quality,
            }
        ],
        **({"team": {"name": owner}} if owner else {}),
    }


def _observed(rule_id: str) -> dict[str, Any]:
    return {"id": rule_id, "customProperties": [{"property": "mode", "value": "observe"}]}


def _property(name: str, column: pa.ChunkedArray) -> dict[str, Any]:
    logical = _shown(column) if kind(column.type) != "string" else "string"
    found: dict[str, Any] = {"name": name, "logicalType": logical}
    if _PERSONAL.search(name):
        found["classification"] = "pii"
    elif examples := _examples(column):
        found["examples"] = examples
    quality: list[dict[str, Any]] = []
    missing = column.null_count
    if kind(column.type) == "number":
        missing += pc.sum(pc.is_nan(column)).as_py() or 0
    if len(column) and not missing:
        quality.append({**_observed(f"{name}_present"), "metric": "nullValues", "mustBe": 0})
    rule = _enumeration(name, column) if logical == "string" else _bounds(name, column, logical)
    # Personal values do not go into a file that is read by everyone.
    if rule is not None and "classification" not in found:
        quality.append(rule)
    keyed = len(column) > 1 and not missing and kind(column.type) in {"string", "integer"}
    if keyed and pc.count_distinct(column).as_py() == len(column):
        quality.append({**_observed(f"{name}_unique"), "metric": "duplicateValues", "mustBe": 0})
    if quality:
        found["quality"] = quality
    return found


def _examples(column: pa.ChunkedArray) -> list[Any]:
    """The first few values, of texts and numbers; long texts and what is no number are none."""
    if kind(column.type) not in {"string", "integer", "number"} or pa.types.is_decimal(column.type):
        return []
    values = dict.fromkeys(value for value in column.slice(0, _LOOKED_AT).to_pylist() if value is not None)
    shown = [one for one in values if (len(one) <= _SHORT if isinstance(one, str) else math.isfinite(one))]
    return shown[:_EXAMPLES]


def _enumeration(name: str, column: pa.ChunkedArray) -> dict[str, Any] | None:
    if kind(column.type) != "string":
        return None
    values = sorted(value for value in pc.unique(column).to_pylist() if value is not None)
    if not values or len(values) > ENUMERATION or len(column) < _REPEATS * len(values):
        return None
    return {
        **_observed(f"{name}_known"),
        "metric": "invalidValues",
        "arguments": {"validValues": values},
        "mustBe": 0,
    }


def _bounds(name: str, column: pa.ChunkedArray, logical: str) -> dict[str, Any] | None:
    """Bounds of numbers and days as seen; of instants none: the next file has later ones."""
    if logical not in {"integer", "number"} or kind(column.type) == "other":
        return None
    finite = column.filter(pc.is_finite(column)) if logical == "number" else column
    extent = pc.min_max(finite).as_py()
    if extent["min"] is None or len(finite) != len(column.drop_null()):
        return None
    body = {"type": "expect_column_values_to_be_between"}
    bounds = {"min_value": extent["min"], "max_value": extent["max"]}
    custom = {"type": "custom", "engine": "great-expectations", "implementation": {**body, "kwargs": bounds}}
    return {**_observed(f"{name}_range"), **custom}


def write(document: dict[str, Any], *, now_us: int) -> str:
    """The document as YAML, with the day of its inference."""
    day = (dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=now_us)).date()
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
    return (
        f"# Inferred on {day}: every rule observes. Decide which are promises; add owner, support, description.\n{text}"
    )
