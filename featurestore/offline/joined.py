"""How do all views' features come together beside the entity rows, in memory or larger than it?

A view is joined at a time. Where the result would take too much of the memory, each view's features go to a file once
they are joined and are read from there, mapped into memory, by whoever wants them; where one view alone would, entity
rows are joined in stripes, as few as fit. Sources are read once a stripe, never once a batch of results.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import msgspec
import pyarrow as pa

from featurestore.aggregation.values import arrow_type
from featurestore.offline.asof import Duplicates, as_of_columns, check_join
from featurestore.offline.asof_sql import Columns
from featurestore.offline.asof_view import AsOfView
from featurestore.offline.connection import Limits
from featurestore.offline.entity_rows import EntityRows
from featurestore.offline.mapped import ArrowFile, room_bytes
from featurestore.offline.sources import Scan
from featurestore.offline.windowed_stored import check_windowed, windowed_values
from featurestore.plan import Projection, View

_TEXT_BYTES = 32


class WindowedView(msgspec.Struct, frozen=True):
    """What to join of one windowed view; `names` gives each feature's name in the result."""

    view: View
    projection: Projection
    scan: Scan | None
    """None: there are no events yet."""
    names: Mapping[str, str]


class Joined(msgspec.Struct, frozen=True):
    """Every feature at every entity row, in their order, and what could not be told apart by time."""

    columns: dict[str, pa.ChunkedArray]
    duplicates: tuple[Duplicates, ...]


def check_joined(rows: EntityRows, latest: Sequence[AsOfView], windowed: Sequence[WindowedView]) -> None:
    """Find what is wrong with the request from names and types alone; raises UsageError and SourceError."""
    check_join(rows, latest)
    for each in windowed:
        check_windowed(each.view, each.projection, each.scan, rows)


def joined_features(
    rows: EntityRows,
    latest: Sequence[AsOfView],
    windowed: Sequence[WindowedView],
    *,
    as_known: bool = False,
    limits: Limits | None = None,
    on_view: Callable[[str], None] | None = None,
    on_share: Callable[[str, float], None] | None = None,
) -> Joined:
    """The features of all views, checked before (`check_joined`); `on_view` hears of each view once it is joined.

    `on_share` hears of a view whose join takes long which share of it is done, from 0 to 1.
    """
    limits = limits or Limits()
    widths = [*(_as_of_bytes(view) for view in latest), *(_windowed_bytes(each) for each in windowed)]
    room = room_bytes(limits)
    on_disk = len(rows) * sum(widths) > room
    stripe_rows = max(room // max([*widths, 1]), 1) if on_disk else len(rows)
    duplicates: list[Duplicates] = []
    with ExitStack() as stack:
        kept = _Kept(stack, limits) if on_disk else None
        columns: dict[str, pa.ChunkedArray] = {}
        for stripe in _stripes(rows, stripe_rows):
            for view, found, tied in _joined(
                stripe, latest, windowed, as_known=as_known, limits=limits, on_share=on_share
            ):
                duplicates += [] if tied is None else [Duplicates(view, tied)]
                if kept is None:
                    columns |= found
                else:
                    kept.put(view, found)
                if on_view is not None:
                    on_view(view)
        return Joined(columns if kept is None else kept.columns(), tuple(duplicates))


def _joined(
    rows: EntityRows,
    latest: Sequence[AsOfView],
    windowed: Sequence[WindowedView],
    *,
    as_known: bool,
    limits: Limits,
    on_share: Callable[[str, float], None] | None,
) -> Iterator[tuple[str, dict[str, pa.ChunkedArray], pa.Table | None]]:
    for found in as_of_columns(rows, latest, as_known=as_known, limits=limits, on_share=on_share):
        yield found.view.name, found.columns, found.tied
    for each in windowed:
        values = windowed_values(
            each.view,
            each.projection,
            each.scan,
            rows,
            as_known=as_known,
            limits=limits,
            on_share=None if on_share is None else partial(on_share, each.projection.name),
        )
        yield each.projection.name, {each.names[feature]: column for feature, column in values.items()}, None


def _stripes(rows: EntityRows, stripe_rows: int) -> Iterator[EntityRows]:
    if stripe_rows >= len(rows):
        yield rows
        return
    for start in range(0, len(rows), stripe_rows):
        yield EntityRows(rows.table.slice(start, stripe_rows), rows.timestamp)


class _Kept:
    """A file for every view."""

    def __init__(self, stack: ExitStack, limits: Limits) -> None:
        self._stack, self._limits = stack, limits
        self._files: dict[tuple[str, ...], ArrowFile] = {}

    def put(self, view: str, columns: Mapping[str, pa.ChunkedArray]) -> None:
        table = pa.table(dict(columns))
        file = self._files.get((view, *columns))
        if file is None:
            file = self._files[view, *columns] = ArrowFile(self._stack, table.schema, self._limits)
        file.write(table)

    def columns(self) -> dict[str, pa.ChunkedArray]:
        tables = [file.table() for file in self._files.values()]
        return {name: table[name] for table in tables for name in table.column_names}


def _as_of_bytes(view: AsOfView) -> int:
    return sum(_bytes(dtype) for dtype in Columns(view).types)


def _windowed_bytes(each: WindowedView) -> int:
    wanted = [a for a in each.view.aggregations if a.feature in each.projection.features]
    return sum(_bytes(arrow_type(a.dtype)) for a in wanted)


def _bytes(dtype: pa.DataType) -> int:
    """What a value takes, about."""
    try:
        return max(int(dtype.bit_width) // 8, 1)
    except ValueError:
        return _TEXT_BYTES
