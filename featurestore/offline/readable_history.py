"""Check that a view's definition can read the events that its log holds, before the definition counts.

The offline store refuses a column that no file has and types that have nothing in common; `plan` and `backfill` refuse
the same, by the files' footers alone.
"""

from pathlib import Path

import pyarrow as pa

from featurestore.errors import SourceError, UsageError
from featurestore.offline.column_types import one_type
from featurestore.offline.event_log import PROVENANCE, event_files
from featurestore.offline.sources import Scan, place_at, plain_files, scan_parquet
from featurestore.offline.stored import declared_types, needed_columns
from featurestore.online.types import arrow_type
from featurestore.plan import View


def unreadable_history(view: View, repo: Path) -> str:
    """Why the events of a view's log cannot be read as it is defined; empty where they can, or where there are none."""
    if view.source.topic is None or view.source.table is not None:
        return ""
    place = place_at(view.source.path, repo)
    if not event_files(place) and not plain_files(place):
        return ""
    try:
        declared = declared_types(view)
        scan = scan_parquet(
            view.source.path,
            repo=repo,
            name=f"source {view.source.name!r} of view {view.name!r}",
            columns=needed_columns(view),
            missing_columns="null",
            declared=declared,
        )
        for column in needed_columns(view):
            if column not in PROVENANCE.names and column in declared:
                _check_type(scan, column, declared[column])
    except SourceError as error:
        return str(error)
    return ""


def refuse_unreadable_history(view: View, repo: Path) -> None:
    """Raise SourceError where `unreadable_history` has something to say."""
    if why := unreadable_history(view, repo):
        raise SourceError(f"{why}; name the column as the log has it, or let a new topic or path start a new history")


def _check_type(scan: Scan, column: str, declared: str) -> None:
    found = scan.column(column, role="column")
    try:
        wanted = arrow_type(declared)
    except UsageError:
        return  # Types that only events have; the stream reads them itself.
    if pa.types.is_binary(wanted) or pa.types.is_null(found):
        return
    if one_type([found, wanted], declared) is None:
        raise SourceError(f"{scan.name}: column {column!r} is {found} in its files and is declared {declared} now")
