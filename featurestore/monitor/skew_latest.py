"""Why does a served latest value differ? The source's rows of its key say.

A row counts as known at t where its created timestamp is not after t; without a created column every row counts as
known from its event time on, so that what arrived late shows as not loaded.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from featurestore.monitor.causes import Cause
from featurestore.monitor.parity import comparable
from featurestore.offline.connection import Limits, connection
from featurestore.offline.sql_types import entity_key, identifier, instant
from featurestore.offline.stored import scan_of, stored_names
from featurestore.online.result import Status
from featurestore.online.types import to_column
from featurestore.plan import View

_LONG_AGO = -(1 << 62)
_BOUNDLESS = 1 << 62


class Case(msgspec.Struct, frozen=True, gc=False):
    """One served value that differs, of a latest-value view."""

    key: tuple[object, ...]
    """In the order of the view's join keys."""
    feature: str
    t_us: int
    """The instant that it held at."""
    event_us: int
    """The event time of the row that the store held; 0 for none."""
    status: int
    served: object
    """As `comparable` has it."""


class _Row(msgspec.Struct, frozen=True, gc=False):
    event_us: int
    created_us: int
    values: Mapping[str, object]


def causes(view: View, cases: Sequence[Case], *, repo: Path, limits: Limits | None = None) -> list[Cause]:
    """The cause of each case; reads the history of their keys. Raises SourceError and UsageError."""
    history = _history(view, {case.key for case in cases}, repo, limits or Limits())
    return [_cause(view, case, history.get(case.key, ())) for case in cases]


def _cause(view: View, case: Case, rows: Sequence[_Row]) -> Cause:
    past = [row for row in rows if row.event_us <= case.t_us]
    newest = max(past, key=_order, default=None)
    known = max((row for row in past if row.created_us <= case.t_us), key=_order, default=None)
    held = [row for row in rows if row.event_us == case.event_us]
    behind = Cause.IN_FLIGHT if view.is_stream else Cause.MATERIALIZATION_LAG
    if newest is not known and case.served == _value(known, case, view.ttl_us):
        return Cause.CORRECTION if newest is not None and newest.event_us == case.event_us else Cause.LATE_EVENT
    if known is not None and known.event_us > case.event_us:
        explained = not case.event_us or case.status == Status.OUTSIDE_MAX_AGE or _among(case, held)
        return behind if explained else Cause.UNKNOWN
    if known is not None and known.event_us == case.event_us:
        expired = bool(view.ttl_us) and case.event_us + view.ttl_us < case.t_us
        if expired != (case.status == Status.OUTSIDE_MAX_AGE):
            return Cause.TTL
        return behind if _among(case, held) else Cause.UNKNOWN
    # The store was ahead of the source: written online first, landed later.
    return Cause.IN_FLIGHT if _among(case, held) else Cause.UNKNOWN


def _order(row: _Row) -> tuple[int, int]:
    return row.event_us, row.created_us


def _value(row: _Row | None, case: Case, ttl_us: int) -> object:
    if row is None or (ttl_us and row.event_us + ttl_us < case.t_us):
        return None
    return row.values[case.feature]


def _among(case: Case, rows: Sequence[_Row]) -> bool:
    return any(row.values[case.feature] == case.served for row in rows)


def _history(view: View, keys: set[tuple[object, ...]], repo: Path, limits: Limits) -> dict[tuple[object, ...], Any]:
    """Every row of those keys, by key."""
    scan, stored = scan_of(view, repo=repo), stored_names(view)

    def column(name: str) -> str:
        return stored.get(name, name)

    def moment(name: str) -> str:
        return instant(column(name), scan.column(column(name), role="timestamp column"), place=scan.name)

    named = [f"k{index}" for index in range(len(view.join_keys))]
    parts = [
        f"{entity_key(column(key.name), scan.column(column(key.name), role='join key'), key.dtype, place=scan.name)}"
        f" AS {alias}"
        for key, alias in zip(view.join_keys, named, strict=True)
    ]
    created = view.source.created_field
    # Without a created column a row was known from its event time on; one of unknown creation never was.
    known = moment(view.source.timestamp_field) if created is None else f"coalesce({moment(created)}, {_BOUNDLESS})"
    parts += [f"{moment(view.source.timestamp_field)} AS ts", f"{known} AS c"]
    parts += [f"{identifier(column(field.name))} AS f{index}" for index, field in enumerate(view.features)]
    with connection(limits) as session:
        source = scan.register(session, "source")
        rows = f"SELECT {', '.join(parts)} FROM {source}"
        if named:
            wanted = {alias: list(values) for alias, values in zip(named, zip(*keys, strict=True), strict=True)}
            session.register("wanted", pa.table(wanted))
            same = " AND ".join(f"r.{alias} = w.{alias}" for alias in named)
            rows = f"SELECT r.* FROM ({rows}) r SEMI JOIN wanted w ON {same}"
        found = session.sql(rows).to_arrow_table()
    values = [
        comparable(to_column(found[f"f{index}"], field.dtype, name=field.name))
        for index, field in enumerate(view.features)
    ]
    names = [field.name for field in view.features]
    history: dict[tuple[object, ...], list[_Row]] = {}
    for place, (key, ts, c) in enumerate(
        zip(_keys(found, named), found["ts"].to_pylist(), found["c"].to_pylist(), strict=True)
    ):
        if ts is not None:
            row = dict(zip(names, (column[place] for column in values), strict=True))
            history.setdefault(key, []).append(_Row(ts, _LONG_AGO if c is None else c, row))
    return history


def _keys(found: pa.Table, named: Sequence[str]) -> list[tuple[object, ...]]:
    if not named:
        return [()] * found.num_rows
    return list(zip(*(found[alias].to_pylist() for alias in named), strict=True))
