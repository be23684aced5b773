"""What were these entities' features at these instants, by the Plan?

The offline truth without Feast: sources, the as-of and windowed kernels and on-demand functions put together. Training
sets are built from it, and what was served is compared with it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import SourceError, UsageError
from featurestore.offline.asof import AsOfView, Feature, Key, as_of_join
from featurestore.offline.connection import Limits
from featurestore.offline.entity_rows import EntityRows
from featurestore.offline.event_log import OFFSET, PARTITION, TOPIC_ID, OffsetRange, pinned, read_events
from featurestore.offline.sources import parquet_files, scan_parquet
from featurestore.offline.windowed import windowed_join
from featurestore.online.types import from_python, to_column, to_python
from featurestore.plan import Field, OnDemandView, Plan, Projection, View
from featurestore.user_code import run_on_demand

_INPUT = "__input__"


def historical_features(
    plan: Plan,
    projections: Sequence[Projection],
    entity_rows: pa.Table,
    *,
    repo: Path,
    timestamp: str = "event_timestamp",
    as_known: bool = False,
    full_feature_names: bool = False,
    pins: Mapping[str, Sequence[OffsetRange]] | None = None,
    limits: Limits | None = None,
) -> pa.Table:
    """One row per entity row, in order: its columns (the timestamp as timestamp[us, UTC]), then the features.

    Features are in their declared types' Arrow form (`featurestore.online.types`) and in the order of the projections.
    Request columns of on-demand views are taken from the entity rows. `pins` names, per source, the offset ranges of
    its event log that may be read; others are read whole. Raises UsageError and SourceError before any work is done.
    """
    rows = EntityRows(entity_rows, timestamp)
    wanted = _with_inputs(plan, projections)
    latest: list[tuple[Projection, View]] = []
    windowed: list[tuple[Projection, View]] = []
    for projection in wanted:
        view = plan.view(projection.view)
        (windowed if view.kind == "windowed" else latest).append((projection, view))
    columns: dict[str, pa.ChunkedArray] = {}
    joined = as_of_join(
        rows, [_as_of(view, projection, repo) for projection, view in latest], as_known=as_known, limits=limits
    )
    for projection, _ in latest:
        for feature in projection.features:
            columns[_column(projection, feature)] = joined.table[_column(projection, feature)]
    asked = rows.normalized()
    for projection, view in windowed:
        events = _events(view, projection, repo, (pins or {}).get(view.source.name))
        columns.update(_windowed(view, projection, events, asked, timestamp, as_known=as_known))
    for projection in projections:
        if on_demand := plan.on_demand.get(projection.view):
            columns.update(_on_demand(on_demand, projection, columns, asked))
    return _assembled(asked, projections, columns, full_feature_names=full_feature_names)


def _with_inputs(plan: Plan, projections: Sequence[Projection]) -> list[Projection]:
    """The projections of stored views, those that on-demand views need included, one per view, alias and key map."""
    merged: dict[tuple[str, str, tuple[tuple[str, str], ...]], dict[str, None]] = {}
    for projection in projections:
        on_demand = plan.on_demand.get(projection.view)
        for each in on_demand.inputs if on_demand else (projection,):
            where = (each.view, each.name, tuple(sorted(each.join_key_map.items())))
            merged.setdefault(where, {}).update(dict.fromkeys(each.features))
    return [
        Projection(view=view, alias=name, features=tuple(features), join_key_map=dict(keys))
        for (view, name, keys), features in merged.items()
    ]


def _column(projection: Projection, feature: str) -> str:
    return f"{_INPUT}{projection.name}__{feature}"


def _as_of(view: View, projection: Projection, repo: Path) -> AsOfView:
    stored = {name: column for column, name in view.source.field_mapping.items()}
    keys = tuple(
        Key(stored.get(key.name, key.name), projection.join_key_map.get(key.name, key.name), key.dtype)
        for key in view.join_keys
    )
    timestamp = stored.get(view.source.timestamp_field, view.source.timestamp_field)
    created = view.source.created_field and stored.get(view.source.created_field, view.source.created_field)
    every = tuple(Feature(field.name, stored.get(field.name, field.name), field.dtype) for field in view.features)
    needed = [
        *(key.column for key in keys),
        timestamp,
        *([created] if created else []),
        *(each.column for each in every),
    ]
    chosen = {each.name: each for each in every}
    return AsOfView(
        name=projection.name,
        scan=scan_parquet(view.source.path, repo=repo, name=f"source {view.source.name!r}", columns=needed),
        keys=keys,
        timestamp=timestamp,
        created=created or None,
        ttl_us=view.ttl_us,
        features=tuple(
            msgspec.structs.replace(chosen[feature], name=_column(projection, feature))
            for feature in projection.features
        ),
        every_feature=every,
    )


def _events(view: View, projection: Projection, repo: Path, pins: Sequence[OffsetRange] | None) -> pa.Table:
    """The columns of a windowed view's events that its aggregations need, under the names the view gives them."""
    source = view.source
    stored = {name: column for column, name in source.field_mapping.items()}
    aggregated = {each.column for each in view.aggregations if each.feature in projection.features}
    needed = {key.name for key in view.join_keys} | aggregated | {source.timestamp_field}
    if source.created_field:
        needed.add(source.created_field)
    columns = {stored.get(name, name): name for name in sorted(needed)}
    folder = repo / source.path
    if source.topic is None:
        files = parquet_files(folder, name=f"source {source.name!r}")
        events = pa.concat_tables([_read(file, list(columns)) for file in files], promote_options="permissive")
    elif pins is None:
        events = read_events(folder, columns=list(columns))
    else:
        identity = [TOPIC_ID, PARTITION, OFFSET]
        events = pinned(read_events(folder, columns=[*columns, *identity]), pins).select(list(columns))
    return events.rename_columns([columns[name] for name in events.column_names])


