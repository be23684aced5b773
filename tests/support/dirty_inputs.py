"""Generate dirty inputs from a seed: cells, files, contracts, messages and HTTP requests that strangers send.

Every generator takes a `random.Random` and draws from nothing else, so that a seed is a reproduction.
"""

import csv
import io
import json
import random
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

NAMES = ("user_id", "ts", "amount", "note", "flag", "tags", "größe", "a b", 'q"uote', "select", "_arrival", "index", "")
TEXTS = (
    "",
    " ",
    "NA",
    "null",
    "None",
    "nan",
    "true",
    "True",
    "0",
    "-0.0",
    "007",
    "1e5",
    "1_000",
    "½",
    "a,b",
    'say "hi"',
    "line\nbreak",
    "tab\there",
    "\u202e reversed",
    "\ufeffbom",
    "x" * 3000,
    "[red]markup[/]",
    "{{7*7}}",
    "'; DROP TABLE x;--",
    "2024-03-10",
    "2024-03-10T12:00:00",
    "2024-03-10 12:00:00+02:00",
    "2024-13-40",
    "10/03/2024",
    "1710050400000",
)
NUMBERS = (0, -0.0, 1, -1, 2**31, 2**53 + 1, 2**60 + 1, 2**63 - 1, -(2**63), 2**64 - 1, 10**30, 0.1, 1e308, 5e-324)
ODD = (float("nan"), float("inf"), float("-inf"))
INSTANTS = (
    datetime(2024, 3, 10, 12, tzinfo=UTC),
    datetime(2024, 10, 27, 0, 30, tzinfo=UTC),
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(2024, 3, 10, 12, tzinfo=timezone(timedelta(hours=14))),
)
ARROW_TYPES = (
    pa.int8(),
    pa.int64(),
    pa.uint64(),
    pa.float32(),
    pa.float64(),
    pa.string(),
    pa.large_string(),
    pa.binary(),
    pa.bool_(),
    pa.date32(),
    pa.date64(),
    pa.time64("us"),
    pa.timestamp("s"),
    pa.timestamp("ns"),
    pa.timestamp("us", "Europe/Berlin"),
    pa.timestamp("ns", "America/New_York"),
    pa.duration("us"),
    pa.decimal128(38, 10),
    pa.null(),
    pa.list_(pa.int64()),
    pa.struct([("a", pa.int64())]),
    pa.map_(pa.string(), pa.int64()),
    pa.dictionary(pa.int8(), pa.string()),
)
LOGICAL_TYPES = ("string", "string", "integer", "number", "boolean", "timestamp", "date", "time", "object", "array")
OPTIONS: dict[str, object] = {
    "pattern": "^[a-z]+$",
    "minimum": 0,
    "maximum": 10,
    "maxLength": 5,
    "minLength": 1,
    "format": "email",
    "multipleOf": 2,
    "minItems": 1,
    "uniqueItems": True,
    "exclusiveMinimum": 0,
}


def cell(rng: random.Random, depth: int = 0) -> object:
    """A value that JSON can hold, often not the one that was expected."""
    kind = rng.randrange(10)
    if kind < 3:
        return rng.choice(TEXTS)
    if kind < 6:
        return rng.choice(NUMBERS)
    if kind == 6:
        return rng.choice((True, False, None, None))
    if kind == 7 and depth < 3:
        return [cell(rng, depth + 1) for _ in range(rng.randrange(3))]
    if kind == 8 and depth < 3:
        return {rng.choice(NAMES): cell(rng, depth + 1) for _ in range(rng.randrange(3))}
    return rng.choice(INSTANTS).isoformat()


def rows(rng: random.Random) -> list[dict[str, object]]:
    """Rows of a few columns; most values of a column are of one kind, some are not."""
    names = ["user_id", "ts", *rng.sample(NAMES[2:], rng.randrange(1, 4))]
    clean = {"user_id": lambda: rng.randrange(5), "ts": lambda: rng.choice(INSTANTS[:2]).isoformat()}
    plain = {name: cell(rng) for name in names}
    found: list[dict[str, object]] = []
    for _ in range(rng.choice((0, 1, 2, 7, 40))):
        row = {name: clean[name]() if name in clean else plain[name] for name in names}
        if rng.random() < 0.3:
            row[rng.choice(names)] = cell(rng)
        if rng.random() < 0.1:
            del row[rng.choice(names)]
        found.append(row)
    return found


def write_file(rng: random.Random, folder: Path) -> Path:
    """A file of rows in one of the three formats: sometimes torn, sometimes with a byte order mark."""
    kind = rng.choice(("csv", "jsonl", "parquet"))
    path = folder / f"data.{kind}"
    if kind == "parquet":
        _write_parquet(rng, path)
        data = path.read_bytes()
    else:
        data = _as_text(rng, kind, rows(rng))
    damage = rng.random()
    if damage < 0.06:
        data = data[: rng.randrange(len(data) + 1)]
    elif damage < 0.12 and data:
        at = rng.randrange(len(data))
        data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    path.write_bytes(data)
    return path


