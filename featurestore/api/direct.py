"""How does a hot request reach its handler? Straight, past a router that looks for parameters it has not.

The route stays declared in the application, for OpenAPI and for other methods; a third of the time of a small answer
went into finding it and its (no) dependencies.
"""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

Handler = Callable[[Request], Awaitable[Response]]


class Direct:
    """ASGI middleware: POST to one of the paths goes to its handler, all else to the application."""

    def __init__(self, app: ASGIApp, handlers: dict[str, Handler]) -> None:
        self._app = app
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if scope["type"] == "http" and scope["method"] == "POST":
            handler = self._handlers.get(scope["path"])
            if handler is not None:
                response = await handler(Request(scope, receive, send))
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)
