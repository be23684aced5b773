"""Does each source keep its promises of time and volume, as of now, and what became of the question?

Kept, broken promises, no data and a check that broke are four outcomes: a stream that stopped is not one that sends
nonsense, and a missing file is neither.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from featurestore.errors import SourceError
from featurestore.offline.connection import Limits
from featurestore.offline.event_log import event_files
from featurestore.offline.sources import local_path, scan_parquet
from featurestore.offline.stored import scan_of
from featurestore.offline.timely import facts_of_source
from featurestore.plan import Plan, View
from validation.contract import Boundary, Contract
from validation.reach import Reach
from validation.report import ViolationReport, report_of
from validation.sla import Facts, judge_sla, rule_of
from validation.verdict import Outcome, Verdict, broken

OUTCOMES: Final[tuple[Outcome, ...]] = ("passed", "failed", "no data", "broken")


class Timeliness(msgspec.Struct, frozen=True, kw_only=True):
    """One source as of now."""

    contract: Contract
    verdict: Verdict
    facts: Facts
    report: ViolationReport


def look(plan: Plan, sources: Sequence[str], *, repo: Path, now_us: int, limits: Limits) -> list[Timeliness]:
    """The sources of a plan whose contracts promise time or volume (of these, where some are named), by name."""
    views = {view.source.name: view for view in plan.views.values()}
    topics = {view.source.topic.name: view for view in plan.views.values() if view.source.topic is not None}
    reach = msgspec.json.decode(plan.encode(), type=Reach)
    found = []
    for contract in sorted(plan.contracts.values(), key=lambda each: each.source):
        view = views.get(contract.source) or topics.get(contract.source)
        if not contract.sla or view is None or (sources and contract.source not in sources):
            continue
        found.append(_look(contract, view, reach, repo, now_us, limits))
    return found


def _look(contract: Contract, view: View, reach: Reach, repo: Path, now_us: int, limits: Limits) -> Timeliness:
    facts = Facts()
    try:
        facts = _facts(contract, view, repo, now_us, limits)
        rules = judge_sla(contract, facts, now_us=now_us)
    except SourceError as error:
        rules = tuple(broken(rule_of(promise), str(error)) for promise in contract.sla)
    verdict = Verdict(
        contract=contract.name, version=contract.version, source=contract.source, rows=facts.rows, rules=rules
    )
    boundary: Boundary = "event" if view.source.topic is not None else "source"
    report = report_of(
        verdict,
        contract,
        report_id=f"{contract.name}-timeliness-{now_us}",
        now_us=now_us,
        boundary=boundary,
        origin="as of now",
        affected=reach.of(view.source.name, None),
        action="none: it is told",
    )
    return Timeliness(contract=contract, verdict=verdict, facts=facts, report=report)


def _facts(contract: Contract, view: View, repo: Path, now_us: int, limits: Limits) -> Facts:
    if view.source.topic is None:
        return facts_of_source(scan_of(view, repo=repo), contract, now_us=now_us, limits=limits)
    if not event_files(local_path(view.source.path, repo)):
        return Facts()  # a topic that nothing came through is no data, not a file that is missing
    scan = scan_parquet(view.source.path, repo=repo, name=f"event log of {contract.source!r}")
    return facts_of_source(scan, contract, now_us=now_us, limits=limits)


def exposition(found: Sequence[Timeliness], *, now_us: int) -> str:
    """Outcomes and ages in Prometheus's text format: of each promise one outcome is 1, the others 0."""
    lines = [
        "# HELP featurestore_promise_outcome What became of a promise of time or volume when it was looked at",
        "# TYPE featurestore_promise_outcome gauge",
    ]
    for one in found:
        for rule in one.verdict.rules:
            for outcome in OUTCOMES:
                labels = _labels({"source": one.contract.source, "promise": rule.rule_id, "outcome": outcome})
                lines.append(f"featurestore_promise_outcome{labels} {int(rule.outcome == outcome)}")
    lines += [
        "# HELP featurestore_source_age_seconds Age of the newest instant of a column: event time, or _arrival",
        "# TYPE featurestore_source_age_seconds gauge",
    ]
    for one in found:
        for column, newest_us in sorted(one.facts.newest_us.items()):
            labels = _labels({"source": one.contract.source, "column": column})
            lines.append(f"featurestore_source_age_seconds{labels} {(now_us - newest_us) / 1e6}")
    return "\n".join(lines) + "\n"


def _labels(values: Mapping[str, str]) -> str:
    escaped = {
        name: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for name, value in values.items()
    }
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}"
