"""How does a shard get from the end of its last commit to the end of a batch, and several in the time of one?

Where batches are small, most of their time is not theirs: the calls of NumPy and the store's round trips cost what they
cost, however little they carry. So the shards of one view go through them together, whatever their partitions are.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial

import msgspec

from featurestore.clock import Clock
from featurestore.online.keys import Shard
from featurestore.plan import View
from streaming.column_types import is_instant
from streaming.commit import NOT_YET, Claim, Commit, Fenced, ShardStore
from streaming.fitting import Fitting
from streaming.homes import Homes
from streaming.judged import Judged
from streaming.pipeline import AHEAD_TOLERANCE_US
from streaming.seen_ids import SeenChange, SeenIds
from streaming.shard_state import SLOTS_KEPT, Change, ShardState
from streaming.view_pipeline import LatestPipeline, Partials, ViewPipeline


class Unseen(msgspec.Struct, frozen=True):
    """What a shard has not seen of a batch, and how its claim stands after it."""

    judged: Judged
    watermark_us: int | None
    complete_from_us: int | None
    seen: SeenChange | None


class HeldShard:
    """A shard in our hands. `goal` is the offset from which on readers may take it for whole; None: they may.

    With `refuse` an event with a value that the view's type cannot hold raises SourceError; else it is set aside.
    """

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
        refuse: bool = False,
    ) -> None:
        self.pipeline = pipeline
        self.claim = claim
        self.goal: int | None = goal
        self._fitting = Fitting(pipeline.view, refuse=refuse)
        self._state = ShardState(claim.shard, slots_kept=slots_kept)
        self._seen = SeenIds.of(pipeline, claim.shard) if isinstance(pipeline, ViewPipeline) else None
        self._homes = Homes.of(pipeline.view, claim.shard.partition)
        self._scattered = False
        """Whether this process has found an event elsewhere than its key belongs."""
        self.store = store
        self.clock = clock
        self.counters = counters
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
        for error in fold_together([(self, judged)], plan_version).values():
            raise error

    def unseen(self, judged: Judged) -> Unseen | None:
        """What the shard has not seen of a batch; None where it is past it. Raises like `fold`."""
        claim, batch = self.claim, judged.batch
        if claim.offset >= batch.position_after:
            return None
        rest = self._fitting.fit(judged.since(claim.offset))
        marks = [mark for mark in (claim.watermark_us, rest.watermark_us) if mark is not None]
        complete = claim.complete_from_us
        if complete is None and batch.records and is_instant(batch.records[0].timestamp_us):
            # An event may be dated up to the tolerance after its arrival: one of those may have gone before.
            complete = batch.records[0].timestamp_us + AHEAD_TOLERANCE_US
        seen: SeenChange | None = None
        if self._seen is not None and len(rest.events):
            once = self._seen.once(rest, claim.spans, partial(self.store.read_seen, claim), now_us=self.clock())
            rest, seen = once.judged, once.change
        return Unseen(rest, max(marks, default=None), complete, seen)

    def merged(self, partials: Partials, *, slack_us: int) -> Change:
        """What a batch's partials make of the tiles. Raises like `fold`."""
        if self._homes is not None and not self._scattered and not self._homes.hold(partials.keys):
            # Before the commit: no reader may look past these events.
            self.store.scatter(self.claim.shard)
            self._scattered = True
        return self._state.merge(partials, partial(self.store.read, self.claim), slack_us=slack_us)

    def advance(self, claim: Claim, change: Change | None, seen: SeenChange | None) -> None:
        """Take in what was committed."""
        self.claim = claim
        if change is not None:
            self._state.advance(change)
            self.counters["slots"] += change.slots
        if self._seen is not None and seen is not None:
            self._seen.advance(seen)
            self.counters["duplicates"] += seen.duplicates
            self.counters["reused_ids"] += seen.reused
        self.counters["commits"] += 1
        self._tell_readers()

    def _tell_readers(self) -> None:
        """List the shard as what it is by now: not to be relied on, or complete from some instant on."""
        complete = self.claim.complete_from_us
        if self.goal is not None and self.claim.offset >= self.goal and complete is not None:
            self.store.register(self.claim.shard, complete)
            self.goal = None
        elif self.goal is not None and self.claim.offset < self.goal:
            self.store.register(self.claim.shard, NOT_YET, only_new=True)


def fold_together(folds: Sequence[tuple[HeldShard, Judged]], plan_version: int) -> dict[Shard, Fenced]:
    """Bring shards of one view up to the end of a batch each; of those that are fenced off, why.

    A shard that is past its batch is left alone. Each commit is one script: what happens to one shard does not touch
    the others. Raises StoreUnavailable: what is cached of all of them is then not to be relied on.
    """
    fenced: dict[Shard, Fenced] = {}
    steps: list[tuple[HeldShard, Judged, Unseen]] = []
    for shard, judged in folds:
        try:
            unseen = shard.unseen(judged)
        except Fenced as error:
            fenced[shard.claim.shard] = error
        else:
            steps += [(shard, judged, unseen)] if unseen is not None else []
    if not steps:
        return fenced
    changes = _changes([(shard, unseen.judged) for shard, _, unseen in steps], fenced)
    steps = [step for step in steps if step[0].claim.shard in changes]
    commits = []
    for shard, judged, unseen in steps:
        change = changes[shard.claim.shard]
        commits.append(
            Commit(
                claim=shard.claim,
                writes=change.writes if change is not None else (),
                offset=judged.batch.position_after,
                watermark_us=unseen.watermark_us,
                complete_from_us=unseen.complete_from_us,
                plan_version=plan_version,
                seen=unseen.seen,
            )
        )
    if commits:
        for (shard, _, unseen), outcome in zip(steps, steps[0][0].store.commit(commits), strict=True):
            if isinstance(outcome, Fenced):
                fenced[shard.claim.shard] = outcome
            else:
                shard.advance(outcome, changes[shard.claim.shard], unseen.seen)
    return fenced


def _changes(folds: Sequence[tuple[HeldShard, Judged]], fenced: dict[Shard, Fenced]) -> dict[Shard, Change | None]:
    """What the commits change of the tiles of those that are not fenced; None where a view has none: it has rows."""
    pipeline = folds[0][0].pipeline
    if isinstance(pipeline, LatestPipeline):
        for shard, judged in folds:
            if len(judged.events):
                shard.store.write_rows(shard.claim.shard.project, pipeline.view, pipeline.rows(judged))
        return {shard.claim.shard: None for shard, _ in folds}
    changes: dict[Shard, Change | None] = {}
    partials = pipeline.partials_of([judged for _, judged in folds], now_us=folds[0][0].clock())
    for (shard, _), each in zip(folds, partials, strict=True):
        try:
            changes[shard.claim.shard] = shard.merged(each, slack_us=pipeline.slack_us)
        except Fenced as error:
            fenced[shard.claim.shard] = error
        else:
            shard.counters["late"] += each.late
    return changes
