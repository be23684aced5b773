"""How do rows get into a folder of Parquet files, so that readers see all of a write or none of it?

A write is one new file (one per partition folder), finished and synced under a temporary name, then renamed. Nothing
that exists is rewritten. A write to several partition folders appears folder by folder.
"""

import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import UsageError
from featurestore.offline import event_log
from featurestore.offline.event_log import write_pieces, write_whole
from featurestore.offline.sources import parquet_files, partition_columns, scan_parquet

_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


def append_to_source(root: Path, rows: pa.Table, *, name: str) -> tuple[Path, ...]:
    """Append rows to a source: a folder of Parquet files, partitioned as it is; made where there is none.

    Raises UsageError where the source is a single file or an event log, or its columns are not those of the rows;
    SourceError where it is torn. Columns may come in any order and are cast to the source's types without loss.
    """
    if root.is_file():
        raise UsageError(
            f"{name}: {root} is a single file, which is never rewritten; make it a folder of that name "
            "with the file inside, and appended rows become files beside it"
        )
    if not root.is_dir() or not any(root.rglob("*.parquet")):
        return append_rows(root, rows, partition_by=())
    files = parquet_files(root, name=name)
    if any(event_log.parse_name(file) for file in files):
        raise UsageError(f"{name}: {root} is an event log; events reach it through their topic")
    scan = scan_parquet(root, repo=root, name=name)
    missing, extra = set(scan.schema.names) - set(rows.column_names), set(rows.column_names) - set(scan.schema.names)
    if missing or extra:
        raise UsageError(
            f"{name}: rows to append lack the columns {sorted(missing)} and have {sorted(extra)} too many; "
            f"{root} has {scan.schema.names}"
        )
    partitions = partition_columns(root, files)
    stored = pa.schema([field for field in scan.schema if field.name not in partitions])
    try:
        ordered = rows.select(stored.names).cast(stored)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UsageError(f"{name}: rows to append do not fit the columns of {root}: {error}") from error
    for column in partitions:
        ordered = ordered.append_column(column, rows[column])
    return append_rows(root, ordered, partition_by=partitions)


def append_rows(root: Path, rows: pa.Table, *, partition_by: Sequence[str]) -> tuple[Path, ...]:
    """One new file in the folder, or one in the folder of each combination of `partition_by`; no rows, no file."""
    if not len(rows):
        return ()
    file = f"{secrets.token_hex(16)}.parquet"
    if not partition_by:
        write_whole(rows, root / file)
        return (root / file,)
    paths = []
    for part in rows.select(partition_by).group_by(list(partition_by)).aggregate([]).to_pylist():
        chosen, folder = pa.scalar(value=True), root
        for column, value in part.items():
            same = (
                pc.is_null(rows[column])
                if value is None
                else pc.equal(rows[column], pa.scalar(value, rows[column].type))
            )
            chosen = pc.and_(chosen, pc.fill_null(same, fill_value=False))
            folder /= f"{column}={_NULL_PARTITION if value is None else quote(str(value), safe=' :')}"
        write_whole(rows.filter(chosen).drop_columns(list(partition_by)), folder / file)
        paths.append(folder / file)
    return tuple(paths)


def put_dataset(path: Path, pieces: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Rows in pieces as one file (a path that ends in .parquet) or as a folder of one, in place of what was there.

    A file is replaced at once. A folder is exchanged by two renames: a reader in between finds none, never half.
    """
    if path.suffix == ".parquet" and not path.is_dir():
        write_pieces(pieces, schema, path)
        return
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    write_pieces(pieces, schema, fresh / "part-0.parquet")
    if path.exists():
        replaced = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
        path.rename(replaced)
        fresh.rename(path)
        shutil.rmtree(replaced)
    else:
        fresh.rename(path)
