"""How does a hot request come from a connection to its handler and back? In one step, without ASGI's messages between.

uvicorn's protocol, which serves everything else and anything unusual about a request of these too: other versions of
HTTP, bodies in pieces or large ones, pipelined requests, proxies, upgrades, an access log. A third of the time of a
small answer went into the messages, events and states that a request in general needs.
"""

import asyncio
from typing import Any

from starlette.types import Message
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from featurestore.api.connections import ConnectionBounds, Connections, connections_of
from featurestore.api.direct import DirectApp, HotHandler, RawRequest
from featurestore.api.faults import fault

_WHOLE_BYTES = 1 << 16
"""Larger bodies are read in pieces, as fast as they are used."""
_SIZE_DIGITS = 9
_CODES = {408: "request_timeout", 431: "headers_too_large", 503: "too_many_connections"}
_LINES = {
    408: b"HTTP/1.1 408 Request Timeout\r\n",
    431: b"HTTP/1.1 431 Request Header Fields Too Large\r\n",
    503: b"HTTP/1.1 503 Service Unavailable\r\n",
}
_UNUSUAL = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"transfer-encoding", b"upgrade", b"expect"})


class DirectProtocol(HttpToolsProtocol):
    """uvicorn's protocol of one connection, bounded, with a shorter way for the handlers of a DirectApp."""

    bounds = ConnectionBounds()

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._in_head = True
        self._refused = False
        self._fresh = True
        self._moved = False
        """Whether the head of a request ended in the bytes at hand."""
        self._taken = 0
        """Bytes of the present head, or of what frames the present body."""
        self._chunk = 0
        self._until_s: float | None = None
        """When the head or body that is being read must have ended; None between requests."""
        self._writes_until_s: float | None = None
        self._left: int | None = None
        """Bytes that are still read of a body whose request is answered, so that the caller gets to read the answer."""
        self._all: Connections | None = None
        plain = not (self.config.access_log or self.root_path or self.limit_concurrency)
        self._handlers = _handlers_of(self.app) if plain else {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Takes the connection in, where there is room."""
        super().connection_made(transport)
        self._until_s = self.loop.time() + self.bounds.head_s
        self._all = connections_of(self.server_state, self.bounds, self.loop)
        self._all.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Lets the connection go."""
        if self._all is not None:
            self._all.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads on, within the bounds of a head and of what frames a body."""
        if self._refused:
            return
        if self._until_s is None:
            self._until_s = self.loop.time() + self.bounds.head_s
        self._moved = False
        self._chunk = len(data)
        if self._left is not None:
            self._left -= self._chunk
            if self._left < 0:
                self.transport.abort()
                return
        if not self._in_head:
            self._taken += self._chunk
        super().data_received(data)
        if self._in_head and not self._moved:
            self._taken += self._chunk
        if self._taken > self.bounds.head_bytes:
            self.end(431, f"a request's head is larger than {self.bounds.head_bytes} bytes")

    def on_response_complete(self) -> None:
        """Goes on to the next request, unless the rest of this one's body is still to come."""
        if not self._in_head and self._left is None and not self.transport.is_closing():
            self._left = self.bounds.unread_bytes
            self._until_s = self.loop.time() + self.bounds.unread_s
        super().on_response_complete()

    def late(self, now_s: float) -> str:
        """What takes too long: a head, a body, or the caller's reading."""
        if self._writes_until_s is not None and now_s > self._writes_until_s:
            return "an answer was not read"
        if self._until_s is not None and now_s > self._until_s and not self.flow.read_paused:
            return "a request's head was not sent" if self._in_head else "a request's body was not sent"
        return ""

    def end(self, status: int, why: str) -> None:
        """Answers with that status where nothing else is being answered, and closes."""
        self._refused = True
        transport = self.transport
        if transport.is_closing():
            return
        if self._writes_until_s is not None or not (self.cycle is None or self.cycle.response_complete):
            transport.abort()
            return
        answer = fault(status, _CODES[status], f"{why}; the connection is closed")
        body = bytes(answer.body)
        lines = [_LINES[status], *(b"%b: %b\r\n" % header for header in answer.raw_headers)]
        transport.write(b"".join([*lines, b"connection: close\r\n\r\n", body]))
        transport.close()

    def pause_writing(self) -> None:
        """The caller does not read as fast as it is answered."""
        self._writes_until_s = self.loop.time() + self.bounds.write_s
        super().pause_writing()

    def resume_writing(self) -> None:
        """The caller has read."""
        self._writes_until_s = None
        super().resume_writing()

    def _should_upgrade_to_ws(self) -> bool:
        # No route speaks it, and another protocol would have none of these bounds.
        return False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keeps a header; those after a body are counted and left out."""
        if len(self.headers) >= self.bounds.headers:
            self.end(431, f"a request has more than {self.bounds.headers} headers")
        elif self._in_head:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        """A part of a body: what frames it may be a multiple of it and no more."""
        self._taken -= 9 * len(body)
        if not self._refused:
            super().on_body(body)

    def on_message_begin(self) -> None:
        """Puts off what a request needs that goes the general way."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        """Chooses the way."""
        self._moved = True
        if self._refused or self._is_too_large():
            return
        if self._fresh and self._all is not None:
            self._fresh = False
            self._all.settled(self)
        self._in_head = False
        self._taken = 0
        if self._until_s is not None:
            self._until_s += self.bounds.body_s
        handler = self._handlers.get(self.url)
        if handler is not None and self._is_usual():
            self.cycle = _Cycle(self, handler)  # type: ignore[assignment]  # it has all that is used of a cycle
            return
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        # The scope has this list.
        self.headers += headers
        super().on_headers_complete()

    def _is_too_large(self) -> bool:
        if self._taken + self._chunk > self.bounds.head_bytes:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self.bounds.head_bytes:
                self.end(431, f"a request's head is larger than {self.bounds.head_bytes} bytes")
        if len(self.pipeline) >= self.bounds.pipelined:
            self.end(503, f"more than {self.bounds.pipelined} requests wait for an earlier one")
        return self._refused

    def _is_usual(self) -> bool:
        parser, names = self.parser, dict(self.headers)
        size = names.get(b"content-length", b"")
        return (
            parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and size.isdigit()
            and len(size) <= _SIZE_DIGITS
            and int(size) <= _WHOLE_BYTES
            and _UNUSUAL.isdisjoint(names)
            and (self.cycle is None or self.cycle.response_complete)
        )

    def on_message_complete(self) -> None:
        """Starts a request whose body is whole."""
        if self._refused:
            return
        self._in_head, self._moved, self._taken, self._until_s, self._left = True, True, 0, None, None
        cycle = self.cycle
        if isinstance(cycle, _Cycle) and cycle.more_body:
            cycle.more_body = False
            task = self.loop.create_task(cycle.run())
            # As uvicorn does: it waits for them before it ends.
            task.add_done_callback(self.tasks.discard)
            self.tasks.add(task)
        else:
            super().on_message_complete()


class _Cycle:
    """One request and its response, with what the protocol asks of any."""

    def __init__(self, protocol: DirectProtocol, handler: HotHandler) -> None:
        self._protocol = protocol
        self._handler = handler
        self._headers = protocol.headers
        self._path = protocol.url.decode()
        self.body = bytearray()
        self.more_body = True
        self.keep_alive = True
        """False once the server ends."""
        self.disconnected = False
        self.response_complete = False
        self.message_event = _NOBODY_WAITS

    async def run(self) -> None:
        """Answers; whatever keeps that from being done ends the connection."""
        protocol = self._protocol
        transport = protocol.transport
        try:
            scope = {"path": self._path, "client": protocol.client, "headers": self._headers}
            status, headers, body = await self._handler.respond(RawRequest(scope), self._receive)
            if protocol.flow.write_paused and not self.disconnected:
                await protocol.flow.drain()
            if self.disconnected:
                return
            lines = [STATUS_LINE[status]]
            lines += [b"%b: %b\r\n" % header for header in (*protocol.server_state.default_headers, *headers)]
            lines.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
            transport.writelines((b"".join(lines), body))
            self.response_complete = True
        finally:
            if not (self.response_complete and self.keep_alive):
                self.response_complete = True
                transport.close()
            protocol.on_response_complete()

    async def _receive(self) -> Message:
        return {"type": "http.request", "body": bytes(self.body), "more_body": False}


_NOBODY_WAITS = asyncio.Event()
"""A request that is run has all of its body: nothing that happens to its connection is waited for."""


def _handlers_of(app: Any) -> dict[bytes, HotHandler]:
    """The handlers of the DirectApp inside of what uvicorn calls; none where there is none."""
    while app is not None and not isinstance(app, DirectApp):
        app = getattr(app, "app", None)
    return {} if app is None else {path.encode(): handler for path, handler in app.direct.items()}
