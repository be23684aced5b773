"""How does a version of a view come out of history and take the place of the one that is read, without a gap?

The steps, in this order; each can be repeated, and an interrupted run goes on where it was:

1. every partition of the new version is listed for readers as not complete;
2. the event log's events go through the steps that every event goes through, at the offsets that they had in their
   topic: partials, merge, fenced commit of tiles and offset;
3. a consumer of its own goes on where the log ended, in Kafka, until in every partition the new version has passed the
   one that is read, and is complete;
4. the Plan changes places of the two, at once;
5. it goes on until a worker has claimed the new version: nobody commits it twice, since each claim fences the other.

An offset is in the log's part or in Kafka's, never in both, because both continue the one offset beside the state.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import msgspec

from featurestore.clock import Clock
from featurestore.errors import StoreUnavailable
from featurestore.online.keys import Shard
from featurestore.plan import Plan, View
from featurestore.plan_store import PlanStore
from featurestore.plan_versions import flipped
from streaming.claim_record import ClaimRecord
from streaming.commit import NOT_YET, ShardStore, StateDamaged
from streaming.fitting import Fitting
from streaming.held_shard import HeldShard
from streaming.homes import partitions_of
from streaming.log_replay import EventLogReplay, Stretch
from streaming.pipeline import AHEAD_TOLERANCE_US
from streaming.rekeyed import History, Rekeying
from streaming.source.records import Source, SourceUnavailable, TopicPartition
from streaming.view_pipeline import LatestPipeline, ViewPipeline
from streaming.worker import Worker

_NEVER = 2**62
Progress = Callable[[int, int], None]
"""Told the offsets that a step went past, and the events among them."""


class Builder:
    """Builds one version of one view from the event log, for a backfill or for a store that lost its state."""

    def __init__(
        self,
        plan: Plan,
        view: View,
        replay: EventLogReplay,
        store: ShardStore,
        record: ClaimRecord,
        *,
        clock: Clock,
        new_token: Callable[[], str],
        from_us: int | None = None,
        progress: Progress = lambda offsets, events: None,  # noqa: ARG005 - nobody listens
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._plan = plan
        self._view = view
        self._replay = replay
        self._store = store
        self._record = record
        self._clock = clock
        self._new_token = new_token
        self._from_us = from_us
        self._progress = progress

    def announce(self, partitions: Sequence[TopicPartition]) -> None:
        """List partitions for readers as not complete, where they are not listed yet."""
        for partition in partitions:
            self._store.register(self.shard(partition), NOT_YET, only_new=True)

    def left(self, stretches: Sequence[Stretch]) -> int:
        """How many offsets of the log are not folded yet."""
        return sum(max(each.after - max(each.first, self._offset(each.partition) or 0), 0) for each in stretches)

    def build(self, stretches: Sequence[Stretch], live: Sequence[TopicPartition], stop: Callable[[], bool]) -> None:
        """Fold the log; `live` are the partitions that the topic has now, which are not whole when the log ends."""
        begins: dict[TopicPartition, int] = {}
        if stretches and self._view.partitions == "keyed":
            rekeying = Rekeying(self._view, self._replay, self._record.root / stretches[0].partition.topic)
            begun = any(self._offset(partition) is not None for partition in live)
            history = rekeying.history(stretches, live, begun=begun)
            if history is not None:
                begins = {cut.partition: cut.after for cut in history.cuts}
                if not self._build_history(rekeying, history, stop):
                    return
        for stretch in stretches:
            offset = self._offset(stretch.partition)
            if offset is not None and offset >= stretch.after:
                continue
            begin = begins.get(stretch.partition, stretch.first)
            held = self._claim(stretch, begin, self._complete_from(stretch), whole=stretch.partition not in live)
            for judged in self._replay.batches(stretch, max(held.claim.offset, begin)):
                if stop():
                    return
                before = held.claim.offset
                held.fold(judged, self._plan.version)
                self._progress(held.claim.offset - before, len(judged.events))

    def _build_history(self, rekeying: Rekeying, history: History, stop: Callable[[], bool]) -> bool:
        """Fold what came before the topic grew, by key; False where it was stopped before the end."""
        known = [self._complete_from(Stretch(cut.partition, cut.first, cut.after)) for cut in history.cuts]
        complete = max((each for each in known if each is not None), default=None)
        held = {}
        for number in range(partitions_of(self._view) or 0):
            whole = Stretch(history.partition(number), 0, history.end)
            held[number] = self._claim(whole, 0, complete, whole=True)
        position = min(each.claim.offset for each in held.values())
        for dealt in rekeying.batches(history, position):
            if stop():
                return False
            for number, judged in dealt.items():
                held[number].fold(judged, self._plan.version)
            first = next(iter(dealt.values())).batch
            events = sum(len(judged.events) for judged in dealt.values())
            self._progress(first.position_after - max(first.position_before, position), events)
        return True

    def begin(self, firsts: Mapping[TopicPartition, int]) -> None:
        """Let partitions begin at these offsets of Kafka, where they have not begun yet."""
        for partition, first in firsts.items():
            shard = self.shard(partition)
            if self._store.control(shard) is None:
                self._store.register(shard, NOT_YET, home=partitions_of(self._view))
                self._store.claim(
                    shard,
                    token=self._new_token(),
                    plan_version=self._plan.version,
                    start=first,
                    complete_from_us=self._complete_since() if first else 0,
                )
                self._record.add(partition.topic, shard)

    def build_latest(
        self, stretches: Sequence[Stretch], stop: Callable[[], bool], done: dict[TopicPartition, int]
    ) -> None:
        """Write the log's events of a view without aggregations; `done` says how far, and is kept by the caller.

        No claim is needed: the newest event of a key stays, whoever writes it and however often.
        """
        pipeline, fitting = LatestPipeline(self._view), Fitting(self._view, refuse=True)
        for stretch in stretches:
            for judged in self._replay.batches(stretch, max(done.get(stretch.partition, 0), stretch.first)):
                if stop():
                    return
                if len(judged.events):
                    self._store.write_rows(self._plan.project, self._view, pipeline.rows(fitting.fit(judged)))
                self._progress(judged.batch.position_after - judged.batch.position_before, len(judged.events))
                done[stretch.partition] = judged.batch.position_after

    def shard(self, partition: TopicPartition) -> Shard:
        """The shard of a partition."""
        return _shard(self._plan, self._view, partition)

    def _offset(self, partition: TopicPartition) -> int | None:
        try:
            control = self._store.control(self.shard(partition))
        except StateDamaged:
            return None  # made again from nothing
        return None if control is None else control.offset

    def _claim(self, stretch: Stretch, begin: int, complete: int | None, *, whole: bool) -> HeldShard:
        shard = self.shard(stretch.partition)
        token, version = self._new_token(), self._plan.version
        try:
            claim = self._store.claim(shard, token=token, plan_version=version)
        except StateDamaged:
            claim = None
        if claim is None:
            # Without its control hash a shard's tiles are of unknown age: none may be left to be merged with.
            self._store.register(shard, NOT_YET, home=partitions_of(self._view))
            self._store.remove(shard.project, shard.view, shard.version, shard=shard)
            claim = self._store.claim(shard, token=token, plan_version=version, start=begin, complete_from_us=complete)
            assert claim is not None  # with `start`, the hash is made
        self._record.add(stretch.partition.topic, shard)
        return HeldShard(
            ViewPipeline(self._view),
            claim,
            stretch.after if whole else _NEVER,
            store=self._store,
            clock=self._clock,
            counters=self.counters,
            refuse=True,
        )

    def _complete_from(self, stretch: Stretch) -> int | None:
        """From which event time on nothing is missing; None where the first event that comes will tell."""
        if self._from_us is not None:
            return self._complete_since()
        if stretch.first == 0:
            return 0
        arrival_us = self._replay.first_arrival_us(stretch)
        return None if arrival_us is None else arrival_us + AHEAD_TOLERANCE_US

    def _complete_since(self) -> int | None:
        """Events may be dated up to the tolerance after their arrival: some that are left out were."""
        return None if self._from_us is None else self._from_us + AHEAD_TOLERANCE_US


def _shard(plan: Plan, view: View, partition: TopicPartition) -> Shard:
    return Shard(plan.project, view.name, view.version, partition.topic_id, partition.partition)


class Standing(msgspec.Struct, frozen=True):
    """How a new version stands against the one that is read, in one partition."""

    partition: TopicPartition
    built: int | None
    """Its offset; None where it was not begun."""
    read: int | None
    """The offset of the version that is read; None where that has none there."""
    end: int
    complete: bool

    @property
    def passed(self) -> bool:
        """Whether readers lose nothing when they go over."""
        goal = self.end if self.read is None else self.read
        return self.built is not None and self.complete and self.built >= goal


def standings(store: ShardStore, source: Source, plan: Plan, built: View, read: View | None) -> tuple[Standing, ...]:
    """How far a version is in every partition that its topic has now; `read` is the one that is read meanwhile."""
    assert built.source.topic is not None  # a windowed view without a topic has no stream to be built from
    partitions = source.partitions_of(built.source.topic.name)
    ends = source.end_offsets(partitions)
    listed = {
        (each.topic_id, each.partition): each.complete_from_us
        for each in store.registered(plan.project, built.name, built.version)
    }
    one_topic = read is not None and read.source.topic is not None and read.source.topic.name == built.source.topic.name
    found = []
    for partition in partitions:
        # The new version first: what it has passed by now, it has passed for good.
        new = store.control(_shard(plan, built, partition))
        old = store.control(_shard(plan, read, partition)) if read is not None and one_topic else None
        found.append(
            Standing(
                partition,
                None if new is None else new.offset,
                None if old is None else old.offset,
                ends[partition],
                listed.get((partition.topic_id, partition.partition), NOT_YET) != NOT_YET,
            )
        )
    return tuple(found)


def chase(
    worker: Worker, stand: Callable[[], Sequence[Standing]], stop: Callable[[], bool], *, poll_ms: int = 50
) -> bool:
    """Read Kafka until the new version has passed in every partition; False where it was stopped before."""
    while not stop():
        worker.turn(poll_ms)
        with suppress(StoreUnavailable, SourceUnavailable):  # the next turn of the worker waits, says so and counts it
            if all(each.passed for each in stand()):
                return True
    return False


def flip(plans: PlanStore, name: str, *, now_us: int) -> Plan:
    """Let the version that was built be the one that is read, from now on and for everybody at once.

    Raises StaleStore where another Plan came into force in this moment, UnknownName where the view is built no more.
    """
    held = plans.load()
    changed = flipped(held, name, now_us=now_us)
    plans.replace(held, changed)
    return changed


def hand_over(worker: Worker, stop: Callable[[], bool], *, poll_ms: int = 50) -> None:
    """Go on until a worker has claimed the version, then yield to it."""
    fenced = worker.counters["fenced"]
    while not stop() and not _overtaken(worker):
        worker.turn(poll_ms)
        if worker.counters["fenced"] > fenced:
            break  # claiming again would take it from the worker that has it now
    worker.leave()


def _overtaken(worker: Worker) -> bool:
    with suppress(StoreUnavailable):
        return worker.overtaken()
    return False
