"""Audit of served answers against offline values.

Every sampled value is computed again offline as of the instant that it held at, and compared to the bit; what differs
is put down to one cause. A window that was served as incomplete was told to be so, and is not compared. An on-demand
value is held to its function over the offline inputs; where it differs, its inputs' cause is its own.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.errors import UnknownName
from featurestore.monitor.causes import Cause
from featurestore.monitor.parity import differing
from featurestore.monitor.served import (
    REQUESTED,
    Shape,
    event_column,
    given_column,
    instant_column,
    status_column,
    value_column,
)
from featurestore.monitor.skew_reads import Ask, Causes, Say, answer
from featurestore.online.result import Status
from featurestore.online.types import from_python, to_python
from featurestore.personal import any_personal, holds_personal, masked
from featurestore.plan import OnDemandView, Plan, Projection, definition_digests
from featurestore.user_code import run_on_demand
from validation.errors import PlatformError

EXAMPLES: Final = 5
"""Differences kept whole of each feature and cause."""


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One served value that does not hold offline."""

    key: dict[str, Any]
    """By entity column."""
    instant_us: int
    requested_us: int
    plan_version: int
    served: Any
    offline: Any


class Skew(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit found of one feature, as one service served it in one hour."""

    service: str
    view: str
    feature: str
    hour_us: int
    """The hour's start."""
    compared: int
    incomplete: int
    """Values that were served as INCOMPLETE, and not compared."""
    differing: dict[Cause, int]
    examples: dict[Cause, tuple[Example, ...]] = {}


class Part(NamedTuple):
    """Sampled answers of one shape and hour."""

    shape: Shape
    hour_us: int
    table: pa.Table


class Audit(NamedTuple):
    """What holds of sampled answers, feature by feature and hour by hour, and which views could not be audited."""

    skews: list[Skew]
    failed: dict[str, PlatformError]
    """By view, why it could not be read: nothing is said of its values, nor of those computed from them."""


def audit(parts: Iterable[Part], plan: Plan, *, repo: Path, say: Say = lambda line: None) -> Audit:  # noqa: ARG005
    """Hold sampled answers to what an offline read of their instants gives.

    All parts are read together: a source is read once, not once a part. `plan` is the one in force now. `say` hears
    how far it is.
    """
    by_shape: dict[str, list[Part]] = {}
    for part in parts:
        by_shape.setdefault(part.shape.name, []).append(part)
    rows = [_Rows(of_shape, plan) for of_shape in by_shape.values()]
    answer((ask for each in rows for ask in each.asks.values()), plan, repo=repo, say=say)
    failed = {ask.view: ask.error for each in rows for ask in each.asks.values() if ask.error is not None}
    return Audit([skew for each in rows for skew in each.skews()], failed)


def _service(plan: Plan, shape: Shape) -> Sequence[Projection]:
    """What the service asks for now; a service that is gone is judged by what was read."""
    try:
        return plan.service(shape.service).projections
    except UnknownName:
        return shape.reads


class _Rows:
    """The sampled rows of one shape, hours one after the other."""

    def __init__(self, parts: Sequence[Part], plan: Plan) -> None:
        self.shape = parts[0].shape
        self.table = pa.concat_tables([part.table for part in parts]).combine_chunks()
        self.plan = plan
        self._hours = [(part.hour_us, part.table.num_rows) for part in parts]
        self._service = _service(plan, self.shape)
        now = definition_digests(plan, [each for each in self._service if _exists(plan, each.view)])
        self._changed = {name for name, digest in self.shape.definitions.items() if now.get(name) != digest}
        self.asks = {each.name: self._ask(each) for each in self.shape.reads if not self.changed(each.view)}

    def _ask(self, projection: Projection) -> Ask:
        name, view = projection.name, self.plan.view(projection.view)
        keys = {key.name: self.column(f"key {_entity(projection, key.name)}") for key in view.join_keys}
        return Ask(
            projection.view,
            keys,
            self.column(instant_column(name)),
            self.column(event_column(name)),
            {each: self.column(value_column(name, each)) for each in projection.features},
            {each: self.column(status_column(name, each)).to_numpy() for each in projection.features},
        )

    def changed(self, view: str) -> bool:
        """Whether the view is defined otherwise now, or not at all."""
        return view in self._changed or not _exists(self.plan, view)

    def failed(self, view: str) -> bool:
        """Whether the view, or one that it is computed from, could not be read."""
        computed = self.plan.on_demand.get(view)
        names = {each.view for each in computed.inputs} if computed else {view}
        return any(ask.error is not None and ask.view in names for ask in self.asks.values())

    def column(self, name: str) -> pa.Array:
        """A column as one array."""
        return self.table[name].combine_chunks()

    def causes(self, name: str, feature: str) -> Causes:
        """Why each value that the store held of a feature differs; None where it does not."""
        if name in self.asks:
            return self.asks[name].causes[feature]
        read = next(each for each in self.shape.reads if each.name == name)
        found: Causes = np.full(self.table.num_rows, None, object)
        if feature in read.features:
            found[:] = Cause.DEFINITION
        return found

    def skews(self) -> Iterator[Skew]:
        """Of each feature that went out, hour by hour."""
        for projection in self._service:
            for feature in projection.features:
                if f"{projection.name}:{feature}" in self.shape.given and not self.failed(projection.view):
                    yield from self._skews(projection, feature)

    def _skews(self, projection: Projection, feature: str) -> Iterator[Skew]:
        given, expected, found, incomplete = _judged(self, projection, feature)
        start = 0
        for hour_us, rows in self._hours:
            hour = slice(start, start + rows)
            yield _skew(self, projection, feature, hour_us, hour, given, expected, found, int(incomplete[hour].sum()))
            start += rows


def _judged(
    rows: _Rows, projection: Projection, feature: str
) -> tuple[pa.Array, pa.Array, Causes, npt.NDArray[np.bool_]]:
    """What went out, what holds, the cause of each difference, and what was served as incomplete."""
    name = projection.name
    given = rows.column(given_column(name, feature))
    incomplete = np.zeros(len(given), np.bool_)
    if (view := rows.plan.on_demand.get(projection.view)) is not None:
        expected, found = _computed(rows, view, feature, given, changed=rows.changed(projection.view))
    elif rows.changed(projection.view):
        expected, found = given, rows.causes(name, feature)
    else:
        held = rows.column(value_column(name, feature))
        incomplete = rows.column(status_column(name, feature)).to_numpy() == Status.INCOMPLETE
        expected = rows.asks[name].offline[feature]
        found = rows.causes(name, feature).copy()
        replaced = differing(given, held) & ~incomplete
        # What the policy put there may be the very value that holds.
        found[replaced] = None
        found[replaced & differing(given, expected)] = Cause.DEFAULT
    return given, expected, found, incomplete


def _skew(
    rows: _Rows,
    projection: Projection,
    feature: str,
    hour_us: int,
    hour: slice,
    given: pa.Array,
    expected: pa.Array,
    found: Causes,
    incomplete: int,
) -> Skew:
    counted: dict[Cause, int] = {}
    examples: dict[Cause, list[Example]] = {}
    for row in (hour.start + np.flatnonzero(found[hour] != None)).tolist():  # noqa: E711 - element by element
        cause = found[row]
        counted[cause] = counted.get(cause, 0) + 1
        if len(kept := examples.setdefault(cause, [])) < EXAMPLES:
            kept.append(_example(rows, projection, row, given, expected))
    return Skew(
        service=rows.shape.service,
        view=projection.name,
        feature=feature,
        hour_us=hour_us,
        compared=hour.stop - hour.start - incomplete,
        incomplete=incomplete,
        differing=counted,
        examples={cause: tuple(kept) for cause, kept in examples.items()},
    )


def _computed(
    rows: _Rows, view: OnDemandView, feature: str, given: pa.Array, *, changed: bool
) -> tuple[pa.Array, Causes]:
    """What an on-demand feature should have been, and the cause where it was not."""
    found: Causes = np.full(len(given), None, object)
    inputs = [(each, name) for each in view.inputs for name in each.features]
    if changed or any(rows.changed(each.view) for each, _ in inputs):
        found[:] = Cause.DEFINITION
        return given, found
    columns: dict[str, list[object]] = {
        field.name: to_python(rows.column(f"request {field.name}"), field.dtype) for field in view.request
    }
    for each, name in inputs:
        dtype = rows.plan.view(each.view).feature(name).dtype
        values = to_python(rows.asks[each.name].offline[name], dtype)
        columns[name] = columns[f"{each.view}__{name}"] = values
    dtype = next(field.dtype for field in view.features if field.name == feature)
    expected = from_python(run_on_demand(view, columns, len(given))[feature], dtype, name=feature)
    for row in np.flatnonzero(differing(given, expected)).tolist():
        causes = (rows.causes(each.name, name)[row] for each, name in inputs)
        found[row] = next((cause for cause in causes if cause is not None), Cause.UNKNOWN)
    return expected, found


def _example(rows: _Rows, projection: Projection, row: int, given: pa.Array, expected: pa.Array) -> Example:
    names: Mapping[str, str] = rows.shape.keys
    requested_us = rows.table[REQUESTED][row].as_py()
    at = instant_column(projection.name)
    key = {name: rows.table[f"key {name}"][row].as_py() for name in names}
    served, offline = given[row].as_py(), expected[row].as_py()
    # An example goes into files, alerts and messages: of personal data it says where, never what.
    if holds_personal(rows.plan, projection.view):
        served, offline = masked({"served": served, "offline": offline}).values()
    if any_personal(rows.plan, [*rows.shape.reads, projection]):
        key = masked(key)
    return Example(
        key=key,
        instant_us=rows.table[at][row].as_py() if at in rows.table.column_names else requested_us,
        requested_us=requested_us,
        plan_version=rows.shape.plan_version,
        served=served,
        offline=offline,
    )


def _entity(projection: Projection, key: str) -> str:
    return projection.join_key_map.get(key, key)


def _exists(plan: Plan, view: str) -> bool:
    return view in plan.views or view in plan.on_demand
