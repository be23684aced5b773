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

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache

import duckdb
import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import SourceError, UsageError
from featurestore.offline.asof_memory import Chosen, choose
from featurestore.offline.connection import Limits, connection, first_line
from featurestore.offline.declared import as_declared, declared_type
from featurestore.offline.entity_rows import EntityRows, coerce_key, instants
from featurestore.offline.sources import Scan
from featurestore.offline.sql_types import earliest, entity_key, identifier, instant, latest
from featurestore.offline.ties import Winners, settle
from featurestore.plan import Field

MEMORY_CELLS = 20_000_000
"""Histories of up to as many values (rows times columns joined) are held in memory, some 8 bytes each: 0.16 GB.

Measured: at 1 M rows the sort takes half the time of SQL, at 10 M twice, since SQL sorts on all processors."""
_SLICE = 1 << 20


class Key(msgspec.Struct, frozen=True):
    """One join key: its column in the source, its column in the entity rows, the entity's declared type."""

    column: str
    entity: str
    dtype: str


class Feature(msgspec.Struct, frozen=True):
    """One feature: its name in the result, its column in the source, its declared type (a Feast value type's name)."""

    name: str
    column: str
    dtype: str


class AsOfView(msgspec.Struct, frozen=True, kw_only=True):
    """What to join of one feature view. Without keys, one row of the source is everybody's."""

    name: str
    scan: Scan
    keys: tuple[Key, ...]
    timestamp: str
    created: str | None = None
    ttl_us: int = 0
    features: tuple[Feature, ...]
    every_feature: tuple[Feature, ...] = ()
    """All features of the view: their bytes order duplicates, whichever are asked for. Empty: `features`."""

    @property
    def order(self) -> tuple[Feature, ...]:
        """The features whose bytes order duplicates."""
        return self.every_feature or self.features


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
    with ExitStack() as stack:
        # Opened by the first view that needs one: a connection and its spill folder cost more than a small join.
        session = cache(lambda: stack.enter_context(connection(limits or Limits())))
        for number, view in enumerate(views):
            columns, tied = _join_view(session, entity_rows, view, number, as_known=as_known)
            for name, column in columns.items():
                table = table.append_column(name, column)
            if tied is not None:
                duplicates.append(Duplicates(view.name, tied))
            if on_view is not None:
                on_view(view.name)
    return AsOfResult(table, tuple(duplicates))


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
        _Columns(view)
        if view.scan.empty:
            raise SourceError(f"{view.scan.name} has no rows")


def as_of_sql(entities: pa.Schema, timestamp: str, views: Sequence[AsOfView], *, as_known: bool = False) -> str:
    """The join as one DuckDB statement over a table `entity_rows`, to read and to run by hand.

    It breaks ties by created time; rows that even this cannot tell apart are settled by `as_of_join` alone, and
    features keep their source's types. Raises UsageError and SourceError for columns that do not fit.
    """
    place = "entity_rows"
    selected, joins = ["asked.* EXCLUDE (__row, __t)"], []
    for number, view in enumerate(views):
        if view.scan.relation is not None:
            raise UsageError(f"{view.scan.name} is no file that a statement could name")
        columns, alias = _Columns(view), f"v{number}"
        keys = "".join(
            f", {entity_key(key.entity, entities.field(key.entity).type, key.dtype, place=place)} AS {name}"
            for key, name in zip(view.keys, columns.keys, strict=True)
        )
        join = _join_sql(
            columns, view.scan.sql, view.ttl_us, as_known=as_known and bool(view.created), ties=bool(view.created)
        )
        rows = f'WITH e AS (SELECT __row AS "row", __t AS t{keys} FROM asked WHERE __t IS NOT NULL) {join}'
        joins.append(f'LEFT JOIN ({rows}) {alias} ON {alias}."row" = asked.__row')
        selected += [
            f"{alias}.{column} AS {identifier(feature.name)}"
            for column, feature in zip(columns.features, view.features, strict=True)
        ]
    t = instant(timestamp, entities.field(timestamp).type, place=place)
    asked = f"WITH asked AS (SELECT *, row_number() OVER () AS __row, {t} AS __t FROM entity_rows)"
    return "\n".join([asked, f"SELECT {', '.join(selected)}", "FROM asked", *joins, "ORDER BY asked.__row"])


