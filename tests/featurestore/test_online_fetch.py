"""Reads of one event loop: many at once over one connection, through cuts, restarts and a store that hangs."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from featurestore.config import OnlineSettings
from featurestore.errors import StoreUnavailable
from featurestore.online.connection import StoreClient, connect
from featurestore.online.fetch import Blocking, Pipelined, _Connection, fetcher
from featurestore.online.server import EmbeddedServer

KEYS = [b"k%d" % i for i in range(50)]


def on_loop(client: StoreClient, use: Callable[[Pipelined], Awaitable[None]]) -> None:
    """Runs `use` with the client's fetcher on an event loop of its own."""

    async def run() -> None:
        one = fetcher(client)
        assert isinstance(one, Pipelined)
        try:
            await use(one)
        finally:
            one.close()

    asyncio.run(run())


async def everybody_reads(one: Pipelined) -> bool:
    """Whether 200 requests at a time each get their own values, whatever their sizes."""
    asked = [[KEYS[(i * j) % 50] for j in range(1 + i % 7)] for i in range(200)]
    told = await asyncio.gather(*(one.fetch(names) for names in asked))
    return told == [[b"v" + name for name in names] for names in asked]


def test_every_request_gets_its_own_values(store: StoreClient) -> None:
    """Requests that share a connection never get each other's replies; a key without a value is None."""
    for key in KEYS:
        store.set(key, b"v" + key)

    async def use(one: Pipelined) -> None:
        assert await everybody_reads(one)
        assert await one.fetch([b"none", KEYS[0], b"none"]) == [None, b"vk0", None]

    on_loop(store, use)


def test_replies_in_another_order_would_be_seen(store: StoreClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that gives the newest request the oldest reply is caught by the same requests."""
    for key in KEYS:
        store.set(key, b"v" + key)
    received = _Connection.data_received

    def turned(self: _Connection, data: bytes) -> None:
        self._waiting.reverse()
        received(self, data)
        self._waiting.reverse()

    monkeypatch.setattr(_Connection, "data_received", turned)

    async def use(one: Pipelined) -> None:
        assert not await everybody_reads(one)

    on_loop(store, use)


def test_a_cut_connection_is_made_anew(store: StoreClient) -> None:
    """A connection that the server closed costs no request: it is asked again over a new one."""
    store.set(b"k", b"v")

    async def use(one: Pipelined) -> None:
        assert await one.fetch([b"k"]) == [b"v"]
        for _ in range(3):
            store.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert await asyncio.gather(*(one.fetch([b"k"]) for _ in range(20))) == [[b"v"]] * 20

    on_loop(store, use)


def test_a_refusal_is_told(store: StoreClient) -> None:
    """What the server refuses is StoreUnavailable, with its words; the next request is answered again."""

    async def use(one: Pipelined) -> None:
        with pytest.raises(StoreUnavailable, match="wrong number of arguments"):
            await one.fetch([])
        assert await one.fetch([b"none"]) == [None]

    on_loop(store, use)


def test_a_server_that_dies_and_returns(tmp_path: Path) -> None:
    """While the server is gone requests fail at once; when it is back they are answered."""
    with EmbeddedServer(tmp_path) as server, connect(
        OnlineSettings(url=f"unix://{server.address}"), tmp_path
    ) as client:  # fmt: skip
        client.set(b"k", b"v")
        client.execute_command("WAITAOF", 1, 0, 10_000)

        async def use(one: Pipelined) -> None:
            assert await one.fetch([b"k"]) == [b"v"]
            os.kill(server.pid, signal.SIGKILL)
            deadline = time.monotonic() + 20
            failed = False
            while not failed and time.monotonic() < deadline:
                try:
                    await one.fetch([b"k"])
                except StoreUnavailable:
                    failed = True
            assert failed
            await asyncio.to_thread(server.start)
            assert await one.fetch([b"k"]) == [b"v"]

        on_loop(client, use)


def test_a_server_that_hangs_stops_nobody_else(tmp_path: Path) -> None:
    """Requests to a hung server end in its time-out, all at once, while the loop does other work."""
    with EmbeddedServer(tmp_path) as server, connect(
        OnlineSettings(url=f"unix://{server.address}"), tmp_path, timeout_s=0.4
    ) as client:  # fmt: skip
        client.set(b"k", b"v")

        async def use(one: Pipelined) -> None:
            await one.fetch([b"k"])
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    await asyncio.sleep(0.01)
                    ticks += 1

            ticking = asyncio.create_task(tick())
            pid = server.pid
            os.kill(pid, signal.SIGSTOP)
            try:
                start = time.monotonic()
                told = await asyncio.gather(*(one.fetch([b"k"]) for _ in range(20)), return_exceptions=True)
                took_s = time.monotonic() - start
            finally:
                os.kill(pid, signal.SIGCONT)
            ticking.cancel()
            assert {type(each) for each in told} == {StoreUnavailable}
            assert 0.3 < took_s < 5
            assert ticks > 5
            assert await one.fetch([b"k"]) == [b"v"]

        on_loop(client, use)


def test_options_that_are_the_library_s_alone_take_its_connections(tmp_path: Path) -> None:
    """An address with TLS options beyond certificates is read through the client, so that none is ignored."""
    url = "rediss://127.0.0.1:1/0?ssl_cert_reqs=none"
    with contextlib.closing(connect(OnlineSettings(url=url), tmp_path)) as client:
        assert isinstance(fetcher(client), Blocking)
