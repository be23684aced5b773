"""How does the main job go, from raw files to served predictions?

1. land the raw files as Parquet, the year moved to end now;
2. start the online store and the broker;
3. write the year's events to their topics, and meanwhile put the definitions in force;
4. stream them into tiles and event log, and meanwhile materialize the batch views;
5. build a point-in-time training set two hours before schedule, and train with and without the store's features;
6. start the API and ask it for the features of the last day's flights, and of those about to leave;
7. read the same features offline at the instants of the answers, and compare to the bit.

Whatever fails or interrupts, no process is left behind.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.apply import apply
from featurestore.client import FeatureClient
from featurestore.clock import Clock
from featurestore.config import Settings
from featurestore.dataset.build import Request, build
from featurestore.dataset.manifest import Split
from featurestore.dataset.rebuild import limits_of, retriever
from featurestore.demo.asking import SERVICE, ask, offline
from featurestore.demo.children import (
    Streamed,
    finish_worker,
    start_api,
    start_broker,
    start_producer,
    start_worker,
)
from featurestore.demo.civil_time import DAY_US
from featurestore.demo.flights import History, history, weeks_until
from featurestore.demo.landing import FILES, land
from featurestore.demo.live import Replay, by_process
from featurestore.demo.model import (
    LABEL,
    LEAD_US,
    TIMETABLE,
    Model,
    Trial,
    asked,
    cutoff_us,
    entity_rows,
    numeric,
    predict,
    train,
)
from featurestore.demo.processes import Processes
from featurestore.demo.recorded import latest, package_folder, read_recorded
from featurestore.demo.statuses import expected_statuses
from featurestore.demo.workspace import prepare
from featurestore.materialize import materialize
from featurestore.monitor.parity import Comparison, compare
from featurestore.offline.event_log import stored_ranges
from featurestore.online.server import EmbeddedServer
from featurestore.plan import Plan
from validation.fallback import great_expectations

TRAINING_DAYS = 120
LONGEST_WINDOW_DAYS = 7
"""Training starts when the windows are full."""
TEST_SHARE = 0.2
TOPICS = {"departures": "origin", "arrivals": "tailnum"}
"""Topic -> the column that is its message key."""
PARTITIONS = 2


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    repo: Path
    data: Path | None = None
    days: int = 366
    """How many days of the year are replayed, counted from its end."""
    as_recorded: bool = False
    keep_running: bool = False


class Steps(Protocol):
    """Who is told how far the demo is."""

    def step(
        self, title: str, *, total: int | None = None
    ) -> AbstractContextManager[Callable[[Callable[[], int]], None]]:
        """A step that lasts as long as the block; the block's value takes whoever knows how much of `total` is done."""
        ...


@dataclass(frozen=True)
class Learned:
    """What was trained, and on what."""

    columns: int
    """Features of the training set."""
    without: Trial
    with_features: Trial


@dataclass(frozen=True)
class Answered:
    """What was served, and whether it holds."""

    flights: pa.Table
    """Rows of the schedule that were asked about."""
    chances: pa.Array
    """What the model says of each: the probability that it leaves late."""
    comparison: Comparison


@dataclass(frozen=True)
class Outcome:
    """What the demo did, for its closing table."""

    now_us: int
    weeks: int
    landed: Mapping[str, int]
    streamed: Streamed
    learned: Learned
    answered: Answered
    addresses: Mapping[str, str]
    """Of what stays up."""


