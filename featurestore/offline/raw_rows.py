"""What does a source hold, as it is stored: its own names, no join?"""

from collections.abc import Sequence

import pyarrow as pa

from featurestore.offline.connection import Limits, connection
from featurestore.offline.sources import Scan
from featurestore.offline.sql_types import identifier


def raw_rows(scan: Scan, columns: Sequence[str], *, limits: Limits | None = None) -> pa.Table:
    """Those columns of every row, in any order; of an event log each offset once."""
    with connection(limits or Limits()) as session:
        source = scan.register(session, "raw")
        table: pa.Table = session.sql(f"SELECT {', '.join(map(identifier, columns))} FROM {source}").to_arrow_table()
    return table
