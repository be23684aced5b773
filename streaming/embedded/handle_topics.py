"""How does the broker answer requests about topics: what exists, create, grow, configure, delete?"""

import uuid
from typing import Any

from kafka.protocol.admin import (
    CreatePartitionsResponse,
    CreateTopicsResponse,
    DeleteRecordsResponse,
    DeleteTopicsResponse,
    DescribeConfigsResponse,
)
from kafka.protocol.metadata import MetadataResponse

from streaming.embedded.broker import NODE_ID, Broker
from streaming.embedded.codes import ErrorCode
from streaming.embedded.handle_data import named_topic
from streaming.embedded.topics import DEFAULTS, Topic

_NO_ID = uuid.UUID(int=0)
_TOPIC_RESOURCE = 2
_SET_ON_TOPIC, _DEFAULT = 1, 5
_TO_THE_END = -1


async def metadata(broker: Broker, request: Any, version: int) -> Any:
    """The one broker, and the topics asked for (all, where none are named)."""
    shape = MetadataResponse.MetadataResponseTopic
    create = bool(request.allow_auto_topic_creation) if version >= 4 else True
    found: list[tuple[str, Topic | None]]
    if request.topics is None or (version == 0 and not request.topics):
        found = [(topic.name, topic) for topic in broker.topics]
    else:
        found = [_asked_topic(broker, asked, create=create) for asked in request.topics]
    topics = [
        shape(
            error_code=ErrorCode.NONE if topic else ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
            name=name,
            topic_id=topic.topic_id if topic else _NO_ID,
            is_internal=False,
            partitions=[
                shape.MetadataResponsePartition(
                    error_code=0,
                    partition_index=number,
                    leader_id=NODE_ID,
                    leader_epoch=0,
                    replica_nodes=[NODE_ID],
                    isr_nodes=[NODE_ID],
                    offline_replicas=[],
                )
                for number in range(len(topic.partitions) if topic else 0)
            ],
        )
        for name, topic in found
    ]
    node = MetadataResponse.MetadataResponseBroker(
        node_id=NODE_ID, host=broker.address.host, port=broker.address.port, rack=None
    )
    return MetadataResponse(
        version=version, throttle_time_ms=0, brokers=[node], cluster_id="embedded", controller_id=NODE_ID, topics=topics
    )


def _asked_topic(broker: Broker, asked: Any, *, create: bool) -> tuple[str, Topic | None]:
    if asked.name is not None:
        return asked.name, named_topic(broker, asked.name, create=create)
    for topic in broker.topics:
        if topic.topic_id == asked.topic_id:
            return topic.name, topic
    return "", None


async def create_topics(broker: Broker, request: Any, version: int) -> Any:
    """Create topics; -1 partitions means the broker's default."""
    answers = []
    for asked in request.topics:
        count = asked.num_partitions if asked.num_partitions != -1 else max(1, broker.auto_partitions)
        configs = {config.name: config.value for config in asked.configs or ()}
        if request.validate_only:
            error = ErrorCode.TOPIC_ALREADY_EXISTS if broker.topics.get(asked.name) else ErrorCode.NONE
        else:
            error = broker.topics.create(asked.name, len(asked.assignments or ()) or count, configs)
        topic = broker.topics.get(asked.name)
        answers.append(
            CreateTopicsResponse.CreatableTopicResult(
                name=asked.name,
                topic_id=topic.topic_id if topic and not error else _NO_ID,
                error_code=error,
                error_message=error.name if error else None,
                num_partitions=count,
                replication_factor=1,
                configs=[],
            )
        )
    return CreateTopicsResponse(version=version, throttle_time_ms=0, topics=answers)


async def delete_topics(broker: Broker, request: Any, version: int) -> Any:
    """Delete topics with their data."""
    answers = [
        DeleteTopicsResponse.DeletableTopicResult(name=name, error_code=broker.topics.delete(name), error_message=None)
        for name in request.topic_names
    ]
    return DeleteTopicsResponse(version=version, throttle_time_ms=0, responses=answers)


async def create_partitions(broker: Broker, request: Any, version: int) -> Any:
    """Let topics grow."""
    answers = []
    for asked in request.topics:
        topic = broker.topics.get(asked.name)
        if topic is None:
            error = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        elif request.validate_only:
            error = ErrorCode.NONE if asked.count > len(topic.partitions) else ErrorCode.INVALID_PARTITIONS
        else:
            error = broker.topics.grow(topic, asked.count)
        answers.append(
            CreatePartitionsResponse.CreatePartitionsTopicResult(name=asked.name, error_code=error, error_message=None)
        )
    return CreatePartitionsResponse(version=version, throttle_time_ms=0, results=answers)


async def delete_records(broker: Broker, request: Any, version: int) -> Any:
    """Move the beginnings of partitions, as retention would."""
    shape = DeleteRecordsResponse.DeleteRecordsTopicResult
    answers = []
    for asked in request.topics:
        partitions = []
        for part in asked.partitions:
            log = broker.topics.partition(asked.name, part.partition_index)
            error = ErrorCode.NONE if log else ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
            if log and part.offset > log.end:
                error = ErrorCode.OFFSET_OUT_OF_RANGE
            elif log:
                log.delete_before(log.end if part.offset == _TO_THE_END else part.offset)
            partitions.append(
                shape.DeleteRecordsPartitionResult(
                    partition_index=part.partition_index,
                    low_watermark=log.beginning if log else -1,
                    error_code=error,
                )
            )
        answers.append(shape(name=asked.name, partitions=partitions))
    broker.topics.save()
    return DeleteRecordsResponse(version=version, throttle_time_ms=0, topics=answers)


async def describe_configs(broker: Broker, request: Any, version: int) -> Any:
    """The settings of topics; of the broker itself none."""
    shape = DescribeConfigsResponse.DescribeConfigsResult
    answers = []
    for asked in request.resources:
        topic = broker.topics.get(asked.resource_name) if asked.resource_type == _TOPIC_RESOURCE else None
        missing = topic is None and asked.resource_type == _TOPIC_RESOURCE
        names = sorted({*DEFAULTS, *topic.configs}) if topic else []
        if asked.configuration_keys is not None:
            names = [name for name in names if name in asked.configuration_keys]
        answers.append(
            shape(
                error_code=ErrorCode.UNKNOWN_TOPIC_OR_PARTITION if missing else ErrorCode.NONE,
                error_message=None,
                resource_type=asked.resource_type,
                resource_name=asked.resource_name,
                configs=[_config(topic, name) for name in names if topic],
            )
        )
    return DescribeConfigsResponse(version=version, throttle_time_ms=0, results=answers)


def _config(topic: Topic, name: str) -> Any:
    value = topic.configs.get(name, DEFAULTS.get(name))
    return DescribeConfigsResponse.DescribeConfigsResult.DescribeConfigsResourceResult(
        name=name,
        value=value,
        read_only=False,
        config_source=_SET_ON_TOPIC if name in topic.configs else _DEFAULT,
        is_sensitive=False,
        synonyms=[],
        config_type=0,
        documentation=None,
    )
