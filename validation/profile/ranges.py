"""Which files of profiles are needed, so that each offset of a log counts once?

A file of profiles is named `<log>-<first>..<last>` by the offsets that it is of, both included. Ranges of a log are
blocks: two of them are apart, or one lies within the other. Those that lie within another are not needed, whoever
wrote them and on whichever baseline.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

_NAME: Final = re.compile(r"(?P<log>.+)-(?P<first>\d+)\.\.(?P<last>\d+)\.parquet")


class RangeFile(msgspec.Struct, frozen=True):
    """Profiles of offsets `first`..`last` of a log."""

    log: str
    first: int
    last: int
    path: Path

    def within(self, other: "RangeFile") -> bool:
        """Whether the other one has all offsets of this one."""
        return self.log == other.log and other.first <= self.first and self.last <= other.last


def range_name(log: str, first: int, last: int) -> str:
    """The source id of a range.

    >>> range_name("orders-0", 1024, 2047)
    'orders-0-1024..2047'
    """
    return f"{log}-{first}..{last}"


def parse_range(path: Path) -> RangeFile | None:
    """What a file's name says; None where it is not named by a range.

    >>> parse_range(Path("orders-0-1024..2047.parquet")).log
    'orders-0'
    """
    match = _NAME.fullmatch(path.name)
    return None if match is None else RangeFile(match["log"], int(match["first"]), int(match["last"]), path)


def widest(files: Iterable[RangeFile]) -> list[RangeFile]:
    """Those that lie within no other, by log and first offset; of one range on two baselines one.

    >>> small, large = (RangeFile("t-0", 0, last, Path(str(last))) for last in (9, 99))
    >>> widest([small, large]) == [large]
    True
    """
    found: list[RangeFile] = []
    for each in sorted(files, key=lambda one: (one.log, one.first, -one.last, one.path)):
        if not found or not each.within(found[-1]):
            found.append(each)
    return found


def each_offset_once(paths: Iterable[Path]) -> list[Path]:
    """The files without those whose offsets another one has; files that are not named by ranges are all needed."""
    others, ranges = [], []
    for path in paths:
        found = parse_range(path)
        if found is None:
            others.append(path)
        else:
            ranges.append(found)
    return sorted([*others, *(each.path for each in widest(ranges))])
