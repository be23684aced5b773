"""Keep what this process writes from other users of the machine: one umask, and a look at what is there.

Event log, quarantine, serve log, registry and the signing key hold the data itself, so that the data folder is its
owner's alone: folders 0700, files 0600. The umask is inherited by every child, the embedded server included.
"""

import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

UMASK: Final = 0o077
_OTHERS: Final = 0o077
_LOOKED_AT: Final = 20_000


def write_privately() -> None:
    """Make every file and folder of this process, and of its children, its owner's alone; called once, at the start."""
    os.umask(UMASK)


def make_private(folder: Path) -> None:
    """Make a data folder, or close one that is there to other users; what lies in it is then closed as well."""
    folder.mkdir(parents=True, exist_ok=True)
    if stat.S_IMODE(folder.stat().st_mode) & _OTHERS and folder.stat().st_uid == os.getuid():
        folder.chmod(0o700)


def open_to_others(folder: Path) -> list[Path]:
    """What of a data folder other users may read or write: itself, and what lies below it; the first of many."""
    return [path for path in islice(_all(folder), _LOOKED_AT) if _is_open(path)]


def _all(folder: Path) -> Iterator[Path]:
    yield folder
    for parent, folders, files in os.walk(folder):
        yield from (Path(parent, name) for name in (*folders, *files))


def _is_open(path: Path) -> bool:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False  # it went away meanwhile
    return not stat.S_ISLNK(mode) and bool(mode & _OTHERS)
