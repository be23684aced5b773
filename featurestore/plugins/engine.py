"""How does Feast's `materialize` move rows? Arrow from the offline store to the online store, no object per row."""

# ruff: noqa: ARG002 - Feast's signatures have more than we need
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from feast.infra.common.materialization_job import MaterializationJob, MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.base import ComputeEngine
from feast.repo_config import FeastConfigBaseModel
from feast.utils import _get_column_names
from pydantic import ConfigDict, Field

from featurestore.config import data_dir
from featurestore.errors import ConfigurationError
from featurestore.offline.connection import Limits
from featurestore.offline.pull import count_rows
from featurestore.offline.sources import Scan, scan_table
from featurestore.online.materialize import materialize_table
from featurestore.online.writer import WriteResult
from featurestore.plugins.definitions import is_windowed
from featurestore.plugins.offline_store import DuckDBOfflineStore, newest, optional_us
from featurestore.plugins.online_store import RedisOnlineStore
from featurestore.plugins.requested import limits_of, scan_of
from featurestore.plugins.source_contract import SourceContracts
from featurestore.plugins.views import latest_view
from validation.contract import Contract

PIECE_ROWS = 1_000_000
"""Of the source's rows at most in memory at a time."""
log = logging.getLogger(__name__)


class ArrowEngineConfig(FeastConfigBaseModel):  # type: ignore[misc]  # Feast ships no types
    """The `batch_engine` section of feature_store.yaml."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    type: Literal["featurestore.plugins.ArrowEngine"] = "featurestore.plugins.ArrowEngine"
    overlap_s: float = Field(default=0.0, ge=0.0)
    """How far before a range's start rows are read again, for those that arrive late; what is known already loses."""


