"""The check of a stored slot: its 64-bit words, each times an odd number of its own, add up to zero.

A slot is written alone, so it is checked alone, and the empty slot, all zeros, is sound as it is: a store fills what
lies before a slot with them. Many slots are checked in one product. A slot that differs within one word is always
found out; of other damage one in 2^64 is missed, save where words differ in their highest bits alone.
"""

import hashlib
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

WORD: Final = 8
FORMAT: Final = 2
"""The format of stored tiles; part of every check, so that slots of another format are not sound."""

Slots = npt.NDArray[np.void]


def damaged(slots: Slots, check: int) -> int:
    """How many slots are not as they were written; their size is a multiple of `WORD`, the check is word `check`."""
    return int(np.count_nonzero(_sums(slots, check)))


def seal(slots: Slots, check: int) -> Slots:
    """The slots, contiguous, with their checks written into word `check` in place."""
    words = _words(slots)
    words[:, check] = 0
    words[:, check] = np.uint64(0) - _sums(slots, check)
    return slots


def _sums(slots: Slots, check: int) -> npt.NDArray[np.uint64]:
    words = _words(slots)
    sums: npt.NDArray[np.uint64] = words @ _factors(words.shape[1], check)
    return sums


def _words(slots: Slots) -> npt.NDArray[np.uint64]:
    return slots.view("<u8").reshape(slots.size, slots.dtype.itemsize // WORD)


@cache
def _factors(words: int, check: int) -> npt.NDArray[np.uint64]:
    raw = b"".join(hashlib.blake2b(b"slot %d %d" % (FORMAT, word), digest_size=8).digest() for word in range(words))
    found = np.frombuffer(raw, "<u8") | np.uint64(1)
    found[check] = 1
    return found
