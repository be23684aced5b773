"""Which rows does a reference or a current side name? A file, a folder of Parquet files, a training set.

A training set is a folder with a manifest.json; its part `train` is what the model saw, and the manifest's row counts
must be those of the files, so that a torn or replaced set is no reference.
"""

import importlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from validation.drift.compare import DriftError
from validation.lines import ForeignData, text_of
from validation.profile.concatenate import concatenate

MANIFEST: Final = "manifest.json"
TRAIN: Final = "train"


class _Part(msgspec.Struct):
    name: str
    file: str
    rows: int


class _File(msgspec.Struct):
    path: str


class _Manifest(msgspec.Struct):
    name: str
    timestamp_column: str
    parts: tuple[_Part, ...]
    entity_rows: _File | None = None


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """What a name stands for."""

    table: Any
    """A pyarrow Table."""
    name: str
    timestamp_column: str | None = None
    """The instant of each row, where the manifest tells it."""
    given: tuple[str, ...] = ()
    """Columns of a training set that its entity rows had: keys and labels, no features."""
    left_out: dict[str, str] = {}
    """Columns that are not in `table`, as their files' types have no exact common one: name -> the reason."""


def rows_of(path: Path) -> Rows:
    """The rows that a path names; raises DriftError saying what is wrong with it."""
    path = Path(path)
    if path.is_dir():
        if (path / MANIFEST).exists():
            return _training_set(path)
        files = sorted(path.rglob("*.parquet"))
        if not files:
            raise DriftError(f"{path}: neither a training set ({MANIFEST}) nor Parquet files in this folder")
        tables = [_read(file) for file in files]
        rows = concatenate(tables)
        return Rows(table=rows.table, name=str(path), left_out=rows.left_out)
    if not path.exists():
        raise DriftError(f"{path}: no such file or folder")
    return Rows(table=_read(path), name=str(path))


def _training_set(folder: Path) -> Rows:
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=_Manifest)
    except msgspec.MsgspecError as error:
        raise DriftError(f"{folder / MANIFEST}: no manifest of a training set: {error}") from error
    chosen = [part for part in manifest.parts if part.name == TRAIN] or list(manifest.parts)
    tables = []
    for part in chosen:
        table = _read(folder / part.file)
        if table.num_rows != part.rows:
            raise DriftError(
                f"{folder / part.file}: found {table.num_rows} rows, the manifest pins {part.rows}: build the set again"
            )
        tables.append(table)
    if not tables:
        raise DriftError(f"{folder / MANIFEST}: the manifest names no parts")
    names = ", ".join(part.name for part in chosen)
    rows = concatenate(tables)
    return Rows(
        table=rows.table,
        left_out=rows.left_out,
        name=f"{folder.name} ({names})",
        timestamp_column=manifest.timestamp_column,
        given=_given(folder, manifest),
    )


def _given(folder: Path, manifest: _Manifest) -> tuple[str, ...]:
    path = folder / manifest.entity_rows.path if manifest.entity_rows is not None else None
    if path is None or not path.exists():
        return ()
    try:
        return tuple(pq.read_schema(path).names)
    except (OSError, pa.ArrowException) as error:
        raise DriftError(f"{path}: the entity rows cannot be read: {error}; build the set again") from error


def _read(path: Path) -> pa.Table:
    readers = {".parquet": _parquet, ".csv": _csv, ".jsonl": _json_lines, ".ndjson": _json_lines}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DriftError(f"{path}: found ending {path.suffix!r}; allowed: {', '.join(readers)}")
    try:
        table: pa.Table = reader(path)
    except ForeignData as error:
        raise DriftError(str(error)) from error
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DriftError(f"{path}: the file cannot be read: {' '.join(str(error).split())}") from error
    return table


def _csv(path: Path) -> pa.Table:
    """The rows in the types that their values show; words stay words, and zeros in front are part of a text.

    Arrow takes a column of `NA` for one without values, and 007 for 7.
    """
    data = text_of(path)
    table = pacsv.read_csv(pa.BufferReader(data))
    doubtful = [field.name for field in table.schema if pa.types.is_null(field.type) or pa.types.is_integer(field.type)]
    if not doubtful or len(set(table.column_names)) < table.num_columns:
        return table
    texts = pacsv.ConvertOptions(
        include_columns=doubtful,
        column_types=dict.fromkeys(doubtful, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    for name, text in zip(doubtful, pacsv.read_csv(pa.BufferReader(data), convert_options=texts), strict=True):
        index = table.schema.get_field_index(name)
        words = pa.types.is_null(table.schema.field(index).type) and text.null_count < len(text)
        if words or pc.any(pc.match_substring_regex(text, r"^[+-]?0\d")).as_py():
            table = table.set_column(index, name, text)
    return table


def _json_lines(path: Path) -> pa.Table:
    """Arrow's reader, which ends the process where a block of lines begins with `null`: only objects come to it."""
    held = text_of(path)
    for number, line in enumerate(io.BytesIO(held), 1):
        if line.strip() and not line.lstrip(b" \t").startswith(b"{"):
            raise DriftError(f"{path}: line {number} is no JSON object; a file of rows has one a line")
    return pajson.read_json(pa.BufferReader(held))


def _parquet(path: Path) -> pa.Table:
    return pq.read_table(path, partitioning=None)


def with_outputs(table: pa.Table, model: str, column: str = "model_output") -> pa.Table:
    """The table with a given model's outputs as a column: `module:function` takes a table and gives an array."""
    name, _, attribute = model.partition(":")
    try:
        predict = getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise DriftError(f"model {model!r}: cannot be imported ({error}); expected module:function") from error
    outputs = np.asarray(predict(table))
    if outputs.shape != (table.num_rows,):
        raise DriftError(f"model {model!r}: gave shape {outputs.shape}, expected one output for {table.num_rows} rows")
    return table.append_column(column, pa.array(outputs))


def blocks_of(table: pa.Table, time_column: str, block_us: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The block of time of each row."""
    instants = pc.cast(table.column(time_column), pa.timestamp("us", "UTC"), safe=False).cast(pa.int64())
    out: np.ndarray[tuple[int], np.dtype[np.int64]] = instants.to_numpy() // block_us
    return out


def same_hours(start_us: int, end_us: int, weeks: int) -> Iterator[tuple[int, int]]:
    """The window itself in each of so many past weeks: the same weekdays and hours, the nearest first.

    >>> list(same_hours(700_000_000_000, 700_000_000_001, 1))
    [(95200000000, 95200000001)]
    """
    week_us = 7 * 86_400_000_000
    for week in range(1, weeks + 1):
        yield start_us - week * week_us, end_us - week * week_us
