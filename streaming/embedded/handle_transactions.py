"""How does the broker answer requests of transactional and idempotent producers?"""

from typing import Any

from kafka.protocol.producer import (
    AddOffsetsToTxnResponse,
    AddPartitionsToTxnResponse,
    EndTxnResponse,
    InitProducerIdResponse,
    TxnOffsetCommitResponse,
)

from streaming.embedded.broker import Broker
from streaming.embedded.codes import ErrorCode
from streaming.embedded.offsets import Committed


async def init_producer_id(broker: Broker, request: Any, version: int) -> Any:
    """A producer id and epoch; an earlier producer of the same transactional id is fenced."""
    before = (request.producer_id, request.producer_epoch) if version >= 3 else (-1, -1)
    timeout_s = request.transaction_timeout_ms / 1000
    error, producer_id, epoch = broker.transactions.start(request.transactional_id, timeout_s, *before)
    return InitProducerIdResponse(
        version=version, throttle_time_ms=0, error_code=error, producer_id=producer_id, producer_epoch=epoch
    )


async def add_partitions(broker: Broker, request: Any, version: int) -> Any:
    """The transaction will write to these partitions."""
    error, held = broker.transactions.find(
        request.v3_and_below_transactional_id,
        request.v3_and_below_producer_id,
        request.v3_and_below_producer_epoch,
    )
    shape = AddPartitionsToTxnResponse.AddPartitionsToTxnTopicResult
    answers = []
    for asked in request.v3_and_below_topics:
        partitions = []
        for number in asked.partitions:
            missing = broker.topics.partition(asked.name, number) is None
            if held and not missing:
                broker.transactions.add_partition(held, asked.name, number)
            partitions.append(
                shape.AddPartitionsToTxnPartitionResult(
                    partition_index=number,
                    partition_error_code=error or (ErrorCode.UNKNOWN_TOPIC_OR_PARTITION if missing else ErrorCode.NONE),
                )
            )
        answers.append(shape(name=asked.name, results_by_partition=partitions))
    return AddPartitionsToTxnResponse(version=version, throttle_time_ms=0, results_by_topic_v3_and_below=answers)


async def add_offsets(broker: Broker, request: Any, version: int) -> Any:
    """The transaction will commit offsets of this group."""
    error, held = broker.transactions.find(request.transactional_id, request.producer_id, request.producer_epoch)
    if held:
        broker.transactions.add_group(held, request.group_id)
    return AddOffsetsToTxnResponse(version=version, throttle_time_ms=0, error_code=error)


async def offset_commit(broker: Broker, request: Any, version: int) -> Any:
    """Offsets that take effect with the transaction's commit, or never."""
    error, held = broker.transactions.find(request.transactional_id, request.producer_id, request.producer_epoch)
    if held and version >= 3 and request.generation_id >= 0:
        group = broker.group(request.group_id)
        error = group.check(request.member_id, request.group_instance_id, request.generation_id)
    shape = TxnOffsetCommitResponse.TxnOffsetCommitResponseTopic
    answers = []
    for asked in request.topics:
        partitions = []
        for part in asked.partitions:
            if held and not error:
                offsets = held.offsets.setdefault(request.group_id, {})
                offsets[asked.name, part.partition_index] = Committed(
                    part.committed_offset, part.committed_metadata or ""
                )
            partitions.append(
                shape.TxnOffsetCommitResponsePartition(partition_index=part.partition_index, error_code=error)
            )
        answers.append(shape(name=asked.name, partitions=partitions))
    return TxnOffsetCommitResponse(version=version, throttle_time_ms=0, topics=answers)


async def end(broker: Broker, request: Any, version: int) -> Any:
    """Commit or abort."""
    error, held = broker.transactions.find(request.transactional_id, request.producer_id, request.producer_epoch)
    if held:
        broker.transactions.end(held, commit=request.committed)
    return EndTxnResponse(version=version, throttle_time_ms=0, error_code=error)
