"""Does a producer's file keep its contract?

The file is read, judged, told about, and split: every row is either accepted or quarantined.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa

from validation.compiled.batch import Fallback, compile_batch
from validation.contract import Column, Contract, Rule
from validation.files import digest_of, read_data, read_rows, with_instants
from validation.lines import Unread, UnreadableData
from validation.mixed import rows_of
from validation.quarantine import Origin, QuarantineSink, Rejected, rejected_rows
from validation.reach import Reach
from validation.relationship import Relationship, file_of, without_match
from validation.report import ViolationReport, event_time_column, event_window, report_of
from validation.sla import facts_of, judge_sla
from validation.verdict import RuleVerdict, Sample, Verdict, broken, counted

_SAMPLES: Final = 20
_LINES: Final = 10
"""Of lines that are no rows so many are printed."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a file."""

    verdict: Verdict
    report: ViolationReport
    accepted: int
    quarantined: int
    lines: tuple[str, ...]
    """For a reader: a line per rule that did not pass, and a summary."""


def judge_file(
    file: Path,
    contract: Contract,
    *,
    now_us: int,
    quarantine: Path | None = None,
    fallback: Fallback | None = None,
    reach: Reach | None = None,
    sla: bool = False,
) -> Outcome:
    """The verdict on a producer's file; with `quarantine` the rows that quarantining rules reject are kept below it.

    With `sla` its freshness, latency and volume are judged too, as of `now_us`. With `reach` the report names the views
    and services that are affected. A file without `_arrival` arrived when it was last modified. What cannot be read as
    a row at all is quarantined as it came. Raises UnreadableData for the file as a whole.
    """
    contract = contract.at("producer")
    try:
        arrival_us = file.stat().st_mtime_ns // 1000
    except OSError:
        arrival_us = None
    table, unread = read_rows(file, contract, arrival_us=arrival_us)
    check = compile_batch(contract)
    verdict = check.run(table, fallback=fallback)
    if sla:
        timely = judge_sla(contract, facts_of(with_instants(table, contract), contract, now_us=now_us), now_us=now_us)
        verdict = msgspec.structs.replace(verdict, rules=(*verdict.rules, *timely))
    accepted, rejected = check.split(table)
    assert accepted.num_rows + len(rejected) == table.num_rows, "a row was neither accepted nor rejected"
    keys, unjudged = _judge_relationships(file, table, contract)
    verdict = msgspec.structs.replace(verdict, rules=(*verdict.rules, *keys))
    rows = table.num_rows + len(unread)
    numbers = _numbers(rows, unread)
    readable = _readable(contract)
    if unread:
        verdict = _in_file(verdict, numbers, counted(readable, **_counts(rows, unread)))
    digest = digest_of(file)
    if quarantine is not None:
        sink = QuarantineSink(quarantine, source=contract.source, contract=contract.name, version=contract.version)
        set_aside = [
            msgspec.structs.replace(row, offset=numbers[row.offset])
            for row in rejected_rows(table, rejected, arrival_us)
        ] + [_as_it_came(one, readable, arrival_us) for one in unread]
        if rows:
            sink.store(Origin(name=str(file), id=digest), 0, rows - 1, set_aside)
    quarantined = len(rejected) + len(unread)
    report = report_of(
        verdict,
        contract,
        report_id=f"{contract.name}-{contract.version}-{digest[:16]}",
        now_us=now_us,
        boundary="producer",
        origin=str(file),
        origin_range=(0, rows - 1) if rows else None,
        event_window=event_window(with_instants(table, contract), event_time_column(contract)),
        quarantined=quarantined,
        unwritten=(*map(rule_of_relationship, contract.relationships), readable),
        affected=() if reach is None else reach.of_verdict(verdict, contract),
    )
    told = [_line(rule, file) for rule in verdict.rules if rule.outcome in {"failed", "broken"}]
    told += [f"line {one.line} is no row: {one.why}" for one in unread[:_LINES]]
    told += [f"and {len(unread) - _LINES} lines more that are no rows"] if len(unread) > _LINES else []
    counts = f"{rows} rows: {accepted.num_rows} accepted, {quarantined} to quarantine"
    summary = f"{file}: contract {contract.name} {contract.version}: {verdict.outcome}; {counts}"
    return Outcome(
        verdict=verdict,
        report=report,
        accepted=accepted.num_rows,
        quarantined=quarantined,
        lines=(*told, *unjudged, summary),
    )


