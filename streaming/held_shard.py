"""How does one shard get from the end of its last commit to the end of a batch?"""

from collections import Counter
from functools import partial

from featurestore.clock import Clock
from featurestore.plan import View
from streaming.commit import NOT_YET, Claim, ShardStore
from streaming.decode import is_instant
from streaming.fitting import Fitting
from streaming.homes import Homes
from streaming.judged import Judged
from streaming.pipeline import AHEAD_TOLERANCE_US
from streaming.seen_ids import SeenChange, SeenIds
from streaming.shard_state import SLOTS_KEPT, BlockWrite, Change, ShardState
from streaming.view_pipeline import LatestPipeline, ViewPipeline


class HeldShard:
    """A shard in our hands. `goal` is the offset from which on readers may take it for whole; None: they may."""

    def __init__(
        self,
        pipeline: ViewPipeline | LatestPipeline,
        claim: Claim,
        goal: int,
        *,
        store: ShardStore,
        clock: Clock,
        counters: Counter[str],
        slots_kept: int = SLOTS_KEPT,
    ) -> None:
        self.pipeline = pipeline
        self.claim = claim
        self.goal: int | None = goal
        self._fitting = Fitting(pipeline.view)
        self._state = ShardState(claim.shard, slots_kept=slots_kept)
        self._seen = SeenIds.of(pipeline, claim.shard) if isinstance(pipeline, ViewPipeline) else None
        self._homes = Homes.of(pipeline.view, claim.shard.partition)
        self._scattered = False
        """Whether this process has found an event elsewhere than its key belongs."""
        self._store = store
        self._clock = clock
        self._counters = counters
        self._tell_readers()

    @property
    def view(self) -> View:
        """The view whose shard it is."""
        return self.pipeline.view

    def fold(self, judged: Judged, plan_version: int) -> None:
        """Bring the shard up to the end of a batch; without effect where it is already past it.

        Tiles are read where they are missing, merged, and committed with the offset in one script. Raises Fenced and
        StoreUnavailable: what is cached is then not to be relied on.
        """
        claim, batch = self.claim, judged.batch
        if claim.offset >= batch.position_after:
            return
        rest = self._fitting.fit(judged.since(claim.offset))
        complete = claim.complete_from_us
        if complete is None and batch.records and is_instant(batch.records[0].timestamp_us):
            # An event may be dated up to the tolerance after its arrival: one of those may have gone before.
            complete = batch.records[0].timestamp_us + AHEAD_TOLERANCE_US
        marks = [mark for mark in (claim.watermark_us, rest.watermark_us) if mark is not None]
        writes: list[BlockWrite] = []
        change: Change | None = None
        seen: SeenChange | None = None
        if isinstance(self.pipeline, LatestPipeline):
            if len(rest.events):
                self._store.write_rows(claim.shard.project, self.view, self.pipeline.rows(rest))
        else:
            if self._seen is not None and len(rest.events):
                once = self._seen.once(rest, claim.spans, partial(self._store.read_seen, claim), now_us=self._clock())
                rest, seen = once.judged, once.change
            partials = self.pipeline.partials(rest, now_us=self._clock())
            if self._homes is not None and not self._scattered and not self._homes.hold(partials.keys):
                # Before the commit: no reader may look past these events.
                self._store.scatter(claim.shard)
                self._scattered = True
            change = self._state.merge(partials, partial(self._store.read, claim), slack_us=self.pipeline.slack_us)
            writes = change.writes
            self._counters["slots"] += change.slots
            self._counters["late"] += partials.late
        self.claim = self._store.commit(
            claim,
            writes,
            offset=batch.position_after,
            watermark_us=max(marks, default=None),
            complete_from_us=complete,
            plan_version=plan_version,
            seen=seen,
        )
        if change is not None:
            self._state.advance(change)
        if self._seen is not None and seen is not None:
            self._seen.advance(seen)
            self._counters["duplicates"] += seen.duplicates
            self._counters["reused_ids"] += seen.reused
        self._counters["commits"] += 1
        self._tell_readers()

    def _tell_readers(self) -> None:
        """List the shard as what it is by now: not to be relied on, or complete from some instant on."""
        complete = self.claim.complete_from_us
        if self.goal is not None and self.claim.offset >= self.goal and complete is not None:
            self._store.register(self.claim.shard, complete)
            self.goal = None
        elif self.goal is not None and self.claim.offset < self.goal:
            self._store.register(self.claim.shard, NOT_YET, only_new=True)
