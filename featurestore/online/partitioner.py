"""Which partition holds the events of an entity key?

Of a keyed view: the message key is the text of the one join key in UTF-8, and the producer's partitioner is
`murmur2_random`, as Kafka's Java client and librdkafka's of that name place keys: murmur2, sign bit cleared, modulo the
number of partitions.
"""

import struct
from functools import lru_cache
from typing import Final

KEY_TYPES: Final = ("STRING", "INT32", "INT64")
"""Join keys whose text is one: others have no message key that producers agree on."""
_SEED: Final = 0x9747B28C
_M: Final = 0x5BD1E995
_MASK: Final = 0xFFFF_FFFF


def murmur2(key: bytes) -> int:
    """Kafka's 32-bit hash, unsigned.

    >>> [murmur2(key) - (1 << 32) for key in (b"21", b"foobar")]
    [-973932308, -790332482]
    """
    h = (_SEED ^ len(key)) & _MASK
    words = len(key) // 4
    for k in struct.unpack_from(f"<{words}I", key):
        k = k * _M & _MASK
        k = (k ^ (k >> 24)) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    if rest := key[4 * words :]:
        h = (h ^ int.from_bytes(rest, "little")) * _M & _MASK
    h = (h ^ (h >> 13)) * _M & _MASK
    return h ^ (h >> 15)


@lru_cache(maxsize=1 << 17)
def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a message key among so many.

    >>> partition_of(b"EWR", 4), partition_of(b"JFK", 4)
    (3, 1)
    """
    return (murmur2(key) & 0x7FFF_FFFF) % partitions


def message_key(entity_key: bytes, head: int, dtype: str) -> bytes:
    """The message key of a serialized entity key of one join key, whose value begins at byte `head`.

    >>> message_key(b"......" + (7).to_bytes(8, "little"), 6, "INT64")
    b'7'
    """
    raw = entity_key[head:]
    return raw if dtype == "STRING" else b"%d" % int.from_bytes(raw, "little", signed=True)
