"""Of which parts is a worker of this deployment made, and what looks after its files?"""

import secrets
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor

from prometheus_client import CollectorRegistry

from featurestore.clock import system_clock
from featurestore.config import Settings
from featurestore.monitor.workspace import workspace
from featurestore.online.connection import StoreClient
from featurestore.plan import Plan, View
from featurestore.segments import segments_of
from streaming.claim_record import ClaimRecord
from streaming.compactor import Compactor
from streaming.dead_letters import DeadLetters, dead_letter_topics
from streaming.event_columns import by_topic
from streaming.event_profiler import EventProfiler
from streaming.in_force import contracts_by_topic
from streaming.judged import Judged
from streaming.metrics import MeasuredStore, StreamMetrics
from streaming.outbox import Outbox
from streaming.report_sink import Reports, reached
from streaming.rule_windows import RuleWindows
from streaming.schema_registry import SchemaRegistry
from streaming.sinks import EventLog, Quarantine, RangeSink, Storage
from streaming.source.records import Source
from streaming.worker import Pace, Worker
from validation.profile.store import ProfileStore
from validation.violations import ViolationStore

_MICROS = 1_000_000


def build_worker(
    settings: Settings,
    plan: Plan,
    views: Iterable[View],
    source: Source,
    sinks: Sequence[RangeSink],
    *,
    client: StoreClient,
    clock: Callable[[], int],
    start_over: bool = False,
    metrics: StreamMetrics | None = None,
    pace: Pace | None = None,
    registry: SchemaRegistry | None = None,
) -> Worker:
    """A worker over these views with the deployment's store and files; what it does is counted in `metrics`."""
    metrics = metrics or StreamMetrics(CollectorRegistry(), clock)
    views = tuple(views)
    violations = ViolationStore(settings.violations)
    windows = RuleWindows(violations, reached(plan, views), clock, counted=metrics.window)

    def committed(judged: Judged) -> None:
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
    settings: Settings,
    plan: Plan,
    views: Iterable[View],
    *,
    clock: Callable[[], int],
    flush_s: float,
    flush_rows: int,
    outbox: Outbox | None = None,
    writer: Executor | None = None,
) -> tuple[RangeSink, ...]:
    """The deployment's files: accepted events, rejected ones, reports of what was wrong; with `outbox` dead letters.

    Files are written by the thread of `writer`, where there is one.
    """
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


def build_compactor(settings: Settings, plan: Plan, views: Sequence[View]) -> Compactor:
    """What compacts the files of these views' topics."""
    contracts = contracts_by_topic(plan, by_topic(views))
    return Compactor(settings.event_log, settings.quarantine, views, contracts)


def build_profiler(settings: Settings, plan: Plan, views: Sequence[View]) -> EventProfiler:
    """What profiles the accepted events of these views' topics, by the segments that are declared."""
    segments = {view.name: segments_of(plan, [view]) for view in views}
    return EventProfiler(settings.event_log, ProfileStore(workspace(settings).profiles), views, segments)
