"""`featurestore fallback`: what do services answer while an alarm is on?"""

from typing import TYPE_CHECKING, Annotated

import typer

from featurestore.cli.settings import HERE, Repo
from featurestore.monitor.deployment import AsJson, deployment, print_json

if TYPE_CHECKING:
    from featurestore.config import Settings
    from featurestore.fallback import Fallbacks

fallback = typer.Typer(help="What services answer while an alarm is on.", no_args_is_help=True)


@fallback.command(name="list")
def list_fallbacks(repo: Repo = HERE, *, json: AsJson = False) -> None:
    """List the services that answer by their fallback now, since when and why."""
    import msgspec
    from rich.table import Table

    from featurestore.clock import iso
    from validation.terminal import Console

    settings, _, plan = deployment(repo)
    found = _fallbacks(settings).active()
    if json:
        print_json(msgspec.to_builtins(found))
        return
    table = Table("service", "answers", "since", "why", "switched by")
    for name, each in found.items():
        alarm = plan.services[name].policy.alarm if name in plan.services else "no such service any more"
        table.add_row(name, alarm, iso(each.since_us), each.reason, "the monitor" if each.by_monitor else "a person")
    Console().print(table if found else "every service answers from the plan in force")


@fallback.command()
def on(
    service: Annotated[str, typer.Argument(help="The feature service; its tag on_alarm says what it will answer.")],
    reason: Annotated[str, typer.Option(help="Why; shown to everybody who asks.")],
    repo: Repo = HERE,
) -> None:
    """Let a service answer by its declared fallback until `fallback off`, whatever the monitor finds."""
    from featurestore.clock import system_clock
    from featurestore.errors import UsageError
    from featurestore.fallback import Fallback

    settings, _, plan = deployment(repo)
    if plan.service(service).policy.alarm == "value":
        raise UsageError(f"service {service!r} declares no fallback; give it the tag on_alarm and apply")
    now_us = system_clock(settings.clock_offset_us)()
    _fallbacks(settings).switch(service, Fallback(since_us=now_us, reason=reason, by_monitor=False))
    typer.echo(f"service {service} answers by its fallback: {plan.service(service).policy.alarm}")


@fallback.command()
def off(service: Annotated[str, typer.Argument(help="The feature service.")], repo: Repo = HERE) -> None:
    """Let a service answer from the plan in force again; the monitor may switch it anew while an alarm is on."""
    settings, _, _ = deployment(repo)
    _fallbacks(settings).clear(service)
    typer.echo(f"service {service} answers from the plan in force")


def _fallbacks(settings: "Settings") -> "Fallbacks":
    from featurestore.fallback import Fallbacks
    from featurestore.online.connection import connect

    return Fallbacks(connect(settings.online, settings.data_dir), settings.project)
