"""How does one API process come to be? The application, wired to the store that the environment names.

uvicorn calls `application` once in every worker; this is the one place of the API that reads the environment.
"""

import gc
import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pyarrow as pa
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from featurestore.api.access import keys_of
from featurestore.api.again import Again
from featurestore.api.app import create_app
from featurestore.api.audit import FILE as AUDIT_FILE
from featurestore.api.audit import AuditLog
from featurestore.api.gate import Gate
from featurestore.api.key_store import KeyRing, KeyStore
from featurestore.api.limits import Limits
from featurestore.api.materialization import Materializer
from featurestore.api.metrics import Metrics
from featurestore.api.rate import VARIABLE as RATE
from featurestore.api.rate import RateLimit, rate_of
from featurestore.api.serve_log import ServeLogLook
from featurestore.api.served_rules import ContractLook
from featurestore.api.staleness import staleness_of
from featurestore.api.worker_metrics import exposed_registry
from featurestore.api.writes import Writes, appender
from featurestore.clock import system_clock
from featurestore.config import Settings, load_settings
from featurestore.fallback import Fallbacks
from featurestore.freed_memory import keep_freed_memory
from featurestore.monitor.served import ServeLog
from featurestore.monitor.workspace import workspace
from featurestore.online.connection import StoreClient, connect
from featurestore.online.reader import OnlineReader
from featurestore.online.writer import RowWriter
from featurestore.plan import Plan
from featurestore.plan_store import PlanStore
from featurestore.plan_users import PlanUsers
from featurestore.private_files import write_privately
from featurestore.promises_kept import PromiseMetrics
from featurestore.signing import Signer, signer_of
from featurestore.write_profiles import WriteProfiles
from featurestore.write_reports import WriteReports
from validation.profile.store import ProfileStore
from validation.violations import ViolationStore

if TYPE_CHECKING:
    from featurestore.api.tokens import Tokens

REPO = "FEATURESTORE_REPO"
"""The variable that names the feature repo; unset is the current folder."""
WORKERS = "FEATURESTORE_API_WORKERS"
"""How many workers share the address; each takes its share of a rate limit."""
OPEN = "FEATURESTORE_API_OPEN"
"""1 lets requests in without any key; `featurestore serve --open` sets it, on loopback addresses only."""
STORE_TIMEOUT_S = 2.0
"""How long a request waits for the online store before it is answered 503."""


def application(environ: Mapping[str, str] = os.environ) -> FastAPI:
    """The application for the feature repo that FEATURESTORE_REPO names.

    Raises ConfigurationError where the configuration is wrong; a store that is away or has no plan yet does not: the
    process starts, says 503 and gets ready when they come.
    """
    write_privately()
    keep_pandas_out()
    keep_freed_memory()
    settings = load_settings(Path(environ.get(REPO) or "."), environ)
    clock, signer = system_clock(settings.clock_offset_us), signer_of(settings.data_dir, environ)
    client = connect(settings.online, settings.data_dir, timeout_s=STORE_TIMEOUT_S)
    limits = Limits()
    append, own = appender(settings.repo), CollectorRegistry()
    promises = PromiseMetrics(settings.promises)
    own.register(promises)
    metrics = Metrics(own, partial(exposed_registry, environ, own, promises))
    violations = ViolationStore(settings.violations)
    contracts = ContractLook(violations.record, metrics, clock, writer=str(os.getpid()))
    reports = WriteReports(violations.record, clock, writer=str(os.getpid()))
    profiles = WriteProfiles(ProfileStore(workspace(settings).profiles), clock, writer=f"{os.getpid()}-{clock()}")
    served = ServeLogLook(ServeLog(workspace(settings).served, clock, writer=str(os.getpid())))

    def writes(plan: Plan) -> Writes:
        return Writes(
            plan, lambda view: RowWriter(client, plan.project, view, clock=clock), append, clock, limits,
            judged=reports.judged, written=profiles.written,
        )  # fmt: skip

    app = create_app(
        plans=PlanStore(client, settings.project, signer),
        reader=lambda plan: OnlineReader(client, plan, clock),
        store=client,
        clock=clock,
        metrics=metrics,
        keys=keys_of(environ),
        gate=_gate(environ, settings, client, signer),
        writes=writes,
        materializer=Materializer(settings.repo, settings.data_dir, environ),
        staleness=staleness_of(client, clock),
        again=Again([contracts, served, reports, profiles], metrics),
        fallbacks=Fallbacks(client, settings.project).active,
        violations=violations,
        limits=limits,
        # Reports cross processes that replay different times: they go by the true time.
        users=PlanUsers(client, settings.project, system_clock()),
    )
    # What is in memory now stays: the collector's full passes over it cost a sixth of all processor time.
    gc.collect()
    gc.freeze()
    return app


def _gate(environ: Mapping[str, str], settings: Settings, client: StoreClient, signer: Signer) -> Gate:
    rate = RateLimit(rate_of(environ.get(RATE)), workers=int(environ.get(WORKERS) or 1), monotonic_s=time.monotonic)
    return Gate(
        keys=keys_of(environ),
        ring=KeyRing(KeyStore(client, settings.project, signer)),
        tokens=_tokens(environ),
        open=environ.get(OPEN) == "1",
        rate=rate,
        audit=AuditLog(settings.data_dir / AUDIT_FILE, system_clock()),
    )


def _tokens(environ: Mapping[str, str]) -> "Tokens | None":
    if not environ.get("FEATURESTORE_OIDC_JWKS"):
        return None
    # Only here: cryptography would cost every worker without an issuer memory and a slower start.
    from featurestore.api.tokens import Tokens, token_settings

    settings = token_settings(environ)
    return None if settings is None else Tokens(settings)


class _WithoutPandas(MetaPathFinder):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the protocol's signature
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname == "pandas":
            raise ModuleNotFoundError("kept out", name=fullname)
        return None


def keep_pandas_out() -> None:
    """Lets pyarrow conclude that there is no pandas, once and for all of this process.

    pyarrow's first `pa.array` imports pandas only to ask whether its argument is a Series: 0.2 s and 35 MB in each
    worker. A repo whose on-demand views use pandas imports it when the first of them runs; that needs no pyarrow.
    """
    if "pandas" in sys.modules:
        return
    blocker = _WithoutPandas()
    sys.meta_path.insert(0, blocker)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(blocker)
