"""How does a process reach the online store?

One client type for every address: `embedded` (a private server under the data folder), `redis://`, `rediss://`
and `unix://`. Whatever the client library raises for a store that is away or refuses, callers see `StoreUnavailable`
and its kinds (see `failures`), which name the address and what to do.
"""

import atexit
import threading
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import hiredis
import redis
from redis.backoff import ConstantBackoff
from redis.client import Pipeline
from redis.cluster import ClusterNode
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from featurestore.errors import ConfigurationError, StoreUnavailable
from featurestore.online.cluster import ClusterClient
from featurestore.online.command import command
from featurestore.online.failures import mapped
from featurestore.online.server import EmbeddedServer, running
from validation.redaction import redacted, redacted_url

EMBEDDED = "embedded"
_SCHEMES = ("redis", "rediss", "unix")
_MANY = ("redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_MANY_FORM = "SCHEME://[user:password@]host:port[,host:port…][/service[/db]]"


class OnlineAddress(Protocol):
    """What `connect` needs of the settings."""

    @property
    def url(self) -> str:
        """`embedded`, or a redis://, rediss:// or unix:// URL."""


class StoreClient(redis.Redis):
    """A Redis client (bytes in and out, RESP2) whose failures are this product's errors."""

    address: str = ""
    """What messages call the store: its URL without the password."""

    # The library's own stubs are untyped here; Any stops in this room.
    def execute_command(self, *args: Any, **options: Any) -> Any:
        """As the library's; raises StoreUnavailable where the store does not answer."""
        with mapped(self.address):
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def mget(self, keys: Any, *more: Any) -> Any:
        """As the library's, of keys in bytes, in half of its time; raises StoreUnavailable likewise."""
        names = [*keys, *more]
        if not names:
            return []
        packed = [command(b"MGET", *names)]
        pool = self.connection_pool
        with mapped(self.address):
            connection: Any = pool.get_connection()
            try:
                return connection.retry.call_with_retry(
                    lambda: _answer(connection, packed), lambda _: connection.disconnect()
                )
            finally:
                pool.release(connection)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "StorePipeline":  # noqa: FBT001, FBT002 - the library's signature
        """As the library's; its `execute` raises StoreUnavailable where the store does not answer."""
        pipeline = StorePipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipeline.address = self.address
        return pipeline


def _answer(connection: Any, packed: list[bytes]) -> Any:
    connection.send_packed_command(packed)
    return connection.read_response()


class StorePipeline(Pipeline):
    """A pipeline of a StoreClient, with the same errors."""

    address: str = ""

    def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001, FBT002 - the library's signature
        """As the library's; raises StoreUnavailable where the store does not answer."""
        with mapped(self.address):
            return list(super().execute(raise_on_error))


class _Packer:
    """As the library's, without its look at each argument: commands of this product are text, bytes and numbers."""

    def pack(self, *words: Any) -> list[bytes]:
        """A command as the protocol has it; a first word of several is the name of a command in two words."""
        names = words[0].encode().split() if isinstance(words[0], str) else words[0].split()
        try:
            return [hiredis.pack_command((*names, *words[1:]))]
        except TypeError as error:
            raise redis.exceptions.DataError(str(error)) from error


def connect(settings: OnlineAddress, data_dir: Path, *, start: bool = True, timeout_s: float = 5.0) -> StoreClient:
    """A client of the configured store; no command is sent yet except to an embedded server.

    `embedded` joins the live server of the data folder. Where none is alive it is started if `start` (and stopped
    when the last process that uses it has ended), else StoreUnavailable is raised. A command that meets a
    connection cut since its last use is sent once more: every write of this product can be repeated.
    """
    url = settings.url
    options: dict[str, Any] = {
        "protocol": 2,
        "socket_timeout": timeout_s,
        "retry": _retry(),
        "command_packer": _Packer(),
    }
    if url == EMBEDDED:
        socket = _embedded(data_dir, start=start)
        pool = redis.ConnectionPool(redis.UnixDomainSocketConnection, path=str(socket), **options)
        client = StoreClient(connection_pool=pool)
        client.auto_close_connection_pool = True
        client.address = f"embedded server at {socket}"
        return client
    parts = urlsplit(url)
    if parts.scheme in _MANY:
        return _of_many(url, timeout_s)
    if parts.scheme not in _SCHEMES:
        raise ConfigurationError(
            f"online_store connection {redacted_url(url)!r}: expected `embedded`, or a URL that starts with "
            + ", ".join(f"{scheme}://" for scheme in (*_SCHEMES, *_MANY))
        )
    if parts.scheme != "unix":
        options["socket_connect_timeout"] = timeout_s
    try:
        client = StoreClient(connection_pool=redis.ConnectionPool.from_url(url, **options))
        client.auto_close_connection_pool = True
    except ValueError as error:
        raise ConfigurationError(f"online_store connection {redacted_url(url)!r}: {redacted(str(error))}") from error
    client.address = redacted_url(url)
    return client


def _of_many(url: str, timeout_s: float) -> StoreClient:
    """A client of a cluster, or of the master that sentinels name; query parameters are the library's (`ssl_…`)."""
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    login, _, addresses = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    path = [part for part in parts.path.split("/") if part]
    options: dict[str, Any] = {
        "username": unquote(user) or None,
        "password": unquote(password) or None,
        "protocol": 2,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "ssl": scheme == "rediss",
    }
    nodes, parameters, wrong = [], [], ""
    try:
        nodes = [_address(address, 26379 if kind == "sentinel" else 6379) for address in addresses.split(",")]
        parameters = parse_qsl(parts.query, strict_parsing=bool(parts.query))
        database = int(path[1]) if len(path) == 2 else 0
    except ValueError as error:
        wrong = str(error)
    if unknown := [name for name, _ in parameters if not name.startswith("ssl_")]:
        wrong = f"unknown parameter {unknown[0]!r}"
    if kind == "sentinel" and len(path) not in (1, 2):
        wrong = "the path names no service of the sentinels"
    if wrong:
        raise ConfigurationError(f"online_store connection {redacted_url(url)!r}: {wrong}; expected {_MANY_FORM}")
    options.update(parameters)
    client: StoreClient
    if kind == "sentinel":
        # Sentinels have users of their own, if any; theirs is the address only.
        asked = {name: value for name, value in options.items() if name not in ("username", "password")}
        sentinel = Sentinel(nodes, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
        pool = SentinelConnectionPool(path[0], sentinel, db=database, retry=_retry(), **options)  # type: ignore[no-untyped-call]
        client = StoreClient(connection_pool=pool)
    else:
        with mapped(redacted_url(url)):
            found = ClusterClient(startup_nodes=[ClusterNode(*node) for node in nodes], **options)  # type: ignore[no-untyped-call]
        # Every command that this product sends means the same to both; the library has no common type for them.
        client = cast(StoreClient, found)
    client.address = redacted_url(url)
    return client


def _address(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(f"{text!r} is no host:port")
    return parts.hostname, parts.port or port


def _retry() -> Retry:
    # One more try: a pooled connection dies when the server restarts. More would hide an outage for seconds.
    return Retry(ConstantBackoff(0.02), 1)


_servers: dict[Path, EmbeddedServer] = {}
"""This process's share in each data folder's server, given back when the process ends."""
_servers_lock = threading.Lock()


def _embedded(data_dir: Path, *, start: bool) -> Path:
    if not start:
        if address := running(data_dir):
            return address
        raise StoreUnavailable(
            f"no embedded online store is alive in {data_dir / 'redis'}; `featurestore serve` or any command that "
            "needs it starts one"
        )
    folder = data_dir.resolve()
    with _servers_lock:
        server = _servers.get(folder)
        if server is None:
            server = _servers[folder] = EmbeddedServer(folder)
            atexit.register(server.stop)
        return server.start().address
