"""Which rules does a batch break?

One DuckDB statement over a table, or over a query that is never held in memory, counts for every rule; a second one
finds samples of those that fail, a third the rows that quarantining rules reject. Where SQL would answer otherwise than
Python, that rule's rows are judged by the row function; rules without a compiled form go to `fallback` (Great
Expectations: `validation.suite.judge`), and are broken where none is given.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from validation.check import (
    ARRIVAL,
    INSTANTS,
    Across,
    Columns,
    Conforms,
    Drift,
    Expectation,
    Null,
    Pair,
    RowCheckable,
    Unique,
)
from validation.compiled.relation import CHUNK, Numbers, QueriedRows, Relation, TableRows
from validation.compiled.rows import BROKEN, FILTERED, MISSING, RowCheck, compile_rows
from validation.compiled.sql import Selection, kind
from validation.compiled.statement import Statement
from validation.contract import Contract, Rule
from validation.errors import did_you_mean
from validation.instant_columns import as_micros
from validation.mixed import is_mixed, rows_of, values_of
from validation.verdict import RuleVerdict, Sample, Verdict, broken, counted, stated

SAMPLES: Final = 20
Fallback = Callable[[Contract, pa.Table], Verdict]
"""Judges the rules of a contract on a table."""
SMALL: Final = 2_048


class Rejections(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of a batch that its quarantining rules reject, ascending, and why; few bytes a row."""

    numbers: Any
    """int64[n]: the rows' numbers."""
    codes: Any
    """int64[n]: which of `reasons`."""
    reasons: tuple[tuple[str, ...], ...]
    """Rule ids, each combination once."""

    def __len__(self) -> int:
        return len(self.numbers)

    def by_row(self) -> dict[int, tuple[str, ...]]:
        """Row number -> rule ids."""
        return {
            number: self.reasons[code] for number, code in zip(self.numbers.tolist(), self.codes.tolist(), strict=True)
        }


