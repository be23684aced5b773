"""How are a view's rows or events read from its source, under the names the view gives them?

Field mappings are undone here: the joins know columns of the source, and names of the result.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pyarrow as pa

from featurestore.errors import UnknownName
from featurestore.offline.asof import AsOfView, Feature, Key
from featurestore.offline.connection import Limits, connection
from featurestore.offline.duplicates import duplicates
from featurestore.offline.entity_rows import EntityRows
from featurestore.offline.event_log import ARRIVAL, OFFSET, PARTITION, PROVENANCE, TOPIC_ID
from featurestore.offline.sources import Scan, scan_parquet
from featurestore.offline.sql_types import earliest, entity_key, identifier, instant, latest
from featurestore.offline.windowed import windowed_join
from featurestore.plan import Projection, View

MissingColumns = Literal["error", "null"]
# A blank first, so that no column of the events is called alike.
_ID = " id"
_PROVENANCE = " log "


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
    names += [each.column for each in view.aggregations] or [field.name for field in view.features]
    columns = [stored.get(name, name) for name in names]
    if (event_id := _event_id(view)) is not None:
        columns += [event_id, *PROVENANCE.names]
    return tuple(dict.fromkeys(columns))


def scan_of(view: View, *, repo: Path, missing_columns: MissingColumns = "error") -> Scan:
    """The view's source as it stands now; raises SourceError where it is missing, torn, or lacks a column."""
    return scan_parquet(
        view.source.path,
        repo=repo,
        name=f"source {view.source.name!r} of view {view.name!r}",
        columns=needed_columns(view),
        missing_columns=missing_columns,
    )


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
        keys=_keys(view, projection),
        timestamp=_stored(view, view.source.timestamp_field),
        created=_stored(view, view.source.created_field) if view.source.created_field else None,
        ttl_us=view.ttl_us,
        features=tuple(Feature(names[name], every[name].column, every[name].dtype) for name in projection.features),
        every_feature=tuple(every.values()),
    )


def windowed_values(
    view: View,
    projection: Projection,
    scan: Scan | None,
    asked: EntityRows,
    *,
    as_known: bool = False,
    limits: Limits | None = None,
) -> dict[str, pa.ChunkedArray]:
    """The projection's features at every entity row, in order; without a scan there are no events yet.

    As known, an event counts only once it had arrived: where the source names no created column, events count as ever.
    Raises UsageError and SourceError, and what the windowed join raises.
    """
    keys = _keys(view, projection)
    entities = pa.table(
        {
            **{f"k{index}": asked.key(key.entity, key.dtype) for index, key in enumerate(keys)},
            "t": pa.array(asked.t_us, mask=~asked.has_t),
        }
    )
    wanted = [each for each in view.aggregations if each.feature in projection.features]
    joined = windowed_join(
        _events(view, keys, scan, asked, limits or Limits()),
        entities,
        keys={f"k{index}": f"k{index}" for index in range(len(keys))},
        event_ts="ts",
        entity_ts="t",
        aggregations=wanted,
        arrival="arrival" if view.source.created_field else None,
        as_known=as_known and view.source.created_field is not None,
    )
    return {name: _chunked(joined[name]) for name in projection.features}


def check_windowed(view: View, projection: Projection, scan: Scan | None, asked: EntityRows) -> None:
    """Find what is wrong with the request from names and types alone; raises UsageError and SourceError."""
    made = {each.feature for each in view.aggregations}
    for name in projection.features:
        if name not in made:
            raise UnknownName(f"feature in view {view.name!r}", name, made)
    keys = _keys(view, projection)
    for key in keys:
        asked.key(key.entity, key.dtype)
    if scan is not None:
        _event_columns(view, keys, scan)


