"""With which join is a training set built, and again verified?"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.dataset.build import Retrieve
from featurestore.dataset.manifest import SourceIdentity
from featurestore.errors import SourceError
from featurestore.offline.history import historical_features
from featurestore.plan import Plan, Projection


def retriever(plan: Plan, repo: Path, timestamp: str, *, on_view: Callable[[str], None] | None = None) -> Retrieve:
    """The offline kernels over the sources of a repo; `on_view` hears each view's name once it is joined."""

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
            on_view=on_view,
        )

    return retrieve


def read_entity_rows(path: Path) -> pa.Table:
    """Entity rows from a Parquet file; raises SourceError where there is none or it is torn."""
    try:
        return pq.read_table(path)
    except FileNotFoundError:
        raise SourceError(f"no entity rows at {path}; name a Parquet file with keys and an instant per row") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{path} is not a Parquet file that can be read: {error}") from error
