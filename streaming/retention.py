"""Does the broker keep records for longer than the slowest sink is behind, as of now?

`streaming.topic_checks` asks what is configured; here it is what has come about: how old the oldest record is that a
sink lacks, against how long its topic keeps one. Beyond half of that it is said; what retention has taken is lost.
"""

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from threading import Event
from typing import Final

import msgspec
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from featurestore.config import Settings
from featurestore.plan import View
from featurestore.repeated import Failed, nobody, repeated
from streaming.cluster import servers_of
from streaming.sinks import RangeSink
from streaming.source.kafka import KafkaSettings, security_from, topic_configs
from streaming.source.peek import Peeked, peek
from streaming.source.records import TopicPartition
from streaming.source.replayed import is_replay

EVERY_S: Final = 60.0
TOLD_FROM: Final = 0.5
"""The share of its retention after which a sink that lags is said to."""
_LEAVE_S: Final = 2.0
_LOG = logging.getLogger(__name__)


class Exposure(msgspec.Struct, frozen=True, kw_only=True):
    """How the slowest sink stands against what the broker still has of one partition."""

    partition: TopicPartition
    sink: str
    stored: int
    """The offset from which on the sink lacks records."""
    beginning: int
    behind_s: float
    """Age of the oldest record that it lacks; 0 where it lacks none."""
    retention_s: float | None
    """How long the topic keeps a record; None: for ever."""

    @property
    def lost(self) -> int:
        """Offsets that the sink lacks and the broker has no more."""
        return max(self.beginning - self.stored, 0)

    @property
    def used(self) -> float:
        """The share of its retention that the oldest record has used; 1 and more where records are lost.

        >>> partition = TopicPartition("clicks", "id", 0)
        >>> Exposure(partition=partition, sink="event_log", stored=5, beginning=0, behind_s=30.0, retention_s=60.0).used
        0.5
        """
        share = self.behind_s / self.retention_s if self.retention_s else 0.0
        return max(share, 1.0) if self.lost else share

    @property
    def line(self) -> str | None:
        """What is to be said of it, for a log."""
        if self.lost:
            return (
                f"{self.partition}: retention took {self.lost} offsets that sink {self.sink} has not stored; "
                "make it longer, and find out why the sink lags"
            )
        if self.used >= TOLD_FROM:
            return (
                f"{self.partition}: the oldest record that sink {self.sink} lacks is {self.behind_s:.0f} s old, and "
                f"the broker keeps one for {self.retention_s:.0f} s: the sink must catch up, or retention be longer"
            )
        return None


def exposures(
    slowest: Mapping[TopicPartition, tuple[str, int]],
    peeked: Mapping[TopicPartition, Peeked],
    retention_s: Mapping[str, float | None],
    *,
    now_us: int,
) -> list[Exposure]:
    """By partition; `slowest` names the sink and the offset that was peeked at, -1 where it never stored anything."""
    found = []
    for partition, (sink, offset) in sorted(slowest.items()):
        there = peeked.get(partition)
        if there is None:
            continue
        lacks = offset < there.end and there.arrival_us is not None
        found.append(
            Exposure(
                partition=partition,
                sink=sink,
                stored=there.beginning if offset < 0 else offset,
                beginning=there.beginning,
                behind_s=max(now_us - (there.arrival_us or now_us), 0) / 1e6 if lacks else 0.0,
                retention_s=None if is_replay(partition.topic_id) else retention_s.get(partition.topic),
            )
        )
    return found


def look(
    settings: Settings,
    views: Collection[View],
    sinks: Iterable[RangeSink],
    partitions: Iterable[TopicPartition],
    *,
    now_us: int,
) -> list[Exposure]:
    """How the slowest of these sinks stands in each partition; `now_us` by the true clock, as the broker's.

    Raises SourceUnavailable, ConfigurationError.
    """
    kafka = KafkaSettings(servers_of(settings, views), security_from(os.environ))
    slowest = {each: _slowest(sinks, each) for each in partitions}
    configs = topic_configs(kafka, sorted({each.topic for each in slowest}))
    kept_ms = {topic: int(found.get("retention.ms") or -1) for topic, found in configs.items()}
    retention_s = {topic: None if ms < 0 else ms / 1000 for topic, ms in kept_ms.items()}
    peeked = peek(kafka, {each: offset for each, (_, offset) in slowest.items()})
    return exposures(slowest, peeked, retention_s, now_us=now_us)


def _slowest(sinks: Iterable[RangeSink], partition: TopicPartition) -> tuple[str, int]:
    cursors = [(sink.cursor(partition), sink.name) for sink in sinks]
    offset, name = min((-1 if cursor is None else cursor, name) for cursor, name in cursors)
    return name, offset


class RetentionMetrics(Collector):
    """Gauges of the last look."""

    def __init__(self) -> None:
        self.found: Sequence[Exposure] = ()

    def describe(self) -> Iterable[Metric]:
        """Nothing is promised ahead of the first question."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        labels = ["sink", "topic", "partition"]
        used = GaugeMetricFamily(
            "featurestore_stream_retention_used_ratio",
            "Age of the oldest record that a sink lacks, as a share of how long the broker keeps one",
            labels=labels,
        )
        behind = GaugeMetricFamily(
            "featurestore_stream_sink_behind_seconds", "Age of the oldest record that a sink lacks", labels=labels
        )
        for each in self.found:
            place = (each.sink, each.partition.topic, str(each.partition.partition))
            used.add_metric(place, each.used)
            behind.add_metric(place, each.behind_s)
        yield used
        yield behind


def watched(
    look_now: Callable[[], Sequence[Exposure]],
    metrics: RetentionMetrics,
    *,
    every_s: float = EVERY_S,
    failed: Failed = nobody,
) -> AbstractContextManager[None]:
    """Look over and over meanwhile; what is exposed is said each time, until it is mended."""

    def look_again(stopping: Event) -> None:  # noqa: ARG001 - asks the broker once
        metrics.found = look_now()
        for line in filter(None, (each.line for each in metrics.found)):
            _LOG.warning("%s", line)

    # A broker that does not answer must not keep a worker from leaving.
    return repeated("retention_check", look_again, every_s=every_s, failed=failed, leave_s=_LEAVE_S)
