"""How do the metrics of several workers become one answer? Prometheus's own files, one set for each worker.

`featurestore serve --workers N` names a folder for them in PROMETHEUS_MULTIPROC_DIR before any worker starts;
prometheus_client then counts in files of that folder, and whichever worker is asked adds them up.
"""

import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
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
    """The library's, which stumbles over the empty file of a worker that is just starting: it counts nothing yet."""

    def collect(self) -> list[Metric]:
        """See Collector. A disk that is busy may keep a new file empty for as long as it likes."""
        files = [str(file) for file in Path(self._path).glob("*.db") if _size(file)]
        return list(self.merge(files))  # type: ignore[no-untyped-call]  # the library's


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
            with suppress(FileNotFoundError):  # another worker was asked at the same moment
                mark_process_dead(int(found[1]), str(folder))  # type: ignore[no-untyped-call]  # the library's


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
