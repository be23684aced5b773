"""How are rows in quarantine replayed from the command line?

Rows of files become a file; events go to `<topic>.replay`, from where a running stream takes them.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featurestore.cli.settings import HERE, Repo, settings_of
from streaming.options import Registry
from validation.folders import CONTRACTS, QUARANTINE, REPLAYS, here, place_here
from validation.quarantine_commands import Quarantine, Rule, Source

if TYPE_CHECKING:
    from streaming.redelivery import Redelivery
    from validation.contract import Contract


def replay_command(
    source: Source,
    *,
    repo: Repo = HERE,
    folder: Quarantine = QUARANTINE,
    contract: Annotated[
        Path | None,
        typer.Option("--contract", help="A contract file: the version to judge by; default: that in force."),
    ] = None,
    contracts: Annotated[Path, typer.Option("--contracts", help="The folder of the contracts.")] = CONTRACTS,
    output: Annotated[Path, typer.Option("--output", help="Folder of the accepted rows of files (Parquet).")] = REPLAYS,
    rule: Rule = None,
    schema_registry: Registry = None,
) -> None:
    """Judge the open rows of a source again and pass on those that are accepted; the rest stays, with the new reason.

    Rows of files become a Parquet file, events go to their topic's replay topic, which `stream run` reads like the
    topic itself. A row is accepted once, however often this runs. Exit code 1 where rows are rejected again.
    """
    import time

    from validation.contract import load_contract, load_contracts
    from validation.errors import ContractError, did_you_mean
    from validation.replay import counts, of_events, replay

    if contract is not None:
        meant = load_contract(contract)
    else:
        known = load_contracts(here(contracts))
        if source not in known:
            raise ContractError(f"{here(contracts)}: no contract of source {source!r}; {did_you_mean(source, known)}")
        meant = known[source]
    if meant.source != source:
        raise ContractError(f"{contract}: is the contract of source {meant.source!r}, not of {source!r}")
    where = place_here(folder, os.environ)
    events = _redelivery(repo, meant, schema_registry) if of_events(where, source) else None
    run = replay(where, meant, here(output), now_us=time.time_ns() // 1000, rule=rule, events=events)
    typer.echo(
        f"{source}: contract {meant.name} {meant.version}: {run.judged} rows judged, {run.accepted} accepted, "
        f"{run.rejected} rejected again; {counts(where, source)['open']} open"
    )
    for path in run.outputs:
        typer.echo(str(path))
    for topic in run.topics:
        typer.echo(f"{topic}: `featurestore stream run` takes them from there")
    if run.rejected:
        raise typer.Exit(1)


def _redelivery(repo: Path, contract: "Contract", schema_registry: str | None) -> "Redelivery":
    from featurestore.errors import UnknownName
    from featurestore.plan_store import load_plan_file
    from streaming.cluster import outbox_of
    from streaming.event_columns import by_topic
    from streaming.in_force import contracts_by_topic
    from streaming.redelivery import Redelivery
    from streaming.schema_registry import registry_of

    settings = settings_of(repo)
    plan = load_plan_file(settings.plan_path)
    topics = by_topic(plan.views.values())
    about = {found.source: topic for topic, found in contracts_by_topic(plan, topics).items()}
    topic = about.get(contract.source, contract.source)
    if topic not in topics:
        raise UnknownName("topic of a stream view that a contract is about", contract.source, about)
    views = topics[topic]
    return Redelivery(
        topic,
        views,
        outbox_of(settings, views),
        registry=lambda: registry_of(schema_registry, settings.schemas),
    )
