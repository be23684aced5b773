"""How does a user's function run where Feast is not installed?

A function travels as source text. `extract_source` takes it from a feature repo, `prove` shows at apply that it needs
nothing else and looks at one row at a time, `run_on_demand` executes it in the API and offline. User code is trusted
(it comes from the repo's owners); what it returns is not: names, lengths and types are checked each time.
"""

import ast
import builtins
import dis
import functools
import inspect
import math
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import msgspec

from featurestore.coercion import coerce
from featurestore.errors import DefinitionError, UsageError
from featurestore.plan import Function, OnDemandView, View

PROOF_TIMEOUT_S = 60.0
_EXACT_IN_DOUBLE = 1 << 53
_ROWS = 8
_SPLITS = ((1,) * _ROWS, (3, 5), (5, 3))
_MANY_ROWS = 67
_MANY_SPLITS = ((1,) * _MANY_ROWS, (33, 34), (5, 62), (16, 3, 48))
_MODULES = frozenset({"numpy", "pandas"}) | sys.stdlib_module_names
"""Whose names a function may take from its module: what every process of this product has installed."""


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


def extract_source(function: Callable[..., Any]) -> Function:
    """A function of a feature repo as source text that stands alone: dedented, without decorators.

    Modules of the standard library, numpy and pandas that it takes from its module, or names from them, become import
    lines at the top. Annotations are not evaluated. Any other name from outside (a constant, a helper, an enclosing
    function's variable) is refused with DefinitionError, by name.
    """
    where = f"function {getattr(function, '__name__', function)!r}"
    if not isinstance(function, types.FunctionType):
        raise DefinitionError(f"{where}: expected a Python function, found {type(function).__name__}")
    try:
        text = textwrap.dedent("".join(inspect.getsourcelines(function.__code__)[0]))
        node = ast.parse(text).body[0]
    except (OSError, SyntaxError, IndexError) as error:
        raise DefinitionError(
            f"{where}: its source cannot be read ({error}); define it with `def` in a file"
        ) from error
    if not isinstance(node, ast.FunctionDef):
        raise DefinitionError(f"{where}: define it with `def` (no lambda, no async)")
    if function.__code__.co_freevars:
        raise DefinitionError(
            f"{where} uses {', '.join(function.__code__.co_freevars)} of the function around it; pass it as a literal"
        )
    names = {n for n in _global_names(function.__code__) if n != node.name} | _default_names(node)
    imports = [
        _import_line(where, name, function.__globals__[name])
        for name in sorted(names)
        if name in function.__globals__ and name != "__builtins__"
    ]
    unknown = sorted(name for name in names if name not in function.__globals__ and not hasattr(builtins, name))
    if unknown:
        raise DefinitionError(f"{where} uses {', '.join(unknown)}, which nothing defines")
    body = text.splitlines()[node.lineno - 1 : node.end_lineno]
    # Annotations may name types of Feast or of typing: they are kept as text.
    lines = ["from __future__ import annotations", *imports, "", *body]
    return Function(name=node.name, source="\n".join(lines) + "\n")


def _global_names(code: types.CodeType) -> set[str]:
    names = {
        str(step.argval)
        for step in dis.get_instructions(code)
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL")
    }
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _default_names(node: ast.FunctionDef) -> set[str]:
    defaults = [*node.args.defaults, *(default for default in node.args.kw_defaults if default)]
    return {name.id for default in defaults for name in ast.walk(default) if isinstance(name, ast.Name)}


def _import_line(where: str, name: str, value: object) -> str:
    if isinstance(value, types.ModuleType):
        if value.__name__.partition(".")[0] in _MODULES:
            return f"import {value.__name__} as {name}"
    else:
        module, inner = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
        if (
            isinstance(module, str)
            and module.partition(".")[0] in _MODULES - {"__main__"}
            and getattr(sys.modules.get(module), inner, None) is value
        ):
            return f"from {module} import {inner} as {name}"
    raise DefinitionError(
        f"{where} uses {name!r} ({type(value).__name__}) of its module; where it runs there is no such name: "
        "move it into the function (modules of the standard library, numpy and pandas may be imported outside)"
    )


