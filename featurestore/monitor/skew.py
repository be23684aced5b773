"""Is what was served what holds offline, and if not, why?

Every sampled value is computed again offline as of the instant that it held at, and compared to the bit; what differs
is put down to one cause. A window that was served as incomplete was told to be so, and is not compared. An on-demand
value is held to its function over the offline inputs; where it differs, its inputs' cause is its own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.errors import UnknownName
from featurestore.monitor import skew_latest, skew_windowed
from featurestore.monitor.causes import Cause
from featurestore.monitor.parity import comparable, differing
from featurestore.monitor.served import (
    REQUESTED,
    Shape,
    event_column,
    given_column,
    instant_column,
    status_column,
    value_column,
)
from featurestore.offline.history import historical_features
from featurestore.online.result import Status
from featurestore.online.types import from_python, to_column, to_python
from featurestore.plan import OnDemandView, Plan, Projection, definition_digests
from featurestore.user_code import run_on_demand

EXAMPLES: Final = 5
"""Differences kept whole of each feature and cause."""
_AT: Final = "event_timestamp"
Causes = npt.NDArray[np.object_]
"""A Cause for each row, None where the value holds."""


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


def audit(shape: Shape, table: pa.Table, plan: Plan, *, repo: Path, hour_us: int) -> list[Skew]:
    """What holds of the sampled answers of one shape and hour, feature by feature.

    `plan` is the one in force now. Raises SourceError and UsageError where a source cannot be read any more.
    """
    rows = _Rows(shape, table, plan, repo)
    service = _service(plan, shape)
    return [
        _skew(rows, projection, feature, hour_us)
        for projection in service
        for feature in projection.features
        if f"{projection.name}:{feature}" in shape.given
    ]


def _service(plan: Plan, shape: Shape) -> Sequence[Projection]:
    """What the service asks for now; a service that is gone is judged by what was read."""
    try:
        return plan.service(shape.service).projections
    except UnknownName:
        return shape.reads


class _Rows:
    """The sampled rows of one shape; each view is read offline once."""

    def __init__(self, shape: Shape, table: pa.Table, plan: Plan, repo: Path) -> None:
        self.shape = shape
        self.table = table
        self.plan = plan
        self._repo = repo
        self._reads = {projection.name: projection for projection in shape.reads}
        now = definition_digests(plan, [each for each in _service(plan, shape) if _exists(plan, each.view)])
        self._changed = {name for name, digest in shape.definitions.items() if now.get(name) != digest}
        self._offline: dict[str, dict[str, pa.Array]] = {}
        self._causes: dict[tuple[str, str], Causes] = {}

    def changed(self, view: str) -> bool:
        """Whether the view is defined otherwise now, or not at all."""
        return view in self._changed or not _exists(self.plan, view)

    def column(self, name: str) -> pa.Array:
        """A column as one array."""
        return self.table[name].combine_chunks()

    def keys(self, projection: Projection) -> list[tuple[object, ...]]:
        """The entity key of each row, in the order of the view's join keys."""
        view = self.plan.view(projection.view)
        columns = [self.table[f"key {_entity(projection, key.name)}"].to_pylist() for key in view.join_keys]
        return list(zip(*columns, strict=True)) if columns else [()] * self.table.num_rows

    def offline(self, name: str) -> dict[str, pa.Array]:
        """The features of one read as of the rows' instants, in the types that the store serves."""
        if name not in self._offline:
            projection = self._reads[name]
            view = self.plan.view(projection.view)
            known = tuple(each for each in projection.features if each in {field.name for field in view.features})
            at = self.column(instant_column(name)).cast(pa.timestamp("us", "UTC"))
            asked = {
                _entity(projection, key.name): self.table[f"key {_entity(projection, key.name)}"]
                for key in view.join_keys
            }
            read = historical_features(
                self.plan,
                [msgspec.structs.replace(projection, features=known)],
                pa.table(asked | {_AT: at}),
                repo=self._repo,
                full_feature_names=True,
            )
            self._offline[name] = {
                each: to_column(read[f"{projection.name}__{each}"], view.feature(each).dtype, name=each)
                for each in known
            }
        return self._offline[name]

    def causes(self, name: str, feature: str) -> Causes:
        """Why each value that the store held of a feature differs; None where it does not."""
        if (name, feature) not in self._causes:
            self._causes[name, feature] = self._found(self._reads[name], feature)
        return self._causes[name, feature]

    def _found(self, projection: Projection, feature: str) -> Causes:
        found: Causes = np.full(self.table.num_rows, None, object)
        if self.changed(projection.view):
            if feature in self.shape_features(projection):
                found[:] = Cause.DEFINITION
            return found
        served = self.column(value_column(projection.name, feature))
        offline = self.offline(projection.name)[feature]
        statuses = self.column(status_column(projection.name, feature)).to_numpy(zero_copy_only=False)
        differ = np.flatnonzero(differing(served, offline) & (statuses != Status.INCOMPLETE))
        if not len(differ):
            return found
        view, keys = self.plan.view(projection.view), self.keys(projection)
        instants = self.column(instant_column(projection.name)).to_pylist()
        events = self.column(event_column(projection.name)).to_pylist()
        values = comparable(served)
        told: list[Cause]
        if view.kind == "windowed":
            cases = [
                skew_windowed.Case(key=keys[row], feature=feature, t_us=instants[row], served=values[row])
                for row in differ.tolist()
            ]
            told = skew_windowed.causes(self.plan, view, cases, repo=self._repo)
        else:
            told = skew_latest.causes(
                view,
                [
                    skew_latest.Case(
                        key=keys[row],
                        feature=feature,
                        t_us=instants[row],
                        event_us=events[row],
                        status=int(statuses[row]),
                        served=values[row],
                    )
                    for row in differ.tolist()
                ],
                repo=self._repo,
            )
        found[differ] = told
        return found

    def shape_features(self, projection: Projection) -> tuple[str, ...]:
        """The features of a read when it was served."""
        return self._reads[projection.name].features


