"""Which sets of decisions were taken one after the other, and which of them are carried out?

    000001.parquet    the first set
    000001.done       ... is carried out

Any number of processes, on any number of machines, may decide at once: of a number one can make the file, and nobody
tries for the next before the one before is carried out. Whoever finds one that is not carries it out first, so what is
done must be the same whoever does it and however often. Nobody waits for who is gone; no clock and no lock decides.
"""

import re
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from validation.place import Place
from validation.whole_file import first_file

_NUMBERED: Final = re.compile(r"(\d{6})\.(?:parquet|done)")


class DecisionLog:
    """The sets in one folder."""

    def __init__(self, folder: Place) -> None:
        self._folder = folder

    def last(self) -> tuple[int, bool]:
        """The number of the last set, 0 without any, and whether it is carried out."""
        names = self._names()
        number = max((int(found[1]) for found in map(_NUMBERED.fullmatch, names) if found), default=0)
        return number, not number or f"{number:06d}.done" in names

    def path(self, number: int) -> Place:
        """The file of a set."""
        return self._folder / f"{number:06d}.parquet"

    def take(self, number: int, decisions: pa.Table) -> bool:
        """Makes the set of that number; False where somebody else has: what he decided is in force.

        Let something in it, its metadata will do, be nobody else's: by that its own writer knows it.
        """
        data = pa.BufferOutputStream()
        pq.write_table(decisions, data, compression="zstd")
        mine: bytes = data.getvalue().to_pybytes()
        return first_file(self.path(number), mine) == mine

    def carried_out(self, number: int) -> None:
        """Says so of a set; again changes nothing."""
        first_file(self._folder / f"{number:06d}.done", b"")

    def paths(self) -> list[Place]:
        """The files of the sets that are carried out, in order; of before there were numbers, all."""
        names = self._names()
        found = (name for name in names if name.endswith(".parquet"))
        counts = (name for name in found if not _NUMBERED.fullmatch(name) or f"{name[:6]}.done" in names)
        return [self._folder / name for name in sorted(counts)]

    def _names(self) -> set[str]:
        return {each.name for each in self._folder.glob("[!.]*")}