def _as_text(rng: random.Random, kind: str, held: list[dict[str, object]]) -> bytes:
    if kind == "csv":
        out = io.StringIO()
        names = list(dict.fromkeys(name for row in held for name in row)) or ["user_id"]
        writer = csv.writer(out, lineterminator=rng.choice(("\n", "\r\n")))
        writer.writerow(names)
        for row in held:
            values = ["" if row.get(name) is None else str(row.get(name)) for name in names]
            writer.writerow(values if rng.random() > 0.03 else values[:-1])
        text = out.getvalue()
    else:
        lines = [json.dumps(row) for row in held]
        if lines and rng.random() < 0.1:
            lines.insert(
                rng.randrange(len(lines)), rng.choice(("", "null", "[]", "1", "{", '{"a": NaN}', '{"a":1,"a":2}'))
            )
        text = "\n".join(lines) + ("\n" if rng.random() < 0.8 else "")
    encoding = rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
    return text.encode(encoding, errors="replace")


def _write_parquet(rng: random.Random, path: Path) -> None:
    count = rng.choice((0, 1, 5, 40))
    columns: dict[str, pa.Array] = {}
    for name in ["user_id", "ts", *rng.sample(NAMES[2:], rng.randrange(1, 5))]:
        columns[name] = column(rng, rng.choice(ARROW_TYPES), count)
    pq.write_table(pa.table(columns), path, version="2.6", store_schema=rng.random() < 0.9)


def column(rng: random.Random, dtype: pa.DataType, count: int) -> pa.Array:
    """A column of that type, with nulls and with the type's extremes."""
    return pa.array([None if rng.random() < 0.15 else _value(rng, dtype) for _ in range(count)], dtype)


def _value(rng: random.Random, dtype: pa.DataType) -> object:  # noqa: C901 (one line a type)
    if pa.types.is_boolean(dtype):
        return rng.random() < 0.5
    if pa.types.is_integer(dtype):
        bits = dtype.bit_width - (0 if pa.types.is_unsigned_integer(dtype) else 1)
        return rng.choice((0, 1, 5, 2**bits - 1))
    if pa.types.is_floating(dtype):
        return rng.choice((0.0, -0.0, 1.5, 3.0, 1e30, *ODD))
    if pa.types.is_decimal(dtype):
        return rng.choice((Decimal("0.1"), Decimal(-7), Decimal("12345678901234567890.0123456789")))
    if pa.types.is_date(dtype):
        return rng.choice((date(2024, 3, 10), date(1, 1, 1), date(9999, 12, 31)))
    if pa.types.is_timestamp(dtype):
        when = rng.choice(INSTANTS[:2] + INSTANTS[4:5])
        return when if dtype.tz else when.replace(tzinfo=None)
    if pa.types.is_time(dtype):
        return rng.randrange(86_400_000_000)
    if pa.types.is_duration(dtype):
        return rng.choice((0, -1, 10**15))
    if pa.types.is_binary(dtype):
        return rng.choice((b"", b"\x00\xff", b"text"))
    if pa.types.is_list(dtype):
        return [rng.choice((1, None, 2**53 + 1)) for _ in range(rng.randrange(3))]
    if pa.types.is_struct(dtype):
        return {"a": rng.choice((1, None))}
    if pa.types.is_map(dtype):
        return [("k", 1)]
    return None if pa.types.is_null(dtype) else rng.choice(TEXTS)


def contract(rng: random.Random) -> dict[str, object]:
    """A contract as a document: sound in the middle, mutated somewhere."""
    properties: list[object] = []
    for name in ["user_id", "ts", *rng.sample(NAMES[2:], 2)]:
        held: dict[str, object] = {"name": name, "logicalType": rng.choice(LOGICAL_TYPES)}
        if rng.random() < 0.5:
            held["required"] = rng.random() < 0.5
        if rng.random() < 0.4:
            option = rng.choice(list(OPTIONS))
            held["logicalTypeOptions"] = {option: OPTIONS[option] if rng.random() < 0.9 else cell(rng)}
        if rng.random() < 0.2:
            held[rng.choice(("primaryKey", "unique"))] = True
        if rng.random() < 0.03:
            held[rng.choice(("requird", "physicalType", "classification"))] = cell(rng)
        if rng.random() < 0.3:
            held["quality"] = [quality(rng, name)]
        properties.append(held)
    found: dict[str, object] = {
        "apiVersion": "v3.1.0" if rng.random() < 0.9 else rng.choice(("v3.0.2", "v2.2.0", 3)),
        "kind": "DataContract",
        "id": "data",
        "version": "1.0.0",
        "status": "active",
        "schema": [{"name": "data", "properties": properties, "quality": [quality(rng, "user_id", whole=True)]}],
    }
    return mutate(rng, found) if rng.random() < 0.4 else found


