"""What kind of place does a Feast data source name, and how is it read?"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from feast.data_format import DeltaFormat
from feast.infra.offline_stores.file_source import FileSource

from featurestore.errors import UsageError
from featurestore.offline.sources import Scan, scan_delta, scan_parquet, scan_table
from featurestore.offline.stored import MissingColumns


def scan_source(source: Any, *, repo: Path, columns: Iterable[str], missing_columns: MissingColumns, name: str) -> Scan:
    """A FileSource (Parquet or Delta Lake) or an IcebergSource as it stands now; raises UsageError and SourceError."""
    wanted = list(columns)
    if isinstance(source, FileSource):
        if isinstance(source.file_format, DeltaFormat):
            options = {"AWS_ENDPOINT_URL": source.s3_endpoint_override} if source.s3_endpoint_override else {}
            return _with_columns(scan_delta(source.path, repo=repo, name=name, options=options), wanted)
        filesystem = None
        if source.path.startswith("s3://"):
            credentials = source.resolve_credentials()
            filesystem, _ = FileSource.create_filesystem_and_path(source.path, source.s3_endpoint_override, credentials)
        return scan_parquet(
            source.path, repo=repo, name=name, columns=wanted, missing_columns=missing_columns, filesystem=filesystem
        )
    if type(source).__name__ == "IcebergSource":
        return _with_columns(_scan_iceberg(source, name), wanted)
    raise UsageError(
        f"{name} is a {type(source).__name__}; this store reads FileSource (Parquet, Delta Lake) and IcebergSource"
    )


def _scan_iceberg(source: Any, name: str) -> Scan:
    try:
        from pyiceberg.catalog import load_catalog  # type: ignore[import-not-found,unused-ignore]  # optional
    except ImportError as error:
        raise UsageError(f"{name} is an Iceberg table: install the package pyiceberg to read it") from error
    if source.catalog_type != "rest":
        catalog = source.get_catalog_client()
    else:
        token = os.environ.get(source.token_env_var or "")
        options = {"type": "rest", "uri": source.endpoint, "warehouse": source.warehouse}
        catalog = load_catalog(source.catalog_name, **options, **({"token": token} if token else {}))
    table = catalog.load_table(f"{source.namespace}.{source.iceberg_table}")
    return scan_table(table.scan().to_arrow(), name=name)


def _with_columns(scan: Scan, wanted: Iterable[str]) -> Scan:
    for column in wanted:
        scan.column(column, role="column")
    return scan
