"""Step past a record that ends every worker that reads it."""

from typing import Annotated

import typer

from featurestore.cli.settings import HERE, Repo, settings_of


def skip(
    topic: Annotated[str, typer.Argument(help="The topic.")],
    partition: Annotated[int, typer.Argument(min=0, help="Its partition.")],
    offset: Annotated[int, typer.Argument(min=0, help="The offset; the first of several with --to.")],
    *,
    reason: Annotated[str, typer.Option(help="Why; kept with who stepped past it, and when.")],
    to: Annotated[int | None, typer.Option(help="The last offset, where it is not one alone.")] = None,
    unreadable: Annotated[
        bool, typer.Option("--unreadable", help="Fetch nothing of it: the batch itself cannot be read.")
    ] = False,
    repo: Repo = HERE,
) -> None:
    """Step past offsets whose records end every worker: what is there is set aside, and nothing looks into it.

    It takes effect when a worker claims the partition next: after a failure by itself, else when it is restarted.
    """
    import getpass

    from featurestore.clock import system_clock
    from featurestore.errors import UsageError
    from featurestore.online.connection import connect
    from featurestore.plan_store import PlanStore
    from featurestore.signing import signer_of
    from streaming.commit import ShardStore
    from streaming.skips import Skip, Skips
    from streaming.streamed import stream_views

    last = offset if to is None else to
    if last < offset or last - offset >= 10_000 or not reason.strip():
        raise UsageError("--to is the last of at most 10,000 offsets, and --reason says why they are stepped past")
    settings, clock = settings_of(repo), system_clock()
    client = connect(settings.online, settings.data_dir, start=False)
    plan = PlanStore(client, settings.project, signer_of(settings.data_dir)).load()
    store = ShardStore(client, clock)
    listed = (store.registered(plan.project, view.name, view.version) for view in stream_views(plan, [topic]))
    ids = sorted({each.topic_id for shards in listed for each in shards if each.partition == partition})
    if not ids:
        raise UsageError(f"no worker has read partition {partition} of topic {topic!r}; `stream status` lists them")
    for topic_id in ids:
        made = Skip(
            topic_id=topic_id,
            partition=partition,
            first=offset,
            last=last,
            unreadable=unreadable,
            reason=reason[:1000],
            by=getpass.getuser(),
            at_us=clock(),
        )
        Skips(settings.event_log).add(topic, made)
    typer.echo(f"{topic}-{partition}: offsets {offset} to {last} are stepped past at the next claim: {reason[:200]}")
