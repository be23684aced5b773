"""How does a person read a drift report? One HTML page that needs no other file and no address.

Charts are SVG written here: a page with the browser code of a chart library inside would be a thousand times as large.
"""

from collections.abc import Sequence
from html import escape
from typing import Final

from validation.drift.compare import Bar, DriftReport, Finding
from validation.drift.multivariate import RowTest

SHOWN: Final = 60
"""Charts of so many findings; the table has them all."""
_STYLE: Final = """
:root{color-scheme:light dark;--line:#8885;--soft:#8882;--drift:#c62828;--small:#b26a00;--ref:#7a8794;--cur:#1565c0}
body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin:0}
table{border-collapse:collapse;width:100%;font-size:.9rem;display:block;overflow-x:auto}
th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}
section{border:1px solid var(--line);border-left:.4rem solid var(--line);padding:.8rem 1rem;margin:1rem 0}
section.drift{border-left-color:var(--drift)}section.small{border-left-color:var(--small)}
.drift b{color:var(--drift)}
svg{width:100%;height:auto;max-width:44rem}
.ref{fill:var(--ref)}.cur{fill:var(--cur)}svg text{font:9px system-ui,sans-serif;fill:currentColor}
"""


def page(report: DriftReport, rows: Sequence[RowTest] = ()) -> bytes:
    """The report as UTF-8 HTML."""
    drifted = report.drifted or any(one.drifted for one in rows)
    title = escape(f"{'Drift' if drifted else 'No drift'}: {report.current} against {report.reference}")
    table = "".join(_row(finding) for finding in report.findings)
    sections = "".join(_section(finding) for finding in report.findings[:SHOWN] if finding.bars)
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main><h1>{title}</h1>"
        f"<p>{escape(calibration_line(report))}</p>{_notes(report)}{_rows(rows)}"
        "<table><thead><tr>"
        + "".join(
            f'<th scope="col">{name}</th>'
            for name in ("feature", "segment", "verdict", "effect", "size", "noise", "q", "rows", "missing")
        )
        + f"</tr></thead><tbody>{table}</tbody></table>{sections}</main></body></html>\n"
    )
    return text.encode("utf-8", "replace")


def calibration_line(report: DriftReport) -> str:
    """How far an alarm can be believed, in one sentence."""
    found = report.calibration
    if found is None:
        return "Nothing could be compared."
    taken = "rows of one entity taken together" if report.entities else "rows taken as independent"
    kind = (
        taken
        if report.block_hours is None
        else f"blocks of {report.block_hours:g} h ({report.blocks_reference} against {report.blocks_current})"
    )
    return (
        f"{report.tests} tests, {kind}. Of {found.families} families without drift at this window size "
        f"{found.rate:.1%} alarmed (95 % limits {found.rate_low:.1%} to {found.rate_high:.1%}; asked: at most "
        f"{found.asked:.1%}; uncalibrated {found.uncalibrated:.1%}); alarms need q at most {found.threshold:.3g} "
        f"and an effect of its minimum. Seed {report.seed}."
    )


def _notes(report: DriftReport) -> str:
    left_out = [f"Left out: {', '.join(report.left_out)}."] if report.left_out else []
    return "".join(f"<p>{escape(text)}</p>" for text in (*(f"Warning: {one}." for one in report.warnings), *left_out))


def few(finding: Finding) -> bool:
    """Whether the current rows tell less than as many rows of entities of their own."""
    return 0 < finding.counted_current < 0.95 * finding.rows_current


def _row(finding: Finding) -> str:
    told = {one.name: one for one in finding.measures}
    best = told.get(finding.effect)
    missing = told.get("missing")
    cells = (
        f"{best.effect:.3g}" if best else "",
        f"{best.noise:.3g}" if best and best.noise is not None else "",
        f"{finding.q:.3g}",
        f"{finding.rows_reference:,} / {finding.rows_current:,}"
        + (f" (count as {finding.counted_current:,.0f})" if few(finding) else ""),
        f"{missing.effect:+.2%}" if missing else "",
    )
    kind = "drift" if finding.verdict == "drift" else ""
    return (
        f'<tr class="{kind}"><td>{escape(finding.feature)}</td><td>{escape(finding.segment)}</td>'
        f"<td><b>{finding.verdict}</b></td><td>{escape(finding.effect)}</td>"
        + "".join(f'<td class="n">{escape(cell)}</td>' for cell in cells)
        + "</tr>"
    )


def _rows(rows: Sequence[RowTest]) -> str:
    if not rows:
        return ""
    body = "".join(
        f'<tr class="{"drift" if one.drifted else ""}"><td>{escape(one.name)}</td>'
        f"<td><b>{'drift' if one.drifted else 'none'}</b></td>"
        f'<td class="n">{one.effect:.3g}</td><td class="n">{one.q:.3g}</td><td>{escape(one.detail)}</td></tr>'
        for one in rows
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("whole rows", "verdict", "effect", "q", ""))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _section(finding: Finding) -> str:
    kind = {"drift": "drift", "too small": "small"}.get(finding.verdict, "")
    name = f"{finding.feature}, {finding.segment}" if finding.segment else finding.feature
    means = ""
    if finding.mean_reference is not None and finding.mean_current is not None:
        means = f" Mean {finding.mean_reference:.4g}, now {finding.mean_current:.4g}."
    new = f" New: {', '.join(finding.new)}." if finding.new else ""
    measures = "; ".join(f"{one.name} {one.effect:.3g} (p {one.p:.2g})" for one in finding.measures)
    return (
        f'<section class="{kind}"><h2>{escape(name)}: {finding.verdict}</h2>'
        f"<p>{escape(measures)}.{escape(means)}{escape(new)}</p>{chart(finding.bars)}</section>"
    )


def chart(bars: Sequence[Bar]) -> str:
    """Shares of both sides, bar beside bar, as SVG."""
    if not bars:
        return ""
    width, height, base = 640, 120, 100
    step = width / len(bars)
    top = max(max(bar.reference, bar.current) for bar in bars) or 1.0
    drawn = []
    for place, bar in enumerate(bars):
        for kind, share, offset in (("ref", bar.reference, 0.08), ("cur", bar.current, 0.5)):
            tall = share / top * (base - 6)
            told = f"{bar.label}: {share:.2%} {'reference' if kind == 'ref' else 'current'}"
            drawn.append(
                f'<rect class="{kind}" x="{(place + offset) * step:.1f}" y="{base - tall:.1f}" '
                f'width="{0.42 * step:.1f}" height="{tall:.1f}"><title>{escape(told)}</title></rect>'
            )
        if len(bars) <= 12 or place % 4 == 0:
            label = escape(bar.label[:14])
            drawn.append(f'<text x="{(place + 0.1) * step:.1f}" y="{height - 8}">{label}</text>')
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Shares of reference (grey) and current (blue)">'
        f"{''.join(drawn)}</svg>"
    )
