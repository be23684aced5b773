"""What did rows look like where they crossed a boundary, hour by hour? Profiles from what is kept of each.

    served    sampled answers, as their callers got them          (the serve log)
    source    rows of batch sources, by when they were created    (the source)
    training  a training set                                      (its part `train`)

Accepted events are profiled in the stream (`featurestore.event_profiles`), rows that are written online by who writes
them (`featurestore.write_profiles`).

An hour is made again while rows can still come late to it; the profiles of its source id are replaced.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa

from featurestore.dataset.manifest import Manifest
from featurestore.monitor.kept_profiles import AT, added, by_segment, first_baseline, hour_name, read_kept, safe_name
from featurestore.monitor.served import HOUR_US, REQUESTED, Shape, given_column, read_served
from featurestore.offline.connection import Limits, connection
from featurestore.offline.sql_types import earliest, identifier, instant, latest
from featurestore.offline.stored import scan_of, stored_names
from featurestore.plan import Service, View
from validation.drift.repeats import OWNER
from validation.drift.rows import rows_of
from validation.profile.baseline import Baseline, kind_of
from validation.profile.concatenate import Concatenated, concatenate
from validation.profile.entities import hashes_of_rows
from validation.profile.profile import Profile
from validation.profile.store import ProfileStore

SOURCE: Final = "source"
_AT_ONCE: Final = 131_072
"""Rows that are profiled at a time."""


def served_rows(
    log: Path, service: str, start_us: int, end_us: int, segments: tuple[str, ...] = ()
) -> Concatenated | None:
    """The sampled answers of a service as `view:feature` columns, with the instant of the request; None without any.

    Columns `owner_columns` say whose an answer is, one an entity key of the service.
    """

    def wanted(shape: Shape) -> list[str]:
        given = (name.partition(":") for name in shape.given)
        return [*(given_column(view, feature) for view, _, feature in given), *(f"key {name}" for name in shape.keys)]

    tables = []
    for shape, table in read_served(log, start_us, end_us, service=service, columns=wanted):
        columns = {AT: table[REQUESTED].cast(pa.timestamp("us", "UTC"))}
        for name in shape.given:
            view, _, feature = name.partition(":")
            columns[name] = table[given_column(view, feature)]
        columns |= {name: table[f"key {name}"] for name in segments if f"key {name}" in table.column_names}
        columns |= {f"{OWNER} {name}": _hashed(table, f"key {name}") for name in shape.keys}
        tables.append(pa.table(columns))
    return concatenate(tables) if tables else None


def training_rows(
    folder: Path, manifest: Manifest, service: Service, segments: tuple[str, ...] = (), keys: Sequence[str] = ()
) -> pa.Table:
    """The rows that a model was trained on, with their instants, features as `view:feature`; DriftError where torn.

    Columns as those of `served_rows` say whose a row is; `keys` are the entity columns that answers have.
    """
    table = rows_of(folder).table
    columns = {AT: table[manifest.timestamp_column].cast(pa.timestamp("us", "UTC"))}
    for projection in service.projections:
        for feature in projection.features:
            name = f"{projection.name}__{feature}" if manifest.full_feature_names else feature
            if name in table.column_names:
                columns[f"{projection.name}:{feature}"] = table[name]
    columns |= {name: table[name] for name in segments if name in table.column_names}
    columns |= {f"{OWNER} {name}": _hashed(table, name) for name in keys if name in table.column_names}
    return pa.table(columns)


def owner_columns(table: pa.Table) -> list[str]:
    """The columns of answers, or of a training set, that say whose each row is."""
    return sorted(name for name in table.column_names if name.startswith(f"{OWNER} "))


def service_keys(table: pa.Table) -> list[str]:
    """The entity columns that answers have."""
    return [name.removeprefix(f"{OWNER} ") for name in owner_columns(table)]


def _hashed(table: pa.Table, name: str) -> pa.Array:
    return pa.array(hashes_of_rows(table, [name]), pa.uint64())


def put_served(
    store: ProfileStore, service: str, table: pa.Table, baseline: Baseline, segments: tuple[str, ...] = ()
) -> None:
    """Profiles answers, all and by segment: all answers of their hours, whose profiles are replaced."""
    by_hour: dict[int, list[Profile]] = {}
    owners = owner_columns(table)
    # Threads would wait for each other at slices of an hour.
    for profile in by_segment(table, baseline, "served", segments, time_column=AT, entities=owners, threads=1):
        by_hour.setdefault((profile.hour_us or 0) // HOUR_US, []).append(profile)
    for hour, made in by_hour.items():
        store.put(f"{safe_name(service)}-{hour_name(hour)}", made, boundary="served", baseline=baseline)


def put_arrived(
    store: ProfileStore, view: View, repo: Path, hour_us: int, segments: tuple[str, ...] = (), *, personal: bool = False
) -> int:
    """Profiles the rows of a view's source that arrived within an hour, all and by segment; how many there were.

    `segments` are columns as the view names them. The source's baseline is made of the first rows that were ever
    profiled, and kept. Memory is bounded. Rows that are `personal` data are counted, never profiled.
    """
    stored = stored_names(view)
    segments = tuple(stored.get(name, name) for name in segments)
    keys = [stored.get(key.name, key.name) for key in view.join_keys]
    made: list[Profile] = []
    baseline, rows = None, 0
    for table in _arrived(view, repo, hour_us):
        if personal:
            rows += len(table)
            continue
        baseline = baseline or first_baseline(store, SOURCE, view.source.name, table)
        made = added(made, by_segment(table, baseline, SOURCE, segments, time_column=AT, entities=keys))
        rows += len(table)
    if baseline is not None:
        name = f"{safe_name(view.source.name)}-{hour_name(hour_us // HOUR_US)}"
        store.put(name, made, boundary=SOURCE, baseline=baseline)
    return rows


def read_arrived(store: ProfileStore, view: View, start_us: int, end_us: int) -> list[Profile]:
    """The profiles of a view's source, of hours in [start, end); none where no hour was profiled."""
    return read_kept(store, SOURCE, view.source.name, start_us, end_us)


def _arrived(view: View, repo: Path, hour_us: int) -> Iterator[pa.Table]:
    """The rows of a view's source that arrived within an hour, in pieces."""
    scan, stored = scan_of(view, repo=repo), stored_names(view)
    arrival = view.source.created_field or view.source.timestamp_field
    arrival = stored.get(arrival, arrival)
    dtype = scan.column(arrival, role="arrival column")
    at = instant(arrival, dtype, place=scan.name)
    left_out = {arrival, view.source.timestamp_field, view.source.created_field}
    names = [field.name for field in scan.schema if kind_of(field.type) is not None and field.name not in left_out]
    where = [f"{at} >= {hour_us}", f"{at} < {hour_us + HOUR_US}"]
    where += filter(None, [earliest(arrival, dtype, hour_us), latest(arrival, dtype, hour_us + HOUR_US)])
    columns = ", ".join([f"make_timestamptz({at}) AS {identifier(AT)}", *map(identifier, names)])
    with connection(Limits()) as session:
        source = scan.register(session, "source")
        found = session.sql(f"SELECT {columns} FROM {source} WHERE {' AND '.join(where)}")
        for batch in found.to_arrow_reader(_AT_ONCE):
            table = pa.Table.from_batches([batch])
            yield table.set_column(0, AT, table[AT].cast(pa.timestamp("us", "UTC")))
