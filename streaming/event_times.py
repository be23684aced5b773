"""Read the times of an event: text, dates, and integers in the unit that its source declares.

Integers without a declared unit are microseconds. One that would be an instant before 1990, while the event arrived
after it, is seconds or milliseconds that nobody declared: it is refused, since a topic cannot be read again otherwise.
"""

import datetime as dt
from typing import Any, Final

from featurestore.plan import TimeUnit
from streaming.column_types import is_instant
from streaming.messages import WRONG_TYPE, Message, Refused
from validation.instant import PLAUSIBLE_FROM_US, number_us, to_us, unit_of

_WORDS: Final = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


def event_us(value: Any, unit: TimeUnit, message: Message) -> int | None:
    """The instant of a decoded value; None stays None. Raises Refused with what is wrong with it.

    >>> class Clicked:
    ...     key, value, timestamp_us = None, b"", 1_710_050_400_000_000
    >>> event_us("2024-03-10 06:00:00", "us", Clicked()), event_us(1_710_050_400, "s", Clicked())
    (1710050400000000, 1710050400000000)
    """
    if value is None:
        return None
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found = _number(value, unit, message)
        elif isinstance(value, (str, dt.date)):
            read = to_us(value)
            assert read is not None  # None was answered above
            found = read
        else:
            raise TypeError(f"{type(value).__name__} is no time")  # noqa: TRY301 - one way out for what is refused
    except (TypeError, ValueError, OverflowError) as error:
        raise Refused(WRONG_TYPE, str(error)) from None
    if not is_instant(found):
        raise Refused(WRONG_TYPE, f"{value!r} ({_WORDS[unit]}) is not within the years 1 to 9999{_hint(value, unit)}")
    return found


def is_plausible(least_us: int, arrival_us: int | None) -> bool:
    """Whether integers may mean instants from this one on, of events that arrived then (None: now)."""
    return least_us >= PLAUSIBLE_FROM_US or (arrival_us is not None and arrival_us < PLAUSIBLE_FROM_US)


def _number(value: float, unit: TimeUnit, message: Message) -> int:
    found = number_us(value, unit)
    if not is_plausible(found, getattr(message, "timestamp_us", None)):
        raise ValueError(f"{value} {_WORDS[unit]} are an instant before 1990{_hint(value, unit)}")
    return found


def _hint(value: Any, unit: TimeUnit) -> str:
    other = unit_of(value) if isinstance(value, (int, float)) else None
    if other is None or other == unit:
        return ""
    return f"; it looks like {_WORDS[other]}: declare the source's tag time_unit: {other}"
