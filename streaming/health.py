"""How does a worker answer those who look after it? `/health`, `/ready` and `/metrics` over HTTP, on a thread.

- `/health`: the loop is alive; 503 once a round has taken longer than it ever should. Restart it then.
- `/ready`: it does what it is there for; 503 while it has not been told what to read, claims, fails, or
  could not look the plan up for long.
- `/metrics`: everything measured, in Prometheus's text format.
"""

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from featurestore.errors import ConfigurationError
from streaming.standing import Standing

STALLED_S: Final = 60.0
"""A round of the loop that takes longer has hung."""


CONNECTIONS: Final = 64
"""Those that are answered at a time."""
LONGEST_BLIND_S: Final = 30.0
"""How old the last good look at the plan may be."""


class Pulse:
    """When the loop came round last. `beat` is the loop's, the rest anybody's."""

    def __init__(self, seconds: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._last = self._saw_plan = seconds()

    def beat(self) -> None:
        """A round begins."""
        self._last = self._seconds()

    def saw_plan(self) -> None:
        """The plan was looked up."""
        self._saw_plan = self._seconds()

    @property
    def blind_s(self) -> float:
        """How long ago the plan was last looked up."""
        return self._seconds() - self._saw_plan

    @property
    def age_s(self) -> float:
        """How long ago the present round began."""
        return self._seconds() - self._last


def not_ready(standing: Standing | None) -> str | None:
    """Why a worker does not do its work yet, or any more; None where it does.

    >>> not_ready(None)
    'the worker is starting'
    """
    if standing is None:
        return "the worker is starting"
    if not standing.assigned:
        return "the consumer group has not assigned anything yet"
    if standing.to_claim:
        return f"{standing.to_claim} partitions are to be claimed"
    if standing.failures:
        return f"{standing.failures} rounds failed in a row; the log says why"
    return None


class HealthServer:
    """Serves from `start` to `stop`. Raises ConfigurationError where the address cannot be had."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        registry: CollectorRegistry,
        pulse: Pulse,
        standing: Callable[[], Standing | None],
        stalled_s: float = STALLED_S,
    ) -> None:
        def answer(path: str) -> tuple[int, str, bytes]:
            if path == "/metrics":
                return 200, CONTENT_TYPE_LATEST, generate_latest(registry)
            if path == "/health":
                age_s = pulse.age_s
                stalled = age_s > stalled_s
                return _json(stalled, {"status": "stalled" if stalled else "ok", "round_s": round(age_s, 3)})
            if path == "/ready":
                found = standing()
                reason = not_ready(found)
                if reason is None and pulse.blind_s > LONGEST_BLIND_S:
                    reason = f"the plan could not be looked up for {pulse.blind_s:.0f} s; the log says why"
                told: dict[str, Any] = {"status": "not ready", "reason": reason} if reason else {"status": "ready"}
                if found is not None:
                    told |= {"plan_version": found.plan_version, "partitions": len(found.partitions)}
                return _json(reason is not None, told)
            return 404, "text/plain", b"there are /health, /ready and /metrics\n"

        try:
            self._server = _Few((host, port), _handler(answer))
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {host}:{port}: {error}; choose another --metrics-port"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    @property
    def address(self) -> str:
        """`host:port`, the port that was taken."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def __enter__(self) -> Self:
        """Serve."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Few(ThreadingHTTPServer):
    """A thread a connection, for so many at a time: the one that has taken longest makes room for the next."""

    daemon_threads = True

    def __init__(self, *declared: Any) -> None:
        super().__init__(*declared)
        self._taken: dict[Any, None] = {}
        self._changing = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changing:
            if len(self._taken) >= CONNECTIONS:
                self._end(next(iter(self._taken)))
            self._taken[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._changing:
            self._taken.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller who went away is worth no line."""

    def _end(self, request: Any) -> None:
        del self._taken[request]
        with suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)


def _handler(answer: Callable[[str], tuple[int, str, bytes]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            code, kind, body = answer(self.path.partition("?")[0])
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            """Being looked at is not worth a line."""

    return Handler


def _json(failed: bool, told: dict[str, Any]) -> tuple[int, str, bytes]:  # noqa: FBT001 - private
    return 503 if failed else 200, "application/json", json.dumps(told).encode()
