"""How much does a server answer, how fast, and what does it cost? HTTP load from one process, and processor time.

Raw HTTP/1.1 over kept connections, parsed by httptools on uvloop, so that the tool is not what is measured.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import httptools
import uvloop

_TICKS = os.sysconf("SC_CLK_TCK")


class Load(NamedTuple):
    """What a load found."""

    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    """Processor time of the server's processes for one request: nearly the same however busy the machine is."""


def post(path: str, body: bytes) -> bytes:
    """A request's bytes."""
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def processor_s(pid: int) -> float:
    """Processor time that a process and those it started have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    # User and system time, of the process and of those it has outlived.
    return sum(map(int, fields[11:15])) / _TICKS + sum(processor_s(int(child)) for child in children)


def saturate(
    port: int, pid: int, requests: Sequence[bytes], connections: int, seconds: float, *, reconnect: bool = False
) -> Load:
    """That many connections, each with one request in flight, for that long.

    `reconnect`: a connection that the server closes is made anew, and its request is sent again.
    """
    return uvloop.run(_measured(port, pid, requests, connections, seconds, None, reconnect=reconnect))


def at_rate(port: int, pid: int, requests: Sequence[bytes], per_s: float, seconds: float) -> Load:
    """Requests that come at a rate of their own, whether or not the ones before them are answered.

    Each is timed from when it was due to be sent, waiting for one of 64 connections included.
    """
    return uvloop.run(_measured(port, pid, requests, 64, seconds, per_s))


async def _measured(
    port: int,
    pid: int,
    requests: Sequence[bytes],
    connections: int,
    seconds: float,
    per_s: float | None,
    *,
    reconnect: bool = False,
) -> Load:
    run = _Run(port, requests, closed=per_s is None, reconnect=reconnect)
    used_s = processor_s(pid)
    for _ in range(connections):
        await run.connect()
    start = time.perf_counter()
    if per_s is not None:
        sent = 0
        while (passed := time.perf_counter() - start) < seconds:
            for _ in range(int(passed * per_s) - sent):
                run.arrive()
                sent += 1
            await asyncio.sleep(0.001)
    else:
        await asyncio.sleep(seconds)
    run.ended = True
    elapsed = time.perf_counter() - start
    await asyncio.wait_for(run.wait(), 60)
    if run.failure is not None:
        raise RuntimeError(run.failure)
    times = sorted(run.times)
    cpu_us = 1e6 * (processor_s(pid) - used_s) / len(times)
    return Load(len(times) / elapsed, 1e3 * times[len(times) // 2], 1e3 * times[int(len(times) * 0.99)], cpu_us)


class _Run:
    """What the connections of one load share."""

    def __init__(self, port: int, requests: Sequence[bytes], *, closed: bool, reconnect: bool) -> None:
        self.requests = requests
        self.closed = closed
        """Whether a connection asks again as soon as it is answered."""
        self.reconnect = reconnect
        self.port = port
        self.connecting: set[asyncio.Task[None]] = set()
        self.ended = False
        self.failure: str | None = None
        self.times: list[float] = []
        self.idle: deque[_Connection] = deque()
        self.due: deque[float] = deque()
        self.busy = 0
        self._taken = 0

    async def connect(self) -> None:
        await asyncio.get_running_loop().create_connection(lambda: _Connection(self), "127.0.0.1", self.port)

    def lost(self, *, waiting: bool, error: Exception | None) -> None:
        self.busy -= waiting
        if self.reconnect and not self.ended:
            task = asyncio.create_task(self.connect())
            self.connecting.add(task)
            task.add_done_callback(self.connecting.discard)
        elif waiting or not self.ended:
            self.failure = f"the server closed a connection: {error}"

    def next(self) -> bytes:
        self._taken += 1
        return self.requests[self._taken % len(self.requests)]

    def arrive(self) -> None:
        now = time.perf_counter()
        if self.idle:
            self.idle.popleft().send(now)
        else:
            self.due.append(now)

    async def wait(self) -> None:
        while (self.busy or (self.due and not self.closed)) and self.failure is None:
            await asyncio.sleep(0.001)


class _Connection(asyncio.Protocol):
    """Sends one request after another, and times each."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._parser = httptools.HttpResponseParser(self)
        self._since = 0.0
        self._waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._run.lost(waiting=self._waiting, error=error)

    def on_message_complete(self) -> None:
        run = self._run
        run.times.append(time.perf_counter() - self._since)
        run.busy -= 1
        self._waiting = False
        if self._parser.get_status_code() != 200:
            run.failure = f"status {self._parser.get_status_code()}"
        # The parser cannot be used again inside its own callback.
        self._parser = httptools.HttpResponseParser(self)
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        run = self._run
        if self._transport.is_closing():
            return
        if run.due:
            self.send(run.due.popleft())
        elif run.closed and not run.ended:
            self.send(time.perf_counter())
        else:
            run.idle.append(self)

    def send(self, since: float) -> None:
        self._since = since
        self._run.busy += 1
        self._waiting = True
        self._transport.write(self._run.next())
