"""How are a view's windowed features told from the source of its events, whatever its size?

Events that fit are held and joined at once. More than that wait on disk by buckets of keys; both give the same bits.
Duplicates are left out on either way, since those of one event have its key.
"""

from collections.abc import Callable
from functools import partial, reduce
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa

from featurestore.errors import UnknownName
from featurestore.offline.asof_view import Key
from featurestore.offline.connection import Limits, batches_of, connection
from featurestore.offline.duplicates import duplicates
from featurestore.offline.entity_rows import EntityRows
from featurestore.offline.event_log import ARRIVAL, OFFSET, PARTITION, PROVENANCE, TOPIC_ID
from featurestore.offline.mapped import as_many_as_fit
from featurestore.offline.sources import Scan
from featurestore.offline.sql_types import earliest, entity_key, identifier, instant, latest
from featurestore.offline.stored import event_id_of, keys_of, stored_name, with_made
from featurestore.offline.windowed import windowed_join
from featurestore.offline.windowed_spill import KEY, windowed_join_batches
from featurestore.plan import Projection, View
from featurestore.transform import transformed

HELD_BYTES = 480_000_000
"""Events of up to as many bytes in Arrow (20 million of a key, a time and a number) are joined in memory.

Measured: the join takes some three times their size beside them. By way of the disk it takes no longer."""
BUCKET_BYTES = 48_000_000
"""Events of a bucket on disk; about two buckets are joined at a time."""

# A blank first, so that no column of the events is called alike.
_TS, _ARRIVED, _ID, _PROVENANCE, _GIVEN = " ts", " arrival", " id", " log ", " given "


class _Asked(NamedTuple):
    """One windowed join, apart from its events."""

    entities: pa.Table
    more: dict[str, Any]
    """What both joins are given alike."""
    counted: Callable[[pa.Table], pa.Table] | None
    limits: Limits


def windowed_values(
    view: View,
    projection: Projection,
    scan: Scan | None,
    asked: EntityRows,
    *,
    as_known: bool = False,
    limits: Limits | None = None,
    on_share: Callable[[float], None] | None = None,
) -> dict[str, pa.ChunkedArray]:
    """The projection's features at every entity row, in order; without a scan there are no events yet.

    As known, an event counts only once it had arrived: where the source names no created column, events count as ever.
    Raises UsageError and SourceError, and what the windowed join raises.
    """
    keys = keys_of(view, projection)
    names = _key_names(view)
    entities = pa.table(
        {
            **{name: asked.key(key.entity, key.dtype) for name, key in zip(names, keys, strict=True)},
            _TS: pa.array(asked.t_us, mask=~asked.has_t),
        }
    )
    arrives = view.source.created_field is not None
    more: dict[str, Any] = {
        "keys": {name: name for name in names},
        "event_ts": _TS,
        "entity_ts": _TS,
        "aggregations": [each for each in view.aggregations if each.feature in projection.features],
        "arrival": _ARRIVED if as_known and arrives else None,
        "as_known": as_known and arrives,
        "on_share": on_share,
    }
    counted = _counted_of(view)
    bounds = asked.bounds_us()
    if scan is None or bounds is None:
        joined = windowed_join(_no_events(view, entities), entities, **more)
    else:
        joined = _joined(view, keys, scan, bounds, _Asked(entities, more, counted, limits or Limits()))
    return {name: joined[name] for name in projection.features}


def check_windowed(view: View, projection: Projection, scan: Scan | None, asked: EntityRows) -> None:
    """Find what is wrong with the request from names and types alone; raises UsageError and SourceError."""
    made = {each.feature for each in view.aggregations}
    for name in projection.features:
        if name not in made:
            raise UnknownName(f"feature in view {view.name!r}", name, made)
    keys = keys_of(view, projection)
    for key in keys:
        asked.key(key.entity, key.dtype)
    if scan is not None:
        _event_columns(view, keys, scan, as_known=True)