class ArrowJob(MaterializationJob):  # type: ignore[misc]  # Feast ships no types
    """A finished materialization of one view, and what came of it in one line."""

    def __init__(self, task: MaterializationTask, note: str) -> None:
        super().__init__()
        self.task = task
        self.note = note

    def status(self) -> MaterializationJobStatus:
        """Always SUCCEEDED: a failure is raised, so that it cannot be overlooked."""
        return MaterializationJobStatus.SUCCEEDED

    def error(self) -> BaseException | None:
        """None."""
        return None

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
    interrupted at will, since the greatest row of a key stays whatever is written again. Rows dated ahead of the
    clock are kept in the data folder and offered again by the next run. Windowed views are skipped: the stream
    keeps them.
    """

    def __init__(self, *, repo_config: Any, offline_store: Any, online_store: Any, **options: Any) -> None:
        super().__init__(repo_config=repo_config, offline_store=offline_store, online_store=online_store)
        self._overlap = timedelta(seconds=ArrowEngineConfig(**options).overlap_s)

    def update(
        self,
        project: str,
        views_to_delete: Sequence[Any],
        views_to_keep: Sequence[Any],
        entities_to_delete: Sequence[Any],
        entities_to_keep: Sequence[Any],
    ) -> None:
        """Forget rows set aside for views that are gone."""
        for view in views_to_delete:
            self._set_aside(project, view.name).unlink(missing_ok=True)

    def teardown_infra(self, project: str, fvs: Sequence[Any], entities: Sequence[Any]) -> None:
        """Forget rows set aside for these views."""
        self.update(project, fvs, [], [], [])

    def _materialize_one(self, registry: Any, task: MaterializationTask, **kwargs: Any) -> ArrowJob:
        """One view, in order: 1. read what its contract accepts; 2. write; 3. keep what is ahead of the clock.

        A crash before 3 offers those rows again. Raises ContractBroken, before anything is written.
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
        writer = self.online_store.writer(self.repo_config, latest_view(table))
        aside = self._set_aside(task.project, table.name)
        pieces, held = self._read(registry, task)
        told, ahead = _Told(), []
        for number, read in enumerate(pieces):
            rows = _with_earlier(aside, read) if number == 0 else read
            bar = task.tqdm_builder(rows.num_rows) if task.tqdm_builder else None
            try:
                result = materialize_table(writer, rows, progress=bar.update if bar is not None else None)
            finally:
                if bar is not None:
                    bar.close()
            told.add(result)
            ahead.append(result.ahead)
        kept = pa.concat_tables(ahead, promote_options="permissive")
        _keep(aside, kept, dict(writer.view.source.field_mapping))
        note = f"{table.name}: {told.written} keys written, {told.superseded} rows superseded"
        if told.unkeyed:
            note += f", {told.unkeyed} without a key or event time"
        note += held
        if kept.num_rows:
            note += f", {kept.num_rows} dated ahead of the clock and set aside for the next run"
        return _told(task, note)

    def _read(self, registry: Any, task: MaterializationTask) -> tuple[Iterator[pa.Table], str]:
        """The latest rows of the range, their columns named as in the source, and what its contract has to tell.

        They come in pieces of whole keys, at least one, each of about PIECE_ROWS of the source's rows at most, so that
        memory does not grow with the source. The contract is judged before the first.
        """
        view, config = task.feature_view, self.repo_config
        entities = [registry.get_entity(name, task.project) for name in view.entities]
        join_keys, features, timestamp_field, created = _get_column_names(view, entities)
        start, end = task.start_time - self._overlap, task.end_time
        wanted = list(dict.fromkeys([*join_keys, *features, timestamp_field, *([created] if created else [])]))
        contracts = SourceContracts(config, self.online_store.client(config))
        contract = contracts.of(view)
        ours = isinstance(self.offline_store, DuckDBOfflineStore)
        limits = limits_of(config) if ours else Limits()
        if contract is None and not ours:
            job = self.offline_store.pull_latest_from_table_or_query(
                config=config,
                data_source=view.batch_source,
                join_key_columns=join_keys,
                feature_name_columns=features,
                timestamp_field=timestamp_field,
                created_timestamp_column=created,
                start_date=start,
                end_date=end,
            )
            return iter([_only(job.to_arrow(), wanted)]), ""
        if ours:
            scan = scan_of(view.batch_source, config, wanted, view=view.name)
        else:
            assert contract is not None  # told apart above
            scan = self._pulled(view, contract, join_keys, features, timestamp_field, created, (start, end))
        bounds, note = (optional_us(start), optional_us(end)), ""
        if contract is not None:
            scan, note = contracts.accepted(view.name, scan, contract, timestamp_field, *bounds, limits=limits)
        pieces = max(1, -(-count_rows(scan, limits=limits) // PIECE_ROWS)) if join_keys else 1

        def read() -> Iterator[pa.Table]:
            for piece in range(pieces):
                rows = newest(
                    scan, join_keys, features, timestamp_field, created or None, *bounds, limits=limits,
                    share=(piece, pieces),
                )  # fmt: skip
                yield _only(rows, wanted)

        return read(), note

    def _pulled(
        self,
        view: Any,
        contract: Contract,
        join_keys: list[str],
        features: list[str],
        timestamp_field: str,
        created: str | None,
        dates: tuple[Any, Any],
    ) -> Scan:
        """The rows of the range as another offline store gives them, with the columns that the contract names."""
        source = view.batch_source
        there = {name for name, _ in source.get_table_column_names_and_types(self.repo_config)}
        named = [column.name for column in contract.columns if column.name in there]
        taken = {*join_keys, timestamp_field, created}
        table = self.offline_store.pull_all_from_table_or_query(
            config=self.repo_config,
            data_source=source,
            join_key_columns=join_keys,
            feature_name_columns=[name for name in dict.fromkeys([*features, *named]) if name not in taken],
            timestamp_field=timestamp_field,
            created_timestamp_column=created,
            start_date=dates[0],
            end_date=dates[1],
        ).to_arrow()
        return scan_table(table, name=f"source {source.name!r} of view {view.name!r}")

    def _set_aside(self, project: str, view: str) -> Path:
        repo = Path(self.repo_config.repo_path) if self.repo_config.repo_path else Path.cwd()
        folder = data_dir(repo.absolute(), getattr(self.repo_config.registry, "path", None))
        return folder / "ahead" / project / f"{view}.parquet"


@dataclass
class _Told:
    """What came of all pieces of a run."""

    written: int = 0
    superseded: int = 0
    unkeyed: int = 0

    def add(self, result: WriteResult) -> None:
        self.written += result.written
        self.superseded += result.superseded
        self.unkeyed += result.unkeyed


def _only(rows: pa.Table, wanted: Sequence[str]) -> pa.Table:
    return rows.select([name for name in wanted if name in rows.column_names])


def _told(task: MaterializationTask, note: str) -> ArrowJob:
    # A line of its own for whoever configured logging; Feast prints only the view's name.
    (log.warning if "skipped" in note or "set aside" in note else log.info)(note)
    return ArrowJob(task, note)


def _with_earlier(aside: Path, rows: pa.Table) -> pa.Table:
    """The rows, and those that an earlier run set aside."""
    try:
        earlier = pq.read_table(aside)
    except FileNotFoundError:
        return rows
    if set(earlier.column_names) != set(rows.column_names):
        log.warning("%s was set aside before the view's columns changed; it is left out", aside)
        return rows
    return pa.concat_tables([rows, earlier.select(rows.column_names)], promote_options="permissive")


def _keep(aside: Path, ahead: pa.Table, mapping: dict[str, str]) -> None:
    if not ahead.num_rows:
        aside.unlink(missing_ok=True)
        return
    back = {new: old for old, new in mapping.items()}
    aside.parent.mkdir(parents=True, exist_ok=True)
    draft = aside.with_suffix(".tmp")
    pq.write_table(ahead.rename_columns([back.get(name, name) for name in ahead.column_names]), draft)
    draft.replace(aside)