@dataclass(frozen=True, eq=False, slots=True)
class BatchCheck:
    """A contract's rules over whole tables; safe to share between threads."""

    contract: Contract
    meanings: tuple[Expectation, ...]
    python_rows: int
    """Up to so many rows the row function is faster than planning a statement."""
    _rows: RowCheck = field(repr=False)

    def run(self, table: pa.Table, *, samples: int = SAMPLES, fallback: Fallback | None = None) -> Verdict:
        """The verdict on a table; `_arrival` may be among its columns. Row order and further columns do not matter."""
        small = self._small(table, samples) if table.num_rows <= self.python_rows else {}
        with TableRows(table) as rows:
            return self._judge(rows, table.num_rows, small, samples, fallback)

    def run_query(self, rows: QueriedRows, *, samples: int = SAMPLES, fallback: Fallback | None = None) -> Verdict:
        """The verdict on what a query selects; memory stays bounded but for rules that need the fallback."""
        (count,) = rows.ask(f"SELECT count(*) FROM {rows.text}", {}).fetchall()[0]  # noqa: S608  # the caller's query
        return self._judge(rows, count, {}, samples, fallback)

    def _judge(
        self,
        relation: Relation,
        count: int,
        small: Mapping[str, RuleVerdict],
        samples: int,
        fallback: Fallback | None,
    ) -> Verdict:
        judged: dict[str, RuleVerdict] = {}
        left: list[Rule] = []
        names = relation.schema.names
        statement = Statement(relation, self.contract)
        for bit, (rule, meaning) in enumerate(zip(self.contract.rules, self.meanings, strict=True)):
            if isinstance(meaning.check, Columns):
                judged[rule.id] = _columns(rule, meaning.check, names)
            elif absent := [name for name in meaning.columns if name not in names]:
                found = did_you_mean(absent[0], names)
                judged[rule.id] = broken(rule, f"no column {absent[0]!r} in the batch; {found}")
            elif meaning.check is None:
                left.append(rule)
            elif isinstance(meaning.check, Drift):
                judged[rule.id] = _drift(rule, meaning.check, relation)
            elif rule.id in small:
                judged[rule.id] = small[rule.id]
            elif not statement.add(rule, meaning):
                judged[rule.id] = self._in_python(bit, rule, meaning, relation, samples)
        judged |= statement.verdicts(samples)
        judged |= self._left(left, relation, fallback)
        return Verdict(
            contract=self.contract.name,
            version=self.contract.version,
            source=self.contract.source,
            rows=count,
            rules=tuple(judged[rule.id] for rule in self.contract.rules),
        )

    def _small(self, table: pa.Table, samples: int) -> dict[str, RuleVerdict]:
        """The verdicts on a small table of rules without a row condition about rows and about repetition."""
        lists = self._lists(table)
        masks = self._rows.check(_events(lists, table, 0))
        values = {
            name: [None if value is None or value != value else value for value in found]
            for name, found in lists.items()
        }
        considered: dict[tuple[str, ...], list[bool]] = {}
        tally = self._rows.tally(masks)
        found: dict[str, RuleVerdict] = {}
        families = Selection({f.name: f.type for f in table.schema}, {ARRIVAL: "timestamp", **self.contract.types})
        for bit, (rule, meaning) in enumerate(zip(self.contract.rules, self.meanings, strict=True)):
            check = meaning.check
            if meaning.where is not None or not isinstance(check, RowCheckable | Unique):
                continue
            if any(name not in table.column_names for name in meaning.columns):
                continue
            if isinstance(check, Conforms) and not _as_promised(check, families):
                continue
            if isinstance(check, Unique) and any(families.kind(name) == "other" for name in check.columns):
                continue
            columns = [values[name] for name in meaning.columns]
            ignore = "none" if isinstance(check, Null) else "any"
            if isinstance(check, Pair | Across | Unique):
                ignore = check.ignore
            key = (ignore, *meaning.columns)
            if key not in considered:
                considered[key] = _considered(columns, ignore)
            kept = considered[key]
            bad: list[int] = []
            if isinstance(check, Unique):
                keys = list(zip(*columns, strict=True))
                times = Counter(compress(keys, kept))
                bad = [n for n, row in enumerate(keys) if kept[n] and times[row] > 1]
            elif tally[bit]:
                bad = [n for n, mask in enumerate(masks) if mask >> bit & 1]
            shown = rows_of(table.select(list(meaning.columns)).take(bad[:samples])) if bad[:samples] else []
            found[rule.id] = counted(
                rule,
                rows=table.num_rows,
                evaluated=sum(kept),
                unexpected=len(bad),
                mostly=meaning.mostly,
                samples=tuple(Sample(row=n, values=row) for n, row in zip(bad, shown, strict=False)),
            )
        return found

    def masks(self, table: pa.Table) -> list[int]:
        """The row function's mask of each row, as for events; a rule whose column is absent sees it as missing."""
        return [
            mask
            for start in range(0, table.num_rows, CHUNK)
            for mask in self._rows.check(_events(self._lists(table.slice(start, CHUNK)), table, start))
        ]

    def rejections(self, rows: Relation) -> Rejections:
        """The rows that quarantining rules reject, told by one statement; by the row function where SQL cannot."""
        bits = {rule.id: bit for bit, rule in enumerate(self.contract.rules) if self._rows.quarantine_mask >> bit & 1}
        masks: dict[int, int] = {}
        statement = Statement(rows, self.contract)
        in_python: list[int] = []
        for rule, meaning in zip(self.contract.rules, self.meanings, strict=True):
            if rule.id not in bits:
                continue
            absent = any(name not in rows.schema.names for name in meaning.columns)
            if absent or not statement.add(rule, meaning):
                in_python.append(bits[rule.id])
        numbers, found = statement.breaking(bits)
        if not in_python:
            return self.rejections_of(found, numbers)
        masks.update(zip(numbers.tolist(), found, strict=True))
        for part, events in self._in_pieces(in_python, rows):
            for number, mask in zip(part.tolist(), events, strict=True):
                if mask:
                    masks[number] = masks.get(number, 0) | mask
        ordered = sorted(masks)
        return self.rejections_of([masks[number] for number in ordered], np.array(ordered, np.int64))

    def _in_pieces(self, bits: Sequence[int], rows: Relation) -> Iterator[tuple[Numbers, list[int]]]:
        """The numbers and masks of all rows by some of the rules alone, in Python, piece by piece."""
        rules = [self.contract.rules[bit] for bit in bits]
        check = compile_rows(msgspec.structs.replace(self.contract, rules=tuple(rules)))
        columns = dict.fromkeys(name for bit in bits for name in self.meanings[bit].columns)
        for numbers, table in rows.batches(list(columns)):
            masks = check.check(_events(self._lists(table), table, 0) if table.num_columns else [{}] * len(numbers))
            yield (
                numbers,
                [sum(1 << bit for n, bit in enumerate(bits) if mask >> n & 1) if mask else 0 for mask in masks],
            )

    def rejections_of(self, masks: Sequence[int], numbers: Numbers | None = None) -> Rejections:
        """Rows, by default numbered from 0, with the bits of the rules that reject them."""
        distinct = {mask: code for code, mask in enumerate(dict.fromkeys(masks))}
        return Rejections(
            numbers=np.arange(len(masks)) if numbers is None else numbers,
            codes=np.fromiter((distinct[mask] for mask in masks), np.int64, len(masks)),
            reasons=tuple(self._rows.ids(mask) for mask in distinct),
        )

    def _lists(self, table: pa.Table) -> dict[str, list[Any]]:
        """Column -> values, of the columns that rules read; instants as microseconds: cheaper than datetimes."""
        logical = {ARRIVAL: "timestamp", **self.contract.types}
        read = {name for meaning in self.meanings if meaning.check is not None for name in meaning.columns}
        return {
            name: values_of(_microseconds(table.column(name), instants=logical[name] in INSTANTS))
            for name in table.column_names
            if name in read
        }

    def split(self, table: pa.Table) -> tuple[pa.Table, dict[int, tuple[str, ...]]]:
        """The rows that no quarantining rule rejects, and row number -> rule ids for each row that one does.

        Every row is in exactly one of the two; order is kept.
        """
        quarantine = self._rows.quarantine_mask
        if not quarantine:
            return table, {}
        if table.num_rows <= self.python_rows and self._as_promised(table):
            masks = self.masks(table)
            rejected = {row: self._rows.ids(mask & quarantine) for row, mask in enumerate(masks) if mask & quarantine}
        else:
            with TableRows(table) as rows:
                rejected = self.rejections(rows).by_row()
        keep = np.ones(table.num_rows, np.bool_)
        keep[list(rejected)] = False
        return table.filter(pa.array(keep)), rejected

    def _as_promised(self, table: pa.Table) -> bool:
        """Whether the row function sees what the schema is about: values of the physical types that it expects."""
        physical = {field.name: field.type for field in table.schema}
        families = Selection(physical, {ARRIVAL: "timestamp", **self.contract.types})
        checks = [meaning.check for meaning in self.meanings if isinstance(meaning.check, Conforms)]
        return all(_as_promised(check, families) for check in checks if check.column in physical)

    def _in_python(self, bit: int, rule: Rule, meaning: Expectation, relation: Relation, samples: int) -> RuleVerdict:
        judge = self._rows.judge(bit)
        if judge is None:
            types = ", ".join(f"{name} {relation.schema.field(name).type}" for name in meaning.columns)
            return broken(rule, f"{rule.expectation} cannot be computed over {types}")
        rows = evaluated = unexpected = 0
        found: list[Sample] = []
        for numbers, piece in relation.batches(meaning.columns):
            for number, row in zip(numbers.tolist(), rows_of(piece), strict=True):
                code = judge(row, None)
                rows += code != FILTERED
                evaluated += code not in {FILTERED, MISSING}
                unexpected += code == BROKEN
                if code == BROKEN and len(found) < samples:
                    found.append(Sample(row=number, values=row))
        return counted(
            rule, rows=rows, evaluated=evaluated, unexpected=unexpected, mostly=meaning.mostly, samples=tuple(found)
        )

    def _left(self, rules: Sequence[Rule], relation: Relation, fallback: Fallback | None) -> Mapping[str, RuleVerdict]:
        """The verdicts of rules without a compiled form."""
        if not rules:
            return {}
        if fallback is None:
            return {rule.id: broken(rule, f"only Great Expectations can judge {rule.expectation}") for rule in rules}
        table = pa.concat_tables(piece for _, piece in relation.batches(relation.schema.names))
        verdict = fallback(msgspec.structs.replace(self.contract, rules=tuple(rules)), table)
        return {rule.rule_id: rule for rule in verdict.rules}


