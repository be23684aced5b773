"""Read a source's time columns as instants, whatever form its files give them."""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec
import pyarrow as pa

from featurestore.offline.connection import Limits, connection
from featurestore.offline.sources import Scan
from featurestore.offline.sql_types import identifier, instant
from validation.instant import unit_of

_INSTANT = pa.timestamp("us", "UTC")


def with_instants(scan: Scan, columns: Iterable[str | None], *, unit: str = "") -> Scan:
    """The source with those of its columns that are text or numbers as instants; `unit` is the declared one of numbers.

    Whatever reads the source afterwards sees timestamps. Raises SourceError for a column that holds no times.

    >>> from featurestore.offline.sources import scan_table
    >>> scan = with_instants(scan_table(pa.table({"ts": ["2024-03-10"]}), name="rows"), ["ts"])
    >>> scan.column("ts", role="timestamp column")
    TimestampType(timestamp[us, tz=UTC])
    """
    instead, schema = [], scan.schema
    for column in dict.fromkeys(columns):
        index = -1 if column is None else schema.get_field_index(column)
        if column is None or index < 0:
            continue
        dtype = schema.field(index).type
        plain = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
        if pa.types.is_timestamp(plain) or pa.types.is_date(plain) or pa.types.is_null(plain):
            continue
        read = instant(column, dtype, place=scan.name, unit=unit)
        instead.append(f"make_timestamptz({read}) AS {identifier(column)}")
        schema = schema.set(index, pa.field(column, _INSTANT))
    if not instead:
        return scan
    replaced = f"SELECT * REPLACE ({', '.join(instead)}) FROM"
    if scan.relation is not None:  # The relation's name is formatted in; a pattern has braces of its own.
        replaced = replaced.replace("{", "{{").replace("}", "}}")
    numbered = f"({replaced} {scan.numbered})" if scan.numbered else ""
    return msgspec.structs.replace(scan, schema=schema, sql=f"({replaced} {scan.sql})", numbered=numbered, files=())


class Unit(NamedTuple):
    """In which unit the numbers of a time column are read."""

    column: str
    unit: str
    declared: bool


def units_of(
    scan: Scan, columns: Iterable[str | None], *, declared: str = "", limits: Limits | None = None
) -> list[Unit]:
    """The unit of each of those columns that holds numbers; one of no known or of several units has no name.

    >>> from featurestore.offline.sources import scan_table
    >>> units_of(scan_table(pa.table({"ts": [1_710_050_400_000]}), name="rows"), ["ts"])
    [Unit(column='ts', unit='ms', declared=False)]
    """
    found = []
    for column in dict.fromkeys(columns):
        index = -1 if column is None else scan.schema.get_field_index(column)
        if column is None or index < 0:
            continue
        dtype = scan.schema.field(index).type
        if not (pa.types.is_integer(dtype) or pa.types.is_floating(dtype)):
            continue
        if declared:
            found.append(Unit(column, declared, declared=True))
            continue
        name = identifier(column)
        with connection(limits or Limits()) as session:
            source = scan.register(session, "source")
            [(low, high)] = session.execute(f"SELECT min({name}), max({name}) FROM {source}").fetchall()
        if low is not None:
            units = {unit_of(low), unit_of(high)}
            found.append(Unit(column, units.pop() or "" if len(units) == 1 else "", declared=False))
    return found
