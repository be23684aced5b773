"""Does a training set keep the contracts of what it is made of?

The joined rows are judged by the contracts of their sources, views and service (`featurestore.contracts` says which
rules hold there), each rule in its mode at `training`: what blocks stops the build, what quarantines takes the row out
and keeps it, and all verdicts stand in the manifest.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.contracts import Held, held
from featurestore.errors import ContractBroken
from featurestore.offline.connection import Limits
from featurestore.offline.mapped import BATCH_ROWS, held_or_mapped
from featurestore.plan import Plan, Projection
from validation.compiled.batch import BatchCheck, Fallback, compile_batch
from validation.contract import SERVICE
from validation.quarantine import Origin, QuarantineSink, rejected_rows
from validation.reach import Reach
from validation.report import event_window, report_of
from validation.verdict import RuleVerdict, Verdict
from validation.violations import ViolationStore

_DIGITS = 12
"""Of statistics that are compared: DuckDB adds floats in any order."""


class JudgedSet(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of a set that are accepted, and what was said of all of them."""

    accepted: pa.Table
    verdicts: tuple[Verdict, ...]
    """One for each contract, with its samples."""
    rejected: tuple[dict[int, tuple[str, ...]], ...]
    """For each contract: row -> rules that take it out."""
    contracts: tuple[Held, ...]

    @property
    def told(self) -> tuple[Verdict, ...]:
        """The verdicts as the manifest keeps them: without samples, which are rows."""
        return tuple(
            msgspec.structs.replace(
                verdict, rules=tuple(msgspec.structs.replace(rule, samples=()) for rule in verdict.rules)
            )
            for verdict in self.verdicts
        )


def judge_set(
    plan: Plan,
    features: Sequence[str],
    projections: Sequence[Projection],
    joined: pa.Table,
    *,
    full_feature_names: bool,
    fallback: Fallback | None,
    limits: Limits = Limits(),  # noqa: B008 - a frozen value
) -> JudgedSet:
    """Judges joined rows; in = accepted + taken out. What is accepted lies in a file where it is too large to hold."""
    names = {
        (projection.name, feature): f"{projection.name}__{feature}" if full_feature_names else feature
        for projection in projections
        for feature in projection.features
    }
    asked = features[0].removeprefix(SERVICE) if len(features) == 1 and features[0].startswith(SERVICE) else None
    others = [name for name in joined.column_names if name not in set(names.values())]
    contracts = held(plan, projections, names, boundary="training", service=asked, others=others)
    verdicts, rejected = [], []
    keep = np.ones(joined.num_rows, np.bool_)
    for one in contracts:
        verdict, out = _judge(compile_batch(one.contract), one, joined, fallback)
        verdicts.append(verdict)
        rejected.append(out)
        keep[list(out)] = False
    accepted = joined if keep.all() else held_or_mapped(_kept(joined, keep), joined.schema, limits)
    taken_out = {row for rows in rejected for row in rows}
    assert accepted.num_rows + len(taken_out) == joined.num_rows, "a row was neither accepted nor taken out"
    return JudgedSet(accepted=accepted, verdicts=tuple(verdicts), rejected=tuple(rejected), contracts=tuple(contracts))


