"""Which API keys are there? Kept hashed in the online store: created, listed and revoked there, known to every worker.

A key is `fsk_` and 256 random bits; only its SHA-256 digest is stored, which is enough for secrets that nobody chose.
The key-value client comes from the process that starts this, so that this room needs no Redis.
"""

import hashlib
import logging
import re
import secrets
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from featurestore.api.identity import ROLES, Caller
from featurestore.clock import Clock
from featurestore.errors import StaleStore, StoreUnavailable, UnknownName, UsageError
from featurestore.signing import Signer, signer_of

PREFIX = "fsk_"
_log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9_.:@/-]{1,100}")


class HashStore(Protocol):
    """The calls that keys make of a key-value client."""

    def hgetall(self, name: bytes, /) -> Any:
        """The fields and values of a hash."""
        ...

    def hset(self, name: bytes, key: bytes, value: bytes, /) -> Any:
        """Sets one field of a hash."""
        ...


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is stored: everything but the key."""

    id: str
    name: str
    digest: str
    """SHA-256 of the key, in hexadecimal."""
    roles: tuple[str, ...]
    grants: tuple[str, ...] = ()
    producers: tuple[str, ...] = ()
    """Whose contract violations the key shows."""
    rate_per_s: float | None = None
    created_us: int
    revoked_us: int | None = None

    @property
    def caller(self) -> Caller:
        """Whom a request with this key comes from."""
        return Caller(
            name=f"key {self.id} ({self.name})",
            roles=frozenset(self.roles),
            grants=frozenset(self.grants),
            producers=frozenset(self.producers),
            rate_per_s=self.rate_per_s,
        )


def digest_of(key: str) -> bytes:
    """The SHA-256 digest of a key.

    >>> digest_of("open sesame").hex()[:8]
    '41ef4bb0'
    """
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


class KeyStore:
    """The API keys of one project. Raises StoreUnavailable where the store does not answer."""

    def __init__(self, client: HashStore, project: str, signer: Signer | None = None) -> None:
        """Rows are signed: one that `signer` does not accept lets nobody in. Without one, the environment's keys."""
        self._client = client
        self._project = project.encode()
        self._signer = signer or signer_of(None)
        self._key = f"fs:apikeys:{{{len(project)}:{project}}}".encode()

    def create(
        self,
        name: str,
        roles: Collection[str],
        *,
        grants: Collection[str] = (),
        producers: Collection[str] = (),
        rate_per_s: float | None = None,
        clock: Clock,
    ) -> tuple[str, ApiKey]:
        """A new key, which nothing can show again, and what is stored of it; raises UsageError."""
        if not _NAME.fullmatch(name):
            raise UsageError(f"key name {name!r}: expected 1 to 100 letters, digits or one of _.:@/-")
        if not roles:
            raise UsageError(f"a key without a role may do nothing; give one of {', '.join(ROLES)}")
        if producers and (not all(producers) or not {"producer", "admin"} & set(roles)):
            raise UsageError("a key of a producer has the role producer, and producers have names")
        if rate_per_s is not None and not 0 < rate_per_s < 1e9:
            raise UsageError(f"a rate of {rate_per_s:g} requests a second; expected a positive number")
        secret = PREFIX + secrets.token_urlsafe(32)
        key = ApiKey(
            id=secrets.token_hex(4),
            name=name,
            digest=digest_of(secret).hex(),
            roles=tuple(sorted(set(roles))),
            grants=tuple(sorted(set(grants))),
            producers=tuple(sorted(set(producers))),
            rate_per_s=rate_per_s,
            created_us=clock(),
        )
        self._put(key)
        return secret, key

    def list(self) -> list[ApiKey]:
        """Every key there ever was that can be read, oldest first."""
        return [*self.rows()[0]]

    def rows(self) -> tuple[Sequence[ApiKey], Sequence[str]]:
        """Every key that can be read, oldest first, and the names of rows that cannot: each row stands for itself."""
        held: Mapping[bytes, bytes] = self._client.hgetall(self._key)
        keys, unreadable = [], []
        for name, value in held.items():
            try:
                key = self._unsealed(name, value)
                bytes.fromhex(key.digest)
            except (msgspec.MsgspecError, ValueError):
                unreadable.append(name.decode(errors="backslashreplace"))
            else:
                keys.append(key)
        return sorted(keys, key=lambda key: (key.created_us, key.id)), sorted(unreadable)

    def revoke(self, key_id: str, *, clock: Clock) -> ApiKey:
        """Ends a key, for every worker within about a second; it stays listed. Raises UnknownName."""
        found, unreadable = self.rows()
        keys = {key.id: key for key in found}
        if key_id in unreadable:
            raise StaleStore(
                f"API key {key_id!r} is torn, or not signed with a key that this process has, and lets nobody in; "
                "create another one in its place"
            )
        if key_id not in keys:
            raise UnknownName("API key", key_id, keys)
        revoked = keys[key_id]
        if revoked.revoked_us is None:
            revoked = msgspec.structs.replace(revoked, revoked_us=clock())
            self._put(revoked)
        return revoked

    def sign(self, key_id: str) -> ApiKey:
        """Sign a row of a version that did not sign: what it may do is taken as it stands. Raises UnknownName."""
        held: Mapping[bytes, bytes] = self._client.hgetall(self._key)
        raw = held.get(key_id.encode())
        try:
            key = None if raw is None else msgspec.json.decode(raw, type=ApiKey)
        except msgspec.MsgspecError:
            key = None
        if key is None or key.id != key_id:
            unsigned = [name.decode(errors="backslashreplace") for name, value in held.items() if value[:1] == b"{"]
            raise UnknownName("API key without a signature", key_id, unsigned)
        self._put(key)
        return key

    def _put(self, key: ApiKey) -> None:
        name, data = key.id.encode(), msgspec.json.encode(key)
        signature = self._signer.sign(b"api key", self._project, name, data)
        self._client.hset(self._key, name, b"%s\n%s" % (signature, data))

    def _unsealed(self, name: bytes, sealed: bytes) -> ApiKey:
        """The key of one row; raises ValueError where it is torn, not signed, or another's row."""
        signature, _, data = sealed.partition(b"\n")
        if not self._signer.accepts(signature, b"api key", self._project, name, data):
            raise ValueError("not signed with a key that this process has")
        return msgspec.json.decode(data, type=ApiKey)