def _skew(rows: _Rows, projection: Projection, feature: str, hour_us: int) -> Skew:
    name = projection.name
    given = rows.column(given_column(name, feature))
    incomplete = np.zeros(len(given), np.bool_)
    if (view := rows.plan.on_demand.get(projection.view)) is not None:
        expected, found = _computed(rows, view, feature, given, changed=rows.changed(projection.view))
    elif rows.changed(projection.view):
        expected, found = given, rows.causes(name, feature).copy()
    else:
        held = rows.column(value_column(name, feature))
        incomplete = rows.column(status_column(name, feature)).to_numpy(zero_copy_only=False) == Status.INCOMPLETE
        expected = rows.offline(name)[feature]
        found = rows.causes(name, feature).copy()
        replaced = differing(given, held) & ~incomplete
        # What the policy put there may be the very value that holds.
        found[replaced] = None
        found[replaced & differing(given, expected)] = Cause.DEFAULT
    counted: dict[Cause, int] = {}
    examples: dict[Cause, list[Example]] = {}
    for row in np.flatnonzero(found != None).tolist():  # noqa: E711 - element by element
        cause = found[row]
        counted[cause] = counted.get(cause, 0) + 1
        if len(kept := examples.setdefault(cause, [])) < EXAMPLES:
            kept.append(_example(rows, projection, row, given, expected))
    return Skew(
        service=rows.shape.service,
        view=name,
        feature=feature,
        hour_us=hour_us,
        compared=len(given) - int(incomplete.sum()),
        incomplete=int(incomplete.sum()),
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
        values = to_python(rows.offline(each.name)[name], dtype)
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
    return Example(
        key={name: rows.table[f"key {name}"][row].as_py() for name in names},
        instant_us=rows.table[at][row].as_py() if at in rows.table.column_names else requested_us,
        requested_us=requested_us,
        plan_version=rows.shape.plan_version,
        served=given[row].as_py(),
        offline=expected[row].as_py(),
    )


def _entity(projection: Projection, key: str) -> str:
    return projection.join_key_map.get(key, key)


def _exists(plan: Plan, view: str) -> bool:
    return view in plan.views or view in plan.on_demand
