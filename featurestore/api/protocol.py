"""How does a hot request come from a connection to its handler and back? In one step, without ASGI's messages between.

uvicorn's protocol, which serves everything else and anything unusual about a request of these too: other versions of
HTTP, bodies in pieces or large ones, pipelined requests, proxies, upgrades, an access log. A third of the time of a
small answer went into the messages, events and states that a request in general needs.
"""

import asyncio
from typing import Any

from starlette.types import Message
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from featurestore.api.direct import DirectApp, HotHandler, RawRequest

_WHOLE_BYTES = 1 << 16
"""Larger bodies are read in pieces, as fast as they are used."""
_UNUSUAL = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"transfer-encoding", b"upgrade", b"expect"})


class DirectProtocol(HttpToolsProtocol):
    """uvicorn's protocol of one connection, with a shorter way for the handlers of a DirectApp."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        plain = not (self.config.access_log or self.root_path or self.limit_concurrency)
        self._handlers = _handlers_of(self.app) if plain else {}

    def on_message_begin(self) -> None:
        """Puts off what a request needs that goes the general way."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        """Chooses the way."""
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

    def _is_usual(self) -> bool:
        parser, names = self.parser, dict(self.headers)
        size = names.get(b"content-length", b"")
        return (
            parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and size.isdigit()
            and int(size) <= _WHOLE_BYTES
            and _UNUSUAL.isdisjoint(names)
            and (self.cycle is None or self.cycle.response_complete)
        )

    def on_message_complete(self) -> None:
        """Starts a request whose body is whole."""
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