def _read(file: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(file, columns=columns)
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise SourceError(f"{file} cannot be read: {error}") from error


def _windowed(
    view: View, projection: Projection, events: pa.Table, asked: pa.Table, timestamp: str, *, as_known: bool
) -> dict[str, pa.ChunkedArray]:
    joined = windowed_join(
        events,
        asked,
        keys={key.name: projection.join_key_map.get(key.name, key.name) for key in view.join_keys},
        event_ts=view.source.timestamp_field,
        entity_ts=timestamp,
        aggregations=[each for each in view.aggregations if each.feature in projection.features],
        arrival=view.source.created_field,
        as_known=as_known,
    )
    return {_column(projection, feature): pa.chunked_array(joined[feature]) for feature in projection.features}


def _on_demand(
    view: OnDemandView, projection: Projection, columns: Mapping[str, pa.ChunkedArray], asked: pa.Table
) -> dict[str, pa.ChunkedArray]:
    given: dict[str, list[object]] = {}
    for field in view.request:
        if field.name not in asked.column_names:
            raise UsageError(
                f"on-demand view {view.name!r} needs the column {field.name!r}; "
                f"the entity rows have {', '.join(asked.column_names)}"
            )
        given[field.name] = _python(asked[field.name], field)
    for each in view.inputs:
        for feature in each.features:
            values = columns[_column(each, feature)].to_pylist()
            given[feature] = given[f"{each.view}__{feature}"] = values
    computed = run_on_demand(view, given, asked.num_rows)
    types = {field.name: field.dtype for field in view.features}
    return {
        _column(projection, feature): pa.chunked_array([from_python(computed[feature], types[feature], name=feature)])
        for feature in projection.features
    }


def _python(column: pa.ChunkedArray, field: Field) -> list[object]:
    return to_python(to_column(column, field.dtype, name=field.name), field.dtype)


def _assembled(
    asked: pa.Table,
    projections: Sequence[Projection],
    columns: Mapping[str, pa.ChunkedArray],
    *,
    full_feature_names: bool,
) -> pa.Table:
    table = asked
    for projection in projections:
        for feature in projection.features:
            name = f"{projection.name}__{feature}" if full_feature_names else feature
            if name in table.column_names:
                raise UsageError(
                    f"two columns would be called {name!r} (the second is {projection.name}:{feature}); "
                    "ask for full feature names"
                )
            table = table.append_column(name, columns[_column(projection, feature)])
    return table
