"""How does Feast's `materialize` move rows? Arrow from the offline store to the online store, no object per row."""

# ruff: noqa: ARG002 - Feast's signatures have more than we need
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from feast.infra.common.materialization_job import MaterializationJob, MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.base import ComputeEngine
from feast.repo_config import FeastConfigBaseModel
from pydantic import ConfigDict, Field

from featurestore.clock import system_clock
from featurestore.config import clock_offset_us
from featurestore.errors import ConfigurationError, StaleStore, failing, failure_of
from featurestore.online.loaded import LoadedStore, after_run, run_of
from featurestore.online.materialize import materialize_table
from featurestore.online.writer import AHEAD_TOLERANCE_US, WriteResult
from featurestore.plugins.definitions import is_windowed
from featurestore.plugins.offline_store import microseconds
from featurestore.plugins.online_store import RedisOnlineStore
from featurestore.plugins.reading import Columns, reading
from featurestore.plugins.source_contract import SourceContracts
from featurestore.plugins.views import latest_view
from validation.errors import PlatformError

log = logging.getLogger(__name__)


class ArrowEngineConfig(FeastConfigBaseModel):  # type: ignore[misc]  # Feast ships no types
    """The `batch_engine` section of feature_store.yaml."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    type: Literal["featurestore.plugins.ArrowEngine"] = "featurestore.plugins.ArrowEngine"
    overlap_s: float = Field(default=86_400.0, ge=0.0)
    """How long after its created time, else after its event time, a row may become visible and still be loaded by a run
    that goes on where the last one ended."""


class ArrowJob(MaterializationJob):  # type: ignore[misc]  # Feast ships no types
    """A finished materialization of one view, and what came of it in one line."""

    def __init__(self, task: MaterializationTask, note: str, error: PlatformError | None = None) -> None:
        super().__init__()
        self.task = task
        self.note = note
        self._error = error

    def status(self) -> MaterializationJobStatus:
        """SUCCEEDED, or ERROR where the view is one of several that could not all be loaded."""
        return MaterializationJobStatus.SUCCEEDED if self._error is None else MaterializationJobStatus.ERROR

    def error(self) -> BaseException | None:
        """What Feast raises: it names every view that failed, not this one alone."""
        return self._error

    def should_be_retried(self) -> bool:
        """False."""
        return False

    def job_id(self) -> str:
        """The view and the range of event times."""
        return f"{self.task.feature_view.name} {self.task.start_time.isoformat()} {self.task.end_time.isoformat()}"

    def url(self) -> str | None:
        """None: nothing runs elsewhere."""
        return None


class ArrowEngine(ComputeEngine):  # type: ignore[misc]  # Feast ships no types
    """Feast's batch engine for our online store, with any offline store that gives Arrow.

    A materialization reads the latest rows of a range of event times and writes them; it can be repeated and
    interrupted at will, since the greatest row of a key stays whatever is written again. A run that goes on where
    the last one ended loads what arrived late too. Rows dated ahead of the clock are left for the next
    run, whatever its range. Windowed views are skipped: the stream keeps them.
    """

    def __init__(self, *, repo_config: Any, offline_store: Any, online_store: Any, **options: Any) -> None:
        super().__init__(repo_config=repo_config, offline_store=offline_store, online_store=online_store)
        self._overlap_us = round(ArrowEngineConfig(**options).overlap_s * 1_000_000)

    def update(
        self,
        project: str,
        views_to_delete: Sequence[Any],
        views_to_keep: Sequence[Any],
        entities_to_delete: Sequence[Any],
        entities_to_keep: Sequence[Any],
    ) -> None:
        """Nothing: what is known of a view goes with its rows."""

    def teardown_infra(self, project: str, fvs: Sequence[Any], entities: Sequence[Any]) -> None:
        """Nothing, as above."""

    @property
    def supports_batch(self) -> bool:
        """True: Feast hands over all views of a call, so that one that fails starves no other."""
        return True

    @property
    def applies_materialization(self) -> bool:
        """True: how far a view is loaded is registered as soon as it is, not when all are."""
        return True

    def materialize(
        self, registry: Any, tasks: MaterializationTask | list[MaterializationTask], **kwargs: Any
    ) -> list[ArrowJob]:
        """Load views one after the other; of several, those that fail are jobs that say so, and a single one raises.

        Feast registers nothing of it: how far a view is loaded is registered here, view by view, where several come.
        Raises StoreUnavailable at once: without the online store no view can be loaded.
        """
        if isinstance(tasks, MaterializationTask):
            return [self._materialize_one(registry, tasks, **kwargs)]
        done: dict[str, ArrowJob] = {}
        failed: dict[str, PlatformError] = {}
        for task in tasks:
            view = task.feature_view
            with failing(view.name, failed):
                done[view.name] = self._materialize_one(registry, task, **kwargs)
                registry.apply_materialization(view, task.project, task.start_time, task.end_time)
            if view.name in failed:
                done[view.name] = ArrowJob(task, f"{view.name}: not loaded", failed[view.name])
                log.error("%s: not loaded: %s", view.name, failed[view.name])
        if failed:
            # Feast raises the first: it names all.
            error = failure_of("loaded", failed, len(tasks))
            done |= {name: ArrowJob(done[name].task, done[name].note, error) for name in failed}
        return [done[task.feature_view.name] for task in tasks]

    def _materialize_one(self, registry: Any, task: MaterializationTask, **kwargs: Any) -> ArrowJob:
        """One view, in order: 1. read what its contract accepts; 2. write; 3. remember how far it is loaded.

        A crash before 3 loads the same rows again. Raises ContractBroken, before anything is written.
        """
        table = task.feature_view
        if is_windowed(table):
            return _told(task, f"{table.name}: skipped, its windows are kept current by the stream")
        if getattr(table, "udf", None) is not None and getattr(table, "stream_source", None) is not None:
            return _told(task, f"{table.name}: skipped, its function runs on events: the stream keeps it current")
        if not isinstance(self.online_store, RedisOnlineStore):
            raise ConfigurationError(
                "ArrowEngine writes to featurestore.plugins.RedisOnlineStore; "
                f"online_store is {type(self.online_store).__name__}"
            )
        started_us = system_clock(clock_offset_us(os.environ))()
        columns = Columns.of(table, registry, task.project)
        client = self.online_store.client(self.repo_config)
        store = LoadedStore(client, task.project)
        start_us, last_us = microseconds(task.start_time), microseconds(task.end_time)
        goes_on = table.most_recent_end_time is not None and start_us == microseconds(table.most_recent_end_time)
        try:
            loaded = store.of(table.name)
        except StaleStore:
            if goes_on:
                raise
            loaded = None  # all that is asked for is loaded, and what is loaded is said anew
        run = run_of(
            loaded,
            start_us,
            min(last_us, started_us + AHEAD_TOLERANCE_US),
            goes_on=goes_on,
            overlap_us=self._overlap_us,
            created=columns.created is not None,
        )
        writer, told = self.online_store.writer(self.repo_config, latest_view(table)), _Told()
        contracts = SourceContracts(self.repo_config, client)
        with (
            contracts.profiling(writer.view) as became,
            reading(
                table,
                columns,
                run,
                last_us=last_us,
                now_us=started_us,
                config=self.repo_config,
                offline_store=self.offline_store,
                contracts=contracts,
            ) as found,
        ):
            for rows in found.pieces:
                bar = task.tqdm_builder(rows.num_rows) if task.tqdm_builder else None
                try:
                    update = bar.update if bar is not None else None
                    told.add(materialize_table(writer, rows, progress=update, became=became))
                finally:
                    if bar is not None:
                        bar.close()
        ahead = found.extent.after + told.ahead
        if not told.ahead:  # The clock went back meanwhile: the next run goes on where this one did.
            until_us = last_us if ahead else None
            store.put(table.name, after_run(loaded, run, created_us=found.extent.created_us, ahead_until_us=until_us))
        note = f"{table.name}: {told.written} keys written, {told.superseded} rows superseded"
        if told.unkeyed:
            note += f", {told.unkeyed} without a key or event time"
        note += found.note
        if ahead:
            note += f", {ahead} dated ahead of the clock and set aside for the next run"
        return _told(task, note)


@dataclass
class _Told:
    """What came of all pieces of a run."""

    written: int = 0
    superseded: int = 0
    unkeyed: int = 0
    ahead: int = 0

    def add(self, result: WriteResult) -> None:
        self.written += result.written
        self.superseded += result.superseded
        self.unkeyed += result.unkeyed
        self.ahead += result.ahead.num_rows


def _told(task: MaterializationTask, note: str) -> ArrowJob:
    # A line of its own for whoever configured logging; Feast prints only the view's name.
    (log.warning if "skipped" in note or "set aside" in note else log.info)(note)
    return ArrowJob(task, note)
