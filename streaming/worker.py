"""How does one process keep the windows of all stream views current?

The loop: take note of partitions gained and lost, claim the new ones, poll, and put every batch through the same
steps. For each batch, in this order:

1. check that it starts where the last one ended (a gap or a repeat: claim again);
2. verdicts on all its events, by what is in force at their offsets (`streaming.verdicts`), for all views of the topic;
3. for each view: read the tiles that are missing, merge, and commit tiles and offset in one script;
4. hand accepted and rejected events to the sinks, which store them when they are due.

Whatever fails after 1, the partition is dropped and claimed again: it goes on from the offsets that are stored beside
the results. So each event counts once in the tiles and once in the files, whatever was repeated on the way.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import msgspec

from featurestore.clock import Clock
from featurestore.errors import StoreUnavailable
from featurestore.online.keys import Shard
from featurestore.plan import Plan, View
from streaming.claim_record import ClaimRecord
from streaming.commit import NOT_YET, Fenced, ShardStore
from streaming.event_columns import by_topic
from streaming.held_shard import HeldShard, fold_together
from streaming.homes import partitions_of
from streaming.in_force import definitions_of
from streaming.judged import Judged
from streaming.pipeline import AHEAD_TOLERANCE_US
from streaming.schema_registry import SchemaRegistry
from streaming.shard_state import SLOTS_KEPT
from streaming.sinks import RangeSink, SinkUnavailable
from streaming.skips import Skip, Skips, hole_at, without
from streaming.source.records import (
    Assigned,
    Batch,
    NotAssigned,
    OffsetBeyondEnd,
    OffsetGone,
    Revoked,
    Source,
    SourceUnavailable,
    TopicPartition,
)
from streaming.standing import PartitionStanding, ShardStanding, Standing
from streaming.takeover import Takeover
from streaming.verdicts import Verdicts
from streaming.view_pipeline import LatestPipeline, ViewPipeline
from validation.errors import PlatformError

_LOG = logging.getLogger(__name__)
_IDLE_POLLS: Final = 10
"""So many polls that brought nothing, a second of them, pass between two looks for new definitions."""
_BEYOND_TRIES: Final = 6
_RECOVERABLE: Final = (Fenced, StoreUnavailable, SinkUnavailable, SourceUnavailable, NotAssigned)


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How the loop waits and how much it holds."""

    poll_ms: int = 100
    slots_kept: int = SLOTS_KEPT
    """Cached tiles per shard."""
    buffered_bytes: int = 128 << 20
    """What the sinks may hold together; more is stored at once, whatever its age."""
    backoff_s: float = 0.05
    """Wait after the first failure in a row; doubled each time."""
    longest_backoff_s: float = 2.0
    unforeseen: int = 10
    """Rounds in a row that may end in an error that is none of this product's, before the worker ends by it."""


class News(msgspec.Struct, frozen=True):
    """Another plan, the views of it that are to be kept current, and sinks that know its contracts."""

    plan: Plan
    views: tuple[View, ...]
    sinks: tuple[RangeSink, ...]


class _Held:
    """A partition in our hands: where the next batch must start, and its shards, one for each view."""

    def __init__(self, position: int, shards: list[HeldShard], skips: tuple[Skip, ...]) -> None:
        self.position = position
        self.shards = shards
        self.skips = skips
        self.arrival_us: int | None = None


