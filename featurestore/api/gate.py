"""Is this request let in, and as whom? Keys, tokens, rate limits and the audit log, asked in this order.

A service without any keys lets in whoever can reach its loopback address, but not the pages of a browser on that
machine: their requests carry another Host (DNS rebinding) or a foreign Origin.
"""

import functools
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from featurestore.api.access import ApiKeys, is_loopback
from featurestore.api.audit import AuditLog
from featurestore.api.faults import Refused
from featurestore.api.identity import ANYONE, Action, Caller
from featurestore.api.key_store import KeyRing
from featurestore.api.permissions import Permissions
from featurestore.api.rate import RateLimit
from featurestore.plan import Plan
from validation.errors import PlatformError
from validation.printable import printable

_LONGEST = 200
_LONGEST_ADDRESS = 64


def looks_like_token(text: str) -> bool:
    """Whether a bearer's credential is a JSON Web Token rather than a key of ours.

    >>> looks_like_token("eyJhbGciOi.eyJzdWIi.c2ln"), looks_like_token("fsk_x")
    (True, False)
    """
    return text.count(".") == 2 and text.startswith("eyJ")


class Asking(Protocol):
    """What a request is judged by: Starlette's, or the features route's own."""

    @property
    def scope(self) -> MutableMapping[str, Any]:
        """As ASGI has it."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """By name in lower case."""
        ...


class Verifier(Protocol):
    """What verifies bearer tokens."""

    def look(self) -> None:
        """Reads the issuer's keys where it is time to."""
        ...

    def verify(self, token: str) -> Caller:
        """Whom a token speaks for; raises Refused (401)."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Gate:
    """What decides about requests; every part but the keys may be absent."""

    keys: ApiKeys
    """Of the environment: admins."""
    ring: KeyRing | None = None
    """Of the online store."""
    tokens: Verifier | None = None
    open: bool = False
    """Whether requests without any credential are let in; such a service listens on loopback only."""
    rate: RateLimit | None = None
    audit: AuditLog | None = None
    _permissions: dict[int, Permissions] = field(default_factory=dict)

    @property
    def looks(self) -> dict[str, Callable[[], None]]:
        """What keeps the keys current, by name: each blocks, raises what is in the way, and runs between requests."""
        return {"API keys": self._look_ring, "issuer keys": self._look_tokens}

    def look(self) -> None:
        """Take over keys that were created or revoked, and the issuer's."""
        for look in self.looks.values():
            look()

    def _look_ring(self) -> None:
        if self.ring is not None:
            self.ring.look()

    def _look_tokens(self) -> None:
        if self.tokens is not None:
            self.tokens.look()

    def admit(self, request: Asking) -> Caller:
        """Whom the request comes from; raises Refused (401, 403, 429), which is audited, and StoreUnavailable."""
        caller: Caller | None = None
        try:
            caller = self._identify(request.headers)
            if self.rate is not None:
                self.rate.take(caller.name, caller.rate_per_s)
        except Refused as refused:
            self.denied(request, caller, refused)
            raise
        return caller

    def _identify(self, headers: Mapping[str, str]) -> Caller:
        if self.open:
            _check_local(headers)
            return ANYONE
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        credential = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        found: Caller | None = None
        if credential and self.tokens is not None and looks_like_token(credential):
            found = self.tokens.verify(credential)
        elif credential:
            found = self.keys.find(credential)
            if found is None and self.ring is not None:
                found = self.ring.find(credential)
        if found is None and credential:
            raise Refused(
                401,
                "unauthorized",
                "the API key that was sent is not known here: it is misspelt, revoked, or of another service",
                {"WWW-Authenticate": 'Bearer error="invalid_token"'},
            )
        if found is None:
            raise Refused(
                401,
                "unauthorized",
                "this service needs an API key: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
                {"WWW-Authenticate": "Bearer"},
            )
        return found

    def knows(self, request: Asking) -> bool:
        """Whether a request comes from a caller who would be let in; nothing of it is audited or counted."""
        try:
            self._identify(request.headers)
        except PlatformError:
            return False
        return True

    def permissions(self, plan: Plan) -> Permissions:
        """The rules of a plan, made once for each."""
        found = self._permissions.get(id(plan))
        if found is None or found.plan is not plan:
            self._permissions.clear()
            found = self._permissions[id(plan)] = Permissions(plan)
        return found

    def begin(self, request: Asking, caller: Caller, action: Action, plan: Plan) -> None:
        """Refuse and audit a caller who may not do this with any view; asked before the request is decoded."""
        rules = self.permissions(plan)
        if (caller, action) in rules.begun:
            return
        self.allow(request, caller, lambda: rules.check_action(caller, action))
        rules.remember(caller, action)

    def denied(self, request: Asking, caller: Caller | None, refused: Refused, resources: tuple[str, ...] = ()) -> None:
        """Keep a refusal in the audit log, with what was asked for."""
        if self.audit is None:
            return
        told: dict[str, Any] = {
            "address": address_of(request),
            "route": printable(request.scope["path"], most=_LONGEST),
            "status": refused.status,
            "code": refused.code,
            "detail": str(refused),
        }
        if caller is None:
            self.audit.refused_stranger(**told)
        else:
            self.audit.record("denied", caller=caller.name, resources=resources, **told)

    def allow(
        self, request: Asking, caller: Caller, check: Callable[[], None], *, resources: tuple[str, ...] = ()
    ) -> None:
        """Runs a check of permissions; its refusal is audited and raised."""
        try:
            check()
        except Refused as refused:
            self.denied(request, caller, refused, resources)
            raise

    def write(
        self, request: Asking, caller: Caller, resources: tuple[str, ...]
    ) -> Callable[[BaseException | None], None]:
        """Keeps the beginning of a write in the audit log; what is returned keeps its end.

        Raises FeatureStoreError where the beginning cannot be kept: then nothing may be written.
        """
        if self.audit is None:
            return _unrecorded
        told: dict[str, Any] = {
            "caller": caller.name,
            "address": address_of(request),
            "route": printable(request.scope["path"], most=_LONGEST),
            "resources": resources,
        }
        self.audit.record("write", **told)
        return functools.partial(_ended, self.audit, told)


