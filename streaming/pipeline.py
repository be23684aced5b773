"""Which events of a batch are accepted, and why are the others not? No I/O, no state.

A batch goes through in fixed steps: decode; set aside what is dated ahead of its arrival; judge by the contract. What
is accepted is a function of the log alone: of an event and its arrival, never of a clock, so that a replay judges
alike. What it changes in the views that read the topic is `streaming.view_pipeline`'s work.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.aggregation.tiles import TileLayout
from featurestore.offline.event_log import ARRIVAL, OFFSET
from featurestore.online.partitioner import partition_of
from featurestore.plan import Transform, View
from featurestore.transform import transformed
from streaming.column_types import is_instant
from streaming.decode import Decoder
from streaming.homes import partitions_of
from streaming.judged import Judged, Marked, Rejected, columns_of_view, producer_name
from streaming.schema_registry import SchemaRegistry
from streaming.source.records import Batch, Record
from streaming.source.replayed import judged_before
from validation.compiled.rows import RowCheck, compile_rows
from validation.contract import Contract

Ints = npt.NDArray[np.int64]

AHEAD_TOLERANCE_US: Final = 5_000_000
AHEAD: Final = "ahead_of_arrival"
NO_ARRIVAL: Final = "no_arrival"
"""The record's own time is no instant: nothing can be judged against it."""
TOO_LARGE: Final = "too_large"
"""A float of 2^78 and more in an aggregated column: its sum would not be exact."""
TRANSFORM: Final = "transform_failed"
"""The function of a view that reads the topic raised an error, or made something else than it is declared to."""
TOO_LONG: Final = "too_long"
"""Text or bytes longer than a view keeps of them."""
WRONG_PARTITION: Final = "wrong_partition"
"""Of a topic whose number of partitions is declared: not the partition of the message key."""
CONTRACT: Final = "contract"
_INSTANTS: Final = pa.timestamp("us", "UTC")


