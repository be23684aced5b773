"""Which offset arrived when, and does the broker still have it? Asked by nobody's group."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from kafka import KafkaConsumer
from kafka import TopicPartition as ClientPartition
from kafka.errors import KafkaError

from streaming.source.kafka import KafkaSettings, unavailable
from streaming.source.records import TopicPartition
from streaming.source.replayed import is_replay, replay_topic

_MICROS: Final = 1_000
_FETCHED_BYTES: Final = 64 << 10
_PATIENCE_S: Final = 10.0


class Peeked(msgspec.Struct, frozen=True):
    """One partition, as its broker has it."""

    beginning: int
    """The first offset that retention has left."""
    end: int
    arrival_us: int | None
    """Of the first record from the asked offset on; None where there is none, or none came in time."""


def peek(
    settings: KafkaSettings, offsets: Mapping[TopicPartition, int], *, patience_s: float = _PATIENCE_S
) -> dict[TopicPartition, Peeked]:
    """What each partition has from an offset on; one whose topic is gone is left out. Raises SourceUnavailable."""
    if not offsets:
        return {}
    with _asking(settings) as consumer:
        there = consumer.topics()
        asked = {_client(each): each for each in offsets if _client(each).topic in there}
        beginnings, ends = consumer.beginning_offsets(list(asked)), consumer.end_offsets(list(asked))
        starts = {each: max(offsets[asked[each]], beginnings[each]) for each in asked}
        waiting = {each for each, start in starts.items() if start < ends[each]}
        arrivals: dict[ClientPartition, int] = {}
        consumer.assign(list(waiting))
        for each in waiting:
            consumer.seek(each, starts[each])
        until = time.monotonic() + patience_s
        while waiting and time.monotonic() < until:
            for each, records in consumer.poll(timeout_ms=200).items():
                arrivals.setdefault(each, records[0].timestamp * _MICROS)
            done = {each for each in waiting if each in arrivals or consumer.position(each) >= ends[each]}
            consumer.pause(*done)
            waiting -= done
    return {partition: Peeked(beginnings[each], ends[each], arrivals.get(each)) for each, partition in asked.items()}


def first_since(
    settings: KafkaSettings, partitions: Iterable[TopicPartition], arrival_us: int
) -> dict[TopicPartition, int]:
    """The first offset of each partition that arrived then or later, else its end. Raises SourceUnavailable."""
    asked = {_client(each): each for each in partitions}
    with _asking(settings) as consumer:
        ends = consumer.end_offsets(list(asked))
        # Kafka knows milliseconds, floored.
        found = consumer.offsets_for_times(dict.fromkeys(asked, arrival_us // _MICROS))
    return {
        partition: ends[each] if found.get(each) is None else found[each].offset for each, partition in asked.items()
    }


@contextmanager
def _asking(settings: KafkaSettings) -> Iterator[Any]:
    """A consumer of no group."""
    try:
        consumer = KafkaConsumer(
            **settings.client,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            max_partition_fetch_bytes=_FETCHED_BYTES,
        )
    except KafkaError as error:
        raise unavailable(settings, error) from error
    try:
        yield consumer
    except KafkaError as error:
        raise unavailable(settings, error) from error
    finally:
        consumer.close(autocommit=False)


def _client(partition: TopicPartition) -> ClientPartition:
    topic = replay_topic(partition.topic) if is_replay(partition.topic_id) else partition.topic
    return ClientPartition(topic, partition.partition)
