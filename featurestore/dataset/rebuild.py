"""With which join is a training set built, and again verified?"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from featurestore.config import OfflineSettings
from featurestore.dataset.build import Retrieve
from featurestore.dataset.manifest import SourceIdentity
from featurestore.errors import SourceError
from featurestore.offline.column_types import concatenated
from featurestore.offline.connection import Limits
from featurestore.offline.entity_rows import without_index
from featurestore.offline.history import historical_features
from featurestore.offline.mapped import BATCH_ROWS, held_or_mapped
from featurestore.offline.sources import parquet_files
from featurestore.plan import Plan, Projection, used_views


def limits_of(settings: OfflineSettings) -> Limits:
    """What joins may use, as the repo says."""
    return Limits(memory=settings.memory_limit, temp_dir=settings.temp_dir, threads=settings.threads)


def retriever(
    plan: Plan,
    repo: Path,
    timestamp: str,
    *,
    limits: Limits | None = None,
    on_view: Callable[[str], None] | None = None,
    on_share: Callable[[str, float], None] | None = None,
) -> Retrieve:
    """The offline kernels over the sources of a repo; `on_view` and `on_share` as in `historical_features`."""

    def retrieve(
        projections: Sequence[Projection],
        entity_rows: pa.Table,
        *,
        as_known: bool,
        full_feature_names: bool,
        pins: Mapping[str, SourceIdentity],
    ) -> pa.Table:
        return historical_features(
            plan,
            projections,
            entity_rows,
            repo=repo,
            timestamp=timestamp,
            as_known=as_known,
            full_feature_names=full_feature_names,
            pins={name: identity.ranges for name, identity in pins.items() if identity.kind == "event log"},
            snapshots={name: identity.snapshot for name, identity in pins.items() if identity.kind == "table"},
            limits=limits,
            on_view=on_view,
            on_share=on_share,
        )

    return retrieve


def entity_columns(plan: Plan, projections: Sequence[Projection], timestamp: str) -> set[str]:
    """The columns that the entity rows of a set must have: instant, join keys, what on-demand views ask for."""
    found, keys = {timestamp}, dict[str, str]()
    for each in projections:
        keys |= each.join_key_map
        if on_demand := plan.on_demand.get(each.view):
            found.update(field.name for field in on_demand.request)
            for given in on_demand.inputs:
                keys |= given.join_key_map
    for view in used_views(plan, projections):
        found.update(name for key in view.join_keys for name in (key.name, keys.get(key.name, key.name)))
    return found


def read_entity_rows(path: Path, limits: Limits | None = None, *, needed: Collection[str] | None = None) -> pa.Table:
    """Entity rows from a Parquet file or a folder of them, in memory or mapped.

    Columns that pandas made of an index, and those of partition folders, come only where they are `needed`; None:
    whatever has a name is needed. Raises SourceError where there is none or it is torn.
    """
    try:
        if path.is_dir():
            folders = pyarrow.dataset.dataset(path, format="parquet", partitioning="hive").partitioning.schema.names
            files = {str(file): pq.read_table(file) for file in parquet_files(path, name=f"the entity rows {path}")}
            own = {name for table in files.values() for name in table.column_names}
            if any((needed is None or name in needed) and name not in own for name in folders):
                return without_index(pq.read_table(path), needed, folders=set(folders) - own)
            parts = {file: without_index(table, needed) for file, table in files.items()}
            return concatenated(parts, name=f"the entity rows {path}")
        with pq.ParquetFile(path) as file:
            schema = without_index(file.schema_arrow.empty_table(), needed).schema
            batches = (
                batch.select(schema.names).replace_schema_metadata()
                for batch in file.iter_batches(BATCH_ROWS, columns=schema.names)
            )
            return held_or_mapped(batches, schema, limits or Limits())
    except FileNotFoundError:
        raise SourceError(f"no entity rows at {path}; name a Parquet file with keys and an instant per row") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{path} is not a Parquet file that can be read: {error}") from error
