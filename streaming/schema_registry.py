"""Which schema does an id in a message stand for?

A registry is a folder of files (`7.avsc`, `8.proto`, …) or the address of one that speaks Confluent's HTTP interface.
Whatever is accepted must be accepted again when it is read again, so the first answer about an id counts: answers are
kept in a folder that all workers of a deployment share, "there is none" included. Who registers a schema late removes
that file, and replays what was set aside.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from featurestore.errors import ConfigurationError
from streaming.source.records import SourceUnavailable
from validation.place import Place
from validation.whole_file import first_file

_MOST_UNKNOWN: Final = 10_000


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
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """That there is none is believed for `again_s`: messages of unknown schemas may come one after the other."""
        self._registry = registry
        self._folder = folder
        self._again_s = again_s
        self._monotonic = monotonic
        self._none: dict[int, float] = {}

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
            with suppress(FileNotFoundError):
                return path.read_bytes().decode() or None
            found = self._registry.schema(number) or ""
            # Where another worker was first its answer counts.
            return first_file(path, found.encode()).decode() or None
        except OSError as error:
            raise SourceUnavailable(f"{self}: schema {number} cannot be looked for: {error}") from error


def registry_of(address: str | None, kept: Place) -> SchemaRegistry | None:
    """The registry at an address, with its first answers in `kept`; None where none is named."""
    if not address:
        return None
    if not address.startswith(("http://", "https://")):
        return FirstAnswers(FolderRegistry(Path(address)), kept)
    # Only here: a worker that restarts is waited for, and the HTTP library takes a twentieth of its start.
    from streaming.http_registry import HttpRegistry

    return FirstAnswers(HttpRegistry(address), kept)