def _unrecorded(_: BaseException | None) -> None:
    """The end of a write that no log keeps."""


def _ended(audit: AuditLog, told: dict[str, Any], error: BaseException | None) -> None:
    if error is None:
        audit.record("written", **told)
        return
    # What a defect says may hold values of the request: its kind is enough here, the log has the rest.
    detail = (
        str(error) if isinstance(error, PlatformError) else f"{type(error).__name__}: it is not known what was done"
    )
    audit.record("failed", **told, detail=detail)


def address_of(request: Asking) -> str:
    """Where a request comes from, as the server saw it, or as a declared proxy said."""
    client = request.scope.get("client")
    return printable(client[0], most=_LONGEST_ADDRESS) if client else ""


def _check_local(headers: Mapping[str, str]) -> None:
    host, origin = headers.get("host", ""), headers.get("origin")
    own = _named(f"http://{host}")
    if own is None or not is_loopback(own[1]):
        raise Refused(
            403,
            "forbidden_host",
            f"Host is {printable(host, most=_LONGEST)!r}; without API keys this service answers to loopback names",
        )
    if origin is not None and _named(origin) != own:
        raise Refused(
            403,
            "forbidden_origin",
            f"Origin is {printable(origin, most=_LONGEST)!r}; without API keys only pages of http://{host} may ask "
            "this service",
        )


@functools.lru_cache(maxsize=256)
def _named(url: str) -> tuple[str, str, int] | None:
    """The scheme, host and port of a URL; None where it is none. Remembered, for nearly all requests carry the same."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname or parts.username is not None or parts.password is not None:
        return None
    default = {"http": 80, "https": 443}.get(parts.scheme)
    if default is None:
        return None
    return parts.scheme, parts.hostname, default if port is None else port
