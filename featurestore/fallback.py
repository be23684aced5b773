"""Which feature services answer by their declared fallback now, and why?

A service's tag `on_alarm` says what its callers get while a critical alarm is on: null, its defaults, or what an
earlier plan version gives. Monitors switch it on and off here; every process that serves looks here about once a
second. Without the tag nothing is switched: no output can be better than a wrong one, so the choice is the user's.
"""

import logging
from collections.abc import Mapping
from typing import Protocol

import msgspec

from featurestore.online.keys import fallback_key

UNREADABLE = "the switch is on, and its row in the online store cannot be read; clear it and switch it again"
_log = logging.getLogger(__name__)


class Fallback(msgspec.Struct, frozen=True, kw_only=True):
    """Why a service answers by its fallback."""

    since_us: int
    reason: str
    """The alarm's title, or what a person said."""
    by_monitor: bool
    """Whether a monitor switched it, who switches it back when the alarm ends; a person's switch is a person's."""


class Hashes(Protocol):
    """The calls that this makes of a key-value client."""

    def hgetall(self, name: bytes, /) -> object:
        """All fields of a hash."""
        ...

    def hset(self, name: bytes, key: str, value: bytes, /) -> object:
        """Sets one field."""
        ...

    def hdel(self, name: bytes, key: str, /) -> object:
        """Removes one field."""
        ...


class Fallbacks:
    """The switches of one project, in the online store; raises StoreUnavailable where it is away."""

    def __init__(self, client: Hashes, project: str) -> None:
        self._client = client
        self._key = fallback_key(project)

    def active(self) -> dict[str, Fallback]:
        """Service -> why it answers by its fallback.

        A switch whose row cannot be read stays on, for its presence is the alarm; one without a readable name is left
        out and named in the log.
        """
        raw = self._client.hgetall(self._key)
        found: dict[str, Fallback] = {}
        for name, value in sorted(raw.items()) if isinstance(raw, Mapping) else ():
            try:
                service = name.decode()
            except UnicodeDecodeError:
                _log.warning("a fallback switch has the unreadable name %r and is left out", name)
                continue
            try:
                found[service] = msgspec.json.decode(value, type=Fallback)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                found[service] = Fallback(since_us=0, reason=UNREADABLE, by_monitor=False)
        return found

    def switch(self, service: str, fallback: Fallback) -> None:
        """Lets a service answer by its fallback from now on."""
        self._client.hset(self._key, service, msgspec.json.encode(fallback))

    def clear(self, service: str) -> None:
        """Lets a service answer from the plan in force again."""
        self._client.hdel(self._key, service)
