"""How do the requests of one event loop read the store? Over one connection, many MGETs on their way at a time.

A client library's command costs more than all else that a small answer needs; here it is one write, one parser fed by
the loop, and one future. Nothing blocks the loop: a store that hangs costs its requests a time-out and others nothing.
Clusters, whose reads are split by node, are asked through the client.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias, cast

import hiredis
from redis import ConnectionPool, SSLConnection
from redis.exceptions import RedisError
from redis.sentinel import SentinelConnectionPool

from featurestore.errors import StoreUnavailable
from featurestore.online.command import command
from featurestore.online.connection import StoreClient
from featurestore.online.failures import failure, refusal
from featurestore.online.reader import Held

Fetch: TypeAlias = Callable[[list[bytes]], Awaitable[Held]]
_TLS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
"""What `_tls` knows; with anything else the client library's own connections are used."""


class Fetcher(Protocol):
    """What reads the store for one event loop."""

    async def fetch(self, names: list[bytes]) -> Held:
        """The values of those keys, in order; raises StoreUnavailable."""
        ...

    def close(self) -> None:
        """Lets go of the connection."""
        ...


def fetcher(client: StoreClient) -> Fetcher:
    """What reads the client's store for the running event loop."""
    pool = getattr(client, "connection_pool", None)
    if isinstance(pool, ConnectionPool) and _TLS.issuperset(
        name for name in pool.connection_kwargs if name.startswith("ssl")
    ):
        return Pipelined(pool, client.address)
    return Blocking(client)


class _Refusal(Exception):
    """An error reply, as the server words it."""


class Pipelined:
    """One connection to one server: that of the client's address, or the master that its sentinels name."""

    def __init__(self, pool: ConnectionPool, address: str) -> None:
        self._pool = pool
        self._address = address
        self._options: dict[str, Any] = pool.connection_kwargs
        self._timeout_s = float(self._options.get("socket_timeout") or 5.0)
        self._connection: _Connection | None = None
        self._opening: asyncio.Task[_Connection] | None = None

    async def fetch(self, names: list[bytes]) -> Held:
        """The values of those keys, in order; raises StoreUnavailable.

        A connection that was cut since its last use is made anew, once: a server that started again is no failure.
        """
        connection = self._connection
        try:
            if connection is not None and not connection.closed:
                try:
                    return cast(Held, await connection.ask(b"MGET", *names))
                except ConnectionError:
                    pass
            return cast(Held, await (await self._open()).ask(b"MGET", *names))
        except _Refusal as error:
            raise refusal(self._address, str(error)) from error
        except (OSError, RedisError) as error:
            raise failure(self._address, error) from error

    async def _open(self) -> "_Connection":
        """A connection; all who wait for one wait for the same."""
        if self._connection is not None and not self._connection.closed:
            return self._connection
        if self._opening is None:
            self._opening = asyncio.create_task(self._connect())
            self._opening.add_done_callback(self._opened)
        # Who stops waiting must not take the connection from the others.
        return await asyncio.shield(self._opening)

    def _opened(self, opening: "asyncio.Task[_Connection]") -> None:
        self._opening = None
        if not opening.cancelled() and opening.exception() is None:
            self._connection = opening.result()

    async def _connect(self) -> "_Connection":
        async with asyncio.timeout(self._timeout_s):
            options, loop = self._options, asyncio.get_running_loop()

            def make() -> _Connection:
                return _Connection(self._timeout_s)

            if "path" in options:
                _, connection = await loop.create_unix_connection(make, options["path"])
            else:
                host, port = options.get("host", "localhost"), options.get("port", 6379)
                if isinstance(self._pool, SentinelConnectionPool):
                    host, port = await asyncio.to_thread(self._pool.get_master_address)
                _, connection = await loop.create_connection(
                    make, host, port, ssl=_tls(options, self._pool.connection_class)
                )
            asked = []
            if options.get("password"):
                asked.append(
                    [b"AUTH", *(str(options[who]).encode() for who in ("username", "password") if options.get(who))]
                )
            if options.get("db"):
                asked.append([b"SELECT", str(options["db"]).encode()])
            try:
                for words in asked:
                    await connection.ask(*words)
            except BaseException:
                connection.close()
                raise
            return connection

    def close(self) -> None:
        """Closes the connection; requests on their way end with StoreUnavailable."""
        if self._connection is not None:
            self._connection.close()


class Blocking:
    """Asks through the client: on the event loop while the store is well, in threads while it is not.

    A read takes about a millisecond, less than handing it to a thread and back costs. A store that hangs would stop the
    loop for its whole time-out, health checks included: after the first failure requests wait in threads, until one
    succeeds.
    """

    def __init__(self, client: StoreClient) -> None:
        self._client = client
        self._away = False

    async def fetch(self, names: list[bytes]) -> Held:
        """The values of those keys, in order; raises StoreUnavailable."""
        try:
            held = await asyncio.to_thread(self._client.mget, names) if self._away else self._client.mget(names)
        except StoreUnavailable:
            self._away = True
            raise
        self._away = False
        return cast(Held, held)

    def close(self) -> None:
        """Nothing: the client is somebody else's."""


class _Connection(asyncio.Protocol):
    """Sends commands without waiting, and gives their replies to whoever sent them, in order."""

    def __init__(self, timeout_s: float) -> None:
        self.closed = False
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._unsent: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._replies = 0
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        reader.feed(data)
        while (reply := reader.gets()) is not False:
            future = waiting.popleft()
            self._replies += 1
            if not future.done():
                future.set_result(reply)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(ConnectionResetError(str(error or "the connection was closed")))

    async def ask(self, *words: bytes) -> Any:
        """The reply to a command; raises OSError (time-outs among them), and _Refusal where the server refuses."""
        reply = await self._call(command(*words))
        if isinstance(reply, hiredis.ReplyError):
            raise _Refusal(str(reply))
        return reply

    def _call(self, command: bytes) -> "asyncio.Future[Any]":
        future = self._loop.create_future()
        if self.closed or self._transport is None:
            future.set_exception(ConnectionResetError("the connection was closed"))
            return future
        self._waiting.append(future)
        self._unsent.append(command)
        if len(self._unsent) == 1:
            self._loop.call_soon(self._send)
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout_s, self._check, self._replies)
        return future

    def _send(self) -> None:
        """Writes what requests of this turn of the loop ask for, at once: a write costs more than what it carries."""
        commands, self._unsent = self._unsent, []
        if self._transport is not None:
            self._transport.write(commands[0] if len(commands) == 1 else b"".join(commands))

    def _check(self, replies: int) -> None:
        """Ends a connection whose oldest request waited for a time-out without one reply; one timer for all of them."""
        self._watch = None
        if not self._waiting:
            return
        if replies == self._replies:
            self._end(TimeoutError(f"no reply within {self._timeout_s:g} s"))
        else:
            self._watch = self._loop.call_later(self._timeout_s, self._check, self._replies)

    def close(self) -> None:
        """Ends the connection."""
        self._end(ConnectionAbortedError("the service ends"))

    def _end(self, error: OSError) -> None:
        self.closed = True
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        waiting, self._waiting = self._waiting, deque()
        for future in waiting:
            if not future.done():
                future.set_exception(error)


def _tls(options: dict[str, Any], connection_class: type) -> ssl.SSLContext | None:
    """What verifies the server as the client does: its certificate and its name."""
    if not issubclass(connection_class, SSLConnection):
        return None
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if options.get("ssl_certfile"):
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    return context
