"""Which tables would New York's airports have kept, had the year ended now?

The recorded year is moved by whole weeks on New York's clocks, so that weekdays and local hours stay across daylight
saving, and cut at `now`: what lies later is not history yet, it is there to be replayed as it comes due.

A weather reading is known 5 minutes after its hour. Where the move makes two readings of one airport fall on one
instant (the recorded year's repeated hour, or the replayed year's missing one), the later reading stands as a
correction, known an hour after the first. Readings are kept as recorded, one of 1,048 mph included: that is for the
data contract to find. Two routes (EGE) change their distance within the year, so a route has a row for each change.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.demo.civil_time import DAY_US, HOUR_US, MINUTE_US, WEEK_US, Microseconds, civil, instants, wall_us
from featurestore.demo.movements import Mask, Movements, movements
from featurestore.demo.recorded import HOME_ZONE, YEAR, Recorded

PUBLICATION_DELAY_US = 5 * MINUTE_US
CORRECTION_DELAY_US = HOUR_US
LATE_MIN = 15.0
"""A flight is late when it is more than this behind schedule."""

_TIMESTAMP = pa.timestamp("us", "UTC")
_WEATHER = {
    "temp_f": "temp",
    "dewp_f": "dewp",
    "humid_pct": "humid",
    "wind_dir_deg": "wind_dir",
    "wind_speed_mph": "wind_speed",
    "wind_gust_mph": "wind_gust",
    "precip_in": "precip",
    "pressure_mb": "pressure",
    "visib_mi": "visib",
}


@dataclass(frozen=True)
class History:
    """What is known at `now_us`; tables with `event_timestamp`s in UTC microseconds, ascending."""

    now_us: int
    weeks: int
    """How far the recorded year was moved; 0 is as recorded."""
    weather: pa.Table
    planes: pa.Table
    routes: pa.Table
    departures: pa.Table
    """One row per event, with the columns of the topic's messages."""
    arrivals: pa.Table
    schedule: pa.Table
    """Every scheduled flight of the year; `late`, `cancelled`, `dep_delay_min` are null while not known."""
    upcoming_departures: pa.Table
    """Events after `now_us`, for a live replay."""
    upcoming_arrivals: pa.Table


