"""How does a command lie on the wire? Written at once: a client library looks at the type of each of its keys."""

from collections.abc import Iterable
from itertools import chain

_HEADS = [b"\r\n$%d\r\n" % length for length in range(1024)]
"""What stands before an argument of that length, after the end of the one before it."""


def command(*words: bytes) -> bytes:
    """A command as the protocol has it.

    >>> command(b"GET", b"a")
    b'*2\\r\\n$3\\r\\nGET\\r\\n$1\\r\\na\\r\\n'
    """
    lengths = [*map(len, words)]
    heads: Iterable[bytes]
    if max(lengths) < len(_HEADS):
        heads = map(_HEADS.__getitem__, lengths)
    else:
        heads = (b"\r\n$%d\r\n" % length for length in lengths)
    return b"".join((b"*%d" % len(words), *chain.from_iterable(zip(heads, words, strict=True)), b"\r\n"))
