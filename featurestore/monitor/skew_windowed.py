"""Causes of windowed values that differ from what was served, from the event log as it was known.

Served is what was committed. As known at t the log holds what had arrived by t: equal to that, only events that came
later tell served from offline. Else the newest events of the key that had arrived are taken away one by one, in every
partition; a value that is served without some of them was served while they were in flight.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise, product
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.monitor.causes import Cause
from featurestore.monitor.parity import comparable
from featurestore.offline.connection import Limits, connection
from featurestore.offline.entity_rows import EntityRows
from featurestore.offline.event_log import ARRIVAL, OFFSET, PARTITION, PROVENANCE, TOPIC_ID, event_files
from featurestore.offline.history import historical_features
from featurestore.offline.sources import place_at, scan_table
from featurestore.offline.sql_types import entity_key, identifier, instant
from featurestore.offline.stored import needed_columns, scan_of, stored_name
from featurestore.offline.windowed_stored import windowed_values, within
from featurestore.online.types import from_python, to_column
from featurestore.plan import JoinKey, Plan, Projection, View

Ints = npt.NDArray[np.int64]
IN_FLIGHT_US: Final = 60_000_000
"""How long an event may have arrived, and not be committed, to be called in flight."""
_TRIES: Final = 64
"""Ways to leave events out that are tried for one case."""
_CASES: Final = 256
"""Cases that are looked at so closely; of a fault that breaks more, these say enough."""
_FIRST: Final = 4
"""Ways that are tried first: mostly one of them is it."""
_AT_ONCE: Final = 1_000_000
"""Events of all tries that are joined together."""
_AT: Final = "event_timestamp"
_CODE, _ARRIVED = " code", " arrived"
_NUMBER: Final = JoinKey(entity=" try", name=" try", dtype="INT64")
"""Names with a blank first, so that no column of the events is called alike."""
_TIMESTAMP: Final = pa.timestamp("us", "UTC")


class Case(msgspec.Struct, frozen=True, gc=False):
    """One served value that differs, of a windowed view."""

    key: tuple[object, ...]
    """In the order of the view's join keys."""
    feature: str
    t_us: int
    """The instant that it held at."""
    served: object
    """As `comparable` has it."""


class _Point(NamedTuple):
    """A key at an instant: all features of a view that were served of it, were served from the same events."""

    key: tuple[object, ...]
    t_us: int


def causes(
    plan: Plan, view: View, cases: Sequence[Case], *, repo: Path, in_flight_us: int = IN_FLIGHT_US
) -> list[Cause]:
    """The cause of each case: one read of the log as known, one of what keys hold that it does not explain.

    Raises SourceError and UsageError.
    """
    if view.source.created_field is None and view.source.topic is None:
        return [Cause.UNKNOWN] * len(cases)
    points = list(dict.fromkeys(_Point(case.key, case.t_us) for case in cases))
    place = {point: number for number, point in enumerate(points)}
    known = _as_known(plan, view, points, _features(cases), repo)
    found: list[Cause] = []
    left: dict[int, Case] = {}
    closely: Counter[str] = Counter()
    for number, case in enumerate(cases):
        if known[case.feature][place[_Point(case.key, case.t_us)]] == case.served:
            found.append(Cause.LATE_EVENT)
            continue
        found.append(Cause.UNKNOWN)
        closely[case.feature] += 1
        if closely[case.feature] <= _CASES:
            left[number] = case
    if left and view.source.topic is not None:
        for number in _in_flight(view, left, repo, in_flight_us):
            found[number] = Cause.IN_FLIGHT
    return found


def _features(cases: Iterable[Case]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(case.feature for case in cases))


