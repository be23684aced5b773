"""What do those who run the service ask it? `/health`, `/ready`, `/version` and `/metrics`."""

import asyncio
import importlib.metadata
from collections.abc import Callable
from typing import Any, Protocol

import orjson
from fastapi import FastAPI, Request
from starlette.responses import PlainTextResponse, Response

from featurestore.api.documentation import ERRORS, answering
from featurestore.api.faults import answer_to
from featurestore.api.gate import Gate
from featurestore.api.metrics import Metrics
from featurestore.api.serving import PlanWatch
from featurestore.api.staleness import Staleness, refuse_stale
from featurestore.api.watching import Watching
from featurestore.errors import StaleStore, StoreUnavailable
from featurestore.plan import Plan
from validation.errors import PlatformError

_READY = {"status": "ready", "plan_version": 3}
_VERSION = {"version": "1.0.0", "project": "flights", "plan_version": 3, "plan_digest": "5d41402abc4b2a76"}


class Pinged(Protocol):
    """A store that says whether it is there."""

    def ping(self) -> object:
        """Raises StoreUnavailable where the store does not answer."""
        ...


def add_status_routes(
    app: FastAPI,
    *,
    watch: PlanWatch,
    watching: Watching,
    store: Pinged,
    gate: Gate,
    metrics: Metrics,
    staleness: Callable[[Plan], Staleness] | None,
) -> None:
    """The routes; `staleness` says how far the streams are behind, None leaves that out."""

    @app.get("/health", responses=answering("The process is alive", {"status": "ok"}))
    async def health() -> Response:
        """Whether the process is alive; it looks at nothing else."""
        return _json({"status": "ok"})

    @app.get("/ready", responses=answering("Requests can be answered", _READY) | ERRORS)
    async def ready(request: Request) -> Response:
        """Whether requests can be answered as promised.

        There is a plan, it and the keys were looked up lately, the online store answers, no view is too stale. What is
        in the way is told in full to callers with a key; without one no address of a store is shown.
        """
        try:
            plan = watch.current.plan
            watching.check()
            await asyncio.to_thread(store.ping)
            told: dict[str, Any] = {"status": "ready", "plan_version": plan.version}
            if staleness is not None:
                found = await asyncio.to_thread(staleness, plan)
                refuse_stale(found)
                told["staleness_s"] = {view: each.staleness_s for view, each in found.items()}
        except PlatformError as error:
            return answer_to(error) if gate.knows(request) else _withheld(error)
        return _json(told)

    @app.get("/version", responses=answering("What is in force", _VERSION) | ERRORS)
    async def version(request: Request) -> Response:
        """The product's version and the plan in force."""
        try:
            gate.admit(request)
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

    @app.get("/metrics", responses=ERRORS, response_class=PlainTextResponse)
    async def exposition(request: Request) -> Response:
        """Everything measured, for Prometheus; of all workers together."""
        try:
            gate.admit(request)
        except PlatformError as error:
            return answer_to(error)
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _withheld(error: PlatformError) -> Response:
    """What a caller without a key hears of a failure: its kind."""
    if isinstance(error, StoreUnavailable):
        return answer_to(StoreUnavailable("the online store is not available; with an API key /ready says more"))
    return answer_to(StaleStore("the service is not ready; with an API key /ready says more"))


def _json(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
