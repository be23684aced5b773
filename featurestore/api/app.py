"""Which routes does the feature API have? A FastAPI application made of what it is given.

`POST /get-online-features` is Feast's route with Feast's JSON; those that write are in `write_routes`, those for who
runs it in `status_routes`, those for producers in `violation_routes`. Handlers read the body themselves and answer
bytes: the hot path meets no model validation.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from functools import partial

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from featurestore.api.access import ApiKeys
from featurestore.api.again import Again
from featurestore.api.direct import DirectApp
from featurestore.api.documentation import ERRORS, FEATURES, describe
from featurestore.api.faults import answer_to, defect, fault
from featurestore.api.features_route import PATH, FeaturesRoute
from featurestore.api.gate import Gate
from featurestore.api.identity import ROUTE_ACTIONS
from featurestore.api.limits import Limits
from featurestore.api.materialization import Materializer
from featurestore.api.metrics import Metrics
from featurestore.api.serving import PlanSource, PlanWatch, Reader, Serving, Servings
from featurestore.api.staleness import Staleness
from featurestore.api.status_routes import add_status_routes
from featurestore.api.violation_routes import SCHEMAS, add_violation_routes
from featurestore.api.watching import LONGEST_BLIND_S, Watching
from featurestore.api.write_routes import BODIES, WriteRoutes, add_materialize_routes, add_write_routes
from featurestore.api.writes import Writes
from featurestore.clock import Clock
from featurestore.errors import FeatureStoreError
from featurestore.online.connection import StoreClient
from featurestore.online.fetch import fetcher
from featurestore.plan import Plan
from featurestore.plan_users import PlanUsers
from validation.errors import PlatformError
from validation.violations import ViolationStore

POLL_S = 1.0
_log = logging.getLogger(__name__)


def create_app(
    *,
    plans: PlanSource,
    reader: Callable[[Plan], Reader],
    store: StoreClient,
    clock: Clock,
    metrics: Metrics,
    keys: ApiKeys,
    gate: Gate | None = None,
    writes: Callable[[Plan], Writes] | None = None,
    materializer: Materializer | None = None,
    staleness: Callable[[Plan], Staleness] | None = None,
    again: Again | None = None,
    fallbacks: Callable[[], Iterable[str]] | None = None,
    violations: ViolationStore | None = None,
    limits: Limits | None = None,
    users: PlanUsers | None = None,
    poll_s: float = POLL_S,
    longest_blind_s: float = LONGEST_BLIND_S,
) -> FastAPI:
    """The application: it serves from the plan in `plans`, read by what `reader` makes of it.

    The plan is looked up every `poll_s` seconds; a new one is taken over between two requests. Without a plan or with
    the store away, requests get 503 with Retry-After, and the first look-up that succeeds ends that. The service says
    that it is not ready while plan or keys could not be looked up for `longest_blind_s`. Without a `gate`
    the `keys` alone decide, and no keys let everybody in. Routes that write exist where there is what they need.
    `again` gets answers to look at after the response; `fallbacks` says which services answer by their fallback;
    `users` hears which plan is served from.
    """
    gate = gate or Gate(keys=keys, open=not keys)
    bounds = limits or Limits()
    fetching = fetcher(store)

    def serving(plan: Plan, switched: frozenset[str], pinned: Mapping[str, Serving]) -> Serving:
        wanted = None if again is None else again.of(plan)
        return Serving(plan, reader(plan), fetching, clock, bounds, metrics, wanted, switched, pinned)

    name = f"api {socket.gethostname()} {os.getpid()}"
    report = None if users is None else partial(users.report, name)
    watch = PlanWatch(plans, Servings(serving, plans).of, metrics, fallbacks=fallbacks or tuple, report=report)

    watching = Watching({"plan": watch.look} | gate.looks, metrics, longest_blind_s=longest_blind_s)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(watching.look)
        looking = asyncio.create_task(watching.run(poll_s))
        if again is not None:
            again.start()
        yield
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking
        if again is not None:
            await asyncio.to_thread(again.stop)
        fetching.close()
        metrics.fold()
        if users is not None:
            with contextlib.suppress(FeatureStoreError):
                await asyncio.to_thread(users.leave, name)

    # The interactive pages load scripts from elsewhere; /openapi.json needs nobody.
    app = DirectApp(title="Feature API", lifespan=lifespan, docs_url=None, redoc_url=None)

    route = FeaturesRoute(watch, gate, bounds, metrics)
    app.direct[PATH] = route

    @app.post(PATH, openapi_extra=FEATURES, responses=ERRORS, response_class=Response)
    async def get_online_features(request: Request) -> Response:
        """Features of one or many entities, in Feast's JSON, row by row, or as an Arrow stream (Accept header)."""
        status, headers, body = await route.respond(request, request.receive)
        response = Response(body, status)
        response.raw_headers = headers
        return response

    add_status_routes(app, watch=watch, watching=watching, store=store, gate=gate, metrics=metrics, staleness=staleness)
    if violations is not None:
        add_violation_routes(app, store=violations, gate=gate, metrics=metrics)
    if writes is not None:
        routes = WriteRoutes(watch, gate, bounds, metrics, writes)
        add_write_routes(app, routes)
        add_materialize_routes(app, routes, materializer)

    app.add_exception_handler(RequestValidationError, partial(_unfit, gate, watch))
    app.add_exception_handler(HTTPException, _not_routed)
    app.add_exception_handler(Exception, _broken)
    describe(app, bounds, (*BODIES, *SCHEMAS))
    return app


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    routes = sorted({path for route in request.app.routes if (path := getattr(route, "path", ""))})
    message = f"{request.method} {request.url.path}: {error.detail}"
    return fault(error.status_code, codes.get(error.status_code, "http_error"), message, routes, error.headers)


async def _unfit(gate: Gate, watch: PlanWatch, request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # Only callers who may ask at all are told what does not fit.
    try:
        caller = gate.admit(request)
        if action := ROUTE_ACTIONS.get(getattr(request.scope.get("route"), "path", "")):
            gate.begin(request, caller, action, watch.current.plan)
    except PlatformError as refused:
        return answer_to(refused)
    wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return fault(422, "invalid_request", f"the request does not fit: {wrong}")


async def _broken(request: Request, error: Exception) -> Response:
    # A defect of ours; the server logs its traceback.
    _log.error("%s %s failed: %s", request.method, request.url.path, type(error).__name__)
    return defect()
