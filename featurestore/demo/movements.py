"""When did each flight leave and arrive?

The package gives local clock times without dates, and delays. A scheduled departure is dated in New York's zone; the
scheduled arrival is the first moment after it at which the destination's clocks show the arrival time (no flight is
scheduled for a day: 50 to 700 minutes). Actual times are schedule plus delay in elapsed minutes. Checked on every row:
what lies between departure and arrival exceeds `air_time` by 5 to 235 minutes of taxiing, and the clock times of the
package follow, but for one arrival on the night of 2013-03-10 (B6 35) whose recorded 02:03 no clock ever showed.

Diverted flights have no arrival delay. Where an arrival time is recorded (717), the flight arrived when the
destination's clocks next showed it; where none is (458), it never arrived. Cancelled flights (8,255) never left.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.demo.civil_time import DAY_US, HOUR_US, MINUTE_US, WEEK_US, Microseconds, instants, next_time, wall_us
from featurestore.demo.recorded import HOME_ZONE, YEAR

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Movements:
    """Instants by flight, in the order of the flights; a time is without meaning where its mask is false."""

    wall_us: Microseconds
    """Scheduled departure on New York's clocks, civil microseconds."""
    scheduled_us: Microseconds
    departed_us: Microseconds
    departed: Mask
    arrived_us: Microseconds
    arrived: Mask


def movements(flights: pa.Table, zones: Mapping[str, str], *, weeks: int) -> Movements:
    """The year's movements, replayed `weeks` later on New York's clocks (0: as recorded).

    `zones` names the zone of every destination. A replayed flight leaves at its recorded local time and weekday
    and takes the time that it took: duration is recorded, the clock shown on arrival is not.
    """
    column = {name: flights.column(name) for name in flights.column_names}
    wall = _midnights(column["month"], column["day"]) + _clock_us(column["sched_dep_time"])
    dep_delay, arr_delay = _minutes(column["dep_delay"]), _minutes(column["arr_delay"])
    departed, arrived = _valid(column["dep_time"]), _valid(column["arr_time"])
    recorded = instants(wall, HOME_ZONE)
    took = _durations(column, zones, recorded, dep_delay, arr_delay)
    scheduled = instants(wall + weeks * WEEK_US, HOME_ZONE)
    return Movements(
        wall_us=wall + weeks * WEEK_US,
        scheduled_us=scheduled,
        departed_us=scheduled + dep_delay,
        departed=departed,
        arrived_us=scheduled + dep_delay + took,
        arrived=departed & arrived,
    )


def _durations(
    column: Mapping[str, pa.ChunkedArray],
    zones: Mapping[str, str],
    scheduled_us: Microseconds,
    dep_delay_us: Microseconds,
    arr_delay_us: Microseconds,
) -> Microseconds:
    """Microseconds from departure to arrival as recorded in 2013; zero where the flight did not arrive."""
    zone_of = np.array([zones[dest] for dest in column["dest"].to_pylist()])
    regular, arrived = _valid(column["arr_delay"]), _valid(column["arr_time"])
    sched_clock, clock = _clock_us(column["sched_arr_time"]), _clock_us(column["arr_time"])
    departed_us = scheduled_us + dep_delay_us
    took = np.zeros(len(scheduled_us), dtype=np.int64)
    for zone in np.unique(zone_of):
        on_time = np.flatnonzero((zone_of == zone) & regular)
        sched_arrival = next_time(scheduled_us[on_time], sched_clock[on_time], str(zone))
        took[on_time] = sched_arrival + arr_delay_us[on_time] - departed_us[on_time]
        diverted = np.flatnonzero((zone_of == zone) & arrived & ~regular)
        took[diverted] = next_time(departed_us[diverted], clock[diverted], str(zone)) - departed_us[diverted]
    return took


def _midnights(month: pa.ChunkedArray, day: pa.ChunkedArray) -> Microseconds:
    firsts = np.array([0, *(wall_us(YEAR, number, 1) for number in range(1, 13))], dtype=np.int64)
    midnights: Microseconds = firsts[month.to_numpy()] + (day.to_numpy() - 1) * DAY_US
    return midnights


def _clock_us(hhmm: pa.ChunkedArray) -> Microseconds:
    """Time of day from the package's HHMM numbers (2400 is midnight, null is 0)."""
    number = pc.fill_null(hhmm, 0).to_numpy()
    clock: Microseconds = number // 100 * HOUR_US + number % 100 * MINUTE_US
    return clock


def _minutes(delay: pa.ChunkedArray) -> Microseconds:
    minutes: Microseconds = (pc.fill_null(delay, 0.0).to_numpy() * MINUTE_US).astype(np.int64)
    return minutes


def _valid(values: pa.ChunkedArray) -> Mask:
    mask: Mask = pc.is_valid(values).to_numpy()
    return mask
