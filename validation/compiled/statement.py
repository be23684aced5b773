"""How are many rules counted in one DuckDB statement?

Rules are added one by one; each adds a few aggregates over a shared, prepared selection (validation.compiled.sql). One
statement answers for all, a second one names the first rows that break each failing rule.
"""

import functools
import re
import threading
from collections.abc import Sequence
from typing import Any, Final, Self

import duckdb
import numpy as np
import pyarrow as pa

from validation.check import ARRIVAL, Aggregate, Expectation, Unique
from validation.compiled.sql import ROW, Selection, bad, condition, considered, statistic
from validation.contract import Contract, Rule
from validation.verdict import RuleVerdict, Sample, broken, counted, stated

_BATCH: Final = "batch"
_PARAMETER: Final = re.compile(r"\$(p\d+)")
_opening: Final = threading.Lock()


@functools.cache
def _database() -> duckdb.DuckDBPyConnection:
    """The process's empty database: opening one costs more than judging a small batch; nothing is ever kept in it."""
    return duckdb.connect(":memory:")


class Statement:
    """One aggregate statement over one table; a context manager with a DuckDB connection of its own."""

    def __init__(self, table: pa.Table, contract: Contract) -> None:
        self._table = table
        physical = {field.name: field.type for field in table.schema}
        self._selection = Selection(physical, {ARRIVAL: "timestamp", **contract.types})
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._places: dict[str, int] = {}
        self._rules: list[tuple[Rule, Expectation, list[int], str]] = []
        """Rule, meaning, places of its aggregates, the clauses that select the rows that break it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()

    def _open(self) -> duckdb.DuckDBPyConnection:
        """The connection, opened where the first question is asked."""
        if self._connection is None:
            with _opening:
                self._connection = _database().cursor()
            numbers = pa.array(np.arange(self._table.num_rows, dtype=np.int64))
            self._connection.register(_BATCH, self._table.append_column(ROW, numbers))
        return self._connection

    def add(self, rule: Rule, meaning: Expectation) -> bool:
        """Takes a rule in; False where SQL cannot judge it as Python does."""
        check, s = meaning.check, self._selection
        where = condition(meaning.where, s)
        if where is None or check is None:
            return False
        rows = f"count(*) FILTER (WHERE {where})"
        if isinstance(check, Aggregate):
            value = statistic(check, where, s)
            if value is None:
                return False
            self._take(rule, meaning, [rows, value], "")
            return True
        kept = f"({where}) AND ({considered(check, s)})"
        evaluated = f"count(*) FILTER (WHERE {kept})"
        if isinstance(check, Unique):
            if any(s.kind(column) == "other" for column in check.columns):
                return False
            names = ", ".join(s.local(column) for column in check.columns)
            groups = f"SELECT count(*) AS c FROM prepared WHERE {kept} GROUP BY {names}"  # noqa: S608  # our names
            unexpected = f"(SELECT coalesce(sum(c) FILTER (WHERE c > 1), 0)::BIGINT FROM ({groups}))"  # noqa: S608
            breaking = f"WHERE {kept} QUALIFY count(*) OVER (PARTITION BY {names}) > 1"
        else:
            breach = bad(check, s)
            if breach is None:
                return False
            unexpected = f"count(*) FILTER (WHERE {kept} AND {breach})"
            breaking = f"WHERE {kept} AND {breach}"
        self._take(rule, meaning, [rows, evaluated, unexpected], breaking)
        return True

    def _take(self, rule: Rule, meaning: Expectation, aggregates: list[str], breaking: str) -> None:
        places = [self._places.setdefault(text, len(self._places)) for text in aggregates]
        self._rules.append((rule, meaning, places, breaking))

    def verdicts(self, samples: int) -> dict[str, RuleVerdict]:
        """The verdicts of the rules taken in, by rule id; a rule whose SQL fails on this data is broken."""
        if not self._rules:
            return {}
        texts = list(self._places)
        values: dict[int, Any] = {}
        failures: dict[int, str] = {}
        try:
            values = dict(enumerate(self._ask(", ".join(texts))[0]))
        except duckdb.Error:
            # One of the aggregates cannot be computed over this data: ask one by one, so that only its rules break.
            for place, text in enumerate(texts):
                try:
                    values[place] = self._ask(text)[0][0]
                except duckdb.Error as error:
                    failures[place] = " ".join(str(error).split())
        numbers = self._numbers(values, samples)
        return {
            rule.id: self._verdict(rule, meaning, places, values, failures, numbers.get(rule.id, ()))
            for rule, meaning, places, _ in self._rules
        }

    def _numbers(self, values: dict[int, Any], samples: int) -> dict[str, Sequence[int]]:
        """Rule id -> the first rows that break it: one statement for all rules, one more per rule about repetition."""
        if not samples:
            return {}
        found: dict[str, Sequence[int]] = {}
        together: dict[str, str] = {}
        for rule, meaning, places, breaking in self._rules:
            if isinstance(meaning.check, Aggregate) or not values.get(places[-1]):
                continue
            if isinstance(meaning.check, Unique):
                found[rule.id] = [row[0] for row in self._ask("n", f"{breaking} ORDER BY n LIMIT {samples:d}")]
            else:
                together[rule.id] = f"min(n, {samples:d}) FILTER ({breaking})"
        if together:
            found |= dict(zip(together, self._ask(", ".join(together.values()))[0], strict=True))
        return found

    def _verdict(
        self,
        rule: Rule,
        meaning: Expectation,
        places: list[int],
        values: dict[int, Any],
        failures: dict[int, str],
        numbers: Sequence[int],
    ) -> RuleVerdict:
        if reasons := [failures[place] for place in places if place in failures]:
            return broken(rule, reasons[0])
        found = [values[place] for place in places]
        if isinstance(meaning.check, Aggregate):
            return stated(rule, success=within(meaning.check, found[1]), observed=found[1], rows=found[0])
        rows, evaluated, unexpected = found
        taken = self._samples(meaning, numbers) if numbers else ()
        return counted(
            rule, rows=rows, evaluated=evaluated, unexpected=unexpected, mostly=meaning.mostly, samples=taken
        )

    def _samples(self, meaning: Expectation, numbers: Sequence[int]) -> tuple[Sample, ...]:
        rows = self._table.select(list(meaning.columns)).take(pa.array(numbers, pa.int64())).to_pylist()
        return tuple(Sample(row=number, values=row) for number, row in zip(numbers, rows, strict=True))

    def _ask(self, what: str, clauses: str = "") -> list[tuple[Any, ...]]:
        text = f"WITH prepared AS ({self._selection.select(_BATCH)}) SELECT {what} FROM prepared {clauses}"  # noqa: S608
        used = {name: self._selection.parameters[name] for name in _PARAMETER.findall(text)}
        return self._open().execute(text, used).fetchall()


def within(check: Aggregate, observed: Any) -> bool:
    """Whether a statistic lies between an aggregate rule's bounds; none, or NaN, does not.

    >>> within(Aggregate("x", "mean", 0, 1, strict_low=False, strict_high=True), 1.0)
    False
    """
    if observed is None or observed != observed:
        return False
    above = check.low is None or (observed > check.low if check.strict_low else observed >= check.low)
    below = check.high is None or (observed < check.high if check.strict_high else observed <= check.high)
    return bool(above and below)
