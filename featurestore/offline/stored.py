"""How are a view's rows or events read from its source, under the names the view gives them?

Field mappings are undone here: the joins know columns of the source, and names of the result.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pyarrow as pa

from featurestore.errors import UnknownName
from featurestore.offline.asof_view import AsOfView, Feature, Key
from featurestore.offline.connection import Limits, connection
from featurestore.offline.event_log import PROVENANCE
from featurestore.offline.lake import scan_lake
from featurestore.offline.sources import Scan, scan_parquet, scan_table
from featurestore.offline.sql_types import identifier, is_string
from featurestore.offline.time_columns import Unit, units_of, with_instants
from featurestore.plan import Projection, View
from featurestore.topic_schema import declared_columns
from featurestore.transform import Transformed, transformed

MissingColumns = Literal["error", "null"]


def stored_names(view: View) -> dict[str, str]:
    """Names of the view -> columns of its source, where these differ."""
    return {name: column for column, name in view.source.field_mapping.items()}


def needed_columns(view: View) -> tuple[str, ...]:
    """The columns of the source that the view's definition names, its timestamp first."""
    stored = stored_names(view)
    names = [view.source.timestamp_field]
    if view.source.created_field:
        names.append(view.source.created_field)
    names += [key.name for key in view.join_keys]
    names += _read_columns(view)
    columns = [stored.get(name, name) for name in names]
    if (event_id := event_id_of(view)) is not None:
        columns += [event_id, *PROVENANCE.names]
    return tuple(dict.fromkeys(columns))


def declared_types(view: View) -> dict[str, str]:
    """Columns of the view's source -> the Feast value types that they are read as."""
    topic = view.source.topic
    types = {} if topic is None else {field.name: field.dtype for field in declared_columns(topic)}
    for field in (*(view.transform.inputs if view.transform else ()), *view.features):
        types.setdefault(stored_name(view, field.name), field.dtype)
    for each in view.aggregations:
        types.setdefault(stored_name(view, each.column), each.column_dtype)
    for key in view.join_keys:
        types[stored_name(view, key.name)] = key.dtype
    for name in (view.source.timestamp_field, view.source.created_field):
        if name:
            types[stored_name(view, name)] = "UNIX_TIMESTAMP"
    return types


def _read_columns(view: View) -> list[str]:
    """The columns beside keys and times, by the view's names: what its function is given, where it has one."""
    made = {field.name for field in view.transform.outputs} if view.transform else set()
    values = [each.column for each in view.aggregations] or [field.name for field in view.features]
    given = [field.name for field in view.transform.inputs] if view.transform else []
    return list(dict.fromkeys([*given, *(name for name in values if name not in made)]))


def transformed_scan(view: View, scan: Scan, limits: Limits | None = None) -> Scan:
    """The source of a view of latest values after its function, if it has one; rows on which it fails are left out."""
    if view.transform is None or view.kind == "windowed":
        return scan
    columns = ", ".join(map(identifier, needed_columns(view)))
    with connection(limits or Limits()) as session:
        rows = session.sql(f"SELECT {columns} FROM {scan.register(session, 'rows')}").to_arrow_table()
    given = {field.name: rows[stored_name(view, field.name)] for field in view.transform.inputs}
    renamed = {field.name: stored_name(view, field.name) for field in view.transform.outputs}
    return scan_table(with_made(rows, transformed(view.name, view.transform, given), renamed), name=scan.name)


def with_made(rows: pa.Table, made: Transformed, renamed: Mapping[str, str]) -> pa.Table:
    """The rows with what a function made of them in its place, without those on which it failed."""
    rows = rows.select([name for name in rows.column_names if name not in renamed.values()])
    for name, column in renamed.items():
        rows = rows.append_column(column, made.columns[name])
    worked = np.ones(len(rows), np.bool_)
    worked[list(made.failed)] = False
    return rows.filter(pa.array(worked))


def time_columns(view: View) -> list[str]:
    """The columns of the source that the view declares as timestamps, beside the rows' own times."""
    stored = stored_names(view)
    declared = [(key.name, key.dtype) for key in view.join_keys]
    declared += [(field.name, field.dtype) for field in (*view.columns, *view.features)]
    return [stored.get(name, name) for name, dtype in declared if dtype == "UNIX_TIMESTAMP"]