class _Columns:
    """A view's source in SQL, under names of our own: k0.. keys, ts, c, f0.. features; all unambiguous."""

    def __init__(self, view: AsOfView) -> None:
        scan, place = view.scan, view.scan.name
        self.keys = [f"k{index}" for index in range(len(view.keys))]
        self.features = [f"f{index}" for index in range(len(view.features))]
        self.order = [f"o{index}" for index in range(len(view.order))]
        parts = [
            f"{entity_key(key.column, scan.column(key.column, role='join key'), key.dtype, place=place)} AS {name}"
            for key, name in zip(view.keys, self.keys, strict=True)
        ]
        timestamp = scan.column(view.timestamp, role="timestamp column")
        self._instant = instant(view.timestamp, timestamp, place=place)
        parts.append(f"{self._instant} AS ts")
        if view.created is not None:
            created = scan.column(view.created, role="created timestamp column")
            parts.append(f"{instant(view.created, created, place=place)} AS c")
        self._features = _aliased(view.features, self.features, scan)
        self._order = _aliased(view.order, self.order, scan)
        self.types = [
            declared_type(feature.dtype, scan.column(feature.column, role="feature")) for feature in view.features
        ]
        self._parts = parts
        self._timestamp = (view.timestamp, timestamp)
        self.bounds = f"{self._instant} IS NOT NULL"

    def bound(self, least_us: int | None, greatest_us: int) -> None:
        """Let row-group statistics skip what no entity row can see."""
        found = [
            latest(*self._timestamp, greatest_us),
            None if least_us is None else earliest(*self._timestamp, least_us),
        ]
        self.bounds = " AND ".join([f"{self._instant} IS NOT NULL", *filter(None, found)])

    def select(self, source: str, *, features: bool = False, order: bool = False) -> str:
        """The columns wanted, of the rows within the bounds."""
        columns = [*self._parts, *(self._features if features else []), *(self._order if order else [])]
        return f"SELECT {', '.join(columns)} FROM {source} WHERE {self.bounds}"

    def equal(self, left: str, right: str, *more: str) -> str:
        """The condition that two relations agree in the keys and `more`."""
        return " AND ".join(f"{left}.{name} = {right}.{name}" for name in [*self.keys, *more]) or "TRUE"


def _join_view(
    session: Callable[[], duckdb.DuckDBPyConnection],
    asked: EntityRows,
    view: AsOfView,
    number: int,
    *,
    as_known: bool,
) -> tuple[dict[str, pa.ChunkedArray], pa.Table | None]:
    columns = _Columns(view)
    as_known = as_known and view.created is not None
    entities = _entities(asked, view, columns)
    bounds = asked.bounds_us()
    if bounds is None or not len(entities):
        nothing = zip(view.features, columns.types, strict=True)
        return {feature.name: pa.chunked_array([pa.nulls(len(asked), dtype)]) for feature, dtype in nothing}, None
    columns.bound(bounds[0] - view.ttl_us if view.ttl_us else None, bounds[1])
    found = None if as_known else _chosen_in_memory(session, columns, view, number, entities)
    winners = None
    if found is None or found.tied:
        found, winners = _chosen_in_sql(session(), columns, view, number, entities, found, as_known=as_known)
    chosen = found.rows
    take = _positions(len(asked), chosen["row"].to_numpy(), winners, len(chosen))
    values = chosen.select(columns.features)
    if winners is not None:
        values = pa.concat_tables([values, winners.rows.select(columns.features)])
    values = values.combine_chunks()
    result = {
        feature.name: as_declared(
            _taken(values[column], take), feature.dtype, dtype, place=f"view {view.name!r}, feature {feature.name!r}"
        )
        for feature, column, dtype in zip(view.features, columns.features, columns.types, strict=True)
    }
    return result, None if winners is None else _reported(winners, view, columns)


