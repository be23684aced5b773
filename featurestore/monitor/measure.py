"""How old is what is served, how late does it arrive, how much of it comes? Cases of objectives, from what is kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from featurestore.errors import DefinitionError
from featurestore.monitor.served import REQUESTED, event_column, read_served
from featurestore.monitor.slo import Cases, Objective, cases_of_volume, cases_within
from featurestore.offline.connection import Limits, connection
from featurestore.offline.event_log import event_files
from featurestore.offline.sources import place_at, plain_files
from featurestore.offline.sql_types import earliest, instant, latest
from featurestore.offline.stored import scan_of, stored_names
from featurestore.plan import View

_FAR_US: Final = 30 * 86_400_000_000
"""Rows whose event time lies this far before their arrival are not looked for: reading all history would be."""


def cases_of(objective: Objective, view: View, *, log: Path, repo: Path, start_us: int, end_us: int) -> list[Cases]:
    """The cases of an objective of a view at start <= t < end.

    Freshness is told by the serve log, arrival and volume by the view's source. Raises SourceError where these cannot
    be read, DefinitionError where arrival is asked of a source without a created column.
    """
    if objective.indicator == "freshness":
        return _freshness(objective, view, log, start_us, end_us)
    arrived_us, event_us = _arrivals(view, repo, start_us, end_us)
    if objective.indicator == "volume":
        return cases_of_volume(arrived_us, objective.limit, start_us, end_us)
    return cases_within(arrived_us, arrived_us - event_us, objective.limit)


def _freshness(objective: Objective, view: View, log: Path, start_us: int, end_us: int) -> list[Cases]:
    at, ages = [], []
    for shape, table in read_served(log, start_us, end_us):
        requested = table[REQUESTED].to_numpy()
        for projection in shape.reads:
            if projection.view == view.name:
                event = table[event_column(projection.name)].to_numpy()
                # A key without a row has no age: that is a matter of NOT_FOUND.
                at.append(requested[event != 0])
                ages.append((requested - event)[event != 0])
    return cases_within(np.concatenate(at), np.concatenate(ages), objective.limit) if at else []


def _arrivals(view: View, repo: Path, start_us: int, end_us: int) -> tuple[np.ndarray, np.ndarray]:
    """Arrival and event time of the rows that arrived at start <= t < end; without arrivals, event times twice."""
    none = np.zeros(0, np.int64)
    place = place_at(view.source.path, repo)
    if view.source.topic is not None and not event_files(place) and not plain_files(place):
        return none, none
    scan, stored = scan_of(view, repo=repo), stored_names(view)
    event = stored.get(view.source.timestamp_field, view.source.timestamp_field)
    event_type = scan.column(event, role="timestamp column")
    ts = instant(event, event_type, place=scan.name)
    arrived, bounds = ts, [earliest(event, event_type, start_us), latest(event, event_type, end_us)]
    if view.source.created_field is not None:
        created = stored.get(view.source.created_field, view.source.created_field)
        created_type = scan.column(created, role="created timestamp column")
        arrived = instant(created, created_type, place=scan.name)
        bounds = [
            earliest(created, created_type, start_us),
            latest(created, created_type, end_us),
            earliest(event, event_type, start_us - _FAR_US),
        ]
    where = [f"{arrived} >= {start_us}", f"{arrived} < {end_us}", f"{ts} IS NOT NULL", *filter(None, bounds)]
    with connection(Limits()) as session:
        source = scan.register(session, "source")
        found: pa.Table = session.sql(
            f"SELECT {arrived} AS a, {ts} AS t FROM {source} WHERE {' AND '.join(where)}"
        ).to_arrow_table()
    return found["a"].to_numpy(), found["t"].to_numpy()


def check_objectives(view: View, objectives: Sequence[Objective]) -> None:
    """Raises DefinitionError where arrival is asked of a source that does not say when its rows arrived."""
    if view.source.created_field is None and any(each.indicator == "arrival" for each in objectives):
        raise DefinitionError(
            f"view {view.name!r}: tag arrival_slo_s needs to know when rows arrived, and source {view.source.name!r} "
            "names no created timestamp column; declare one"
        )
