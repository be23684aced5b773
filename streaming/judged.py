"""What is known of a batch after the verdicts, and which columns of its events does a view read?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.plan import Transform, View
from streaming.source.records import Batch, Record
from validation.contract import Contract

Ints = npt.NDArray[np.int64]


class Rejected(msgspec.Struct, frozen=True):
    """An event that was set aside: the whole record, why, and which rules it broke."""

    record: Record
    reason: str
    detail: str
    rule_ids: tuple[str, ...] = ()
    ts_us: int | None = None
    """Its event time, where it could be read."""
    row: Any = None
    """Its columns, where it could be read and broke rules of the contract."""


class Marked(msgspec.Struct, frozen=True, gc=False):
    """An event that was accepted though it broke rules: those only warn or observe."""

    record: Record
    rule_ids: tuple[str, ...]
    row: Any
    """Its columns: a mapping, or a Struct with them as attributes."""


class Judged(msgspec.Struct, frozen=True):
    """A batch after the verdicts: accepted and rejected make up all of its records.

    `events` holds the accepted rows: the decoder's columns, `_offset` and `_arrival`, by ascending offset.
    """

    batch: Batch
    events: pa.Table
    ts_us: Ints
    arrival_us: Ints
    offsets: Ints
    rejected: tuple[Rejected, ...]
    marked: tuple[Marked, ...] = ()
    contract: Contract | None = None
    """The one by which they were judged."""
    summed: frozenset[str] = frozenset()
    """The columns whose magnitudes were found fit for sums."""
    made: Mapping[Transform, pa.Table] = {}
    """The columns that each function of a view makes of `events`."""

    def of(self, view: View) -> pa.Table | None:
        """What the view's function made of the events; None where it has none."""
        return None if view.transform is None else self.made[view.transform]

    @property
    def warned(self) -> Mapping[str, int]:
        """Rule id -> events that broke a rule which only warns or observes."""
        return Counter(rule_id for item in self.marked for rule_id in item.rule_ids)

    @property
    def watermark_us(self) -> int | None:
        """The greatest min(event time, arrival) of what was accepted; None without events."""
        return int(np.minimum(self.ts_us, self.arrival_us).max()) if len(self.ts_us) else None

    def of_batches(self, batches: Sequence[Batch], ends: Sequence[int]) -> list["Judged"]:
        """The verdicts on each of several batches that were judged together, of as many partitions.

        `ends` are the rows of `events` before which those of each batch end.
        """
        rejected: dict[int, list[Rejected]] = {batch.partition: [] for batch in batches}
        marked: dict[int, list[Marked]] = {batch.partition: [] for batch in batches}
        for item in self.rejected:
            rejected[item.record.partition].append(item)
        for each in self.marked:
            marked[each.record.partition].append(each)
        found = []
        for batch, first, end in zip(batches, (0, *ends), ends, strict=False):
            judged = msgspec.structs.replace(
                self,
                batch=batch,
                events=self.events.slice(first, end - first),
                ts_us=self.ts_us[first:end],
                arrival_us=self.arrival_us[first:end],
                offsets=self.offsets[first:end],
                rejected=tuple(rejected[batch.partition]),
                marked=tuple(marked[batch.partition]),
                made={key: columns.slice(first, end - first) for key, columns in self.made.items()},
            )
            taken = len(judged.offsets) + len(judged.rejected)
            assert taken == len(batch.records), "an event was counted to another partition than its own"
            found.append(judged)
        return found

    def since(self, offset: int) -> "Judged":
        """The same without what lies before `offset`: a sink or shard skips what it already has."""
        if offset <= self.batch.position_before:
            return self
        start = int(np.searchsorted(self.offsets, offset))
        rejected = tuple(item for item in self.rejected if item.record.offset >= offset)
        marked = tuple(item for item in self.marked if item.record.offset >= offset)
        return msgspec.structs.replace(
            self,
            events=self.events.slice(start),
            ts_us=self.ts_us[start:],
            arrival_us=self.arrival_us[start:],
            offsets=self.offsets[start:],
            rejected=rejected,
            marked=marked,
            made={key: columns.slice(start) for key, columns in self.made.items()},
        )

    def only(self, kept: npt.NDArray[np.bool_]) -> "Judged":
        """The same with some of the accepted events alone."""
        if kept.all():
            return self
        mask = pa.array(kept)
        return msgspec.structs.replace(
            self,
            events=self.events.filter(mask),
            ts_us=self.ts_us[kept],
            arrival_us=self.arrival_us[kept],
            offsets=self.offsets[kept],
            made={key: columns.filter(mask) for key, columns in self.made.items()},
        )


def columns_of_view(view: View, events: pa.Table, made: pa.Table | None = None) -> dict[str, pa.Array]:
    """The view's columns of the events, under the view's names; what its function made takes the place of others."""
    columns = {column.name: events[producer_name(view, column.name)].combine_chunks() for column in view.columns}
    if made is not None:
        columns |= {name: made[name].combine_chunks() for name in made.column_names}
    return columns


def producer_name(view: View, column: str) -> str:
    for old, new in view.source.field_mapping.items():
        if new == column:
            return old
    return column
