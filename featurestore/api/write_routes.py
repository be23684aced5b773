"""Which routes change what the store holds? Feast's `/push`, `/write-to-online-store` and the two of materialization.

Bodies and statuses are Feast's. Each call is let in, permitted and audited before it begins.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Query, Request
from starlette.responses import Response

from featurestore.api.body import decoded, read_body
from featurestore.api.documentation import ERRORS, body_of
from featurestore.api.faults import answer_to
from featurestore.api.gate import Gate
from featurestore.api.identity import Action, Caller
from featurestore.api.limits import Limits
from featurestore.api.materialization import IncrementalRequest, Materializer, MaterializeRequest, views_of, words_of
from featurestore.api.metrics import Metrics
from featurestore.api.serving import PlanWatch
from featurestore.api.writes import MODES, PushRequest, WriteRequest, Writes
from featurestore.errors import UsageError
from featurestore.plan import Plan
from validation.errors import PlatformError

BODIES = (PushRequest, WriteRequest, MaterializeRequest, IncrementalRequest)
"""What the OpenAPI document must define."""
_DF = {"origin": ["EWR"], "temp_f": [41.0], "event_timestamp": ["2013-01-01T11:00:00Z"]}
_FEAST_ACTIONS = {
    "online": ("write_online",),
    "offline": ("write_offline",),
    "online_and_offline": ("write_online", "write_offline"),
}


class WriteRoutes:
    """What the write routes share: the plan in force, the gate, and what writes."""

    def __init__(
        self, watch: PlanWatch, gate: Gate, limits: Limits, metrics: Metrics, writes: Callable[[Plan], Writes]
    ) -> None:
        self._watch = watch
        self._gate = gate
        self._limits = limits
        self._metrics = metrics
        self._make = writes
        self._writes: tuple[Plan, Writes] | None = None

    async def body(self, request: Request) -> bytes:
        """The bytes of a request's body."""
        return await read_body(request.headers, request.receive, self._limits.body_bytes)

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        return self._watch.current.plan

    def writes(self) -> Writes:
        """What writes by the plan in force."""
        plan = self.plan
        if self._writes is None or self._writes[0] is not plan:
            self._writes = (plan, self._make(plan))
        return self._writes[1]

    async def answer(
        self, request: Request, action: Action, handle: Callable[[Caller], Awaitable[Response]]
    ) -> Response:
        """What a handler answers, or the one error shape; a caller who may not do this at all is refused first."""
        started = time.perf_counter()
        try:
            caller = self._gate.admit(request)
            self._gate.begin(request, caller, action, self.plan)
            response = await handle(caller)
        except PlatformError as error:
            response = answer_to(error)
        self._metrics.answered(response.status_code, time.perf_counter() - started)
        return response

    async def audited(
        self,
        request: Request,
        caller: Caller,
        action: Action,
        views: list[str],
        work: Callable[[], Awaitable[Any]],
        feast: tuple[str, ...] = (),
    ) -> Any:
        """What `work` gives, between its two lines in the audit log; refused before the first without permission."""
        ended = self.begun(request, caller, action, views, feast)
        try:
            result = await work()
        except BaseException as error:
            ended(error)
            raise
        ended(None)
        return result

    def permit(
        self, request: Request, caller: Caller, action: Action, views: list[str], feast: tuple[str, ...] = ()
    ) -> None:
        """Raise Refused (403), which is audited, where the caller may not do this with one of the views."""
        permissions = self._gate.permissions(self.plan)
        self._gate.allow(
            request, caller, lambda: permissions.check(caller, action, views, feast=feast), resources=tuple(views)
        )

    def begun(
        self, request: Request, caller: Caller, action: Action, views: list[str], feast: tuple[str, ...] = ()
    ) -> Callable[[BaseException | None], None]:
        """Keep the beginning of a permitted write; what is returned keeps its end. Raises Refused (403), audited."""
        self.permit(request, caller, action, views, feast)
        return self._gate.write(request, caller, tuple(views))


