"""How are Kafka's topics read so that nothing starts anywhere but where the reader said?

The consumer belongs to a group with eager assignment and, given an instance id, static membership: a restart within the
session timeout takes the same partitions back and disturbs nobody. Nothing is ever committed to Kafka and no offset is
ever reset on its own; records of aborted transactions are not seen.
"""

import socket
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer
from kafka import TopicPartition as ClientPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.errors import (
    CorruptRecordError,
    FencedInstanceIdError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    UnknownTopicOrPartitionError,
)

from featurestore.errors import UnknownName
from streaming.source.flat_records import read_flat
from streaming.source.records import (
    Assigned,
    Batch,
    CorruptLog,
    MemberReplaced,
    NotAssigned,
    OffsetGone,
    Rebalance,
    Revoked,
    SourceUnavailable,
    TopicPartition,
)
from streaming.source.rejoin import keep_join

_LEAST_FETCH_BYTES = 64 << 10
_FULL_BATCH_BYTES = 256 << 10
_NO_TOPIC_ID = "00000000-0000-0000-0000-000000000000"
_SECURITY = {
    "KAFKA_SECURITY_PROTOCOL": "security_protocol",
    "KAFKA_SASL_MECHANISM": "sasl_mechanism",
    "KAFKA_SASL_USERNAME": "sasl_plain_username",
    "KAFKA_SASL_PASSWORD": "sasl_plain_password",
    "KAFKA_SSL_CAFILE": "ssl_cafile",
    "KAFKA_SSL_CERTFILE": "ssl_certfile",
    "KAFKA_SSL_KEYFILE": "ssl_keyfile",
    "KAFKA_SSL_PASSWORD": "ssl_password",
}


class KafkaSettings(msgspec.Struct, frozen=True):
    """How to reach a cluster, and how much to take from it at once.

    `max_records` bounds one poll, `max_partition_bytes` what the client holds ready for one partition, and
    `max_fetched_bytes` what it holds for all of them (64 KiB a partition at least, and one message, however large).
    With `max_delay_ms` the broker holds events back that long for a fuller batch. A reader that is silent for
    `session_timeout_ms` loses its partitions.
    """

    bootstrap_servers: str
    security: Mapping[str, str] = {}
    max_records: int = 5_000
    max_partition_bytes: int = 4 << 20
    max_fetched_bytes: int = 128 << 20
    max_delay_ms: int = 0
    fetch_wait_ms: int = 100
    session_timeout_ms: int = 10_000
    max_poll_interval_ms: int = 300_000
    request_timeout_ms: int = 30_000
    metadata_age_ms: int = 30_000

    @property
    def client(self) -> dict[str, Any]:
        """What every client of the cluster is given."""
        return {
            "bootstrap_servers": [server.strip() for server in self.bootstrap_servers.split(",")],
            "request_timeout_ms": self.request_timeout_ms,
            "bootstrap_timeout_ms": self.request_timeout_ms,
            **self.security,
        }


def security_from(environ: Mapping[str, str]) -> dict[str, str]:
    """Client settings for TLS and SASL from `KAFKA_SECURITY_PROTOCOL`, `KAFKA_SASL_…` and `KAFKA_SSL_…`.

    >>> security_from({"KAFKA_SECURITY_PROTOCOL": "SSL", "HOME": "/root"})
    {'security_protocol': 'SSL'}
    """
    return {setting: environ[name] for name, setting in _SECURITY.items() if environ.get(name)}


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python is untyped
    """Runs on the client's own thread, which also sends the heartbeats: it only enqueues."""

    def __init__(self, changes: deque[tuple[str, list[ClientPartition]]]) -> None:
        self._changes = changes

    def on_partitions_assigned(self, assigned: Iterable[ClientPartition]) -> None:
        """See ConsumerRebalanceListener."""
        self._changes.append(("assigned", sorted(assigned)))

    def on_partitions_revoked(self, revoked: Iterable[ClientPartition]) -> None:
        """See ConsumerRebalanceListener."""
        self._changes.append(("revoked", sorted(revoked)))

    def on_partitions_lost(self, lost: Iterable[ClientPartition]) -> None:
        """See ConsumerRebalanceListener."""
        self._changes.append(("lost", sorted(lost)))


