"""Offsets that an operator has stepped past, since a record there ends every worker that reads it.

Each is a file beside the topic's event log, which says who, when and why: it is read again with every claim, and never
changed, so that every worker, now and later, steps past the same offsets.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from streaming.source.records import Batch, TopicPartition
from validation.place import Place
from validation.whole_file import first_file

_FOLDER: Final = "_skips"


class Skip(msgspec.Struct, frozen=True, kw_only=True):
    """A range of offsets, both ends included."""

    topic_id: str
    partition: int
    first: int
    last: int
    unreadable: bool
    """Whether the batch itself cannot be read: then nothing of the range is fetched, and nothing set aside."""
    reason: str
    by: str
    at_us: int


class Skips:
    """The ranges of a deployment's topics, below the folder of its event logs."""

    def __init__(self, event_log: Place) -> None:
        self._root = event_log

    def add(self, topic: str, skip: Skip) -> Skip:
        """Keep a range; what was kept first of the same one counts. Raises OSError."""
        path = self._root / topic / _FOLDER / f"{skip.topic_id}-{skip.partition}-{skip.first}-{skip.last}.json"
        return msgspec.json.decode(first_file(path, msgspec.json.encode(skip)), type=Skip)

    def of(self, partition: TopicPartition) -> tuple[Skip, ...]:
        """The ranges of one partition, by offset. Raises OSError where they cannot be listed."""
        folder = self._root / partition.topic / _FOLDER
        found = [msgspec.json.decode(path.read_bytes(), type=Skip) for path in folder.glob("*.json")]
        mine = (each for each in found if (each.topic_id, each.partition) == (partition.topic_id, partition.partition))
        return tuple(sorted(mine, key=lambda each: each.first))


def hole_at(skips: Sequence[Skip], position: int) -> int | None:
    """Where to read on, if nothing at this position can be read; None where it can."""
    return next((each.last + 1 for each in skips if each.unreadable and each.first <= position <= each.last), None)


def without(batch: Batch, skips: Sequence[Skip]) -> Batch:
    """The batch with the records in the ranges emptied: each is set aside as `empty`, and nothing looks into it."""
    if not any(each.first < batch.position_after and each.last >= batch.position_before for each in skips):
        return batch
    records = [
        msgspec.structs.replace(record, key=None, value=None, headers=())
        if any(each.first <= record.offset <= each.last for each in skips)
        else record
        for record in batch.records
    ]
    return msgspec.structs.replace(batch, records=records)