class TopicPipeline:
    """The verdicts on one topic's events, the same for every view that reads it."""

    def __init__(
        self,
        views: Sequence[View],
        contract: Contract | None = None,
        *,
        ahead_tolerance_us: int = AHEAD_TOLERANCE_US,
        registry: SchemaRegistry | None = None,
    ) -> None:
        self.decoder = Decoder(views, contract, registry=registry)
        self.views = tuple(views)
        self.contract = contract
        self._rules = None if contract is None else compile_rows(contract.at("event"))
        self._tolerance_us = ahead_tolerance_us
        self._homes = next((count for view in views if (count := partitions_of(view)) is not None), None)
        self._layouts = [
            (view, TileLayout.of(view)) for view in views if view.kind == "windowed" and view.transform is None
        ]
        self._summed = frozenset(
            producer_name(view, each.column) for view, _ in self._layouts for each in view.aggregations
        )
        self._transforms = [
            (view, view.transform, TileLayout.of(view) if view.kind == "windowed" else None)
            for view in views
            if view.transform is not None
        ]

    @property
    def event_schema(self) -> pa.Schema:
        """The columns of `Judged.events`."""
        return self.decoder.schema.append(pa.field(OFFSET, pa.int64())).append(
            pa.field(ARRIVAL, pa.timestamp("us", "UTC"))
        )

    def judge(self, batch: Batch, count: Callable[[str], int] | None = None) -> Judged:
        """Accept or set aside every record of the batch.

        `count` tells how many partitions a topic has now; it is asked where a record lies in another partition than its
        key's. Where the topic has grown that is no fault: its keyed views are read from all partitions then.
        """
        return self.judge_together([batch], count)[0]

    def judge_together(self, batches: Sequence[Batch], count: Callable[[str], int] | None = None) -> list[Judged]:
        """The same for small batches of several partitions, at little more than the cost of one.

        All of them are `replayed`, or none is.
        """
        records = batches[0].records if len(batches) == 1 else [record for each in batches for record in each.records]
        replayed = batches[0].replayed
        found = self.decoder.decode(records)
        rejected = [Rejected(records[bad.index], bad.reason, bad.detail) for bad in found.malformed]
        arrived = list(map(attrgetter("timestamp_us"), records))
        known = np.ones(len(arrived), np.bool_)
        if arrived and not (is_instant(min(arrived)) and is_instant(max(arrived))):
            known = np.array([is_instant(time_us) for time_us in arrived], np.bool_)
            arrived = [time_us if fit else 0 for time_us, fit in zip(arrived, known.tolist(), strict=True)]
        arrival = np.array(arrived, np.int64)[found.index]
        offsets = np.array(list(map(attrgetter("offset"), records)), np.int64)[found.index]
        events = self.decoder.table(found.rows)
        keep = known[found.index]
        for row in np.flatnonzero(~keep).tolist():
            detail = f"the record's time is {records[found.index[row]].timestamp_us} us, not within the years 1 to 9999"
            rejected.append(Rejected(records[found.index[row]], NO_ARRIVAL, detail))
        ahead = keep & (found.ts_us > arrival + self._tolerance_us)
        keep &= ~ahead
        for row in np.flatnonzero(ahead).tolist():
            ahead_us = int(found.ts_us[row] - arrival[row])
            detail = (
                f"dated {ahead_us / 1e6:.3f} s after its arrival; at most {self._tolerance_us / 1e6:g} s are allowed"
            )
            rejected.append(Rejected(records[found.index[row]], AHEAD, detail, ts_us=int(found.ts_us[row])))
        away = self._away(batches, records, found.index, count)
        if away is not None:
            for record in [records[place] for place in found.index[away & keep].tolist()]:
                detail = f"partition {record.partition} is not that of key {record.key!r} among {self._homes}"
                rejected.append(Rejected(record, WRONG_PARTITION, detail))
            keep &= ~away
        for view, layout in self._layouts:
            for reason, mask, detail in _unfit(view, layout, columns_of_view(view, events)):
                places = found.index[mask & keep].tolist()
                rejected.extend(Rejected(records[place], reason, detail) for place in places)
                keep &= ~mask
        marked: list[Marked] = []
        if self._rules is not None:
            rows = self.decoder.named(found.rows)
            self._apply_rules(
                self._rules,
                rows,
                records,
                found.index,
                arrival,
                keep,
                rejected,
                marked,
                found.ts_us,
                replayed=replayed,
            )
        made: dict[Transform, pa.Table] = {}
        if self._transforms:
            made = self._transformed(events, records, found.index, keep, rejected)
            gone = {item.record.offset for item in rejected}
            marked = [item for item in marked if item.record.offset not in gone]
        if not keep.all():
            events = events.filter(pa.array(keep))
        arrival, offsets = arrival[keep], offsets[keep]
        events = events.append_column(OFFSET, pa.array(offsets)).append_column(
            ARRIVAL, pa.array(arrival).view(_INSTANTS)
        )
        rejected.sort(key=lambda item: item.record.offset)
        assert len(offsets) + len(rejected) == len(records), "an event was neither accepted nor set aside, or both"
        judged = Judged(
            batches[0],
            events,
            found.ts_us[keep],
            arrival,
            offsets,
            tuple(rejected),
            tuple(marked),
            contract=self.contract,
            summed=self._summed,
            made=made,
        )
        if len(batches) == 1:
            return [judged]
        ends = np.searchsorted(found.index[keep], np.cumsum([len(each.records) for each in batches]))
        return judged.of_batches(batches, ends.tolist())

    def _away(
        self, batches: Sequence[Batch], records: Sequence[Record], index: Ints, count: Callable[[str], int] | None
    ) -> npt.NDArray[np.bool_] | None:
        """Which rows lie in another partition than their key's; None where none does, or the topic has grown."""
        homes = self._homes
        if homes is None or batches[0].replayed:
            return None
        found = [
            bool(key := records[place].key) and partition_of(key or b"", homes) != records[place].partition
            for place in index.tolist()
        ]
        if not any(found) or (count is not None and count(batches[0].topic) != homes):
            return None
        return np.array(found, np.bool_)

    def _transformed(
        self,
        events: pa.Table,
        records: Sequence[Record],
        index: Ints,
        keep: npt.NDArray[np.bool_],
        rejected: list[Rejected],
    ) -> dict[Transform, pa.Table]:
        """What the views' functions make of the events that are kept; those on which one fails are taken out."""
        made: dict[Transform, tuple[Ints, pa.Table]] = {}
        for view, transform, layout in self._transforms:
            kept = np.flatnonzero(keep)
            given = events.take(pa.array(kept))
            columns = {field.name: given[producer_name(view, field.name)] for field in transform.inputs}
            result = transformed(view.name, transform, columns)
            for row, detail in result.failed.items():
                rejected.append(Rejected(records[index[kept[row]]], TRANSFORM, detail))
                keep[kept[row]] = False
            aggregated = columns_of_view(view, given, result.columns) if layout is not None else {}
            for reason, mask, detail in _unfit(view, layout, aggregated) if layout is not None else ():
                places = kept[mask & keep[kept]]
                rejected.extend(Rejected(records[place], reason, detail) for place in index[places].tolist())
                keep[places] = False
            made[transform] = (kept, result.columns)
        return {key: columns.filter(pa.array(keep[kept])) for key, (kept, columns) in made.items()}

    @staticmethod
    def _apply_rules(
        rules: RowCheck,
        rows: Sequence[Any],
        records: Sequence[Record],
        index: Ints,
        arrival: Ints,
        keep: npt.NDArray[np.bool_],
        rejected: list[Rejected],
        marked: list[Marked],
        ts_us: Ints,
        *,
        replayed: bool,
    ) -> None:
        """Judge all rows, take those that break a quarantine rule out of `keep`.

        Of a replayed event the rules only warn that it was accepted under before it was replayed.
        """
        for row, mask in enumerate(rules.check(rows, arrival.tolist())):
            if not mask or not keep[row]:
                continue
            broken, record = rules.ids(mask), records[index[row]]
            if mask & rules.quarantine_mask and not (replayed and judged_before(record)):
                keep[row] = False
                detail = f"breaks {', '.join(broken)}"
                rejected.append(Rejected(record, CONTRACT, detail, broken, int(ts_us[row]), rows[row]))
            else:
                marked.append(Marked(record, broken, rows[row]))


def _unfit(
    view: View, layout: TileLayout, columns: Mapping[str, pa.Array]
) -> Iterator[tuple[str, npt.NDArray[np.bool_], str]]:
    """Reason, events and detail of what the view's tiles cannot take in."""
    large, long = layout.too_large(columns), layout.too_long(columns)
    if large is not None:
        yield TOO_LARGE, large, f"a column that view {view.name!r} sums is 2^78 or more: it would have no exact sum"
    if long is not None:
        yield TOO_LONG, long, f"a text that view {view.name!r} keeps is longer than its max_bytes"