class KeyRing:
    """The keys in force as one worker knows them: `look` reads them again, `find` costs a dictionary look-up."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._callers: dict[bytes, Caller] | None = None
        self._unreadable: Sequence[str] = ()
        self._revoked: set[str] = set()
        self._looking = threading.Lock()

    def look(self) -> None:
        """Take over the keys in the store; raises what the store raises, and then those known stay in force.

        A row that cannot be read lets nobody in, is named in the log, and keeps no other row from being taken over.
        """
        with self._looking:
            keys, unreadable = self._store.rows()
            if unreadable and unreadable != self._unreadable:
                _log.error("API keys that cannot be read let nobody in: %s", ", ".join(map(repr, unreadable)))
            self._unreadable = unreadable
            # What was revoked once stays so for this process: an older row of it may be put back, signed as it is.
            self._revoked |= {key.digest for key in keys if key.revoked_us is not None}
            self._callers = {bytes.fromhex(key.digest): key.caller for key in keys if key.digest not in self._revoked}

    def find(self, key: str) -> Caller | None:
        """Whom a key belongs to, None where to nobody; raises StoreUnavailable before the keys were ever read.

        What is compared are digests, so that the time it takes says nothing of any key.
        """
        if self._callers is None:
            raise StoreUnavailable("the API keys have not been read from the online store yet")
        return self._callers.get(digest_of(key))
