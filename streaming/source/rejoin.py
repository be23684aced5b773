"""How does a consumer's rejoin survive polls that are shorter than the rejoin?

kafka-python 3.0 keeps a join that outlives a poll for the next one, with two gaps. A rejoin that a metadata change set
off is not asked for again, so that its result is never taken: the consumer neither joins nor sends heartbeats any more.
And a join that ends between two polls is thrown away and asked for again; when the leader does so, everybody rejoins,
and under load that goes round and round. Both are closed here, before each poll.
"""

from typing import Any


class _Ended:
    """A join that has ended, which the coordinator shall take for one under way: then it waits for it, in no time."""

    is_done = False

    def __init__(self, join: Any) -> None:
        self._join = join

    def __getattr__(self, name: str) -> Any:
        return getattr(self._join, name)


def keep_join(consumer: Any) -> None:
    """Let a KafkaConsumer's next poll go on with the join that an earlier poll began; nothing where there is none."""
    coordinator = consumer._coordinator  # noqa: SLF001 - no public call reaches the join
    if not coordinator.rejoining:
        return
    coordinator.request_rejoin()
    join = coordinator._join_task  # noqa: SLF001
    if join is not None and join.is_done:
        coordinator._join_task = _Ended(join)  # noqa: SLF001
