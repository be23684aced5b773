"""How does a table of offline rows come online? Named as the view names things, then written; no object per row."""

from collections.abc import Callable

import pyarrow as pa

from featurestore.errors import UsageError
from featurestore.online.writer import RowWriter, WriteResult
from featurestore.plan import Source


def materialize_table(
    writer: RowWriter,
    table: pa.Table,
    *,
    progress: Callable[[int], object] | None = None,
    became: Callable[[pa.Table], object] | None = None,
) -> WriteResult:
    """Write rows whose columns are named as in the view's source; the source's field mapping is applied.

    The table may hold several rows of a key, in any order: the greatest stays. Without the source's created column
    the write's own instant takes its place. Raises as `RowWriter.write` does, and UsageError for windowed views.
    """
    view = writer.view
    if view.kind == "windowed":
        raise UsageError(
            f"view {view.name!r} is windowed: the stream keeps it current, there is nothing to materialize"
        )
    source = view.source
    mapping = source.field_mapping
    named = table.rename_columns([mapping.get(name, name) for name in table.column_names])
    event_timestamp, created = timestamp_names(source)
    if created is not None and created not in named.column_names:
        created = None
    return writer.write(named, event_timestamp=event_timestamp, created=created, progress=progress, became=became)


def timestamp_names(source: Source) -> tuple[str, str | None]:
    """The event and created timestamp as the view names them.

    >>> timestamp_names(Source(name="s", path="", timestamp_field="ts", field_mapping={"ts": "event_timestamp"}))
    ('event_timestamp', None)
    """
    mapping, created = source.field_mapping, source.created_field
    return mapping.get(source.timestamp_field, source.timestamp_field), mapping.get(
        created, created
    ) if created else None
