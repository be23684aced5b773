"""How does SQL read a view's source and join it to entity rows?

Statements over two relations: the entity rows (`row`, `t`, k0..) and what `Columns.select` reads of a source.
`featurestore.offline.asof` runs them.
"""

from collections.abc import Sequence

import pyarrow as pa

from featurestore.errors import UsageError
from featurestore.offline.asof_view import AsOfView, Feature
from featurestore.offline.declared import declared_type
from featurestore.offline.sources import Scan
from featurestore.offline.sql_types import earliest, entity_key, identifier, instant, latest


class Columns:
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
        columns, alias = Columns(view), f"v{number}"
        keys = "".join(
            f", {entity_key(key.entity, entities.field(key.entity).type, key.dtype, place=place)} AS {name}"
            for key, name in zip(view.keys, columns.keys, strict=True)
        )
        created = view.created is not None
        join = join_sql(columns, "asked_keys", view.scan.sql, view.ttl_us, as_known=as_known and created, ties=created)
        rows = f'WITH asked_keys AS (SELECT __row AS "row", __t AS t{keys} FROM asked WHERE __t IS NOT NULL) {join}'
        joins.append(f'LEFT JOIN ({rows}) {alias} ON {alias}."row" = asked.__row')
        selected += [
            f"{alias}.{column} AS {identifier(feature.name)}"
            for column, feature in zip(columns.features, view.features, strict=True)
        ]
    t = instant(timestamp, entities.field(timestamp).type, place=place)
    asked = f"WITH asked AS (SELECT *, row_number() OVER () AS __row, {t} AS __t FROM entity_rows)"
    return "\n".join([asked, f"SELECT {', '.join(selected)}", "FROM asked", *joins, "ORDER BY asked.__row"])


def join_sql(columns: Columns, entities: str, source: str, ttl_us: int, *, as_known: bool, ties: bool = False) -> str:
    """Entity rows with the source's row of each; `ties` has created time break them at the price of a struct."""
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
    return f"SELECT {', '.join(wanted)} FROM {entities} e ASOF JOIN ({rows}) h ON {' AND '.join(conditions)}{expired}"


def _aliased(features: Sequence[Feature], names: Sequence[str], scan: Scan) -> list[str]:
    for feature in features:
        scan.column(feature.column, role="feature column")
    return [f"{identifier(feature.column)} AS {name}" for feature, name in zip(features, names, strict=True)]
