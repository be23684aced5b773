"""Within which limits does a join run?

Each call opens a DuckDB connection of its own and closes it: connections are never shared between threads. DuckDB
never fetches extensions, and every session's time zone is UTC.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

import duckdb
import msgspec
import pyarrow as pa

from featurestore.errors import ConfigurationError, SourceError, UsageError
from featurestore.repeated import repeated
from validation.interrupts import interruptible

_BATCH_ROWS = 1_000_000
WATCH_S = 5.0
"""Joins that take longer say how far they are, so often."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one call may use; None leaves the choice to DuckDB (80 % of memory, all cores)."""

    memory: str | None = None
    """As DuckDB writes it: "6GB", for the whole call. Beyond it, joins spill to `temp_dir`."""
    temp_dir: Path | None = None
    """Where to spill; None is a private folder that goes with the call."""
    threads: int | None = None

    @property
    def memory_bytes(self) -> int:
        """The limit as a number, as DuckDB understands it: to a tenth of its unit.

        >>> Limits(memory="2GiB").memory_bytes
        2147483648
        """
        return _memory_bytes(self.memory)


@contextmanager
def connection(limits: Limits, *, search_path: Path | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection for one call, closed at its end; `search_path` is where relative file names in SQL start.

    Raises ConfigurationError for limits that DuckDB refuses, SourceError for what goes wrong with the data inside.
    """
    if limits.temp_dir is not None:
        limits.temp_dir.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="featurestore-", dir=limits.temp_dir) as spill:
        config: dict[str, str | bool | int | float | list[str]] = {
            "temp_directory": spill,
            "autoinstall_known_extensions": False,
            "preserve_insertion_order": False,
        }
        if limits.memory is not None:
            # The other half is for what comes in and goes out as Arrow: entity rows, chosen rows, the result.
            config["memory_limit"] = f"{limits.memory_bytes // 2_000_000}MB"
        if limits.threads is not None:
            config["threads"] = limits.threads
        if search_path is not None:
            config["file_search_path"] = str(search_path)
        try:
            session = interruptible(duckdb.connect(":memory:", config=config))
        except duckdb.Error as error:
            raise ConfigurationError(f"DuckDB refuses the limits {limits}: {first_line(error)}") from error
        try:
            # Counted for `watched`, printed for nobody.
            # And zoned columns come out as UTC whatever the machine's zone is called ("Etc/UTC" is another type).
            session.execute(
                "SET TimeZone = 'UTC'; SET enable_progress_bar = true; SET enable_progress_bar_print = false"
            )
            yield session
        except duckdb.OutOfMemoryException as error:
            raise ConfigurationError(
                f"the join does not fit its memory limit ({limits.memory or 'the default'}): {first_line(error)}; "
                "raise memory_limit in feature_store.yaml's offline_store"
            ) from error
        except duckdb.Error as error:
            raise SourceError(f"the data cannot be joined: {first_line(error)}") from error
        finally:
            session.close()


@contextmanager
def watched(session: duckdb.DuckDBPyConnection, say: Callable[[float], None] | None) -> Iterator[None]:
    """While the connection works, `say` hears every few seconds what share of its query is done, 0 to 1."""
    if say is None:
        yield
        return

    def look(stopping: Event) -> None:  # noqa: ARG001 - takes no time
        percent = session.query_progress()
        if percent >= 0:
            say(percent / 100)

    with repeated("join_progress", look, every_s=WATCH_S):
        yield


def batches_of(found: duckdb.DuckDBPyRelation) -> pa.RecordBatchReader:
    """A result as it comes, for results larger than memory; what goes wrong on the way is DuckDB's error."""
    reader = found.to_arrow_reader(_BATCH_ROWS)

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from reader
        except OSError as error:
            # Arrow's form of what DuckDB says once the stream has begun.
            raise duckdb.Error(str(error)) from error

    return pa.RecordBatchReader.from_batches(reader.schema, batches())


@contextmanager
def query(text: str, *, search_path: Path, limits: Limits) -> Iterator[pa.RecordBatchReader]:
    """What the caller's own SQL selects, in its order, in batches; files it names lie relative to `search_path`.

    Raises UsageError with DuckDB's reason.

    >>> with query("SELECT 1 AS a", search_path=Path(), limits=Limits()) as found:
    ...     found.read_all().to_pylist()
    [{'a': 1}]
    """
    with connection(limits, search_path=search_path) as session:
        session.execute("SET preserve_insertion_order = true")
        try:
            yield batches_of(session.sql(text))
        except (duckdb.Error, AttributeError) as error:
            # A statement that selects nothing has no relation.
            raise UsageError(f"the entity rows' SQL cannot be run: {first_line(error)}") from error


@cache
def _memory_bytes(limit: str | None) -> int:
    config: dict[str, str | bool | int | float | list[str]] = {"autoinstall_known_extensions": False}
    if limit is not None:
        config["memory_limit"] = limit
    try:
        with duckdb.connect(":memory:", config=config) as session:
            ((found,),) = session.execute("SELECT current_setting('memory_limit')").fetchall()
    except duckdb.Error as error:
        raise ConfigurationError(f"DuckDB refuses the memory limit {limit!r}: {first_line(error)}") from error
    number, unit = str(found).split()
    return int(float(number) * 1024 ** ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"].index(unit))


def first_line(error: BaseException) -> str:
    """An error's first line, which says what went wrong; the rest is SQL of ours."""
    return str(error).partition("\n")[0]
