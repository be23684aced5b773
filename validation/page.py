"""How does a person read a violation report? One HTML page that needs no other file and no address."""

from collections.abc import Sequence
from html import escape
from typing import Any, Final

from validation.report import Violation, ViolationReport
from validation.verdict import Sample
from validation.violations import Folded

_STYLE: Final = """
:root{color-scheme:light dark;--line:#8885;--soft:#8882;--critical:#c62828;--warning:#b26a00;--info:#1565c0}
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin:0}
table{border-collapse:collapse;width:100%;font-size:.9rem;display:block;overflow-x:auto}
th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
section{border:1px solid var(--line);border-left:.4rem solid var(--info);padding:.8rem 1rem;margin:1rem 0}
section.critical{border-left-color:var(--critical)}section.warning{border-left-color:var(--warning)}
code,pre{font:.85rem ui-monospace,monospace;background:var(--soft);padding:.1rem .3rem;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem}dt{font-weight:600}dd{margin:0}
"""


def page(report: ViolationReport) -> bytes:
    """The report as UTF-8 HTML; of a masked column it shows what the report does: the mask.

    >>> from validation.testing import SMALL, small_report
    >>> b"<h2>positive" in page(small_report(SMALL)[1])
    True
    """
    body = "".join(_section(violation) for violation in report.violations) or "<p>Every rule holds.</p>"
    if report.outcome == "no data":
        body = "<p>There is no data.</p>" + ("" if not report.violations else body)
    facts: list[tuple[str, object]] = [
        ("Rows judged", _range(report.rows, report.origin_range)),
        ("Quarantined", report.quarantined),
        ("Report", f"{report.report_id}, {report.created}"),
    ]
    return _document(f"{report.source}: {report.outcome}", _facts(report) + facts, body)


def violation_page(one: Folded) -> bytes:
    """A violation with all its repetitions as UTF-8 HTML, masked as it is.

    >>> from validation.testing import SMALL, small_report
    >>> from validation.violations import fold
    >>> report = small_report(SMALL)[1]
    >>> b"Seen</dt><dd>1 time" in violation_page(fold("id", None, report, report.violations[0], 1))
    True
    """
    facts: list[tuple[str, object]] = [
        ("Latest rows", "" if one.origin_range is None else f"{one.origin_range[0]} to {one.origin_range[1]}"),
        ("Seen", f"{one.count} time{'' if one.count == 1 else 's'}, from {one.first_seen} to {one.last_seen}"),
        ("Rows that broke it", f"{one.rows} of {one.evaluated}"),
        ("Report", f"{one.id}, latest {one.report_id}"),
    ]
    return _document(f"{one.source}: {one.rule_id}", _facts(one) + facts, _section(one))


def _facts(told: ViolationReport | Folded) -> list[tuple[str, object]]:
    partition = "" if told.origin_partition is None else f", partition {told.origin_partition}"
    return [
        ("Contract", f"{told.contract} {told.version}".strip()),
        ("Boundary", told.boundary.replace("_", " ")),
        ("Producer", told.producer),
        ("Owner", told.owner),
        ("Support", told.support),
        ("Origin", told.origin + partition + (f" ({told.origin_id})" if told.origin_id else "")),
        ("Event time", " to ".join(told.event_window) if told.event_window else ""),
        ("Affected", ", ".join(told.affected)),
        ("Action taken", told.action),
        ("Replay", told.replay),
    ]


def _document(title: str, facts: list[tuple[str, object]], body: str) -> bytes:
    shown = "".join(f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in facts if value not in {"", None})
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main><h1>{escape(title)}</h1>"
        f"<dl>{shown}</dl>{body}</main></body></html>\n"
    )
    return text.encode("utf-8", "replace")


def _range(rows: int, found: tuple[int, int] | None) -> str:
    return str(rows) if found is None else f"{rows} ({found[0]} to {found[1]})"


def _section(violation: Violation | Folded) -> str:
    counts = ""
    if isinstance(violation, Violation) and violation.failed is not None:
        share = "" if violation.percent is None else f" ({violation.percent:.4g} %)"
        counts = f"<p>{violation.failed} of {violation.evaluated} rows{share}{_allowed(violation.allowed)}</p>"
    elif isinstance(violation, Folded) and violation.allowed is not None:
        counts = f"<p>{violation.rows} of {violation.evaluated} rows{_allowed(violation.allowed, ' in the latest')}</p>"
    elif violation.observed is not None:
        counts = f"<p>observed <code>{_value(violation.observed)}</code></p>"
    reason = f"<p>The check broke: {escape(violation.reason)}</p>" if violation.outcome == "broken" else ""
    if violation.outcome == "no data":
        reason = "<p>There is no data.</p>"
    expected = ", ".join(f"{name}: {value}" for name, value in violation.expected.items())
    return (
        f'<section class="{violation.severity}"><h2>{escape(violation.rule_id)}</h2>'
        f"<p>{escape(violation.description)}</p>"
        f"<p>{violation.severity}, {violation.mode}, {escape(violation.dimension)}</p>{counts}{reason}"
        f"<p>expected <code>{escape(violation.expectation)} {_value(expected)}</code></p>"
        f"{_samples(violation.samples)}</section>"
    )


def _allowed(allowed: int | None, where: str = "") -> str:
    return "" if allowed is None else f", {allowed} allowed{where}"


def _samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    names = list(dict.fromkeys(name for sample in samples for name in sample.values))
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ["row", *names])
    rows = "".join(
        f"<tr><td>{sample.row}</td>"
        + "".join(f"<td><code>{_value(sample.values.get(name))}</code></td>" for name in names)
        + "</tr>"
        for sample in samples
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _value(value: Any) -> str:
    return "<i>missing</i>" if value is None else escape(str(value))
