"""How far is every version of every stream view, in each partition?"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from featurestore.errors import VersionDropped
from featurestore.online.connection import StoreClient
from featurestore.online.keys import Shard, shards_key
from featurestore.online.windowed import WindowedView
from featurestore.plan import Plan, View
from streaming.commit import NOT_YET, ShardStore
from streaming.retention import Exposure
from streaming.source.records import TopicPartition
from streaming.source.replayed import is_replay

Role = Literal["read", "building", "retiring", "unused"]


class PartitionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One shard. What is null is not known, or not there yet."""

    topic_id: str
    partition: int
    replayed: bool
    """Whether its events were replayed from quarantine."""
    offset: int | None
    """Null where nobody has claimed it, or the store lost it."""
    end: int | None
    """Null for a topic that is none any more (it was a file, or another topic of that name), and without Kafka."""
    lag_records: int | None
    lag_s: float | None
    """Age of the newest event that counts, while there are others to come; 0 where there are none."""
    watermark_us: int | None
    complete: bool
    complete_from_us: int | None
    """Windows that reach before it lack events; null where none do."""
    stored: int | None
    """The offset from which on the slowest sink lacks events; null without Kafka, or a topic that is none any more."""
    retention_used: float | None
    """Age of the oldest that it lacks, as a share of how long the broker keeps one; from 1 on some are lost."""
    plan_version: int | None
    """Of the definitions by which its last batch was judged."""


class ViewStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one view."""

    view: str
    version: int
    role: Role
    """Whether readers go by it, a backfill builds it, readers are leaving it, or its keys wait to be dropped."""
    topic: str
    reads: Literal["keyed", "spread", "latest"]
    """Whether a reader looks into one partition for a key, or into all; as things are now, whatever is declared."""
    declared: str
    partitions: tuple[PartitionStatus, ...]
    duplicates: int = 0
    reused_ids: int = 0

    @property
    def claimed(self) -> bool:
        """Whether there is state of every partition."""
        return bool(self.partitions) and all(each.offset is not None for each in self.partitions)


def status_of(
    client: StoreClient,
    plan: Plan,
    topics: Sequence[str],
    ends: Mapping[TopicPartition, int],
    exposed: Mapping[TopicPartition, Exposure] = {},
    *,
    store: ShardStore,
    now_us: int,
) -> tuple[ViewStatus, ...]:
    """Every version of the stream views of these topics (of all if none is named), those that are read first."""
    found = []
    for role, view in _versions(plan):
        if view.source.topic is not None and (not topics or view.source.topic.name in topics):
            found.append(_view(client, plan, role, view, ends, exposed, store, now_us))
    return tuple(found)


def _versions(plan: Plan) -> Iterator[tuple[Role, View]]:
    for _, view in sorted(plan.views.items()):
        yield "read", view
    for _, view in sorted(plan.building.items()):
        yield "building", view
    for view in plan.retiring:
        yield "retiring", view
    for view in plan.unused:
        yield "unused", view


def _view(
    client: StoreClient,
    plan: Plan,
    role: Role,
    view: View,
    ends: Mapping[TopicPartition, int],
    exposed: Mapping[TopicPartition, Exposure],
    store: ShardStore,
    now_us: int,
) -> ViewStatus:
    assert view.source.topic is not None  # asked only of stream views
    topic = view.source.topic.name
    partitions = []
    duplicates = reused = 0
    for entry in store.registered(plan.project, view.name, view.version):
        control = store.control(Shard(plan.project, view.name, view.version, entry.topic_id, entry.partition))
        place = TopicPartition(topic, entry.topic_id, entry.partition)
        end, sinks = ends.get(place), exposed.get(place)
        lag = None if end is None or control is None else max(end - control.offset, 0)
        watermark_us = None if control is None else control.watermark_us
        partitions.append(
            PartitionStatus(
                topic_id=entry.topic_id,
                partition=entry.partition,
                replayed=is_replay(entry.topic_id),
                offset=None if control is None else control.offset,
                end=end,
                lag_records=lag,
                lag_s=None if lag is None else _lag_s(lag, watermark_us, now_us),
                watermark_us=watermark_us,
                complete=entry.complete_from_us != NOT_YET,
                complete_from_us=None if entry.complete_from_us == NOT_YET else entry.complete_from_us,
                stored=None if sinks is None else sinks.stored,
                retention_used=None if sinks is None else sinks.used,
                plan_version=None if control is None else control.plan_version,
            )
        )
        duplicates += 0 if control is None else control.duplicates
        reused += 0 if control is None else control.reused_ids
    return ViewStatus(
        view=view.name,
        version=view.version,
        role=role,
        topic=topic,
        reads=_reads(client, plan, view),
        declared=view.partitions,
        partitions=tuple(partitions),
        duplicates=duplicates,
        reused_ids=reused,
    )


def _lag_s(lag: int, watermark_us: int | None, now_us: int) -> float | None:
    if not lag:
        return 0.0
    return None if watermark_us is None else max(now_us - watermark_us, 0) / 1e6


def _reads(client: StoreClient, plan: Plan, view: View) -> Literal["keyed", "spread", "latest"]:
    """As a reader would: it knows from the list of shards whether every key lies in its own partition."""
    if view.kind != "windowed":
        return "latest"
    raw = client.get(shards_key(plan.project, view.name, view.version))
    try:
        shards = WindowedView.of(plan.project, view).shards(raw if isinstance(raw, bytes) else None)
    except VersionDropped:
        return "spread"
    return "keyed" if shards.homes else "spread"
