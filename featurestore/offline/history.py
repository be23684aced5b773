"""What were these entities' features at these instants, by the Plan?

The offline truth without Feast: sources, the as-of and windowed kernels and on-demand functions put together. Training
sets are built from it, and what was served is compared with it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from featurestore.errors import UsageError
from featurestore.offline.connection import Limits
from featurestore.offline.entity_rows import EntityRows
from featurestore.offline.event_log import OffsetRange, event_files
from featurestore.offline.joined import WindowedView, check_joined, joined_features
from featurestore.offline.mapped import BATCH_ROWS, held_or_mapped
from featurestore.offline.sources import Scan, at_offsets, place_at, plain_files
from featurestore.offline.stored import as_of_view, scan_of
from featurestore.online.types import arrow_type, from_python, to_column, to_python
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
    snapshots: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    on_view: Callable[[str], None] | None = None,
    on_share: Callable[[str, float], None] | None = None,
) -> pa.Table:
    """One row per entity row, in order: its columns (the timestamp as timestamp[us, UTC]), then the features.

    Features are in their declared types' Arrow form (`featurestore.online.types`) and in the order of the projections.
    Request columns of on-demand views are taken from the entity rows. `pins` names, per source, the offset ranges of
    its event log that may be read, `snapshots` the snapshot of its table; others are read whole, as they are. `on_view`
    hears each view's name once it is joined, `on_share` its name and the share that is done while that takes long.
    Raises UsageError and SourceError before any work is done.
    """
    rows = EntityRows(entity_rows, timestamp)
    latest, windowed = [], []
    for projection in _with_inputs(plan, projections):
        view = plan.view(projection.view)
        names = {feature: _column(projection, feature) for feature in projection.features}
        snapshot = (snapshots or {}).get(view.source.name)
        if view.kind == "windowed":
            scan = _scan_of_events(view, repo, (pins or {}).get(view.source.name), snapshot, limits)
            windowed.append(WindowedView(view, projection, scan, names))
        else:
            scan = scan_of(view, repo=repo, snapshot=snapshot, limits=limits)
            latest.append(as_of_view(view, projection, scan, names))
    check_joined(rows, latest, windowed)
    columns = joined_features(
        rows, latest, windowed, as_known=as_known, limits=limits, on_view=on_view, on_share=on_share
    ).columns
    asked = rows.normalized()
    for projection in projections:
        if on_demand := plan.on_demand.get(projection.view):
            columns.update(_on_demand(on_demand, projection, columns, asked, limits or Limits()))
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


def _scan_of_events(
    view: View, repo: Path, pins: Sequence[OffsetRange] | None, snapshot: str | None, limits: Limits | None
) -> Scan | None:
    """The events of a windowed view, at the pinned offsets where some are named; None: none was logged yet."""
    if view.source.table is None and view.source.topic is not None:
        place = place_at(view.source.path, repo)
        if not event_files(place) and not plain_files(place):
            return None
    scan = scan_of(view, repo=repo, snapshot=snapshot, limits=limits)
    return scan if pins is None else at_offsets(scan, pins)


def _on_demand(
    view: OnDemandView,
    projection: Projection,
    columns: Mapping[str, pa.ChunkedArray],
    asked: pa.Table,
    limits: Limits,
) -> dict[str, pa.ChunkedArray]:
    for field in view.request:
        if field.name not in asked.column_names:
            raise UsageError(
                f"on-demand view {view.name!r} needs the column {field.name!r}; "
                f"the entity rows have {', '.join(asked.column_names)}"
            )
    types = {field.name: field.dtype for field in view.features}
    names = {_column(projection, feature): feature for feature in projection.features}
    schema = pa.schema([(name, arrow_type(types[feature])) for name, feature in names.items()])

    def batches() -> Iterator[pa.RecordBatch]:
        # Row by row, so on pieces: Python's values take many times what the columns do.
        for start in range(0, len(asked), BATCH_ROWS):
            rows = asked.slice(start, BATCH_ROWS)
            given: dict[str, list[object]] = {field.name: _python(rows[field.name], field) for field in view.request}
            for each in view.inputs:
                for feature in each.features:
                    values = columns[_column(each, feature)].slice(start, BATCH_ROWS).to_pylist()
                    given[feature] = given[f"{each.view}__{feature}"] = values
            computed = run_on_demand(view, given, len(rows))
            yield pa.record_batch(
                [from_python(computed[feature], types[feature], name=feature) for feature in names.values()],
                schema=schema,
            )

    table = held_or_mapped(batches(), schema, limits)
    return {name: table[name] for name in names}


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
