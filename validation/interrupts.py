"""Registry of the queries that a signal interrupts.

A query whose work another thread has taken waits in C++ and does not look for signals: who is asked to stop interrupts
it by its connection.
"""

from contextlib import suppress
from threading import Event
from typing import Protocol, TypeVar
from weakref import WeakSet


class Interruptible(Protocol):
    """A connection to a database in this process."""

    def interrupt(self) -> None:
        """Let what runs fail; harmless where nothing does."""
        ...


_C = TypeVar("_C", bound=Interruptible)
_open: WeakSet[Interruptible] = WeakSet()
_asked = Event()


def interruptible(connection: _C) -> _C:
    """Register a connection for as long as it lives, and give it back."""
    _open.add(connection)
    return connection


def interrupted() -> bool:
    """Whether the process was asked to stop: an error may come of that, and who goes on after errors raises it."""
    return _asked.is_set()


def start_over() -> None:
    """Forget that the process was asked to stop: another command begins in it."""
    _asked.clear()


def interrupt_queries() -> None:
    """Interrupt what the registered connections run."""
    _asked.set()
    for connection in _open.copy():
        with suppress(Exception):  # it was closed meanwhile
            connection.interrupt()