def prove(view: OnDemandView, views: Mapping[str, View], *, exact: bool = False) -> tuple[str, ...]:
    """Shows that a view's function stands alone and looks at one row at a time; else raises DefinitionError, with why.

    It runs in a clean process (no path of the caller's, Feast blocked) on a generated batch: twice as a whole and in
    several splits, which must agree (floats to nine digits: vector units round differently by length; to the last bit
    where `exact`). `views` are the Plan's, for the inputs' types. Returned are remarks that need not stop anybody, such
    as failing on nulls.
    """
    question = msgspec.json.encode((view, input_types(view, views), exact))
    where = f"{'stream' if exact else 'on-demand'} view {view.name!r}, function {view.function.name!r}"
    command = [sys.executable, "-I", "-c", _CHILD]
    try:
        ended = subprocess.run(command, input=question, capture_output=True, timeout=PROOF_TIMEOUT_S, check=False)  # noqa: S603 - our own interpreter
    except subprocess.TimeoutExpired:
        raise DefinitionError(f"{where} did not finish its generated rows in {PROOF_TIMEOUT_S:g} s") from None
    if ended.returncode != 0 or not ended.stdout:
        last = (ended.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise DefinitionError(f"{where} ended its process (exit code {ended.returncode}): {last}")
    reason, remarks = msgspec.json.decode(ended.stdout, type=tuple[str | None, tuple[str, ...]])
    if reason is not None:
        raise DefinitionError(f"{where} {reason}")
    return tuple(f"{where} {remark}" for remark in remarks)


_CHILD = """
import os, sys
sys.modules["feast"] = None
answer = os.dup(1)
os.dup2(2, 1)  # what the function prints is not the answer
import featurestore.user_code as user_code
os.write(answer, user_code.proof_here(sys.stdin.buffer.read()))
"""


def proof_here(question: bytes) -> bytes:
    """What `prove` asks of the clean process: (reason or null, remarks) as JSON."""
    view, types_of, exact = msgspec.json.decode(question, type=tuple[OnDemandView, dict[str, str], bool])
    trial = _Trial(view, exact=exact)
    try:
        load_function(view.function)
        rows = trial.usable_rows(types_of)
        trial.agree(rows)
    except UsageError as error:
        return msgspec.json.encode((_reason(error), ()))
    try:
        gaps = [
            {name: None if (i + j) % 3 else value for j, (name, value) in enumerate(row.items())}
            for i, row in enumerate(rows)
        ]
        trial.agree([*gaps[:-1], dict.fromkeys(types_of)])
    except UsageError as error:
        return msgspec.json.encode((None, (f"is not ready for missing values: {_reason(error)}",)))
    return msgspec.json.encode((None, ()))


class _Trial:
    """A function on generated rows; `exact`: more of them, less regular ones, and not a bit may differ."""

    def __init__(self, view: OnDemandView, *, exact: bool) -> None:
        self._view = view
        self._exact = exact
        self._count = _MANY_ROWS if exact else _ROWS
        self._splits = _MANY_SPLITS if exact else _SPLITS

    def usable_rows(self, types_of: Mapping[str, str]) -> list[dict[str, Any]]:
        """Generated rows: different ones; where the function's domain is narrower, Feast's own sample over and over."""
        rows = range(self._count)
        varied = [{name: _sample(dtype, row, odd=self._exact) for name, dtype in types_of.items()} for row in rows]
        try:
            self._run(varied)
        except UsageError:
            same = [{name: _sample(dtype, 0) for name, dtype in types_of.items()}] * self._count
            self._run(same)
            return same
        return varied

    def agree(self, rows: list[dict[str, Any]]) -> None:
        """Raises UsageError where a row's result depends on more than the row."""
        whole = self._run(rows)
        again = self._run(rows)
        if name := self._difference(whole, again):
            raise UsageError(f"gives another {name!r} when it is called again: it must depend on its row alone")
        for split in self._splits:
            parts: dict[str, list[Any]] = {name: [] for name in whole}
            start = 0
            for size in split:
                for name, values in self._run(rows[start : start + size]).items():
                    parts[name] += values
                start += size
            if name := self._difference(whole, parts):
                raise UsageError(f"is not row-wise: {name!r} of a row changes with the rows beside it")

    def _run(self, rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        return run_on_demand(self._view, columns, len(rows), typed=self._exact)

    def _difference(self, one: Mapping[str, list[Any]], other: Mapping[str, list[Any]]) -> str | None:
        if self._exact:
            # As text, NaN equals itself and -0.0 is not 0.0.
            return next((name for name in one if list(map(repr, one[name])) != list(map(repr, other[name]))), None)
        return _difference(one, other)


def _difference(one: Mapping[str, list[Any]], other: Mapping[str, list[Any]]) -> str | None:
    return next((name for name in one if not _same(one[name], other[name])), None)


def _same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


def _reason(error: UsageError) -> str:
    cause = error.__cause__
    if isinstance(cause, NameError):
        return f"is not self-contained: {cause}"
    if isinstance(cause, ImportError):
        return f"is not self-contained: {cause} (what serves it has no Feast and none of your own modules)"
    if cause is not None:
        return f"fails on generated values: {error}"
    return str(error)


def _sample(dtype: str, row: int, *, odd: bool = False) -> Any:
    """A harmless value of a type; row 0 holds what Feast itself tries. `odd`: floats with all their digits."""
    for collection in ("_LIST", "_SET"):
        if dtype.endswith(collection):
            return [_sample(dtype.removesuffix(collection), row, odd=odd)]
    if dtype.startswith("DECIMAL("):
        return Decimal(1 + row % 8)
    if odd and row and dtype in ("DOUBLE", "FLOAT"):
        return math.sqrt(row) * 10.0 ** (row % 7 - 3)
    return {
        "BYTES": b"hello world" + b"!" * row,
        "STRING": "hello world" + "!" * row,
        "BOOL": row % 2 == 0,
        "UNIX_TIMESTAMP": datetime(2024, 1, 1 + row % 31, 12, tzinfo=UTC),
        "DATE": date(2024, 1, 1 + row % 31),
        "DOUBLE": 1.0 + row / 2,
        "FLOAT": 1.0 + row / 2,
    }.get(dtype, 1 + row)
