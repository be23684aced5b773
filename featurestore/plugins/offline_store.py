"""How does Feast's SDK reach our joins? As an `OfflineStore` over Parquet, Delta Lake and Iceberg sources."""

# ruff: noqa: ARG004 - Feast's signatures have more than we need
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import OnDemandFeatureView
from feast.infra.offline_stores.file_source import FileLoggingDestination
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalMetadata
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.utils import _get_requested_on_demand_feature_views, compute_non_entity_date_range, make_tzaware
from pydantic import StrictInt, StrictStr

from featurestore.errors import UsageError
from featurestore.offline.append import append_rows, append_to_source
from featurestore.offline.asof_sql import as_of_sql
from featurestore.offline.bounds import Late
from featurestore.offline.connection import WATCH_S, Limits
from featurestore.offline.entity_rows import EntityRows
from featurestore.offline.event_log import ARRIVAL
from featurestore.offline.joined import check_joined, joined_features
from featurestore.offline.pull import newest_rows, rows_between
from featurestore.offline.sources import Scan, local_path
from featurestore.plan import Field
from featurestore.plugins.definitions import is_windowed
from featurestore.plugins.entity_df import EVENT_TIMESTAMP, entities_of_range, entity_table, timestamp_column
from featurestore.plugins.feast_sources import lake_table
from featurestore.plugins.requested import (
    any_file,
    entity_columns,
    limits_of,
    prepared,
    requested,
    scan_of,
    value_types,
)
from featurestore.plugins.retrieval_job import DuckDBRetrievalJob

log = logging.getLogger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class DuckDBOfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]  # Feast ships no types
    """The `offline_store` section of feature_store.yaml."""

    type: Literal[
        "featurestore.plugins.DuckDBOfflineStore", "featurestore.plugins.offline_store.DuckDBOfflineStore"
    ] = "featurestore.plugins.DuckDBOfflineStore"
    memory_limit: StrictStr | None = None
    """As DuckDB writes it ("6GB"); beyond it, joins spill to `temp_directory`."""
    temp_directory: StrictStr | None = None
    threads: StrictInt | None = None
    missing_columns: Literal["error", "null"] = "error"
    """What a column means that only some files of a folder have: a fault, or NULL in the others."""