def weeks_until(now_us: int) -> int:
    """By how many weeks the recorded year must move to end within the seven days after `now_us`.

    >>> weeks_until(recorded_end_us())
    0
    >>> weeks_until(recorded_end_us() + 1)
    1
    """
    now_wall = int(civil(np.array([now_us], dtype=np.int64), HOME_ZONE)[0])
    return -((wall_us(YEAR + 1, 1, 1) - now_wall) // WEEK_US)


def recorded_end_us() -> int:
    """The instant at which the recorded year ended in New York."""
    return int(instants(np.array([wall_us(YEAR + 1, 1, 1)], dtype=np.int64), HOME_ZONE)[0])


def history(recorded: Recorded, *, now_us: int, weeks: int) -> History:
    """The tables of the year, moved by `weeks` on New York's clocks and cut at `now_us`."""
    zones = dict(zip(recorded.airports["faa"].to_pylist(), recorded.airports["tzone"].to_pylist(), strict=True))
    moved = movements(recorded.flights, zones, weeks=weeks)
    departures = _departures(recorded.flights, moved)
    arrivals = _arrivals(recorded.flights, moved)
    year_start = instants(np.array([wall_us(YEAR, 1, 1) + weeks * WEEK_US], dtype=np.int64), HOME_ZONE)
    return History(
        now_us=now_us,
        weeks=weeks,
        weather=_until(_weather(recorded.weather, weeks), "created", now_us),
        planes=_planes(recorded.planes, int(year_start[0])),
        routes=_until(_routes(recorded, moved, int(year_start[0])), "created", now_us),
        departures=_until(departures, "event_timestamp", now_us),
        arrivals=_until(arrivals, "event_timestamp", now_us),
        schedule=_schedule(recorded.flights, moved, now_us),
        upcoming_departures=_after(departures, now_us),
        upcoming_arrivals=_after(arrivals, now_us),
    )


def course_deg(
    lat: npt.NDArray[np.float64],
    lon: npt.NDArray[np.float64],
    to_lat: npt.NDArray[np.float64],
    to_lon: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Initial bearing of the great circle, degrees clockwise from north, in [0, 360).

    >>> course_deg(np.array([0.0]), np.array([0.0]), np.array([0.0]), np.array([-10.0])).tolist()
    [270.0]
    """
    here, there, east = np.radians(lat), np.radians(to_lat), np.radians(to_lon - lon)
    ahead = np.cos(here) * np.sin(there) - np.sin(here) * np.cos(there) * np.cos(east)
    bearing: npt.NDArray[np.float64] = np.degrees(np.arctan2(np.sin(east) * np.cos(there), ahead)) % 360.0
    return bearing


def _weather(weather: pa.Table, weeks: int) -> pa.Table:
    recorded_us = pc.cast(weather["time_hour"], _TIMESTAMP).cast(pa.int64()).to_numpy()
    order = np.lexsort((recorded_us, weather["origin"].to_numpy(zero_copy_only=False)))
    weather, recorded_us = weather.take(order), recorded_us[order]
    wall = civil(recorded_us, HOME_ZONE)
    second = instants(wall, HOME_ZONE) != recorded_us
    event_us = instants(wall + weeks * WEEK_US, HOME_ZONE, second=second)
    origin = weather["origin"].combine_chunks()
    collides = np.zeros(len(event_us), dtype=np.bool_)
    collides[1:] = (event_us[1:] == event_us[:-1]) & pc.equal(origin[1:], origin[:-1]).to_numpy(zero_copy_only=False)
    created_us = event_us + PUBLICATION_DELAY_US + np.where(collides, CORRECTION_DELAY_US, 0)
    table = pa.table(
        {"origin": origin, "event_timestamp": _timestamps(event_us), "created": _timestamps(created_us)}
        | {name: weather[column] for name, column in _WEATHER.items()}
    )
    return table.sort_by([("event_timestamp", "ascending"), ("origin", "ascending"), ("created", "ascending")])


def _planes(planes: pa.Table, year_start_us: int) -> pa.Table:
    start = _timestamps(np.full(planes.num_rows, year_start_us, dtype=np.int64))
    kept = ("year", "engines", "seats", "manufacturer", "model", "engine")
    columns = {"tailnum": planes["tailnum"], "event_timestamp": start, "created": start}
    return pa.table(columns | {name: planes[name] for name in kept})


def _routes(recorded: Recorded, moved: Movements, year_start_us: int) -> pa.Table:
    """A row per route from the start of the year, and one from the local midnight of each change of distance."""
    flights, airports = recorded.flights, recorded.airports
    route = _route(flights).to_numpy(zero_copy_only=False)
    distance = flights["distance"].to_numpy()
    order = np.lexsort((moved.scheduled_us, route))
    route, distance, wall = route[order], distance[order], moved.wall_us[order]
    first = np.ones(len(route), dtype=np.bool_)
    first[1:] = route[1:] != route[:-1]
    changed = first.copy()
    changed[1:] |= distance[1:] != distance[:-1]
    midnight = instants(wall[changed] // DAY_US * DAY_US, HOME_ZONE)
    start_us = _timestamps(np.where(first[changed], year_start_us, midnight))
    where = {faa: row for row, faa in enumerate(airports["faa"].to_pylist())}
    ends = [name.split("-") for name in route[changed]]
    here, there = (np.array([where[end[side]] for end in ends]) for side in (0, 1))
    lat, lon = airports["lat"].to_numpy(), airports["lon"].to_numpy()
    table = pa.table(
        {
            "route": pa.array(route[changed], pa.string()),
            "event_timestamp": start_us,
            "created": start_us,
            "distance_mi": distance[changed],
            "course_deg": course_deg(lat[here], lon[here], lat[there], lon[there]),
        }
    )
    return table.sort_by([("event_timestamp", "ascending"), ("route", "ascending")])


def _departures(flights: pa.Table, moved: Movements) -> pa.Table:
    table = pa.table(
        {
            "event_id": _event_ids(flights, moved),
            "event_timestamp": _timestamps(moved.departed_us),
            **_names(flights),
            "scheduled": _timestamps(moved.scheduled_us),
            "dep_delay_min": flights["dep_delay"],
            "late": _late(flights["dep_delay"]),
            "distance_mi": flights["distance"],
        }
    )
    return _events(table, moved.departed)


def _arrivals(flights: pa.Table, moved: Movements) -> pa.Table:
    table = pa.table(
        {
            "event_id": _event_ids(flights, moved),
            "event_timestamp": _timestamps(moved.arrived_us),
            **_names(flights),
            "arr_delay_min": flights["arr_delay"],
            "air_time_min": flights["air_time"],
            "late": _late(flights["arr_delay"]),
        }
    )
    return _events(table, moved.arrived)


def _schedule(flights: pa.Table, moved: Movements, now_us: int) -> pa.Table:
    gone = pa.array(moved.departed & (moved.departed_us <= now_us))
    settled = pa.array(
        (moved.departed & (moved.departed_us <= now_us)) | (~moved.departed & (moved.scheduled_us <= now_us))
    )
    delay = pc.if_else(gone, flights["dep_delay"], pa.scalar(None, pa.float64()))
    table = pa.table(
        {
            "event_id": _event_ids(flights, moved),
            "scheduled": _timestamps(moved.scheduled_us),
            **_names(flights),
            "sched_hour": moved.wall_us % DAY_US // HOUR_US,
            # 1970-01-01 was a Thursday; Monday is 0.
            "sched_weekday": (moved.wall_us // DAY_US + 3) % 7,
            "planned_distance_mi": flights["distance"],
            "dep_delay_min": delay,
            "late": _late(delay),
            "cancelled": pc.if_else(settled, pa.array(~moved.departed), pa.scalar(None, pa.bool_())),
        }
    )
    return table.sort_by([("scheduled", "ascending"), ("event_id", "ascending")])


def _names(flights: pa.Table) -> dict[str, pa.ChunkedArray]:
    return {
        "origin": flights["origin"],
        "dest": flights["dest"],
        "route": _route(flights),
        "carrier": flights["carrier"],
        "tailnum": flights["tailnum"],
        "flight": flights["flight"],
    }


def _route(flights: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(flights["origin"], flights["dest"], "-")


def _event_ids(flights: pa.Table, moved: Movements) -> pa.ChunkedArray:
    """Local date, carrier, flight number and origin: unique within the year, the same in every replay of that week."""
    day = pc.strftime(pa.array(moved.wall_us, pa.timestamp("us")), "%Y-%m-%d")
    number = pc.cast(flights["flight"], pa.string())
    return pc.binary_join_element_wise(pa.chunked_array([day]), flights["carrier"], number, flights["origin"], "-")


def _late(delay_min: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.cast(pc.greater(delay_min, LATE_MIN), pa.int64())


def _events(table: pa.Table, happened: Mask) -> pa.Table:
    return table.filter(pa.array(happened)).sort_by([("event_timestamp", "ascending"), ("event_id", "ascending")])


def _timestamps(instant_us: Microseconds) -> pa.Array:
    return pa.array(instant_us, pa.int64()).cast(_TIMESTAMP)


def _until(table: pa.Table, column: str, now_us: int) -> pa.Table:
    return table.filter(pc.less_equal(table[column], pa.scalar(now_us, _TIMESTAMP)))


def _after(table: pa.Table, now_us: int) -> pa.Table:
    return table.filter(pc.greater(table["event_timestamp"], pa.scalar(now_us, _TIMESTAMP)))
