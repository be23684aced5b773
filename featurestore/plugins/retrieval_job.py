"""When does a checked request run, and in which form does its result come?"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast import OnDemandFeatureView
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata

from featurestore.errors import UsageError
from featurestore.offline.append import put_dataset
from featurestore.offline.sources import local_path
from featurestore.online.types import arrow_type

BATCH_ROWS = 1_000_000
"""Rows of a piece of the result, which is what on-demand views are applied to at a time."""
_NULLABLE = {
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(),
    pa.uint16(): pd.UInt16Dtype(),
    pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
}


class DuckDBRetrievalJob(RetrievalJob):  # type: ignore[misc]  # Feast ships no types
    """A join that was checked and runs when its result is asked for; every call runs it again."""

    def __init__(
        self,
        evaluate: Callable[[], pa.Table],
        *,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        full_feature_names: bool = False,
        metadata: RetrievalMetadata | None = None,
        repo: Path,
        sql: Callable[[], str] | None = None,
    ) -> None:
        super().__init__()
        self._evaluate = evaluate
        self._on_demand_feature_views = list(on_demand_feature_views)
        self._full_feature_names = full_feature_names
        self._metadata = metadata
        self._repo = repo
        self._sql = sql

    @property
    def full_feature_names(self) -> bool:
        """Whether features are named view__feature."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """The on-demand views that Feast applies to the joined table."""
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """Features, keys and the range of event times."""
        return self._metadata

    def to_df(self, validation_reference: Any = None, timeout: int | None = None) -> pd.DataFrame:
        """The result in pandas; whole numbers beside NULL are nullable integers (Int64), never floats."""
        table = self.to_arrow(validation_reference=validation_reference, timeout=timeout)
        return _exact_frame(table)

    def to_arrow_batches(self, batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """The result in pieces, on-demand features included.

        It is joined once, whatever the pieces: a result that is larger than memory waits on disk.
        """
        for piece in self._pieces(batch_rows):
            yield from piece.to_batches()

    def _pieces(self, batch_rows: int) -> Iterator[pa.Table]:
        """At least one piece, empty where there are no rows."""
        joined = self._evaluate()
        for start in range(0, max(len(joined), 1), batch_rows):
            # Feast applies on-demand views to what a job has evaluated.
            piece = DuckDBRetrievalJob(
                partial(joined.slice, start, batch_rows),
                on_demand_feature_views=self._on_demand_feature_views,
                full_feature_names=self._full_feature_names,
                metadata=self._metadata,
                repo=self._repo,
            ).to_arrow()
            yield self._typed(piece)

    def _typed(self, piece: pa.Table) -> pa.Table:
        """Columns without a value in their declared type: in another piece they may have one."""
        for view in self._on_demand_feature_views:
            for field in view.features:
                name = f"{view.projection.name_to_use()}__{field.name}" if self._full_feature_names else field.name
                index = piece.schema.get_field_index(name)
                if index >= 0 and pa.types.is_null(piece.schema.field(index).type):
                    dtype = arrow_type(field.dtype.to_value_type().name)
                    piece = piece.set_column(index, name, piece[name].cast(dtype))
        return piece

    def to_sql(self) -> str:
        """The join as one DuckDB statement over a table `entity_rows`, for reading and for running by hand.

        It breaks ties by created time; rows that even this cannot tell apart are settled by `to_arrow` alone.
        """
        if self._sql is None:
            raise UsageError("this result is no single SQL statement")
        return self._sql()

    def persist(
        self,
        storage: SavedDatasetFileStorage,
        allow_overwrite: bool = False,  # noqa: FBT001, FBT002 - Feast's signature
        timeout: int | None = None,  # noqa: ARG002 - a join has no timeout
    ) -> None:
        """Write the result, on-demand features included, as a Parquet file or folder: whole or not at all."""
        if not isinstance(storage, SavedDatasetFileStorage):
            raise UsageError(
                f"datasets are saved as files; found {type(storage).__name__}, expected SavedDatasetFileStorage"
            )
        path = local_path(storage.file_options.uri, self._repo)
        if path.exists() and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=str(path))
        pieces = self._pieces(BATCH_ROWS)
        first = next(pieces)
        put_dataset(path, (piece.cast(first.schema) for piece in chain([first], pieces)), first.schema)

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002 - a join has no timeout
        return self._evaluate()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return _exact_frame(self._to_arrow_internal(timeout))


def _exact_frame(table: pa.Table) -> pd.DataFrame:
    """The rows in pandas; Arrow alone would make doubles of integers beside a null, in lists and structs too."""
    frame: pd.DataFrame = table.to_pandas()
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count and pa.types.is_integer(column.type):
            frame[name] = column.to_pandas(types_mapper=_NULLABLE.get)
        elif _null_beside_integers(column):
            cells = _cells([_cell(value) for value in column.to_pylist()])
            frame[name] = pd.Series(cells, frame.index, dtype="object")
    return frame


def _null_beside_integers(column: pa.ChunkedArray, *, inside: bool = False) -> bool:
    kind = column.type
    if pa.types.is_integer(kind):
        return inside and bool(column.null_count)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _null_beside_integers(pc.list_flatten(column), inside=True)
    if pa.types.is_map(kind):
        items = pa.chunked_array([chunk.items for chunk in column.chunks], kind.item_type)
        return _null_beside_integers(items, inside=True)
    if pa.types.is_struct(kind):
        return any(_null_beside_integers(pc.struct_field(column, [i]), inside=True) for i in range(kind.num_fields))
    return False


def _cell(value: Any) -> Any:
    """A value as Arrow gives it to pandas: lists are arrays, in which an object holds any integer."""
    if isinstance(value, dict):
        return {name: _cell(item) for name, item in value.items()}
    if isinstance(value, list) and not any(isinstance(item, tuple) for item in value):
        return _cells([_cell(item) for item in value])
    return value


def _cells(values: Sequence[Any]) -> Any:
    found = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):  # One by one: an array of one element would be unpacked.
        found[place] = value
    return found
