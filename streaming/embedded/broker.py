"""What does the broker hold, apart from its sockets?"""

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

from streaming.embedded.groups import Group
from streaming.embedded.journal import Journal
from streaming.embedded.offsets import Offsets
from streaming.embedded.topics import Topics
from streaming.embedded.transactions import Transactions

NODE_ID = 1


class Address(NamedTuple):
    """Where clients reach the broker."""

    host: str
    port: int

    def __str__(self) -> str:
        """As bootstrap servers are written."""
        return f"{self.host}:{self.port}"


class Broker:
    """The state that requests act upon; handlers run one at a time on one event loop.

    `auto_partitions` is how many partitions a topic gets that a client merely names; 0 refuses unknown topics.
    """

    def __init__(self, folder: Path | None, *, auto_partitions: int, clock_ms: Callable[[], int]) -> None:
        self._lock = _only_user_of(folder) if folder else None
        self.address = Address("127.0.0.1", 0)
        self.auto_partitions = auto_partitions
        self.clock_ms = clock_ms
        self.journal = Journal(folder / "journal.jsonl" if folder else None)
        self.topics = Topics(folder)
        self.offsets = Offsets(self.journal)
        self.transactions = Transactions(self.topics, self.offsets, self.journal, clock_ms)
        self.transactions.abort_recovered()
        self._groups: dict[str, Group] = {}

    def group(self, name: str) -> Group:
        """A group, created when first named."""
        return self._groups.setdefault(name, Group(name))

    def known_groups(self) -> list[Group]:
        """Groups with members or committed offsets."""
        names = {group.name for group in self._groups.values() if group.members} | set(self.offsets.groups())
        return [self.group(name) for name in sorted(names)]

    def close(self) -> None:
        """Stop timers and close files."""
        for group in self._groups.values():
            group.close()
        self.transactions.close()
        self.topics.close()
        self.journal.close()
        if self._lock:
            self._lock.close()


def _only_user_of(folder: Path) -> IO[str]:
    """Take the folder for this process. Raises BlockingIOError where another broker has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise BlockingIOError(f"another broker keeps its data in {folder}") from error
    return lock
