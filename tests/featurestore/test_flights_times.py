"""Local clock times become the right instants, across zones, midnights and daylight saving."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.demo.civil_time import (
    DAY_US,
    HOUR_US,
    MINUTE_US,
    WEEK_US,
    civil,
    instants,
    next_time,
    wall_us,
)
from featurestore.demo.movements import movements

ZONES = ["America/New_York", "America/Phoenix", "Pacific/Honolulu", "Australia/Lord_Howe", "Asia/Kathmandu"]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def us(*moment: int) -> int:
    """An instant in UTC, microseconds."""
    return (datetime(*moment, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)


def array(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


walls = st.integers(wall_us(2012, 1, 1), wall_us(2030, 1, 1))


@given(st.lists(walls, min_size=1, max_size=20), st.sampled_from(ZONES))
def test_instants_follow_the_zone_rules(wall: list[int], zone: str) -> None:
    """Every wall time becomes what zoneinfo says of it, one by one."""
    naive = [datetime(1970, 1, 1) + timedelta(microseconds=value) for value in wall]
    expected = [(moment.replace(tzinfo=ZoneInfo(zone)) - EPOCH) // timedelta(microseconds=1) for moment in naive]
    assert instants(array(*wall), zone).tolist() == expected


@given(st.lists(walls, min_size=1, max_size=20), st.sampled_from(ZONES))
def test_an_instant_survives_the_way_over_the_wall(instant: list[int], zone: str) -> None:
    """civil and instants are inverse, given which occurrence of a repeated time was meant."""
    wall = civil(array(*instant), zone)
    second = instants(wall, zone) != array(*instant)
    assert instants(wall, zone, second=second).tolist() == instant


def test_a_repeated_hour_has_two_instants() -> None:
    """01:30 on 2013-11-03 in New York was first EDT, then EST."""
    wall = array(wall_us(2013, 11, 3) + HOUR_US + 30 * MINUTE_US)
    assert instants(wall, "America/New_York").tolist() == [us(2013, 11, 3, 5, 30)]
    assert instants(wall, "America/New_York", second=np.array([True])).tolist() == [us(2013, 11, 3, 6, 30)]


def test_a_skipped_hour_is_read_by_the_clock_before() -> None:
    """02:30 on 2013-03-10 never showed in New York; asking for its second occurrence changes nothing."""
    wall = array(wall_us(2013, 3, 10) + 2 * HOUR_US + 30 * MINUTE_US)
    assert instants(wall, "America/New_York").tolist() == [us(2013, 3, 10, 7, 30)]
    assert instants(wall, "America/New_York", second=np.array([True])).tolist() == [us(2013, 3, 10, 7, 30)]


@given(walls, st.integers(0, DAY_US // MINUTE_US), st.sampled_from(ZONES))
def test_next_time_is_the_first_moment_that_shows_it(after: int, minute: int, zone: str) -> None:
    """The clock shows the time at the answer, which lies after the start and at most a day and a change later."""
    found = int(next_time(array(after), array(minute * MINUTE_US), zone)[0])
    assert after < found <= after + DAY_US + 2 * HOUR_US
    shown = int(civil(array(found), zone)[0]) % DAY_US
    gap = shown != minute * MINUTE_US % DAY_US
    # Only a time that the clocks skipped may show as another, later by the change.
    assert not gap or (shown - minute * MINUTE_US) % DAY_US in (HOUR_US, 30 * MINUTE_US)


def flight(**changed: object) -> pa.Table:
    """One row of the package's flights: UA 1545 of New Year's Day, EWR 05:15 to IAH 08:19, 2 and 11 minutes late."""
    row: dict[str, object] = {
        "month": 1, "day": 1, "dep_time": 517, "sched_dep_time": 515, "dep_delay": 2.0, "arr_time": 830,
        "sched_arr_time": 819, "arr_delay": 11.0, "dest": "IAH", "air_time": 227.0,
    } | changed  # fmt: skip
    types = {"dep_delay": pa.float64(), "arr_delay": pa.float64(), "air_time": pa.float64(), "dest": pa.string()}
    return pa.table({name: pa.array([value], types.get(name, pa.int64())) for name, value in row.items()})


ZONE_OF = {"IAH": "America/Chicago", "PHX": "America/Phoenix", "PBI": "America/New_York", "SJU": "America/Puerto_Rico"}


def test_departure_and_arrival_are_each_in_their_own_zone() -> None:
    """05:17 in New York is 10:17 UTC; 08:30 in Houston is 14:30 UTC."""
    moved = movements(flight(), ZONE_OF, weeks=0)
    assert moved.scheduled_us.tolist() == [us(2013, 1, 1, 10, 15)]
    assert moved.departed_us.tolist() == [us(2013, 1, 1, 10, 17)]
    assert moved.arrived_us.tolist() == [us(2013, 1, 1, 14, 30)]


def test_a_delay_may_cross_midnight() -> None:
    """Scheduled 23:59, three hours late: it left on the next day, and arrived on it."""
    late = flight(sched_dep_time=2359, dep_time=259, dep_delay=180.0, sched_arr_time=300, arr_time=555, arr_delay=175.0)
    moved = movements(late, ZONE_OF, weeks=0)
    assert moved.departed_us.tolist() == [us(2013, 1, 2, 7, 59)]
    assert moved.arrived_us.tolist() == [us(2013, 1, 2, 11, 55)]


def test_2400_is_the_midnight_that_ends_the_day() -> None:
    """Clock times of 2400 are those of the following midnight."""
    midnight = flight(
        sched_dep_time=2355, dep_time=2400, dep_delay=5.0, sched_arr_time=230, arr_time=2400, arr_delay=None
    )
    moved = movements(midnight, ZONE_OF, weeks=0)
    assert moved.departed_us.tolist() == [us(2013, 1, 2, 5)]
    # Diverted: it arrived when Houston's clocks next showed midnight, an hour after New York's.
    assert moved.arrived_us.tolist() == [us(2013, 1, 2, 6)]


def test_a_flight_through_the_night_of_the_change_keeps_its_elapsed_time() -> None:
    """B6 35 on 2013-03-09: due 00:34, 89 minutes late, across the missing hour; the delay is elapsed time."""
    night = flight(
        month=3, day=9, sched_dep_time=2145, dep_time=2306, dep_delay=81.0, sched_arr_time=34, arr_time=203,
        arr_delay=89.0, dest="PBI",
    )  # fmt: skip
    assert movements(night, ZONE_OF, weeks=0).arrived_us.tolist() == [us(2013, 3, 10, 7, 3)]


def test_a_cancelled_flight_neither_left_nor_arrived() -> None:
    """No departure time means no departure, and no arrival."""
    cancelled = flight(dep_time=None, dep_delay=None, arr_time=None, arr_delay=None, air_time=None)
    moved = movements(cancelled, ZONE_OF, weeks=0)
    assert (moved.departed.tolist(), moved.arrived.tolist()) == ([False], [False])


@pytest.mark.parametrize("weeks", [1, 10, 30, 673])
def test_a_replayed_flight_keeps_local_hour_weekday_and_duration(weeks: int) -> None:
    """Whole weeks on New York's clocks: 07:00 stays 07:00 under any daylight saving, and a flight to Phoenix (which
    has none) takes as long as it took."""
    july = flight(month=7, day=5, sched_dep_time=700, dep_time=700, dep_delay=0.0, sched_arr_time=915, dest="PHX")
    was, moved = (movements(july, ZONE_OF, weeks=count) for count in (0, weeks))
    assert (moved.wall_us - was.wall_us).tolist() == [weeks * WEEK_US]
    shown = civil(moved.scheduled_us, "America/New_York")
    assert (shown % DAY_US).tolist() == [7 * HOUR_US]
    assert (moved.arrived_us - moved.departed_us).tolist() == (was.arrived_us - was.departed_us).tolist()


def test_moving_instants_instead_of_clocks_would_be_seen() -> None:
    """The planted fault: weeks added to the instant shift the local hour once daylight saving has changed."""
    july = movements(flight(month=7, day=5, sched_dep_time=700), ZONE_OF, weeks=0)
    wrong = civil(july.scheduled_us + 26 * WEEK_US, "America/New_York")
    assert (wrong % DAY_US).tolist() == [6 * HOUR_US]