def _kept(joined: pa.Table, keep: npt.NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in joined.to_batches(max_chunksize=BATCH_ROWS):
        yield batch.filter(pa.array(keep[start : start + batch.num_rows]))
        start += batch.num_rows


def _judge(
    check: BatchCheck, one: Held, joined: pa.Table, fallback: Fallback | None
) -> tuple[Verdict, dict[int, tuple[str, ...]]]:
    here = {column: name for column, name in one.columns.items() if name in joined.column_names}
    table = pa.table({column: joined.column(name) for column, name in here.items()})
    if not here:
        table = joined.select([])
    verdict = check.run(table, fallback=fallback)
    return verdict, {} if verdict.stops else check.split(table)[1]


def keep_promises(
    judged: JudgedSet,
    name: str,
    entity_rows_digest: str,
    joined: pa.Table,
    *,
    plan: Plan,
    timestamp_column: str,
    quarantine: Path,
    violations: ViolationStore,
    now_us: int,
) -> None:
    """Acts on what was found, in order: 1. keep what is taken out, 2. record violations, 3. refuse where a rule blocks.

    Where one contract blocks nothing is kept. Raises ContractBroken.
    """
    stopped = [verdict for verdict in judged.verdicts if verdict.stops]
    reach = msgspec.json.decode(plan.encode(), type=Reach)
    origin = Origin(
        name=f"training set {name}", id=hashlib.sha256(f"{name}\0{entity_rows_digest}".encode()).hexdigest()
    )
    if not stopped:
        _set_aside(judged, origin, joined, quarantine, now_us)
    for number, (one, verdict, rejected) in enumerate(
        zip(judged.contracts, judged.verdicts, judged.rejected, strict=True)
    ):
        contract = one.contract
        report = report_of(
            verdict,
            contract,
            report_id=f"{contract.name}-{contract.version}-{origin.id[:16]}-{number}",
            now_us=now_us,
            boundary="training",
            origin=origin.name,
            origin_id=origin.id,
            origin_range=(0, joined.num_rows - 1) if joined.num_rows else None,
            event_window=event_window(joined, timestamp_column),
            quarantined=0 if stopped else len(rejected),
            affected=reach.of_verdict(verdict, contract),
        )
        violations.record(report)
    if stopped:
        raise ContractBroken(f"training set {name!r} was not built", stopped[0], stopped[0].stops)


def _set_aside(judged: JudgedSet, origin: Origin, joined: pa.Table, folder: Path, now_us: int) -> None:
    """Keeps the rows that are taken out, each once for every source whose contract does, with all of its reasons."""
    found: dict[str, dict[int, tuple[str, ...]]] = {}
    contracts = {one.contract.source: one.contract for one in judged.contracts}
    for one, rejected in zip(judged.contracts, judged.rejected, strict=True):
        rows = found.setdefault(one.contract.source, {})
        for row, ids in rejected.items():
            rows[row] = tuple(dict.fromkeys((*rows.get(row, ()), *ids)))
    for source, rows in found.items():
        if rows:
            sink = QuarantineSink(
                folder, source=source, contract=contracts[source].name, version=contracts[source].version
            )
            sink.store(origin, 0, joined.num_rows - 1, list(rejected_rows(joined, rows, now_us)))


def differing(before: Sequence[Verdict], now: Sequence[Verdict]) -> list[str]:
    """What two judgements of the same set differ in, a line for each rule."""
    then, found = _by_rule(before), _by_rule(now)
    versions = {
        verdict.contract: f"{verdict.version} then, {later.version} now"
        for verdict in before
        for later in now
        if later.contract == verdict.contract and later.version != verdict.version
    }
    lines = []
    for key in sorted(then.keys() | found.keys()):
        old, new = _told(then.get(key)), _told(found.get(key))
        if old != new:
            changed = f" ({versions[key[0]]})" if key[0] in versions else ""
            lines.append(f"contract {key[0]}{changed}, rule {key[2]}: {old} then, {new} now")
    return lines


def _by_rule(verdicts: Sequence[Verdict]) -> dict[tuple[str, int, str], RuleVerdict]:
    """By contract, which of its verdicts (a source may reach a set through several views), and rule."""
    names = [verdict.contract for verdict in verdicts]
    return {
        (verdict.contract, names[:place].count(verdict.contract), rule.rule_id): rule
        for place, verdict in enumerate(verdicts)
        for rule in verdict.rules
    }


def _told(rule: RuleVerdict | None) -> str:
    if rule is None:
        return "not judged"
    counts = "" if rule.unexpected is None else f", {rule.unexpected} of {rule.evaluated} rows"
    observed = rule.observed
    if isinstance(observed, float):
        observed = float(f"{observed:.{_DIGITS}g}")
    return f"{rule.outcome}{counts}" + ("" if observed is None else f", observed {observed}")
