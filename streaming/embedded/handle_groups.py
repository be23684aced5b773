"""How does the broker answer requests of consumer groups: membership and committed offsets?"""

from typing import Any

from kafka.protocol.admin import DeleteGroupsResponse, DescribeGroupsResponse, ListGroupsResponse
from kafka.protocol.consumer import (
    HeartbeatResponse,
    JoinGroupResponse,
    LeaveGroupResponse,
    OffsetCommitResponse,
    OffsetFetchResponse,
    SyncGroupResponse,
)
from kafka.protocol.metadata import FindCoordinatorResponse

from streaming.embedded.broker import NODE_ID, Broker
from streaming.embedded.codes import ErrorCode
from streaming.embedded.groups import JoinAsk, Member
from streaming.embedded.offsets import Committed

_NOTHING = Committed(-1, "")


async def find_coordinator(broker: Broker, _request: Any, version: int) -> Any:
    """This broker coordinates every group and every transaction."""
    return FindCoordinatorResponse(
        version=version,
        throttle_time_ms=0,
        error_code=0,
        error_message=None,
        node_id=NODE_ID,
        host=broker.address.host,
        port=broker.address.port,
    )


async def join_group(broker: Broker, request: Any, version: int) -> Any:
    """Enter a group; answered when its next generation is complete."""
    ask = JoinAsk(
        member_id=request.member_id,
        instance_id=request.group_instance_id if version >= 5 else None,
        client_id=request.header.client_id or "consumer",
        session_s=request.session_timeout_ms / 1000,
        rebalance_s=(request.rebalance_timeout_ms if version >= 1 else request.session_timeout_ms) / 1000,
        protocol_type=request.protocol_type,
        protocols=tuple((each.name, bytes(each.metadata)) for each in request.protocols),
        must_know_its_id=version >= 4,
    )
    joined = await broker.group(request.group_id).join(ask)
    shape = JoinGroupResponse.JoinGroupResponseMember
    return JoinGroupResponse(
        version=version,
        throttle_time_ms=0,
        error_code=joined.error,
        generation_id=joined.generation,
        protocol_type=request.protocol_type,
        protocol_name=joined.protocol,
        leader=joined.leader,
        member_id=joined.member_id,
        members=[shape(member_id=i, group_instance_id=instance, metadata=data) for i, instance, data in joined.members],
    )


async def sync_group(broker: Broker, request: Any, version: int) -> Any:
    """Fetch one's assignment, answered when the leader has sent all."""
    group = broker.group(request.group_id)
    instance_id = request.group_instance_id if version >= 3 else None
    assignments = {each.member_id: bytes(each.assignment) for each in request.assignments}
    synced = await group.sync(request.member_id, instance_id, request.generation_id, assignments)
    return SyncGroupResponse(
        version=version,
        throttle_time_ms=0,
        error_code=synced.error,
        protocol_type=group.protocol_type,
        protocol_name=group.protocol,
        assignment=synced.assignment,
    )


async def heartbeat(broker: Broker, request: Any, version: int) -> Any:
    """Stay in the group."""
    instance_id = request.group_instance_id if version >= 3 else None
    error = broker.group(request.group_id).heartbeat(request.member_id, instance_id, request.generation_id)
    return HeartbeatResponse(version=version, throttle_time_ms=0, error_code=error)


async def leave_group(broker: Broker, request: Any, version: int) -> Any:
    """Leave the group, or make others leave it (an operator removing static members)."""
    group = broker.group(request.group_id)
    if version < 3:
        return LeaveGroupResponse(version=version, throttle_time_ms=0, error_code=group.leave(request.member_id, None))
    members = [
        LeaveGroupResponse.MemberResponse(
            member_id=each.member_id,
            group_instance_id=each.group_instance_id,
            error_code=group.leave(each.member_id, each.group_instance_id),
        )
        for each in request.members
    ]
    return LeaveGroupResponse(version=version, throttle_time_ms=0, error_code=0, members=members)


