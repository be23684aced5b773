"""How is the stream started on the command line?"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from featurestore.cli.settings import HERE, Repo, settings_of
from streaming.options import Registry, Topics
from streaming.stop_signals import stop_on_signals

if TYPE_CHECKING:
    from streaming.stream_process import StreamProcess


def run(
    topics: Topics = None,
    *,
    repo: Repo = HERE,
    until_caught_up: Annotated[
        bool, typer.Option("--until-caught-up", help="Leave once all that is in the topics now is committed.")
    ] = False,
    instance_id: Annotated[
        str | None, typer.Option(help="Name of this worker, kept over restarts: it gets its partitions back at once.")
    ] = None,
    session_timeout_s: Annotated[
        float, typer.Option(min=1, help="Silence after which a worker is taken for dead and others get its partitions.")
    ] = 10.0,
    clock_offset_s: Annotated[
        float | None, typer.Option(help="Seconds to add to the clock, for a replay that lives in the past.")
    ] = None,
    dead_letters: Annotated[
        bool, typer.Option(help="Write events that are set aside to their dead-letter topic too.")
    ] = True,
    start_over: Annotated[
        bool,
        typer.Option("--start-over", help="Where the store lost its state, begin again at what the topics still have."),
    ] = False,
    flush_s: Annotated[float, typer.Option(help="Longest time an event waits for its file, in seconds.")] = 5.0,
    flush_rows: Annotated[int, typer.Option(help="Events of a partition that are stored at once.")] = 100_000,
    batch: Annotated[int, typer.Option(min=1, help="Events taken up at once, at most.")] = 5_000,
    max_delay_ms: Annotated[
        int, typer.Option(min=0, help="How long the broker may hold events back for a fuller batch.")
    ] = 0,
    memory_mb: Annotated[
        int, typer.Option(min=16, help="For events that were fetched and are not in their files yet.")
    ] = 256,
    tiles_kept: Annotated[
        int, typer.Option(min=1_000, help="Tile slots remembered of each view and partition.")
    ] = 400_000,
    schema_registry: Registry = None,
    compact_s: Annotated[
        float, typer.Option(min=0, help="How often small files are looked for, to make large ones of them; 0: never.")
    ] = 60.0,
    profile_s: Annotated[
        float, typer.Option(min=0, help="How often the events that came since are profiled, for drift; 0: never.")
    ] = 60.0,
    wait_s: Annotated[
        float,
        typer.Option(min=0, help="How long a broker that does not answer is waited for at the start, in seconds."),
    ] = 30.0,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            envvar="FEATURESTORE_STREAM_METRICS_PORT",
            help="Serve /metrics, /health and /ready on this port; 0 takes a free one. Without it they are not served.",
        ),
    ] = None,
    metrics_host: Annotated[
        str,
        typer.Option(envvar="FEATURESTORE_STREAM_METRICS_HOST", help="The address to serve them on."),
    ] = "127.0.0.1",
) -> None:
    """Keep the windows of all stream views current: read their topics, check, aggregate, commit.

    SIGTERM and SIGINT: the batch in hand is finished and committed, files are written, partitions given back.
    """
    from streaming.stream_process import Options, StreamProcess

    process = StreamProcess(
        settings_of(repo),
        Options(
            topics=tuple(topics or ()),
            until_caught_up=until_caught_up,
            instance_id=instance_id,
            session_timeout_s=session_timeout_s,
            clock_offset_s=clock_offset_s,
            dead_letters=dead_letters,
            start_over=start_over,
            flush_s=flush_s,
            flush_rows=flush_rows,
            batch=batch,
            max_delay_ms=max_delay_ms,
            memory_mb=memory_mb,
            tiles_kept=tiles_kept,
            schema_registry=schema_registry,
            compact_s=compact_s,
            profile_s=profile_s,
            wait_s=wait_s,
        ),
    )
    with stop_on_signals() as stop, _served(metrics_host, metrics_port, process):
        process.run(stop)
    typer.echo(summary(process.metrics.counters))


@contextmanager
def _served(host: str, port: int | None, process: "StreamProcess") -> Iterator[None]:
    """Answer /metrics, /health and /ready meanwhile, where a port is given; the address is told on standard error."""
    if port is None:
        yield
        return
    from streaming.health import HealthServer

    with HealthServer(
        host, port, registry=process.registry, pulse=process.pulse, standing=process.metrics.standing
    ) as server:
        typer.echo(f"metrics: http://{server.address}/metrics", err=True)
        yield


def summary(counters: "dict[str, int]") -> str:
    """One line for people: what went through, what was set aside and why.

    >>> summary({"events": 3, "accepted": 2, "rejected:empty": 1, "claims": 1})
    '3 events: 2 accepted, 1 set aside (1 empty)'
    """
    rejected = {name.partition(":")[2]: count for name, count in counters.items() if name.startswith("rejected:")}
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(rejected.items()))
    events, accepted = counters.get("events", 0), counters.get("accepted", 0)
    line = f"{events} events: {accepted} accepted, {sum(rejected.values())} set aside"
    return line + (f" ({reasons})" if reasons else "")
