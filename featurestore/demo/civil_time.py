"""Which instant does a clock on the wall show?

Wall-clock times are int64 microseconds since 1970-01-01T00:00 on that wall (*civil* microseconds); instants are
int64 microseconds since the epoch in UTC. A week added to a civil time keeps weekday and hour, whatever daylight
saving does in between; a week added to an instant does not.
"""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

Microseconds = npt.NDArray[np.int64]

MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US
WEEK_US = 7 * DAY_US

# No zone has changed its offset at any other moment than a full quarter of an hour since 1972.
_QUARTER_US = 15 * MINUTE_US
_WALL_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - a wall clock has no zone; `instants` gives it one
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instants(civil_us: Microseconds, zone: str, *, second: npt.NDArray[np.bool_] | None = None) -> Microseconds:
    """The instants at which clocks in `zone` show `civil_us`, element by element.

    Where a wall time occurs twice (clocks set back), the first is meant, or the second where `second` is true.
    A wall time that never occurs (clocks set forward) is read by the offset in force before the change, as PEP 495
    has it: 02:30 becomes the instant at which the clocks show 03:30.

    >>> noon = np.array([datetime(2013, 7, 1, 12, tzinfo=UTC).timestamp() * 1_000_000], dtype=np.int64)
    >>> ((instants(noon, "America/New_York") - noon) // HOUR_US).tolist()
    [4]
    """
    tz = ZoneInfo(zone)
    quarters, where = np.unique(civil_us // _QUARTER_US, return_inverse=True)
    walls = [_WALL_EPOCH + timedelta(microseconds=int(quarter) * _QUARTER_US) for quarter in quarters]
    offset = np.array([_offset_us(wall.replace(tzinfo=tz)) for wall in walls], dtype=np.int64)[where]
    if second is not None:
        later = np.array([_offset_us(wall.replace(tzinfo=tz, fold=1)) for wall in walls], dtype=np.int64)[where]
        # In a gap fold=1 would mean the offset after the change: only a repeated time has a second occurrence.
        offset = np.where(second & (later < offset), later, offset)
    return civil_us - offset


def civil(instant_us: Microseconds, zone: str) -> Microseconds:
    """What clocks in `zone` show at `instant_us`, element by element.

    >>> civil(np.array([0], dtype=np.int64), "America/New_York").tolist() == [-5 * HOUR_US]
    True
    """
    tz = ZoneInfo(zone)
    quarters, where = np.unique(instant_us // _QUARTER_US, return_inverse=True)
    moments = [(_EPOCH + timedelta(microseconds=int(quarter) * _QUARTER_US)).astimezone(tz) for quarter in quarters]
    return instant_us + np.array([_offset_us(moment) for moment in moments], dtype=np.int64)[where]


def next_time(after_us: Microseconds, clock_us: Microseconds, zone: str) -> Microseconds:
    """The first instants after `after_us` at which clocks in `zone` show the time of day `clock_us`.

    `clock_us` counts from midnight; 24:00 is 00:00. A repeated time is taken at its second occurrence where the
    first has passed.

    >>> midnight_in_new_york = next_time(np.array([0]), np.array([24 * HOUR_US]), "America/New_York")
    >>> (midnight_in_new_york // HOUR_US).tolist()
    [5]
    """
    wall = civil(after_us, zone)
    same_day = wall // DAY_US * DAY_US + clock_us % DAY_US
    first = instants(same_day, zone)
    second = instants(same_day, zone, second=np.ones(len(same_day), dtype=np.bool_))
    next_day = instants(same_day + DAY_US, zone)
    return np.where(first > after_us, first, np.where(second > after_us, second, next_day))


def wall_us(year: int, month: int, day: int) -> int:
    """Midnight at the start of that day, in civil microseconds.

    >>> wall_us(1970, 1, 2) == DAY_US
    True
    """
    return (datetime(year, month, day) - _WALL_EPOCH) // timedelta(microseconds=1)  # noqa: DTZ001 - a wall clock


def _offset_us(moment: datetime) -> int:
    offset = moment.utcoffset()
    assert offset is not None, "only called with a zone"
    return offset // timedelta(microseconds=1)