def quality(rng: random.Random, name: str, *, whole: bool = False) -> dict[str, object]:
    """A quality rule of one of the standard's types, or one that it does not have."""
    kind = rng.choice(("library", "custom")) if rng.random() < 0.9 else rng.choice(("sql", "text", "unknown"))
    if kind == "library" and whole:
        return {
            "type": kind,
            "metric": "rowCount",
            "mustBeGreaterThan": rng.choice((0, 5)) if rng.random() < 0.9 else cell(rng),
        }
    if kind == "library":
        metric = rng.choice(("nullValues", "missingValues", "duplicateValues"))
        return {"type": kind, "metric": metric, "mustBe": 0 if rng.random() < 0.9 else cell(rng)}
    if kind == "custom":
        expectation = rng.choice(
            (
                "expect_column_values_to_be_between",
                "expect_column_values_to_not_be_null",
                "expect_column_values_to_be_unique",
                "expect_column_values_to_match_regex",
                "expect_column_mean_to_be_between",
            )
        )
        arguments: dict[str, object] = {"column": name}
        if "between" in expectation:
            arguments[rng.choice(("min_value", "max_value"))] = (
                rng.choice((0, 5.5)) if rng.random() < 0.9 else cell(rng)
            )
        if "regex" in expectation:
            arguments["regex"] = rng.choice(("^a", "(a+)+$", "[0-9]{3}", "(?=x)", "("))
        if rng.random() < 0.2:
            arguments["mostly"] = rng.choice((0.5, 1, 0, 2, "0.9"))
        return {
            "type": kind,
            "engine": "great-expectations",
            "implementation": {"type": expectation, "kwargs": arguments},
        }
    return {"type": kind, "query": rng.choice(TEXTS)}


def mutate(rng: random.Random, document: dict[str, object]) -> dict[str, object]:
    """The document with one value, somewhere in it, replaced or left out."""
    held = json.loads(json.dumps(document))
    place = held
    for _ in range(rng.randrange(1, 6)):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = rng.choice(keys)
        if isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.7:
            place = place[key]
            continue
        if isinstance(place, dict) and rng.random() < 0.3:
            del place[key]
        else:
            place[key] = cell(rng)
        break
    return held


def message(rng: random.Random) -> bytes:
    """A message that should have been {"user_id", "ts", "amount"} in JSON."""
    sound = {"user_id": rng.randrange(5), "ts": INSTANTS[0].isoformat(), "amount": rng.random()}
    if rng.random() < 0.7:
        sound[rng.choice(list(sound))] = cell(rng)
    data = json.dumps(sound).encode()
    return damaged(rng, data)


def damaged(rng: random.Random, data: bytes) -> bytes:
    """The bytes, sometimes cut, with a flipped bit, or replaced."""
    kind = rng.random()
    if kind < 0.1:
        return data[: rng.randrange(len(data) + 1)]
    if kind < 0.2 and data:
        at = rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind < 0.25:
        return rng.choice((b"", b"null", b"[]", b"1", b"\xff\xfe", b"[" * 5000, b'{"a":' * 2000, rng.randbytes(40)))
    return data


def request(rng: random.Random) -> tuple[str, str, dict[str, str], bytes]:
    """Method, target, headers and body of a request to the feature API."""
    method = rng.choice(("GET", "POST", "POST", "POST", "PUT", "DELETE", "OPTIONS"))
    paths = (
        "/get-online-features",
        "/push",
        "/write-to-online-store",
        "/materialize",
        "/materialize-incremental",
        "/health",
        "/ready",
        "/metrics",
        "/violations",
        "/violations/x",
        "/openapi.json",
        "/nothing",
    )
    target = rng.choice(paths)
    if rng.random() < 0.4:
        name = rng.choice(("source", "since", "until", "limit", "cursor", "producer", "format"))
        far = "0001-01-01T00:00:00%2B14:00"
        target += f"?{name}={rng.choice(('', '%00', '%ff', '-1', '1e400', far, 'x' * 2000, '..%2f'))}"
    body = {
        rng.choice(("features", "feature_service", "push_source_name", "feature_view_name", "feature_views")): cell(
            rng
        ),
        rng.choice(("entities", "df", "start_ts", "end_ts", "full_feature_names")): rng.choice(
            ({"user_id": [1, 2]}, {"user_id": [cell(rng)]}, {"user_id": cell(rng)}, cell(rng))
        ),
    }
    data = damaged(rng, json.dumps(body).encode())
    headers = {"Content-Type": rng.choice(("application/json", "application/json", "text/plain", "")), "Accept": "*/*"}
    if rng.random() < 0.1:
        headers["Content-Encoding"] = rng.choice(("gzip", "deflate", "br", "zstd"))
    if rng.random() < 0.1:
        headers[rng.choice(("Authorization", "X-Request-Id", "X-Forwarded-For"))] = rng.choice(
            ("", "Bearer x", "y" * 4000)
        )
    return method, target, headers, data
