"""Which small facts must a broker on disk remember besides its logs?

Committed group offsets, and the producer id and epoch of each transactional id. One JSON document a line; the last
line about a thing holds.
"""

import json
import os
from pathlib import Path
from typing import Any

Fact = tuple[str, ...]


class Journal:
    """Facts by name; in memory alone where there is no path."""

    def __init__(self, path: Path | None = None) -> None:
        self.facts: dict[Fact, Any] = {}
        self._file = None
        if path is None:
            return
        if path.exists():
            for line in path.read_bytes().splitlines():
                try:
                    fact, value = json.loads(line)
                except ValueError:
                    break  # cut short by a crash: it was never acknowledged
                self.facts[tuple(fact)] = value
        fresh = path.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as compacted:
            compacted.writelines(json.dumps([fact, value]) + "\n" for fact, value in self.facts.items())
        fresh.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def note(self, fact: Fact, value: Any) -> None:
        """Remember `value` under a name such as `("offset", group, topic, partition)`."""
        self.facts[fact] = value
        if self._file:
            self._file.write(json.dumps([fact, value]) + "\n")
            self._file.flush()

    def of(self, kind: str) -> list[tuple[Fact, Any]]:
        """All facts of one kind, the oldest first."""
        return [(fact, value) for fact, value in self.facts.items() if fact[0] == kind]

    def close(self) -> None:
        """Bring everything to the disk."""
        if self._file:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
