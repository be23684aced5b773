"""How is history put into a view, into a lost store, and out of use, on the command line?

`backfill`, and of the group `stream` the commands `rebuild` and `drop`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featurestore.cli.settings import HERE, Repo, settings_of
from featurestore.clock import iso, parse_instant
from featurestore.errors import UsageError, ViewsFailed, failing
from streaming.stop_signals import stop_on_signals
from validation.errors import PlatformError

if TYPE_CHECKING:
    from streaming.run_record import RunRecords

_DROP_PATIENCE_S = 120.0


def add_to(app: typer.Typer, stream: typer.Typer) -> None:
    """Register the commands."""
    app.command()(backfill)
    stream.command()(rebuild)
    stream.command()(drop)


def backfill(
    view: Annotated[str | None, typer.Argument(help="The view to build; not needed with --list.")] = None,
    *,
    repo: Repo = HERE,
    since: Annotated[
        str | None, typer.Option("--from", metavar="INSTANT", help="Leave out what arrived before; windows say so.")
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="INSTANT", help="Take from the event log what arrived before, the rest from Kafka."
        ),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(help="Parquet or JSON-lines file of events that the topic never had; repeatable."),
    ] = None,
    file_time: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of the files that says when an event arrived.")
    ] = None,
    kafka: Annotated[
        bool, typer.Option("--kafka", help="Read everything from Kafka, to its end; nothing from the event log.")
    ] = False,
    wait_s: Annotated[
        float, typer.Option(help="How long to wait for readers and workers to go over, once it is in force.")
    ] = _DROP_PATIENCE_S,
    list_runs: Annotated[bool, typer.Option("--list", help="List the runs and how far they are.")] = False,
) -> None:
    """Build the next version of a view from history, then let readers go over to it, without a gap.

    An interrupted run goes on where it was when the command is given again.
    """
    from streaming.history_run import HistoryRun, records_of

    settings = settings_of(repo)
    if list_runs:
        _list(records_of(settings))
        return
    if view is None:
        raise UsageError("which view? `featurestore backfill VIEW`; `--list` shows the runs so far")
    if kafka and file:
        raise UsageError("--kafka reads the topic alone: --file is about the event log")
    if kafka and until:
        raise UsageError(
            "--kafka reads to the end: readers go over to the next version once it has passed the one that is read. "
            "--to says where Kafka follows on the event log, of which --kafka takes nothing"
        )
    run = HistoryRun(settings)
    with stop_on_signals() as stop, run.records.alone(view):
        run.ingest(view, tuple(file or ()), file_time, stop)
        done = run.backfill(
            view,
            from_us=None if since is None else parse_instant(since),
            to_us=None if until is None else parse_instant(until),
            files=tuple(file or ()),
            use_log=not kafka,
            stop=stop,
        )
        if done:
            run.retire(wait_s, stop)
    if not done:
        typer.echo("stopped; the same command goes on from here", err=True)
        raise typer.Exit(stop.exit_code)


def rebuild(
    views: Annotated[list[str] | None, typer.Argument(help="Views to rebuild; all stream views if none.")] = None,
    *,
    repo: Repo = HERE,
) -> None:
    """Make the state of stream views again from the event log, where the online store lost it.

    What the store still has is not touched. A view that cannot be rebuilt holds no other up: the last line names it.
    Start `featurestore stream run` afterwards: it goes on where the log ends.
    """
    from streaming.history_run import HistoryRun
    from streaming.streamed import stream_views

    run = HistoryRun(settings_of(repo))
    plan = run.plan()
    names = list(dict.fromkeys(views)) if views else sorted({view.name for view in stream_views(plan, [])})
    for name in names:
        plan.view(name)  # before anything is done
    failed: dict[str, PlatformError] = {}
    with stop_on_signals() as stop:
        for name in names:
            with failing(name, failed), run.records.alone(name):
                run.rebuild(name, stop)
            if name in failed:
                typer.echo(f"failed: {name}: {failed[name]}", err=True)
            if stop():
                typer.echo("stopped; the same command goes on from here", err=True)
                raise typer.Exit(stop.exit_code)
    if failed:
        raise ViewsFailed("rebuilt", failed, len(names))


def drop(
    *,
    repo: Repo = HERE,
    wait_s: Annotated[float, typer.Option(help="How long to wait for readers that use them.")] = _DROP_PATIENCE_S,
) -> None:
    """Remove versions of views that no reader uses any more. Exit code 1 where somebody still does."""
    from streaming.history_run import HistoryRun

    with stop_on_signals() as stop:
        if not HistoryRun(settings_of(repo)).retire(wait_s, stop):
            raise typer.Exit(stop.exit_code)


def _list(records: "RunRecords") -> None:
    from rich.table import Table

    from validation.terminal import Console

    table = Table("view", "version", "run", "state", "begun", "events", "left", "ETA", "withheld", "message")
    for each in records.all():
        eta_s = each.eta_s if each.state == "log" else None
        table.add_row(
            each.view,
            str(each.version),
            each.kind,
            each.state,
            iso(each.started_us),
            str(each.events),
            str(each.offsets_left),
            "-" if eta_s is None else f"{eta_s:.0f} s",
            ", ".join(f"{name} {how}" for name, how in each.withheld.items()) or "-",
            each.message or "-",
        )
    Console().print(table)
