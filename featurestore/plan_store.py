"""Which Plan is in force? The Plan as a file and in the online store.

The file serves joins and laptops; the copy in the online store is what API and stream processes watch. The key-value
client comes from the process that starts them, so that this room needs no Redis.
"""

import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from featurestore.errors import ConfigurationError, StaleStore, Untrusted
from featurestore.online.keys import applying_key, plan_key, plans_key
from featurestore.plan import Plan
from featurestore.signing import SIGNATURE_BYTES, VARIABLE, Signer, signer_of

_log = logging.getLogger(__name__)

REMEMBERED = 20
"""Plans that were in force and can be looked at again, the last ones."""
_VERSION_BYTES = 20
_BEGIN, _END = b'{"signature":"', b'",'
_REPLACE = """
if ARGV[3] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[3] then return -1 end
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

    The value is `VERSION newline JSON`, the signature first in it, so that one read tells whether anything changed. A
    Plan carries users' functions, which are run: what `signer` does not accept raises Untrusted, and is never used.
    """

    def __init__(self, client: KeyValue, project: str, signer: Signer | None = None) -> None:
        """Without a `signer` the keys are the environment's; raises ConfigurationError where it has none."""
        self._client = client
        self._signer = signer or signer_of(None)
        self._key = plan_key(project)
        self._earlier = plans_key(project)
        self._project = project
        self._seen: bytes | None = None
        self._plan: Plan | None = None

    def publish(self, plan: Plan) -> None:
        """Put the Plan in force for every process that watches this store."""
        self._client.set(self._key, self._encoded(plan))
        self._remember(plan)

    def replace(self, held: Plan | None, plan: Plan) -> None:
        """Put the Plan in force where `held` still is (None: nothing); raises StaleStore where another one is.

        Two that change the Plan at once, `apply` and a backfill, must not undo what the other did.
        """
        before = b"" if held is None else self._seen if held is self._plan and self._seen else self._encoded(held)
        self.replace_raw(before, plan)

    def replace_raw(self, before: bytes, plan: Plan, *, lease: bytes = b"") -> None:
        """Put the Plan in force where these bytes still are, whatever they are worth; empty ones are none.

        Raises StaleStore where others are, and where `lease` (the value of `applying_key`) is not held any more.
        """
        keys = (self._key, applying_key(self._project)) if lease else (self._key,)
        done = self._client.eval(_REPLACE, len(keys), *keys, before, self._encoded(plan), lease)
        if done == 0:
            raise StaleStore(
                f"another plan of project {self._project!r} came into force meanwhile; look at it, then try again"
            )
        if done != 1:
            raise StaleStore(
                f"`apply` of project {self._project!r} took too long, and another one may have begun: run it again"
            )
        self._remember(plan)

    def raw(self) -> bytes:
        """What the store holds as the Plan in force, whatever it is worth; empty where there is none."""
        raw = self._client.get(self._key)
        return raw if isinstance(raw, bytes) else b""

    def of(self, version: int) -> Plan | None:
        """The Plan of that version, in force or one of the last `REMEMBERED` that were; None where it is forgotten.

        One that cannot be trusted counts as forgotten, and is named in the log.
        """
        raw = self._client.hget(self._earlier, b"%d" % version)
        if not isinstance(raw, bytes):
            return None
        try:
            return self._unsealed(raw, version, f"version {version} of the plan")
        except Untrusted as error:
            _log.error("%s", error)
            return None

    def latest_remembered(self) -> Plan | None:
        """The latest of the remembered Plans that can be trusted; None where there is none."""
        known = self._client.hkeys(self._earlier)
        assert isinstance(known, list)
        for name in sorted((name for name in known if name.isdigit()), key=int, reverse=True):
            if plan := self.of(int(name)):
                return plan
        return None

    def _remember(self, plan: Plan) -> None:
        self._client.hset(self._earlier, b"%d" % plan.version, seal(plan, self._signer))
        known = self._client.hkeys(self._earlier)
        assert isinstance(known, list)
        if old := sorted((name for name in known if name.isdigit()), key=int)[:-REMEMBERED]:
            self._client.hdel(self._earlier, *old)

    def _encoded(self, plan: Plan) -> bytes:
        return b"%d\n%s" % (plan.version, seal(plan, self._signer))

    def _unsealed(self, sealed: bytes, version: int | None, what: str) -> Plan:
        plan = unsealed(sealed, self._signer, f"{what} of project {self._project!r} in the online store")
        if plan.project != self._project or plan.version != version:
            raise Untrusted(
                f"{what} of project {self._project!r} in the online store is that of project {plan.project!r}, version "
                f"{plan.version}: somebody moved it there; run `featurestore apply`"
            )
        return plan

    def load(self) -> Plan:
        """The Plan in force, the same object while nothing changes; raises StaleStore where there is none."""
        held = self.held()
        if held is None:
            raise StaleStore(f"the online store has no plan of project {self._project!r}; run `featurestore apply`")
        return held

    def held(self) -> Plan | None:
        """The Plan in force, None where there is none; raises Untrusted."""
        raw = self.raw()
        if not raw:
            return None
        if self._plan is None or raw != self._seen:
            head, _, sealed = raw.partition(b"\n")
            number = int(head) if head.isdigit() and len(head) < _VERSION_BYTES else None
            self._plan, self._seen = self._unsealed(sealed, number, "the plan"), raw
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


