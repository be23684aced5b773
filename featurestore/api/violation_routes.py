"""What does a producer get to see of the contracts it broke? `GET /violations`, and one of them as JSON or a page."""

import asyncio
import base64
import binascii
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

import msgspec
from fastapi import FastAPI, Query, Request
from fastapi import Path as InPath
from starlette.responses import Response

from featurestore.api.answer import JSON
from featurestore.api.documentation import ERRORS
from featurestore.api.faults import Refused, answer_to
from featurestore.api.gate import Gate
from featurestore.api.identity import Caller
from featurestore.api.metrics import Metrics
from featurestore.clock import parse_instant
from featurestore.errors import UsageError
from validation.errors import PlatformError
from validation.instant import iso
from validation.page import violation_page
from validation.violations import Folded, ViolationStore

HTML: Final = "text/html"
PAGE_SIZE: Final = 100
_MOST: Final = 1_000
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
"""The page needs nothing from anywhere, and may not: its samples were written by others."""


class ViolationList(msgspec.Struct, frozen=True):
    """What `GET /violations` answers."""

    violations: tuple[Folded, ...]
    """The latest first."""
    next: str | None = None
    """`after` of the next page; None where this is the last one."""


SCHEMAS: Final = (ViolationList, Folded)
"""What the OpenAPI document must define."""


def add_violation_routes(app: FastAPI, *, store: ViolationStore, gate: Gate, metrics: Metrics) -> None:
    """The routes; each asks the store in a thread."""

    async def answered(request: Request, handle: Callable[[Caller], Awaitable[Response]]) -> Response:
        started = time.perf_counter()
        try:
            response = await handle(gate.admit(request))
        except PlatformError as error:
            response = answer_to(error)
        metrics.answered(response.status_code, time.perf_counter() - started)
        return response

    def seen_by(request: Request, caller: Caller) -> frozenset[str] | None:
        found: list[frozenset[str] | None] = []
        gate.allow(request, caller, lambda: found.append(visible_to(caller)))
        return found[0]

    @app.get("/violations", openapi_extra=_LIST, responses=ERRORS, response_class=Response)
    async def list_violations(
        request: Request,
        producer: Annotated[str | None, Query(description="Only those of this producer")] = None,
        contract: Annotated[str | None, Query(description="Only those of the contract of this name")] = None,
        source: Annotated[str | None, Query(description="Only those of this source", min_length=1)] = None,
        since: Annotated[str | None, Query(description="Only those seen at or after this instant (ISO 8601)")] = None,
        limit: Annotated[int, Query(description="How many at most", ge=1, le=_MOST)] = PAGE_SIZE,
        after: Annotated[str | None, Query(description="`next` of the page before")] = None,
    ) -> Response:
        """Contract violations, each once with its count, the latest first. Producers see their own."""

        async def handle(caller: Caller) -> Response:
            among = seen_by(request, caller)
            found = await asyncio.to_thread(
                store.find,
                producer=producer,
                among=among,
                contract=contract,
                source=source,
                since=None if since is None else iso(parse_instant(since)),
                after=None if after is None else _place(after),
                limit=limit + 1,
            )
            more = len(found) > limit
            told = ViolationList(tuple(found[:limit]), _token(found[limit - 1]) if more else None)
            return Response(msgspec.json.encode(told), media_type=JSON)

        return await answered(request, handle)

    @app.get("/violations/{violation_id}", openapi_extra=_ONE, responses=ERRORS, response_class=Response)
    async def show_violation(
        request: Request, violation_id: Annotated[str, InPath(description="`id` of the violation")]
    ) -> Response:
        """One violation with all its repetitions, as JSON or as a page that needs no other address (Accept header)."""

        async def handle(caller: Caller) -> Response:
            among = seen_by(request, caller)
            wanted = _media_type(request.headers.get("accept"))
            found = await asyncio.to_thread(store.get, violation_id)
            # Whether another producer has a violation of this id is nobody's business.
            if found is None or (among is not None and found.producer not in among):
                raise Refused(
                    404, "unknown_name", f"no violation {violation_id!r} of yours; GET /violations lists them"
                )
            if wanted == HTML:
                return Response(violation_page(found), media_type=HTML, headers=_HEADERS)
            return Response(msgspec.json.encode(found), media_type=JSON)

        return await answered(request, handle)


