"""Causes of latest values that differ from what was served, from the source's rows of their keys.

A row counts as known at t where its created timestamp is not after t; without a created column every row counts as
known from its event time on, so that what arrived late shows as not loaded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.monitor.causes import Cause
from featurestore.monitor.parity import comparable
from featurestore.offline.connection import Limits, connection
from featurestore.offline.sql_types import entity_key, identifier, instant
from featurestore.offline.stored import scan_of, stored_names
from featurestore.online.result import Status
from featurestore.online.types import from_python, to_column
from featurestore.plan import View

Ints = npt.NDArray[np.int64]
_BOUNDLESS: Final = 1 << 62
_STEP: Final = 4_096
"""Rows of a key that are looked at at once."""


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


def causes(view: View, cases: Sequence[Case], *, repo: Path, limits: Limits | None = None) -> list[Cause]:
    """The cause of each case; reads the history of their keys once. Raises SourceError and UsageError."""
    codes = {key: code for code, key in enumerate(dict.fromkeys(case.key for case in cases))}
    features = tuple(dict.fromkeys(case.feature for case in cases))
    history = _History(_rows(view, list(codes), features, repo, limits or Limits()), features)
    return [_cause(view, case, codes[case.key], history) for case in cases]


class _History:
    """The source's rows of some keys, by key, event time and created time."""

    def __init__(self, rows: pa.Table, features: Sequence[str]) -> None:
        code: Ints = rows["code"].to_numpy()
        self.event_us: Ints = rows["ts"].to_numpy()
        self.created_us: Ints = rows["c"].to_numpy()
        self._values = {name: rows[f"f{index}"] for index, name in enumerate(features)}
        self._bounds: Ints = np.searchsorted(code, np.arange((int(code[-1]) if len(code) else -1) + 2))

    def newest(self, code: int, t_us: int) -> int | None:
        """The row with the greatest event time up to an instant."""
        first, end = self._of(code)
        row = first + int(np.searchsorted(self.event_us[first:end], t_us, side="right")) - 1
        return row if row >= first else None

    def known(self, code: int, newest: int | None, t_us: int) -> int | None:
        """The newest of the rows that were known at an instant."""
        if newest is None:
            return None
        first, _ = self._of(code)
        end = newest + 1
        while end > first:
            # From the end, in growing steps: nearly always the newest row was known.
            start = max(first, end - _STEP)
            before = np.flatnonzero(self.created_us[start:end] <= t_us)
            if len(before):
                return start + int(before[-1])
            end = start
        return None

    def at(self, code: int, event_us: int) -> range:
        """The rows of one event time."""
        first, end = self._of(code)
        found = np.searchsorted(self.event_us[first:end], (event_us, event_us + 1))
        return range(first + int(found[0]), first + int(found[1]))

    def value(self, feature: str, row: int) -> object:
        """A feature's value in a row, as `comparable` has it."""
        return comparable(self._values[feature].slice(row, 1).combine_chunks())[0]

    def _of(self, code: int) -> tuple[int, int]:
        return (int(self._bounds[code]), int(self._bounds[code + 1])) if code + 1 < len(self._bounds) else (0, 0)


def _cause(view: View, case: Case, code: int, history: _History) -> Cause:
    newest = history.newest(code, case.t_us)
    known = history.known(code, newest, case.t_us)
    held = history.at(code, case.event_us)
    behind = Cause.IN_FLIGHT if view.is_stream else Cause.MATERIALIZATION_LAG
    if newest != known and case.served == _value(known, case, view.ttl_us, history):
        same = newest is not None and history.event_us[newest] == case.event_us
        return Cause.CORRECTION if same else Cause.LATE_EVENT
    if known is not None and history.event_us[known] > case.event_us:
        explained = not case.event_us or case.status == Status.OUTSIDE_MAX_AGE or _among(case, held, history)
        return behind if explained else Cause.UNKNOWN
    if known is not None and history.event_us[known] == case.event_us:
        expired = bool(view.ttl_us) and case.event_us + view.ttl_us < case.t_us
        if expired != (case.status == Status.OUTSIDE_MAX_AGE):
            return Cause.TTL
        return behind if _among(case, held, history) else Cause.UNKNOWN
    # The store was ahead of the source: written online first, landed later.
    return Cause.IN_FLIGHT if _among(case, held, history) else Cause.UNKNOWN


def _value(row: int | None, case: Case, ttl_us: int, history: _History) -> object:
    if row is None or (ttl_us and history.event_us[row] + ttl_us < case.t_us):
        return None
    return history.value(case.feature, row)


def _among(case: Case, rows: range, history: _History) -> bool:
    return any(history.value(case.feature, row) == case.served for row in rows)


def _rows(
    view: View, keys: Sequence[tuple[object, ...]], features: Sequence[str], repo: Path, limits: Limits
) -> pa.Table:
    """Every row of those keys: the key's place among them, event and created time, and the features."""
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
    parts += [f"{identifier(column(name))} AS f{index}" for index, name in enumerate(features)]
    wanted = {
        alias: from_python([values[index] for values in keys], key.dtype, name=key.name)
        for index, (key, alias) in enumerate(zip(view.join_keys, named, strict=True))
    }
    with connection(limits) as session:
        session.register("wanted", pa.table({"code": np.arange(len(keys)), **wanted}))
        same = " AND ".join(f"r.{alias} = w.{alias}" for alias in named) or "TRUE"
        found = session.sql(
            f"SELECT w.code, r.* FROM (SELECT {', '.join(parts)} FROM {scan.register(session, 'source')}) r "
            f"JOIN wanted w ON {same} WHERE r.ts IS NOT NULL ORDER BY w.code, r.ts, r.c"
        ).to_arrow_table()
    types = {field.name: field.dtype for field in view.features}
    for index, name in enumerate(features):
        values = to_column(found[f"f{index}"], types[name], name=name)
        found = found.set_column(found.schema.get_field_index(f"f{index}"), f"f{index}", values)
    return found
