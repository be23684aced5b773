"""Why does a served windowed value differ? The event log says, read as it was known.

Served is what was committed. As known at t the log holds what had arrived by t: equal to that, only events that came
later tell served from offline. Else the newest events of the key that had arrived are taken away one by one, in every
partition; a value that is served without some of them was served while they were in flight.
"""

from collections.abc import Iterator, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa

from featurestore.monitor.causes import Cause
from featurestore.monitor.parity import comparable
from featurestore.offline.connection import Limits, connection
from featurestore.offline.event_log import ARRIVAL, OFFSET, PARTITION, TOPIC_ID, OffsetRange, event_files
from featurestore.offline.history import historical_features
from featurestore.offline.sources import place_at
from featurestore.offline.sql_types import entity_key, identifier, instant, literal
from featurestore.offline.stored import scan_of, stored_names
from featurestore.plan import Plan, Projection, View

IN_FLIGHT_US: Final = 60_000_000
"""How long an event may have arrived, and not be committed, to be called in flight."""
_TRIES: Final = 64
"""Ways to leave events out that are tried for one case."""
_CASES: Final = 256
"""Cases that are looked at so closely; of a fault that breaks more, these say enough."""
_AT: Final = "event_timestamp"
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


def causes(
    plan: Plan, view: View, cases: Sequence[Case], *, repo: Path, in_flight_us: int = IN_FLIGHT_US
) -> list[Cause]:
    """The cause of each case. Raises SourceError and UsageError."""
    if view.source.created_field is None and view.source.topic is None:
        return [Cause.UNKNOWN] * len(cases)
    reread = _Reread(plan, view, repo)
    known = reread.values(cases, None)
    found = []
    for number, (case, value) in enumerate(zip(cases, known, strict=True)):
        if value == case.served:
            found.append(Cause.LATE_EVENT)
        elif number < _CASES and _was_in_flight(reread, case, in_flight_us):
            found.append(Cause.IN_FLIGHT)
        else:
            found.append(Cause.UNKNOWN)
    return found


class _Reread:
    """Reads the features of a view again, as known, from all of its log or from parts of it."""

    def __init__(self, plan: Plan, view: View, repo: Path) -> None:
        self.view = view
        self.repo = repo
        self._plan = plan
        files = event_files(place_at(view.source.path, repo)) if view.source.topic is not None else ()
        self.partitions = sorted({(file.range.topic_id, file.range.partition) for file in files})

    def values(self, cases: Sequence[Case], ends: dict[tuple[str, int], int] | None) -> list[object]:
        """The value of each case as known at its instant; `ends`: of some partitions only what lies before."""
        pins = None
        if ends is not None:
            ranges = [
                OffsetRange(topic, partition, 0, ends.get((topic, partition), 1 << 62) - 1)
                for topic, partition in self.partitions
            ]
            pins = {self.view.source.name: ranges}
        features = tuple(dict.fromkeys(case.feature for case in cases))
        columns: dict[str, Any] = {
            key.name: [case.key[index] for case in cases] for index, key in enumerate(self.view.join_keys)
        }
        columns[_AT] = pa.array([case.t_us for case in cases], pa.int64()).cast(_TIMESTAMP)
        read = historical_features(
            self._plan,
            [Projection(view=self.view.name, features=features)],
            pa.table(columns),
            repo=self.repo,
            as_known=self.view.source.created_field is not None,
            full_feature_names=True,
            pins=pins,
        )
        by_feature = {name: comparable(read[f"{self.view.name}__{name}"].combine_chunks()) for name in features}
        return [by_feature[case.feature][place] for place, case in enumerate(cases)]

    def recent(self, case: Case, since_us: int) -> list[tuple[tuple[str, int], int]]:
        """(partition, offset) of the key's events that arrived within (since, t], newest arrival first."""
        view, stored = self.view, stored_names(self.view)
        scan = scan_of(view, repo=self.repo)
        arrival = instant(ARRIVAL, scan.column(ARRIVAL, role="arrival column"), place=scan.name)
        where = [f"{arrival} > {since_us}", f"{arrival} <= {case.t_us}"]
        for key, value in zip(view.join_keys, case.key, strict=True):
            column = stored.get(key.name, key.name)
            sql = entity_key(column, scan.column(column, role="join key"), key.dtype, place=scan.name)
            where.append(f"{sql} = {_literal(value)}")
        topic, partition, offset = map(identifier, (TOPIC_ID, PARTITION, OFFSET))
        with connection(Limits()) as session:
            source = scan.register(session, "events")
            rows = session.sql(
                f"SELECT {topic}, {partition}, {offset} FROM {source} WHERE {' AND '.join(where)} "
                f"ORDER BY {arrival} DESC, {offset} DESC"
            ).to_arrow_table()
        return [((row[TOPIC_ID], row[PARTITION]), row[OFFSET]) for row in rows.to_pylist()]


def _was_in_flight(reread: _Reread, case: Case, in_flight_us: int) -> bool:
    recent = reread.recent(case, case.t_us - in_flight_us) if reread.partitions else []
    return any(reread.values([case], ends) == [case.served] for ends in islice(_ends(recent), _TRIES))


def _ends(recent: Sequence[tuple[tuple[str, int], int]]) -> Iterator[dict[tuple[str, int], int]]:
    """By partition an offset, from which on events were in flight; what takes away least comes first.

    >>> list(_ends([(("t", 0), 8), (("t", 0), 7)]))
    [{('t', 0): 8}, {('t', 0): 7}]
    """
    cuts: dict[tuple[str, int], list[int]] = {}
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


def _literal(value: object) -> str:
    if isinstance(value, bytes):
        return f"from_hex({literal(value.hex())})"
    return literal(value) if isinstance(value, str) else str(value)
