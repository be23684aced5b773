"""Which of a source's rows does a run mean? Those between two instants, and those that came late.

Bounds are inclusive, None is unbounded.
"""

import msgspec

from featurestore.offline.sources import Scan
from featurestore.offline.sql_types import instant


class Late(msgspec.Struct, frozen=True):
    """Rows that count whatever their event time, as long as it is not after the end."""

    created: str
    """The created timestamp column."""
    since_us: int
    """Rows created then or later."""


def within(scan: Scan, timestamp: str, start_us: int | None, end_us: int | None, late: Late | None = None) -> str:
    """The rows that are meant, as a condition in SQL; raises SourceError for a column that is gone or no instant.

    >>> import pyarrow as pa
    >>> from featurestore.offline.sources import scan_table
    >>> scan = scan_table(pa.table({"ts": pa.array([], pa.timestamp("us"))}), name="rows")
    >>> within(scan, "ts", 1, None)
    'epoch_us("ts") >= 1'
    """
    ts = instant(timestamp, scan.column(timestamp, role="timestamp column"), place=scan.name)
    bounds = []
    if start_us is not None:
        begun = f"{ts} >= {start_us}"
        if late is not None:
            made = scan.column(late.created, role="created timestamp column")
            begun = f"({begun} OR {instant(late.created, made, place=scan.name)} >= {late.since_us})"
        bounds.append(begun)
    if end_us is not None:
        bounds.append(f"{ts} <= {end_us}")
    return " AND ".join(bounds) or "TRUE"
