"""Do topics keep their records for as long as somebody may need them, and do they say when one arrived?"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Final

import msgspec

from featurestore.config import Settings
from featurestore.doctor import Check
from featurestore.plan import Plan, View

LEAST_RETENTION_S: Final = 86_400.0
"""A day: how long a worker, its disk or its store may be away without a loss, at the least."""


class Finding(msgspec.Struct, frozen=True):
    """What of a topic's settings does not go together with what is promised."""

    topic: str
    setting: str
    found: str
    remedy: str
    loses: bool = True
    """Whether events may be lost; else it is about what can be known of them."""

    @property
    def line(self) -> str:
        """For a log."""
        return f"topic {self.topic!r} has {self.setting} {self.found}: {self.remedy}"


def findings(topic: str, configs: Mapping[str, str | None], *, slowest_s: float = 0.0) -> Iterator[Finding]:
    """What is to be mended; `slowest_s` is how long an event may wait for its file in the slowest sink.

    >>> [each.found for each in findings("clicks", {"retention.ms": "3600000", "cleanup.policy": "delete",
    ...                                             "message.timestamp.type": "LogAppendTime"})]
    ['1.0 h']
    """
    kept_ms = int(configs.get("retention.ms") or -1)
    needed_s = max(LEAST_RETENTION_S, 10 * slowest_s)
    if 0 <= kept_ms < needed_s * 1000:
        remedy = (
            f"an event that no worker has stored within that time is lost; keep records for {needed_s / 3600:.0f} h "
            "at least, longer than any worker, sink or store may be away"
        )
        yield Finding(topic, "retention.ms", f"{kept_ms / 3.6e6:.1f} h", remedy)
    kept_bytes = int(configs.get("retention.bytes") or -1)
    if kept_bytes >= 0:
        remedy = "how long a record stays depends on how many come; bound it by time alone"
        yield Finding(topic, "retention.bytes", f"{kept_bytes:,}", remedy)
    if "compact" in (configs.get("cleanup.policy") or "delete"):
        remedy = "compaction takes events of a key that has newer ones before they are counted; set it to delete"
        yield Finding(topic, "cleanup.policy", str(configs["cleanup.policy"]), remedy)
    if configs.get("message.timestamp.type", "CreateTime") != "LogAppendTime":
        remedy = (
            "arrivals are what producers say; set it to LogAppendTime, or training as known at an instant goes by "
            "their clocks"
        )
        kind = configs.get("message.timestamp.type", "CreateTime")
        yield Finding(topic, "message.timestamp.type", str(kind), remedy, loses=False)


def outlived(topic: str, configs: Mapping[str, str | None], *, oldest_us: int, now_us: int) -> Finding | None:
    """What is to be said where records are older than their topic keeps one: it goes by the time that they bear.

    >>> week = {"retention.ms": "604800000"}
    >>> outlived("clicks", week, oldest_us=0, now_us=30 * 86_400_000_000).found
    '168.0 h'
    >>> outlived("clicks", week, oldest_us=0, now_us=86_400_000_000)
    >>> outlived("clicks", {**week, "message.timestamp.type": "LogAppendTime"}, oldest_us=0, now_us=30 * 86_400_000_000)
    """
    kept_ms, age_ms = int(configs.get("retention.ms") or -1), (now_us - oldest_us) // 1000
    if not 0 <= kept_ms < age_ms or configs.get("message.timestamp.type") == "LogAppendTime":
        return None
    remedy = (
        f"messages are up to {age_ms / 3.6e6:,.0f} h old by their own time, and the broker deletes such at its next "
        "look, within minutes; set it to -1, and produce them again where they are gone"
    )
    return Finding(topic, "retention.ms", f"{kept_ms / 3.6e6:.1f} h", remedy)


def of_views(settings: Settings, views: Iterable[View], *, slowest_s: float = 0.0) -> list[Finding]:
    """The findings of all topics of these views. Raises SourceUnavailable, ConfigurationError."""
    from streaming.cluster import servers_of
    from streaming.source.kafka import KafkaSettings, security_from, topic_configs

    streamed = [view for view in views if view.source.topic is not None]
    if not streamed:
        return []
    kafka = KafkaSettings(servers_of(settings, streamed), security_from(os.environ))
    topics = sorted({view.source.topic.name for view in streamed if view.source.topic is not None})
    found = topic_configs(kafka, topics)
    return [each for topic in topics if topic in found for each in findings(topic, found[topic], slowest_s=slowest_s)]


def warnings(settings: Settings, views: Iterable[View], *, slowest_s: float) -> list[str]:
    """What a worker says when it starts: settings by which events may be lost. Empty where Kafka does not answer."""
    from streaming.source.records import SourceUnavailable

    with suppress(SourceUnavailable):
        return [each.line for each in of_views(settings, views, slowest_s=slowest_s) if each.loses]
    return []


def doctors_checks(settings: Settings, plan: Plan) -> Iterator[Check]:
    """The same as checks of `featurestore doctor`; nothing where Kafka does not answer, which is another check's."""
    from streaming.source.records import SourceUnavailable

    try:
        found = of_views(settings, plan.views.values())
    except SourceUnavailable:
        return
    for each in found:
        found_there = f"{each.setting} {each.found}"
        yield Check(name=f"topic {each.topic}", ok=not each.loses, found=found_there, remedy=each.remedy)
