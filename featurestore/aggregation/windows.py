"""Which events does a window at an instant hold?

A window of length w and hop h at instant t holds the events with `floor(t, h) - w <= ts <= t`: its head is exact,
its tail moves in multiples of h since the epoch, in UTC. All numbers are int64 microseconds.
"""

from typing import overload

import numpy as np
import numpy.typing as npt

from featurestore.errors import DefinitionError

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US

_HOPS = (DAY_US, HOUR_US, 5 * MINUTE_US, MINUTE_US, SECOND_US)


def default_hop_us(window_us: int) -> int:
    """The hop of a window that declares none: the largest usual one that divides it and keeps its tiles few.

    Raises DefinitionError where the window is not a positive number of whole seconds.

    >>> [default_hop_us(w) // SECOND_US for w in (90 * SECOND_US, HOUR_US, DAY_US, 30 * DAY_US)]
    [1, 300, 3600, 86400]
    """
    if window_us <= 0:
        raise DefinitionError(f"a window must be longer than nothing; found {window_us} us")
    if window_us < 12 * HOUR_US:
        largest = 5 * MINUTE_US
    elif window_us < 12 * DAY_US:
        largest = HOUR_US
    else:
        largest = DAY_US
    for hop_us in _HOPS:
        if hop_us <= largest and window_us % hop_us == 0:
            return hop_us
    raise DefinitionError(
        f"no usual hop divides a window of {window_us} us; say slide_interval, a divisor of the window"
    )


def check_window(window_us: int, hop_us: int) -> None:
    """Refuse a window that its hop does not divide; raises DefinitionError.

    >>> check_window(HOUR_US, 5 * MINUTE_US)
    >>> check_window(HOUR_US, 7 * MINUTE_US)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    featurestore.errors.DefinitionError: a hop of 420000000 us does not divide its window of 3600000000 us; ...
    """
    if window_us <= 0 or hop_us <= 0:
        raise DefinitionError(f"a window and its hop must be positive; found {window_us} us and {hop_us} us")
    if window_us % hop_us:
        raise DefinitionError(
            f"a hop of {hop_us} us does not divide its window of {window_us} us; "
            "choose a slide_interval that divides time_window"
        )


@overload
def window_start(t_us: int, window_us: int, hop_us: int) -> int: ...
@overload
def window_start(t_us: npt.NDArray[np.int64], window_us: int, hop_us: int) -> npt.NDArray[np.int64]: ...
def window_start(t_us: int | npt.NDArray[np.int64], window_us: int, hop_us: int) -> int | npt.NDArray[np.int64]:
    """The earliest instant inside the window at `t_us`; the bound is inclusive.

    >>> window_start(10 * MINUTE_US + 1, HOUR_US, 5 * MINUTE_US) == -50 * MINUTE_US
    True
    """
    return t_us // hop_us * hop_us - window_us
