"""When are a deployment's files compacted, and whose?

A worker looks every minute or so, on a thread of its own, after the partitions that it holds; the command does all at
once. What fails is logged and tried again the next time: files stay as they are, and as right.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from threading import Event
from typing import Final

import msgspec

from featurestore.errors import ViewsFailed, failing
from featurestore.offline.compaction import FAN_IN, GRACE_S, compact
from featurestore.plan import View
from featurestore.repeated import Failed, nobody, repeated
from streaming.event_columns import by_topic
from streaming.sinks import Quarantine
from streaming.source.records import TopicPartition
from validation.contract import Contract
from validation.errors import PlatformError
from validation.place import Place
from validation.quarantine_compaction import compact_quarantine

_LOG = logging.getLogger(__name__)
EVERY_S: Final = 60.0


class CompactedTopic(msgspec.Struct, frozen=True):
    """What was done to one topic's files."""

    topic: str
    written: int
    deleted: int


class Compactor:
    """Compacts event log and quarantine of the views' topics."""

    def __init__(
        self, event_log: Place, quarantine: Place, views: Sequence[View], contracts: Mapping[str, Contract]
    ) -> None:
        self._event_log = event_log
        self._quarantine = Quarantine(quarantine, contracts)
        self._keys = {
            topic: readers[0].source.topic.key_column if readers[0].source.topic else None
            for topic, readers in by_topic(views).items()
        }

    def run(
        self,
        partitions: Sequence[TopicPartition] | None = None,
        *,
        fan_in: int = FAN_IN,
        grace_s: float = GRACE_S,
    ) -> list[CompactedTopic]:
        """Compact what is due of these partitions, of all without them.

        Raises ViewsFailed where topics cannot be compacted, once all others are.
        """
        told = []
        failed: dict[str, PlatformError] = {}
        for topic, key in self._keys.items():
            own = None
            if partitions is not None:
                own = [(each.topic_id, each.partition) for each in partitions if each.topic == topic]
                if not own:
                    continue
            with failing(topic, failed):
                log = compact(self._event_log / topic, key_column=key, partitions=own, fan_in=fan_in, grace_s=grace_s)
                written, deleted = compact_quarantine(
                    self._quarantine.folder(topic), partitions=own, fan_in=fan_in, grace_s=grace_s
                )
                told.append(CompactedTopic(topic, log.written + written, log.deleted + deleted))
        if failed:
            raise ViewsFailed("compacted", failed, kind="topic")
        return told


def compacting(
    compactor: Callable[[], Compactor | None],
    held: Callable[[], Sequence[TopicPartition]],
    *,
    every_s: float = EVERY_S,
    failed: Failed = nobody,
) -> AbstractContextManager[None]:
    """Compact what is held, over and over, meanwhile; 0 seconds: never."""

    def look(stopping: Event) -> None:  # noqa: ARG001 - a compaction under way is finished
        found = compactor()
        for each in found.run(held()) if found is not None else ():
            if each.written:
                _LOG.info("compacted %s: %d files written, %d deleted", *msgspec.structs.astuple(each))

    return repeated("compaction", look, every_s=every_s, failed=failed)
