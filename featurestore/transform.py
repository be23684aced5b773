"""What does a stream view's function make of its events, each by itself, the same in the stream and offline?

The event log keeps events as they came; whoever reads it for a view that has a function applies it first. A batch goes
through the function as a whole; where that fails it is halved until the rows that fail are known.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
import pyarrow as pa

from featurestore.errors import UsageError
from featurestore.online.types import arrow_type
from featurestore.plan import OnDemandView, Transform
from featurestore.user_code import run_on_demand


class Transformed(msgspec.Struct, frozen=True):
    """The function's columns, one row for each event (nulls where it failed), and why it failed on which rows."""

    columns: pa.Table
    failed: dict[int, str]


def transformed(view: str, transform: Transform, events: Mapping[str, Any] | pa.Table) -> Transformed:
    """The outputs of a view's function; `events` holds its inputs as Arrow columns, under the view's names.

    >>> from featurestore.plan import Field, Function
    >>> half = Function(name="half", source="def half(c): return {'h': [100 // f for f in c['fare']]}")
    >>> fields = (Field(name="fare", dtype="INT64"),), (Field(name="h", dtype="INT64"),)
    >>> transform = Transform(function=half, mode="python", inputs=fields[0], outputs=fields[1])
    >>> made = transformed("taps", transform, pa.table({"fare": [50, 0, 20]}))
    >>> made.columns["h"].to_pylist(), list(made.failed)
    ([2, None, 5], [1])
    """
    asked = on_demand_of(view, transform)
    columns = {field.name: _values(events[field.name], field.dtype) for field in transform.inputs}
    rows = len(events) if isinstance(events, pa.Table) else len(next(iter(columns.values()), ()))
    made: dict[str, list[Any]] = {field.name: [] for field in transform.outputs}
    failed: dict[int, str] = {}
    parts = [(0, rows)] if rows else []
    while parts:
        start, stop = parts.pop()
        try:
            found = run_on_demand(asked, {n: v[start:stop] for n, v in columns.items()}, stop - start, typed=True)
        except UsageError as error:
            if stop - start > 1:
                middle = (start + stop) // 2
                parts += [(middle, stop), (start, middle)]  # the last one comes first
                continue
            failed[start] = str(error)
            found = {name: [None] for name in made}
        for name, values in found.items():
            made[name] += values
    types = {field.name: arrow_type(field.dtype) for field in transform.outputs}
    return Transformed(pa.table({name: pa.array(values, types[name]) for name, values in made.items()}), failed)


def on_demand_of(view: str, transform: Transform) -> OnDemandView:
    """The transformation as what user code runs: a function of columns that the caller supplies."""
    return OnDemandView(
        name=view,
        features=transform.outputs,
        request=transform.inputs,
        inputs=(),
        mode=transform.mode,
        singleton=False,
        function=transform.function,
    )


def _values(column: Any, dtype: str) -> list[Any]:
    # One zone object on every path: a function may print what it is given.
    found: list[Any] = (column.cast(pa.timestamp("us", "UTC")) if dtype == "UNIX_TIMESTAMP" else column).to_pylist()
    return found
