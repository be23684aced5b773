"""What is the verdict on a batch, each event judged by what is in force at its offset?"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from streaming.in_force import Definitions, InForce, Piece
from streaming.judged import Judged
from streaming.pipeline import TopicPipeline
from streaming.schema_registry import SchemaRegistry
from streaming.source.records import Batch, TopicPartition
from validation.place import Place

TOGETHER: Final = 1_024
"""Records of several partitions that are judged at once: the next commit waits for all of them."""


class Verdicts:
    """The verdicts on one topic's events."""

    def __init__(self, event_log: Place, topic: str, registry: SchemaRegistry | None = None) -> None:
        self._registry = registry
        self._in_force = InForce(event_log, topic)
        self._pipelines: dict[str, TopicPipeline] = {}
        self._wanted: Definitions | None = None
        """What could not be proposed yet, because others were pending."""

    def propose(self, definitions: Definitions, *, only_first: bool = False) -> None:
        """Let these be in force from some offset on, where they are new; with `only_first` where there are none yet.

        Raises DefinitionError for definitions that no event can be judged by.
        """
        self._pipeline(definitions)
        self._in_force.look()
        if not only_first or (self._in_force.latest is None and not self._in_force.pending):
            self._wanted = None if self._in_force.propose(definitions) else definitions

    @property
    def unsettled(self) -> bool:
        """Whether definitions are known that wait for the offsets from which on they are in force."""
        return self._wanted is not None or self._in_force.pending

    def look(self, ends: Callable[[], Mapping[TopicPartition, int]]) -> None:
        """To be called after a poll and before its batches are judged; `ends` asks for those of all partitions."""
        self._in_force.look()
        while self._in_force.pending:
            self._in_force.settle(ends())
            if self._wanted is not None and self._in_force.propose(self._wanted):
                self._wanted = None

    def pin(self, topic_id: str) -> None:
        """Judge a file, under the id of its bytes, by what is in force now, however often it is read."""
        self._in_force.pin(topic_id)

    def judge(
        self, batches: Iterable[Batch], count: Callable[[str], int] | None = None
    ) -> Iterator[tuple[list[Judged], int]]:
        """Each batch in pieces, one for each definitions that are in force in it, with the plan version of those.

        What a poll brings of several partitions is judged together, and told together, where it is little. `count`
        tells how many partitions a topic has now.
        """
        waiting: list[tuple[Piece, Batch]] = []
        for batch in batches:
            for piece in self._in_force.pieces(batch.source, batch.position_before, batch.position_after):
                if waiting and not _fit(waiting, piece, batch):
                    yield self._together(waiting, count)
                    waiting = []
                waiting.append((piece, _part(batch, piece)))
        if waiting:
            yield self._together(waiting, count)

    def _together(
        self, waiting: Sequence[tuple[Piece, Batch]], count: Callable[[str], int] | None
    ) -> tuple[list[Judged], int]:
        definitions = waiting[0][0].definitions
        judged = self._pipeline(definitions).judge_together([part for _, part in waiting], count)
        return judged, definitions.plan_version

    def _pipeline(self, definitions: Definitions) -> TopicPipeline:
        digest = definitions.digest
        found = self._pipelines.get(digest)
        if found is None:
            found = self._pipelines[digest] = TopicPipeline(
                definitions.views,
                definitions.contract,
                ahead_tolerance_us=definitions.tolerance_us,
                registry=self._registry,
            )
        return found


def _part(batch: Batch, piece: Piece) -> Batch:
    if (piece.first, piece.after) == (batch.position_before, batch.position_after):
        return batch
    return msgspec.structs.replace(
        batch,
        records=[record for record in batch.records if piece.first <= record.offset < piece.after],
        position_before=piece.first,
        position_after=piece.after,
    )


def _fit(waiting: Sequence[tuple[Piece, Batch]], piece: Piece, batch: Batch) -> bool:
    """Whether a piece may be judged with those that wait: alike, of another partition, and few together."""
    first, like = waiting[0]
    return (
        piece.definitions.digest == first.definitions.digest
        and batch.replayed == like.replayed
        and sum(len(each.records) for _, each in waiting) + len(batch.records) <= TOGETHER
        and all(each.source != batch.source for _, each in waiting)
    )