def _joined(view: View, keys: tuple[Key, ...], scan: Scan, bounds: tuple[int, int], asked: _Asked) -> pa.Table:
    """The windows of the events that any of them can hold."""
    selected = ", ".join(_event_columns(view, keys, scan, as_known=asked.more["as_known"]))
    held_bytes = min(HELD_BYTES, asked.limits.memory_bytes // 16)
    with connection(asked.limits) as session:
        source = scan.register(session, "events")
        found = session.sql(f"SELECT {selected} FROM {source} WHERE {within(view, scan, bounds)}")
        width = 8 * len(found.columns)
        if scan.rows is not None and scan.rows * width <= held_bytes:
            events = found.to_arrow_table()
        else:
            reader = batches_of(found)
            first, more = as_many_as_fit(reader, held_bytes)
            if more is not None:
                return _joined_on_disk(reader.schema, chain(first, [more], reader), scan, width, asked)
            events = pa.Table.from_batches(first, reader.schema)
    return windowed_join(events if asked.counted is None else asked.counted(events), asked.entities, **asked.more)


def _joined_on_disk(schema: pa.Schema, events: Any, scan: Scan, width: int, asked: _Asked) -> pa.Table:
    bucket_bytes = min(BUCKET_BYTES, asked.limits.memory_bytes // 64)
    buckets = 64 if scan.rows is None else min(max(scan.rows * width // bucket_bytes, 8), 256)
    return windowed_join_batches(
        events,
        asked.entities,
        schema=schema,
        folder=asked.limits.temp_dir,
        buckets=buckets,
        counted=asked.counted,
        more_columns=[name for name in schema.names if name == _ID or name.startswith((_PROVENANCE, _GIVEN))],
        **asked.more,
    )


def _no_events(view: View, entities: pa.Table) -> pa.Table:
    columns = {name: entities[name].slice(0, 0) for name in entities.column_names}
    columns[_ARRIVED] = pa.nulls(0, pa.int64())
    return pa.table(columns | {each.column: pa.nulls(0) for each in view.aggregations})


def within(view: View, scan: Scan, bounds: tuple[int, int]) -> str:
    """Of which times events can lie in a window; row-group statistics answer it."""
    timestamp = stored_name(view, view.source.timestamp_field)
    dtype = scan.column(timestamp, role="timestamp column")
    filters = [latest(timestamp, dtype, bounds[1])]
    reach = [each.window_us + (each.hop_us or 0) for each in view.aggregations if each.window_us is not None]
    if len(reach) == len(view.aggregations):
        filters.append(earliest(timestamp, dtype, bounds[0] - max(reach)))
    # Events of one id that differ in time are no duplicates: those beyond the windows would tell nothing.
    return " AND ".join(each for each in filters if each) or "TRUE"


def _counted_of(view: View) -> Callable[[pa.Table], pa.Table] | None:
    """What events go through before they count: duplicates are left out, then the view's function is applied."""
    steps: list[Callable[[pa.Table], pa.Table]] = []
    if event_id_of(view) is not None:
        steps.append(partial(_each_once, view=view))
    if view.transform is not None:
        steps.append(partial(_transformed, view=view))
    return (lambda events: reduce(lambda found, step: step(found), steps, events)) if steps else None


def _transformed(events: pa.Table, *, view: View) -> pa.Table:
    """The events after the view's function; those on which it fails were never accepted by the stream."""
    assert view.transform is not None
    given = {field.name: events[_GIVEN + field.name] for field in view.transform.inputs}
    made = transformed(view.name, view.transform, given)
    kept = events.select([name for name in events.column_names if not name.startswith(_GIVEN)])
    return with_made(kept, made, {field.name: field.name for field in view.transform.outputs})


def _each_once(events: pa.Table, *, view: View) -> pa.Table:
    """The events without duplicates, and without the columns that tell them; whole keys, in their columns or in one."""
    topic = view.source.topic
    assert topic is not None
    assert topic.event_id_horizon_us is not None
    keys = [KEY] if KEY in events.column_names else _key_names(view)
    same = [f"{_PROVENANCE}{TOPIC_ID}", f"{_PROVENANCE}{PARTITION}", _TS, *keys]
    repeated = duplicates(
        events[_ID],
        [events[name] for name in same],
        events[f"{_PROVENANCE}{OFFSET}"].to_numpy(),
        events[f"{_PROVENANCE}{ARRIVAL}"].to_numpy(),
        horizon_us=topic.event_id_horizon_us,
    )
    kept = [name for name in events.column_names if name != _ID and not name.startswith(_PROVENANCE)]
    return events.select(kept).filter(pa.array(~repeated)) if repeated.any() else events.select(kept)


def _key_names(view: View) -> list[str]:
    return [f" k{index}" for index in range(len(view.join_keys))]


def _event_columns(view: View, keys: tuple[Key, ...], scan: Scan, *, as_known: bool) -> list[str]:
    """Keys, time, arrival where it is asked for, the aggregated columns, and what tells duplicates."""
    columns = []
    for key, alias in zip(keys, _key_names(view), strict=True):
        dtype = scan.column(key.column, role="join key")
        columns.append(f"{entity_key(key.column, dtype, key.dtype, place=scan.name)} AS {identifier(alias)}")
    times = {_TS: view.source.timestamp_field, _ARRIVED: view.source.created_field if as_known else None}
    for alias, name in times.items():
        if name:
            column = stored_name(view, name)
            value = instant(column, scan.column(column, role="timestamp column"), place=scan.name)
            columns.append(f"{value} AS {identifier(alias)}")
    made = {field.name for field in view.transform.outputs} if view.transform else set()
    read = {each.column: each.column for each in view.aggregations if each.column not in made}
    read |= {_GIVEN + field.name: field.name for field in view.transform.inputs} if view.transform else {}
    for alias, name in read.items():
        column = stored_name(view, name)
        scan.column(column, role="event column")
        columns.append(f"{identifier(column)} AS {identifier(alias)}")
    if (event_id := event_id_of(view)) is not None:
        scan.column(event_id, role="event id")
        columns.append(f"{identifier(event_id)} AS {identifier(_ID)}")
        for name in PROVENANCE.names:
            dtype = scan.column(name, role="column, by which duplicates are told,")
            value = instant(name, dtype, place=scan.name) if name == ARRIVAL else identifier(name)
            columns.append(f"{value} AS {identifier(_PROVENANCE + name)}")
    return columns
