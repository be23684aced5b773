"""Which Plan is in force? The Plan as a file and in the online store.

The file serves joins and laptops; the copy in the online store is what API and stream processes watch. The key-value
client comes from the process that starts them, so that this room needs no Redis.
"""

import os
from pathlib import Path
from typing import Protocol

from featurestore.errors import ConfigurationError, StaleStore
from featurestore.online.keys import plan_key, plans_key
from featurestore.plan import Plan

REMEMBERED = 20
"""Plans that were in force and can be looked at again, the last ones."""
_VERSION_BYTES = 20
_REPLACE = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""


class KeyValue(Protocol):
    """The calls that a Plan store makes of a key-value client."""

    def get(self, name: bytes, /) -> object:
        """The value of a key as bytes, None where there is none."""
        ...

    def getrange(self, key: bytes, start: int, end: int, /) -> object:
        """The bytes `start`..`end` of a value, both included; empty where there is none."""
        ...

    def eval(self, script: str, numkeys: int, /, *keys_and_args: bytes) -> object:
        """Runs a script atomically."""
        ...

    def set(self, name: bytes, value: bytes, /) -> object:
        """Replaces the value of a key, atomically."""
        ...

    def hset(self, name: bytes, key: bytes, value: bytes, /) -> object:
        """Sets a field of a hash."""
        ...

    def hget(self, name: bytes, key: bytes, /) -> object:
        """A field of a hash as bytes, None where there is none."""
        ...

    def hkeys(self, name: bytes, /) -> object:
        """The names of a hash's fields."""
        ...

    def hdel(self, name: bytes, /, *keys: bytes) -> object:
        """Removes fields of a hash."""
        ...


class PlanStore:
    """The Plan of one project in a key-value store.

    The value is `VERSION newline JSON`, so that one read tells whether anything changed.
    """

    def __init__(self, client: KeyValue, project: str) -> None:
        self._client = client
        self._key = plan_key(project)
        self._earlier = plans_key(project)
        self._project = project
        self._seen: bytes | None = None
        self._plan: Plan | None = None

    def publish(self, plan: Plan) -> None:
        """Puts the Plan in force for every process that watches this store."""
        self._client.set(self._key, _encoded(plan))
        self._remember(plan)

    def replace(self, held: Plan | None, plan: Plan) -> None:
        """Puts the Plan in force where `held` still is (None: nothing); raises StaleStore where another one is.

        Two that change the Plan at once, `apply` and a backfill, must not undo what the other did.
        """
        before = b"" if held is None else self._seen if held is self._plan and self._seen else _encoded(held)
        if not self._client.eval(_REPLACE, 1, self._key, before, _encoded(plan)):
            raise StaleStore(
                f"another plan of project {self._project!r} came into force meanwhile; look at it, then try again"
            )
        self._remember(plan)

    def of(self, version: int) -> Plan | None:
        """The Plan of that version, in force or one of the last `REMEMBERED` that were; None where it is forgotten."""
        raw = self._client.hget(self._earlier, b"%d" % version)
        return Plan.decode(raw) if isinstance(raw, bytes) else None

    def _remember(self, plan: Plan) -> None:
        self._client.hset(self._earlier, b"%d" % plan.version, plan.encode())
        known = self._client.hkeys(self._earlier)
        assert isinstance(known, list)
        if old := sorted((name for name in known if name.isdigit()), key=int)[:-REMEMBERED]:
            self._client.hdel(self._earlier, *old)

    def load(self) -> Plan:
        """The Plan in force, the same object while nothing changes; raises StaleStore where there is none."""
        held = self.held()
        if held is None:
            raise StaleStore(f"the online store has no plan of project {self._project!r}; run `featurestore apply`")
        return held

    def held(self) -> Plan | None:
        """The Plan in force, None where there is none."""
        raw = self._client.get(self._key)
        if not isinstance(raw, bytes):
            return None
        if self._plan is None or raw != self._seen:
            self._plan, self._seen = Plan.decode(raw.split(b"\n", 1)[-1]), raw
        return self._plan

    def version(self) -> int | None:
        """The version in force, None where there is no Plan."""
        head = self._client.getrange(self._key, 0, _VERSION_BYTES)
        if not isinstance(head, bytes) or not head:
            return None
        number = head.split(b"\n", 1)[0]
        if not number.isdigit():
            raise StaleStore(
                f"the plan of project {self._project!r} in the online store cannot be read: it starts with {head!r}; "
                "run `featurestore apply`"
            )
        return int(number)


def _encoded(plan: Plan) -> bytes:
    return b"%d\n%s" % (plan.version, plan.encode())


def load_plan_file(path: Path) -> Plan:
    """The Plan that the last `apply` wrote; raises ConfigurationError where there is none or it is torn."""
    try:
        return Plan.decode(path.read_bytes())
    except FileNotFoundError:
        raise ConfigurationError(f"no plan at {path}; run `featurestore apply`") from None


def write_plan_file(path: Path, plan: Plan) -> None:
    """Replaces the Plan file; a reader sees the old one or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_bytes(plan.encode())
    draft.replace(path)
