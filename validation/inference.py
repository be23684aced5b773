"""What would a contract say of data like this?

A first contract from one file: types, what never was missing, short enumerations, bounds, keys. All rules observe,
since one file proves nothing: a person decides what is a promise.
"""

import datetime as dt
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import yaml

from validation.check import ARRIVAL, UNTYPED
from validation.compiled.sql import kind
from validation.contract import Column, Contract
from validation.files import read_data
from validation.instant import to_us
from validation.lines import UnreadableData
from validation.mixed import is_mixed, values_of

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
_READ: Final = {name: name for name in ("string", "integer", "number", "boolean", "date", "timestamp")}
_PERSONAL: Final = re.compile(
    r"(^|_)(e?mail|phone|mobile|(first|last|full|sur)_?name|address|street|birth(day|date)?|dob|ssn|passport|iban|ip)(_|$)",
    re.IGNORECASE,
)
_IDENTIFIER: Final = re.compile(
    r"(^|_)(ids?|uu?ids?|guids?|keys?|tokens?|secrets?|passwords?|hash|digest|session|cookie|serial|account|acct|card|"
    r"licen[cs]e|plate|vin|imei|imsi|mac|user|username|login|customer|patient|member|device|tax|vat|national|insurance|"
    r"(tail|order|invoice|contract|policy|phone|tracking)_?(num(ber)?|no|nr))(_|$)|[a-z]id$|number$",
    re.IGNORECASE,
)
"""Names of columns whose values point at one person or thing."""
_IDENTIFYING: Final = re.compile(
    r"[0-9A-Fa-f]{8}(-?[0-9A-Fa-f]{4}){3}-?[0-9A-Fa-f]{12}|[^@\s]+@[^@\s]+\.[^@\s]+|[0-9A-Fa-f]{24,}|"
    r"[A-Z]{2}\d{2}[A-Z0-9]{10,30}|\+?\d[\d ()/.-]{7,}\d|\d{1,3}(\.\d{1,3}){3}|[A-Za-z0-9_-]{20,}"
)
"""Texts that are identifiers whatever the column is called: UUIDs, addresses, digests, accounts, numbers, tokens."""
_FEW: Final = 20
_JSON: Final = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
}
_INSTANT: Final = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?")
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_INTEGER: Final = re.compile(r"-?(0|[1-9]\d*)")
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
    shown = {name: _shown(table.column(name), csv=csv) for name in table.column_names}
    # Lists, objects and mixed values stay as they were read: there is nothing to turn them into.
    columns = [Column(name=name, logical_type=_READ.get(logical, UNTYPED)) for name, logical in shown.items()]
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
    if is_mixed(column.type):
        kinds = set(_kinds(column))
        return kinds.pop() if len(kinds) == 1 else "number" if kinds == {"integer", "number"} else UNTYPED
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
    if csv and texts and all(map(_INTEGER.fullmatch, texts)):
        # Beyond 64 bits digits are exact as text alone.
        return "integer" if all(_in_64_bits(text) for text in texts) else "string"
    numbers = ((_NUMBER, "number"),) if csv else ()
    for pattern, logical in (*numbers, (_DAY, "date"), (_INSTANT, "timestamp")):
        if texts and all(pattern.fullmatch(text) for text in texts):
            return logical if logical == "number" or _instants(texts) else "string"
    return "string"


def _in_64_bits(text: str) -> bool:
    return len(text) < 21 and -(2**63) <= int(text) < 2**63


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
        "customProperties": [{"property": "schemaMode", "value": "observe"}],
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
    found: dict[str, Any] = {"name": name, **({"logicalType": logical} if logical else {})}
    if told := mixture(column):
        found["description"] = told
    identifying = _PERSONAL.search(words_of(name)) is not None or _identifies(name, column)
    if _PERSONAL.search(words_of(name)):
        found["classification"] = "pii"
    elif not identifying and not _repeats_seldom(column) and (examples := _examples(column)):
        found["examples"] = examples
    quality: list[dict[str, Any]] = []
    missing = column.null_count
    if kind(column.type) == "number":
        missing += pc.sum(pc.is_nan(column)).as_py() or 0
    if len(column) and not missing:
        quality.append({**_observed(f"{name}_present"), "metric": "nullValues", "mustBe": 0})
    rule = _enumeration(name, column) if logical == "string" else _bounds(name, column, logical)
    # Personal values and identifiers do not go into a file that is read by everyone.
    if rule is not None and not identifying:
        quality.append(rule)
    keyed = len(column) > 1 and not missing and kind(column.type) in {"string", "integer"}
    if keyed and pc.count_distinct(column).as_py() == len(column):
        quality.append({**_observed(f"{name}_unique"), "metric": "duplicateValues", "mustBe": 0})
    if quality:
        found["quality"] = quality
    return found


def words_of(name: str) -> str:
    """A name in lower case with its words apart.

    >>> words_of("customerID"), words_of("HTTPHost"), words_of("e-mail")
    ('customer_id', 'http_host', 'e_mail')
    """
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9]+", "_", name)
    return apart.lower()


def _identifies(name: str, column: pa.ChunkedArray) -> bool:
    """Whether a column's values point at one person, thing or event each, by its name or by the form of its texts."""
    if _IDENTIFIER.search(words_of(name)):
        return True
    texts = set(column.to_pylist()) - {None} if kind(column.type) == "string" else set()
    return any(_IDENTIFYING.fullmatch(text) for text in texts)


def _repeats_seldom(column: pa.ChunkedArray) -> bool:
    """Whether texts or integers are a key, or nearly: each value may then be one person's or thing's alone."""
    if kind(column.type) not in {"string", "integer"}:
        return False
    values = [value for value in column.to_pylist() if value is not None]
    distinct = len(set(values))
    return distinct > 1 and (distinct == len(values) or distinct > max(_FEW, len(values) // _REPEATS))


def mixture(column: pa.ChunkedArray) -> str:
    """What a column of several types holds, in words; empty where it is of one type.

    >>> from validation.mixed import mixed
    >>> mixture(pa.chunked_array([mixed([1, 2, "a", None])]))
    'mixed types: 2 integer, 1 string; decide for one of them'
    """
    if not is_mixed(column.type) or _shown(column):
        return ""
    counts = ", ".join(f"{count} {name}" for name, count in _kinds(column).items())
    return f"mixed types: {counts}; decide for one of them"


def _kinds(column: pa.ChunkedArray) -> dict[str, int]:
    """Logical type of JSON values -> how many there are, the most frequent first."""
    found = Counter(_JSON[value.__class__] for value in values_of(column) if value is not None)
    return dict(found.most_common())


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
