"""How does a code host show violations beside the producer's file? SARIF 2.1.0, a result per broken rule."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec

from validation.lines import lines_of_rows
from validation.report import Violation, ViolationReport

_LEVEL: Final[Mapping[str, str]] = {"critical": "error", "warning": "warning", "info": "note"}


def sarif(report: ViolationReport, *, uri: str, lines: Mapping[int, int] | None = None) -> bytes:
    """The report as SARIF; `lines` says on which line (from 1) of the file a row (from 0) stands, where it has lines.

    >>> from validation.testing import SMALL, small_report
    >>> found = msgspec.json.decode(sarif(small_report(SMALL)[1], uri="orders.jsonl", lines={1: 2}))
    >>> found["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["region"]
    {'startLine': 2}
    """
    rules = [
        {
            "id": violation.rule_id,
            "shortDescription": {"text": violation.description or violation.expectation},
            "defaultConfiguration": {"level": _LEVEL[violation.severity]},
            "properties": {"expectation": violation.expectation, "dimension": violation.dimension},
        }
        for violation in report.violations
    ]
    run = {
        "tool": {"driver": {"name": "featurestore contract test", "rules": rules}},
        "results": [
            _result(number, violation, quote(uri), lines or {}) for number, violation in enumerate(report.violations)
        ],
        "properties": {"contract": report.contract, "version": report.version, "reportId": report.report_id},
    }
    log = {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}
    return msgspec.json.format(msgspec.json.encode(log), indent=2)


def _result(number: int, violation: Violation, uri: str, lines: Mapping[int, int]) -> dict[str, Any]:
    message = f"{violation.rule_id}: the check broke: {violation.reason}"
    if violation.outcome == "failed":
        message = f"{violation.rule_id}: observed {violation.observed!r}"
        if violation.failed is not None:
            rows = ", ".join(str(sample.row) for sample in violation.samples)
            message = f"{violation.rule_id}: {violation.failed} of {violation.evaluated} rows, e.g. rows {rows}"
    places: list[dict[str, Any]] = [
        {"artifactLocation": {"uri": uri}, "region": {"startLine": lines[sample.row]}}
        for sample in violation.samples
        if sample.row in lines
    ] or [{"artifactLocation": {"uri": uri}}]
    return {
        "ruleId": violation.rule_id,
        "ruleIndex": number,
        "level": _LEVEL[violation.severity],
        "message": {"text": message},
        "locations": [{"physicalLocation": place} for place in places],
    }


def lines_of(file: Path, rows: Collection[int]) -> dict[int, int]:
    """The line (from 1) on which each of these rows (from 0) of a text file begins; empty for Parquet."""
    lines = lines_of_rows(file)
    return {row: lines[row] for row in rows if row < len(lines)}