async def offset_commit(broker: Broker, request: Any, version: int) -> Any:
    """Keep a group's offsets."""
    group = broker.group(request.group_id)
    instance_id = request.group_instance_id if version >= 7 else None
    refused = group.may_commit(request.member_id, instance_id, request.generation_id_or_member_epoch)
    shape = OffsetCommitResponse.OffsetCommitResponseTopic
    answers = []
    for asked in request.topics:
        partitions = []
        for part in asked.partitions:
            error = refused
            if not error and broker.topics.partition(asked.name, part.partition_index) is None:
                error = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
            if not error:
                committed = Committed(part.committed_offset, part.committed_metadata or "")
                broker.offsets.commit(request.group_id, asked.name, part.partition_index, committed)
            partitions.append(
                shape.OffsetCommitResponsePartition(partition_index=part.partition_index, error_code=error)
            )
        answers.append(shape(name=asked.name, partitions=partitions))
    return OffsetCommitResponse(version=version, throttle_time_ms=0, topics=answers)


async def offset_fetch(broker: Broker, request: Any, version: int) -> Any:
    """What a group committed; all of it where no topics are named."""
    held = broker.offsets.of(request.group_id)
    pending = broker.transactions.pending(request.group_id) if version >= 7 and request.require_stable else set()
    if request.topics is not None:
        wanted = [(each.name, list(each.partition_indexes)) for each in request.topics]
    else:
        wanted = [(name, sorted(p for n, p in held if n == name)) for name in sorted({name for name, _ in held})]
    shape = OffsetFetchResponse.OffsetFetchResponseTopic
    answers = []
    for name, numbers in wanted:
        partitions = []
        for number in numbers:
            committed = held.get((name, number), _NOTHING)
            unstable = (name, number) in pending
            partitions.append(
                shape.OffsetFetchResponsePartition(
                    partition_index=number,
                    committed_offset=committed.offset,
                    committed_leader_epoch=-1,
                    metadata=committed.metadata,
                    error_code=ErrorCode.UNSTABLE_OFFSET_COMMIT if unstable else ErrorCode.NONE,
                )
            )
        answers.append(shape(name=name, partitions=partitions))
    return OffsetFetchResponse(version=version, throttle_time_ms=0, error_code=0, topics=answers)


async def list_groups(broker: Broker, _request: Any, version: int) -> Any:
    """All groups with members or offsets."""
    groups = [
        ListGroupsResponse.ListedGroup(
            group_id=group.name, protocol_type=group.protocol_type, group_state=group.state.value
        )
        for group in broker.known_groups()
    ]
    return ListGroupsResponse(version=version, throttle_time_ms=0, error_code=0, groups=groups)


async def describe_groups(broker: Broker, request: Any, version: int) -> Any:
    """State and members of groups; one that nobody knows is Dead, as in Kafka."""
    known = {group.name for group in broker.known_groups()}
    shape = DescribeGroupsResponse.DescribedGroup
    answers = []
    for name in request.groups:
        group = broker.group(name)
        answers.append(
            shape(
                error_code=0,
                group_id=name,
                group_state=group.state.value if name in known else "Dead",
                protocol_type=group.protocol_type,
                protocol_data=group.protocol,
                members=[_described(member, group.protocol) for member in group.members.values()],
            )
        )
    return DescribeGroupsResponse(version=version, throttle_time_ms=0, groups=answers)


def _described(member: Member, protocol: str) -> Any:
    return DescribeGroupsResponse.DescribedGroup.DescribedGroupMember(
        member_id=member.member_id,
        group_instance_id=member.ask.instance_id,
        client_id=member.ask.client_id,
        client_host="/127.0.0.1",
        member_metadata=dict(member.ask.protocols).get(protocol, b""),
        member_assignment=member.assignment,
    )


async def delete_groups(broker: Broker, request: Any, version: int) -> Any:
    """Forget groups without members."""
    answers = []
    for name in request.groups_names:
        if broker.group(name).members:
            error = ErrorCode.NON_EMPTY_GROUP
        else:
            error = ErrorCode.NONE if broker.offsets.forget(name) else ErrorCode.GROUP_ID_NOT_FOUND
        answers.append(DeleteGroupsResponse.DeletableGroupResult(group_id=name, error_code=error))
    return DeleteGroupsResponse(version=version, throttle_time_ms=0, results=answers)
