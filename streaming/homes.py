"""Does an event lie in the partition in which its key belongs?"""

from collections.abc import Sequence
from typing import Self

from featurestore.online.keys import EntityKeyCodec
from featurestore.online.partitioner import KEY_TYPES, message_key, partition_of
from featurestore.plan import View


class Homes:
    """One partition of a keyed view whose topic declares how many it has."""

    def __init__(self, view: View, partition: int, partitions: int) -> None:
        self._partition, self._partitions = partition, partitions
        self._head, self._dtype = EntityKeyCodec(view.join_keys).value_at, view.join_keys[0].dtype

    @classmethod
    def of(cls, view: View, partition: int) -> Self | None:
        """None for a view whose keys have no partition."""
        partitions = partitions_of(view)
        return None if partitions is None else cls(view, partition, partitions)

    def hold(self, keys: Sequence[bytes]) -> bool:
        """Whether all of these entity keys belong here."""
        head, dtype, partition, partitions = self._head, self._dtype, self._partition, self._partitions
        return all(partition_of(message_key(key, head, dtype), partitions) == partition for key in keys)


def partitions_of(view: View) -> int | None:
    """Among how many partitions each key of the view has one; None where its events may lie anywhere."""
    topic = view.source.topic
    if topic is None or view.partitions != "keyed" or view.join_keys[0].dtype not in KEY_TYPES:
        return None
    return topic.partitions
