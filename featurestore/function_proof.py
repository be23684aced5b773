"""Does a user's function need nothing but itself, and look at one row at a time?

It is shown at apply, in a clean process, on generated rows.
"""

import math
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import msgspec

from featurestore.errors import DefinitionError, UsageError
from featurestore.plan import OnDemandView, View
from featurestore.user_code import input_types, load_function, run_on_demand

PROOF_TIMEOUT_S = 60.0
_ROWS = 8
_SPLITS = ((1,) * _ROWS, (3, 5), (5, 3))
_MANY_ROWS = 67
_MANY_SPLITS = ((1,) * _MANY_ROWS, (33, 34), (5, 62), (16, 3, 48))


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
import featurestore.function_proof as proof
os.write(answer, proof.proof_here(sys.stdin.buffer.read()))
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
