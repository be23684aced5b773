"""Which routes does the feature API have? A FastAPI application made of what it is given.

`POST /get-online-features` is Feast's route with Feast's JSON; those that write are in `write_routes`, those for who
runs it in `status_routes`, those for producers in `violation_routes`. Handlers read the body themselves and answer
bytes: the hot path meets no model validation.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from functools import partial

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from featurestore.api.access import ApiKeys
from featurestore.api.again import Again
from featurestore.api.answer import media_type
from featurestore.api.body import read_body
from featurestore.api.direct import Direct
from featurestore.api.documentation import ERRORS, FEATURES, describe
from featurestore.api.faults import answer_to, fault
from featurestore.api.gate import Gate
from featurestore.api.limits import Limits
from featurestore.api.materialization import Materializer
from featurestore.api.metrics import Metrics
from featurestore.api.request import FeatureRequest, decode_request
from featurestore.api.serving import PlanSource, PlanWatch, Reader, Serving
from featurestore.api.staleness import Staleness
from featurestore.api.status_routes import Pinged, add_status_routes
from featurestore.api.violation_routes import SCHEMAS, Violations, add_violation_routes
from featurestore.api.write_routes import BODIES, WriteRoutes, add_materialize_routes, add_write_routes
from featurestore.api.writes import Writes
from featurestore.clock import Clock
from featurestore.errors import StoreUnavailable
from featurestore.plan import Plan
from validation.errors import PlatformError

POLL_S = 1.0
_log = logging.getLogger(__name__)


def create_app(
    *,
    plans: PlanSource,
    reader: Callable[[Plan], Reader],
    store: Pinged,
    clock: Clock,
    metrics: Metrics,
    keys: ApiKeys,
    gate: Gate | None = None,
    writes: Callable[[Plan], Writes] | None = None,
    materializer: Materializer | None = None,
    staleness: Callable[[Plan], Staleness] | None = None,
    again: Again | None = None,
    violations: Violations | None = None,
    limits: Limits | None = None,
    poll_s: float = POLL_S,
) -> FastAPI:
    """The application: it serves from the plan in `plans`, read by what `reader` makes of it.

    The plan is looked up every `poll_s` seconds; a new one is taken over between two requests. Without a plan or with
    the store away, requests get 503 with Retry-After, and the first look-up that succeeds ends that. Without a `gate`
    the `keys` alone decide, and no keys let everybody in. Routes that write exist where there is what they need.
    `again` gets answers to look at after the response.
    """
    gate = gate or Gate(keys=keys, open=not keys)
    bounds = limits or Limits()

    def serving(plan: Plan) -> Serving:
        return Serving(plan, reader(plan), clock, bounds, metrics, None if again is None else again.of(plan))

    watch = PlanWatch(plans, serving, metrics)

    answering = _Answering(watch)

    def look() -> None:
        watch.look()
        gate.look()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(look)
        watching = asyncio.create_task(_watch(look, poll_s))
        if again is not None:
            again.start()
        yield
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        if again is not None:
            await asyncio.to_thread(again.stop)

    # The interactive pages load scripts from elsewhere; /openapi.json needs nobody.
    app = FastAPI(title="Feature API", lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.post("/get-online-features", openapi_extra=FEATURES, responses=ERRORS, response_class=Response)
    async def get_online_features(request: Request) -> Response:
        """Features of one or many entities, in Feast's JSON, row by row, or as an Arrow stream (Accept header)."""
        started = time.perf_counter()
        try:
            caller = gate.admit(request)
            wanted = media_type(request.headers.get("accept"))
            body = decode_request(await read_body(request, bounds.body_bytes))
            rules = gate.permissions(watch.current.plan)
            gate.allow(request, caller, partial(rules.check_read, caller, body.features, body.feature_service))
            response = Response(await answering.answer(body, wanted), media_type=wanted)
        except PlatformError as error:
            response = answer_to(error)
        metrics.answered(response.status_code, time.perf_counter() - started)
        return response

    app.add_middleware(Direct, handlers={"/get-online-features": get_online_features})
    add_status_routes(app, watch=watch, store=store, gate=gate, metrics=metrics, staleness=staleness)
    if violations is not None:
        add_violation_routes(app, store=violations, gate=gate, metrics=metrics)
    if writes is not None:
        routes = WriteRoutes(watch, gate, bounds, metrics, writes)
        add_write_routes(app, routes)
        if materializer is not None:
            add_materialize_routes(app, routes, materializer)

    app.add_exception_handler(RequestValidationError, _unfit)
    app.add_exception_handler(HTTPException, _not_routed)
    app.add_exception_handler(Exception, _broken)
    describe(app, bounds, (*BODIES, *SCHEMAS))
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


async def _watch(look: Callable[[], None], poll_s: float) -> None:
    while True:
        await asyncio.sleep(poll_s)
        await asyncio.to_thread(look)


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    routes = sorted({path for route in request.app.routes if (path := getattr(route, "path", ""))})
    message = f"{request.method} {request.url.path}: {error.detail}"
    return fault(error.status_code, codes.get(error.status_code, "http_error"), message, routes, error.headers)


async def _unfit(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return fault(422, "invalid_request", f"the request does not fit: {wrong}")


async def _broken(request: Request, error: Exception) -> Response:
    # A defect of ours; the server logs its traceback.
    _log.error("%s %s failed: %s", request.method, request.url.path, type(error).__name__)
    return fault(500, "defect", "the service failed on this request; its log says more")
