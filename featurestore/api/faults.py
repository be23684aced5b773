"""Which HTTP answer does a failure get?

Every error body has one shape: `{"code": …, "message": …, "exists": […]}`. Codes are stable words for programs,
messages are sentences for people, `exists` lists the names that would have been right.
"""

from collections.abc import Mapping

import orjson
from starlette.responses import Response

from featurestore.errors import NotExact, StaleStore, StoreUnavailable, UnknownName, UsageError
from validation.errors import PlatformError
from validation.redaction import redacted

RETRY_AFTER_S = 1
_LONGEST_MESSAGE = 1000
_MOST_NAMES = 200
_STATUS: dict[type[PlatformError], tuple[int, str]] = {
    UnknownName: (404, "unknown_name"),
    NotExact: (422, "not_exact"),
    UsageError: (422, "invalid_request"),
    StoreUnavailable: (503, "store_unavailable"),
    StaleStore: (503, "not_ready"),
}
"""Nearest class first; anything else of ours is a failure of the service: 503, never 500."""


class Refused(UsageError):
    """A request that HTTP has a status of its own for: too large, not JSON, not allowed."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        self.status, self.code, self.headers = status, code, dict(headers or {})
        super().__init__(message)


def answer_to(error: PlatformError) -> Response:
    """The response that tells a caller about an error.

    >>> answer_to(UnknownName("view", "wether", ["weather"])).body
    b'{"code":"unknown_name","message":"no view \\'wether\\'; did you mean \\'weather\\'?","exists":["weather"]}'
    >>> answer_to(StoreUnavailable("away")).headers["retry-after"]
    '1'
    """
    headers: dict[str, str] = {}
    if isinstance(error, Refused):
        status, code, headers = error.status, error.code, error.headers
    else:
        status, code = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), (503, "unavailable"))
    if status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    return fault(status, code, str(error), getattr(error, "existing", ()), headers)


def defect() -> Response:
    """The response to a request that met a defect of ours; the log says more than callers may know."""
    return fault(500, "defect", "the service failed on this request; its log says more")


def fault(
    status: int,
    code: str,
    message: str,
    exists: tuple[str, ...] | list[str] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A response of the one error shape; long messages and lists are cut."""
    if len(message) > _LONGEST_MESSAGE:
        message = message[: _LONGEST_MESSAGE - 1] + "…"
    # A name from a URL, a header or the store may hold half a surrogate pair, which JSON cannot.
    message = redacted(message.encode("utf-8", "replace").decode())
    names = [str(each).encode("utf-8", "replace").decode() for each in list(exists)[:_MOST_NAMES]]
    body = orjson.dumps({"code": code, "message": message, "exists": names})
    return Response(body, status, dict(headers or {}), "application/json")
