"""How are the files of a stream looked after by hand: made few, and profiled?"""

from typing import TYPE_CHECKING, Annotated

import typer

from featurestore.cli.settings import HERE, Repo, settings_of
from streaming.options import Topics

if TYPE_CHECKING:
    from pathlib import Path

    from featurestore.config import Settings
    from featurestore.plan import Plan, View


def compact(
    topics: Topics = None,
    *,
    repo: Repo = HERE,
    grace_s: Annotated[
        float, typer.Option(min=0, help="How long files that are no longer needed stay for those who read them.")
    ] = 900.0,
) -> None:
    """Make few large files of the many small ones of event log and quarantine; workers do it by themselves, bit by bit.

    Nobody needs to stop for it: what is read is the same before, after and in between.
    """
    from streaming.assembly import build_compactor

    for done in build_compactor(*_parts(repo, topics)).run(fan_in=2, grace_s=grace_s):
        typer.echo(f"{done.topic}: {done.written} files written, {done.deleted} superseded ones deleted")


def profile(topics: Topics = None, *, repo: Repo = HERE) -> None:
    """Profile the accepted events that are not profiled yet; workers do it by themselves, minute by minute."""
    from streaming.assembly import build_profiler

    for done in build_profiler(*_parts(repo, topics)).run(last=True):
        typer.echo(f"{done.topic}: {done.events} events profiled, {done.written} files written, {done.deleted} deleted")


def _parts(repo: "Path", topics: list[str] | None) -> "tuple[Settings, Plan, tuple[View, ...]]":
    """The deployment, its plan, and the plan's views of these topics."""
    from featurestore.online.connection import connect
    from featurestore.plan_store import PlanStore
    from featurestore.signing import signer_of
    from streaming.streamed import stream_views

    settings = settings_of(repo)
    plan = PlanStore(
        connect(settings.online, settings.data_dir, start=False), settings.project, signer_of(settings.data_dir)
    ).load()
    return settings, plan, stream_views(plan, topics or [])
