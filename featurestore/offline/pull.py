"""Which rows does a source hold between two instants, which are the newest, and who appears there?

Materialization and saved datasets read through here. Bounds are inclusive, None is unbounded; columns come back as
the source has them.
"""

from collections.abc import Mapping, Sequence

import msgspec
import pyarrow as pa

from featurestore.offline.asof_view import Key
from featurestore.offline.bounds import Late, within
from featurestore.offline.connection import Limits, batches_of, connection
from featurestore.offline.mapped import held_or_mapped, room_bytes
from featurestore.offline.sources import Scan
from featurestore.offline.sql_types import entity_key, identifier, instant
from featurestore.offline.ties import settle
from featurestore.plan import Field


def rows_between(
    scan: Scan, columns: Sequence[str], timestamp: str, start_us: int | None, end_us: int | None, *, limits: Limits
) -> pa.Table:
    """All rows within the bounds, in the order of the source's files; more than memory holds lie in a file.

    >>> from featurestore.offline.sources import scan_table
    >>> rows = pa.table({"id": [1, 2], "ts": pa.array([0, 5], pa.timestamp("us"))})
    >>> rows_between(scan_table(rows, name="rows"), ["id"], "ts", 1, 5, limits=Limits()).to_pylist()
    [{'id': 2}]
    """
    schema = _schema(scan, columns)
    with connection(limits) as session:
        session.execute("SET preserve_insertion_order = true")
        source = scan.register(session, "source")
        listed = ", ".join(identifier(column) for column in schema.names)
        where = within(scan, timestamp, start_us, end_us)
        found = session.sql(f"SELECT {listed} FROM {source} WHERE {where}")
        if scan.rows is not None and scan.rows * 16 * len(schema) < room_bytes(limits):
            return found.to_arrow_table().cast(schema)
        reader = batches_of(found)
        batches = (batch for each in reader for batch in pa.Table.from_batches([each]).cast(schema).to_batches())
        return held_or_mapped(batches, schema, limits)


def newest_rows(
    scan: Scan,
    keys: Sequence[str],
    columns: Sequence[str],
    timestamp: str,
    created: str | None,
    start_us: int | None,
    end_us: int | None,
    *,
    fields: Mapping[str, Field],
    limits: Limits,
    share: tuple[int, int] = (0, 1),
    late: Late | None = None,
) -> tuple[pa.Table, int]:
    """The row of each key with the greatest (event_ts, created_ts) within the bounds; a NULL key is nobody's.

    `late` says which rows before the start count too. `share` is (i, n): the i-th of n parts of all keys, whole keys
    each. Of equal rows the greatest bytes of `fields` (column -> the feature that it is) win; the number beside the
    table says for how many keys these differed.

    >>> from featurestore.offline.sources import scan_table
    >>> rows = pa.table({"id": [1, 1, 2], "ts": pa.array([0, 5, 5], pa.timestamp("us")), "f": [1, 2, 3]})
    >>> scan = scan_table(rows, name="rows")
    >>> table, differing = newest_rows(scan, ["id"], ["f"], "ts", None, None, 9, fields={}, limits=Limits())
    >>> sorted(table["f"].to_pylist()), differing
    ([2, 3], 0)
    """
    wanted = list(dict.fromkeys([*keys, *columns, timestamp, *([created] if created else [])]))
    schema = _schema(scan, wanted)
    ts = instant(timestamp, scan.column(timestamp, role="timestamp column"), place=scan.name)
    made = "NULL::BIGINT"
    if created:
        made = instant(created, scan.column(created, role="created timestamp column"), place=scan.name)
    present = [f"{identifier(key)} IS NOT NULL" for key in keys]
    where = " AND ".join([within(scan, timestamp, start_us, end_us, late), f"{ts} IS NOT NULL", *present])
    if share[1] > 1 and keys:
        where += f" AND hash({', '.join(map(identifier, keys))}) % {share[1]} = {share[0]}"
    with connection(limits) as session:
        source = scan.register(session, "source")
        newest = session.sql(_newest_sql(source, keys, wanted, ts, made, where)).to_arrow_table()
        names = {f"x{index}": name for index, name in enumerate(wanted)}
        aliases = {name: alias for alias, name in names.items()}
        winners = settle(newest, {aliases[name]: field for name, field in fields.items()})
    rows = winners.rows.select(list(names)).rename_columns(list(names.values()))
    return rows.cast(schema), len(winners.differing)