def _events(lists: Mapping[str, list[Any]], table: pa.Table, start: int) -> list[dict[str, Any]]:
    if not lists:
        return [{} for _ in range(min(CHUNK, table.num_rows - start))]
    names = tuple(lists)
    return [dict(zip(names, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _microseconds(column: pa.ChunkedArray, *, instants: bool) -> pa.ChunkedArray:
    """Instants as int64, floored; what is of another type than promised stays as it is."""
    if not instants or kind(column.type) != "instant":
        return column
    return as_micros(column)


def _considered(columns: Sequence[list[Any]], ignore: str) -> list[bool]:
    """Of each row, whether a rule that leaves rows out for missing values takes it."""
    if ignore == "none":
        return [True] * len(columns[0])
    if len(columns) == 1:
        return [value is not None for value in columns[0]]
    enough = any if ignore == "all" else all
    return [enough(value is not None for value in row) for row in zip(*columns, strict=True)]


def _as_promised(check: Conforms, families: Selection) -> bool:
    return families.kind(check.column) != "other" or is_mixed(families.physical[check.column])


def _columns(rule: Rule, check: Columns, names: Sequence[str]) -> RuleVerdict:
    present = set(names)
    success = present == set(check.names) if check.exact else present >= set(check.names)
    return stated(rule, success=success, observed=sorted(present), rows=None)


def _drift(rule: Rule, check: Drift, relation: Relation) -> RuleVerdict:
    # SciPy takes half a second to import: only contracts with a rule about drift wait for it.
    from validation.drift.rule import judge_drift

    read = {*check.columns, *check.segments, *check.entities, check.time_column}
    names = [name for name in relation.schema.names if name in read]
    pieces = [piece for _, piece in relation.batches(names)]
    table = pa.concat_tables(pieces) if pieces else relation.schema.empty_table().select(names)
    return judge_drift(rule, check, table.select(names))


def compile_batch(contract: Contract, *, python_rows: int = SMALL) -> BatchCheck:
    """The contract's rules for tables; raises ContractError where a rule's arguments are wrong.

    Tables of at most `python_rows` rows are judged by the row function where it can: 0 always asks DuckDB.

    >>> from validation.contract import Column
    >>> check = compile_batch(Contract(name="c", version="1", source="s", rules=(
    ...     Rule(id="late", expectation="expect_column_values_to_be_between",
    ...          arguments={"column": "delay", "max_value": 15}),
    ... ), columns=(Column(name="delay", logical_type="number"),)))
    >>> check.run(pa.table({"delay": [3.0, 99.0, None]})).rule("late").percent
    50.0
    """
    return BatchCheck(contract, contract.expectations(), python_rows, compile_rows(_by_row(contract)))


def _by_row(contract: Contract) -> Contract:
    """The contract with `quarantine` only where a row alone decides: batches have no such rows to set aside."""
    rules = tuple(
        rule if rule.mode != "quarantine" or meaning.by_row else msgspec.structs.replace(rule, mode="warn")
        for rule, meaning in zip(contract.rules, contract.expectations(), strict=True)
    )
    return msgspec.structs.replace(contract, rules=rules)