def _events(view: View, keys: tuple[Key, ...], scan: Scan | None, asked: EntityRows, limits: Limits) -> pa.Table:
    """The events that any of the windows can hold, duplicates left out: k0.., ts, arrival, the aggregated columns."""
    bounds = asked.bounds_us()
    if scan is None or bounds is None:
        columns: dict[str, pa.Array] = {
            **{f"k{index}": asked.key(key.entity, key.dtype).combine_chunks()[:0] for index, key in enumerate(keys)},
            "ts": pa.array([], pa.int64()),
            "arrival": pa.array([], pa.int64()),
        }
        return pa.table(columns | {each.column: pa.nulls(0) for each in view.aggregations})
    reach = [(each.window_us or 0) + (each.hop_us or 0) for each in view.aggregations]
    boundless = any(each.window_us is None for each in view.aggregations)
    timestamp = _stored(view, view.source.timestamp_field)
    dtype = scan.column(timestamp, role="timestamp column")
    filters = [latest(timestamp, dtype, bounds[1])]
    if not boundless:
        filters.append(earliest(timestamp, dtype, bounds[0] - max(reach)))
    where = " AND ".join(each for each in filters if each) or "TRUE"
    with connection(limits) as session:
        source = scan.register(session, "events")
        selected = ", ".join(_event_columns(view, keys, scan))
        events = session.sql(f"SELECT {selected} FROM {source} WHERE {where}").to_arrow_table()
    # Events of one id that differ in time are no duplicates: those beyond the windows would tell nothing.
    return _each_once(events, view, keys)


def _each_once(events: pa.Table, view: View, keys: tuple[Key, ...]) -> pa.Table:
    """The events without duplicates, and without the columns that tell them."""
    topic = view.source.topic
    if topic is None or topic.event_id_horizon_us is None:
        return events
    same = [f"{_PROVENANCE}{TOPIC_ID}", f"{_PROVENANCE}{PARTITION}", "ts", *(f"k{index}" for index in range(len(keys)))]
    repeated = duplicates(
        events[_ID],
        [events[name] for name in same],
        events[f"{_PROVENANCE}{OFFSET}"].to_numpy(),
        events[f"{_PROVENANCE}{ARRIVAL}"].to_numpy(),
        horizon_us=topic.event_id_horizon_us,
    )
    kept = [name for name in events.column_names if name != _ID and not name.startswith(_PROVENANCE)]
    return events.select(kept).filter(pa.array(~repeated)) if repeated.any() else events.select(kept)


def _event_columns(view: View, keys: tuple[Key, ...], scan: Scan) -> list[str]:
    columns = [
        f"{entity_key(key.column, scan.column(key.column, role='join key'), key.dtype, place=scan.name)} AS k{index}"
        for index, key in enumerate(keys)
    ]
    times = {"ts": view.source.timestamp_field, "arrival": view.source.created_field}
    for alias, name in times.items():
        if name:
            column = _stored(view, name)
            columns.append(
                f"{instant(column, scan.column(column, role='timestamp column'), place=scan.name)} AS {alias}"
            )
    for name in dict.fromkeys(each.column for each in view.aggregations):
        column = _stored(view, name)
        scan.column(column, role="event column")
        columns.append(f"{identifier(column)} AS {identifier(name)}")
    if (event_id := _event_id(view)) is not None:
        scan.column(event_id, role="event id")
        columns.append(f"{identifier(event_id)} AS {identifier(_ID)}")
        for name in PROVENANCE.names:
            dtype = scan.column(name, role="column, by which duplicates are told,")
            value = instant(name, dtype, place=scan.name) if name == ARRIVAL else identifier(name)
            columns.append(f"{value} AS {identifier(_PROVENANCE + name)}")
    return columns


def _event_id(view: View) -> str | None:
    """The column that tells duplicates; None where all events count."""
    topic = view.source.topic
    return None if topic is None or topic.event_id_horizon_us is None else topic.event_id


def _keys(view: View, projection: Projection) -> tuple[Key, ...]:
    return tuple(
        Key(_stored(view, key.name), projection.join_key_map.get(key.name, key.name), key.dtype)
        for key in view.join_keys
    )


def _stored(view: View, name: str) -> str:
    return stored_names(view).get(name, name)


def _chunked(column: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    return column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
