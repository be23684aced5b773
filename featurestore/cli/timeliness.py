"""How are promises of time and volume looked at from the command line?"""

from pathlib import Path
from typing import Annotated

import typer

from featurestore.cli.settings import HERE, Repo, settings_of
from validation.groups import BROKEN_EXIT, NO_DATA_EXIT


def timeliness(
    sources: Annotated[
        list[str] | None, typer.Argument(help="Sources; all with such promises where none is named.")
    ] = None,
    *,
    repo: Repo = HERE,
    metrics: Annotated[
        Path | None, typer.Option("--metrics", help="Write Prometheus metrics to this file, for a textfile collector.")
    ] = None,
) -> None:
    """Judge freshness, latency and volume of sources where they lie, as of now; what fails becomes a violation.

    Exit code 0: the promises are kept; 1: one is not; 2: the call is wrong; 3: a check broke; 4: there is no data.
    """
    from prometheus_client import CollectorRegistry, generate_latest

    from featurestore.clock import system_clock
    from featurestore.errors import UnknownName
    from featurestore.offline.connection import Limits
    from featurestore.plan_store import load_plan_file
    from featurestore.promises_kept import PromiseMetrics
    from featurestore.timeliness import look_and_tell
    from validation.violations import ViolationStore
    from validation.whole_file import replace_file

    settings = settings_of(repo)
    plan = load_plan_file(settings.plan_path)
    promised = {contract.source for contract in plan.contracts.values() if contract.sla}
    for source in sources or []:
        if source not in promised:
            raise UnknownName("source with promises of time or volume", source, promised)
    now_us = system_clock(settings.clock_offset_us)()
    found = look_and_tell(
        plan,
        sources or [],
        repo=settings.repo,
        now_us=now_us,
        limits=Limits(),
        violations=ViolationStore(settings.violations),
        promises=settings.promises,
    )
    for one in found:
        for rule in one.verdict.rules:
            count = f"{rule.unexpected} of {rule.evaluated} rows" if rule.unexpected is not None else ""
            observed = rule.reason or count or ("" if rule.observed is None else f"observed {rule.observed}")
            typer.echo(f"{one.contract.source}: {rule.rule_id}: {rule.outcome}" + (f"; {observed}" if observed else ""))
    if not found:
        typer.echo("no source that is known makes promises of time or volume (slaProperties)")
    if metrics is not None:
        # Whole or not at all: the collector reads whenever it likes.
        registry = CollectorRegistry()
        registry.register(PromiseMetrics(settings.promises))
        replace_file(metrics, generate_latest(registry))
    outcomes = {rule.outcome for one in found for rule in one.verdict.rules}
    for outcome, code in (("broken", BROKEN_EXIT), ("failed", 1), ("no data", NO_DATA_EXIT)):
        if outcome in outcomes:
            raise typer.Exit(code)
