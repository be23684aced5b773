"""How does a process of this deployment reach its Kafka cluster?"""

import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from featurestore.config import Settings
from featurestore.errors import ConfigurationError
from featurestore.plan import Plan, View
from streaming.outbox import Outbox
from streaming.source.kafka import KafkaSettings, KafkaSource, security_from, topics_of
from streaming.source.publisher import Publisher
from streaming.source.records import Source, SourceUnavailable
from streaming.source.replayed import KEPT, WithReplays, is_replay, replay_topic

_PATIENCE_MS = 3_000
_AGAIN_S: Final = 0.5
_LOG = logging.getLogger(__name__)
_Reached = TypeVar("_Reached")


def waited_for(
    reach: Callable[[], _Reached],
    *,
    wait_s: float,
    stop: Callable[[], bool],
    seconds: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> _Reached:
    """What `reach` returns; while no broker answers it is asked again for so long, or until `stop` says so.

    A deployment starts in any order, and a broker that restarts takes its workers with it only where they give up.
    Raises the last SourceUnavailable.
    """
    end = seconds() + wait_s
    while True:
        try:
            return reach()
        except SourceUnavailable as error:
            left_s = end - seconds()
            if left_s <= 0 or stop():
                raise
            _LOG.warning("%s; trying again for %.0f s", error, left_s)
        sleep(min(_AGAIN_S, left_s))


def kafka_source(
    settings: Settings,
    plan: Plan,
    views: Iterable[View],
    instance_id: str | None,
    *,
    beside: str = "",
    **limits: int,
) -> tuple[Source, Callable[[], bool]]:
    """The topics of the views and of their replayed events, and whether another of the latter has appeared since.

    `beside` names a reader that shares partitions with no worker; `limits` are fields of KafkaSettings. Raises
    SourceUnavailable, UnknownName and ConfigurationError.
    """
    topics = sorted({view.source.topic.name for view in views if view.source.topic is not None})
    kafka = KafkaSettings(servers_of(settings, views), security_from(os.environ), **limits)
    there = topics_of(kafka)
    replayed = [topic for topic in topics if replay_topic(topic) in there]
    group = f"featurestore-{plan.project}" + (f"-{beside}" if beside else "")
    source = KafkaSource(kafka, [*topics, *map(replay_topic, replayed)], group=group, instance_id=instance_id)

    def appeared() -> bool:
        try:
            now = source.topics()
        except SourceUnavailable:
            return False
        return any(replay_topic(topic) in now for topic in topics if topic not in replayed)

    return WithReplays(source, replayed), appeared


def outbox_of(settings: Settings, views: Iterable[View]) -> Outbox:
    """Writes to topics of the views' cluster; connects when something is written. Raises ConfigurationError."""
    # A worker that waits for a broker must still notice that it shall leave.
    kafka = KafkaSettings(servers_of(settings, views), security_from(os.environ), request_timeout_ms=_PATIENCE_MS)

    def dial(topic: str, like: str | None) -> Publisher:
        return Publisher(kafka, topic, like=like, configs=KEPT if is_replay(topic) else {})

    return Outbox(dial)


def servers_of(settings: Settings, views: Iterable[View]) -> str:
    """The brokers to ask first: of the deployment, else what the views' topics declare. Raises ConfigurationError."""
    if settings.bootstrap_servers:
        return settings.bootstrap_servers
    servers = sorted({view.source.topic.bootstrap_servers for view in views if view.source.topic is not None})
    if len(servers) != 1:
        raise ConfigurationError(
            f"the stream views name several clusters: {', '.join(servers)}; run one worker for each with its topics, "
            "or set KAFKA_BOOTSTRAP_SERVERS"
        )
    return servers[0]
