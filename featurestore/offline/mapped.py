"""How does a table that is too large for memory lie in a file, and still be a table?

An Arrow file is mapped into memory: the system reads of it what is looked at, and forgets it again under pressure. The
file's name is gone before the table is handed out; its bytes go with the last column that is looked at.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurestore.offline.connection import Limits

SHARE = 4
"""A table of ours may take a quarter of the memory; one that would take more lies in a file."""
BATCH_ROWS = 1_000_000


class ArrowFile:
    """A file being written, in the temporary folder; gone with the table that it becomes, or with the stack."""

    def __init__(self, stack: ExitStack, schema: pa.Schema, limits: Limits) -> None:
        if limits.temp_dir is not None:
            limits.temp_dir.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(prefix="featurestore-", suffix=".arrow", dir=limits.temp_dir)
        os.close(number)
        self._path = Path(name)
        stack.callback(self._path.unlink, missing_ok=True)
        self._writer = stack.enter_context(pa.ipc.new_file(name, schema))

    def write(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Append rows."""
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        self._writer.write_table(table, max_chunksize=BATCH_ROWS)

    def table(self) -> pa.Table:
        """What was written; nothing can be written after it."""
        self._writer.close()
        return pa.ipc.open_file(pa.memory_map(str(self._path))).read_all()


def room_bytes(limits: Limits) -> int:
    """What one table may take in memory."""
    return limits.memory_bytes // SHARE


def held_or_mapped(batches: Iterable[pa.RecordBatch], schema: pa.Schema, limits: Limits) -> pa.Table:
    """The batches as a table in memory, or in a file where they take too much.

    >>> batch = pa.record_batch({"a": [1, 2]})
    >>> held_or_mapped([batch, batch], batch.schema, Limits()).num_rows
    4
    """
    rest = iter(batches)
    held, more = as_many_as_fit(rest, room_bytes(limits))
    if more is None:
        return pa.Table.from_batches(held, schema)
    with ExitStack() as stack:
        file = ArrowFile(stack, schema, limits)
        for batch in chain(held, [more], rest):
            file.write(batch)
        return file.table()


def as_many_as_fit(batches: Iterator[pa.RecordBatch], size_bytes: int) -> tuple[list[pa.RecordBatch], Any]:
    """The first batches, as many as may be held, and the one after them; None where there is none."""
    held: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        size += batch.nbytes
        if size > size_bytes:
            return held, batch
        held.append(batch)
    return held, None
