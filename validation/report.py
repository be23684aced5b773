"""What should the producer know?

A ViolationReport tells which rules of a contract a batch broke, with counts, a few samples and where the rows came
from. Values of columns whose classification is personal or confidential are masked. It stays small however many rows
are bad.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from validation.check import ARRIVAL
from validation.contract import Boundary, Contract, Mode, Rule, Severity
from validation.instant import iso
from validation.sla import rule_of
from validation.verdict import Outcome, RuleVerdict, Sample, Verdict

MASK: Final = "***"
SAMPLES: Final = 5
TEXT_LIMIT: Final = 200
"""Longer texts in samples are cut."""
LIST_LIMIT: Final = 50
"""Of longer lists the beginning is told."""


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """One rule that failed or could not be judged."""

    rule_id: str
    expectation: str
    expected: dict[str, Any]
    """The rule's arguments."""
    severity: Severity
    mode: Mode
    dimension: str
    outcome: Outcome
    description: str
    evaluated: int | None
    failed: int | None
    percent: float | None
    allowed: int | None = None
    """How many of those evaluated might have failed without a violation; None where the rule counts no rows."""
    observed: Any
    reason: str
    samples: tuple[Sample, ...]


class ViolationReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a producer can act on."""

    report_id: str
    created: str
    boundary: Boundary
    contract: str
    version: str
    source: str
    producer: str = ""
    """Who sends the rows: those who may see this report."""
    owner: str
    support: str
    outcome: Outcome
    rows: int
    quarantined: int
    origin: str
    """The topic or file."""
    origin_id: str = ""
    """The topic's id, or the file's digest."""
    origin_partition: int | None = None
    """The topic's partition; None for a file."""
    origin_range: tuple[int, int] | None
    """First and last offset, or row number, that was judged."""
    event_window: tuple[str, str] | None
    """Earliest and latest event time among the rows."""
    violations: tuple[Violation, ...]
    affected: tuple[str, ...] = ()
    """`view NAME` and `service NAME` that the columns of the broken rules reach; empty where no plan was at hand."""
    action: str = ""
    """What was done about it."""
    replay: str = ""
    """The command that judges the quarantined rows again."""

    def encode(self) -> bytes:
        """The report as JSON, indented."""
        return msgspec.json.format(msgspec.json.encode(self, order="deterministic"), indent=2)


def report_of(
    verdict: Verdict,
    contract: Contract,
    *,
    report_id: str,
    now_us: int,
    boundary: Boundary,
    origin: str,
    origin_id: str = "",
    origin_partition: int | None = None,
    origin_range: tuple[int, int] | None = None,
    event_window: tuple[str, str] | None = None,
    quarantined: int = 0,
    samples: int = SAMPLES,
    affected: tuple[str, ...] = (),
    unwritten: Sequence[Rule] = (),
    action: str = "",
) -> ViolationReport:
    """The report of a verdict: the rules that failed or broke, the most severe and most frequent first.

    A promise about freshness or volume that no data came for is told too. `unwritten` are rules that no contract needs
    to state: that an event can be read, and the like.
    """
    promised = {promise.id for promise in contract.sla}
    rules = {rule.id: rule for rule in (*contract.rules, *map(rule_of, contract.sla), *unwritten)}
    masked = frozenset(column.name for column in contract.columns if column.masked)
    found = [
        _violation(rules[told.rule_id], told, masked, samples)
        for told in verdict.rules
        if told.outcome in {"failed", "broken"} or (told.outcome == "no data" and told.rule_id in promised)
    ]
    rank = {"critical": 0, "warning": 1, "info": 2}
    found.sort(key=lambda violation: (rank[violation.severity], -(violation.failed or 0), violation.rule_id))
    return ViolationReport(
        report_id=report_id,
        created=iso(now_us),
        boundary=boundary,
        contract=contract.name,
        version=contract.version,
        source=contract.source,
        producer=contract.producer or contract.owner,
        owner=contract.owner,
        support=contract.support,
        outcome=verdict.outcome,
        rows=verdict.rows,
        quarantined=quarantined,
        origin=origin,
        origin_id=origin_id,
        origin_partition=origin_partition,
        origin_range=origin_range,
        event_window=event_window,
        violations=tuple(found),
        affected=affected,
        action=action or _action(verdict, quarantined),
        replay=f"featurestore quarantine replay {contract.source}" if quarantined else "",
    )


