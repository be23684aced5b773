"""With which join is a training set built, and again verified?"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.config import OfflineSettings
from featurestore.dataset.build import Retrieve
from featurestore.dataset.manifest import SourceIdentity
from featurestore.errors import SourceError
from featurestore.offline.connection import Limits
from featurestore.offline.history import historical_features
from featurestore.offline.mapped import BATCH_ROWS, held_or_mapped
from featurestore.plan import Plan, Projection


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


def read_entity_rows(path: Path, limits: Limits | None = None) -> pa.Table:
    """Entity rows from a Parquet file, in memory or mapped; raises SourceError where there is none or it is torn."""
    try:
        if path.is_dir():
            return pq.read_table(path)
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow.remove_metadata()
            batches = (batch.replace_schema_metadata() for batch in file.iter_batches(BATCH_ROWS))
            return held_or_mapped(batches, schema, limits or Limits())
    except FileNotFoundError:
        raise SourceError(f"no entity rows at {path}; name a Parquet file with keys and an instant per row") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{path} is not a Parquet file that can be read: {error}") from error
