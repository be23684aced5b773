"""How does a process look at something again and again, beside what it does, until it is stopped?

One thread a look, and the interval is between looks: one that takes long is not followed by another at once. A look
that fails is logged and counted and tried again the next time; nothing that it raises ends the thread or the process.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from validation.errors import PlatformError

_LOG = logging.getLogger(__name__)
Failed = Callable[[str], object]
"""Hears the name of a look that failed."""


def nobody(name: str) -> None:
    """Nobody counts."""


@contextmanager
def repeated(
    name: str,
    look: Callable[[threading.Event], object],
    *,
    every_s: float,
    failed: Failed = nobody,
    leave_s: float | None = None,
) -> Iterator[None]:
    """Look meanwhile, first after an interval, then again and again; 0 seconds: never.

    At the end the event that `look` is given is set, and the look under way is waited for: for ever, or `leave_s`
    where it may hang on something that does not answer.
    """
    if not every_s:
        yield
        return
    stopping = threading.Event()

    def loop() -> None:
        while not stopping.wait(every_s):
            attempt(name, lambda: look(stopping), failed)

    thread = threading.Thread(target=loop, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(leave_s)


def attempt(name: str, look: Callable[[], object], failed: Failed = nobody) -> None:
    """Look once; what it raises is logged and counted, with a traceback where it is no failure that is foreseen.

    >>> def broken():
    ...     raise OSError(28, "no space left on device")
    >>> attempt("compaction", broken, print)
    compaction
    """
    try:
        look()
    except Exception as error:  # noqa: BLE001 - a look's outermost frame: the next one may succeed
        foreseen = isinstance(error, (PlatformError, OSError))
        _LOG.warning("%s failed and will be tried again: %s", name, error, exc_info=not foreseen)
        failed(name)
