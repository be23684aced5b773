"""How far has each consumer group read, by its own account?"""

from typing import NamedTuple

from streaming.embedded.journal import Journal


class Committed(NamedTuple):
    """An offset that a group committed, with the note it left."""

    offset: int
    metadata: str


class Offsets:
    """Committed offsets by group, topic and partition; kept in the journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._groups: dict[str, dict[tuple[str, int], Committed]] = {}
        for (_, group, topic, partition), value in journal.of("offset"):
            if value is not None:
                self._groups.setdefault(group, {})[topic, int(partition)] = Committed(*value)

    def commit(self, group: str, topic: str, partition: int, committed: Committed) -> None:
        """Keep an offset in place of the one before."""
        self._groups.setdefault(group, {})[topic, partition] = committed
        self._journal.note(("offset", group, topic, str(partition)), [committed.offset, committed.metadata])

    def of(self, group: str) -> dict[tuple[str, int], Committed]:
        """All offsets of a group."""
        return self._groups.get(group, {})

    def groups(self) -> list[str]:
        """Names of the groups that committed something."""
        return sorted(self._groups)

    def forget(self, group: str) -> bool:
        """Forget a group's offsets; whether there were any."""
        held = self._groups.pop(group, None)
        for topic, partition in held or ():
            self._journal.note(("offset", group, topic, str(partition)), None)
        return held is not None
