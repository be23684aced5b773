"""Which values of a feature view were in force for each entity row at its instant?

For each entity row, of the source rows with its key and `event_ts <= t`: the one with the greatest
(event_ts, created_ts), NULL created lowest, which counts while `event_ts + ttl >= t`; both bounds are inclusive, ttl 0
never expires. Rows equal on both are ordered by their canonical bytes, and reported where their values differ. A NULL
in the chosen row stays NULL. As known, `created_ts <= t` must hold too: a row of unknown creation was not known, a view
without a created column joins as ever.

How: a sort and a binary search in memory (`asof_memory`) where the history fits, else ASOF JOIN, which can spill, on
event time alone; then a look at the chosen (key, event_ts) for which the source has several rows; only those are
settled by created and bytes. That costs a second read of the key columns, where a struct in the inequality costs half
the join again. As known, the join runs on the instant a row became visible, max(event_ts, created_ts), over the rows
that were the newest of their key when they did: a row that arrives already outdated never shows.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from typing import NamedTuple

import duckdb
import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import SourceError, UsageError
from featurestore.offline.asof_memory import Chosen, choose
from featurestore.offline.asof_sql import Columns, join_sql
from featurestore.offline.asof_view import AsOfView
from featurestore.offline.connection import Limits, connection, first_line, watched
from featurestore.offline.declared import as_declared
from featurestore.offline.entity_rows import EntityRows, Joinable, coerce_key, instants
from featurestore.offline.ties import Winners, settle
from featurestore.plan import Field

MEMORY_CELLS = 20_000_000
"""Histories of up to as many values (rows times columns joined) are held in memory, some 8 bytes each: 0.16 GB.