def _chosen_in_memory(
    session: Callable[[], duckdb.DuckDBPyConnection],
    columns: _Columns,
    view: AsOfView,
    number: int,
    entities: pa.Table,
) -> Chosen | None:
    """The chosen rows where the history is small enough to be held; None where SQL, which can spill, has to join."""
    width = len(columns.keys) + 1 + len(columns.features)
    if view.scan.rows is None or view.scan.rows * width > MEMORY_CELLS:
        return None
    history = _read_plain(columns, view)
    if history is None:
        source = view.scan.register(session(), f"source{number}")
        history = session().sql(columns.select(source, features=True)).to_arrow_table()
    return choose(history, entities, columns.keys, view.ttl_us)


def _read_plain(columns: _Columns, view: AsOfView) -> pa.Table | None:
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
    session: duckdb.DuckDBPyConnection,
    columns: _Columns,
    view: AsOfView,
    number: int,
    entities: pa.Table,
    found: Chosen | None,
    *,
    as_known: bool,
) -> tuple[Chosen, Winners | None]:
    """The chosen rows, unless they are `found` already, and the winners among those that time left open."""
    session.register("e", entities)
    source = view.scan.register(session, f"source{number}")
    if found is None:
        sql = _join_sql(columns, source, view.ttl_us, as_known=as_known)
        found = Chosen(session.sql(sql).to_arrow_table(), tied=True)
    session.register("chosen", found.rows.drop_columns(columns.features))
    winners = _settle(session, columns, source, view, as_known=as_known)
    for name in ("e", "chosen"):
        session.unregister(name)
    return found, winners


def _entities(asked: EntityRows, view: AsOfView, columns: _Columns) -> pa.Table:
    table = pa.table({"row": np.arange(len(asked)), "t": asked.t_us})
    usable = asked.has_t
    for key, name in zip(view.keys, columns.keys, strict=True):
        values = asked.key(key.entity, key.dtype)
        table = table.append_column(name, values)
        if values.null_count:
            usable = usable & values.is_valid().to_numpy()
    # A NULL never joins; left in, a NULL instant would sort above every other.
    return table if usable.all() else table.filter(pa.array(usable))


def _join_sql(columns: _Columns, source: str, ttl_us: int, *, as_known: bool, ties: bool = False) -> str:
    """Entity rows (`e`) with the source's row of each; `ties` has created time break them at the price of a struct."""
    rows = columns.select(source, features=True)
    visible = "ts"
    if as_known:
        keys = ", ".join(columns.keys)
        by_key = f"PARTITION BY {keys} " if keys else ""
        # In order of becoming visible, only rows at least as new as all before them are ever the answer; of several
        # that become visible together, the last. `greatest` ignores NULLs, so unknown creation is ruled out first.
        rows = (
            f"SELECT *, greatest(ts, c) AS visible FROM ({rows}) WHERE c IS NOT NULL "
            f"QUALIFY ts >= max(ts) OVER ({by_key}ORDER BY greatest(ts, c), ts, c ROWS UNBOUNDED PRECEDING) "
            f"AND lead(greatest(ts, c)) OVER ({by_key}ORDER BY greatest(ts, c), ts, c) IS DISTINCT FROM greatest(ts, c)"
        )
        visible = "visible"
    wanted = [
        "e.row",
        *(f"h.{name}" for name in [*columns.keys, "ts", *(["c"] if as_known else []), *columns.features]),
    ]
    least, greatest = -(1 << 63), (1 << 63) - 1
    inequality = f"e.t >= h.{visible}"
    if ties and not as_known:
        inequality = f"row(e.t, {greatest}) >= row(h.ts, coalesce(h.c, {least}))"
    conditions = [*(f"e.{name} = h.{name}" for name in columns.keys), inequality]
    expired = f" WHERE e.t - h.ts <= {ttl_us}" if ttl_us else ""
    return f"SELECT {', '.join(wanted)} FROM e ASOF JOIN ({rows}) h ON {' AND '.join(conditions)}{expired}"


def _settle(
    session: duckdb.DuckDBPyConnection, columns: _Columns, source: str, view: AsOfView, *, as_known: bool
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


def _reported(winners: Winners, view: AsOfView, columns: _Columns) -> pa.Table | None:
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


def _aliased(features: Sequence[Feature], names: Sequence[str], scan: Scan) -> list[str]:
    for feature in features:
        scan.column(feature.column, role="feature column")
    return [f"{identifier(feature.column)} AS {name}" for feature, name in zip(features, names, strict=True)]
