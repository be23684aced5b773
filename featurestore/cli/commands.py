"""Which commands does the feature store itself offer?

Every command imports what it runs inside its own body: `featurestore --help` must not wait for Feast.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from featurestore.cli.keys import app as keys
from featurestore.cli.looks import LOOKS, SETTLES
from featurestore.cli.serve import serve
from featurestore.cli.settings import HERE, Repo, settings_of
from featurestore.cli.timeliness import timeliness
from featurestore.dataset.commands import app as dataset
from featurestore.demo.command import demo
from featurestore.monitor.commands import app as monitor
from validation.groups import contract_app

app = typer.Typer()
app.add_typer(dataset, name="dataset")
app.add_typer(keys, name="keys")
app.add_typer(monitor)
app.command()(serve)
contract_app.command("timeliness")(timeliness)
app.command()(demo)


@app.command()
def apply(repo: Repo = HERE) -> None:
    """Put the repo's definitions in force: registry, plan file, online store."""
    from featurestore.apply import apply as put_in_force
    from featurestore.time_units import told_units
    from validation.terminal import Console

    settings = settings_of(repo)
    settles = [settle() for settle in SETTLES]
    outcome = put_in_force(
        settings, settle=lambda settings, plan: (line for each in settles for line in each(settings, plan))
    )
    console = Console()
    for change in outcome.changes:
        console.print(change.line)
    for line in outcome.settled:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for line in told_units(outcome.plan, settings.repo):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"plan version {outcome.plan.version} in force" + ("" if outcome.changes else " (nothing changed)"))


@app.command()
def plan(repo: Repo = HERE) -> None:
    """Show what apply would change, and what it would break. Exit code 1 where it would break something."""
    from featurestore.apply import preview
    from validation.terminal import Console

    changes = preview(settings_of(repo))
    console = Console()
    for change in changes:
        console.print(change.line)
    if not changes:
        console.print("no changes")
    if any(change.breaks for change in changes):
        raise typer.Exit(1)


@app.command()
def materialize(
    repo: Repo = HERE,
    *,
    views: Annotated[
        list[str] | None, typer.Argument(help="Views to load; all batch views where none is named.")
    ] = None,
    start: Annotated[str | None, typer.Option(help="First instant (ISO 8601); default: all history.")] = None,
    end: Annotated[str | None, typer.Option(help="Last instant (ISO 8601); default: now.")] = None,
    incremental: Annotated[
        bool, typer.Option("--incremental", help="Start each view where its last run ended; late rows come too.")
    ] = False,
) -> None:
    """Load the latest offline values into the online store.

    A view that cannot be loaded is left as it was, and all others are loaded; the last line says which failed and why.
    """
    from featurestore.materialize import materialize as load
    from validation.terminal import Console

    console = Console()
    for line in load(settings_of(repo), views or [], start, end, incremental=incremental):
        console.print(line)


@app.command()
def doctor(repo: Repo = HERE) -> None:
    """Check what is configured, reachable and healthy, and say what to do where it is not.

    The contents of the stores are not looked at: `featurestore verify VIEW --online` does.
    """
    from rich.table import Table

    from featurestore.cli.looks import NOT_LOOKED_AT
    from featurestore.doctor import examine
    from validation.terminal import Console, styled

    checks = examine(repo if repo != HERE or repo.exists() else Path(), os.environ, [look() for look in LOOKS])
    table = Table("", "check", "found", "what to do")
    for check in checks:
        table.add_row(styled(("ok", "green") if check.ok else ("no", "red")), check.name, check.found, check.remedy)
    Console().print(table)
    typer.echo(NOT_LOOKED_AT)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)