def _readable(contract: Contract) -> Rule:
    """The rule, which no contract needs to state, that what a file holds can be read as rows."""
    taken = {rule.id for rule in contract.rules}
    name = f"{contract.source}_readable"
    return Rule(
        id=name if name not in taken else f"{name}_by_line",
        expectation="expect_rows_to_be_readable",
        arguments={},
        severity="critical",
        mode="quarantine",
        description="set aside: no row can be read there",
    )


def _counts(rows: int, unread: Sequence[Unread]) -> dict[str, Any]:
    samples = [Sample(row=one.row, values={"line": one.line, "found": one.why}) for one in unread[:_SAMPLES]]
    return {"rows": rows, "evaluated": rows, "unexpected": len(unread), "mostly": 1.0, "samples": tuple(samples)}


def _numbers(rows: int, unread: Sequence[Unread]) -> Sequence[int]:
    """Number of a row that could be read -> its number in the file, where the others are rows too."""
    lost = {one.row for one in unread}
    return [number for number in range(rows) if number not in lost] if lost else range(rows)


def _in_file(verdict: Verdict, numbers: Sequence[int], more: RuleVerdict) -> Verdict:
    """The verdict with its samples numbered as in the file, and with one rule more."""
    rules = [
        msgspec.structs.replace(
            rule,
            samples=tuple(msgspec.structs.replace(sample, row=numbers[sample.row]) for sample in rule.samples),
        )
        for rule in verdict.rules
    ]
    return msgspec.structs.replace(verdict, rows=len(numbers) + (more.unexpected or 0), rules=(*rules, more))


def _as_it_came(one: Unread, rule: Rule, arrival_us: int | None) -> Rejected:
    detail = f"line {one.line}: {one.why}"
    return Rejected(
        offset=one.row, row=one.raw, reason="malformed", detail=detail, rule_ids=(rule.id,), arrival_us=arrival_us
    )


def rule_of_relationship(relationship: Relationship) -> Rule:
    """The rule that a relationship is in verdicts and reports."""
    return Rule(
        id=relationship.id,
        expectation="expect_keys_to_be_in_other_file",
        arguments={
            "column_list": list(relationship.columns),
            "other": relationship.other,
            "other_columns": list(relationship.other_columns),
        },
        dimension="consistency",
    )


def _judge_relationships(file: Path, table: pa.Table, contract: Contract) -> tuple[list[RuleVerdict], list[str]]:
    """A verdict on each relationship whose other file lies beside the file, and a line on each of the others."""
    found, unjudged = [], []
    bare = Contract(name="", version="", source="", columns=(), rules=())
    for one in contract.relationships:
        rule, beside = rule_of_relationship(one), file_of(one, file)
        if beside is None:
            names = f"{one.other or 'the other contract'}.parquet, .csv, .jsonl"
            unjudged.append(f"not judged: {one.id} ({one.describe()}): none of {names} lies beside {file.name}")
            continue
        typed = msgspec.structs.replace(bare, columns=_alike(one, contract))
        try:
            other = read_data(beside, typed)
        except UnreadableData as error:
            found.append(broken(rule, str(error)))
            continue
        absent = [name for name in one.columns if name not in table.column_names]
        absent += [f"{one.other}.{name}" for name in one.other_columns if name not in other.column_names]
        if absent:
            found.append(broken(rule, f"no column {absent[0]!r}"))
            continue
        lost, given = without_match(one, table, other)
        shown = rows_of(table.select(list(one.columns)).take(pa.array(lost[:_SAMPLES], pa.int64())))
        samples = tuple(Sample(row=number, values=row) for number, row in zip(lost, shown, strict=False))
        count = table.num_rows
        found.append(counted(rule, rows=count, evaluated=given, unexpected=len(lost), mostly=1.0, samples=samples))
    return found, unjudged


def _alike(relationship: Relationship, contract: Contract) -> tuple[Column, ...]:
    """The other file's key columns, of the types that the contract's own have: CSV has text alone."""
    pairs = zip(relationship.other_columns, relationship.columns, strict=True)
    return tuple(Column(name=other, logical_type=contract.types[mine]) for other, mine in pairs)


def _line(rule: RuleVerdict, file: Path) -> str:
    head = f"{rule.severity}: {rule.rule_id} ({rule.mode})"
    if rule.outcome == "broken":
        return f"{head}: the check broke: {rule.reason}"
    if rule.unexpected is None:
        return f"{head}: observed {rule.observed!r}"
    rows = ", ".join(str(sample.row) for sample in rule.samples[:5])
    return f"{head}: {rule.unexpected} of {rule.evaluated} rows, e.g. rows {rows} of {file.name}"
