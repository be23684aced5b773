"""Repeat a step that a passing failure of the store or the broker interrupts."""

import logging
import time
from collections.abc import Callable
from typing import Final, TypeVar

from featurestore.errors import StoreUnavailable
from streaming.source.records import SourceUnavailable

PATIENCE_S: Final = 60.0
"""How long a step may fail in a row before the command ends."""
_PASSING: Final = (StoreUnavailable, SourceUnavailable)
_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0
_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


def patiently(
    step: Callable[[], _T],
    *,
    stop: Callable[[], bool] = lambda: False,
    patience_s: float = PATIENCE_S,
    seconds: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> _T:
    """What a step returns that can be repeated; a store or broker that refuses or is away is waited for.

    Raises StoreUnavailable or SourceUnavailable where it failed for `patience_s` without a break, or `stop` says so.

    >>> answers = iter([StoreUnavailable("away"), 7])
    >>> def step():
    ...     answer = next(answers)
    ...     if isinstance(answer, Exception):
    ...         raise answer
    ...     return answer
    >>> patiently(step, sleep=lambda pause_s: None)
    7
    """
    failing_since: float | None = None
    pause_s = _PAUSE_S
    while True:
        began = seconds()
        try:
            return step()
        except _PASSING as error:
            failed = seconds()
            if failing_since is None or failed - began > patience_s:
                # An attempt that went on for that long got somewhere.
                failing_since, pause_s = failed, _PAUSE_S
            if stop() or failed - failing_since > patience_s:
                raise
            _LOG.warning("%s; trying again in %.1f s", error, pause_s)
            sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
