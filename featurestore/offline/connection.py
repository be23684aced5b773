"""Within which limits does a join run?

Each call opens a DuckDB connection of its own and closes it: connections are never shared between threads. DuckDB
never fetches extensions, and no expression here depends on the session's time zone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import msgspec
import pyarrow as pa

from featurestore.errors import ConfigurationError, SourceError, UsageError


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one call may use; None leaves the choice to DuckDB (80 % of memory, all cores)."""

    memory: str | None = None
    """As DuckDB writes it: "6GB". Beyond it, joins spill to `temp_dir`."""
    temp_dir: Path | None = None
    """Where to spill; None is a private folder that goes with the call."""
    threads: int | None = None


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
            config["memory_limit"] = limits.memory
        if limits.threads is not None:
            config["threads"] = limits.threads
        if search_path is not None:
            config["file_search_path"] = str(search_path)
        try:
            session = duckdb.connect(":memory:", config=config)
        except duckdb.Error as error:
            raise ConfigurationError(f"DuckDB refuses the limits {limits}: {first_line(error)}") from error
        try:
            session.execute("SET enable_progress_bar = false")
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


def query(text: str, *, search_path: Path, limits: Limits) -> pa.Table:
    """What the caller's own SQL selects, in its order; files it names lie relative to `search_path`.

    Raises UsageError with DuckDB's reason.

    >>> query("SELECT 1 AS a", search_path=Path(), limits=Limits()).to_pylist()
    [{'a': 1}]
    """
    with connection(limits, search_path=search_path) as session:
        session.execute("SET preserve_insertion_order = true")
        try:
            return session.sql(text).to_arrow_table()
        except (duckdb.Error, AttributeError) as error:
            # A statement that selects nothing has no relation.
            raise UsageError(f"the entity rows' SQL cannot be run: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """An error's first line, which says what went wrong; the rest is SQL of ours."""
    return str(error).partition("\n")[0]
