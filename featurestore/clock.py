"""What time is it, in int64 microseconds since the epoch, UTC?

A clock is an argument: every process takes one, and tests and replays hand in their own.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from featurestore.errors import UsageError
from validation.instant import text_us

Clock = Callable[[], int]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def system_clock(offset_us: int = 0) -> Clock:
    """The machine's clock, moved by `offset_us` (negative: a replay that lives in the past).

    >>> abs(system_clock(-1_000_000)() - (system_clock()() - 1_000_000)) < 500_000
    True
    """
    return lambda: time.time_ns() // 1000 + offset_us


def iso(instant_us: int) -> str:
    """An instant as RFC 3339 text in UTC, without the fraction where it is zero.

    >>> iso(1_357_000_000_000_000)
    '2013-01-01T00:26:40Z'
    """
    return (_EPOCH + timedelta(microseconds=instant_us)).isoformat().replace("+00:00", "Z")


def parse_instant(text: str) -> int:
    """Microseconds of an ISO 8601 instant; a zone is honoured, without one it is UTC. Raises UsageError.

    >>> parse_instant("2013-01-01T00:26:40Z") == parse_instant("2012-12-31T19:26:40-05:00")
    True
    """
    try:
        found = text_us(text)
        iso(found)  # what lies before year 1 or after 9999 in UTC has no name
    except (ValueError, OverflowError):
        raise UsageError(f"{text!r} is no instant; expected ISO 8601, as in 2013-12-31T18:00:00Z") from None
    return found
