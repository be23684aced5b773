"""The check that ends every stored row: CRC-32C, chosen so that a sound row leaves the register as it found it.

So rows that follow each other are checked by one call over all of their bytes, however many and however long they are.
Any one bit, any two and any stretch of 32 that differ are found out; of other damage one in 2^32 is missed.
"""

from collections.abc import Sequence
from typing import Final

from crc32c import crc32c

from featurestore.errors import StaleStore

CHECK_BYTES: Final = 4
_BACK: Final = 0x9BE09BAB
"""The check of nothing: four bytes that lead the register back to where it begins."""


class RowDamaged(StaleStore):
    """A stored row that is not as it was written: the store, or what lies below it, changed bytes."""

    def __init__(self, rows: int) -> None:
        super().__init__(
            f"{rows} rows in the online store do not match their checks: they are torn or damaged; materialize their "
            "view again (of a topic: `featurestore stream rebuild`)"
        )


def sound(rows: bytes) -> bool:
    """Whether a row, or rows that follow each other, are as they were written.

    >>> [row] = sealed([b"some row"])
    >>> sound(row), sound(row + row), sound(row[:-1]), sound(b"S" + row[1:])
    (True, True, False, False)
    """
    return not crc32c(rows)


def all_sound(rows: Sequence[bytes]) -> bool:
    """Whether every row is as it was written."""
    return not crc32c(b"".join(rows))


def sealed(contents: Sequence[bytes]) -> list[bytes]:
    """Rows of any length with their checks."""
    return [content + (crc32c(content) ^ _BACK).to_bytes(CHECK_BYTES, "little") for content in contents]
