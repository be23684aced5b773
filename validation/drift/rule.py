"""Is a contract's rule about drift kept? One family of tests a rule, with the thresholds that the contract states."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa

from validation.check import Drift
from validation.contract import Rule
from validation.drift.compare import FAMILY_RATE, compare_tables
from validation.drift.judge import Minimums
from validation.drift.rows import rows_of
from validation.errors import PlatformError
from validation.verdict import RuleVerdict, broken, stated

TOLD: Final = 5
"""So many drifting features are told in a verdict."""


def judge_drift(rule: Rule, check: Drift, table: pa.Table) -> RuleVerdict:
    """The verdict on a batch. A reference that cannot be read, or has other columns, is a check that broke."""
    try:
        told = drift_of(
            table,
            columns=check.columns,
            reference=check.reference,
            segments=check.segments,
            entities=check.entities,
            time_column=check.time_column,
            block_hours=check.block_hours,
            family_rate=check.family_rate,
            seed=check.seed,
            **dict(check.minimums),
        )
    except PlatformError as error:
        return broken(rule, str(error))
    return stated(rule, success=not told["drifted"], observed=told, rows=table.num_rows)


def drift_of(
    table: pa.Table,
    *,
    columns: Sequence[str],
    reference: str,
    segments: Sequence[str] = (),
    entities: Sequence[str] = (),
    time_column: str | None = None,
    block_hours: float | None = None,
    family_rate: float = FAMILY_RATE,
    seed: int = 0,
    **minimums: float,
) -> dict[str, Any]:
    """What a verdict tells: whether anything drifted, the strongest drifts, and the rate of false alarms."""
    known = rows_of(Path(reference))
    read = list(dict.fromkeys([*columns, *segments, *entities, *filter(None, [time_column])]))
    absent = [name for name in read if name not in known.table.column_names]
    # The reference is read as a whole before it is narrowed, so that a column it lacks is told by name.
    kept = known.table.select([name for name in read if name not in absent])
    report = compare_tables(
        kept,
        table,
        seed=seed,
        features=list(columns),
        segments=list(segments),
        entities=list(entities),
        time_column=time_column,
        block_hours=block_hours,
        family_rate=family_rate,
        minimums=Minimums(**minimums),
        names=(known.name, "batch"),
    )
    told = [
        {
            "feature": finding.feature,
            "segment": finding.segment,
            "effect": finding.effect,
            "size": next((one.effect for one in finding.measures if one.name == finding.effect), 0.0),
            "q": finding.q,
        }
        for finding in report.alarms[:TOLD]
    ]
    calibration = report.calibration
    return {
        "drifted": report.drifted,
        "alarms": len(report.alarms),
        "tests": report.tests,
        "strongest": told,
        "false_alarm_rate": None if calibration is None else calibration.rate,
        "calibration": None if calibration is None else msgspec.to_builtins(calibration),
    }
