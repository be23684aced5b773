"""How does one API process come to be? The application, wired to the store that the environment names.

uvicorn calls `application` once in every worker; this is the one place of the API that reads the environment.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pyarrow as pa
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from featurestore.api.access import keys_of
from featurestore.api.app import create_app
from featurestore.api.metrics import Metrics
from featurestore.clock import system_clock
from featurestore.config import load_settings
from featurestore.online.connection import connect
from featurestore.online.reader import OnlineReader
from featurestore.plan_store import PlanStore

REPO = "FEATURESTORE_REPO"
"""The variable that names the feature repo; unset is the current folder."""
STORE_TIMEOUT_S = 2.0
"""How long a request waits for the online store before it is answered 503."""


def application(environ: Mapping[str, str] = os.environ) -> FastAPI:
    """The application for the feature repo that FEATURESTORE_REPO names.

    Raises ConfigurationError where the configuration is wrong; a store that is away or has no plan yet does not: the
    process starts, says 503 and gets ready when they come.
    """
    keep_pandas_out()
    settings = load_settings(Path(environ.get(REPO) or "."), environ)
    clock = system_clock(settings.clock_offset_us)
    client = connect(settings.online, settings.data_dir, timeout_s=STORE_TIMEOUT_S)
    return create_app(
        plans=PlanStore(client, settings.project),
        reader=lambda plan: OnlineReader(client, plan, clock),
        store=client,
        clock=clock,
        metrics=Metrics(CollectorRegistry()),
        keys=keys_of(environ),
    )


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
