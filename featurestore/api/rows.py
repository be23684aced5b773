"""Which rows does a write bring to a view? Columns of JSON as an Arrow table, typed and named as the view declares.

All or nothing: a row without a key or event time, dated ahead of the clock or of the wrong type refuses the request,
and the message says which.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from featurestore.api.limits import Limits
from featurestore.api.request import from_json, typed_keys
from featurestore.coercion import coerce
from featurestore.errors import UsageError
from featurestore.online.materialize import timestamp_names
from featurestore.online.types import from_python
from featurestore.online.writer import AHEAD_TOLERANCE_US
from featurestore.plan import View

_WHEN = pa.timestamp("us", tz="UTC")
_TOLD = 10


def columns_of(df: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The columns of a data frame as JSON: name -> list, or name -> {index: value} as pandas writes by default.

    >>> columns_of({"a": {"0": 1, "1": 2}, "b": {"1": 4, "0": 3}})
    {'a': [1, 2], 'b': [3, 4]}
    """
    columns: dict[str, list[Any]] = {}
    indexed = [values for values in df.values() if isinstance(values, dict)]
    index = list(indexed[0]) if indexed else []
    for name, values in df.items():
        if isinstance(values, list):
            columns[name] = values
        elif isinstance(values, dict) and values.keys() == set(index):
            columns[name] = [values[place] for place in index]
        else:
            raise UsageError(f"df: column {name!r} is neither a list of values nor indexed as the first column is")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {count}" for name, count in sorted(lengths.items())[:_TOLD])
        raise UsageError(f"df: its columns differ in length: {told}")
    if not any(lengths.values()):
        raise UsageError("df holds no rows; give each column at least one value")
    return columns


def rows_for(view: View, columns: Mapping[str, list[Any]], now_us: int, limits: Limits) -> pa.Table:
    """The rows for one view: its join keys, features, event time and, where its source has one, created time.

    Columns may be named as in the source or as in the view; `event_timestamp` and `created` stand for the view's own
    timestamps, as Feast's remote client calls them. Where no created time is given it is `now_us`. Columns that the
    view has not are left out. Raises UsageError.
    """
    mapping = view.source.field_mapping
    named = {mapping.get(name, name): values for name, values in columns.items()}
    event, created = timestamp_names(view.source)
    needed = [*(key.name for key in view.join_keys), *(field.name for field in view.features)]
    if missing := [name for name in needed if name not in named]:
        raise UsageError(
            f"view {view.name!r}: df lacks the columns {', '.join(missing)}; a write replaces whole rows, so it needs "
            f"{', '.join([*needed, event])}; found: {', '.join(list(columns)[:50])}"
        )
    arrays: dict[str, pa.Array] = {}
    for key in view.join_keys:
        values = typed_keys(key.name, named[key.name], key.dtype, limits)
        _refuse(f"view {view.name!r}: join key {key.name!r} is null", (value is None for value in values))
        arrays[key.name] = _array(values, key.dtype, key.name, view)
    for field in view.features:
        values = [from_json(value, field.dtype, view.source.time_unit) for value in named[field.name]]
        arrays[field.name] = _array(values, field.dtype, field.name, view)
    arrays[event] = _instants(view, event, _first(named, event, "event_timestamp", view))
    _refuse(f"view {view.name!r}: the event time is null", (value is None for value in arrays[event].to_pylist()))
    limit_us = now_us + AHEAD_TOLERANCE_US
    _refuse(
        f"view {view.name!r}: the event time is more than {AHEAD_TOLERANCE_US // 1_000_000} s ahead of the clock",
        (instant > limit_us for instant in arrays[event].cast(pa.int64()).to_pylist()),
    )
    if created is not None:
        given = named.get(created, named.get("created", []))
        # Feast's remote client sends a column of nulls where there is no created time.
        known = _instants(view, created, given if any(value is not None for value in given) else [])
        arrays[created] = known if len(known) else pa.array([now_us] * len(arrays[event]), _WHEN)
    return pa.table(arrays)


def _first(named: Mapping[str, list[Any]], name: str, otherwise: str, view: View) -> list[Any]:
    for each in (name, otherwise):
        if each in named:
            return named[each]
    raise UsageError(f"view {view.name!r}: df lacks the event time, {name!r}; found: {', '.join(list(named)[:50])}")


def _array(values: list[Any], dtype: str, name: str, view: View) -> pa.Array:
    try:
        return from_python(coerce(values, dtype), dtype, name=name)
    except (UsageError, pa.ArrowException, OverflowError) as error:
        raise UsageError(f"view {view.name!r}, column {name!r}: {error}") from error


def _instants(view: View, name: str, values: list[Any]) -> pa.Array:
    """The rows' own times, which keep their microseconds."""
    held = [from_json(value, "UNIX_TIMESTAMP", view.source.time_unit) for value in values]
    try:
        return pa.array(coerce(held, "UNIX_TIMESTAMP"), _WHEN)
    except (UsageError, pa.ArrowException, OverflowError) as error:
        raise UsageError(f"view {view.name!r}, column {name!r}: {error}") from error


def _refuse(what: str, wrong: Iterable[bool]) -> None:
    rows = [number for number, is_wrong in enumerate(wrong) if is_wrong]
    if rows:
        told = ", ".join(map(str, rows[:_TOLD])) + (", …" if len(rows) > _TOLD else "")
        raise UsageError(f"{what} in row {told} (counted from 0); nothing was written")
