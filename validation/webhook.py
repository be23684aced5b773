"""How is a web service told something, so that it knows by whom and takes it once?

A POST of JSON with two headers:

    Idempotency-Key: what this is about; the same for every attempt
    Featurestore-Signature: t=SECONDS,v1=HEX

HEX is the HMAC-SHA256, by a secret that both sides know, of SECONDS (since the epoch, of this attempt), a full stop and
the body. Who receives it computes the same over the bytes as they came, compares in constant time, and refuses what is
older than it likes: `verify` does so.
"""

import hashlib
import hmac
import random
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Final

import httpx
import msgspec

from validation.errors import PlatformError

SIGNATURE: Final = "Featurestore-Signature"
IDEMPOTENCY: Final = "Idempotency-Key"
TOLERANCE_S: Final = 300
_LATER: Final = (408, 409, 425, 429)
"""Statuses below 500 that ask to be asked again."""


class Unreachable(PlatformError):
    """Nobody took it, after all attempts; it may be tried again later."""


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how long one thing is tried."""

    attempts: int = 5
    first_wait_s: float = 0.5
    """Before the second attempt; doubled each time, with up to as much again at random."""
    longest_wait_s: float = 30.0
    timeout_s: float = 10.0


def sign(secret: bytes, body: bytes, at_s: int) -> str:
    """The value of the signature's header.

    >>> sign(b"secret", b"{}", 1)
    't=1,v1=1122767b193110cfec322b6f199b599edbf608ed087f2d27afb0b97d99523908'
    """
    return f"t={at_s},v1={_digest(secret, body, at_s)}"


def verify(secret: bytes, header: str, body: bytes, *, now_s: float, tolerance_s: float = TOLERANCE_S) -> bool:
    """Whether a body was signed by whoever knows the secret, within the tolerance of now.

    >>> verify(b"secret", sign(b"secret", b"{}", 1), b"{}", now_s=2)
    True
    >>> verify(b"secret", sign(b"secret", b"{}", 1), b"{ }", now_s=2)
    False
    """
    parts = dict(part.partition("=")[::2] for part in header.split(","))
    try:
        at_s = int(parts["t"])
    except (KeyError, ValueError):
        return False
    return hmac.compare_digest(_digest(secret, body, at_s), parts.get("v1", "")) and abs(now_s - at_s) <= tolerance_s


def _digest(secret: bytes, body: bytes, at_s: int) -> str:
    return hmac.new(secret, f"{at_s}.".encode() + body, hashlib.sha256).hexdigest()


class Webhook:
    """One address that is told things. Not shared by threads.

    Redirects are not followed: they would carry what is told to wherever the answer says.
    """

    def __init__(
        self,
        url: str,
        secret: bytes,
        *,
        patience: Patience = Patience(),  # noqa: B008 - a frozen value
        now_s: Callable[[], float] = time.time,
        sleep: Callable[[float], object] = time.sleep,
        chance: Callable[[], float] = random.random,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url
        self._secret = secret
        self._patience = patience
        self._now_s = now_s
        self._sleep = sleep
        self._chance = chance
        self._client = httpx.Client(timeout=patience.timeout_s, transport=transport, follow_redirects=False)

    def send(self, body: bytes, key: str) -> bool:
        """Tell it; whether it was taken. False: it was refused, and would be again. Raises Unreachable."""
        found = ""
        for attempt in range(self._patience.attempts):
            asked_s = 0.0
            try:
                answer = self._client.post(self.url, content=body, headers=self._headers(body, key))
            except httpx.HTTPError as error:
                found = f"{type(error).__name__}: {error}"
            else:
                if answer.is_success:
                    return True
                found = f"status {answer.status_code}"
                if answer.status_code < 500 and answer.status_code not in _LATER:
                    return False
                asked_s = _retry_after_s(answer, self._now_s())
            if attempt + 1 < self._patience.attempts:
                self._sleep(self._wait_s(attempt, asked_s))
        raise Unreachable(f"{self.url} did not take {key} in {self._patience.attempts} attempts: {found}")

    def _headers(self, body: bytes, key: str) -> dict[str, str]:
        return {
            "Content-Type": "application/json",
            IDEMPOTENCY: key,
            SIGNATURE: sign(self._secret, body, int(self._now_s())),
        }

    def _wait_s(self, attempt: int, asked_s: float) -> float:
        own_s = self._patience.first_wait_s * 2.0**attempt * (1 + self._chance())
        return min(max(own_s, asked_s), self._patience.longest_wait_s)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _retry_after_s(answer: httpx.Response, now_s: float) -> float:
    text: str = answer.headers.get("retry-after", "")
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now_s)
    except ValueError:
        return 0.0
