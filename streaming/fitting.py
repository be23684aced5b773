"""What do events say to a view that was not declared yet, or otherwise, when they were judged?

What the log holds of an event are the columns that were declared at its offset. A column that came later is null
there, for the stream as for everybody who reads the event log. One whose type has changed is cast, value by value: an
event with a value that the cast would change is set aside from the view, or refused; no value becomes null.
"""

import decimal
import logging
from collections.abc import Callable

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.aggregation.tiles import TileLayout
from featurestore.clearance import withhold
from featurestore.errors import SourceError
from featurestore.online.types import as_instants
from featurestore.plan import View
from featurestore.transform import transformed
from streaming.column_types import arrow_type
from streaming.judged import Ints, Judged

_EXACT_INTEGERS = 2**53
"""From here on a double may be the rounded form of another integer."""
_LOG = logging.getLogger(__name__)


class Fitting:
    """Events of other definitions, as one view reads them; those on which its function fails say nothing to it.

    Events with a value that the view's type cannot hold are set aside with a warning, or, with `refuse`, raise
    SourceError.
    """

    def __init__(self, view: View, *, refuse: bool = False) -> None:
        self._refuse = refuse
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
            judged = self._completed(judged, lacking)
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

    def _completed(self, judged: Judged, lacking: list[str]) -> Judged:
        events, kept = judged.events, np.ones(len(judged.ts_us), np.bool_)
        for name in lacking:
            kind, place = self._types[name], events.schema.get_field_index(name)
            if place < 0:
                events = events.append_column(name, pa.nulls(len(events), kind))
                continue
            held = events[name].combine_chunks()
            cast = _cast(held, kind)
            lost = _lost(held, cast).to_numpy(zero_copy_only=False)
            if lost.any():
                self._tell(name, held.type, kind, judged.offsets[lost])
                kept &= ~lost
            events = events.set_column(place, name, cast)
        return msgspec.structs.replace(judged, events=events).only(kept)

    def _tell(self, name: str, held: pa.DataType, kind: pa.DataType, offsets: Ints) -> None:
        why = (
            f"view {self._view.name!r}: column {name!r} is {held} in the event log and {kind} is declared now; values "
            f"of {len(offsets)} events would change, the first at offset {offsets[0]}"
        )
        if self._refuse:
            raise SourceError(f"{why}: declare a type that holds them, or let a new topic start a new history")
        _LOG.warning("%s: these events are set aside from the view", why)


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(kind) and not pa.types.is_timestamp(column.type):
        # By the one table of times: a number of no plausible unit is none.
        return _values(column, kind, lambda value: as_instants(pa.array([value], column.type)).cast(kind)[0].as_py())
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        if pa.types.is_decimal(kind) and pa.types.is_integer(column.type):
            # Arrow asks for digits that any integer of that width fits, not for those of the value.
            return _values(column, kind, lambda value: pa.scalar(decimal.Decimal(str(value)), kind).as_py())
        return _values(column, kind, lambda value: pa.scalar(value, column.type).cast(kind).as_py())


def _values(column: pa.Array, kind: pa.DataType, cast: Callable[[object], object]) -> pa.Array:
    def one(value: object) -> object:
        try:
            return None if value is None else cast(value)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
            return None

    return pa.array([one(value) for value in column.to_pylist()], kind)


def _lost(held: pa.Array, cast: pa.Array) -> pa.Array:
    """Where a value became null or, of numbers and text, another value."""
    found, kind = held.type, cast.type
    lost = pc.and_(held.is_valid(), cast.is_null())
    if pa.types.is_floating(found) and pa.types.is_integer(kind):
        # NaN is how a float column of whole numbers says NULL.
        rounded = pc.greater_equal(pc.abs(held), pa.scalar(_EXACT_INTEGERS, found))
        return pc.fill_null(pc.and_not(pc.or_(lost, rounded), pc.is_nan(held)), fill_value=False)
    if pa.types.is_string(found) or not (_is_plain(found) and _is_plain(kind)):
        return pc.or_(lost, _respelt(held, cast)) if pa.types.is_string(found) and pa.types.is_integer(kind) else lost
    if pa.types.is_floating(found) and pa.types.is_floating(kind):
        return lost  # FLOAT is declared to be cut to 32 bits
    # Any other value has to come back.
    back = _values(cast, found, lambda value: pa.scalar(value, kind).cast(found).as_py())
    return pc.or_(lost, pc.fill_null(pc.not_equal(back, held), fill_value=False))


def _respelt(held: pa.Array, cast: pa.Array) -> pa.Array:
    """Where text is no integer's own form: "05" and "5" must not become one number."""
    return pc.fill_null(pc.not_equal(cast.cast(pa.string()), held), fill_value=False)


def _is_plain(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_string, pa.types.is_boolean)
    return any(test(kind) for test in tests)
