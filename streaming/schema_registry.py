"""Which schema does an id in a message stand for?

A registry is a folder of files (`7.avsc`, `8.proto`, …) or the address of one that speaks Confluent's HTTP interface.
Whatever is accepted must be accepted again when it is read again, so the first answer about an id counts: answers are
kept in a folder that all workers of a deployment share. That there is none is kept too, for ten minutes, of as many ids
as fit, and the registry is asked a bounded number of times a second: a producer can invent ids without end. What was
set aside meanwhile is replayed from quarantine.
"""

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from featurestore.errors import ConfigurationError
from streaming.source.records import SourceUnavailable
from validation.place import Place
from validation.whole_file import first_file, replace_file

RETRY_S: Final = 600.0
"""How long every worker believes that the registry has no such schema: one that is registered late is found then."""
LARGEST_SCHEMA: Final = 1 << 20
_MOST_UNKNOWN: Final = 10_000
_MOST_KEPT: Final = 1_000
"""Answers that there is none which one worker keeps for the others."""
_ASKED_AT_ONCE: Final = 50
"""Questions to the registry within a second."""
_NONE: Final = b"none since "


class SchemaRegistry(Protocol):
    """Schemas by their ids; its text names it in messages."""

    def schema(self, number: int) -> str | None:
        """The text of a schema, None where there is none; raises SourceUnavailable where nobody answers."""
        ...


class FolderRegistry:
    """A file a schema, named by its id with any ending."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ConfigurationError(f"the schema registry {folder} is no folder, and no http address")
        self._folder = folder

    def __str__(self) -> str:
        """The way messages name it."""
        return f"the schema registry {self._folder}"

    def schema(self, number: int) -> str | None:
        """See SchemaRegistry."""
        found = sorted(self._folder.glob(f"{number}.*"))
        return found[0].read_text(encoding="utf-8") if found else None


class FirstAnswers:
    """Another registry, asked once about each id: what it said first is kept in a folder, or beside the events.

    Raises SourceUnavailable where what is kept cannot be read: who asks again then may be told otherwise.
    """

    def __init__(
        self,
        registry: SchemaRegistry,
        folder: Place,
        *,
        again_s: float = 1.0,
        retry_s: float = RETRY_S,
        monotonic: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """That there is none is believed for `again_s` without a look, and by every worker for `retry_s`."""
        self._registry = registry
        self._folder = folder
        self._again_s = again_s
        self._retry_s = retry_s
        self._monotonic = monotonic
        self._wall_s = wall_s
        self._none: dict[int, float] = {}
        self._kept = 0
        self._asked: deque[float] = deque(maxlen=_ASKED_AT_ONCE)

    def __str__(self) -> str:
        """The way messages name it."""
        return f"{self._registry} (answers kept in {self._folder})"

    def schema(self, number: int) -> str | None:
        """See SchemaRegistry."""
        now_s = self._monotonic()
        if now_s < self._none.get(number, now_s):
            return None
        found = self._first_answer(number)
        if found is None:
            if len(self._none) >= _MOST_UNKNOWN:
                self._none.clear()
            self._none[number] = now_s + self._again_s
        return found

    def _first_answer(self, number: int) -> str | None:
        path = self._folder / f"{number}.schema"
        try:
            kept: bytes | None = None
            with suppress(FileNotFoundError):
                kept = path.read_bytes()
                if kept and not kept.startswith(_NONE):
                    return kept.decode()
                if self._holds(kept):
                    return None
            # An empty file is how an earlier version kept that there was none.
            if not self._may_ask():
                # Ids that nobody knows come in a flood: what is set aside meanwhile can be replayed.
                return None
            found = self._registry.schema(number)
            if found is not None and len(found) > LARGEST_SCHEMA:
                raise SourceUnavailable(f"{self}: schema {number} has {len(found)} characters")
            if found:
                if kept is not None:
                    replace_file(path, found.encode())
                    return found
                # Where another worker was first its answer counts.
                first = first_file(path, found.encode())
                return found if first.startswith(_NONE) else first.decode()
            self._keep_none(path, new=kept is None)
        except (OSError, UnicodeDecodeError) as error:
            raise SourceUnavailable(f"{self}: schema {number} cannot be looked for: {error}") from error
        return None

    def _holds(self, kept: bytes) -> bool:
        """Whether an answer that there is none is still believed."""
        try:
            return self._wall_s() < float(kept[len(_NONE) :]) + self._retry_s
        except ValueError:
            return False

    def _may_ask(self) -> bool:
        now_s = self._monotonic()
        if len(self._asked) == _ASKED_AT_ONCE and now_s - self._asked[0] < 1.0:
            return False
        self._asked.append(now_s)
        return True

    def _keep_none(self, path: Place, *, new: bool) -> None:
        """For every worker, as many as fit: a file an id that anybody may invent would fill the disk."""
        if new and self._kept >= _MOST_KEPT:
            return
        self._kept += new
        replace_file(path, _NONE + b"%d" % self._wall_s())


def registry_of(address: str | None, kept: Place) -> SchemaRegistry | None:
    """The registry at an address, with its first answers in `kept`; None where none is named."""
    if not address:
        return None
    if not address.startswith(("http://", "https://")):
        return FirstAnswers(FolderRegistry(Path(address)), kept)
    # Only here: a worker that restarts is waited for, and the HTTP library takes a twentieth of its start.
    from streaming.http_registry import HttpRegistry

    return FirstAnswers(HttpRegistry(address), kept)