class Extent(msgspec.Struct, frozen=True):
    """How much there is to read."""

    rows: int
    """Within the bounds."""
    after: int
    """Dated after them, up to the last instant that was asked about."""
    created_us: int | None
    """The newest created time of all of these, of those that are not ahead of the clock."""


def extent_of(
    scan: Scan,
    timestamp: str,
    created: str | None,
    start_us: int | None,
    end_us: int,
    *,
    last_us: int,
    now_us: int,
    limits: Limits,
    late: Late | None = None,
) -> Extent:
    """How many rows lie within the bounds, how many after them up to `last_us`, and when the newest was created.

    A row that says it was created after `now_us` tells nothing of when rows arrive: it is left out of the third number.

    >>> from featurestore.offline.sources import scan_table
    >>> rows = pa.table({name: pa.array([0, 5, 9], pa.timestamp("us")) for name in ("ts", "made")})
    >>> scan = scan_table(rows, name="rows")
    >>> extent_of(scan, "ts", "made", 0, 5, last_us=9, now_us=7, limits=Limits())
    Extent(rows=2, after=1, created_us=5)
    """
    end = within(scan, timestamp, None, end_us)
    newest = "NULL"
    if created:
        made = instant(created, scan.column(created, role="created timestamp column"), place=scan.name)
        newest = f"max({made}) FILTER ({made} <= {now_us})"
    with connection(limits) as session:
        source = scan.register(session, "source")
        [(rows, after, created_us)] = session.execute(
            f"SELECT count(*) FILTER ({end}), count(*) FILTER (NOT {end}), {newest} FROM {source} "
            f"WHERE {within(scan, timestamp, start_us, max(end_us, last_us), late)}"
        ).fetchall()
    return Extent(rows, after, created_us)


def entities_between(
    scan: Scan, keys: Sequence[Key], timestamp: str, start_us: int | None, end_us: int | None, *, limits: Limits
) -> pa.Table:
    """The distinct (key, event time) pairs of a source within the bounds, in no particular order.

    Keys are in their declared types under the names of their entity columns, the time is `event_timestamp`.
    """
    ts = instant(timestamp, scan.column(timestamp, role="timestamp column"), place=scan.name)
    parts = []
    for key in keys:
        dtype = scan.column(key.column, role="join key")
        parts.append(f"{entity_key(key.column, dtype, key.dtype, place=scan.name)} AS {identifier(key.entity)}")
    parts.append(f"make_timestamptz({ts}) AS event_timestamp")
    with connection(limits) as session:
        source = scan.register(session, "source")
        where = within(scan, timestamp, start_us, end_us)
        found = session.sql(f"SELECT DISTINCT {', '.join(parts)} FROM {source} WHERE {where}").to_arrow_table()
    position = found.column_names.index("event_timestamp")
    instants = found["event_timestamp"].cast(pa.timestamp("us", "UTC"))
    return found.set_column(position, "event_timestamp", instants)


def _newest_sql(source: str, keys: Sequence[str], wanted: Sequence[str], ts: str, made: str, where: str) -> str:
    named = [f"{identifier(key)} AS k{index}" for index, key in enumerate(keys)]
    aliases = [f"k{index}" for index in range(len(keys))]
    columns = [f"{identifier(name)} AS x{index}" for index, name in enumerate(wanted)]
    narrow = f"SELECT {', '.join([*named, f'{ts} AS ts'])} FROM {source} WHERE {where}"
    whole = f"SELECT {', '.join([*named, f'{ts} AS ts', f'{made} AS c', *columns])} FROM {source} WHERE {where}"
    group = f"GROUP BY {', '.join(aliases)}" if keys else ""
    newest = f"SELECT {', '.join([*aliases, 'max(ts) AS ts'])} FROM ({narrow}) {group}"
    same = " AND ".join(f"s.{name} = m.{name}" for name in [*aliases, "ts"])
    partition = f"PARTITION BY {', '.join(aliases)}" if keys else ""
    # Two passes: the first reads keys and times alone, so that the windows sort only rows that can win.
    return (
        f"SELECT *, dense_rank() OVER (ORDER BY {', '.join(aliases) or 'ts'}) - 1 AS g "
        f"FROM ({whole}) s SEMI JOIN ({newest}) m ON {same} "
        f"QUALIFY rank() OVER ({partition} ORDER BY c DESC NULLS LAST) = 1"
    )


def _schema(scan: Scan, columns: Sequence[str]) -> pa.Schema:
    fields = []
    for name in dict.fromkeys(columns):
        dtype = scan.column(name, role="column")
        fields.append(pa.field(name, dtype.value_type if pa.types.is_dictionary(dtype) else dtype))
    return pa.schema(fields)