Measured: at 1 M rows the sort takes half the time of SQL, at 10 M twice, since SQL sorts on all processors."""
_CELL_BYTES = 64
"""Memory that must be there for a value held: the sort takes some times its 8 bytes."""
_SLICE = 1 << 20


class Duplicates(msgspec.Struct, frozen=True):
    """Chosen rows of a view that others equal in (key, event_ts, created_ts) but not in their values."""

    view: str
    rows: pa.Table
    """Keys, event_ts, created_ts and `rows`, how many there are; one row a group."""


class AsOfResult(msgspec.Struct, frozen=True):
    """The entity rows in their order with the features appended, and what could not be told apart by time."""

    table: pa.Table
    duplicates: tuple[Duplicates, ...]


def as_of_join(
    entity_rows: EntityRows,
    views: Sequence[AsOfView],
    *,
    as_known: bool = False,
    limits: Limits | None = None,
    on_view: Callable[[str], None] | None = None,
) -> AsOfResult:
    """Every entity row, in order, with the features of each view at its instant.

    Duplicate entity rows are kept; one with a NULL key or timestamp gets NULL features. The timestamp column comes back
    as timestamp[us, UTC], the caller's other columns as they were, features in their declared types where these have
    one Arrow form (`declared_type`), else as the source has them. `on_view` is called with each view's name once it is
    joined.
    Raises UsageError and SourceError: for names and types before any work is done (`check_join`).

    >>> from featurestore.offline.asof_view import Feature, Key
    >>> from featurestore.offline.sources import scan_table
    >>> at = lambda *hours: pa.array([hour * 3_600_000_000 for hour in hours], pa.timestamp("us"))
    >>> source = pa.table({"id": [1, 1], "ts": at(1, 3), "speed": [10, 30]})
    >>> view = AsOfView(name="car", scan=scan_table(source, name="cars"), keys=(Key("id", "car", "INT64"),),
    ...                 timestamp="ts", features=(Feature("speed", "speed", "INT64"),))
    >>> asked = EntityRows(pa.table({"car": [1, 1, 2], "at": at(4, 2, 4)}), "at")
    >>> as_of_join(asked, [view]).table["speed"].to_pylist()
    [30, 10, None]
    """
    check_join(entity_rows, views)
    table, duplicates = entity_rows.normalized(), []
    for found in as_of_columns(entity_rows, views, as_known=as_known, limits=limits):
        for name, column in found.columns.items():
            table = table.append_column(name, column)
        if found.tied is not None:
            duplicates.append(Duplicates(found.view.name, found.tied))
        if on_view is not None:
            on_view(found.view.name)
    return AsOfResult(table, tuple(duplicates))


class ViewColumns(NamedTuple):
    """The features of one view at every entity row, in order, and the chosen rows that time could not tell apart."""

    view: AsOfView
    columns: dict[str, pa.ChunkedArray]
    tied: pa.Table | None


def as_of_columns(
    entity_rows: EntityRows,
    views: Sequence[AsOfView],
    *,
    as_known: bool = False,
    limits: Limits | None = None,
    on_share: Callable[[str, float], None] | None = None,
) -> Iterator[ViewColumns]:
    """What `as_of_join` joins, a view at a time, unchecked: nothing is held of a view once the next is asked for.

    `on_share` hears of a view whose join takes long which share of it is done, every few seconds.
    """
    with ExitStack() as stack:
        session = _Session(stack, limits or Limits(), on_share)
        for number, view in enumerate(views):
            columns, tied = _join_view(session, entity_rows, view, number, as_known=as_known)
            yield ViewColumns(view, columns, tied)


class _Session:
    """A connection, opened by the first view that needs one: with its spill folder it costs more than a small join."""

    def __init__(self, stack: ExitStack, limits: Limits, on_share: Callable[[str, float], None] | None) -> None:
        self._stack, self.limits, self._on_share = stack, limits, on_share
        self._registered: list[Joinable] = []

    @cached_property
    def duckdb(self) -> duckdb.DuckDBPyConnection:
        """The connection, closed with the call."""
        return self._stack.enter_context(connection(self.limits))

    def table(self, sql: str, view: AsOfView) -> pa.Table:
        """What the statement selects for that view."""
        say = None if self._on_share is None else partial(self._on_share, view.name)
        with watched(self.duckdb, say):
            return self.duckdb.sql(sql).to_arrow_table()

    def entities(self, asked: Joinable) -> str:
        """The name under which SQL reads those entity rows: registered once, however many views join them."""
        for number, known in enumerate(self._registered):
            if known is asked:
                return f"entities{number}"
        self._registered.append(asked)
        name = f"entities{len(self._registered) - 1}"
        self.duckdb.register(name, asked.table)
        return name


def check_join(entity_rows: EntityRows, views: Sequence[AsOfView]) -> None:
    """Find what is wrong with the request from names and types alone; raises UsageError and SourceError."""
    taken = dict.fromkeys(entity_rows.table.column_names, "an entity column")
    for view in views:
        for feature in view.features:
            if feature.name in taken:
                raise UsageError(
                    f"feature {feature.name!r} of view {view.name!r} has the name of {taken[feature.name]}; "
                    "rename the column, or ask for full feature names"
                )
            taken[feature.name] = f"a feature of view {view.name!r}"
        for key in view.keys:
            view.scan.column(key.column, role="join key")
            entity_rows.key(key.entity, key.dtype)
        Columns(view)
        if view.scan.empty:
            raise SourceError(f"{view.scan.name} has no rows")


def _join_view(
    session: _Session, asked: EntityRows, view: AsOfView, number: int, *, as_known: bool
) -> tuple[dict[str, pa.ChunkedArray], pa.Table | None]:
    columns = Columns(view)
    as_known = as_known and view.created is not None
    entities = asked.joinable(tuple((key.entity, key.dtype) for key in view.keys))
    bounds = asked.bounds_us()
    if bounds is None or not len(entities.table):
        nothing = zip(view.features, columns.types, strict=True)
        return {feature.name: pa.chunked_array([pa.nulls(len(asked), dtype)]) for feature, dtype in nothing}, None
    columns.bound(bounds[0] - view.ttl_us if view.ttl_us else None, bounds[1])
    found = None if as_known else _chosen_in_memory(session, columns, view, number, entities)
    winners = None
    if found is None or found.tied:
        found, winners = _chosen_in_sql(session, columns, view, number, entities, found, as_known=as_known)
    chosen = found.rows
    take = _positions(len(asked), chosen["row"].to_numpy(), winners, len(chosen))
    result = {}
    for feature, alias, dtype in zip(view.features, columns.features, columns.types, strict=True):
        place = f"view {view.name!r}, feature {feature.name!r}"
        values = chosen.select([alias])
        if winners is not None:
            # Files and SQL may give one column in two Arrow types.
            parts = [as_declared(each[alias], feature.dtype, dtype, place=place) for each in (chosen, winners.rows)]
            values = pa.table({alias: pa.chunked_array([chunk for part in parts for chunk in part.chunks], dtype)})
        column = _taken(values.combine_chunks()[alias], take)
        result[feature.name] = column if winners is not None else as_declared(column, feature.dtype, dtype, place=place)
    return result, None if winners is None else _reported(winners, view, columns)


def _chosen_in_memory(
    session: _Session, columns: Columns, view: AsOfView, number: int, entities: Joinable
) -> Chosen | None:
    """The chosen rows where the history is small enough to be held; None where SQL, which can spill, has to join."""
    cells = min(MEMORY_CELLS, session.limits.memory_bytes // _CELL_BYTES)
    width = len(columns.keys) + 1 + len(columns.features)
    if view.scan.rows is None or view.scan.rows * width > cells:
        return None
    history = _read_plain(columns, view)
    if history is None:
        source = view.scan.register(session.duckdb, f"source{number}")
        history = session.duckdb.sql(columns.select(source, features=True)).to_arrow_table()
    return choose(history, entities.table, entities.index, view.ttl_us)


def _read_plain(columns: Columns, view: AsOfView) -> pa.Table | None:
    """The history by Arrow alone, four times faster than through SQL; None where files or keys ask for more."""
    plain = {"INT64": pa.types.is_integer, "STRING": pa.types.is_string}
    for key in view.keys:
        if key.dtype not in plain or not plain[key.dtype](view.scan.column(key.column, role="join key")):
            return None
    if not view.scan.files or not pa.types.is_timestamp(view.scan.column(view.timestamp, role="timestamp column")):
        return None
    wanted = [*(key.column for key in view.keys), view.timestamp, *(feature.column for feature in view.features)]
    try:
        rows = pq.read_table(list(map(str, view.scan.files)), columns=list(dict.fromkeys(wanted)), partitioning=None)
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{view.scan.name} cannot be read: {first_line(error)}") from error
    ts, known = instants(rows[view.timestamp], place=view.scan.name)
    keys = [coerce_key(rows[key.column], key.dtype, place=view.scan.name) for key in view.keys]
    features = [rows[feature.column] for feature in view.features]
    history = pa.table([*keys, pa.array(ts), *features], names=[*columns.keys, "ts", *columns.features])
    return history if known.all() else history.filter(pa.array(known))


def _chosen_in_sql(
    session: _Session,
    columns: Columns,
    view: AsOfView,
    number: int,
    entities: Joinable,
    found: Chosen | None,
    *,
    as_known: bool,
) -> tuple[Chosen, Winners | None]:
    """The chosen rows, unless they are `found` already, and the winners among those that time left open."""
    source = view.scan.register(session.duckdb, f"source{number}")
    if found is None:
        sql = join_sql(columns, session.entities(entities), source, view.ttl_us, as_known=as_known)
        found = Chosen(session.table(sql, view), tied=True)
    session.duckdb.register("chosen", found.rows.drop_columns(columns.features))
    winners = _settle(session.duckdb, columns, source, view, as_known=as_known)
    session.duckdb.unregister("chosen")
    return found, winners


def _settle(
    session: duckdb.DuckDBPyConnection, columns: Columns, source: str, view: AsOfView, *, as_known: bool
) -> Winners | None:
    """The rows that win where time left several, and which entity rows they answer; None where there are none."""
    same = [*columns.keys, "ts", *(["c"] if as_known else [])]
    listed = ", ".join(same)
    narrow = columns.select(source)
    equal = columns.equal("h", "g", *same[len(columns.keys) :])
    tied = session.sql(
        f"SELECT {listed} FROM ({narrow}) h SEMI JOIN (SELECT DISTINCT {listed} FROM chosen) g ON {equal} "
        f"GROUP BY {listed} HAVING count(*) > 1"
    ).to_arrow_table()
    if not len(tied):
        return None
    session.register("tied", tied)
    whole = columns.select(source, features=True, order=True)
    newest = ""
    if view.created is None:
        whole = f"SELECT *, NULL::BIGINT AS c FROM ({whole})"
    else:
        newest = f"QUALIFY c IS NOT DISTINCT FROM max(c) OVER (PARTITION BY {listed})"
    candidates = session.sql(
        f"SELECT *, dense_rank() OVER (ORDER BY {listed}) - 1 AS g "
        f"FROM ({whole}) h SEMI JOIN tied g ON {equal} {newest}"
    ).to_arrow_table()
    fields = {
        alias: Field(name=each.name, dtype=each.dtype) for alias, each in zip(columns.order, view.order, strict=True)
    }
    winners = settle(candidates, fields)
    session.register("winners", winners.rows.select([*same, "g"]))
    answered = session.sql(
        f"SELECT r.row, w.g FROM chosen r JOIN winners w ON {columns.equal('r', 'w', *same[len(columns.keys) :])}"
    ).to_arrow_table()
    for name in ("tied", "winners"):
        session.unregister(name)
    return winners.answering(answered["row"].to_numpy(), answered["g"].to_numpy())


def _positions(rows: int, chosen: npt.NDArray[np.int64], winners: Winners | None, offset: int) -> pa.Array:
    """For each entity row, where its values are; null where it has none."""
    take = np.full(rows, -1, np.int64)
    take[chosen] = np.arange(len(chosen))
    if winners is not None:
        take[winners.answered] = offset + winners.positions
    return pa.array(take, mask=take < 0)


def _taken(column: pa.ChunkedArray, take: pa.Array) -> pa.ChunkedArray:
    # In slices: text of more than 2 GB does not fit one Arrow chunk.
    slices = [column.take(take.slice(start, _SLICE)) for start in range(0, len(take), _SLICE)]
    return pa.chunked_array([chunk for piece in slices for chunk in piece.chunks], column.type)


def _reported(winners: Winners, view: AsOfView, columns: Columns) -> pa.Table | None:
    differing = winners.differing
    if not len(differing):
        return None
    utc = pa.timestamp("us", "UTC")
    report = {key.column: differing[name] for key, name in zip(view.keys, columns.keys, strict=True)}
    return pa.table(
        {
            **report,
            "event_ts": differing["ts"].cast(utc),
            "created_ts": differing["c"].cast(utc),
            "rows": differing["n"],
        }
    )