class Worker:
    """The stream of one process. Not shared by threads.

    Raises DefinitionError at once for views that cannot be streamed. `turn` and `run` raise StateLost and OffsetGone,
    which nothing here can repair; what can be repaired by claiming again, they repair, and count.
    """

    def __init__(
        self,
        source: Source,
        store: ShardStore,
        sinks: Sequence[RangeSink],
        plan: Plan,
        *,
        views: Sequence[View],
        record: ClaimRecord,
        clock: Clock,
        new_token: Callable[[], str],
        pace: Pace = Pace(),  # noqa: B008 - a frozen value
        sleep: Callable[[float], None] = time.sleep,
        start_over: bool = False,
        decides: bool = True,
        ahead_tolerance_us: int = AHEAD_TOLERANCE_US,
        on_committed: Callable[[Judged], None] | None = None,
        registry: SchemaRegistry | None = None,
    ) -> None:
        self.counters: Counter[str] = Counter()
        """Events, accepted, rejected:REASON, warned:RULE, late, duplicates, reused_ids, commits, slots, claims,
        fenced, retries, strays, unforeseen."""
        self._source = source
        self._store = store
        self._sinks = tuple(sinks)
        self._takeover = Takeover(store, record, new_token, start_over=start_over)
        self._clock = clock
        self._pace = pace
        self._sleep = sleep
        self._on_committed = on_committed
        self._decides = decides
        self._ahead_tolerance_us = ahead_tolerance_us
        self._event_log = record.root
        self._skips = Skips(record.root)
        self._registry = registry
        self._verdicts: dict[str, Verdicts] = {}
        self._views: dict[str, list[ViewPipeline | LatestPipeline]] = {}
        self._take_up(plan, views)
        self._held: dict[TopicPartition, _Held] = {}
        self._to_claim: dict[TopicPartition, None] = {}
        self._assigned_once = False
        self._failures = 0
        self._unforeseen = 0
        self._beyond: dict[TopicPartition, int] = {}
        """How often the log ended before an offset that is stored."""
        self._idle = 0
        """Polls in a row that brought nothing."""
        self._events_before = 0
        self._counted: dict[TopicPartition, int] = {}
        """Everything before is counted, whatever is read again."""

    @property
    def positions(self) -> Mapping[TopicPartition, int]:
        """Where each partition that is held stands: everything before is committed."""
        return {partition: held.position for partition, held in self._held.items()}

    @property
    def assigned(self) -> tuple[TopicPartition, ...]:
        """The partitions that are ours to read, claimed or not. May be asked from another thread."""
        return (*self._held.copy(), *self._to_claim.copy())

    def overtaken(self) -> bool:
        """Whether somebody else has claimed a shard that is ours; to be asked where this worker is to yield."""
        held = [shard.claim for each in self._held.values() for shard in each.shards]
        controls = [(self._store.control(claim.shard), claim) for claim in held]
        return any(control is None or control.epoch != claim.epoch.decode() for control, claim in controls)

    @property
    def topics(self) -> frozenset[str]:
        """The topics that are read."""
        return frozenset(self._views)

    def standing(self) -> Standing:
        """How far it is. May be asked from another thread: it copies first what may change meanwhile."""
        return Standing(
            plan_version=self._plan.version,
            partitions=tuple(self._standing_of(partition, held) for partition, held in self._held.copy().items()),
            to_claim=len(self._to_claim),
            assigned=self._assigned_once,
            failures=self._failures,
            counters=dict(self.counters),
        )

    def _standing_of(self, partition: TopicPartition, held: _Held) -> PartitionStanding:
        shards = tuple(
            ShardStanding(
                view=shard.claim.shard.view,
                version=shard.claim.shard.version,
                offset=shard.claim.offset,
                watermark_us=shard.claim.watermark_us,
                complete=shard.goal is None,
            )
            for shard in held.shards
        )
        return PartitionStanding(
            partition=partition,
            position=held.position,
            end=self._source.known_end(partition),
            arrival_us=held.arrival_us,
            shards=shards,
            stored={sink.name: held.position - sink.behind(partition) for sink in self._sinks},
        )

    def run(
        self,
        stop: Callable[[], bool],
        *,
        until_caught_up: bool = False,
        news: Callable[[], News | None] = lambda: None,
    ) -> None:
        """Turn until `stop` says so; then leave. `news` may hand over another plan between two turns.

        With `until_caught_up` also once the offsets that were the topics' ends at the start are committed and
        stored in all partitions, also in those that other workers hold.
        """
        goals = self._begin(stop, until_caught_up=until_caught_up)
        while not stop():
            if (changed := news()) is not None:
                self.adopt(changed)
            self._survive(self.turn)
            if until_caught_up and self._is_done(goals):
                break
        self.leave()

    def _survive(self, turn: Callable[[int], int]) -> None:
        """One round; an error that nobody foresaw is logged with its traceback, counted, and the round tried again.

        After `Pace.unforeseen` such rounds in a row it is raised, with the places that were being read: a record that
        no worker can get past must not be tried in silence for ever (`featurestore stream skip` steps past it).
        """
        try:
            turn(self._pace.poll_ms)
        except PlatformError:
            raise
        except Exception as error:
            # What is only read again is no progress.
            events = self.counters["events"]
            self._unforeseen = 1 if events > self._events_before else self._unforeseen + 1
            self._events_before = events
            self.counters["unforeseen"] += 1
            places = ", ".join(f"{each} at offset {offset}" for each, offset in self.positions.items()) or "none"
            if self._unforeseen >= self._pace.unforeseen:
                error.add_note(f"partitions in hand: {places}; `featurestore stream skip` steps past a record")
                raise
            _LOG.exception("a round failed in a way that nobody foresaw; partitions in hand: %s", places)
            for partition in list(self._held):
                self._again(partition)
            self._recover(error)

    def _begin(self, stop: Callable[[], bool], *, until_caught_up: bool) -> dict[TopicPartition, int]:
        """List the partitions, and where they end if that is a goal: as often as it takes."""
        while not stop():
            try:
                self._store.check_policy()
                self.announce()
                goals = self._ends() if until_caught_up else {}
            except _RECOVERABLE as error:
                self._recover(error)
            else:
                self._failures = 0
                return goals
        return {}

    def adopt(self, news: News) -> None:
        """Go over to another plan of the same topics, between two batches: what is held is stored and claimed again.

        From which offsets on its definitions are in force, all workers of the topic settle together. Raises
        DefinitionError, without having changed anything, for views that cannot be streamed.
        """
        self._take_up(news.plan, news.views)
        for partition in list(self._held):
            self._release(partition, flush=True)
            self._claim_later(partition)
        self._sinks = tuple(news.sinks)
        with suppress(StoreUnavailable, SourceUnavailable):
            self.announce()  # claiming registers too, with the next turn

    def _take_up(self, plan: Plan, views: Sequence[View]) -> None:
        pipelines = {topic: [_pipeline_of(view) for view in readers] for topic, readers in by_topic(views).items()}
        # What is accepted depends on the views that are served; one that is being built or retired has no say.
        served = [view for view in plan.views.values() if view.source.topic and view.source.topic.name in pipelines]
        definitions = definitions_of(plan, served or views, tolerance_us=self._ahead_tolerance_us)
        verdicts = {
            topic: self._verdicts.get(topic) or Verdicts(self._event_log, topic, self._registry) for topic in pipelines
        }
        for topic, found in verdicts.items():
            found.propose(definitions[topic], only_first=not self._decides)
        self._plan, self._views, self._verdicts = plan, pipelines, verdicts

    def announce(self) -> None:
        """List every partition for readers, as not complete until somebody has claimed it."""
        for topic, pipelines in self._views.items():
            for partition in self._source.partitions_of(topic):
                for pipeline in pipelines:
                    self._store.register(self._shard(pipeline.view, partition), NOT_YET, only_new=True)

    def turn(self, timeout_ms: int) -> int:
        """One round of the loop; how many records it went through. Failures that claiming again repairs are counted."""
        records = 0
        try:
            self._rebalance()
            failure = self._claim_waiting()
            self._settle(topic for topic, verdicts in self._verdicts.items() if verdicts.unsettled)
            self._step_past()
            # Also while nothing can be claimed: who does not poll for long is put out of the group.
            batches = [self._readable(batch) for batch in self._source.poll(timeout_ms)]
            for topic in dict.fromkeys(batch.topic for batch in batches):
                self._settle([topic])
                records += self._take(topic, [batch for batch in batches if batch.topic == topic])
            self._idle = 0 if batches else self._idle + 1
            if self._idle % _IDLE_POLLS == 1:
                # What was proposed while nothing comes is in force before the next event, not from it on.
                self._settle(self._verdicts)
            self._store_due()
        except _RECOVERABLE as error:
            failure = error
        if failure is None:
            self._failures = 0
        else:
            self._recover(failure)
        return records

    def _settle(self, topics: Iterable[str]) -> None:
        """Learn what is in force in these topics, and settle what waits."""
        for topic in topics:
            self._verdicts[topic].look(partial(self._ends_of, topic))

    def _skips_of(self, partition: TopicPartition) -> tuple[Skip, ...]:
        try:
            return self._skips.of(partition)
        except OSError as error:
            raise SinkUnavailable(f"the offsets to step past cannot be listed: {error}") from error

    def _step_past(self) -> None:
        """Go on behind what an operator said cannot be read, as behind a hole of the log."""
        for partition, held in list(self._held.items()):
            after = hole_at(held.skips, held.position)
            if after is None:
                continue
            _LOG.warning("%s: offsets %d to %d are stepped past", partition, held.position, after - 1)
            self._settle([partition.topic])
            hole = Batch(partition.topic, partition.topic_id, partition.partition, (), held.position, after)
            self._take(partition.topic, [hole])
            if self._held.get(partition) is held:
                self._source.seek(partition, held.position)

    def _readable(self, batch: Batch) -> Batch:
        held = self._held.get(batch.source)
        return batch if held is None or not held.skips else without(batch, held.skips)

    def _store_due(self) -> None:
        """Files for what is due by rows, age or memory: nothing is read on before it is stored."""
        full = sum(sink.size_bytes for sink in self._sinks) > self._pace.buffered_bytes
        for sink in self._sinks:
            if full:
                sink.flush_all()
            else:
                sink.flush_due()

    def leave(self) -> None:
        """Store what the sinks hold and give the partitions back; what fails here is replayed by the next owner."""
        for partition in list(self._held):
            self._release(partition, flush=True)
        self._source.close()

    def _rebalance(self) -> None:
        for change in self._source.drain_rebalances():
            match change:
                case Assigned(partitions):
                    self._assigned_once = True
                    for partition in partitions:
                        self._release(partition, flush=False)
                        self._claim_later(partition)
                case Revoked(partitions, lost):
                    for partition in partitions:
                        self._release(partition, flush=not lost)

    def _release(self, partition: TopicPartition, *, flush: bool) -> None:
        held = self._held.pop(partition, None)
        self._to_claim.pop(partition, None)
        for sink in self._sinks:
            if held is not None and flush:
                try:
                    sink.flush(partition)
                except SinkUnavailable as error:
                    _LOG.warning("%s; the next owner replays it", error)
            sink.close(partition)

    def _claim_later(self, partition: TopicPartition) -> None:
        """Nothing more is fetched of it until it is claimed: it could only be thrown away."""
        self._to_claim[partition] = None
        self._source.pause([partition])

    def _claim_waiting(self) -> Exception | None:
        """Claim what is not claimed yet; what is in the way, if it may pass."""
        for partition in list(self._to_claim):
            try:
                self._claim(partition)
            except _RECOVERABLE as error:
                return error
        return None

    def _claim(self, partition: TopicPartition) -> None:
        """Take a partition over: a new epoch on each of its shards, then read on from the lowest cursor."""
        beginning = self._source.beginning_offsets([partition])[partition]
        shards = [self._claim_shard(pipeline, partition, beginning) for pipeline in self._views[partition.topic]]
        position = min(
            [*(shard.claim.offset for shard in shards), *(sink.open(partition, beginning) for sink in self._sinks)]
        )
        self._refuse_beyond(partition, [shard.claim.offset for shard in shards])
        if position < beginning:
            end = self._source.end_offsets([partition])[partition]
            raise OffsetGone(partition, position, beginning, end)
        self._source.seek(partition, position)
        self._source.resume([partition])
        self._to_claim.pop(partition, None)
        self._held[partition] = _Held(position, shards, self._skips_of(partition))
        self.counters["claims"] += 1

    def _refuse_beyond(self, partition: TopicPartition, offsets: Sequence[int]) -> None:
        """Stop where state stands for events that the log does not hold: what comes would not be counted.

        A leader that was just chosen may tell an earlier end for a moment: it is asked a few times.
        """
        [end] = self._source.end_offsets([partition]).values()
        if max(offsets, default=0) <= end:
            self._beyond.pop(partition, None)
            return
        self._beyond[partition] = self._beyond.get(partition, 0) + 1
        if self._beyond[partition] > _BEYOND_TRIES:
            raise OffsetBeyondEnd(partition, max(offsets), end)
        raise SourceUnavailable(f"{partition} ends at {end}, before the stored offset {max(offsets)}")

    def _claim_shard(
        self, pipeline: ViewPipeline | LatestPipeline, partition: TopicPartition, beginning: int
    ) -> HeldShard:
        claim, goal = self._takeover.claim(
            partition,
            self._shard(pipeline.view, partition),
            beginning,
            lambda: self._source.end_offsets([partition])[partition],
            plan_version=self._plan.version,
            home=partitions_of(pipeline.view),
        )
        return HeldShard(
            pipeline,
            claim,
            goal,
            store=self._store,
            clock=self._clock,
            counters=self.counters,
            slots_kept=self._pace.slots_kept,
        )

    def _take(self, topic: str, batches: Sequence[Batch]) -> int:
        """Put a topic's batches through; one of a partition that is not held (any more) is left to its owner."""
        batches = [batch for batch in batches if self._follows(batch)]
        try:
            verdicts = list(self._verdicts[topic].judge(batches, self._partition_count))
        except _RECOVERABLE as error:
            for batch in batches:
                self._again(batch.source)
            self._recover(error)
            return 0
        return sum(self._fold(together, plan_version) for together, plan_version in verdicts)

    def _follows(self, batch: Batch) -> bool:
        """Whether a batch starts where the last one of its partition ended; a gap or a repeat: claim again."""
        held = self._held.get(batch.source)
        if held is None:
            return False
        if batch.position_before != held.position:
            self.counters["strays"] += 1
            self._again(batch.source)
            return False
        return True

    def _fold(self, together: Sequence[Judged], plan_version: int) -> int:
        """Bring the shards of the batches' partitions up to their ends, and hand those that are there to the sinks.

        Returned is how many records they had. A partition of which an earlier piece failed is not held any more.
        """
        going = {judged.batch.source: judged for judged in together if judged.batch.source in self._held}
        for number in range(len(self._views[together[0].batch.topic])):
            folds = [(self._held[partition].shards[number], judged) for partition, judged in going.items()]
            try:
                fenced = fold_together(folds, plan_version)
            except _RECOVERABLE as error:
                for partition in going:
                    self._again(partition)
                self._recover(error)
                return 0
            for shard, why in fenced.items():
                partition = TopicPartition(together[0].batch.topic, shard.topic_id, shard.partition)
                going.pop(partition)
                self._again(partition)
                self._recover(why)
        for partition, judged in going.items():
            held = self._held[partition]
            for sink in self._sinks:
                sink.add(judged)
            held.position = judged.batch.position_after
            if judged.batch.records:
                held.arrival_us = judged.batch.records[-1].timestamp_us
            self._count(judged)
            if self._on_committed is not None:
                self._on_committed(judged)
        return sum(len(judged.batch.records) for judged in going.values())

    def _partition_count(self, topic: str) -> int:
        return len(self._source.partitions_of(topic))

    def _again(self, partition: TopicPartition) -> None:
        """Drop all that is cached of a partition; the next turn claims it, if it is still ours then."""
        self._release(partition, flush=False)
        self._claim_later(partition)

    def _recover(self, error: Exception) -> None:
        self.counters["fenced" if isinstance(error, Fenced) else "retries"] += 1
        if isinstance(error, SinkUnavailable):
            # Its buffers no longer follow from its cursor alone: read again what they held.
            for partition in list(self._held):
                self._again(partition)
        wait_s = min(self._pace.backoff_s * 2**self._failures, self._pace.longest_backoff_s)
        self._failures = min(self._failures + 1, 16)
        _LOG.warning("%s; trying again in %.2f s", error, wait_s)
        self._sleep(wait_s)

    def _count(self, judged: Judged) -> None:
        """Count each event once: what is read again, since a sink or a later view lacked it, was counted already."""
        source, after = judged.batch.source, judged.batch.position_after
        counted = self._counted.get(source, 0)
        if after <= counted:
            return
        self._counted[source] = after
        new = judged.since(counted)
        self.counters["events"] += len(new.offsets) + len(new.rejected)
        self.counters["accepted"] += len(new.offsets)
        for item in new.rejected:
            self.counters[f"rejected:{item.reason}"] += 1
        for rule, broken in new.warned.items():
            self.counters[f"warned:{rule}"] += broken

    def _shard(self, view: View, partition: TopicPartition) -> Shard:
        return Shard(self._plan.project, view.name, view.version, partition.topic_id, partition.partition)

    def _ends_of(self, topic: str) -> dict[TopicPartition, int]:
        return self._source.end_offsets(self._source.partitions_of(topic))

    def _ends(self) -> dict[TopicPartition, int]:
        """Where the partitions that hold anything end now."""
        partitions = [partition for topic in self._views for partition in self._source.partitions_of(topic)]
        beginnings, ends = self._source.beginning_offsets(partitions), self._source.end_offsets(partitions)
        return {partition: end for partition, end in ends.items() if end > beginnings[partition]}

    def _is_done(self, goals: Mapping[TopicPartition, int]) -> bool:
        with suppress(StoreUnavailable):
            return self._caught_up(goals)
        return False

    def _caught_up(self, goals: Mapping[TopicPartition, int]) -> bool:
        """Whether every partition has reached its goal, in our hands or another's."""
        if not self._assigned_once or self._to_claim:
            return False
        positions = self.positions
        if any(position < goals.get(partition, 0) for partition, position in positions.items()):
            return False
        behind = (shard for held in self._held.values() for shard in held.shards if shard.goal is not None)
        if any(shard.claim.offset < (shard.goal or 0) for shard in behind):
            return False
        return all(self._reached(partition, goal) for partition, goal in goals.items() if partition not in positions)

    def _reached(self, partition: TopicPartition, goal: int) -> bool:
        """Whether another worker has brought a partition so far, files included: it may die before it writes them."""
        controls = [self._store.control(self._shard(each.view, partition)) for each in self._views[partition.topic]]
        committed = all(control is not None and control.offset >= goal for control in controls)
        return committed and all((sink.cursor(partition) or 0) >= goal for sink in self._sinks)


def _pipeline_of(view: View) -> ViewPipeline | LatestPipeline:
    return ViewPipeline(view) if view.kind == "windowed" else LatestPipeline(view)