def _as_known(
    plan: Plan, view: View, points: Sequence[_Point], features: tuple[str, ...], repo: Path
) -> dict[str, list[object]]:
    """By feature the value of each point as known at its instant."""
    read = historical_features(
        plan,
        [Projection(view=view.name, features=features)],
        _asked(view, points),
        repo=repo,
        as_known=view.source.created_field is not None,
        full_feature_names=True,
    )
    return {name: comparable(read[f"{view.name}__{name}"].combine_chunks()) for name in features}


def _asked(view: View, points: Sequence[_Point]) -> pa.Table:
    columns = {
        key.name: from_python([point.key[index] for point in points], key.dtype, name=key.name)
        for index, key in enumerate(view.join_keys)
    }
    return pa.table(columns | {_AT: pa.array([point.t_us for point in points], pa.int64()).cast(_TIMESTAMP)})


def _in_flight(view: View, cases: Mapping[int, Case], repo: Path, in_flight_us: int) -> Iterator[int]:
    """The numbers of the cases that were served without events that had arrived lately.

    Ways to leave events out are tried for all of them together, in a view that has the number of the try as one more
    key, over the events of their keys, which are read once.
    """
    points: dict[_Point, dict[int, Case]] = {}
    for number, case in cases.items():
        points.setdefault(_Point(case.key, case.t_us), {})[number] = case
    events = _Events.read(view, list(points), repo)
    if events is None:
        return
    tries = {point: events.ends(point, in_flight_us) for point in points}
    for some in (_FIRST, _TRIES - _FIRST):
        batch: list[_Try] = []
        for point in [point for point, left in points.items() if left]:
            for ends in islice(tries[point], some):
                batch.append(_Try(point, events.without(point, ends)))
                if sum(len(each.rows) for each in batch) > _AT_ONCE:
                    yield from _served_so(events, batch, points)
                    batch = []
        yield from _served_so(events, batch, points)


class _Try(NamedTuple):
    point: _Point
    rows: Ints


def _served_so(events: "_Events", tries: Sequence[_Try], points: Mapping[_Point, dict[int, Case]]) -> Iterator[int]:
    """The numbers of cases whose value is that of a try; they are taken from `points`."""
    if not tries:
        return
    features = _features(case for each in points.values() for case in each.values())
    values = events.values(tries, features)
    for number, each in enumerate(tries):
        left = points[each.point]
        for case_number in [n for n, case in left.items() if values[case.feature][number] == case.served]:
            del left[case_number]
            yield case_number


