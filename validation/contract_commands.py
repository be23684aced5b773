"""How are contracts begun, changed and looked over from the command line?

As in `validation.commands`, every command imports what it runs inside its own body.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from validation.folders import CONTRACTS, VIOLATIONS, here, place_here

Plan = Annotated[Path | None, typer.Option("--plan", help="A plan file: name views and services affected.")]


def init_command(
    file: Annotated[
        Path, typer.Argument(help="A file of rows (.parquet, .csv, .jsonl), or a table: a folder of Parquet.")
    ],
    *,
    source: Annotated[str | None, typer.Option("--source", help="The source; default: the file's name.")] = None,
    owner: Annotated[str, typer.Option("--owner", help="The team that keeps the promise.")] = "",
    output: Annotated[
        Path | None, typer.Option("--output", help="Write here; default: print. Never overwrites.")
    ] = None,
) -> None:
    """Infer a first contract from a file: types, missing values, enumerations, bounds, keys. Every rule observes."""
    import time

    from validation.errors import ContractError
    from validation.inference import infer, mixture, read_sample, write

    name = source or file.name.split(".")[0]
    sample = read_sample(file)
    text = write(infer(sample, source=name, owner=owner), now_us=time.time_ns() // 1000)
    for column in sample.column_names:
        if told := mixture(sample.column(column)):
            typer.echo(f"column {column!r}: {told}", err=True)
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        with output.open("x", encoding="utf-8") as written:
            written.write(text)
    except FileExistsError as error:
        raise ContractError(f"{output}: exists already; remove it, or choose another --output") from error
    typer.echo(f"{output}: written; next: featurestore contract lint {output}")


def diff_command(
    old: Annotated[Path, typer.Argument(help="The contract file in force.")],
    new: Annotated[Path, typer.Argument(help="The contract file that is to replace it.")],
    *,
    source: Annotated[
        str | None, typer.Option("--source", help="The schema object that is meant, of files with several.")
    ] = None,
    plan: Plan = None,
    waivers: Annotated[
        Path | None, typer.Option("--waivers", help="A file of waivers: who agreed, until when.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell what a new version changes, for whom it breaks, and which version it asks for.

    Exit code 1 where a change breaks someone and no waiver in force names it, or the version does not announce it.
    """
    import datetime as dt

    import msgspec

    from validation.change import announced, changes, level_of, next_version
    from validation.contract import load_contract
    from validation.reach import load_reach
    from validation.waiver import apply_waivers, load_waivers

    before, after = load_contract(old, source), load_contract(new, source)
    found = changes(before, after)
    level, reach = level_of(found), load_reach(plan) if plan is not None else None
    known = load_waivers(waivers) if waivers is not None else ()
    judged = apply_waivers(found, known, today=dt.datetime.now(dt.UTC).date())
    waived = {change.id: waiver for change, waiver in judged.waived}
    hurt = {
        change.id: reach.of(before.source, change.columns or None) if reach is not None and change.breaks else ()
        for change in found
    }
    advice, fits = next_version(before.version, level), announced(before.version, after.version, level)
    if as_json:
        told = {
            "level": level,
            "next_version": advice,
            "announced": fits,
            "remarks": judged.remarks,
            "changes": [
                {
                    **msgspec.to_builtins(change),
                    "level": change.level,
                    "affected": hurt[change.id],
                    "waived_by": waived[change.id].owner if change.id in waived else None,
                }
                for change in found
            ],
        }
        typer.echo(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())
    else:
        for change in found:
            word = f"breaks {' and '.join(change.breaks)}" if change.breaks else change.level
            agreed = waived.get(change.id)
            by = f"; waived by {agreed.owner} until {agreed.expires}: {agreed.reason}" if agreed else ""
            typer.echo(f"{word}: {change.message} [{change.id}]{by}")
            if hurt[change.id]:
                typer.echo(f"  affects {', '.join(hurt[change.id])}")
        for remark in judged.remarks:
            typer.echo(remark)
        step = f"{before.version} -> {after.version}"
        advised = "" if fits else f", but the changes ask for {advice}"
        typer.echo(
            f"{before.source}: {len(found)} changes, {len(judged.unwaived)} break without waiver; {step}{advised}"
        )
    if judged.unwaived or not fits:
        raise typer.Exit(1)


def status_command(
    *,
    contracts: Annotated[Path, typer.Option("--contracts", help="The folder of the contracts.")] = CONTRACTS,
    plan: Plan = None,
) -> None:
    """Show at which boundaries each contract is kept, and how many rules observe, warn, quarantine or block there."""
    from rich.table import Table

    from validation.contract import BOUNDARIES, load_contracts
    from validation.reach import load_reach
    from validation.status import KEPT_BY, status
    from validation.terminal import Console

    kept = status(load_contracts(here(contracts)), load_reach(plan) if plan is not None else None)
    shown = Table("source", "contract", *(boundary.replace("_", " ") for boundary in BOUNDARIES))
    for first in range(0, len(kept), len(BOUNDARIES)):
        row = kept[first : first + len(BOUNDARIES)]
        cells = [
            ", ".join(f"{count} {mode}" for mode, count in one.modes.items()) or "no rules" if one.applies else "-"
            for one in row
        ]
        shown.add_row(row[0].source, f"{row[0].contract} {row[0].version}", *cells)
    Console(width=None if Console().is_terminal else 200).print(shown)
    for boundary, keeper in KEPT_BY.items():
        typer.echo(f"{boundary.replace('_', ' ')}: {keeper}")


def violations_command(
    *,
    folder: Annotated[
        Path, typer.Option("--folder", help="The folder of the violations, or its address (s3://…).")
    ] = VIOLATIONS,
    producer: Annotated[str | None, typer.Option("--producer", help="Only those of this owner's contracts.")] = None,
    contract: Annotated[str | None, typer.Option("--contract", help="Only those of the contract of this name.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="Only those seen since this instant (ISO 8601).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """List violations, each once with its count, the latest first."""
    import msgspec
    from rich.table import Table

    from validation.errors import ContractError
    from validation.instant import iso, to_us
    from validation.terminal import Console
    from validation.violations import ViolationStore

    instant: str | None = None
    if since is not None:
        try:
            since_us = to_us(since)
        except ValueError as error:
            raise ContractError(
                f"--since {since!r} is no instant; expected ISO 8601, e.g. 2026-01-31T12:00Z"
            ) from error
        instant = None if since_us is None else iso(since_us)
    where = place_here(folder, os.environ)
    found = ViolationStore(where).find(producer=producer, contract=contract, since=instant)
    if as_json:
        for one in found:
            typer.echo(msgspec.json.encode(one).decode())
        return
    if not found:
        typer.echo(f"{where}: no violations")
        return
    shown = Table("severity", "source", "rule", "boundary", "outcome", "count", "rows", "first seen", "last seen")
    for one in found:
        names = (one.severity, one.source, one.rule_id, one.boundary, one.outcome)
        shown.add_row(*names, str(one.count), str(one.rows), one.first_seen, one.last_seen)
    Console(width=None if Console().is_terminal else 200).print(shown)
