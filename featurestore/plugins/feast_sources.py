"""What kind of place does a Feast data source name, and how is it read?"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from feast.data_format import DeltaFormat
from feast.infra.offline_stores.file_source import FileSource

from featurestore.errors import DefinitionError, UsageError
from featurestore.offline.connection import Limits
from featurestore.offline.lake import scan_lake
from featurestore.offline.sources import Scan, scan_parquet
from featurestore.offline.stored import MissingColumns
from featurestore.offline.time_columns import with_instants
from featurestore.plan import LakeTable, TimeUnit
from validation.instant import UNITS

READ = "FileSource (Parquet, Delta Lake) and IcebergSource"


def scan_source(
    source: Any,
    *,
    repo: Path,
    columns: Iterable[str],
    missing_columns: MissingColumns,
    name: str,
    limits: Limits | None = None,
    times: Iterable[str] = (),
    declared: Mapping[str, str] | None = None,
) -> Scan:
    """A FileSource (Parquet or Delta Lake) or an IcebergSource as it stands now; raises UsageError and SourceError.

    Its timestamps are instants whatever form its files give them; `times` are other columns of instants.
    """
    wanted = list(dict.fromkeys(columns))
    scan = _stored(source, repo, wanted, missing_columns, name, limits, declared)
    unit = time_unit(source)
    dated = [source.timestamp_field, source.created_timestamp_column, *(times if unit else ())]
    return with_instants(scan, dated, unit=unit)


def _stored(
    source: Any,
    repo: Path,
    wanted: list[str],
    missing_columns: MissingColumns,
    name: str,
    limits: Limits | None,
    declared: Mapping[str, str] | None,
) -> Scan:
    table = lake_table(source)
    if table is not None:
        return scan_lake(table, source_path(source), repo=repo, name=name, columns=wanted, limits=limits)
    if not isinstance(source, FileSource):
        raise UsageError(f"{name} is a {type(source).__name__}; this store reads {READ}")
    filesystem = None
    if source.path.startswith("s3://"):
        credentials = source.resolve_credentials()
        filesystem, _ = FileSource.create_filesystem_and_path(source.path, source.s3_endpoint_override, credentials)
    return scan_parquet(
        source.path,
        repo=repo,
        name=name,
        columns=wanted,
        missing_columns=missing_columns,
        filesystem=filesystem,
        declared=declared,
    )


TIME_UNIT = "time_unit"
"""The tag of a source that says in which unit its integers are times."""


def time_unit(*sources: Any) -> TimeUnit:
    """The unit that the tags of a view's sources declare; raises DefinitionError for one that is none.

    >>> time_unit(FileSource(path="p", tags={"time_unit": "ms"}), None)
    'ms'
    """
    tags = [source.tags or {} for source in sources if source is not None]
    declared = {str(each[TIME_UNIT]) for each in tags if TIME_UNIT in each}
    if len(declared) > 1 or not declared <= set(UNITS):
        raise DefinitionError(
            f"source {sources[0].name!r}: tag {TIME_UNIT} is {', '.join(sorted(declared))}; "
            f"expected one of {', '.join(UNITS)}"
        )
    found: TimeUnit = declared.pop() if declared else ""  # type: ignore[assignment]  # one of UNITS
    return found


def source_path(source: Any) -> str:
    """Where a source's files lie; empty where a catalog knows."""
    return str(getattr(source, "path", None) or "")


def lake_table(source: Any) -> LakeTable | None:
    """The table of Delta Lake or Iceberg that a source names; None where it names files, or what is not read here."""
    if isinstance(source, FileSource):
        if not isinstance(source.file_format, DeltaFormat):
            return None
        endpoint = source.s3_endpoint_override
        return LakeTable(format="delta", properties={"AWS_ENDPOINT_URL": endpoint} if endpoint else {})
    # By its name: the class is in a part of Feast that not every Feast has.
    if type(source).__name__ != "IcebergSource":
        return None
    properties = {"type": source.catalog_type, **source.catalog_properties}
    if source.endpoint:
        properties.setdefault("uri", source.endpoint)
    if source.warehouse:
        properties.setdefault("warehouse", source.warehouse)
    return LakeTable(
        format="iceberg",
        name=f"{source.namespace}.{source.iceberg_table}",
        catalog=source.catalog_name,
        properties=properties,
        token_env=source.token_env_var or "",
    )
