"""How do the metrics of several workers become one answer? Prometheus's own files, one set for each worker.

`featurestore serve --workers N` names a folder for them in PROMETHEUS_MULTIPROC_DIR before any worker starts;
prometheus_client then counts in files of that folder, and whichever worker is asked adds them up.
"""

import os
import re
import shutil
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_LOOKS, _HALF_MADE_S = 5, 0.02
_OF_PROCESS = re.compile(r"_(\d+)\.db")


def exposed_registry(environ: Mapping[str, str], own: CollectorRegistry, *shown: Collector) -> CollectorRegistry:
    """What `/metrics` shows: every worker's counts where there are several, else this process's own registry.

    `shown` are in `own` already; they count nothing, so that one process may speak for all.
    """
    folder = environ.get(VARIABLE)
    if not folder:
        return own
    forget_dead(Path(folder))
    shared = CollectorRegistry()
    _AllWorkers(shared, path=folder)  # type: ignore[no-untyped-call]  # the library's
    for collector in shown:
        shared.register(collector)
    return shared


class _AllWorkers(MultiProcessCollector):
    """The library's, which stumbles over the file of a worker that is just starting: then it looks once more."""

    def collect(self) -> list[Metric]:
        """See Collector."""
        for _ in range(_LOOKS - 1):
            try:
                return list(super().collect())  # type: ignore[no-untyped-call]  # the library's
            except (OSError, ValueError, struct.error):
                time.sleep(_HALF_MADE_S)
        return list(super().collect())  # type: ignore[no-untyped-call]  # the library's


def shared_folder(data_dir: Path) -> Path:
    """A new folder for the workers of this process, below the data folder; those of services that ended are removed."""
    folder = data_dir / "metrics"
    for other in folder.glob("*"):
        if other.name.isdecimal() and not _alive(int(other.name)):
            shutil.rmtree(other, ignore_errors=True)
    own = folder / str(os.getpid())
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    return own


def forget_dead(folder: Path) -> None:
    """Drops the gauges of workers that ended (their counts stay): a plan that nobody serves is not in force."""
    for file in folder.glob("gauge_live*.db"):
        found = _OF_PROCESS.search(file.name)
        if found and not _alive(int(found[1])):
            mark_process_dead(int(found[1]), str(folder))  # type: ignore[no-untyped-call]  # the library's


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
