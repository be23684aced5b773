"""Who may ask? API keys, kept as SHA-256 digests, and the rule that no network address is opened without one."""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping

from featurestore.api.faults import Refused
from featurestore.errors import ConfigurationError

VARIABLE = "FEATURESTORE_API_KEYS"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ApiKeys:
    """The keys that are let in; none at all lets everybody in, which only a loopback address may do."""

    def __init__(self, digests: tuple[bytes, ...]) -> None:
        self._digests = digests

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, headers: Mapping[str, str]) -> None:
        """Raises Refused (401) unless `Authorization: Bearer KEY` or `X-API-Key: KEY` holds a known key.

        Every digest is compared, in constant time.
        """
        if not self._digests:
            return
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        key = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        found = hashlib.sha256(key.encode("utf-8", "replace")).digest()
        matches = [hmac.compare_digest(found, digest) for digest in self._digests]
        if not key or not any(matches):
            raise Refused(
                401,
                "unauthorized",
                "this service needs an API key: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
                {"WWW-Authenticate": "Bearer"},
            )


def keys_of(environ: Mapping[str, str]) -> ApiKeys:
    """The keys of FEATURESTORE_API_KEYS: SHA-256 digests in hexadecimal, comma separated.

    Raises ConfigurationError for anything else, so that a key pasted in place of its digest does not go unnoticed.

    >>> bool(keys_of({})), bool(keys_of({"FEATURESTORE_API_KEYS": "ab" * 32}))
    (False, True)
    """
    digests = [part.strip().lower() for part in environ.get(VARIABLE, "").split(",") if part.strip()]
    for place, digest in enumerate(digests, 1):
        if not _DIGEST.fullmatch(digest):
            raise ConfigurationError(
                f"{VARIABLE}, entry {place}: expected a SHA-256 digest of 64 hexadecimal digits, found "
                f"{len(digest)} characters; make one with: printf %s KEY | sha256sum"
            )
    return ApiKeys(tuple(bytes.fromhex(digest) for digest in digests))


def check_bind(host: str, keys: ApiKeys) -> None:
    """Raises ConfigurationError where a service without keys would listen beyond this machine.

    >>> check_bind("127.0.0.1", ApiKeys(()))
    """
    if keys or is_loopback(host):
        return
    raise ConfigurationError(
        f"--host {host} can be reached from other machines and no API key is set; set {VARIABLE} to the SHA-256 "
        "digests of the keys to let in, or listen on 127.0.0.1"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
