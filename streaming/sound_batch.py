"""Are all of these JSON messages sound, and what are their rows then?

Most messages are, and looking at many of them column by column takes half the time of one by one. Whatever is not
plain (a broken message, a key in another type than its entity's, instants finer than microseconds) is left to whoever
asks to look at one by one: this room never sets anything aside, and never lets through what the other way would not.
"""

import datetime as dt
import re
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.plan import TimeUnit
from streaming.event_times import is_plausible
from validation.instant import LATEST_US

Ints = npt.NDArray[np.int64]

MESSAGES: Final = 256
"""Messages that are looked at together: one that is not sound costs its neighbours the time saved."""
_FINER: Final = re.compile(rb":\d\d\.\d{7}")
_KINDS: Final = {"STRING": {str, type(None)}, "INT64": {int, type(None)}, "INT32": {int, type(None)}}
_DAY_US: Final = 86_400_000_000
_FIRST_US: Final = -62_135_596_800_000_000 + _DAY_US
_LAST_US: Final = 253_402_300_799_999_999 - _DAY_US
"""A day within the years 1 to 9999: an offset cannot carry an instant out of the calendar."""


class SoundBatch:
    """Reads rows of one type."""

    def __init__(
        self,
        decode: Callable[[bytes], Any],
        *,
        timestamp: str,
        unit: TimeUnit,
        keys: Sequence[tuple[str, str]],
        message_key: str | None,
        plain: bool,
    ) -> None:
        """Attributes of the row: its time, its join keys with their types, and the one that the message key repeats.

        Not `plain`: the rows hold instants or decimals, which are looked at one by one.
        """
        self._decode = decode
        self._timestamp = attrgetter(timestamp)
        self._micros = unit == "us"
        self._keys = [(attrgetter(attribute), dtype) for attribute, dtype in keys]
        self._message_key = None if message_key is None else attrgetter(message_key)
        self._plain = plain

    def read(self, messages: Sequence[Any]) -> tuple[list[Any], Ints] | None:
        """The rows of the messages and their times in microseconds; None where one by one must tell."""
        if not self._plain:
            return None
        values = [message.value for message in messages]
        try:
            rows = list(map(self._decode, values))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError):
            return None
        if not self._keys_fit(rows) or not self._message_keys_fit(rows, messages):
            return None
        times = self._times(list(map(self._timestamp, rows)), values)
        if times is not None and type(self._timestamp(rows[0])) is int and not self._plausible(times, messages):
            return None
        return None if times is None else (rows, times)

    def _plausible(self, times: Ints, messages: Sequence[Any]) -> bool:
        """Whether integers are microseconds beyond doubt."""
        arrived = [at for message in messages if (at := getattr(message, "timestamp_us", None)) is not None]
        earliest = min(arrived) if len(arrived) == len(messages) else None
        inside = len(times) and int(times.max()) <= LATEST_US
        return bool(self._micros and inside and is_plausible(int(times.min()), earliest))

    def _keys_fit(self, rows: Sequence[Any]) -> bool:
        for of, dtype in self._keys:
            found = list(map(of, rows))
            if set(map(type, found)) - _KINDS[dtype]:
                return False
            if dtype == "INT32" and not all(value is None or -(2**31) <= value < 2**31 for value in found):
                return False
        return True

    def _message_keys_fit(self, rows: Sequence[Any], messages: Sequence[Any]) -> bool:
        if self._message_key is None:
            return True
        wanted = [b"" if value is None else str(value).encode() for value in map(self._message_key, rows)]
        return wanted == [message.key or b"" for message in messages]

    def _times(self, found: list[Any], values: Sequence[bytes]) -> Ints | None:
        kinds = set(map(type, found))
        if kinds == {int}:
            return np.array(found, np.int64)
        if kinds != {dt.datetime} or _FINER.search(b"\n".join(values)):
            return None
        times: Ints = pa.array(found, pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
        inside = len(times) and int(times.min()) >= _FIRST_US and int(times.max()) <= _LAST_US
        return times if inside else None