def seal(plan: Plan, signer: Signer) -> bytes:
    """A Plan as it is kept: its JSON with the signature as the first field."""
    data = plan.encode()
    return b"%s%s%s%s" % (_BEGIN, signer.sign(b"plan", data), _END, data[1:])


def unsealed(sealed: bytes, signer: Signer, what: str) -> Plan:
    """The Plan of `seal`; raises Untrusted, which calls it `what`, where it is torn, unsigned or wrongly signed."""
    start = len(_BEGIN) + SIGNATURE_BYTES
    if not sealed.startswith(_BEGIN):
        raise Untrusted(
            f"{what} is not signed: it is torn, an earlier version of the product made it, or somebody without the "
            "signing key; run `featurestore apply`"
        )
    data = b"{" + sealed[start + len(_END) :]
    if not signer.accepts(sealed[len(_BEGIN) : start], b"plan", data) or sealed[start : start + len(_END)] != _END:
        raise Untrusted(
            f"{what} is torn, or signed with a key that this process does not have: give every process the same "
            f"{VARIABLE}, then run `featurestore apply`"
        )
    return Plan.decode(data)


def load_plan_file(path: Path, signer: Signer | None = None) -> Plan:
    """The Plan that the last `apply` wrote; raises ConfigurationError where there is none, Untrusted for a bad one.

    Without a `signer` the keys are the environment's, or those of the file's folder.
    """
    try:
        sealed = path.read_bytes()
    except FileNotFoundError:
        raise ConfigurationError(f"no plan at {path}; run `featurestore apply`") from None
    return unsealed(sealed, signer or signer_of(path.parent), f"the plan {path}")


def load_unsigned_plan(path: Path) -> Plan | None:
    """The Plan file of an earlier version, which did not sign; None where it is none. `apply` alone may ask."""
    try:
        return Plan.decode(path.read_bytes())
    except (OSError, ConfigurationError):
        return None


def write_plan_file(path: Path, plan: Plan, signer: Signer | None = None) -> None:
    """Replace the Plan file; a reader sees the old one or the new one, never half.

    A later Plan stays: of two that write at once, the later Plan is in the file in the end.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    signer = signer or signer_of(path.parent)
    with (path.parent / f".{path.name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(ConfigurationError):
            if load_plan_file(path, signer).version > plan.version:
                return
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            out.write(seal(plan, signer))
        draft.replace(path)
