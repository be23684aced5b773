"""Who may ask? API keys, kept as SHA-256 digests, and the rule that no network address is opened without one."""

import hmac
import ipaddress
import re
from collections.abc import Mapping

from featurestore.api.identity import PII, Caller
from featurestore.api.key_store import digest_of
from featurestore.errors import ConfigurationError

VARIABLE = "FEATURESTORE_API_KEYS"
PROXIES = "FEATURESTORE_TRUSTED_PROXIES"
CONFIGURED = Caller(name="a key of the environment", roles=frozenset({"admin"}), grants=frozenset({PII}))
"""Whoever sets the environment of this service could read its store as well: its keys open everything."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ApiKeys:
    """The keys that the environment lets in."""

    def __init__(self, digests: tuple[bytes, ...]) -> None:
        self._digests = digests

    def __bool__(self) -> bool:
        return bool(self._digests)

    def find(self, key: str) -> Caller | None:
        """Whom a key belongs to, None where to nobody; every digest is compared, in constant time."""
        found = digest_of(key)
        matches = [hmac.compare_digest(found, digest) for digest in self._digests]
        return CONFIGURED if key and any(matches) else None


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


def proxies_of(environ: Mapping[str, str]) -> list[str]:
    """The proxies whose X-Forwarded-For is believed: addresses or networks of FEATURESTORE_TRUSTED_PROXIES, by commas.

    Raises ConfigurationError for anything else, `*` included: then every caller could say where it comes from.

    >>> proxies_of({}), proxies_of({"FEATURESTORE_TRUSTED_PROXIES": "10.0.0.7, 10.1.0.0/16"})
    ([], ['10.0.0.7', '10.1.0.0/16'])
    """
    found = [part.strip() for part in environ.get(PROXIES, "").split(",") if part.strip()]
    for each in found:
        try:
            ipaddress.ip_network(each)
        except ValueError:
            raise ConfigurationError(
                f"{PROXIES}: {each!r} is no address and no network; expected such as 10.0.0.7 or 10.1.0.0/16"
            ) from None
    return found


def check_bind(host: str, keys: ApiKeys | bool) -> None:  # noqa: FBT001 - whether there are any
    """Raises ConfigurationError where a service without keys would listen beyond this machine.

    >>> check_bind("127.0.0.1", ApiKeys(()))
    """
    if keys or is_loopback(host):
        return
    raise ConfigurationError(
        f"--host {host} can be reached from other machines and no API key is set; create one with "
        f"`featurestore keys create`, set {VARIABLE} to the SHA-256 digests of keys, or listen on 127.0.0.1"
    )


def check_open(host: str) -> None:
    """Raises ConfigurationError where a service that asks for no key would listen beyond this machine.

    >>> check_open("::1")
    """
    if not is_loopback(host):
        raise ConfigurationError(f"--open with --host {host}: only a loopback address may be open to everybody")


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
