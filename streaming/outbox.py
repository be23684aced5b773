"""How are records written to topics that are there only when needed, by a process that goes on when they are not?

A publisher is made when the first record for its topic is handed over, and made anew after a failure: what was handed
over since the last `flush` is then in doubt, and for whoever handed it over to repeat.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from featurestore.errors import FeatureStoreError
from streaming.source.records import Header


class Posting(Protocol):
    """What writes to one topic."""

    partitions: int

    def send(
        self,
        key: bytes | None,
        value: bytes | None,
        *,
        timestamp_us: int,
        headers: Sequence[Header] = (),
        partition: int | None = None,
    ) -> None:
        """Hand over one record."""

    def flush(self) -> int:
        """Wait until everything that was handed over is acknowledged."""

    def close(self) -> None:
        """Close the connections."""


Dial = Callable[[str, str | None], Posting]
"""A publisher of a topic, which is created with as many partitions as another has, where it does not exist."""


class Outbox:
    """Publishers by topic. Not shared by threads. Raises what publishers raise, after letting go of them."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._open: dict[str, Posting] = {}
        self._used: set[str] = set()

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        *,
        timestamp_us: int,
        headers: Sequence[Header] = (),
        like: str | None = None,
        partition: int | None = None,
    ) -> None:
        """Hand over one record; `partition` is taken modulo the topic's number of partitions."""
        posting = self._of(topic, like)
        place = None if partition is None else partition % posting.partitions
        try:
            posting.send(key, value, timestamp_us=timestamp_us, headers=headers, partition=place)
        except FeatureStoreError:
            self.close()
            raise
        self._used.add(topic)

    def flush(self) -> None:
        """Wait until everything that was handed over is acknowledged."""
        for topic in sorted(self._used):
            try:
                self._open[topic].flush()
            except FeatureStoreError:
                self.close()
                raise
        self._used.clear()

    def close(self) -> None:
        """Let go of all connections, and of what is not acknowledged."""
        while self._open:
            with suppress(FeatureStoreError):
                self._open.popitem()[1].close()
        self._used.clear()

    def _of(self, topic: str, like: str | None) -> Posting:
        found = self._open.get(topic)
        if found is None:
            found = self._open[topic] = self._dial(topic, like)
        return found
