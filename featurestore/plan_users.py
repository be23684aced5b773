"""Who still uses an older Plan?

Whoever reads or writes by a Plan reports its version, and repeats it before the report expires. A version of a view is
given up when nobody reports a Plan that reads it. The key-value client comes from the process that starts them.
"""

import logging
from typing import Final, Protocol

import msgspec

from featurestore.clock import Clock
from featurestore.online.keys import users_key

WORKER: Final = "stream "
"""How the names begin under which the stream's workers report."""
REPORT_S: Final = 30.0
"""How long a report holds; it is repeated much more often."""
_log = logging.getLogger(__name__)


class Hashes(Protocol):
    """The calls that are made of a key-value client."""

    def hset(self, name: bytes, key: str, value: bytes, /) -> object:
        """Sets a field of a hash."""
        ...

    def hgetall(self, name: bytes, /) -> object:
        """All fields of a hash, as bytes."""
        ...

    def hdel(self, name: bytes, /, *keys: bytes | str) -> object:
        """Removes fields of a hash."""
        ...


class Use(msgspec.Struct, frozen=True):
    """One report."""

    plan_version: int
    until_us: int


class PlanUsers:
    """Those who use the Plans of one project. Reports cross machines: their clocks may differ by a part of REPORT_S."""

    def __init__(self, client: Hashes, project: str, clock: Clock) -> None:
        self._client = client
        self._key = users_key(project)
        self._clock = clock

    def report(self, name: str, plan_version: int, *, holds_s: float = REPORT_S) -> None:
        """`name` (a role and what tells it from others) goes by that version for so long."""
        use = Use(plan_version, self._clock() + round(holds_s * 1_000_000))
        self._client.hset(self._key, name, msgspec.json.encode(use))

    def leave(self, name: str) -> None:
        """`name` uses no Plan any more."""
        self._client.hdel(self._key, name)

    def uses(self) -> dict[str, int]:
        """Plan version by name, of all whose reports hold; others are forgotten."""
        held = self._client.hgetall(self._key)
        reports = held if isinstance(held, dict) else {}
        found, over = {}, []
        for name, value in reports.items():
            try:
                use = msgspec.json.decode(value, type=Use)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                # Whoever it was repeats its report, and the row is written anew.
                _log.warning("the report of %r cannot be read and is left out", name)
                continue
            if use.until_us > self._clock():
                found[name.decode(errors="backslashreplace")] = use.plan_version
            else:
                over.append(name)
        if over:
            self._client.hdel(self._key, *over)
        return found

    def behind(self, plan_version: int) -> list[str]:
        """Those who use an older one."""
        return sorted(name for name, version in self.uses().items() if version < plan_version)
