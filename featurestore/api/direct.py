"""How does a hot request reach its handler? Straight, past the middleware and a router that have nothing to add.

The route stays declared in the application, for OpenAPI and for other methods; a third of the time of a small answer
went into finding it and its (no) dependencies.
"""

from collections.abc import MutableMapping
from typing import Any, NamedTuple, Protocol

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send


class Answer(NamedTuple):
    """One response, as ASGI has it."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class RawRequest:
    """A request before anybody has made an object of it; the first of several headers of one name counts."""

    __slots__ = ("headers", "scope")

    def __init__(self, scope: MutableMapping[str, Any]) -> None:
        self.scope = scope
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}


class HotHandler(Protocol):
    """What answers hot requests; every failure too."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        ...

    async def respond(self, request: RawRequest, receive: Receive) -> Answer:
        """The response to a request."""
        ...


class DirectApp(FastAPI):
    """A FastAPI application that hands POST requests to some paths over as they come."""

    def __init__(self, **declared: Any) -> None:
        super().__init__(**declared)
        self.direct: dict[str, HotHandler] = {}
        """By path."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if scope["type"] == "http" and scope["method"] == "POST":
            handler = self.direct.get(scope["path"])
            if handler is not None:
                await handler(scope, receive, send)
                return
        await super().__call__(scope, receive, send)