def _action(verdict: Verdict, quarantined: int) -> str:
    if verdict.blocked:
        return "blocked: the batch must not pass"
    return f"{quarantined} rows set aside" if quarantined else "none: every row passed"


def _violation(rule: Rule, told: RuleVerdict, masked: frozenset[str], samples: int) -> Violation:
    return Violation(
        rule_id=rule.id,
        expectation=rule.expectation,
        expected=plain(rule.arguments),
        severity=rule.severity,
        mode=rule.mode,
        dimension=rule.dimension,
        outcome=told.outcome,
        description=rule.description,
        evaluated=told.evaluated,
        failed=told.unexpected,
        percent=told.percent,
        allowed=_allowed(rule, told),
        observed=None if masked & set(rule.columns) else plain(told.observed),
        reason=MASK if told.reason and masked & set(rule.columns) else told.reason,  # an engine may quote values
        samples=tuple(
            Sample(row=sample.row, values={name: _shown(name, value, masked) for name, value in sample.values.items()})
            for sample in told.samples[:samples]
        ),
    )


def masked(verdict: Verdict, contract: Contract) -> Verdict:
    """The verdict without a value of a column that is kept out of reports."""
    hidden = frozenset(column.name for column in contract.columns if column.masked)
    about = {rule.id: bool(hidden & set(rule.columns)) for rule in contract.rules}
    return msgspec.structs.replace(
        verdict,
        rules=tuple(
            msgspec.structs.replace(
                told,
                observed=None if about.get(told.rule_id) else told.observed,
                reason=MASK if told.reason and about.get(told.rule_id) else told.reason,
                samples=tuple(
                    msgspec.structs.replace(
                        sample,
                        values={
                            name: MASK if name in hidden and value is not None else value
                            for name, value in sample.values.items()
                        },
                    )
                    for sample in told.samples
                ),
            )
            for told in verdict.rules
        ),
    )


def _allowed(rule: Rule, told: RuleVerdict) -> int | None:
    """The most failures with which the share of good rows is still `mostly`."""
    if told.unexpected is None or told.evaluated is None:
        return None
    mostly = rule.arguments.get("mostly", 1)
    if not isinstance(mostly, int | float) or not 0 <= mostly <= 1:
        return None
    most = int((1 - mostly) * told.evaluated) + 1
    # The judge divides floats: count down to what it would pass.
    while most > 0 and (float(told.evaluated) - most) / max(told.evaluated, 1) < mostly:
        most -= 1
    return most


def _shown(name: str, value: Any, masked: frozenset[str]) -> Any:
    # A missing value is told even of a masked column: that it is missing is what the producer must know.
    return MASK if name in masked and value is not None else plain(value)


def plain(value: Any) -> Any:
    """A value as JSON can carry it: NaN and infinities as text, long texts and lists cut, bytes as their length.

    >>> plain(float("nan")), plain(b"abc"), plain([1, float("inf")])
    ('nan', '3 bytes', [1, 'inf'])
    """
    if isinstance(value, float) and (value != value or value in {float("inf"), float("-inf")}):
        return str(value)
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, str):
        return value if len(value) <= TEXT_LIMIT else value[:TEXT_LIMIT] + "…"
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        more = [f"… and {len(value) - LIST_LIMIT} more"] if len(value) > LIST_LIMIT else []
        return [plain(inner) for inner in value[:LIST_LIMIT]] + more
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dt.datetime | dt.date):
        return value.isoformat()
    return str(value)


def event_window(table: pa.Table, column: str) -> tuple[str, str] | None:
    """Earliest and latest value of a column of instants; None where the column is absent, of another type or empty.

    >>> event_window(pa.table({"t": pa.array([0, 1_000_000], pa.timestamp("us", "UTC"))}), "t")
    ('1970-01-01T00:00:00+00:00', '1970-01-01T00:00:01+00:00')
    """
    if column not in table.column_names or not pa.types.is_timestamp(table.schema.field(column).type):
        return None
    extent = pc.min_max(pc.cast(table.column(column), pa.timestamp("us", "UTC"), safe=False)).as_py()
    if extent["min"] is None:
        return None
    return extent["min"].isoformat(), extent["max"].isoformat()


def event_time_column(contract: Contract) -> str:
    """The column of the contract that holds event time: `event_timestamp`, else its first timestamp; empty: none."""
    stamps = [column.name for column in contract.columns if column.logical_type == "timestamp"]
    named = [name for name in stamps if name == "event_timestamp"]
    return next(iter(named + [name for name in stamps if name != ARRIVAL]), "")