def scan_of(
    view: View,
    *,
    repo: Path,
    missing_columns: MissingColumns = "error",
    snapshot: str | None = None,
    limits: Limits | None = None,
) -> Scan:
    """The view's source as it stands now; raises SourceError where it is missing, torn, or lacks a column.

    A table is read at `snapshot` where one is named. The events of a view of latest values have gone through its
    function.
    """
    scan = _as_stored(view, repo, missing_columns, snapshot, limits)
    source = view.source
    dated = [source.timestamp_field, source.created_field, *(time_columns(view) if source.time_unit else ())]
    scan = with_instants(scan, dated, unit=source.time_unit)
    return withheld_scan(transformed_scan(view, scan), view.withheld)


def units_of_view(view: View, *, repo: Path, limits: Limits | None = None) -> list[Unit]:
    """In which unit the numbers of the view's time columns are read; empty where they are no numbers.

    Raises SourceError as `scan_of` does.
    """
    source = view.source
    columns = [source.timestamp_field, source.created_field, *time_columns(view)]
    scan = _as_stored(view, repo, "error", None, limits)
    return units_of(scan, columns, declared=source.time_unit, limits=limits)


def _as_stored(
    view: View, repo: Path, missing_columns: MissingColumns, snapshot: str | None, limits: Limits | None
) -> Scan:
    source, columns = view.source, needed_columns(view)
    name = f"source {source.name!r} of view {view.name!r}"
    if source.table is None:
        return scan_parquet(
            source.path,
            repo=repo,
            name=name,
            columns=columns,
            missing_columns=missing_columns,
            declared=declared_types(view),
        )
    return scan_lake(source.table, source.path, repo=repo, name=name, columns=columns, snapshot=snapshot, limits=limits)


def withheld_scan(scan: Scan, withheld: Mapping[str, str]) -> Scan:
    """The source without what is beyond a view's clearance; `featurestore.clearance.withhold` in SQL."""
    if not withheld:
        return scan
    instead = []
    for column, how in withheld.items():
        dtype = scan.column(column, role="column")
        name = identifier(column)
        # A null of the column's own type: CASE takes the type of its other branch.
        value = f"sha256({name})" if how == "masked" and is_string(dtype) else f"CASE WHEN FALSE THEN {name} END"
        instead.append(f"{value} AS {name}")
    sql = f"(SELECT * REPLACE ({', '.join(instead)}) FROM {scan.sql})"
    return msgspec.structs.replace(scan, sql=sql, files=())


def as_of_view(view: View, projection: Projection, scan: Scan, names: Mapping[str, str]) -> AsOfView:
    """What the as-of join needs of a view; `names` gives each feature's name in the result.

    Raises UnknownName for a feature that the view does not have.
    """
    stored = stored_names(view)
    every = {
        field.name: Feature(field.name, stored.get(field.name, field.name), field.dtype) for field in view.features
    }
    for name in projection.features:
        if name not in every:
            raise UnknownName(f"feature in view {view.name!r}", name, every)
    return AsOfView(
        name=projection.name,
        scan=scan,
        keys=keys_of(view, projection),
        timestamp=stored_name(view, view.source.timestamp_field),
        created=stored_name(view, view.source.created_field) if view.source.created_field else None,
        ttl_us=view.ttl_us,
        features=tuple(Feature(names[name], every[name].column, every[name].dtype) for name in projection.features),
        every_feature=tuple(every.values()),
    )


def event_id_of(view: View) -> str | None:
    """The column that tells duplicates; None where all events count."""
    topic = view.source.topic
    return None if topic is None or topic.event_id_horizon_us is None else topic.event_id


def keys_of(view: View, projection: Projection) -> tuple[Key, ...]:
    """The view's join keys: their columns in the source, and in the entity rows under the projection's key map."""
    return tuple(
        Key(stored_name(view, key.name), projection.join_key_map.get(key.name, key.name), key.dtype)
        for key in view.join_keys
    )


def stored_name(view: View, name: str) -> str:
    """The column of the source that the view calls `name`."""
    return stored_names(view).get(name, name)
