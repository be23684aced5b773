"""What does a process do that keeps views current, from its start to its end?

It has one worker after the other: a plan with other topics to read needs another one, while what is counted and done
beside the stream goes on.
"""

import gc
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry

from featurestore.clock import system_clock
from featurestore.config import Settings
from featurestore.errors import StoreUnavailable
from featurestore.freed_memory import keep_freed_memory
from featurestore.online.connection import connect
from featurestore.plan import Plan, View
from featurestore.plan_store import PlanStore
from featurestore.plan_users import WORKER, PlanUsers
from featurestore.promises_kept import PromiseMetrics
from featurestore.signing import signer_of
from streaming.assembly import build_sinks, build_worker
from streaming.beside import Beside
from streaming.cluster import kafka_source, outbox_of, waited_for
from streaming.health import Pulse
from streaming.metrics import StreamMetrics
from streaming.patience import patiently
from streaming.plan_watch import PlanWatch
from streaming.retention import Exposure, look
from streaming.schema_registry import registry_of
from streaming.sinks import RangeSink
from streaming.streamed import stream_views
from streaming.topic_checks import warnings
from streaming.worker import Pace

_MICROS: Final = 1_000_000
_FILES_NICE: Final = 10
_LOG = logging.getLogger(__name__)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What `featurestore stream run` was asked for; each is said there."""

    topics: tuple[str, ...]
    until_caught_up: bool
    instance_id: str | None
    session_timeout_s: float
    clock_offset_s: float | None
    dead_letters: bool
    start_over: bool
    flush_s: float
    flush_rows: int
    batch: int
    max_delay_ms: int
    memory_mb: int
    tiles_kept: int
    schema_registry: str | None
    compact_s: float
    profile_s: float
    wait_s: float


class StreamProcess:
    """Runs workers over a deployment's topics; `registry`, `metrics` and `pulse` say how it is."""

    def __init__(self, settings: Settings, options: Options) -> None:
        keep_freed_memory()
        # The client warns whenever its thread waits for the interpreter, which is what a busy worker makes it do.
        logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)
        self._settings, self._options = settings, options
        offset_s = options.clock_offset_s
        self._clock = system_clock(settings.clock_offset_us if offset_s is None else round(offset_s * _MICROS))
        self._client = connect(settings.online, settings.data_dir)
        self._plans = PlanStore(self._client, settings.project, signer_of(settings.data_dir))
        # Reports cross processes that replay different times: they go by the true time.
        self._users = PlanUsers(self._client, settings.project, system_clock())
        self._name = f"{WORKER}{socket.gethostname()} {os.getpid()}"
        self.registry = CollectorRegistry()
        self.registry.register(PromiseMetrics(settings.promises))
        self.metrics, self.pulse = StreamMetrics(self.registry, self._clock), Pulse()
        self._beside = Beside(settings, self.metrics, self.registry)
        self._outbox = outbox_of(settings, self._views(self._plans.load())) if options.dead_letters else None
        self._writer = ThreadPoolExecutor(1, "files", initializer=_give_way)

    def run(self, stop: Callable[[], bool]) -> None:
        """Keep the views current until `stop` says so, or all is read that was asked for."""
        every = self._options
        with (
            self._beside.looking(self._exposed, compact_s=every.compact_s, profile_s=every.profile_s),
            self._writer,
        ):
            while self._live(stop):
                pass
        if self._outbox is not None:
            self._outbox.close()
        with suppress(StoreUnavailable):
            self._users.leave(self._name)

    def _live(self, stop: Callable[[], bool]) -> bool:
        """The life of one worker; whether another is needed."""
        options, settings = self._options, self._settings
        plan = patiently(self._plans.load, stop=stop)
        views = self._views(plan)
        self._beside.take_up(plan, views)
        source, appeared = waited_for(
            partial(
                kafka_source,
                settings,
                plan,
                views,
                options.instance_id,
                max_records=options.batch,
                max_delay_ms=options.max_delay_ms,
                max_fetched_bytes=options.memory_mb << 19,
                session_timeout_ms=round(options.session_timeout_s * 1000),
            ),
            wait_s=options.wait_s,
            stop=stop,
        )
        for warning in warnings(settings, views, slowest_s=options.flush_s):
            _LOG.warning("%s", warning)
        watch = PlanWatch(
            self._plans,
            plan,
            self._views,
            self._sinks,
            time.monotonic,
            self.pulse,
            stop,
            appeared=appeared,
            report=partial(self._users.report, self._name),
            failed=self._beside.plan_failed,
        )
        worker = build_worker(
            settings,
            plan,
            views,
            source,
            self._sinks(plan, views),
            client=self._client,
            clock=self._clock,
            start_over=options.start_over,
            metrics=self.metrics,
            registry=registry_of(options.schema_registry, settings.schemas),
            pace=Pace(buffered_bytes=options.memory_mb << 19, slots_kept=options.tiles_kept),
        )
        self.metrics.follow(worker)
        gc.freeze()  # what is in memory now stays: a full pass over it stops the stream for 20 ms
        try:
            worker.run(watch.ended, until_caught_up=options.until_caught_up, news=watch.news)
        finally:
            source.close()
        return watch.moved and not stop()

    def _views(self, plan: Plan) -> tuple[View, ...]:
        return stream_views(plan, self._options.topics)

    def _sinks(self, plan: Plan, views: Sequence[View]) -> tuple[RangeSink, ...]:
        return build_sinks(
            self._settings,
            plan,
            views,
            clock=self._clock,
            flush_s=self._options.flush_s,
            flush_rows=self._options.flush_rows,
            outbox=self._outbox,
            writer=self._writer,
        )

    def _exposed(self) -> list[Exposure]:
        plan = self._plans.load()
        views = self._views(plan)
        # By the true clock: the broker's, whatever time is replayed here.
        now_us = system_clock()()
        return look(self._settings, views, self._sinks(plan, views), self.metrics.assigned(), now_us=now_us)


def _give_way() -> None:
    """Let the stream go first where there are fewer processors than work: files can wait, events are waited for.

    Linux has a priority for each thread; elsewhere all of a process have one, and nothing is done.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _FILES_NICE)
