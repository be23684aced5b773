"""Small values of the store with their format and check in front: `2 CHECK payload`."""

import zlib
from typing import Final

from featurestore.errors import StaleStore

FORMAT: Final = 2
"""The format of what the stream and materialization keep in the store."""
_HEAD: Final = len(b"2 00000000 ")


def sealed(payload: bytes) -> bytes:
    """The value to be stored.

    >>> sealed(b"[]")
    b'2 0d4cbb29 []'
    """
    return b"%d %08x %s" % (FORMAT, zlib.crc32(payload), payload)


def unsealed(value: bytes, what: str, remedy: str) -> bytes:
    """The payload of a stored value; raises StaleStore where it is damaged or of another format.

    >>> unsealed(sealed(b"[]"), "the list", "write it again")
    b'[]'
    """
    payload = value[_HEAD:]
    if value == sealed(payload):
        return payload
    found = (
        "it is damaged" if value[:2] == b"%d " % FORMAT else f"it is not of format {FORMAT}, which this version reads"
    )
    raise StaleStore(f"{what} in the online store cannot be read: {found}; {remedy}")