class _Events:
    """The events of some keys that their windows may hold, as the log has them."""

    def __init__(self, view: View, table: pa.Table, codes: Mapping[tuple[object, ...], int]) -> None:
        self._view = view
        self._table = table.drop_columns([_CODE, _ARRIVED])
        self._codes = codes
        code: Ints = table[_CODE].to_numpy()
        order = np.argsort(code, kind="stable")
        bounds = np.searchsorted(code[order], np.arange(len(codes) + 1))
        self._rows = [order[first:end] for first, end in pairwise(bounds.tolist())]
        self._arrival_us: Ints = table[_ARRIVED].to_numpy()
        self._offset: Ints = table[OFFSET].to_numpy()
        partitions = list(zip(table[TOPIC_ID].to_pylist(), table[PARTITION].to_pylist(), strict=True))
        self._names = list(dict.fromkeys(partitions))
        number = {name: place for place, name in enumerate(self._names)}
        self._partition: Ints = np.array([number[name] for name in partitions], np.int64)

    @classmethod
    def read(cls, view: View, points: Sequence[_Point], repo: Path) -> "_Events | None":
        """One read of the log; None where it has no events yet."""
        if not event_files(place_at(view.source.path, repo)):
            return None
        scan = scan_of(view, repo=repo)
        keys = list(dict.fromkeys(point.key for point in points))
        names = [f" k{index}" for index in range(len(view.join_keys))]
        instants = [point.t_us for point in points]
        wanted = {
            name: from_python([values[index] for values in keys], key.dtype, name=key.name)
            for index, (key, name) in enumerate(zip(view.join_keys, names, strict=True))
        }
        same = []
        for key, name in zip(view.join_keys, names, strict=True):
            column = stored_name(view, key.name)
            sql = entity_key(column, scan.column(column, role="join key"), key.dtype, place=scan.name)
            same.append(f"{sql} = w.{identifier(name)}")
        arrival = instant(ARRIVAL, scan.column(ARRIVAL, role="arrival column"), place=scan.name)
        columns = ", ".join(
            f"e.{identifier(name)}" for name in dict.fromkeys([*needed_columns(view), *PROVENANCE.names])
        )
        with connection(Limits()) as session:
            session.register("wanted", pa.table({_CODE: np.arange(len(keys)), **wanted}))
            source = scan.register(session, "events")
            table = session.sql(
                f"SELECT {columns}, {arrival} AS {identifier(_ARRIVED)}, w.{identifier(_CODE)} FROM "
                f"(SELECT * FROM {source} WHERE {within(view, scan, (min(instants), max(instants)))}) e "
                f"JOIN wanted w ON {' AND '.join(same) or 'TRUE'}"
            ).to_arrow_table()
        return cls(view, table, {key: code for code, key in enumerate(keys)})

    def ends(self, point: _Point, in_flight_us: int) -> Iterator[dict[int, int]]:
        """Ways to leave out events that had arrived lately: by partition the offset from which on they are left out."""
        rows = self._rows[self._codes[point.key]]
        arrived = self._arrival_us[rows]
        recent = rows[(arrived > point.t_us - in_flight_us) & (arrived <= point.t_us)]
        recent = recent[np.lexsort((-self._offset[recent], -self._arrival_us[recent]))]
        return _ends(list(zip(self._partition[recent].tolist(), self._offset[recent].tolist(), strict=True)))

    def without(self, point: _Point, ends: Mapping[int, int]) -> Ints:
        """The rows of a key's events that are left."""
        rows = self._rows[self._codes[point.key]]
        kept = self._arrival_us[rows] <= point.t_us
        for partition, end in ends.items():
            kept &= (self._partition[rows] != partition) | (self._offset[rows] < end)
        left: Ints = rows[kept]
        return left

    def values(self, tries: Sequence[_Try], features: tuple[str, ...]) -> dict[str, list[object]]:
        """By feature the value of each try."""
        view = msgspec.structs.replace(self._view, join_keys=(*self._view.join_keys, _NUMBER))
        number = np.repeat(np.arange(len(tries)), [len(each.rows) for each in tries])
        table = self._table.take(pa.array(np.concatenate([each.rows for each in tries])))
        asked = _asked(self._view, [each.point for each in tries])
        found = windowed_values(
            view,
            Projection(view=view.name, features=features),
            scan_table(table.append_column(_NUMBER.name, pa.array(number)), name=f"events of view {view.name!r}"),
            EntityRows(asked.append_column(_NUMBER.name, pa.array(np.arange(len(tries)))), _AT),
            as_known=self._view.source.created_field is not None,
        )
        types = {field.name: field.dtype for field in view.features}
        return {name: comparable(to_column(found[name], types[name], name=name)) for name in features}


def _ends(recent: Sequence[tuple[int, int]]) -> Iterator[dict[int, int]]:
    """By partition an offset, from which on events were in flight; what takes away least comes first.

    >>> list(_ends([(0, 8), (0, 7)]))
    [{0: 8}, {0: 7}]
    """
    cuts: dict[int, list[int]] = {}
    for partition, offset in recent:
        cuts.setdefault(partition, []).append(offset)
    # In the order of offsets, whatever the arrivals: a partition is committed in that order.
    choices = [
        [(partition, None), *((partition, cut) for cut in sorted(found, reverse=True))]
        for partition, found in cuts.items()
    ]
    for chosen in product(*choices):
        ends = {partition: cut for partition, cut in chosen if cut is not None}
        if ends:
            yield ends
