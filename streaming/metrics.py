"""What can be measured of a worker? Prometheus metrics, read from the worker when somebody asks.

Counting costs the stream next to nothing: what happened to a batch is added up once a batch, and how far the worker
has come is looked at when the metrics are. A worker that starts anew under another Plan goes on with the counts.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import numpy as np
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from featurestore.clock import Clock
from featurestore.online.connection import StoreClient
from streaming.commit import Claim, Commit, Fenced, ShardStore
from streaming.judged import Judged
from streaming.source.records import TopicPartition
from streaming.standing import PartitionStanding, Standing
from streaming.worker import Worker

_COMMIT_S: Final = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_DELAYS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 300.0, 3600.0)
_PREFIX: Final = "featurestore_stream"
_COUNTED: Final = {
    "claims": "Partitions taken over",
    "commits": "Commits of one view's shard",
    "fenced": "Commits refused because another claim holds the shard, or the store came back older",
    "retries": "Rounds that failed and were tried again",
    "unforeseen": "Rounds that failed in a way nobody foresaw and were tried again",
    "strays": "Batches that did not start where the last one ended",
    "slots": "Tile slots written",
    "late": "Accepted events beyond some window, counted in each view",
    "duplicates": "Repeats of events that had counted",
    "reused_ids": "Events under the id of another event",
}


class MeasuredStore(ShardStore):
    """A ShardStore that tells how long each commit took, in seconds."""

    def __init__(self, client: StoreClient, clock: Clock, on_commit: Callable[[float], None]) -> None:
        super().__init__(client, clock)
        self._on_commit = on_commit

    def commit(self, commits: Sequence[Commit]) -> list[Claim | Fenced]:
        """See ShardStore."""
        start = time.perf_counter()
        found = super().commit(commits)
        took = time.perf_counter() - start
        for _ in commits:  # those that go together take as long each
            self._on_commit(took)
        return found


class StreamMetrics(Collector):
    """Everything measured of the workers of one process, one after the other."""

    def __init__(self, registry: CollectorRegistry, clock: Clock) -> None:
        self._clock = clock
        self._worker: Worker | None = None
        self._before: Counter[str] = Counter()
        self._events: Counter[tuple[str, ...]] = Counter()
        self._accepted: Counter[tuple[str, ...]] = Counter()
        self._rejected: Counter[tuple[str, ...]] = Counter()
        self._broken: Counter[tuple[str, ...]] = Counter()
        self._windows: Counter[tuple[str, ...]] = Counter()
        self._profiled: Counter[tuple[str, ...]] = Counter()
        self._delays = np.zeros(len(_DELAYS_S) + 1, np.int64)
        self._delays_sum_s = 0.0
        self._commits = Histogram(
            f"{_PREFIX}_commit_seconds",
            "Time of one commit of tiles and offset",
            buckets=_COMMIT_S,
            registry=registry,
        )
        registry.register(self)

    def follow(self, worker: Worker) -> None:
        """From now on this is the worker that is asked; the counts of the last one stay."""
        if self._worker is not None:
            self._before.update(self._worker.counters)
        self._worker = worker

    @property
    def counters(self) -> dict[str, int]:
        """The counters of all workers so far, added up."""
        # A copy first: the loop counts on another thread.
        now = {} if self._worker is None else dict(self._worker.counters)
        return dict(self._before + Counter(now))

    def standing(self) -> Standing | None:
        """How far the present worker is; None before there is one."""
        return None if self._worker is None else self._worker.standing()

    def held(self) -> tuple[TopicPartition, ...]:
        """The partitions in this process's hands."""
        standing = self.standing()
        return () if standing is None else tuple(each.partition for each in standing.partitions)

    def assigned(self) -> tuple[TopicPartition, ...]:
        """The partitions that are this process's to read, claimed or not."""
        return () if self._worker is None else self._worker.assigned

    def committed(self, seconds: float) -> None:
        """Count one commit."""
        self._commits.observe(seconds)

    def judged(self, judged: Judged) -> None:
        """Count a batch whose effects are committed."""
        topic = judged.batch.topic
        self._events[topic,] += len(judged.batch.records)
        self._accepted[topic,] += len(judged.events)
        for item in judged.rejected:
            self._rejected[topic, item.reason] += 1
            for rule in item.rule_ids:
                self._broken[topic, rule, "quarantine"] += 1
        for rule, count in judged.warned.items():
            self._broken[topic, rule, "warn"] += count
        if len(judged.arrival_us):
            # A producer's clock may be ahead of ours: less than no time is none.
            delays_s = np.maximum(self._clock() - judged.arrival_us, 0) / 1e6
            self._delays += np.bincount(np.searchsorted(_DELAYS_S, delays_s), minlength=len(_DELAYS_S) + 1)
            self._delays_sum_s += float(delays_s.sum())

    def window(self, topic: str, rule: str, outcome: str) -> None:
        """Count the verdict of a rule about many events on one window of arrival."""
        self._windows[topic, rule, outcome] += 1

    def profiled(self, topic: str, events: int) -> None:
        """Count events that went into profiles; those of a block that was not whole go in again with the rest."""
        self._profiled[topic,] += events

    def describe(self) -> Iterable[Metric]:
        """Nothing is promised ahead of the first question: a registry need not ask."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """See Collector. Runs on the thread of whoever asks."""
        yield _counter("events", "Records read and committed", ["topic"], dict(self._events))
        yield _counter("accepted", "Events accepted", ["topic"], dict(self._accepted))
        yield _counter("rejected", "Events set aside", ["topic", "reason"], dict(self._rejected))
        yield _counter(
            "rules_broken", "Events that broke a rule of the contract", ["topic", "rule", "effect"], dict(self._broken)
        )
        yield _counter(
            "rule_windows",
            "Windows of arrival judged by a rule about many events",
            ["topic", "rule", "outcome"],
            dict(self._windows),
        )
        yield _counter("profiled", "Accepted events that went into profiles", ["topic"], dict(self._profiled))
        counters = self.counters
        for name, text in _COUNTED.items():
            yield _counter(name, text, [], {(): counters.get(name, 0)})
        yield self._delay()
        standing = self.standing()
        if standing is not None:
            yield from self._gauges(standing)

    def _delay(self) -> Metric:
        reached = np.cumsum(self._delays).tolist()
        buckets = [(str(bound), reached[place]) for place, bound in enumerate((*_DELAYS_S, "+Inf"))]
        family = HistogramMetricFamily(
            f"{_PREFIX}_arrival_to_commit_seconds", "From an accepted event's arrival to its commit"
        )
        family.add_metric([], buckets, self._delays_sum_s)
        return family

    def _gauges(self, standing: Standing) -> Iterator[Metric]:
        now_us = self._clock()
        yield _gauge("plan_version", "Version of the plan in force", [], [((), standing.plan_version)])
        yield _gauge("failures_in_a_row", "Rounds that failed since the last good one", [], [((), standing.failures)])
        held = standing.partitions
        yield _gauge(
            "partitions",
            "Partitions in this worker's hands",
            ["state"],
            [(("claimed",), len(held)), (("to_claim",), standing.to_claim)],
        )
        named = [((each.partition.topic, str(each.partition.partition)), each) for each in held]
        lags = [(labels, each.lag) for labels, each in named if each.lag is not None]
        yield _gauge(
            "lag_records", "Offsets between the last commit and the partition's end", ["topic", "partition"], lags
        )
        seconds = [(labels, lag) for labels, each in named if (lag := _lag_s(each, now_us)) is not None]
        yield _gauge(
            "lag_seconds", "Age of the newest committed record; 0 without lag", ["topic", "partition"], seconds
        )
        behind = [
            ((sink, *labels), each.position - stored) for labels, each in named for sink, stored in each.stored.items()
        ]
        yield _gauge(
            "sink_behind_records",
            "Offsets committed and not yet in the sink's files",
            ["sink", "topic", "partition"],
            behind,
        )
        ages = [
            ((shard.view, str(shard.version), *labels), (now_us - shard.watermark_us) / 1e6)
            for labels, each in named
            for shard in each.shards
            if shard.watermark_us is not None
        ]
        yield _gauge(
            "event_age_seconds",
            "Age of the newest event that a view has counted",
            ["view", "version", "topic", "partition"],
            ages,
        )


def _lag_s(each: PartitionStanding, now_us: int) -> float | None:
    if each.lag == 0:
        return 0.0
    return None if each.lag is None or each.arrival_us is None else max(now_us - each.arrival_us, 0) / 1e6


def _counter(name: str, text: str, labels: list[str], values: dict[tuple[str, ...], int]) -> Metric:
    family = CounterMetricFamily(f"{_PREFIX}_{name}", text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _gauge(name: str, text: str, labels: list[str], values: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family
