"""Where do a keyed view's events lie that came before its topic grew, when keys had other partitions?

In shards of their own, one for each partition that the topic has now: a history, told from the topic by its id. What
came up to the last event that lies elsewhere than its key belongs now is counted there, the rest in the topic's own
shards, in which every key is at home. So a reader looks into two shards for a key, however often the topic grew.

The history is one log: its partitions one after the other, in order. Where each is cut is written down once, before
anything is counted, so that an interrupted run goes on with the same offsets.
"""

from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.online.keys import HISTORY_MARK, EntityKeyCodec, Shard
from featurestore.online.partitioner import message_key, partition_of
from featurestore.plan import View
from streaming.homes import partitions_of
from streaming.judged import Judged
from streaming.log_replay import EventLogReplay, Stretch
from streaming.seen_ids import SeenIds
from streaming.source.records import Batch, TopicPartition
from streaming.source.replayed import is_replay
from streaming.view_pipeline import ViewPipeline
from validation.place import Place
from validation.whole_file import first_file


class Cut(msgspec.Struct, frozen=True):
    """Offsets `first` to before `after` of a partition are history, and begin at `base` of it."""

    partition: TopicPartition
    first: int
    after: int
    base: int


class History(msgspec.Struct, frozen=True):
    """What lies before the cuts, in order."""

    topic: str
    topic_id: str
    cuts: tuple[Cut, ...]

    @property
    def end(self) -> int:
        """The offset after its last."""
        return self.cuts[-1].base + self.cuts[-1].after - self.cuts[-1].first

    def partition(self, number: int) -> TopicPartition:
        """One of its partitions."""
        return TopicPartition(self.topic, self.topic_id, number)


class Rekeying:
    """Finds the history of one version of a view, and deals its events out by key."""

    def __init__(self, view: View, replay: EventLogReplay, folder: Place) -> None:
        """`folder` is the topic's of the event log."""
        self._view, self._replay = view, replay
        self._path = folder / "_rekeyed" / f"{quote(view.name, safe='')} {view.version}.json"
        self._pipeline = ViewPipeline(view)
        self._head = EntityKeyCodec(view.join_keys).value_at
        self._count = partitions_of(view)

    def history(self, stretches: Sequence[Stretch], live: Sequence[TopicPartition], *, begun: bool) -> History | None:
        """None where every event of the live topic lies where its key belongs, or nobody can tell.

        `begun`: some of these partitions have state already. It holds what would be in a history; only one that was
        written down before is gone on with.

        The repeats of an event are told within their partition, which a history has not: where a topic declares ids,
        the view stays as it is, read as a whole.
        """
        if self._path.exists():
            return msgspec.json.decode(self._path.read_bytes(), type=History)
        if begun:
            return None
        own = [each for each in live if not is_replay(each.topic_id)]
        once = SeenIds.of(self._pipeline, Shard("", self._view.name, self._view.version, "", 0))
        if self._count is None or len(own) != self._count or once is not None:
            return None
        cuts: list[Cut] = []
        for stretch in sorted(stretches):
            after = self._misplaced(stretch) if stretch.partition in own else stretch.first
            if after > stretch.first:
                base = cuts[-1].base + cuts[-1].after - cuts[-1].first if cuts else 0
                cuts.append(Cut(stretch.partition, stretch.first, after, base))
        if not cuts:
            return None
        found = History(own[0].topic, f"{own[0].topic_id}{HISTORY_MARK}{self._count}", tuple(cuts))
        return msgspec.json.decode(first_file(self._path, msgspec.json.encode(found)), type=History)

    def batches(self, history: History, position: int) -> Iterator[Mapping[int, Judged]]:
        """The history from an offset on, by partition of the key: the same offsets for all of them."""
        for cut in history.cuts:
            first = max(cut.first, cut.first + position - cut.base)
            for judged in self._replay.batches(Stretch(cut.partition, cut.first, cut.after), first):
                yield self._dealt(history, cut, judged)

    def _dealt(self, history: History, cut: Cut, judged: Judged) -> Mapping[int, Judged]:
        homes, shift, whole = self._homes(judged), cut.base - cut.first, judged.batch
        dealt = {}
        for number in range(self._count or 0):
            chosen = homes == number
            dealt[number] = msgspec.structs.replace(
                judged,
                batch=Batch(
                    history.topic,
                    history.topic_id,
                    number,
                    (),
                    whole.position_before + shift,
                    whole.position_after + shift,
                ),
                events=judged.events.filter(pa.array(chosen)),
                ts_us=judged.ts_us[chosen],
                arrival_us=judged.arrival_us[chosen],
                offsets=judged.offsets[chosen] + shift,
            )
        return dealt

    def _misplaced(self, stretch: Stretch) -> int:
        """One past the last event that lies elsewhere than its key belongs; the stretch's first offset without any."""
        after = stretch.first
        for judged in self._replay.batches(stretch, stretch.first):
            elsewhere = judged.offsets[self._homes(judged) != stretch.partition.partition]
            if len(elsewhere):
                after = int(elsewhere[-1]) + 1
        return after

    def _homes(self, judged: Judged) -> "npt.NDArray[np.int64]":
        """The partition of each event's key; that of no partition for one without a key, which counts nowhere."""
        codes, keys = self._pipeline.entities(judged.events)
        dtype, count = self._view.join_keys[0].dtype, self._count or 1
        homes = [partition_of(message_key(key, self._head, dtype), count) for key in keys]
        return np.array([*homes, -1], np.int64)[codes]
