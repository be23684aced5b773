"""What does a source hold, and how does SQL read it?

A source is a Parquet file, a folder of them (hive-partitioned or not) or an event log; tables of Delta Lake and Iceberg
are opened by `featurestore.offline.lake`. Looking at it reads footers only: everything that can be wrong with it
(missing, torn, empty, no Parquet, a column that is gone) is found before any work is done, with one line that names it.
A `Scan` pins the files found: files that appear later are not read half-way through.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlparse

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet as pq

from featurestore.errors import SourceError
from featurestore.offline import event_log
from featurestore.offline.column_types import exact_select, unified
from featurestore.offline.connection import first_line
from featurestore.offline.sql_types import identifier, literal
from validation.compiled.relation import ROW
from validation.errors import did_you_mean
from validation.place import Place, is_address, place_of

PART_BITS = 40
"""How many bits of a row's number count within its file."""
_GLOB = re.compile(r"[*?\[]")
_HIVE = re.compile(r"([^=/]+)=([^/]*)")


class Scan(msgspec.Struct, frozen=True, kw_only=True):
    """A source as it stands now: how to read it, and its columns' Arrow types."""

    name: str
    """How errors call it."""
    schema: pa.Schema
    sql: str
    """What follows FROM; reads `relation` by its name where there is one."""
    relation: Any = None
    """What the connection that runs `sql` registers: an Arrow table or dataset as `source`, a list as `source_0`.."""
    empty: bool = False
    rows: int | None = None
    """How many rows there are, before any filter; None where only reading would tell."""
    files: tuple[Path, ...] = ()
    """Local Parquet files of one schema that are all there is to read; empty where there is more to it."""
    parts: tuple[Path, ...] = ()
    """The local Parquet files that are read, in order; empty for what is no local file."""
    numbered: str = ""
    """As `sql`, with `ROW` besides: a number that tells each row from all others."""
    aside: pa.Table | None = None
    """Numbers (`ROW`) of rows that are not read."""
    apart: Mapping[str, str] = {}
    """Columns that cannot be read, since the files store them in types that have nothing in common, and which."""

    def column(self, name: str, *, role: str) -> pa.DataType:
        """The Arrow type of a column; raises SourceError with what exists."""
        index = self.schema.get_field_index(name)
        if name in self.apart:
            raise SourceError(f"{self.name}: its files disagree about the type of {role} {name!r}: {self.apart[name]}")
        if index < 0:
            raise SourceError(f"{self.name} has no {role} {name!r}; {did_you_mean(name, self.schema.names)}")
        return self.schema.field(index).type

    def register(self, session: duckdb.DuckDBPyConnection, alias: str) -> str:
        """Make the source readable in the session; returns what follows FROM."""
        if self.aside is None:
            return self._readable(session, alias, self.sql)
        without = f"{alias}_aside"
        session.register(without, self.aside)
        row = identifier(ROW)
        rows = self.register_numbered(session, alias)
        return f"(SELECT * EXCLUDE ({row}) FROM {rows} ANTI JOIN {identifier(without)} USING ({row}))"

    def register_numbered(self, session: duckdb.DuckDBPyConnection, alias: str) -> str:
        """As `register`, with `ROW` besides, and with all rows: where files are read, `part << PART_BITS` + its row."""
        if self.numbered:
            return self.numbered
        every = self._readable(session, alias, self.sql)
        return f"(SELECT *, row_number() OVER () - 1 AS {identifier(ROW)} FROM {every})"

    def _readable(self, session: duckdb.DuckDBPyConnection, alias: str, sql: str) -> str:
        if self.relation is None:
            return sql
        if not isinstance(self.relation, list):
            session.register(alias, self.relation)
            return sql.format(source=identifier(alias))
        names = {f"source_{number}": f"{alias}_{number}" for number in range(len(self.relation))}
        for name, relation in zip(names.values(), self.relation, strict=True):
            session.register(name, relation)
        return sql.format(**{place: identifier(name) for place, name in names.items()})


