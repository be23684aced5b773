"""How does a user's function run where Feast is not installed?

It travels as source text (`function_source`), and `function_proof` shows at apply that it can. User code is trusted (it
comes from the repo's owners); what it returns is not: names, lengths and types are checked each time.
"""

import builtins
import functools
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from featurestore.coercion import coerce
from featurestore.errors import DefinitionError, UsageError
from featurestore.plan import Function, OnDemandView, View

_EXACT_IN_DOUBLE = 1 << 53


@functools.lru_cache(maxsize=512)
def load_function(function: Function) -> Callable[..., Any]:
    """The callable that a source text defines, made in a namespace that holds nothing else.

    Raises DefinitionError where the text cannot be executed or defines no such name.

    >>> load_function(Function(name="double", source="def double(x):\\n    return 2 * x"))(4)
    8
    """
    namespace: dict[str, Any] = {"__name__": f"user_code.{function.name}", "__builtins__": builtins}
    try:
        exec(compile(function.source, f"<{function.name}>", "exec"), namespace)  # noqa: S102 - this is the purpose
    except Exception as error:  # user code may raise anything
        raise DefinitionError(f"function {function.name!r} cannot be loaded: {_told(error)}") from error
    made = namespace.get(function.name)
    if not callable(made):
        raise DefinitionError(f"the source of function {function.name!r} does not define {function.name!r}")
    return made  # type: ignore[no-any-return]  # a namespace holds Any


def run_on_demand(
    view: OnDemandView, columns: Mapping[str, Sequence[Any]], n: int | None = None, *, typed: bool = False
) -> dict[str, list[Any]]:
    """The features of an on-demand view for `n` rows, each a list of Python values of its declared type.

    `columns` holds the request columns and the input features, each under its own name and as `view__feature`, with
    None for null; they are left untouched. Without `n` the first column says how many rows there are. A pandas
    function sees None as pandas shows it, and NaN from it is null; elsewhere NaN stays NaN. With `typed` a pandas
    column's type follows from its declared type and not from the values beside it. Raises UsageError that names the
    view where the function fails or returns other names, lengths or types than declared.
    """
    rows = len(next(iter(columns.values()), ())) if n is None else n
    types_of = {field.name: field.dtype for field in view.request} if typed else {}
    function = load_function(view.function)
    try:
        if view.mode == "pandas":
            returned = _call_pandas(function, columns, types_of)
        elif view.singleton:
            returned = _call_rows(function, columns, rows)
        else:
            returned = function({name: list(values) for name, values in columns.items()})
    except Exception as error:  # user code may raise anything
        raise UsageError(f"on-demand view {view.name!r} failed: {_told(error)}") from error
    return _checked(view, returned, rows)


def input_types(view: OnDemandView, views: Mapping[str, View]) -> dict[str, str]:
    """The columns that an on-demand view's function is given, with their Feast types.

    Every input feature comes twice, as Feast has it: `feature` and `view__feature`.
    """
    types_of = {field.name: field.dtype for field in view.request}
    for projection in view.inputs:
        for feature in projection.features:
            dtype = views[projection.view].feature(feature).dtype
            types_of[feature] = types_of[f"{projection.view}__{feature}"] = dtype
    return types_of


def _call_pandas(
    function: Callable[..., Any], columns: Mapping[str, Sequence[Any]], types_of: Mapping[str, str]
) -> dict[str, list[Any]]:
    # Only a repo that uses pandas mode pays for it: 0.3 s and 40 MB.
    import pandas as pd

    frame = pd.DataFrame({name: _series(pd, values, types_of.get(name)) for name, values in columns.items()})
    returned = function(frame)
    if not isinstance(returned, pd.DataFrame):
        raise TypeError(f"expected a DataFrame, the function returned {type(returned).__name__}")
    return {
        str(name): [None if _is_missing(pd, value) else value for value in returned[name].tolist()]
        for name in returned.columns
    }


_PANDAS = {
    "INT32": "Int64",
    "INT64": "Int64",
    "FLOAT": "float64",
    "DOUBLE": "float64",
    "BOOL": "boolean",
    "UNIX_TIMESTAMP": "datetime64[us, UTC]",
}


def _series(pd: Any, values: Sequence[Any], dtype: str | None) -> Any:
    if dtype is not None:
        return pd.Series(values, dtype=_PANDAS.get(dtype, "object"))
    found = set(map(type, values))
    if found == {int, type(None)} and max(abs(v) for v in values if v is not None) > _EXACT_IN_DOUBLE:
        # pandas would make floats of them and lose digits; smaller ones keep the float that user code expects.
        return pd.array(values, dtype="Int64")
    return pd.Series(values, dtype=None if found - {type(None)} else object)


def _is_missing(pd: Any, value: object) -> bool:
    return value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _call_rows(function: Callable[..., Any], columns: Mapping[str, Sequence[Any]], rows: int) -> dict[str, list[Any]]:
    made: dict[str, list[Any]] = {}
    for row in range(rows):
        returned = function({name: values[row] for name, values in columns.items()})
        if not isinstance(returned, dict):
            raise TypeError(f"expected a dict of values, the function returned {type(returned).__name__}")
        for name, value in returned.items():
            made.setdefault(name, []).append(value)
    return made


def _checked(view: OnDemandView, returned: object, rows: int) -> dict[str, list[Any]]:
    if not isinstance(returned, Mapping):
        raise UsageError(
            f"on-demand view {view.name!r}: expected a dict of lists, the function returned {type(returned).__name__}"
        )
    checked: dict[str, list[Any]] = {}
    for field in view.features:
        if rows == 0:
            checked[field.name] = []
            continue
        if field.name not in returned:
            raise UsageError(
                f"on-demand view {view.name!r}: the function returned no {field.name!r}; "
                f"it returned {', '.join(sorted(map(str, returned))) or 'nothing'}"
            )
        checked[field.name] = _column(view.name, field.name, field.dtype, returned[field.name], rows)
    return checked


def _column(view: str, name: str, dtype: str, values: object, rows: int) -> list[Any]:
    to_list = getattr(values, "tolist", None)
    values = to_list() if callable(to_list) else values
    if not isinstance(values, (list, tuple)):
        raise UsageError(f"on-demand view {view!r}, feature {name!r}: expected a list, found {type(values).__name__}")
    if len(values) != rows:
        raise UsageError(f"on-demand view {view!r}, feature {name!r}: {len(values)} values for {rows} rows")
    try:
        return coerce(values, dtype)
    except UsageError as error:
        raise UsageError(f"on-demand view {view!r}, feature {name!r}: {error}") from error


def _told(error: BaseException) -> str:
    """What went wrong, and on which line of the user's text; never a value from a row."""
    line = next((frame.tb_lineno for frame in _frames(error) if frame.tb_frame.f_code.co_filename[:1] == "<"), None)
    # The message of a KeyError or ValueError may quote the row's values; names and imports it may not.
    shown = f": {error}" if isinstance(error, (NameError, ImportError, SyntaxError, AttributeError)) else ""
    return f"{type(error).__name__}{shown}" + (f" (line {line} of its source)" if line else "")


def _frames(error: BaseException) -> Iterator[types.TracebackType]:
    frame = error.__traceback__
    while frame is not None:
        yield frame
        frame = frame.tb_next
