"""Who does a bearer token say is calling? JSON Web Tokens, checked against the issuer's published keys.

The key set (JWKS) is a file or a URL. It is read between requests, never during one: a token signed by a key that is
not known yet is refused and makes the next look read the set again.
"""

import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import httpx
import jwt
import msgspec

from featurestore.api.faults import Refused
from featurestore.api.identity import Caller
from featurestore.errors import ConfigurationError, StoreUnavailable
from validation.printable import printable
from validation.redaction import redacted

JWKS, ISSUER, AUDIENCE = "FEATURESTORE_OIDC_JWKS", "FEATURESTORE_OIDC_ISSUER", "FEATURESTORE_OIDC_AUDIENCE"
ROLES_CLAIM, GROUPS_CLAIM = "FEATURESTORE_OIDC_ROLES_CLAIM", "FEATURESTORE_OIDC_GROUPS_CLAIM"
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures by private keys alone: a shared secret, or none, is never accepted."""
LEEWAY_S = 30
_RENEW_S = 3600.0
_AGAIN_S = 10.0
"""How soon the set may be read again: tokens of unknown keys must not make us ask the issuer all the time."""
_CACHED = 4096
_LATEST_S = 253_402_300_800
_NAME_CHARS = 200


class TokenSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Whose tokens are accepted, and which claims say what their bearers may do."""

    jwks: str
    """A file, or an http(s) URL."""
    issuer: str
    audience: str
    roles_claim: str = "roles"
    """A claim, or a path of claims with dots (realm_access.roles): a list of words, or words with spaces between."""
    groups_claim: str = "groups"
    namespaces_claim: str = "namespaces"
    grants_claim: str = "featurestore_grants"
    producers_claim: str = "featurestore_producers"


def token_settings(environ: Mapping[str, str]) -> TokenSettings | None:
    """The settings of FEATURESTORE_OIDC_*; None where no key set is named.

    Raises ConfigurationError where the issuer or the audience is missing: a token made for another service must not
    open this one.

    >>> token_settings({}) is None
    True
    """
    if not environ.get(JWKS):
        return None
    if missing := [name for name in (ISSUER, AUDIENCE) if not environ.get(name)]:
        raise ConfigurationError(f"{JWKS} is set and {' and '.join(missing)} is not; set what tokens must say")
    return TokenSettings(
        jwks=environ[JWKS],
        issuer=environ[ISSUER],
        audience=environ[AUDIENCE],
        roles_claim=environ.get(ROLES_CLAIM) or "roles",
        groups_claim=environ.get(GROUPS_CLAIM) or "groups",
    )


class Tokens:
    """Verifies tokens of one issuer; `now_s` is the machine's time, whatever replay the features' clock is in."""

    def __init__(
        self, settings: TokenSettings, *, now_s: Callable[[], float] = time.time, transport: Any = None
    ) -> None:
        self._settings = settings
        self._now_s = now_s
        self._transport = transport
        self._keys: dict[str, Any] | None = None
        self._read_s = float("-inf")
        self._unknown = False
        self._trouble = ""
        self._seen: dict[str, tuple[float, Caller]] = {}
        self._looking = threading.Lock()

    def look(self) -> None:
        """Read the key set where it is not known, is an hour old, lacked a key, or could not be read lately.

        Raises StoreUnavailable where the last reading failed; the keys known stay accepted.
        """
        with self._looking:
            self._read()
            if self._trouble:
                raise StoreUnavailable(self._trouble)

    def _read(self) -> None:
        age_s = self._now_s() - self._read_s
        if age_s < (_AGAIN_S if self._keys is None or self._unknown or self._trouble else _RENEW_S):
            return
        self._read_s = self._now_s()
        try:
            keys = jwt.PyJWKSet.from_json(self._text()).keys
        except Exception as error:  # noqa: BLE001 - whatever a foreign document or server provokes: asked again later
            self._trouble = (
                f"the issuer's key set at {redacted(self._settings.jwks)} cannot be read: {redacted(str(error))}"
            )
            return
        self._keys, self._unknown, self._trouble = {str(key.key_id): key for key in keys}, False, ""
        # What a withdrawn key had signed is not known any more.
        self._seen.clear()

    def _text(self) -> str:
        place = self._settings.jwks
        if not place.startswith(("http://", "https://")):
            return Path(place).read_text(encoding="utf-8")
        with httpx.Client(timeout=5.0, transport=self._transport) as client:
            return client.get(place).raise_for_status().text

    def verify(self, token: str) -> Caller:
        """Whom a token speaks for; raises Refused (401), and StoreUnavailable before the key set was ever read."""
        now_s = self._now_s()
        known = self._seen.get(token)
        if known is not None and now_s <= known[0]:
            return known[1]
        if self._keys is None:
            raise StoreUnavailable("the issuer's key set has not been read yet")
        claims = self._claims(token, self._keys, now_s)
        caller = self._caller(claims)
        if len(self._seen) >= _CACHED:
            self._seen.clear()
        self._seen[token] = (float(claims["exp"]) + LEEWAY_S, caller)
        return caller

    def _claims(self, token: str, keys: Mapping[str, Any], now_s: float) -> dict[str, Any]:
        try:
            head = jwt.get_unverified_header(token)
            key = keys.get(str(head.get("kid")))
            if key is None:
                self._unknown = True
                raise _refused("its key (kid) is not in the issuer's key set")
            algorithm = head.get("alg")
            if algorithm not in ALGORITHMS or key.algorithm_name != algorithm:
                raise _refused(f"it is signed with {algorithm!r}, its key is for {key.algorithm_name!r}")
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[str(algorithm)],
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                # Times are judged below, by the clock handed in.
                options={
                    "require": ["exp", "iss", "aud", "sub"],
                    "verify_exp": False, "verify_nbf": False, "verify_iat": False,
                },
            )  # fmt: skip
        except jwt.PyJWTError as error:
            raise _refused(str(error)) from error
        starts, ends = claims.get("nbf", 0), claims["exp"]
        if not all(_is_moment(moment) for moment in (starts, ends)):
            raise _refused("exp or nbf is no time")
        if now_s > ends + LEEWAY_S:
            raise _refused("it has expired")
        if now_s < starts - LEEWAY_S:
            raise _refused("it is not valid yet")
        return claims

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        settings = self._settings
        return Caller(
            name=f"token {printable(claims['sub'], most=_NAME_CHARS)}",
            roles=_words(claims, settings.roles_claim),
            groups=_words(claims, settings.groups_claim),
            namespaces=_words(claims, settings.namespaces_claim),
            grants=_words(claims, settings.grants_claim),
            producers=_words(claims, settings.producers_claim),
        )


def _is_moment(value: object) -> bool:
    """Whether a claim is seconds since the epoch, before the year 10000; JSON has integers of any length and NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_LATEST_S < value < _LATEST_S


def _words(claims: Mapping[str, Any], path: str) -> frozenset[str]:
    found: Any = claims
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    listed: Collection[Any] = found.split() if isinstance(found, str) else found if isinstance(found, list) else ()
    return frozenset(word for word in listed if isinstance(word, str))


def _refused(why: str) -> Refused:
    return Refused(401, "unauthorized", f"the bearer token is refused: {why}", {"WWW-Authenticate": "Bearer"})
