"""How are many rules counted in one DuckDB statement?

Rules are added one by one; each adds a few aggregates over a shared, prepared selection (validation.compiled.sql). One
statement answers for all, a second one names the first rows that break each failing rule, a third tells of every row
which rules it breaks.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import duckdb
import numpy as np
import numpy.typing as npt

from validation.check import ARRIVAL, Aggregate, Expectation, Unique
from validation.compiled.relation import Relation
from validation.compiled.sql import Selection, bad, condition, considered, statistic
from validation.contract import Contract, Rule
from validation.verdict import RuleVerdict, Sample, broken, counted, stated

_PARAMETER: Final = re.compile(r"\$(p\d+)")
_WORD: Final = 62
"""Rules whose bits share one BIGINT."""


class Statement:
    """One aggregate statement over one relation."""

    def __init__(self, relation: Relation, contract: Contract) -> None:
        self._relation = relation
        physical = {field.name: field.type for field in relation.schema}
        self._selection = Selection(physical, {ARRIVAL: "timestamp", **contract.types})
        self._places: dict[str, int] = {}
        self._rules: list[tuple[Rule, Expectation, list[int], str]] = []
        """Rule, meaning, places of its aggregates, the clauses that select the rows that break it."""

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
        rows = self._relation.values(meaning.columns, numbers)
        return tuple(Sample(row=number, values=row) for number, row in zip(numbers, rows, strict=True))

    def breaking(self, bits: Mapping[str, int]) -> tuple[npt.NDArray[np.int64], list[int]]:
        """The numbers of the rows that break any of these rules taken in (rule id -> bit), ascending, and their masks.

        Rules about statistics or repetition concern no single row and set no bit.
        """
        words: dict[int, list[str]] = {}
        for rule, meaning, _, breaking in self._rules:
            if rule.id in bits and not isinstance(meaning.check, Aggregate | Unique):
                word, bit = divmod(bits[rule.id], _WORD)
                broken_by = breaking.removeprefix("WHERE ")
                words.setdefault(word, []).append(f"CASE WHEN {broken_by} THEN {1 << bit} ELSE 0 END")
        if not words:
            return np.zeros(0, np.int64), []
        named = ", ".join(f"({' + '.join(terms)})::BIGINT AS w{word}" for word, terms in words.items())
        some = " OR ".join(f"w{word} <> 0" for word in words)
        found = self._run(f"n, {named}", f") WHERE {some} ORDER BY n", "SELECT * FROM (").fetchnumpy()
        masks = [0] * len(found["n"])
        for word in words:
            shift = word * _WORD
            masks = [mask | own << shift for mask, own in zip(masks, found[f"w{word}"].tolist(), strict=True)]
        return np.asarray(found["n"], np.int64), masks

    def _ask(self, what: str, clauses: str = "") -> list[tuple[Any, ...]]:
        return self._run(what, clauses).fetchall()

    def _run(self, what: str, clauses: str, around: str = "") -> duckdb.DuckDBPyConnection:
        prepared = self._selection.select(self._relation.text)
        text = f"WITH prepared AS ({prepared}) {around}SELECT {what} FROM prepared {clauses}"  # noqa: S608
        used = {name: self._selection.parameters[name] for name in _PARAMETER.findall(text)}
        return self._relation.ask(text, used)


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