def scan_table(table: pa.Table, *, name: str) -> Scan:
    """Rows that are already in memory.

    >>> scan_table(pa.table({"a": [1]}), name="rows").column("a", role="column")
    DataType(int64)
    """
    return Scan(name=name, schema=table.schema, sql="{source}", relation=table, empty=not len(table), rows=len(table))


def scan_parquet(
    path: str | Path,
    *,
    repo: Path,
    name: str,
    columns: Iterable[str] = (),
    missing_columns: Literal["error", "null"] = "error",
    filesystem: pyarrow.fs.FileSystem | None = None,
    declared: Mapping[str, str] | None = None,
) -> Scan:
    """A Parquet file, folder or event log; relative paths start at `repo`, other stores than disks are URIs.

    `declared` gives columns' Feast value types. A column whose type differs between files is cast to one type, without
    loss or with an error that names the file; where that is not possible and it is none of `columns`, it is left out.

    `columns` must be in every file, unless `missing_columns` is "null" or the folder is an event log, whose schema may
    grow: then in one of them. Raises SourceError.
    """
    remote = _remote(str(path), filesystem)
    if remote is not None:
        return _scan_dataset(*remote, name=name, columns=list(columns), declared=declared)
    root = local_path(path, repo)
    files = parquet_files(root, name=name)
    log = _events_in(files)
    is_log = bool(log)
    if is_log:
        files = tuple(Path(str(event.path)) for event in log)
    schemas = _footers(files, name)
    rows = sum(count for _, count in schemas)
    wanted = list(dict.fromkeys(columns))
    hive = partition_columns(_above_pattern(root), files)
    if any(column in schema.names for schema, _ in schemas for column in hive):
        hive = []  # DuckDB would let the folder's value win over the file's own column.
    _require(
        wanted, files, [schema for schema, _ in schemas], hive, name=name, anywhere=is_log or missing_columns == "null"
    )
    by_file = {str(file): each for file, (each, _) in zip(files, schemas, strict=True)}
    schema, apart = unified(by_file, declared)
    sql, numbered = _read_sql(by_file, schema, hive, name)
    if hive:
        schema = _with_hive_types(schema, sql, hive, name)
    if is_log and event_log.overlaps(log):
        once = f"row_number() OVER (PARTITION BY {_identity()} ORDER BY {identifier(ROW)}) = 1"
        numbered = f"(SELECT * FROM {numbered} QUALIFY {once})"
        sql = _each_once(sql)
    plain = not hive and not is_log and all(each.equals(schema) for each, _ in schemas)
    scan = Scan(
        name=name,
        schema=schema,
        sql=sql,
        empty=rows == 0,
        rows=rows,
        files=files if plain else (),
        parts=files,
        numbered=numbered,
        apart=apart,
    )
    for column in wanted:
        scan.column(column, role="column")
    return scan


def _read_sql(schemas: Mapping[str, pa.Schema], wanted: pa.Schema, hive: Sequence[str], name: str) -> tuple[str, str]:
    """SQL that reads files (path -> schema), and the same with `ROW`: files of one set of types are read at once."""
    alike = _of_one_type(schemas, wanted)
    number_of = {path: number for number, path in enumerate(schemas)}
    plain, numbered = [], []
    for paths in alike:
        listed = ", ".join(literal(_GLOB.sub(lambda found: f"[{found[0]}]", path)) for path in paths)
        read = f"read_parquet([{listed}], union_by_name=true, hive_partitioning={'true' if hive else 'false'})"
        numbers = [number_of[path] for path in paths]
        place = "file_index" if len(alike) == 1 else f"list_extract({numbers}, file_index::BIGINT + 1)"
        row = f"({place}::BIGINT << {PART_BITS}) + file_row_number AS {identifier(ROW)}"
        there = pa.schema({field.name: field for path in paths for field in schemas[path]}.values())
        if len(alike) == 1 and not any(_needs_cast(field, wanted) for field in there):
            return read, f"(SELECT *, {row} FROM {read})"
        names = ", ".join(map(literal, paths))
        columns = exact_select(there, wanted, place=f"list_extract([{names}], file_index::BIGINT + 1)", name=name)
        columns = ", ".join([columns, *map(identifier, hive)])
        plain.append(f"SELECT {columns} FROM {read}")
        numbered.append(f"SELECT {columns}, {row} FROM {read}")
    return f"({' UNION ALL '.join(plain)})", f"({' UNION ALL '.join(numbered)})"


