"""How does the broker answer requests about records: produce, fetch, offsets by time?"""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

from kafka.protocol.consumer import FetchResponse, ListOffsetsResponse
from kafka.protocol.producer import ProduceResponse

from streaming.embedded.batches import CorruptBatch, OldFormat, read_header
from streaming.embedded.broker import Broker
from streaming.embedded.codes import ErrorCode
from streaming.embedded.log import Appended, PartitionLog
from streaming.embedded.topics import MAX_MESSAGE_BYTES, Topic

_log = logging.getLogger(__name__)
_LATEST, _EARLIEST, _NEWEST_TIMESTAMP = -1, -2, -3
_BATCH_OVERHEAD = 61


async def produce(broker: Broker, request: Any, version: int) -> Any | None:
    """Append records; no answer where the producer asked for none (acks=0)."""
    answers = []
    for asked in request.topic_data:
        topic = named_topic(broker, asked.name, create=True)
        partitions = []
        for part in asked.partition_data:
            now_ms = broker.clock_ms() if topic and topic.stamps_arrival else None
            done = _append(broker, topic, asked.name, part, now_ms)
            partitions.append(
                ProduceResponse.TopicProduceResponse.PartitionProduceResponse(
                    index=part.index,
                    error_code=done.error,
                    base_offset=done.base_offset,
                    log_append_time_ms=-1 if now_ms is None else now_ms,
                    log_start_offset=0,
                    record_errors=[],
                    error_message=None,
                )
            )
        answers.append(ProduceResponse.TopicProduceResponse(name=asked.name, partition_responses=partitions))
    if request.acks == 0:
        return None
    return ProduceResponse(version=version, responses=answers, throttle_time_ms=0)


def _append(broker: Broker, topic: Topic | None, name: str, part: Any, now_ms: int | None) -> Appended:
    log = broker.topics.partition(name, part.index)
    if topic is None or log is None:
        return Appended(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, -1)
    data = bytes(part.records or b"")
    if len(data) > int(topic.config(MAX_MESSAGE_BYTES)) + _BATCH_OVERHEAD:
        return Appended(ErrorCode.MESSAGE_TOO_LARGE, -1)
    try:
        header = read_header(data)
    except (CorruptBatch, OldFormat):
        return log.append(data)
    if header.transactional:
        error = broker.transactions.may_write(header.producer_id, header.producer_epoch, name, part.index)
        if error:
            return Appended(error, -1)
    try:
        return log.append(data, append_time_ms=now_ms)
    except OSError as error:
        _log.warning("partition %s-%d cannot be written: %s", name, part.index, error)
        return Appended(ErrorCode.KAFKA_STORAGE_ERROR, -1)  # the producer will try again


async def fetch(broker: Broker, request: Any, version: int) -> Any:
    """Records from given offsets, waiting for `min_bytes` as long as the consumer allows."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + request.max_wait_ms / 1000
    changed = asyncio.Event()
    logs = [log for _, _, log in _fetched(broker, request) if log]
    for log in logs:
        log.watchers.add(changed)
    try:
        while True:
            changed.clear()
            answers, size, failed = _read(broker, request)
            left_s = deadline - loop.time()
            if size >= request.min_bytes or failed or left_s <= 0:
                break
            try:
                await asyncio.wait_for(changed.wait(), left_s)
            except TimeoutError:
                continue
    finally:
        for log in logs:
            log.watchers.discard(changed)
    # Session 0 says that the broker keeps none: every fetch names all its partitions.
    return FetchResponse(version=version, throttle_time_ms=0, error_code=0, session_id=0, responses=answers)


def _fetched(broker: Broker, request: Any) -> Iterator[tuple[str, Any, PartitionLog | None]]:
    for asked in request.topics:
        for part in asked.partitions:
            yield asked.topic, part, broker.topics.partition(asked.topic, part.partition)


def _read(broker: Broker, request: Any) -> tuple[list[Any], int, bool]:
    """The answer as it stands, its size, and whether a partition failed (then there is nothing to wait for)."""
    shape = FetchResponse.FetchableTopicResponse
    answers: dict[str, list[Any]] = {}
    size, failed = 0, False
    committed_only = request.isolation_level == 1
    for name, part, log in _fetched(broker, request):
        error, data, aborted = ErrorCode.NONE, b"", None
        if log is None:
            error = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        elif not log.beginning <= part.fetch_offset <= log.end:
            error = ErrorCode.OFFSET_OUT_OF_RANGE
        else:
            limit = log.stable_end if committed_only else log.end
            room = request.max_bytes - size
            if room > 0:
                data = log.read(part.fetch_offset, min(part.partition_max_bytes, room), limit)
            if committed_only:
                aborted = [
                    shape.PartitionData.AbortedTransaction(producer_id=gone.producer_id, first_offset=gone.first_offset)
                    for gone in log.aborted_from(part.fetch_offset, limit)
                ]
        size += len(data)
        failed = failed or bool(error)
        answers.setdefault(name, []).append(
            shape.PartitionData(
                partition_index=part.partition,
                error_code=error,
                high_watermark=log.end if log else -1,
                last_stable_offset=log.stable_end if log else -1,
                log_start_offset=log.beginning if log else -1,
                aborted_transactions=aborted,
                preferred_read_replica=-1,
                records=data,
            )
        )
    return [shape(topic=name, partitions=parts) for name, parts in answers.items()], size, failed


async def list_offsets(broker: Broker, request: Any, version: int) -> Any:
    """First and last offsets, and the first one at or after a time."""
    shape = ListOffsetsResponse.ListOffsetsTopicResponse
    answers = []
    for asked in request.topics:
        partitions = []
        for part in asked.partitions:
            log = broker.topics.partition(asked.name, part.partition_index)
            found: tuple[int, int] | None = None
            if log:
                last = log.stable_end if version >= 2 and request.isolation_level == 1 else log.end
                found = _offset_at(log, part.timestamp, last)
            offset, timestamp = found or (-1, -1)
            partitions.append(
                shape.ListOffsetsPartitionResponse(
                    partition_index=part.partition_index,
                    error_code=ErrorCode.NONE if log else ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
                    timestamp=timestamp,
                    offset=offset,
                    leader_epoch=0 if log else -1,
                )
            )
        answers.append(shape(name=asked.name, partitions=partitions))
    return ListOffsetsResponse(version=version, throttle_time_ms=0, topics=answers)


def _offset_at(log: PartitionLog, timestamp: int, last: int) -> tuple[int, int] | None:
    if timestamp == _LATEST:
        return last, -1
    if timestamp == _EARLIEST:
        return log.beginning, -1
    found = log.newest() if timestamp == _NEWEST_TIMESTAMP else log.at_time(timestamp)
    return found if found and found[0] < last else None


def named_topic(broker: Broker, name: str, *, create: bool) -> Topic | None:
    """A topic by name; created where the broker creates what is named and the client lets it."""
    topic = broker.topics.get(name)
    if topic is None and create and broker.auto_partitions:
        broker.topics.create(name, broker.auto_partitions, {})
        topic = broker.topics.get(name)
    return topic
