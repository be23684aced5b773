"""What do events say to a view that was not declared yet, or otherwise, when they were judged?

What the log holds of an event are the columns that were declared at its offset. A column that came later is null
there, for the stream as for everybody who reads the event log; one whose type has changed is cast where nothing is
lost, else null.
"""

import msgspec
import numpy as np
import pyarrow as pa

from featurestore.aggregation.tiles import TileLayout
from featurestore.clearance import withhold
from featurestore.plan import View
from featurestore.transform import transformed
from streaming.column_types import arrow_type
from streaming.judged import Judged


class Fitting:
    """Events of other definitions, as one view reads them; those on which its function fails say nothing to it."""

    def __init__(self, view: View) -> None:
        raw = {new: old for old, new in view.source.field_mapping.items()}
        fields = {each.name: each.dtype for each in (view.columns or view.features)}
        fields |= {key.name: key.dtype for key in view.join_keys}
        self._types = {raw.get(name, name): arrow_type(dtype) for name, dtype in fields.items()}
        self._as_is: set[str] = set()
        """Columns that are read whatever their type: an event id may be text or number."""
        topic = view.source.topic
        event_id = topic.event_id if topic is not None and topic.event_id_horizon_us is not None else None
        if event_id is not None and event_id not in self._types:
            self._types[event_id], self._as_is = pa.string(), {event_id}
        self._producer = {column.name: raw.get(column.name, column.name) for column in view.columns}
        self._layout = TileLayout.of(view) if view.kind == "windowed" else None
        self._view = view
        self._withheld = {name: how for name, how in view.withheld.items() if name in self._types}
        self._bounded = any("max_bytes" in item.params for item in view.aggregations)
        """Whether there is text that may not fit what is kept of it."""
        made = {field.name for field in view.transform.outputs} if view.transform is not None else set()
        self._summed = frozenset(self._producer[item.column] for item in view.aggregations if item.column not in made)

    def fit(self, judged: Judged) -> Judged:
        """The same events with the columns of the view, without those that its tiles could not hold."""
        schema = judged.events.schema
        lacking = [
            name
            for name, kind in self._types.items()
            if schema.get_field_index(name) < 0 or (name not in self._as_is and schema.field(name).type != kind)
        ]
        if lacking:
            judged = msgspec.structs.replace(judged, events=self._completed(judged.events, lacking))
        if self._withheld:
            judged = msgspec.structs.replace(judged, events=withhold(judged.events, self._withheld))
        transform = self._view.transform
        if transform is not None and transform not in judged.made:
            given = {field.name: judged.events[self._producer[field.name]] for field in transform.inputs}
            result = transformed(self._view.name, transform, given)
            worked = np.ones(len(judged.ts_us), np.bool_)
            worked[list(result.failed)] = False
            judged = msgspec.structs.replace(judged, made={**judged.made, transform: result.columns}).only(worked)
        known = transform is None and self._summed <= judged.summed
        if self._layout is None or (known and not self._bounded):
            return judged
        columns = {name: judged.events[raw].combine_chunks() for name, raw in self._producer.items()}
        made = judged.of(self._view)
        if made is not None:
            columns |= {name: made[name].combine_chunks() for name in made.column_names}
        found = [mask for mask in (self._layout.too_large(columns), self._layout.too_long(columns)) if mask is not None]
        return judged.only(~np.logical_or.reduce(found)) if found else judged

    def _completed(self, events: pa.Table, lacking: list[str]) -> pa.Table:
        for name in lacking:
            kind, place = self._types[name], events.schema.get_field_index(name)
            if place < 0:
                events = events.append_column(name, pa.nulls(len(events), kind))
            else:
                events = events.set_column(place, name, _cast(events[name], kind))
        return events


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.chunked_array([pa.array([_value(value, column.type, kind) for value in column.to_pylist()], kind)])


def _value(value: object, held: pa.DataType, kind: pa.DataType) -> object:
    try:
        return pa.scalar(value, held).cast(kind).as_py()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
