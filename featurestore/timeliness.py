"""Does each source keep its promises of time and volume, as of now, and what became of the question?

Kept, broken promises, no data and a check that broke are four outcomes: a stream that stopped is not one that sends
nonsense, and a missing file is neither.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from featurestore.offline.connection import Limits
from featurestore.offline.event_log import event_files
from featurestore.offline.sources import place_at, scan_parquet
from featurestore.offline.stored import scan_of
from featurestore.offline.timely import facts_of_source
from featurestore.plan import Plan, View
from featurestore.promises_kept import Looked, keep
from validation.contract import Boundary, Contract
from validation.errors import PlatformError
from validation.interrupts import interrupted
from validation.reach import Reach
from validation.report import ViolationReport, report_of
from validation.sla import Facts, judge_sla, rule_of
from validation.verdict import Verdict, broken
from validation.violations import ViolationStore


class Timeliness(msgspec.Struct, frozen=True, kw_only=True):
    """One source as of now."""

    contract: Contract
    verdict: Verdict
    facts: Facts
    report: ViolationReport

    def looked(self, now_us: int) -> Looked:
        """What is kept of it, for metrics."""
        return Looked(
            source=self.contract.source,
            outcomes={rule.rule_id: rule.outcome for rule in self.verdict.rules},
            newest_us=self.facts.newest_us,
            looked_us=now_us,
        )


def look_and_tell(
    plan: Plan,
    sources: Sequence[str],
    *,
    repo: Path,
    now_us: int,
    limits: Limits,
    violations: ViolationStore,
    promises: Path,
) -> list[Timeliness]:
    """The same as `look`; what fails becomes a violation, and everything is kept in `promises` for metrics."""
    found = look(plan, sources, repo=repo, now_us=now_us, limits=limits)
    for one in found:
        violations.record(one.report)
    promising = [contract.source for contract in plan.contracts.values() if contract.sla]
    keep(promises, [one.looked(now_us) for one in found], promising=promising)
    return found


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
    except PlatformError as error:
        if interrupted():
            raise
        # Whatever is wrong with one source, the others are looked at.
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
    if not event_files(place_at(view.source.path, repo)):
        return Facts()  # a topic that nothing came through is no data, not a file that is missing
    scan = scan_parquet(view.source.path, repo=repo, name=f"event log of {contract.source!r}")
    return facts_of_source(scan, contract, now_us=now_us, limits=limits)
