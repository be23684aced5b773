"""Which routes does the feature API have? A FastAPI application made of what it is given.

`POST /get-online-features` is Feast's route with Feast's JSON; `GET /health`, `/ready`, `/version` and `/metrics`
are for those who run it. Handlers read the body themselves and answer bytes: the hot path meets no model validation.
"""

import asyncio
import contextlib
import importlib.metadata
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import orjson
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from featurestore.api.access import ApiKeys
from featurestore.api.answer import media_type
from featurestore.api.documentation import ERRORS, FEATURES, describe
from featurestore.api.faults import Refused, answer_to, fault
from featurestore.api.limits import Limits
from featurestore.api.metrics import Metrics
from featurestore.api.request import FeatureRequest, decode_request
from featurestore.api.serving import PlanSource, PlanWatch, Reader, Serving
from featurestore.clock import Clock
from featurestore.errors import StoreUnavailable
from featurestore.plan import Plan
from validation.errors import PlatformError

POLL_S = 1.0
_log = logging.getLogger(__name__)


class Pinged(Protocol):
    """A store that says whether it is there."""

    def ping(self) -> object:
        """Raises StoreUnavailable where the store does not answer."""
        ...


def create_app(
    *,
    plans: PlanSource,
    reader: Callable[[Plan], Reader],
    store: Pinged,
    clock: Clock,
    metrics: Metrics,
    keys: ApiKeys,
    limits: Limits | None = None,
    poll_s: float = POLL_S,
) -> FastAPI:
    """The application: it serves from the plan in `plans`, read by what `reader` makes of it.

    The plan is looked up every `poll_s` seconds; a new one is taken over between two requests. Without a plan or with
    the store away, requests get 503 with Retry-After, and the first look-up that succeeds ends that.
    """
    bounds = limits or Limits()
    watch = PlanWatch(plans, lambda plan: Serving(plan, reader(plan), clock, bounds, metrics), metrics)

    answering = _Answering(watch)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(watch.look)
        watching = asyncio.create_task(_watch(watch, poll_s))
        yield
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching

    # The interactive pages load scripts from elsewhere; /openapi.json needs nobody.
    app = FastAPI(title="Feature API", lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.post("/get-online-features", openapi_extra=FEATURES, responses=ERRORS, response_class=Response)
    async def get_online_features(request: Request) -> Response:
        """Features of one or many entities, in Feast's JSON, row by row, or as an Arrow stream (Accept header)."""
        started = time.perf_counter()
        try:
            keys.check(request.headers)
            wanted = media_type(request.headers.get("accept"))
            body = decode_request(await _body(request, bounds.body_bytes))
            response = Response(await answering.answer(body, wanted), media_type=wanted)
        except PlatformError as error:
            response = answer_to(error)
        metrics.answered(response.status_code, time.perf_counter() - started)
        return response

    @app.get("/health")
    async def health() -> Response:
        """Whether the process is alive; it looks at nothing else."""
        return _json({"status": "ok"})

    @app.get("/ready", responses=ERRORS)
    async def ready() -> Response:
        """Whether requests can be answered: a plan is in force and the online store answers."""
        try:
            version = watch.current.plan.version
            await asyncio.to_thread(store.ping)
        except PlatformError as error:
            return answer_to(error)
        return _json({"status": "ready", "plan_version": version})

    @app.get("/version", responses=ERRORS)
    async def version(request: Request) -> Response:
        """The product's version and the plan in force."""
        try:
            keys.check(request.headers)
            plan = watch.current.plan
        except PlatformError as error:
            return answer_to(error)
        return _json(
            {
                "version": importlib.metadata.version("featurestore"),
                "project": plan.project,
                "plan_version": plan.version,
                "plan_digest": plan.digest,
            }
        )

    @app.get("/metrics", responses=ERRORS)
    async def exposition(request: Request) -> Response:
        """Everything measured, for Prometheus."""
        try:
            keys.check(request.headers)
        except PlatformError as error:
            return answer_to(error)
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.add_exception_handler(HTTPException, _not_routed)
    app.add_exception_handler(Exception, _broken)
    describe(app, bounds)
    return app


class _Answering:
    """Answers on the event loop while the store is well, in threads while it is not.

    A read takes about a millisecond, less than handing it to a thread and back costs (measured: 10 to 40 % fewer
    requests a second with threads). A store that hangs would stop the loop for its whole time-out, health checks
    included: after the first failure requests wait in threads, until one succeeds.
    """

    def __init__(self, watch: PlanWatch) -> None:
        self._watch = watch
        self._away = False

    async def answer(self, request: FeatureRequest, wanted: str) -> bytes:
        """The body of the answer; raises what Serving.answer raises."""
        serving = self._watch.current
        try:
            if self._away:
                body = await asyncio.to_thread(serving.answer, request, wanted)
            else:
                body = serving.answer(request, wanted)
        except StoreUnavailable:
            self._away = True
            raise
        self._away = False
        return body


async def _watch(watch: PlanWatch, poll_s: float) -> None:
    while True:
        await asyncio.sleep(poll_s)
        await asyncio.to_thread(watch.look)


async def _body(request: Request, most: int) -> bytes:
    """The whole body; raises Refused (413) as soon as it is known to be too large."""
    chunks: list[bytes] = []
    size = int(length) if (length := request.headers.get("content-length", "")).isdecimal() else 0
    if size <= most:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > most:
                break
            chunks.append(chunk)
    if size > most:
        raise Refused(413, "body_too_large", f"the body is larger than {most} bytes; ask in parts")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _json(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    routes = sorted({path for route in request.app.routes if (path := getattr(route, "path", ""))})
    message = f"{request.method} {request.url.path}: {error.detail}"
    return fault(error.status_code, codes.get(error.status_code, "http_error"), message, routes, error.headers)


async def _broken(request: Request, error: Exception) -> Response:
    # A defect of ours; the server logs its traceback.
    _log.error("%s %s failed: %s", request.method, request.url.path, type(error).__name__)
    return fault(500, "defect", "the service failed on this request; its log says more")