def _of_one_type(schemas: Mapping[str, pa.Schema], wanted: pa.Schema) -> list[list[str]]:
    """The files (path -> schema), those together that store every column in the same type."""
    alike: dict[frozenset[tuple[str, pa.DataType]], list[str]] = {}
    for path, schema in schemas.items():
        differing = frozenset((field.name, field.type) for field in schema if _needs_cast(field, wanted))
        alike.setdefault(differing, []).append(path)
    return list(alike.values())


def _needs_cast(field: pa.Field, wanted: pa.Schema) -> bool:
    index = wanted.get_field_index(field.name)
    return index < 0 or bool(field.type != wanted.field(index).type)


def at_offsets(scan: Scan, ranges: Sequence[event_log.OffsetRange]) -> Scan:
    """The rows of an event log at the offsets of those ranges, whatever has been appended since."""
    topic, partition, offset = map(identifier, (event_log.TOPIC_ID, event_log.PARTITION, event_log.OFFSET))
    within = [
        f"({topic} = {literal(each.topic_id)} AND {partition} = {each.partition} "
        f"AND {offset} BETWEEN {each.first} AND {each.last})"
        for each in ranges
    ]
    sql = f"(SELECT * FROM {scan.sql} WHERE {' OR '.join(within) or 'FALSE'})"
    return msgspec.structs.replace(scan, sql=sql, files=(), parts=(), numbered="")


def local_path(path: str | Path, repo: Path) -> Path:
    """The place on disk; relative paths start at the repo.

    >>> local_path("data/a.parquet", Path("/repo"))
    PosixPath('/repo/data/a.parquet')
    """
    parsed = urlparse(str(path))
    plain = Path(unquote(parsed.path)) if parsed.scheme == "file" else Path(path)
    return plain if plain.is_absolute() else (repo / plain).absolute()


def place_at(path: str | Path, repo: Path) -> Place:
    """As `local_path`, or the place in an object store that an address names; raises PlatformError.

    >>> place_at("s3://bucket/event_log/departures", Path("/repo"))
    ObjectPath('s3://bucket/event_log/departures')
    """
    return place_of(path) if is_address(str(path)) else local_path(path, repo)


def plain_files(place: Place) -> bool:
    """Whether Parquet files lie at a topic's batch source that no sink of ours has written: all of them are events."""
    if not isinstance(place, Path):
        return False
    files = [place] if place.is_file() else place.rglob("*.parquet")
    return any(True for file in files) and not event_log.every_file(place)


def _events_in(files: Sequence[Path]) -> list[event_log.EventFile]:
    """What of these files is to be read, in order of their names, where all are an event log's; else nothing."""
    log = [event for file in files if (event := event_log.parse_name(file)) is not None]
    return sorted(event_log.needed(log), key=lambda event: str(event.path)) if len(log) == len(files) else []


def _identity() -> str:
    return ", ".join(map(identifier, (event_log.TOPIC_ID, event_log.PARTITION, event_log.OFFSET)))


def _each_once(sql: str) -> str:
    return f"(SELECT * FROM {sql} QUALIFY row_number() OVER (PARTITION BY {_identity()}) = 1)"


