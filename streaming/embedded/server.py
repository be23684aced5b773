"""How do clients reach the broker?

>>> with EmbeddedBroker() as broker:
...     str(broker.address).startswith("127.0.0.1:")
True
"""

import asyncio
import logging
import struct
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import kafka.protocol.admin as admin_schema
import kafka.protocol.consumer as consumer_schema
import kafka.protocol.metadata as metadata_schema
import kafka.protocol.producer as producer_schema
from kafka.protocol.metadata import ApiVersionsResponse

from featurestore.errors import FeatureStoreError
from streaming.embedded import handle_data, handle_groups, handle_topics, handle_transactions
from streaming.embedded.broker import Address, Broker
from streaming.embedded.codes import ErrorCode

_log = logging.getLogger(__name__)
_MAX_REQUEST_BYTES = 1 << 27
_API_VERSIONS_KEY = 18
_HEADER = struct.Struct(">hhi")

Handler = Callable[[Broker, Any, int], Awaitable[Any]]


class Api(NamedTuple):
    """One request of the protocol: its schema, the versions spoken, who answers."""

    request: Any
    min_version: int
    max_version: int
    handler: Handler


APIS: dict[int, Api] = {
    api.request.API_KEY: api
    for api in (
        Api(producer_schema.ProduceRequest, 3, 9, handle_data.produce),
        Api(consumer_schema.FetchRequest, 4, 12, handle_data.fetch),
        Api(consumer_schema.ListOffsetsRequest, 1, 7, handle_data.list_offsets),
        Api(metadata_schema.MetadataRequest, 0, 12, handle_topics.metadata),
        Api(admin_schema.CreateTopicsRequest, 2, 7, handle_topics.create_topics),
        Api(admin_schema.DeleteTopicsRequest, 1, 5, handle_topics.delete_topics),
        Api(admin_schema.CreatePartitionsRequest, 0, 3, handle_topics.create_partitions),
        Api(admin_schema.DeleteRecordsRequest, 0, 2, handle_topics.delete_records),
        Api(admin_schema.DescribeConfigsRequest, 1, 4, handle_topics.describe_configs),
        Api(metadata_schema.FindCoordinatorRequest, 0, 3, handle_groups.find_coordinator),
        Api(consumer_schema.JoinGroupRequest, 0, 7, handle_groups.join_group),
        Api(consumer_schema.SyncGroupRequest, 0, 5, handle_groups.sync_group),
        Api(consumer_schema.HeartbeatRequest, 0, 4, handle_groups.heartbeat),
        Api(consumer_schema.LeaveGroupRequest, 0, 5, handle_groups.leave_group),
        Api(consumer_schema.OffsetCommitRequest, 2, 8, handle_groups.offset_commit),
        Api(consumer_schema.OffsetFetchRequest, 1, 7, handle_groups.offset_fetch),
        Api(admin_schema.ListGroupsRequest, 0, 4, handle_groups.list_groups),
        Api(admin_schema.DescribeGroupsRequest, 0, 5, handle_groups.describe_groups),
        Api(admin_schema.DeleteGroupsRequest, 0, 2, handle_groups.delete_groups),
        Api(producer_schema.InitProducerIdRequest, 0, 4, handle_transactions.init_producer_id),
        Api(producer_schema.AddPartitionsToTxnRequest, 0, 3, handle_transactions.add_partitions),
        Api(producer_schema.AddOffsetsToTxnRequest, 0, 3, handle_transactions.add_offsets),
        Api(producer_schema.TxnOffsetCommitRequest, 0, 3, handle_transactions.offset_commit),
        Api(producer_schema.EndTxnRequest, 0, 3, handle_transactions.end),
    )
}


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class EmbeddedBroker:
    """A broker on a loopback port, on a thread of its own.

    Without a folder everything is gone at `stop`; with one, a restart finds topics, records and committed offsets
    again. Anyone on this machine can connect: there is no authentication.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        port: int = 0,
        auto_partitions: int = 1,
        clock_ms: Callable[[], int] = _wall_clock_ms,
    ) -> None:
        self.address = Address("127.0.0.1", port)
        self._folder = folder
        self._auto_partitions = auto_partitions
        self._clock_ms = clock_ms
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._failure: BaseException | None = None

    def start(self) -> Self:
        """Listen; returns once clients can connect. Raises FeatureStoreError when the port is taken."""
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="embedded-broker", daemon=True)
        self._thread.start()
        ready.wait()
        if self._failure:
            raise FeatureStoreError(
                f"the embedded broker cannot start on {self.address}: {self._failure}; "
                "choose another port (0 for any free one) or another folder"
            ) from self._failure
        return self

    def stop(self) -> None:
        """Close all connections and files; stopping twice is harmless."""
        if self._thread and self._thread.is_alive() and self._loop and self._stopping:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()
        self._thread = None

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def _run(self, ready: threading.Event) -> None:
        asyncio.run(self._serve(ready))

    async def _serve(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        broker = None
        try:
            broker = Broker(self._folder, auto_partitions=self._auto_partitions, clock_ms=self._clock_ms)
            connections: set[asyncio.Task[None]] = set()

            async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                task = asyncio.current_task()
                assert task is not None
                connections.add(task)
                try:
                    await _converse(broker, reader, writer)
                finally:
                    connections.discard(task)

            server = await asyncio.start_server(connected, *self.address, limit=1 << 22)
        except OSError as error:
            self._failure = error
            if broker:
                broker.close()
            ready.set()
            return
        self.address = broker.address = Address(*server.sockets[0].getsockname()[:2])
        ready.set()
        await self._stopping.wait()
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        broker.close()


async def _converse(broker: Broker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one client's requests in the order they came, until it goes or sends what cannot be read."""
    try:
        while True:
            (size,) = struct.unpack(">i", await reader.readexactly(4))
            if not 8 <= size <= _MAX_REQUEST_BYTES:
                _log.warning("a request of %d bytes; at most %d are taken: connection closed", size, _MAX_REQUEST_BYTES)
                return
            answer = await _answer(broker, await reader.readexactly(size))
            if answer is not None:
                writer.write(answer)
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        return
    except (ValueError, struct.error, IndexError, TypeError):
        _log.warning("a request that cannot be read: connection closed", exc_info=True)
    finally:
        writer.close()


async def _answer(broker: Broker, data: bytes) -> bytes | None:
    """The framed response to one request; None where the protocol has none. Raises ValueError for unknown ones."""
    key, version, correlation_id = _HEADER.unpack_from(data)
    if key == _API_VERSIONS_KEY:
        response = _versions(version)
    else:
        api = APIS.get(key)
        if api is None or not api.min_version <= version <= api.max_version:
            raise ValueError(f"request {key} version {version} is not spoken here")
        request = api.request.decode(data, version=version, header=True)
        response = await api.handler(broker, request, version)
        if response is None:
            return None
    response.with_header(correlation_id)
    return bytes(response.encode(header=True, framed=True))


def _versions(version: int) -> Any:
    """What the broker speaks; a client that asks in a newer version is answered in the oldest, as in Kafka."""
    spoken = [ApiVersionsResponse.ApiVersion(api_key=_API_VERSIONS_KEY, min_version=0, max_version=3)]
    spoken += [
        ApiVersionsResponse.ApiVersion(api_key=key, min_version=api.min_version, max_version=api.max_version)
        for key, api in sorted(APIS.items())
    ]
    known = version <= 3
    return ApiVersionsResponse(
        version=version if known else 0,
        error_code=ErrorCode.NONE if known else ErrorCode.UNSUPPORTED_VERSION,
        api_keys=spoken,
        throttle_time_ms=0,
    )
