"""How is the stream started, and how far is it?

`run` and `status` of the command group `stream`; `add_to` puts them into the group's Typer app. Slow libraries are
imported by the commands themselves: `featurestore --help` must not wait for them.
"""

import gc
import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from featurestore.cli.settings import HERE, Repo, settings_of
from featurestore.errors import ConfigurationError, StoreUnavailable, UnknownName
from streaming.status_page import show

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from featurestore.config import Settings
    from featurestore.online.connection import StoreClient
    from featurestore.plan import Plan, View
    from streaming.compactor import Compactor
    from streaming.event_profiler import EventProfiler
    from streaming.health import Pulse
    from streaming.judged import Judged
    from streaming.metrics import StreamMetrics
    from streaming.outbox import Outbox
    from streaming.retention import Exposure
    from streaming.schema_registry import SchemaRegistry
    from streaming.sinks import RangeSink
    from streaming.source.records import Source, TopicPartition
    from streaming.worker import Pace, Worker

_MICROS = 1_000_000
SCHEMA_REGISTRY = "FEATURESTORE_SCHEMA_REGISTRY"

Topics = Annotated[list[str] | None, typer.Argument(help="Topics to read; all that stream views read if none.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(run)
    app.command()(status)
    app.command()(compact)
    app.command()(profile)


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
    schema_registry: Annotated[
        str | None,
        typer.Option(
            envvar=SCHEMA_REGISTRY,
            help="Resolves schema ids of messages: a folder of files named by id, or an http address.",
        ),
    ] = None,
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
    import time

    from prometheus_client import CollectorRegistry

    from featurestore.clock import system_clock
    from featurestore.freed_memory import keep_freed_memory
    from featurestore.online.connection import connect
    from featurestore.plan_store import PlanStore
    from featurestore.plan_users import PlanUsers
    from featurestore.promises_kept import PromiseMetrics
    from streaming.beside import counted
    from streaming.cluster import kafka_source, outbox_of, waited_for
    from streaming.compactor import Compactor, compacting
    from streaming.event_profiler import EventProfiler, profiling
    from streaming.health import Pulse
    from streaming.metrics import StreamMetrics
    from streaming.plan_watch import PlanWatch
    from streaming.retention import RetentionMetrics, look, watched
    from streaming.schema_registry import registry_of
    from streaming.topic_checks import warnings
    from streaming.worker import Pace

    keep_freed_memory()
    # The client warns whenever its thread waits for the interpreter, which is what a busy worker makes it do.
    logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)
    settings = settings_of(repo)
    offset_us = settings.clock_offset_us if clock_offset_s is None else round(clock_offset_s * _MICROS)
    clock = system_clock(offset_us)
    client = connect(settings.online, settings.data_dir)
    plans = PlanStore(client, settings.project)
    # Reports cross processes that replay different times: they go by the true time.
    users, name = PlanUsers(client, settings.project, system_clock()), f"stream {socket.gethostname()} {os.getpid()}"
    report = partial(users.report, name)
    registry = CollectorRegistry()
    registry.register(PromiseMetrics(settings.promises))
    metrics, pulse, kept = StreamMetrics(registry, clock), Pulse(), RetentionMetrics()
    registry.register(kept)
    outbox = outbox_of(settings, stream_views(plans.load(), topics or [])) if dead_letters else None
    writer = ThreadPoolExecutor(1, "files")
    sinks = partial(
        build_sinks, settings, clock=clock, flush_s=flush_s, flush_rows=flush_rows, outbox=outbox, writer=writer
    )

    def exposed() -> "list[Exposure]":
        held = plans.load()
        known = stream_views(held, topics or [])
        # By the true clock: the broker's, whatever time is replayed here.
        return look(settings, known, sinks(held, known), metrics.assigned(), now_us=system_clock()())

    failed, again = counted(registry), True
    compactor: Compactor | None = None
    profiler: EventProfiler | None = None
    with (
        stop_on_signals() as stop,
        _served(metrics_host, metrics_port, registry, pulse, metrics),
        compacting(lambda: compactor, metrics.held, every_s=compact_s, failed=failed),
        profiling(
            lambda: profiler,
            metrics.held,
            every_s=profile_s,
            profiled=metrics.profiled,
            failed=failed,
        ),
        watched(exposed, kept, failed=failed),
        writer,
    ):
        while again:
            plan = plans.load()
            views = stream_views(plan, topics or [])
            compactor = build_compactor(settings, plan, views)
            profiler = build_profiler(settings, plan, views)
            source, appeared = waited_for(
                partial(
                    kafka_source,
                    settings,
                    plan,
                    views,
                    instance_id,
                    max_records=batch,
                    max_delay_ms=max_delay_ms,
                    max_fetched_bytes=memory_mb << 19,
                    session_timeout_ms=round(session_timeout_s * 1000),
                ),
                wait_s=wait_s,
                stop=stop,
            )
            for warning in warnings(settings, views, slowest_s=flush_s):
                logging.getLogger(__name__).warning("%s", warning)
            watch = PlanWatch(
                plans,
                plan,
                partial(stream_views, topics=topics or []),
                sinks,
                time.monotonic,
                pulse,
                stop,
                appeared=appeared,
                report=report,
            )
            worker = build_worker(
                settings,
                plan,
                views,
                source,
                sinks(plan, views),
                client=client,
                clock=clock,
                start_over=start_over,
                metrics=metrics,
                registry=registry_of(schema_registry, settings.schemas),
                pace=Pace(buffered_bytes=memory_mb << 19, slots_kept=tiles_kept),
            )
            metrics.follow(worker)
            gc.freeze()  # what is in memory now stays: a full pass over it stops the stream for 20 ms
            try:
                worker.run(watch.ended, until_caught_up=until_caught_up, news=watch.news)
            finally:
                source.close()
            again = watch.moved and not stop()
    if outbox is not None:
        outbox.close()
    with suppress(StoreUnavailable):
        users.leave(name)
    typer.echo(summary(metrics.counters))


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
    from featurestore.online.connection import connect
    from featurestore.plan_store import PlanStore

    settings = settings_of(repo)
    client = connect(settings.online, settings.data_dir, start=False)
    plan = PlanStore(client, settings.project).load()
    compactor = build_compactor(settings, plan, stream_views(plan, topics or []))
    for done in compactor.run(fan_in=2, grace_s=grace_s):
        typer.echo(f"{done.topic}: {done.written} files written, {done.deleted} superseded ones deleted")


def profile(topics: Topics = None, *, repo: Repo = HERE) -> None:
    """Profile the accepted events that are not profiled yet; workers do it by themselves, minute by minute."""
    from featurestore.online.connection import connect
    from featurestore.plan_store import PlanStore

    settings = settings_of(repo)
    plan = PlanStore(connect(settings.online, settings.data_dir, start=False), settings.project).load()
    for done in build_profiler(settings, plan, stream_views(plan, topics or [])).run(last=True):
        typer.echo(f"{done.topic}: {done.events} events profiled, {done.written} files written, {done.deleted} deleted")


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

    from featurestore.clock import system_clock
    from featurestore.online.connection import connect
    from featurestore.plan_store import PlanStore
    from streaming.commit import ShardStore
    from streaming.retention import look
    from streaming.run_record import RunRecords
    from streaming.source.records import SourceUnavailable
    from streaming.status import status_of

    settings = settings_of(repo)
    client = connect(settings.online, settings.data_dir, start=False)
    clock = system_clock(settings.clock_offset_us)
    plan = PlanStore(client, settings.project).load()
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
    if not all(view.claimed for view in found if view.role == "read"):
        typer.echo("no worker has claimed every partition yet; start one with `featurestore stream run`", err=True)
        raise typer.Exit(1)


def stream_views(plan: "Plan", topics: Sequence[str]) -> "tuple[View, ...]":
    """The plan's views of these topics, of all topics if none is named, and those versions of them that are retiring.

    Raises UnknownName and ConfigurationError.
    """
    found = {view.name: view.source.topic.name for view in plan.views.values() if view.source.topic is not None}
    for topic in topics:
        if topic not in found.values():
            raise UnknownName("topic of a stream view", topic, set(found.values()))
    served = [plan.view(name) for name, topic in sorted(found.items()) if not topics or topic in topics]
    retiring = [
        view for view in plan.retiring if view.source.topic and (not topics or view.source.topic.name in topics)
    ]
    views = (*served, *retiring)
    if not views:
        raise ConfigurationError(
            f"project {plan.project!r} has no stream views; declare a StreamFeatureView over a KafkaSource and apply"
        )
    return views


def build_compactor(settings: "Settings", plan: "Plan", views: "Sequence[View]") -> "Compactor":
    """What compacts the files of these views' topics."""
    from streaming.compactor import Compactor
    from streaming.decode import by_topic
    from streaming.in_force import contracts_by_topic

    contracts = contracts_by_topic(plan, by_topic(views))
    return Compactor(settings.event_log, settings.quarantine, views, contracts)


def build_profiler(settings: "Settings", plan: "Plan", views: "Sequence[View]") -> "EventProfiler":
    """What profiles the accepted events of these views' topics, by the segments that are declared."""
    from featurestore.monitor.workspace import workspace
    from featurestore.segments import segments_of
    from streaming.event_profiler import EventProfiler
    from validation.profile.store import ProfileStore

    segments = {view.name: segments_of(plan, [view]) for view in views}
    return EventProfiler(settings.event_log, ProfileStore(workspace(settings).profiles), views, segments)


def build_worker(
    settings: "Settings",
    plan: "Plan",
    views: "Iterable[View]",
    source: "Source",
    sinks: "Sequence[RangeSink]",
    *,
    client: "StoreClient",
    clock: Callable[[], int],
    start_over: bool = False,
    metrics: "StreamMetrics | None" = None,
    pace: "Pace | None" = None,
    registry: "SchemaRegistry | None" = None,
) -> "Worker":
    """A worker over these views with the deployment's store and files; what it does is counted in `metrics`."""
    from prometheus_client import CollectorRegistry

    from streaming.claim_record import ClaimRecord
    from streaming.metrics import MeasuredStore, StreamMetrics
    from streaming.report_sink import reached
    from streaming.rule_windows import RuleWindows
    from streaming.worker import Pace, Worker
    from validation.violations import ViolationStore

    metrics = metrics or StreamMetrics(CollectorRegistry(), clock)
    views = tuple(views)
    violations = ViolationStore(settings.violations)
    windows = RuleWindows(violations, reached(plan, views), clock, counted=metrics.window)

    def committed(judged: "Judged") -> None:
        metrics.judged(judged)
        windows.judged(judged)

    return Worker(
        source,
        MeasuredStore(client, clock, metrics.committed),
        sinks,
        plan,
        views=views,
        record=ClaimRecord(settings.event_log),
        clock=clock,
        new_token=lambda: secrets.token_hex(8),
        pace=pace or Pace(),
        registry=registry,
        start_over=start_over,
        on_committed=committed,
    )


def build_sinks(
    settings: "Settings",
    plan: "Plan",
    views: "Iterable[View]",
    *,
    clock: Callable[[], int],
    flush_s: float,
    flush_rows: int,
    outbox: "Outbox | None" = None,
    writer: Executor | None = None,
) -> "tuple[RangeSink, ...]":
    """The deployment's files: accepted events, rejected ones, reports of what was wrong; with `outbox` dead letters.

    Files are written by the thread of `writer`, where there is one.
    """
    from featurestore.clock import system_clock
    from streaming.dead_letters import DeadLetters, dead_letter_topics
    from streaming.decode import by_topic
    from streaming.in_force import contracts_by_topic
    from streaming.report_sink import Reports, reached
    from streaming.sinks import EventLog, Quarantine, RangeSink, Storage
    from validation.violations import ViolationStore

    views = tuple(views)
    contracts = contracts_by_topic(plan, by_topic(views))
    storages: list[Storage] = [
        EventLog(settings.event_log),
        Quarantine(settings.quarantine, contracts),
        Reports(ViolationStore(settings.violations), contracts, reached(plan, views), clock),
    ]
    letters = dead_letter_topics(views)
    if outbox is not None and letters:
        # The broker keeps a letter by its own clock, whatever time is replayed here.
        storages.append(DeadLetters(settings.dead_letters, outbox, letters, contracts, system_clock()))
    return tuple(
        RangeSink(storage, clock, flush_rows=flush_rows, flush_age_us=round(flush_s * _MICROS), writer=writer)
        for storage in storages
    )


@contextmanager
def _served(
    host: str, port: int | None, registry: "CollectorRegistry", pulse: "Pulse", metrics: "StreamMetrics"
) -> Iterator[None]:
    """Answer /metrics, /health and /ready meanwhile, where a port is given; the address is told on standard error."""
    if port is None:
        yield
        return
    from streaming.health import HealthServer

    with HealthServer(host, port, registry=registry, pulse=pulse, standing=metrics.standing) as server:
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


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or SIGINT came; they are noted only, so that the batch in hand is finished."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