def parquet_files(root: Path, *, name: str) -> tuple[Path, ...]:
    """The Parquet files a path stands for, ordered by name; unfinished and hidden ones are left out.

    A path that does not exist may be a pattern (`data/2026-*.parquet`, `data/**/*.parquet`).
    """
    if root.is_file():
        return (root,)
    if not root.exists():
        above = _above_pattern(root)
        matching = sorted(above.glob(str(root.relative_to(above)))) if above != root else []
        if matching:
            return tuple(file for file in matching if file.is_file())
        near = sorted(entry.name for entry in root.parent.iterdir()) if root.parent.is_dir() else []
        found = did_you_mean(root.name, near) if near else f"{root.parent} does not exist or is empty"
        raise SourceError(f"{name}: {root} does not exist; {found}")
    files = sorted(
        file
        for file in root.rglob("*.parquet")
        if file.is_file() and not any(part.startswith((".", "_")) for part in file.relative_to(root).parts)
    )
    if not files:
        raise SourceError(f"{name}: the folder {root} holds no Parquet files (*.parquet)")
    return tuple(files)


def _footers(files: Sequence[Path], name: str) -> list[tuple[pa.Schema, int]]:
    def footer(file: Path) -> tuple[pa.Schema, int]:
        try:
            state = file.stat()
            return _footer(file, state.st_mtime_ns, state.st_size)
        except (pa.ArrowInvalid, OSError) as error:
            raise SourceError(f"{name}: {file} cannot be read as Parquet: {first_line(error)}") from error

    if len(files) == 1:
        return [footer(files[0])]
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(footer, files))


@lru_cache(maxsize=4096)
def _footer(file: Path, modified_ns: int, size_bytes: int) -> tuple[pa.Schema, int]:  # noqa: ARG001 (parts of the cache's key)
    try:
        with pq.ParquetFile(file) as opened:
            return opened.schema_arrow.remove_metadata(), opened.metadata.num_rows
    except UnicodeDecodeError as error:
        # A name in a damaged footer; whatever else is wrong there the library says as ArrowInvalid.
        raise pa.ArrowInvalid(f"{file}: its footer is damaged: {error}") from error


def _require(
    wanted: Sequence[str],
    files: Sequence[Path],
    schemas: Sequence[pa.Schema],
    hive: Sequence[str],
    *,
    name: str,
    anywhere: bool,
) -> None:
    known = {*hive, *(field for schema in schemas for field in schema.names)}
    for column in wanted:
        if column not in known:
            raise SourceError(f"{name} has no column {column!r}; {did_you_mean(column, known)}")
        lacking = [file for file, schema in zip(files, schemas, strict=True) if column not in schema.names]
        if lacking and column not in hive and not anywhere:
            raise SourceError(
                f"{name}: {lacking[0]} has no column {column!r}, {len(files) - len(lacking)} of {len(files)} do; "
                "write the column there, or set missing_columns: 'null' in feature_store.yaml's offline_store"
            )
    folded = [column.casefold() for column in known]
    for column in wanted:
        if folded.count(column.casefold()) > 1:
            raise SourceError(
                f"{name} has columns that differ from {column!r} only in upper and lower case; rename one"
            )


def partition_columns(root: Path, files: Sequence[Path]) -> list[str]:
    """The columns that folder names of the form column=value give, where every file lies under the same ones.

    >>> partition_columns(Path("d"), [Path("d/origin=EWR/day=2026-01-31/a.parquet")])
    ['origin', 'day']
    """
    if root.is_file():
        return []
    per_file = [
        [match[1] for part in file.relative_to(root).parts[:-1] if (match := _HIVE.fullmatch(part))] for file in files
    ]
    return [] if any(keys != per_file[0] for keys in per_file) else per_file[0]


def _above_pattern(root: Path) -> Path:
    """The folder above the first part that is a pattern; the path itself where none is or it exists as it stands."""
    if root.exists():
        return root
    for parent in reversed(root.parents):
        if not parent.exists():
            return parent.parent if _GLOB.search(parent.name) else root
    return root.parent if _GLOB.search(root.name) else root


def _with_hive_types(schema: pa.Schema, sql: str, hive: Sequence[str], name: str) -> pa.Schema:
    try:
        with duckdb.connect(":memory:", config={"autoinstall_known_extensions": False}) as session:
            session.execute("SET TimeZone = 'UTC'")
            columns = ", ".join(identifier(key) for key in hive)
            found = session.sql(f"SELECT {columns} FROM {sql} LIMIT 0").to_arrow_table().schema
    except duckdb.Error as error:
        raise SourceError(f"{name}: its partition folders cannot be read: {first_line(error)}") from error
    for field in found:
        schema = schema.append(field)
    return schema


