"""Mask credentials in addresses and settings before they reach a message, a log or a page."""

import re
from typing import Final

MASK: Final = "***"
_NAMES: Final = (  # a pattern of names
    r"(?:passw|passphrase|pwd|secret|token|api_?key|access_?key|private_?key|credential|signature|jaas)"
)
_PARAMETER: Final = re.compile(rf"(?i)([?&;,](?:[\w.-]{{0,60}}){_NAMES}[\w.-]{{0,60}}=)[^&;\s\"']*")
_FIELD: Final = re.compile(rf"(?i)([\"'][\w.-]{{0,60}}{_NAMES}[\w.-]{{0,60}}[\"']\s{{0,5}}[:=]\s{{0,5}}[\"'])[^\"']*")
_ASSIGNED: Final = re.compile(rf"(?i)(\b[\w.-]{{0,60}}{_NAMES}[\w.-]{{0,60}}=)[^&;\s\"']+")
_WORD: Final = re.compile(r"\S+")
_LOCAL: Final = ("unix",)
"""Schemes whose part before the @ is a user's name and never a credential by itself."""


def redacted(text: str) -> str:
    """A message with the credentials of every address and setting in it masked.

    >>> redacted("cannot reach rediss://app:p@ss@cache:6380/0?ssl_password=s3cret (timeout)")
    'cannot reach rediss://app:***@cache:6380/0?ssl_password=*** (timeout)'
    >>> redacted("the schemas at https://token@schemas.example are away")
    'the schemas at https://***@schemas.example are away'
    """
    if "@" in text and "://" in text:
        text = _WORD.sub(lambda word: _without_user(word[0]), text)
    for pattern in (_PARAMETER, _FIELD, _ASSIGNED):
        text = pattern.sub(rf"\1{MASK}", text)
    return text


def redacted_url(url: str) -> str:
    """One address with its credentials masked, whatever characters a password holds.

    >>> redacted_url("redis://:pa ss/@w'o@rd@cache:6379/0")
    'redis://:***@cache:6379/0'
    >>> redacted_url("unix://app@/x.sock?db=1&password=s3cret")
    'unix://app@/x.sock?db=1&password=***'
    """
    return redacted(_without_user(url))


def _without_user(word: str) -> str:
    before, found, rest = word.partition("://")
    # A parameter may hold an @; the part before the last @ of the rest is the user only up to the first parameter,
    # unless the password itself holds a question mark: then more is masked than need be.
    login, at, host = rest.rpartition("@")
    if not found or not at:
        return word
    if ":" not in login and ("/" in login or "?" in login):
        return word
    user, colon, _ = login.partition(":")
    if not colon:
        return word if before.endswith(_LOCAL) or login == MASK else f"{before}://{MASK}@{host}"
    return f"{before}://{user}:{MASK}@{host}"
