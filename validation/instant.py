"""The one table of accepted time forms: every reader of event times and timestamp features goes by it.

Instants are int64 microseconds since the epoch in UTC. Naive values are UTC; what is finer than a microsecond is
floored. docs/times.md has the table for users; this is what it means:

- Arrow timestamps of every unit, with or without a zone (a zoned value is an instant, never ambiguous), and dates;
- ISO 8601 text: a date, or a date and a time of day, with `T` or a blank between them, a fraction of any length, and
  `Z`, an offset or no zone;
- integers, and floats as pandas writes integers beside nulls: in the unit that the source declares, or in the unit
  that their magnitude says (`unit_of`); any other number is refused.

Text is matched by one pattern, in Python and in SQL alike, because the parsers behind them accept different things.
"""

import datetime as dt
import re
from typing import Final

UNITS: Final = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 0}
"""Declared units of integers, with the microseconds in one of them; 0 for nanoseconds, which are floored."""
PLAUSIBLE_FROM_US: Final = 631_152_000_000_000
"""1990: an integer that means an earlier instant is another unit, or no time at all."""
PLAUSIBLE_UNTIL_US: Final = 4_102_444_800_000_000
"""2100: the ranges of the four units lie far apart up to here."""
ISO_PATTERN: Final = (
    r"^\d{4}-\d{2}-\d{2}([Tt ]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d([.,]\d+)?)?(Z|z|[+-]\d{2}(:?\d{2})?)?)?$"
)
"""What text is an instant; DuckDB's regular expressions read it as Python's do."""
NO_UNIT: Final = (
    ", which is no instant from 1990 to 2100 in seconds, milliseconds, microseconds or nanoseconds; declare the unit "
    "with the source's tag time_unit (s, ms, us or ns)"
)
FORMS: Final = "a timestamp, a date, ISO 8601 text as in 2024-03-10T06:00:00Z, or an integer since the epoch"

EARLIEST_US: Final = -62_135_596_800_000_000
LATEST_US: Final = 253_402_300_799_999_999
"""The years 1 to 9999, which is what RFC 3339 and every reader of the event log can say."""
DAY_US: Final = 86_400_000_000
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NAIVE_EPOCH: Final = dt.datetime(1970, 1, 1)  # noqa: DTZ001  # naive values are UTC: subtracted from them alone
_FRACTION: Final = re.compile(r"[.,](\d{1,6})\d*")
_ISO: Final = re.compile(ISO_PATTERN, re.ASCII)


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
        return text_us(value)
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


def text_us(text: str) -> int:
    """The instant of ISO 8601 text. Raises ValueError.

    >>> text_us("2013-01-01 05:00:00.5Z") - text_us("2013-01-01")
    18000500000
    """
    if _ISO.match(text) is None:
        raise ValueError(f"{text!r} is no ISO 8601 instant, as in 2024-03-10T06:00:00Z")
    # Python reads at most six decimals of a second; the digits beyond them are below our unit.
    value = dt.datetime.fromisoformat(_FRACTION.sub(r".\1", text).upper())
    since = value - (_NAIVE_EPOCH if value.tzinfo is None else _EPOCH)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def unit_of(number: float) -> str | None:
    """The unit in which a number is an instant from 1990 to 2100; None where it is one in none.

    >>> [unit_of(1_710_050_400 * factor) for factor in (1, 1_000, 1_000_000, 1_000_000_000)], unit_of(20240310)
    (['s', 'ms', 'us', 'ns'], None)
    """
    for unit, (low, high) in RANGES.items():
        if low <= number < high:
            return unit
    return None


def number_us(number: float, unit: str = "") -> int:
    """The instant of a number in its declared unit, or in the one that its magnitude says. Raises ValueError.

    >>> number_us(1_710_050_400_000), number_us(5, "s"), number_us(1_710_050_400.25)
    (1710050400000000, 5000000, 1710050400250000)
    """
    found = unit or unit_of(number)
    if found is None:
        raise ValueError(f"{number}{NO_UNIT}")
    if found == "ns":
        return int(number // 1_000)
    return number * UNITS[found] if isinstance(number, int) else round(number * UNITS[found])


def iso(ts_us: int) -> str:
    """An instant as ISO 8601 text in UTC.

    >>> iso(1_500_000)
    '1970-01-01T00:00:01.500000+00:00'
    """
    return (_EPOCH + dt.timedelta(microseconds=ts_us)).isoformat()


RANGES: Final = {
    "s": (PLAUSIBLE_FROM_US // 1_000_000, PLAUSIBLE_UNTIL_US // 1_000_000),
    "ms": (PLAUSIBLE_FROM_US // 1_000, PLAUSIBLE_UNTIL_US // 1_000),
    "us": (PLAUSIBLE_FROM_US, PLAUSIBLE_UNTIL_US),
    "ns": (PLAUSIBLE_FROM_US * 1_000, PLAUSIBLE_UNTIL_US * 1_000),
}
"""By unit, from which number on and before which one it is an instant from 1990 to 2100."""