class DuckDBOfflineStore(OfflineStore):  # type: ignore[misc]  # Feast ships no types
    """Feast's offline store on DuckDB and Arrow; a connection per call, safe from many threads at once."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[Any],
        feature_refs: list[str],
        entity_df: pd.DataFrame | pa.Table | str | None,
        registry: Any,
        project: str,
        full_feature_names: bool = False,  # noqa: FBT001, FBT002
        *,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        filter_by_created_timestamp: bool = False,
    ) -> DuckDBRetrievalJob:
        """Check the request, and give the job that joins it.

        Without `entity_df` the rows are every (key, event time) that the views' sources hold between the dates.
        Raises UsageError and SourceError before any work is done.
        """
        limits, repo = limits_of(config), Path(config.repo_path)
        on_demand = _get_requested_on_demand_feature_views(feature_refs, project, registry)
        wanted = requested(feature_refs, feature_views, on_demand, full_feature_names=full_feature_names)
        if entity_df is None:
            dates = compute_non_entity_date_range(feature_views, start_date=start_date, end_date=end_date)
            table = entities_of_range(wanted, *map(microseconds, dates), config=config)
        else:
            needed = {EVENT_TIMESTAMP, *entity_columns(wanted, on_demand)}
            table = entity_table(entity_df, repo, limits, needed)
        timestamp = timestamp_column(table)
        asked = EntityRows(table, timestamp)
        latest, windowed = prepared(wanted, config)
        check_joined(asked, latest, windowed)
        order = [name for each in wanted for name in each.names.values()]

        def evaluate() -> pa.Table:
            result = joined_features(
                asked,
                latest,
                windowed,
                as_known=filter_by_created_timestamp,
                limits=limits,
                on_view=_joined,
                on_share=_Progress().hear,
            )
            for duplicates in result.duplicates:
                log.warning(
                    "view %r: %d chosen rows equal others in key, event and created time but not in value; "
                    "the greatest bytes were taken, first of them: %s",
                    duplicates.view,
                    len(duplicates.rows),
                    duplicates.rows.slice(0, 1).to_pylist()[0],
                )
            joined = asked.normalized()
            for name in order:
                joined = joined.append_column(name, result.columns[name])
            return joined

        def sql() -> str:
            if windowed:
                raise UsageError(f"windowed features (view {windowed[0].view.name!r}) are no single SQL statement")
            return as_of_sql(table.schema, timestamp, latest, as_known=filter_by_created_timestamp)

        bounds = asked.bounds_us()
        return DuckDBRetrievalJob(
            evaluate,
            on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            full_feature_names=full_feature_names,
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in table.column_names if name != timestamp],
                min_event_timestamp=None if bounds is None else _datetime(bounds[0]),
                max_event_timestamp=None if bounds is None else _datetime(bounds[1]),
            ),
            repo=repo,
            sql=sql,
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: Any,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> DuckDBRetrievalJob:
        """The newest row of each key between the dates, both included; columns as the source has them."""
        columns = [*join_key_columns, *feature_name_columns, timestamp_field]
        created = created_timestamp_column or None
        scan = scan_of(data_source, config, [*columns, *([created] if created else [])])
        start_us, end_us, limits = optional_us(start_date), optional_us(end_date), limits_of(config)

        def evaluate() -> pa.Table:
            return newest(
                scan, join_key_columns, feature_name_columns, timestamp_field, created, start_us, end_us, limits=limits
            )

        return DuckDBRetrievalJob(evaluate, repo=Path(config.repo_path))

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: Any,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> DuckDBRetrievalJob:
        """Every row between the dates, both included, in the order of the source's files."""
        columns = [*join_key_columns, *feature_name_columns, timestamp_field]
        columns += [created_timestamp_column] if created_timestamp_column else []
        scan = scan_of(data_source, config, columns)
        start_us, end_us = optional_us(start_date), optional_us(end_date)

        def evaluate() -> pa.Table:
            return rows_between(scan, columns, timestamp_field, start_us, end_us, limits=limits_of(config))

        return DuckDBRetrievalJob(evaluate, repo=Path(config.repo_path))

    @staticmethod
    def offline_write_batch(
        config: RepoConfig, feature_view: Any, table: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Append the rows to the view's source, a folder, as new files; nothing that exists is rewritten.

        Raises UsageError where the source is a single file or an event log, or the columns are not its own.
        """
        source = feature_view.batch_source
        name = f"source {source.name!r} of view {feature_view.name!r}"
        if (lake := lake_table(source)) is not None:
            raise UsageError(
                f"{name} is a table ({lake.format}): its own library writes it; rows are appended to folders of Parquet"
            )
        if is_windowed(feature_view):
            raise UsageError(f"{name} is an event log; events reach it through their topic")
        append_to_source(local_path(source.path, Path(config.repo_path)), table, name=name)
        if progress is not None:
            progress(len(table))

    @staticmethod
    def write_logged_features(
        config: RepoConfig, data: pa.Table | Path, source: Any, logging_config: Any, registry: Any
    ) -> None:
        """Append logged features to the destination folder, partitioned as it says."""
        destination = logging_config.destination
        if not isinstance(destination, FileLoggingDestination):
            raise UsageError(f"features are logged to files; found {type(destination).__name__}")
        rows = pq.read_table(data) if isinstance(data, Path) else data
        append_rows(
            local_path(destination.path, Path(config.repo_path)), rows, partition_by=destination.partition_by or ()
        )

    def validate_data_source(self, config: RepoConfig, data_source: Any) -> None:
        """Look at the source's footers; raises SourceError where it is missing, torn, or lacks its timestamps.

        An event log may be missing: nothing has arrived yet.
        """
        named = [data_source.timestamp_field, data_source.created_timestamp_column]
        if getattr(data_source, "path", None) is None and lake_table(data_source) is None:
            return
        log_is_empty = data_source.created_timestamp_column == ARRIVAL and not any_file(data_source, config)
        if not log_is_empty:
            scan_of(data_source, config, [column for column in named if column])

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: Any
    ) -> Iterable[tuple[str, str]]:
        """Columns and Arrow types of a source, partition folders included."""
        schema = scan_of(data_source, config, []).schema
        return zip(schema.names, map(str, schema.types), strict=True)


def newest(
    scan: Scan,
    keys: Sequence[str],
    features: Sequence[str],
    timestamp: str,
    created: str | None,
    start_us: int | None,
    end_us: int | None,
    *,
    limits: Limits,
    share: tuple[int, int] = (0, 1),
    late: Late | None = None,
    declared: Mapping[str, Field] | None = None,
) -> pa.Table:
    """The newest row of each key (of a share of them) between the instants, or late; says where several differ.

    `declared` are the features that columns are: ties are settled as the join and the online store do. Without them,
    where Feast does not say what the columns are for, their types are inferred.
    """
    fields = _inferred(scan, features) if declared is None else declared
    rows, differing = newest_rows(
        scan, keys, features, timestamp, created, start_us, end_us,
        fields=fields, limits=limits, share=share, late=late,
    )  # fmt: skip
    if differing:
        log.warning(
            "%s: %d keys have several newest rows that differ; the greatest bytes were taken", scan.name, differing
        )
    return rows


def _inferred(scan: Scan, features: Sequence[str]) -> dict[str, Field]:
    types = value_types({name: scan.column(name, role="feature") for name in features})
    return {name: Field(name=name, dtype=dtype.name) for name, dtype in types.items()}


class _Progress:
    """Logs how far a long join is, at most every few seconds."""

    def __init__(self) -> None:
        self._next_s = monotonic() + WATCH_S

    def hear(self, view: str, share: float) -> None:
        """`share` of the view is joined."""
        if monotonic() >= self._next_s:
            self._next_s = monotonic() + WATCH_S
            log.info("joining view %r: %.0f %%", view, 100 * share)


def _joined(view: str) -> None:
    log.info("joined view %r", view)


def optional_us(when: datetime | None) -> int | None:
    return None if when is None else microseconds(when)


def microseconds(when: datetime) -> int:
    since = make_tzaware(when) - _EPOCH
    return int((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


def _datetime(t_us: int) -> datetime:
    return datetime.fromtimestamp(t_us // 1_000_000, UTC).replace(microsecond=t_us % 1_000_000)
