"""The check that ends every stored row: as one little-endian number, a sound row leaves 1 over a prime.

A number and not a digest, since it is read both ways at little cost: a few rows one by one, as Python's integers, and
many rows of one width at once, as a product of their 32-bit words with the powers of two that they stand for. A row
that differs in one bit, or in any stretch of up to 26 bits, leaves another remainder; of other damage one in 2^27 is
missed.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import StaleStore

CHECK_BYTES = 4
WORD = 4
_PRIME = 134_217_689
"""The largest prime below 2^27: 32 products of it with 32-bit words can be summed in 64 bits."""
_RIGHT = 1
_SUMMED = 32


class RowDamaged(StaleStore):
    """A stored row that is not as it was written: the store, or what lies below it, changed bytes."""

    def __init__(self, rows: int) -> None:
        super().__init__(
            f"{rows} rows in the online store do not match their checks: they are torn or damaged; materialize their "
            "view again (of a topic: `featurestore stream rebuild`)"
        )


def sound(row: bytes) -> bool:
    """Whether a row is as it was written.

    >>> [row] = sealed([b"some row"])
    >>> sound(row), sound(row[:-1]), sound(b"S" + row[1:])
    (True, False, False)
    """
    return int.from_bytes(row, "little") % _PRIME == _RIGHT


def all_sound(rows: Sequence[bytes]) -> bool:
    """Whether every row is as it was written."""
    number, prime = int.from_bytes, _PRIME
    return [number(row, "little") % prime for row in rows].count(_RIGHT) == len(rows)


def sound_of_width(data: bytes | npt.NDArray[np.uint8], width: int) -> bool:
    """The same of rows of one width, a multiple of `WORD`, that lie one after the other."""
    return bool((_remainders(data, width) == _RIGHT).all())


def sealed(contents: Sequence[bytes]) -> list[bytes]:
    """Rows of any length with their checks."""
    number = int.from_bytes
    return [
        content + ((_RIGHT - number(content, "little")) * _place(len(content)) % _PRIME).to_bytes(CHECK_BYTES, "little")
        for content in contents
    ]


def seal_in_place(rows: npt.NDArray[np.uint8]) -> None:
    """Write the checks of rows [n, width], a multiple of `WORD`, into their last bytes, which are zero."""
    width = rows.shape[1]
    left = (_RIGHT + _PRIME - _remainders(rows, width)) % _PRIME
    checks = left * np.uint64(_place(width - CHECK_BYTES)) % np.uint64(_PRIME)
    rows[:, width - CHECK_BYTES :] = checks.astype("<u4").view(np.uint8).reshape(-1, CHECK_BYTES)


@cache
def _place(size: int) -> int:
    """What a number is to be multiplied by to go behind so many bytes."""
    return pow(2, -8 * size, _PRIME)


def _remainders(data: bytes | npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.uint64]:
    words = np.frombuffer(data, "<u4").reshape(-1, width // WORD).astype(np.uint64)
    powers = _powers(width // WORD)
    if len(powers) <= _SUMMED:
        found: npt.NDArray[np.uint64] = (words @ powers) % np.uint64(_PRIME)
        return found
    parts: Any = sum(
        (words[:, at : at + _SUMMED] @ powers[at : at + _SUMMED]) % np.uint64(_PRIME)
        for at in range(0, len(powers), _SUMMED)
    )
    total: npt.NDArray[np.uint64] = parts % np.uint64(_PRIME)
    return total


@cache
def _powers(words: int) -> npt.NDArray[np.uint64]:
    return np.array([pow(2, 32 * word, _PRIME) for word in range(words)], np.uint64)
