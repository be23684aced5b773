"""How are rows in quarantine replayed or given up from the command line?

As in `validation.commands`, every command imports what it runs inside its own body.
"""

from pathlib import Path
from typing import Annotated

import typer

from validation.folders import CONTRACTS, QUARANTINE, REPLAYS, here

Source = Annotated[str, typer.Argument(help="The source.")]
Quarantine = Annotated[Path, typer.Option("--folder", help="The folder of the quarantine.")]
Rule = Annotated[str | None, typer.Option("--rule", help="Only rows that broke this rule.")]


def replay_command(
    source: Source,
    *,
    folder: Quarantine = QUARANTINE,
    contract: Annotated[
        Path | None,
        typer.Option("--contract", help="A contract file: the version to judge by; default: that in force."),
    ] = None,
    contracts: Annotated[Path, typer.Option("--contracts", help="The folder of the contracts.")] = CONTRACTS,
    output: Annotated[Path, typer.Option("--output", help="Folder of the accepted rows (Parquet).")] = REPLAYS,
    rule: Rule = None,
    event_id: Annotated[
        str,
        typer.Option("--event-id", help="Column that identifies an event: where it is missing, the origin is the id."),
    ] = "event_id",
) -> None:
    """Judge the open rows of a source again and write those that are accepted; the rest stays, with the new reason.

    A row is accepted once, however often this runs. Exit code 1 where rows are rejected again.
    """
    import time

    from validation.contract import load_contract, load_contracts
    from validation.errors import ContractError, did_you_mean
    from validation.replay import KEY, REPLAYED, counts, replay

    if contract is not None:
        meant = load_contract(contract)
    else:
        known = load_contracts(here(contracts))
        if source not in known:
            raise ContractError(f"{here(contracts)}: no contract of source {source!r}; {did_you_mean(source, known)}")
        meant = known[source]
    if meant.source != source:
        raise ContractError(f"{contract}: is the contract of source {meant.source!r}, not of {source!r}")
    named = event_id if event_id in meant.types else None
    where, now_us = here(folder), time.time_ns() // 1000
    run = replay(where, meant, here(output), now_us=now_us, rule=rule, event_id=named)
    typer.echo(
        f"{source}: contract {meant.name} {meant.version}: {run.judged} rows judged, {run.accepted} accepted, "
        f"{run.rejected} rejected again; {counts(where, source)['open']} open"
    )
    for path in run.outputs:
        typer.echo(str(path))
        if path.name.endswith(".events.parquet"):
            typer.echo(f"  featurestore stream produce {path} --topic {run.topic} --timestamp {REPLAYED} --key {KEY}")
    if run.rejected:
        raise typer.Exit(1)


def discard_command(
    source: Source,
    *,
    reason: Annotated[str, typer.Option("--reason", help="Why they are given up.")],
    folder: Quarantine = QUARANTINE,
    rule: Rule = None,
) -> None:
    """Give up the open rows of a source, for a reason that is kept. The rows stay in the quarantine's files."""
    import time

    from validation.replay import counts, discard

    where = here(folder)
    run = discard(where, source, reason=reason, now_us=time.time_ns() // 1000, rule=rule)
    typer.echo(f"{source}: {run.discarded} rows discarded; {counts(where, source)['open']} open")
