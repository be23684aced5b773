"""Rows of a text file, each with its line, apart from those that cannot be read as a row at all.

A line of JSON lines is a row where it is a JSON object, a record of CSV where it is UTF-8 and has as many fields as the
header. Blank lines are no rows.
"""

import codecs
import csv
import json
import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec

from validation.errors import PlatformError

_LONGEST: Final = 1_000
"""Lines that one record of CSV may have, in quotes: one that goes on for longer has lost its closing quote."""
_FOREIGN: Final = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order marks of encodings that are not read; the longer ones first."""
_ENDS: Final = b"\r\n"


class UnreadableData(PlatformError):
    """A producer's file that is missing or torn, or a row that holds a value of another type than promised."""


class ForeignData(UnreadableData):
    """A file of which no row can be read: text of another encoding, or CSV without a header."""

    exit_code = 2


class Unread(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a file that cannot be read."""

    row: int
    """Its number in the file, from 0."""
    line: int
    """The line on which it begins, from 1."""
    raw: bytes
    """The row as it came, without the end of its line."""
    why: str
    """What was found instead of a row; no value of it."""


def text_of(path: Path) -> bytes:
    """The bytes of a UTF-8 file without its byte order mark; raises ForeignData for one of another encoding."""
    data = path.read_bytes()
    named = next((name for mark, name in _FOREIGN.items() if data.startswith(mark)), "")
    first = data[: data.find(b"\n") + 1 or None]
    if not named and len(first) > 1 and first.count(0) * 4 >= len(first):
        named = "UTF-16 or UTF-32"  # without a mark: every other byte of plain text is zero
    if named:
        raise ForeignData(f"{path}: the file is text in {named}; expected UTF-8 (iconv -t UTF-8 converts it)")
    return data.removeprefix(codecs.BOM_UTF8)


def json_objects(data: bytes) -> tuple[list[dict[str, Any]], list[Unread]]:
    """The objects of JSON lines, in order, and the lines that are none.

    >>> rows, unread = json_objects(b'{"a": 1}\\n\\n[]\\n{"a"\\n')
    >>> rows, [(one.row, one.line, one.raw) for one in unread]
    ([{'a': 1}], [(1, 3, b'[]'), (2, 4, b'{"a"')])
    """
    rows: list[dict[str, Any]] = []
    unread: list[Unread] = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = _json(line)
            why = "" if isinstance(value, dict) else f"found {_NAMES[type(value)]}; expected an object"
        except (ValueError, RecursionError) as error:
            why = f"no JSON: {error}"
        if why:
            unread.append(Unread(row=len(rows) + len(unread), line=number, raw=line, why=why))
        else:
            rows.append(value)
    return rows, unread


_NAMES: Final[Mapping[type, str]] = {
    list: "a list",
    str: "a text",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def _json(line: bytes) -> Any:
    """A line's value; numbers that no double holds are infinite, and Python's NaN is read: each is one bad value."""
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        try:
            return json.loads(line.decode())
        except (ValueError, RecursionError):
            why = "the line is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            raise ValueError(why) from error


def csv_records(data: bytes) -> tuple[bytes, list[Unread]]:
    """The header and the records of CSV that have its number of fields, as CSV, and the records that have not.

    Raises ValueError where the header itself cannot be read. A quote that is never closed costs its own line alone.

    >>> good, unread = csv_records(b'a,b\\n1,2\\n3\\n4,"x\\n5,6\\n')
    >>> good, [(one.row, one.line, one.raw) for one in unread]
    (b'a,b\\n1,2\\n5,6\\n', [(1, 3, b'3'), (2, 4, b'4,"x')])
    """
    records = _records(data)
    header = next(records, None)
    if header is None:
        raise ValueError("the file is empty; expected a header")
    if header.why:
        raise ValueError(f"the header (line {header.line}) cannot be read: {header.why}")
    kept, unread = [header.raw], list[Unread]()
    for record in records:
        if not record.why:
            kept.append(record.raw)
            continue
        row = len(kept) - 1 + len(unread)
        unread.append(Unread(row=row, line=record.line, raw=record.raw.rstrip(_ENDS), why=record.why))
    return b"".join(kept), unread


def lines_of_rows(path: Path) -> list[int]:
    """The line (from 1) on which each row of a text file begins, by the row's number; empty for Parquet."""
    ending = path.suffix.lower()
    if ending in {".jsonl", ".ndjson"}:
        return [number for number, line in enumerate(text_of(path).splitlines(), 1) if line.strip()]
    return [record.line for record in _records(text_of(path))][1:] if ending == ".csv" else []


def _records(data: bytes) -> Iterator["_Record"]:
    """The records of CSV, the header first, but for blank lines."""
    csv.field_size_limit(sys.maxsize)
    lines = data.splitlines(keepends=True)
    width, at = 0, 0
    while at < len(lines):
        record = _Record(lines, at)
        at += record.lines
        if not record.fields:
            continue
        if not record.why and width and len(record.fields) != width:
            record.why = f"found {len(record.fields)} fields; expected {width}"
        if record.why and record.lines > 1:
            # What follows in the same quotes may be rows: only the line itself is given up.
            at = record.line
            record.raw = lines[at - 1]
        width = width or len(record.fields)
        yield record


class _Record:
    """The record of CSV that begins on a line."""

    def __init__(self, lines: list[bytes], at: int) -> None:
        self.line, self.why = at + 1, ""
        try:
            self.fields, self.lines = _parsed(lines, at, strict=True)
        except csv.Error:
            # Text behind a closing quote is read as Arrow reads it, within its line.
            self.fields, self.lines = _parsed(lines, at, strict=False)
            if self.lines > 1:
                self.why = "a quote is opened and never closed"
        self.raw = b"".join(lines[at : at + self.lines])
        if not self.why:
            try:
                self.raw.decode()
            except UnicodeDecodeError:
                self.why = "the line is not UTF-8"


def _parsed(lines: list[bytes], at: int, *, strict: bool) -> tuple[list[str], int]:
    """The fields of the record that begins at a line, and how many lines it has; one more where it has no end."""
    used = 0

    def texts() -> Iterator[str]:
        nonlocal used
        for line in islice(lines, at, at + _LONGEST):
            used += 1
            # Latin-1 keeps every byte as one character: whether they are UTF-8 is seen later.
            yield line.decode("latin-1")
        used += 1

    fields = next(csv.reader(texts(), strict=strict), [])
    return fields, used
