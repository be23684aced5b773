"""Stop a command on SIGTERM or SIGINT, wherever they meet it.

The handler raises `Stopped` in the main thread, which unwinds: temporary folders go, connections are closed. That is
not always enough: a library swallows the exception, a thread works on, a call into C does not return. So a thread of
its own reads the signals where Python's C handler writes them, sends one again that was swallowed, and ends the process
when the grace is over. Commands that finish what they have in hand install handlers of their own; the grace holds for
them too. State that is shared survives: every write is made to be broken off at any point.
"""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

from validation.interrupts import interrupt_queries, start_over

VARIABLE: Final = "FEATURESTORE_STOP_GRACE_S"
GRACE_S: Final = 4.0
"""Seconds from a signal to the end of the process at the latest."""
_AFTER_S: Final = 0.02
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """The command was asked to stop. No Exception: nothing that handles failures may take it for one."""


_last: list[Callable[[], None]] = []


@contextmanager
def before_the_end(stop: Callable[[], None]) -> Iterator[None]:
    """Have `stop` called in this block where the grace is over and the process ends at once: it kills children."""
    _last.append(stop)
    try:
        yield
    finally:
        _last.remove(stop)


class Stopping:
    """Whether the process was asked to stop, and its end when it does not. One at a time, in the main thread."""

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self.number: signal.Signals | None = None
        """The first signal that came."""
        self._grace_s = grace_s
        start_over()
        self.raised = False
        """Whether the command was broken off; one with handlers of its own ends in its own way."""
        self._again = False
        self._before = {each: signal.signal(each, self._on_signal) or signal.SIG_DFL for each in _SIGNALS}
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stopping", daemon=True)
        self._thread.start()

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM."""
        return 128 + (self.number or signal.SIGTERM)

    @property
    def line(self) -> str:
        """What is said of it."""
        return f"stopped by {(self.number or signal.SIGTERM).name}"

    def last(self, code: int) -> None:
        """The process's own command is over; where it was stopped, this ends the process with that exit code.

        What is registered with atexit is done, and nothing else: threads may be in libraries that abort the process
        where the interpreter goes away under them. A signal from here on ends the process at once.
        """
        for each in _SIGNALS:
            signal.signal(each, _end_at_once)
        if self.raised:
            atexit._run_exitfuncs()  # noqa: SLF001 - as the interpreter would at its end
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code)

    def close(self) -> None:
        """Give the handlers back, where the process goes on after the command."""
        self._ended.set()
        os.write(self._writer, b"\0")
        self._thread.join()
        signal.set_wakeup_fd(self._wakeup)
        for each, handler in self._before.items():
            signal.signal(each, handler)
        sys.unraisablehook = self._unraisable
        os.close(self._reader)
        os.close(self._writer)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.number = self.number or signal.Signals(number)
        if not self.raised or self._again:
            self.raised, self._again = True, False
            # First: a query that is left while another thread works on it waits for that thread, and cannot be reached.
            interrupt_queries()
            raise Stopped(128 + number)

    def _on_unraisable(self, swallowed: "sys.UnraisableHookArgs") -> None:
        """Python swallows what is raised at the end of an object's life: send the signal again, after it."""
        if not isinstance(swallowed.exc_value, Stopped) or self.number is None:
            self._unraisable(swallowed)
            return
        self._again = True
        threading.Timer(_AFTER_S, os.kill, (os.getpid(), self.number)).start()

    def _watch(self) -> None:
        while not self._ended.is_set():
            for each in os.read(self._reader, 64):
                if each in _SIGNALS and not self._ended.is_set():
                    self.number = self.number or signal.Signals(each)
                    self._end()
                    return

    def _end(self) -> None:
        """Wait for the process to end by itself; half-way send the signal again, at last end it."""
        assert self.number is not None
        if signal.getsignal(self.number) == self._on_signal:
            interrupt_queries()
        if self._ended.wait(self._grace_s / 2):
            return
        if self.raised and signal.getsignal(self.number) == self._on_signal:
            self._again = True  # it was swallowed, or what unwinds takes long: either way it is enough
            os.kill(os.getpid(), self.number)
        interrupt_queries()
        if self._ended.wait(self._grace_s / 2):
            return
        for stop in _last[::-1]:
            with suppress(Exception):
                stop()
        processes = sys.modules.get("multiprocessing")
        for child in processes.active_children() if processes else ():
            child.kill()
        with suppress(Exception):
            sys.stdout.flush()
        os.write(2, f"{self.line}, after {self._grace_s:g} s\n".encode())
        os._exit(self.exit_code)


def _end_at_once(number: int, _frame: FrameType | None) -> None:
    os.write(2, f"stopped by {signal.Signals(number).name}\n".encode())
    os._exit(128 + number)


def grace_of(environ: Mapping[str, str]) -> float:
    """The grace that the environment asks for; what is no number of seconds is the default.

    >>> grace_of({VARIABLE: "30"}), grace_of({})
    (30.0, 4.0)
    """
    try:
        asked = float(environ.get(VARIABLE, GRACE_S))
    except ValueError:
        return GRACE_S
    return asked if 0 < asked < threading.TIMEOUT_MAX else GRACE_S