def add_write_routes(app: FastAPI, routes: WriteRoutes) -> None:
    """The routes that write rows."""

    @app.post("/push", openapi_extra=_PUSH, responses=ERRORS, response_class=Response)
    async def push(request: Request) -> Response:
        """Rows for every view that a push source feeds: online, into its offline source, or both."""

        async def handle(caller: Caller) -> Response:
            wanted = decoded(await routes.body(request), PushRequest)
            if wanted.to not in MODES:
                raise UsageError(f"to is {wanted.to!r}; expected {', '.join(MODES)}")
            writes = routes.writes()
            views = [view.name for view in writes.pushed_views(wanted.push_source_name)]
            counts = await routes.audited(
                request,
                caller,
                "push",
                views,
                lambda: asyncio.to_thread(writes.push, wanted),
                feast=_FEAST_ACTIONS[wanted.to],
            )
            return _json(counts)

        return await routes.answer(request, "push", handle)

    @app.post("/write-to-online-store", openapi_extra=_WRITE, responses=ERRORS, response_class=Response)
    async def write_to_online_store(request: Request) -> Response:
        """Rows for one view, online."""

        async def handle(caller: Caller) -> Response:
            wanted = decoded(await routes.body(request), WriteRequest)
            writes = routes.writes()
            routes.plan.view(wanted.feature_view_name)
            counts = await routes.audited(
                request,
                caller,
                "write_online",
                [wanted.feature_view_name],
                lambda: asyncio.to_thread(writes.write, wanted),
            )
            return _json(counts)

        return await routes.answer(request, "write_online", handle)


def add_materialize_routes(app: FastAPI, routes: WriteRoutes, materializer: Materializer | None) -> None:
    """The routes that bring offline values online; none without what materializes."""
    if materializer is None:
        return

    async def run(
        request: Request, caller: Caller, wanted: MaterializeRequest | IncrementalRequest, *, wait: bool
    ) -> Response:
        views = views_of(wanted, routes.plan)
        # Permission first: what is wrong with the rest of the request is the business of those who may ask.
        routes.permit(request, caller, "materialize", views)
        words = words_of(wanted, views)
        ended, told = routes.begun(request, caller, "materialize", views), False

        def once(error: BaseException | None) -> None:
            nonlocal told
            if not told:
                told = True
                ended(error)

        try:
            await materializer.run(words, wait=wait, ended=once)
        except asyncio.CancelledError:
            raise  # the run goes on, and tells its end itself
        except BaseException as error:
            once(error)
            raise
        return _json(None) if wait else _json({"status": "accepted", "feature_views": views}, 202)

    @app.post("/materialize", openapi_extra=_MATERIALIZE, responses=ERRORS, response_class=Response)
    async def materialize(request: Request, background: Annotated[bool, Query(alias="async")] = False) -> Response:  # noqa: FBT002
        """The latest offline values between two instants, brought online; answers at the end, or at once if async."""

        async def handle(caller: Caller) -> Response:
            wanted = decoded(await routes.body(request), MaterializeRequest)
            return await run(request, caller, wanted, wait=not background)

        return await routes.answer(request, "materialize", handle)

    @app.post("/materialize-incremental", openapi_extra=_INCREMENTAL, responses=ERRORS, response_class=Response)
    async def materialize_incremental(
        request: Request,
        background: Annotated[bool, Query(alias="async")] = False,  # noqa: FBT002 - how FastAPI takes a query
    ) -> Response:
        """What came offline since each view's last run, brought online."""

        async def handle(caller: Caller) -> Response:
            wanted = decoded(await routes.body(request), IncrementalRequest)
            return await run(request, caller, wanted, wait=not background)

        return await routes.answer(request, "materialize", handle)


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


_COUNTS = {"type": "object", "required": ["rows"], "additionalProperties": {"type": "integer"}}
_WRITTEN: dict[str, tuple[str, dict[str, Any], object]] = {
    "200": ("What was written", _COUNTS, {"rows": 1, "written": 1, "superseded": 0})
}
_PUSH = body_of(PushRequest, {"push_source_name": "weather_push", "df": _DF, "to": "online"}, _WRITTEN)
_WRITE = body_of(WriteRequest, {"feature_view_name": "weather", "df": _DF}, _WRITTEN)
_ENDED: dict[str, tuple[str, dict[str, Any], object]] = {
    "200": ("It is done", {"type": "null"}, None),
    "202": (
        "It has begun",
        {"type": "object", "required": ["status", "feature_views"]},
        {"status": "accepted", "feature_views": ["weather"]},
    ),
}
_MATERIALIZE = body_of(
    MaterializeRequest, {"start_ts": "2013-01-01T00:00:00Z", "end_ts": "2013-01-02T00:00:00Z"}, _ENDED
)
_INCREMENTAL = body_of(IncrementalRequest, {"end_ts": "2013-01-02T00:00:00Z"}, _ENDED)
