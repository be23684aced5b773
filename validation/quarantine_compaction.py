"""How do many small files of a quarantine become few while others read and write it?

Files of adjacent ranges of one origin are written again as one file of the whole range. Readers take each row once,
however often it is stored, so that old and new may lie side by side. In this order:

1. the file of the whole range is finished and put in its place, whole;
2. a grace later each file within it whose rows it holds, every attempt of them, is deleted.
"""

import math
import time
from collections.abc import Iterable
from typing import Final, NamedTuple
from urllib.parse import unquote

import pyarrow as pa

from validation.place import Place
from validation.quarantine import FILE_NAME, put_table, read_file

FAN_IN: Final = 8
LARGE_BYTES: Final = 16 << 20
GRACE_S: Final = 900.0


class _File(NamedTuple):
    origin: str
    partition: int
    first: int
    last: int
    path: Place


def compact_quarantine(
    folder: Place,
    *,
    partitions: Iterable[tuple[str, int]] | None = None,
    fan_in: int = FAN_IN,
    grace_s: float = GRACE_S,
    now_s: float | None = None,
) -> tuple[int, int]:
    """Compact one source's folder, or those of its (origin id, partition) pairs; files written and deleted.

    Raises OSError, and PlatformError for a torn file.
    """
    own = None if partitions is None else set(partitions)
    written = 0
    while run := _run([file for file in _files(folder) if own is None or (file.origin, file.partition) in own], fan_in):
        _write(run)
        written += 1
    return written, _delete_superseded(_files(folder), own, time.time() if now_s is None else now_s, grace_s)


def _files(folder: Place) -> list[_File]:
    found = [(FILE_NAME.fullmatch(path.name), path) for path in folder.glob("*.parquet")]
    return sorted(
        _File(unquote(name["origin"]), int(name["partition"]), int(name["first"]), int(name["last"]), path)
        for name, path in found
        if name is not None
    )


def _run(files: list[_File], fan_in: int) -> list[_File]:
    """Adjacent small files; those within the one before them are superseded, and left alone."""
    run: list[_File] = []
    widest: _File | None = None
    for file in sorted(files, key=lambda each: (each.origin, each.partition, each.first, -each.last)):
        if widest is not None and _within(file, widest):
            continue
        widest = file
        small = _size(file.path) < LARGE_BYTES
        if run and not (small and _adjacent(run[-1], file)):
            if len(run) >= fan_in:
                return run
            run = []
        if small:
            run.append(file)
    return run if len(run) >= fan_in else []


def _write(run: list[_File]) -> None:
    table = pa.concat_tables([read_file(file.path) for file in run]).sort_by([("offset", "ascending")])
    first, last = run[0], max(file.last for file in run)
    quoted = first.path.name[: -len(f"-{first.partition}-{first.first}-{first.last}.parquet")]
    put_table(table, first.path.with_name(f"{quoted}-{first.partition}-{first.first}-{last}.parquet"))


def _delete_superseded(files: list[_File], own: set[tuple[str, int]] | None, now_s: float, grace_s: float) -> int:
    deleted = 0
    for outer in files:
        inner = [
            file
            for file in files
            if file != outer
            and _within(file, outer)
            and file.path.exists()
            and (own is None or (file.origin, file.partition) in own)
        ]
        if not inner or now_s - _written_s(outer.path) < grace_s:
            continue
        held = _rows(outer.path)
        for file in inner:
            if _rows(file.path) <= held:
                file.path.unlink(missing_ok=True)
                deleted += 1
    return deleted


def _rows(path: Place) -> set[tuple[int, int, bytes]]:
    table = read_file(path)
    return set(zip(*(table[name].to_pylist() for name in ("offset", "attempt", "row")), strict=True))


def _within(inner: _File, outer: _File) -> bool:
    same = inner[:2] == outer[:2]
    return same and outer.first <= inner.first and inner.last <= outer.last and inner[2:4] != outer[2:4]


def _adjacent(one: _File, other: _File) -> bool:
    return one[:2] == other[:2] and other.first <= one.last + 1


def _size(path: Place) -> int:
    return path.stat().st_size if path.exists() else LARGE_BYTES


def _written_s(path: Place) -> float:
    return path.stat().st_mtime if path.exists() else math.inf