class KafkaSource:
    """A Source over Kafka topics, as one member of a consumer group.

    Raises UnknownName when a topic does not exist, SourceUnavailable when no broker answers. Closing leaves a static
    member in the group until its session ends, so that a restart finds its partitions.
    """

    def __init__(
        self, settings: KafkaSettings, topics: Sequence[str], *, group: str, instance_id: str | None = None
    ) -> None:
        self._settings = settings
        self._changes: deque[tuple[str, list[ClientPartition]]] = deque()
        self._rebalances: list[Rebalance] = []
        self._partitions: dict[ClientPartition, TopicPartition] = {}
        self._positions: dict[ClientPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._consumer: Any = None
        try:
            # A refusal is known at once here; the client would go on trying, and leak its sockets when it gives up.
            knock(settings)
            self._admin = KafkaAdminClient(**settings.client)
        except (KafkaError, OSError) as error:
            raise self._unavailable(error) from error
        try:
            partitions = sum(len(self.partitions_of(topic)) for topic in topics)
            fetched = settings.max_fetched_bytes // max(partitions, 1)
            self._consumer = KafkaConsumer(
                **settings.client,
                group_id=group,
                group_instance_id=instance_id,
                partition_assignment_strategy=[RoundRobinPartitionAssignor],
                enable_auto_commit=False,
                auto_offset_reset="none",
                isolation_level="read_committed",
                allow_auto_create_topics=False,
                max_poll_records=settings.max_records,
                max_partition_fetch_bytes=max(_LEAST_FETCH_BYTES, min(settings.max_partition_bytes, fetched)),
                fetch_min_bytes=_FULL_BATCH_BYTES if settings.max_delay_ms else 1,
                fetch_max_wait_ms=settings.max_delay_ms or settings.fetch_wait_ms,
                session_timeout_ms=settings.session_timeout_ms,
                heartbeat_interval_ms=max(100, settings.session_timeout_ms // 5),
                max_poll_interval_ms=settings.max_poll_interval_ms,
                metadata_max_age_ms=settings.metadata_age_ms,
            )
            read_flat(self._consumer)
            self._consumer.subscribe(list(topics), listener=_Listener(self._changes))
            for topic in topics:
                self._consumer.partitions_for_topic(topic)  # or the first generation would assign nothing
        except KafkaError as error:
            self.close()
            raise self._unavailable(error) from error
        except (UnknownName, SourceUnavailable):
            self.close()
            raise

    def drain_rebalances(self) -> list[Rebalance]:
        """See Source. Topic ids are asked of the cluster at each assignment: a topic may have been made anew."""
        self._absorb()
        drained, self._rebalances = self._rebalances, []
        return drained

    def poll(self, timeout_ms: int) -> list[Batch]:
        """See Source. A cluster that went away is not an error: the client goes on trying and nothing comes."""
        keep_join(self._consumer)
        try:
            fetched = self._consumer.poll(timeout_ms)
        except NoOffsetForPartitionError:
            fetched = {}  # assigned and not sought yet: the reader learns of it at its next drain
        except OffsetOutOfRangeError as error:
            fetched = {}
            self._out_of_range(error)
        except FencedInstanceIdError as error:
            raise MemberReplaced("another process joined the consumer group under this instance id") from error
        except CorruptRecordError as error:
            raise CorruptLog(
                f"Kafka at {self._settings.bootstrap_servers} sent what cannot be read: {error}"
            ) from error
        except KafkaError as error:
            raise self._unavailable(error) from error
        self._absorb()
        batches = []
        for held, before in list(self._positions.items()):
            # The position after a poll is what the client will fetch next; no public call tells it without a request.
            position = self._consumer._subscription.position(held)  # noqa: SLF001
            end = getattr(self._consumer._subscription.assignment.get(held), "highwater", None)  # noqa: SLF001
            if end is not None:
                self._ends[self._partitions[held]] = end
            if position is None or position.offset == before:
                continue
            partition = self._partitions[held]
            self._positions[held] = position.offset
            batches.append(
                Batch(
                    partition.topic,
                    partition.topic_id,
                    partition.partition,
                    fetched.get(held, ()),
                    before,
                    position.offset,
                )
            )
        return batches

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """See Source."""
        held = ClientPartition(partition.topic, partition.partition)
        self._absorb()
        if self._partitions.get(held) != partition:
            raise NotAssigned(partition)
        try:
            self._consumer.seek(held, offset)
        except (AssertionError, KeyError, KafkaError) as error:
            raise NotAssigned(partition) from error
        self._positions[held] = offset

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """See Source. What was taken from us meanwhile needs no pause."""
        for held in self._held(partitions):
            with suppress(AssertionError, KeyError, KafkaError):
                self._consumer.pause(held)

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """See Source."""
        for held in self._held(partitions):
            with suppress(AssertionError, KeyError, KafkaError):
                self._consumer.resume(held)

    def partitions_of(self, topic: str) -> tuple[TopicPartition, ...]:
        """See Source; always asks the cluster, so that growth is seen."""
        try:
            [described] = self._admin.describe_topics([topic])
            if described["error_code"] == UnknownTopicOrPartitionError.errno:
                known = [name for name in self._admin.list_topics() if not name.startswith("__")]
                raise UnknownName("topic", topic, known)
        except KafkaError as error:
            raise self._unavailable(error) from error
        found = str(described["topic_id"] or _NO_TOPIC_ID)
        topic_id = topic if found == _NO_TOPIC_ID else found  # brokers before 2.8 have no ids
        numbers = sorted(each["partition_index"] for each in described["partitions"])
        return tuple(TopicPartition(topic, topic_id, number) for number in numbers)

    def topics(self) -> frozenset[str]:
        """Every topic that there is now. Raises SourceUnavailable."""
        try:
            return frozenset(self._admin.list_topics())
        except KafkaError as error:
            raise self._unavailable(error) from error

    def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """See Source."""
        return self._offsets(self._consumer.beginning_offsets, partitions)

    def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """See Source: before the oldest transaction that is still open."""
        return self._offsets(self._consumer.end_offsets, partitions)

    def known_end(self, partition: TopicPartition) -> int | None:
        """See Source: as the last fetch told it, transactions that are still open included."""
        return self._ends.get(partition)

    def close(self) -> None:
        """See Source."""
        if self._consumer is not None:
            self._consumer.close(autocommit=False, timeout_ms=5_000)
        self._admin.close()
        self._positions.clear()

    def _absorb(self) -> None:
        """Turn what the listener enqueued into values; positions of what changed hands are forgotten."""
        while self._changes:
            kind, held = self._changes[0]
            if kind == "assigned":
                known = {topic: self._topic_id(topic) for topic in {each.topic for each in held}}
                mine = []
                for each in held:
                    self._positions.pop(each, None)
                    if topic_id := known[each.topic]:
                        self._partitions[each] = TopicPartition(each.topic, topic_id, each.partition)
                        mine.append(self._partitions[each])
                self._rebalances.append(Assigned(tuple(mine)))
            else:
                gone = [self._partitions.pop(each) for each in held if each in self._partitions]
                for each in held:
                    self._positions.pop(each, None)
                if gone:
                    self._rebalances.append(Revoked(tuple(gone), lost=kind == "lost"))
            self._changes.popleft()  # last: where the cluster did not answer, the change is still there to be told

    def _topic_id(self, topic: str) -> str | None:
        """The topic's id; None where it was deleted since it was assigned."""
        try:
            return self.partitions_of(topic)[0].topic_id
        except UnknownName:
            return None

    def _out_of_range(self, error: Any) -> None:
        """Tell the reader which offset is gone; not where the partition was never sought."""
        for held, offset in error.args[0].items():
            partition = self._partitions.get(held)
            if partition and held in self._positions:
                beginning = self.beginning_offsets([partition])[partition]
                end = self.end_offsets([partition])[partition]
                raise OffsetGone(partition, offset, beginning, end) from error

    def _held(self, partitions: Iterable[TopicPartition]) -> list[ClientPartition]:
        return [
            ClientPartition(each.topic, each.partition)
            for each in partitions
            if ClientPartition(each.topic, each.partition) in self._partitions
        ]

    def _offsets(self, ask: Any, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        wanted = {ClientPartition(each.topic, each.partition): each for each in partitions}
        if not wanted:
            return {}
        try:
            found = ask(list(wanted), timeout_ms=self._settings.request_timeout_ms)
        except KafkaError as error:
            raise self._unavailable(error) from error
        return {wanted[held]: int(offset) for held, offset in found.items()}

    def _unavailable(self, error: Exception) -> SourceUnavailable:
        return unavailable(self._settings, error)


def topics_of(settings: KafkaSettings) -> frozenset[str]:
    """Every topic that a cluster has. Raises SourceUnavailable."""
    try:
        knock(settings)
        admin = KafkaAdminClient(**settings.client)
        try:
            return frozenset(admin.list_topics())
        finally:
            admin.close()
    except (KafkaError, OSError) as error:
        raise unavailable(settings, error) from error


def topic_configs(settings: KafkaSettings, topics: Sequence[str]) -> dict[str, dict[str, str | None]]:
    """The settings of those of these topics that there are, defaults included. Raises SourceUnavailable."""
    try:
        knock(settings)
        admin = KafkaAdminClient(**settings.client)
        try:
            there = [topic for topic in topics if topic in admin.list_topics()]
            asked = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in there]
            found = admin.describe_configs(asked, config_filter="all") if asked else {}
        finally:
            admin.close()
    except (KafkaError, OSError) as error:
        raise unavailable(settings, error) from error
    told: dict[str, dict[str, Any]] = {}
    for by_name in found.values():
        told.update(by_name)
    return {
        topic: {name: each["value"] if isinstance(each, dict) else each for name, each in configs.items()}
        for topic, configs in told.items()
    }


def unavailable(settings: KafkaSettings, error: Exception) -> SourceUnavailable:
    """What is raised where a cluster does not answer."""
    return SourceUnavailable(
        f"Kafka at {settings.bootstrap_servers} did not answer ({type(error).__name__}: {error}); "
        "is it running, and is KAFKA_BOOTSTRAP_SERVERS right?"
    )


def knock(settings: KafkaSettings) -> None:
    """Connect to the first server that accepts. Raises OSError when none does."""
    failure = OSError("no server is named")
    for server in settings.client["bootstrap_servers"]:
        host, _, port = server.rpartition(":") if ":" in server else (server, "", "9092")
        try:
            socket.create_connection((host.strip("[]"), int(port)), settings.request_timeout_ms / 1000).close()
        except (OSError, ValueError) as error:
            failure = OSError(f"{server}: {error}")
        else:
            return
    raise failure
