"""What does a table of Delta Lake or Iceberg hold, at its newest snapshot or at a named one?

The libraries `deltalake` and `pyiceberg` read tables' logs; both are optional. A snapshot never changes: a training set
pins it, and is rebuilt from it for as long as the table keeps it.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from featurestore.errors import SourceError, UsageError
from featurestore.offline.connection import Limits, first_line
from featurestore.offline.mapped import held_or_mapped
from featurestore.offline.sources import Scan, local_path
from featurestore.plan import LakeTable


class Snapshot(msgspec.Struct, frozen=True):
    """One version of one table: what is written again under the same name is another table."""

    table: str
    snapshot: str


def scan_lake(
    table: LakeTable,
    path: str,
    *,
    repo: Path,
    name: str,
    columns: Sequence[str] = (),
    snapshot: str | None = None,
    limits: Limits | None = None,
) -> Scan:
    """The table at its newest snapshot, or at that one; `columns` are what is to be read, none: its schema alone.

    A Delta table lies at `path`; relative ones start at `repo`. Iceberg's rows are read now, into memory or a file:
    its library gives no table that could be read twice. Raises UsageError where the library is missing, SourceError
    where the table, the snapshot or a column is.
    """
    if table.format == "delta":
        opened = _delta(table, path, repo, name, snapshot)
        try:
            dataset = opened.to_pyarrow_dataset()
        except _delta_errors() as error:
            raise SourceError(f"{name}: {path} cannot be read as a Delta table: {first_line(error)}") from error
        scan = Scan(name=name, schema=pa.schema(dataset.schema), sql="{source}", relation=dataset)
    else:
        scan = _scan_iceberg(table, name, columns, snapshot, limits or Limits())
    for column in columns:
        scan.column(column, role="column")
    return scan


def snapshot_of(table: LakeTable, path: str, *, repo: Path, name: str, snapshot: str | None = None) -> Snapshot:
    """The newest snapshot, or that one where the table still has it; raises as `scan_lake` does."""
    if table.format == "delta":
        opened = _delta(table, path, repo, name, snapshot)
        return Snapshot(str(opened.metadata().id), str(opened.version()))
    found, number = _iceberg(table, name, snapshot)
    return Snapshot(str(found.metadata.table_uuid), "" if number is None else str(number))


def _delta(table: LakeTable, path: str, repo: Path, name: str, snapshot: str | None) -> Any:
    try:
        from deltalake import DeltaTable  # optional, for Delta sources
    except ImportError as error:
        raise UsageError(f"{name} is a Delta table: install the package deltalake to read it") from error
    place = path if "://" in path and not path.startswith("file://") else str(local_path(path, repo))
    version = None if snapshot is None else int(snapshot)
    try:
        return DeltaTable(place, version=version, storage_options=dict(table.properties))
    except _delta_errors() as error:
        wanted = "" if version is None else f" at version {version}"
        raise SourceError(f"{name}: no Delta table at {place}{wanted}: {first_line(error)}") from error


def _delta_errors() -> tuple[type[BaseException], ...]:
    from deltalake.exceptions import DeltaError

    return DeltaError, OSError


def _scan_iceberg(table: LakeTable, name: str, columns: Sequence[str], snapshot: str | None, limits: Limits) -> Scan:
    found, number = _iceberg(table, name, snapshot)
    known = found.schema().as_arrow().remove_metadata()
    bare = Scan(name=name, schema=known, sql="{source}", relation=known.empty_table())
    if not columns:
        return bare
    for column in columns:
        bare.column(column, role="column")
    schema = pa.schema([pa.field(column, known.field(column).type) for column in dict.fromkeys(columns)])
    if number is None:
        rows = schema.empty_table()
    else:
        reader = found.scan(selected_fields=tuple(schema.names), snapshot_id=number).to_arrow_batch_reader()
        batches = (
            part
            for batch in reader
            for part in pa.Table.from_batches([batch]).select(schema.names).cast(schema).to_batches()
        )
        rows = held_or_mapped(batches, schema, limits)
    return Scan(name=name, schema=schema, sql="{source}", relation=rows, rows=len(rows), empty=not len(rows))


def _iceberg(table: LakeTable, name: str, snapshot: str | None) -> tuple[Any, int | None]:
    """The table and the number of its snapshot; None: it has none yet."""
    try:
        from pyiceberg.catalog import load_catalog  # optional, for Iceberg sources
        from pyiceberg.exceptions import NoSuchTableError, RESTError
    except ImportError as error:
        raise UsageError(f"{name} is an Iceberg table: install the package pyiceberg to read it") from error
    token = os.environ.get(table.token_env) if table.token_env else None
    try:
        catalog = load_catalog(table.catalog, **table.properties, **({"token": token} if token else {}))
        found = catalog.load_table(table.name)
    except (NoSuchTableError, RESTError, ValueError, OSError) as error:
        raise SourceError(f"{name}: no Iceberg table {table.name!r} in its catalog: {first_line(error)}") from error
    if snapshot is None or snapshot == "":
        newest = found.current_snapshot()
        return found, None if newest is None or snapshot == "" else newest.snapshot_id
    if found.snapshot_by_id(int(snapshot)) is None:
        raise SourceError(f"{name}: Iceberg table {table.name!r} no longer has its snapshot {snapshot}")
    return found, int(snapshot)