def run(
    options: Options,
    environ: Mapping[str, str],
    clock: Clock,
    *,
    steps: Steps,
    done: Callable[[Outcome], None],
) -> Outcome:
    """Runs the main job and tells `done` what it did, while its servers are still up.

    With `keep_running` it then replays events as they come due, until it is interrupted. `environ` is as `own_environ`
    makes it, and the process's own: Feast's plug-ins read that. Raises Interrupted, ConfigurationError and UsageError
    where it cannot start, and what its steps raise; by then every process has ended.
    """
    settings = prepare(options.repo, options.data, environ)
    landing = settings.data_dir / "flights"
    with Processes(settings.data_dir / "logs", environ) as processes:
        with steps.step("Land the raw files"):
            past = _history(clock(), options)
            landed = land(past, landing)
        with steps.step("Start online store and broker"):
            store = EmbeddedServer(settings.data_dir)
            processes.at_last(store.stop)
            store.start()
            broker = start_broker(processes)
        with steps.step("Apply definitions, write events to topics"):
            producers = [
                start_producer(
                    processes, landing / FILES[topic], topic=topic, key=key, partitions=PARTITIONS, broker=broker
                )
                for topic, key in TOPICS.items()
            ]
            plan = apply(settings, clock).plan
            for producer in producers:
                processes.finish(producer)
        events = sum(landed[topic] for topic in TOPICS)
        with steps.step("Stream events, materialize facts", total=events) as progress:
            worker = start_worker(processes, settings.repo, broker=broker, until_caught_up=True)
            facts = [view.name for view in plan.views.values() if view.kind == "latest"]
            # A generator: each view is loaded when its line is asked for.
            for _ in materialize(settings, facts, None, None):
                pass
            streamed = finish_worker(processes, worker, lambda: progress(lambda: _logged(settings)))
        with steps.step("Build the training set, train twice"):
            learned = _learn(past, plan, settings, clock)
        with steps.step("Serve flights, compare with offline read"):
            url = start_api(processes, settings.repo)
            answered = _answer(past, plan, settings, learned.with_features.model, url, clock)
        addresses = {"feature API": url, "broker": broker, "online store": f"unix://{store.address}"}
        if not options.keep_running:
            addresses = {}
        outcome = Outcome(past.now_us, past.weeks, landed, streamed, learned, answered, addresses)
        if options.keep_running:
            start_worker(processes, settings.repo, broker=broker, until_caught_up=False)
        done(outcome)
        if options.keep_running:
            produce = by_process(processes, landing / "due", keys=TOPICS, partitions=PARTITIONS, broker=broker)
            upcoming = {"departures": past.upcoming_departures, "arrivals": past.upcoming_arrivals}
            replay = Replay(upcoming, past.now_us, produce)
            processes.wait_for_interrupt(lambda: replay.produce_due(clock()))
    return outcome


def _history(now_us: int, options: Options) -> History:
    recorded = latest(read_recorded(package_folder()), options.days)
    return history(recorded, now_us=now_us, weeks=0 if options.as_recorded else weeks_until(now_us))


def _logged(settings: Settings) -> int:
    ranges = [each for topic in TOPICS for each in stored_ranges(settings.event_log / topic)]
    return sum(each.last - each.first + 1 for each in ranges)


def _learn(past: History, plan: Plan, settings: Settings, clock: Clock) -> Learned:
    full_us = pc.min(past.departures["event_timestamp"]).cast(pa.int64()).as_py() + LONGEST_WINDOW_DAYS * DAY_US
    from_us = max(past.now_us - TRAINING_DAYS * DAY_US, full_us + LEAD_US)
    rows = entity_rows(past.schedule, from_us=from_us, until_us=past.now_us)
    cutoff = cutoff_us(rows, test_share=TEST_SHARE)
    request = Request(
        name=SERVICE, features=(f"service:{SERVICE}",), split=Split(cutoff_us=cutoff), full_feature_names=True
    )
    folder = settings.data_dir / "datasets"
    retrieve = retriever(plan, settings.repo, request.timestamp_column, limits=limits_of(settings.offline))
    manifest = build(
        request,
        rows,
        plan=plan,
        repo=settings.repo,
        folder=folder,
        retrieve=retrieve,
        clock=clock,
        fallback=great_expectations,
    )
    built = pa.concat_tables([pq.read_table(folder / SERVICE / part.file) for part in manifest.parts])
    features = numeric(built, without=(LABEL, *TIMETABLE))
    return Learned(
        columns=len(features),
        without=train(built, TIMETABLE, cutoff_us=cutoff),
        with_features=train(built, (*TIMETABLE, *features), cutoff_us=cutoff),
    )


def _answer(past: History, plan: Plan, settings: Settings, model: Model, url: str, clock: Clock) -> Answered:
    """Flights of the last day and of the next two hours, nearest last."""
    scheduled = past.schedule["scheduled"].cast(pa.int64())
    now_us = clock()
    inside = pc.and_(pc.greater(scheduled, now_us - DAY_US), pc.less_equal(scheduled, now_us + LEAD_US))
    flights = past.schedule.filter(inside)
    rows = asked(flights, pa.chunked_array([pa.repeat(now_us, flights.num_rows)]))
    with FeatureClient(url) as client:
        served = ask(client, rows)
    truth = offline(plan, rows, served.instants_us, settings.repo)
    expected = expected_statuses(plan, SERVICE, rows, truth, served.instants_us, settings.repo)
    known = pa.table(
        {name: rows[name] for name in TIMETABLE} | {name: served.values[name] for name in truth.column_names}
    )
    return Answered(
        flights=flights,
        chances=pa.array(predict(model, known)),
        comparison=compare(served.values, served.statuses, truth, expected),
    )
