"""Bounds of the connections of one server: how many, and how long each part of a request may take.

A connection that sends its head or body too slowly, or takes its answer too slowly, is closed. Where there are too many
of them, the one that has waited longest without ever completing a request makes room for the next.
"""

import asyncio
import logging
import resource
from collections import Counter
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

FILES = 4_096
"""Files that a worker may need: its connections, and some for all else."""
_SWEEP_S = 0.5
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ConnectionBounds:
    """What one connection may take."""

    head_bytes: int = 32_768
    """Of the request line and all headers of one request; of what frames a body, beyond a share of the body."""
    headers: int = 100
    head_s: float = 10.0
    """From the first byte of a request (of a new connection: from its beginning) to the end of its headers."""
    body_s: float = 30.0
    """From there to the end of its body."""
    write_s: float = 30.0
    """How long a caller may take nothing of an answer that waits for it."""
    unread_bytes: int = 1 << 20
    """Of a body that are still taken after its request was answered, and how long."""
    unread_s: float = 2.0
    connections: int = 1_000
    """Of one worker."""
    pipelined: int = 16
    """Requests that wait for an earlier one of their connection."""


class Bounded(Protocol):
    """A connection as the sweep sees it."""

    def late(self, now_s: float) -> str:
        """What takes too long; empty where nothing does."""
        ...

    def end(self, status: int, why: str) -> None:
        """Answer with that status where nothing was answered yet, and close."""
        ...


class Connections:
    """Those of one server's event loop. All calls come from that loop."""

    def __init__(self, bounds: ConnectionBounds, loop: asyncio.AbstractEventLoop) -> None:
        self._bounds = bounds
        self._loop = loop
        self._open: dict[Bounded, None] = {}
        self._fresh: dict[Bounded, None] = {}
        """Those that never completed the head of a request, the oldest first."""
        self._sweeper: asyncio.TimerHandle | None = None
        self._ended: Counter[str] = Counter()

    def enter(self, connection: Bounded) -> None:
        """Take a new connection in; where there are too many, one makes room or it is refused."""
        if len(self._open) >= self._bounds.connections:
            oldest = next(iter(self._fresh), None)
            if oldest is None:
                self._end(connection, 503, "too many connections")
                return
            self.leave(oldest)
            self._end(oldest, 503, "too many connections")
        self._open[connection] = self._fresh[connection] = None
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    def settled(self, connection: Bounded) -> None:
        """A connection completed the head of a request."""
        self._fresh.pop(connection, None)

    def leave(self, connection: Bounded) -> None:
        """A connection ended."""
        self._open.pop(connection, None)
        self._fresh.pop(connection, None)

    def _sweep(self) -> None:
        now_s = self._loop.time()
        for connection in list(self._open):
            if why := connection.late(now_s):
                self.leave(connection)
                self._end(connection, 408, why)
        if self._ended:
            told = ", ".join(f"{count} ({why})" for why, count in self._ended.items())
            _log.warning("connections closed: %s", told)
            self._ended.clear()
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep) if self._open else None

    def _end(self, connection: Bounded, status: int, why: str) -> None:
        self._ended[why] += 1
        connection.end(status, why)


def allow_files(wanted: int) -> None:
    """Let this process and its workers open as many files, as far as the system lets them: connections are files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


_of_server: WeakKeyDictionary[object, Connections] = WeakKeyDictionary()


def connections_of(server: object, bounds: ConnectionBounds, loop: asyncio.AbstractEventLoop) -> Connections:
    """The connections of a server, the same object for each of its connections."""
    found = _of_server.get(server)
    if found is None:
        found = _of_server[server] = Connections(bounds, loop)
    return found
