"""How far is the stream, on the command line?"""

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from featurestore.cli.settings import HERE, Repo, settings_of
from featurestore.errors import UnknownName
from streaming.options import Topics

if TYPE_CHECKING:
    from featurestore.config import Settings
    from featurestore.plan import Plan, View
    from streaming.retention import Exposure
    from streaming.source.records import TopicPartition


def status(
    topics: Topics = None,
    *,
    repo: Repo = HERE,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for a program.")] = False,
) -> None:
    """Show how far each version of each view is in each partition, and the runs over history that are under way.

    Exit code 1 where a partition of a view that is read has no state: no worker has claimed it, or the store lost it.
    """
    import msgspec

    from featurestore.cli.looks import NOT_LOOKED_AT
    from featurestore.clock import system_clock
    from featurestore.online.connection import connect
    from featurestore.plan_store import PlanStore
    from featurestore.signing import signer_of
    from streaming.assembly import build_sinks
    from streaming.commit import ShardStore
    from streaming.retention import look
    from streaming.run_record import RunRecords
    from streaming.source.records import SourceUnavailable
    from streaming.status import status_of
    from streaming.status_page import show
    from streaming.streamed import stream_views

    settings = settings_of(repo)
    client = connect(settings.online, settings.data_dir, start=False)
    clock = system_clock(settings.clock_offset_us)
    plan = PlanStore(client, settings.project, signer_of(settings.data_dir)).load()
    views = stream_views(plan, topics or [])
    ends = _ends(settings, plan, views)
    sinks = build_sinks(settings, plan, views, clock=clock, flush_s=0, flush_rows=0)
    exposed: list[Exposure] = []
    with suppress(SourceUnavailable):  # which is told with the lag
        exposed = look(settings, views, sinks, ends, now_us=system_clock()()) if ends else []
    found = status_of(
        client,
        plan,
        topics or [],
        ends,
        {each.partition: each for each in exposed},
        store=ShardStore(client, clock),
        now_us=clock(),
    )
    runs = [run for run in RunRecords(settings.data_dir / "backfills").all() if run.state != "done"]
    if as_json:
        typer.echo(msgspec.json.encode({"plan_version": plan.version, "views": found, "runs": runs}))
    else:
        show(found, runs)
        typer.echo(NOT_LOOKED_AT)
    if not all(view.claimed for view in found if view.role == "read"):
        typer.echo("no worker has claimed every partition yet; start one with `featurestore stream run`", err=True)
        raise typer.Exit(1)


def _ends(settings: "Settings", plan: "Plan", views: "Iterable[View]") -> "dict[TopicPartition, int]":
    """Ends of all partitions; empty where Kafka does not answer, so that the status still shows the store's side."""
    from streaming.cluster import kafka_source
    from streaming.source.records import SourceUnavailable

    try:
        source, _ = kafka_source(settings, plan, views, None)
        try:
            partitions = [
                partition
                for topic in sorted({view.source.topic.name for view in views if view.source.topic is not None})
                for partition in source.partitions_of(topic)
            ]
            found = source.end_offsets(partitions)
        finally:
            source.close()
    except (SourceUnavailable, UnknownName) as error:
        typer.echo(f"lag is not known: {error}", err=True)
        return {}
    return found
