"""`featurestore skew`: is what was served what holds offline?"""

from typing import Annotated, Any

import typer

from featurestore.cli.settings import HERE, Repo
from featurestore.monitor.deployment import AsJson, OneService, between, deployment, print_json

skew = typer.Typer(help="Is what was served what holds offline?", no_args_is_help=True)

Since = Annotated[str | None, typer.Option(help="First instant (ISO 8601); default: 24 hours ago.")]
Until = Annotated[str | None, typer.Option(help="Last instant (ISO 8601); default: now.")]


@skew.command()
def audit(
    repo: Repo = HERE, *, since: Since = None, until: Until = None, service: OneService = None, json: AsJson = False
) -> None:
    """Compute again, offline, every sampled value that was served, and say why those differ that do.

    Hours are audited whole, and their history is written anew. Exit code 1 where a difference has no known cause, or
    where a view could not be read: the others are audited all the same.
    """
    from featurestore.clock import system_clock
    from featurestore.errors import ViewsFailed
    from featurestore.monitor.skew_history import SkewHistory, audit_hours

    settings, place, plan = deployment(repo)
    start_us, end_us = between(settings, since, until)
    history = SkewHistory(place.skew)
    found = audit_hours(
        place.served,
        history,
        plan,
        repo=settings.repo,
        start_us=start_us,
        end_us=end_us,
        clock=system_clock(settings.clock_offset_us),
        service=service,
        say=lambda line: typer.echo(line, err=True),
    )
    unknown = _show_audits(found.audited, json=json)
    if found.failed:
        raise ViewsFailed("audited", found.failed)
    if unknown:
        raise typer.Exit(1)


@skew.command()
def history(
    repo: Repo = HERE, *, since: Since = None, until: Until = None, service: OneService = None, json: AsJson = False
) -> None:
    """Show what earlier audits found, hour by hour. Exit code 1 where a difference has no known cause."""
    from featurestore.monitor.skew_history import SkewHistory

    settings, place, _ = deployment(repo)
    start_us, end_us = between(settings, since, until)
    if _show_audits(list(SkewHistory(place.skew).between(start_us, end_us, service=service)), json=json):
        raise typer.Exit(1)


def _show_audits(found: list[Any], *, json: bool) -> bool:
    """Show audits; whether a difference has no known cause."""
    import msgspec
    from rich.table import Table

    from featurestore.clock import iso
    from featurestore.monitor.causes import Cause
    from validation.terminal import Console, styled

    if json:
        print_json(msgspec.to_builtins(found))
    else:
        table = Table("hour", "service", "feature", "compared", "differ", "cause", "for example")
        for audited in found:
            for each in audited.skews:
                for cause, count in each.differing.items():
                    example = each.examples[cause][0]
                    table.add_row(
                        iso(each.hour_us), each.service, f"{each.view}:{each.feature}", str(each.compared), str(count),
                        styled((str(cause), "red" if cause == Cause.UNKNOWN else "yellow")),
                        f"{example.key}: served {example.served!r}, offline {example.offline!r}",
                    )  # fmt: skip
        console = Console()
        if table.rows:
            console.print(table)
        console.print(
            f"{sum(each.compared for each in found)} values compared, "
            f"{sum(sum(each.differing.values()) for each in found)} differ"
        )
    return any(each.differing.get(Cause.UNKNOWN) for each in found)