def visible_to(caller: Caller) -> frozenset[str] | None:
    """The producers whose violations a caller may see, None for everybody's; raises Refused (403).

    >>> visible_to(Caller(name="k", roles=frozenset({"producer"}), producers=frozenset({"fares"})))
    frozenset({'fares'})
    """
    if "admin" in caller.roles:
        return None
    if not caller.may("see_violations"):
        raise Refused(403, "forbidden", f"{caller.name} may not see violations: producers see their own, admins all")
    if not caller.producers:
        raise Refused(
            403,
            "forbidden",
            f"{caller.name} is nobody's: `featurestore keys create --role producer --producer NAME` makes a key of "
            "a producer (of tokens, the claim featurestore_producers)",
        )
    return caller.producers


def _media_type(accept: str | None) -> str:
    """JSON unless a page is asked for first, as browsers do; raises Refused (406) where neither is accepted."""
    for part in (accept or "*/*").split(","):
        wanted = part.partition(";")[0].strip().lower()
        if wanted in (HTML, "text/*", "application/xhtml+xml"):
            return HTML
        if wanted in (JSON, "application/*", "*/*"):
            return JSON
    raise Refused(406, "not_acceptable", f"Accept is {accept!r}; this route answers {JSON}, {HTML}")


def _token(last: Folded) -> str:
    return base64.urlsafe_b64encode(f"{last.last_seen} {last.id}".encode()).decode()


def _place(token: str) -> tuple[str, str]:
    try:
        last_seen, _, violation_id = base64.urlsafe_b64decode(token.encode()).decode().partition(" ")
    except (binascii.Error, ValueError):
        last_seen = violation_id = ""
    if not last_seen or not violation_id:
        raise UsageError("after: expected `next` of the page before")
    return last_seen, violation_id


_EXAMPLE: dict[str, Any] = {
    "id": "9f1c2b7a64d0e853",
    "source": "departures",
    "contract": "departures",
    "version": "1.2.0",
    "producer": "operations",
    "owner": "flight-operations",
    "support": "https://chat.example.com/flight-operations",
    "boundary": "event",
    "rule_id": "carrier_code",
    "expectation": "expect_column_values_to_match_regex",
    "expected": {"column": "carrier", "regex": "^[A-Z0-9]{2}$"},
    "severity": "critical",
    "mode": "quarantine",
    "dimension": "conformity",
    "description": "carriers are two characters",
    "outcome": "failed",
    "origin": "departures",
    "origin_id": "u5wDpzYCRXK2vOHt1dZbLg",
    "origin_partition": 2,
    "origin_range": [4000, 4999],
    "event_window": ["2013-06-01T11:00:00+00:00", "2013-06-01T12:00:00+00:00"],
    "count": 3,
    "rows": 17,
    "evaluated": 3000,
    "allowed": 0,
    "first_seen": "2013-06-01T11:05:00+00:00",
    "last_seen": "2013-06-01T12:00:05+00:00",
    "report_id": "departures-u5wDpzYCRXK2vOHt1dZbLg-2-4000-4999",
    "observed": None,
    "reason": "",
    "samples": [{"row": 4012, "values": {"carrier": "UAL"}}],
    "affected": ["view departures_recent", "service departure_delay"],
    "action": "17 rows set aside",
    "replay": "featurestore quarantine replay departures",
    "number": 41,
}


def _responses(kind: type[msgspec.Struct], example: dict[str, Any], *, page: bool) -> dict[str, Any]:
    content: dict[str, Any] = {
        JSON: {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}, "example": example},
    }
    if page:
        content[HTML] = {"schema": {"type": "string"}}
    return {"responses": {"200": {"description": "What is known", "content": content}}}


_LIST: Final = _responses(ViolationList, {"violations": [_EXAMPLE], "next": None}, page=False)
_ONE: Final = _responses(Folded, _EXAMPLE, page=True)
