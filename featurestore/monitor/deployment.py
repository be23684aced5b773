"""Which deployment does a monitor's command mean, and how does it print?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.settings import settings_of

if TYPE_CHECKING:
    from featurestore.config import Settings
    from featurestore.monitor.workspace import Workspace
    from featurestore.plan import Plan

OneService = Annotated[str | None, typer.Option("--service", help="One feature service; default: all.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_DAY_US = 86_400_000_000


def deployment(repo: Path) -> "tuple[Settings, Workspace, Plan]":
    """The settings of a repo, where its monitor keeps things, and the plan in force; raises ConfigurationError."""
    from featurestore.monitor.workspace import workspace

    settings = settings_of(repo)
    return settings, workspace(settings), plan_of(settings)


def plan_of(settings: "Settings") -> "Plan":
    """The plan that the last `apply` wrote."""
    from featurestore.plan_store import load_plan_file

    return load_plan_file(settings.plan_path)


def between(settings: "Settings", since: str | None, until: str | None) -> tuple[int, int]:
    """Instants in microseconds; where they are not given, the last 24 hours."""
    from featurestore.clock import parse_instant, system_clock

    end_us = parse_instant(until) if until else system_clock(settings.clock_offset_us)() + 1
    return parse_instant(since) if since else end_us - _DAY_US, end_us


def print_json(value: Any) -> None:
    """A value as indented JSON on standard output."""
    import msgspec

    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
