"""Which instant is this value?

Instants are int64 microseconds since the epoch in UTC. Naive values are UTC; nanoseconds are floored.
"""

import datetime as dt
import re
from typing import Final

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NAIVE_EPOCH: Final = dt.datetime(1970, 1, 1)  # noqa: DTZ001  # naive values are UTC: subtracted from them alone
_SUBMICRO: Final = re.compile(r"(\.\d{6})\d+")


def to_us(value: object) -> int | None:
    """The instant of an int (already microseconds), a datetime, a date (its midnight) or an ISO 8601 text.

    None stays None. Raises TypeError for other types and ValueError for text that is no instant.

    >>> to_us("2013-01-01T05:00:00Z")
    1357016400000000
    >>> to_us("1970-01-01T01:00:00.0000019+01:00")
    1
    >>> to_us(dt.date(1970, 1, 2))
    86400000000
    """
    if isinstance(value, str):
        # Python reads at most six decimals of a second; the digits beyond them are below our unit.
        value = dt.datetime.fromisoformat(_SUBMICRO.sub(r"\1", value))
    if isinstance(value, dt.datetime):
        if value != value:  # pandas' NaT is a datetime that equals nothing, itself included
            return None
        # Python's subtraction of whole fields: a division by timedelta(microseconds=1) costs four times as much.
        since = value - (_NAIVE_EPOCH if value.tzinfo is None else _EPOCH)
        return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if isinstance(value, dt.date):
        return to_us(dt.datetime(value.year, value.month, value.day, tzinfo=dt.UTC))
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value != value:
        return None
    raise TypeError(f"{value!r} is no instant")


def iso(ts_us: int) -> str:
    """An instant as ISO 8601 text in UTC.

    >>> iso(1_500_000)
    '1970-01-01T00:00:01.500000+00:00'
    """
    return (_EPOCH + dt.timedelta(microseconds=ts_us)).isoformat()
