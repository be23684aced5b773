"""Which entity rows does the caller of Feast's SDK give: a DataFrame, an Arrow table, SQL text, or a range of dates?"""

from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pyarrow as pa
from feast.repo_config import RepoConfig

from featurestore.errors import SourceError, UsageError
from featurestore.offline.connection import Limits, query
from featurestore.offline.entity_rows import without_index
from featurestore.offline.mapped import held_or_mapped
from featurestore.offline.pull import entities_between
from featurestore.offline.stored import as_of_view
from featurestore.plugins.requested import Wanted, limits_of, stored_view

EVENT_TIMESTAMP = "event_timestamp"


def entity_table(
    entity_df: pd.DataFrame | pa.Table | str, repo: Path, limits: Limits, needed: Collection[str] = ()
) -> pa.Table:
    """The caller's rows without the columns of a pandas index, but for those that are `needed`."""
    if isinstance(entity_df, str):
        with query(entity_df, search_path=repo, limits=limits) as found:
            return without_index(held_or_mapped(found, found.schema, limits), needed)
    if isinstance(entity_df, pa.Table):
        return without_index(entity_df, needed)
    if not isinstance(entity_df, pd.DataFrame):
        raise UsageError(
            f"entity rows are a {type(entity_df).__name__}; give a pandas DataFrame, an Arrow table or SQL text"
        )
    frame = entity_df
    if named := [name for name in frame.index.names if name in needed and name not in frame.columns]:
        frame = frame.reset_index(named)
    if EVENT_TIMESTAMP in frame and list(frame.columns).count(EVENT_TIMESTAMP) == 1:
        stamps = frame[EVENT_TIMESTAMP]
        if stamps.dtype == "object" and any(isinstance(value, datetime) for value in stamps):
            # Python datetimes, some naive and some of several zones, are no one Arrow type.
            zoned = pd.Series([_in_utc(value) for value in stamps], frame.index, dtype="datetime64[us, UTC]")
            frame = frame.assign(**{EVENT_TIMESTAMP: zoned})
    try:
        return without_index(pa.Table.from_pandas(frame, preserve_index=False), needed)
    except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError) as error:
        raise UsageError(f"the entity rows cannot be read: {error}") from error


def _in_utc(value: Any) -> Any:
    if value is None or value is pd.NaT:
        return pd.NaT
    stamp = pd.Timestamp(value)
    return stamp.tz_localize("UTC") if stamp.tzinfo is None else stamp.tz_convert("UTC")


def timestamp_column(table: pa.Table) -> str:
    if EVENT_TIMESTAMP in table.column_names:
        return EVENT_TIMESTAMP
    found = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]
    if len(found) == 1:
        return str(found[0])
    raise UsageError(
        f"entity rows have no column {EVENT_TIMESTAMP!r}, and {len(found)} other timestamps to take its place; "
        f"their columns are {', '.join(table.column_names) or 'none'}"
    )


def entities_of_range(wanted: Sequence[Wanted], start_us: int, end_us: int, *, config: RepoConfig) -> pa.Table:
    parts = []
    for each in wanted:
        view, scan = stored_view(each.view, config)
        if scan is None:
            continue
        # The as-of view of no features has the keys and the timestamp under their stored names.
        bare = as_of_view(view, msgspec.structs.replace(each.projection, features=()), scan, {})
        parts.append(entities_between(scan, bare.keys, bare.timestamp, start_us, end_us, limits=limits_of(config)))
    if not parts:
        raise SourceError("no view has any row to take entities from; give entity rows")
    table = pa.concat_tables(parts, promote_options="default")
    names = sorted(table.column_names, key=lambda name: (name == EVENT_TIMESTAMP, name))
    return (
        table.group_by(names, use_threads=False)
        .aggregate([])
        .select(names)
        .sort_by([(name, "ascending") for name in reversed(names)])
    )