def _scheme(path: str) -> str:
    scheme = urlparse(path).scheme
    return "" if scheme == "file" or len(scheme) == 1 else scheme


def _remote(path: str, filesystem: pyarrow.fs.FileSystem | None) -> tuple[str, pyarrow.fs.FileSystem] | None:
    scheme = _scheme(path)
    if filesystem is not None:
        return path.removeprefix(f"{scheme}://"), filesystem
    if not scheme:
        return None
    try:
        found, inside = pyarrow.fs.FileSystem.from_uri(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise SourceError(f"{path} cannot be opened: {first_line(error)}") from error
    return inside, found


def _scan_dataset(
    path: str,
    filesystem: pyarrow.fs.FileSystem,
    *,
    name: str,
    columns: Sequence[str],
    declared: Mapping[str, str] | None,
) -> Scan:
    try:
        dataset = pyarrow.dataset.dataset(path, filesystem=filesystem, format="parquet", partitioning="hive")
        if not dataset.files:
            raise SourceError(f"{name}: {path} holds no Parquet files")
        log = _events_in([Path(file) for file in dataset.files])
        files = [str(event.path) for event in log] or dataset.files
        folders = pa.schema([("day", pa.date32())]) if log else dataset.partitioning.schema
        scan = _scan_files(files, folders, path, filesystem, name=name, declared=declared)
        if event_log.overlaps(log):
            scan = msgspec.structs.replace(scan, sql=_each_once(scan.sql))
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(f"{name}: {path} cannot be read as Parquet: {first_line(error)}") from error
    for column in columns:
        scan.column(column, role="column")
    return scan


def _scan_files(
    files: Sequence[str],
    folders: pa.Schema,
    root: str,
    filesystem: pyarrow.fs.FileSystem,
    *,
    name: str,
    declared: Mapping[str, str] | None,
) -> Scan:
    """Files in another store than a disk, each read in its own types; `folders` are the partition folders' columns."""

    def footer(file: str) -> tuple[pa.Schema, int]:
        with filesystem.open_input_file(file) as held, pq.ParquetFile(held) as opened:
            return opened.schema_arrow.remove_metadata(), opened.metadata.num_rows

    with ThreadPoolExecutor(8) as pool:
        footers = list(pool.map(footer, files))
    by_file = {file: schema for file, (schema, _) in zip(files, footers, strict=True)}
    wanted, apart = unified(by_file, declared)
    relations, selects = [], []
    for number, alike in enumerate(_of_one_type(by_file, wanted)):
        there = pa.schema({field.name: field for file in alike for field in by_file[file]}.values())
        own = [field for field in folders if there.get_field_index(field.name) < 0]
        relations.append(
            pyarrow.dataset.dataset(
                alike,
                schema=pa.schema([*there, *own]),
                filesystem=filesystem,
                format="parquet",
                partitioning=pyarrow.dataset.partitioning(folders, flavor="hive"),
                partition_base_dir=root,
            )
        )
        place = literal(alike[0] + (f" and {len(alike) - 1} more files" if len(alike) > 1 else ""))
        columns = ", ".join([exact_select(there, wanted, place=place, name=name), *(identifier(f.name) for f in own)])
        selects.append(f"SELECT {columns.replace('{', '{{').replace('}', '}}')} FROM {{source_{number}}}")
    rows = sum(count for _, count in footers)
    schema = pa.schema([*wanted, *(field for field in folders if wanted.get_field_index(field.name) < 0)])
    if len(relations) == 1 and not any(_needs_cast(field, wanted) for each in by_file.values() for field in each):
        sql, relation = "{source}", relations[0]
    else:
        sql, relation = f"({' UNION ALL '.join(selects)})", relations
    return Scan(name=name, schema=schema, sql=sql, relation=relation, empty=rows == 0, rows=rows, apart=apart)
