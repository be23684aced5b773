"""How do many files of profiles become one, while others read and write them?

The one file names those that it replaces. In order: 1. what an earlier fold left over is removed; 2. the profiles of
all files are put into one, whole, with the names of what it replaces: from here on readers leave those out; 3. they are
removed. Whoever is killed anywhere leaves files that read the same, and the next fold goes on. Folds and those who
replace files that may be folded take turns (`alone`), and these ask whether their file still `stands`.
"""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from validation.profile.baseline import Baseline
from validation.profile.store import ProfileStore, read_file


@contextmanager
def alone(store: ProfileStore, boundary: str) -> Iterator[None]:
    """Nobody else folds the boundary's files, or replaces one, meanwhile; a process that is killed lets go."""
    folder = store.folder / boundary
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def stands(store: ProfileStore, boundary: str, baseline_id: str, source_id: str, into: str) -> bool:
    """Whether a source's file is there and counts: it was not folded `into` another. For who is `alone`."""
    folder = store.folder / boundary / baseline_id
    return (folder / f"{source_id}.parquet").exists() and source_id not in _replaced(store, boundary, baseline_id, into)


def fold(store: ProfileStore, boundary: str, baseline: Baseline, into: str, source_ids: Sequence[str]) -> None:
    """Adds the files of these sources to the one file `into`, and removes them; those that stand no more are left out.

    For who is `alone`. May be repeated, and broken off anywhere.
    """
    folder = store.folder / boundary / baseline.id
    left_over = _replaced(store, boundary, baseline.id, into)
    for name in left_over:
        (folder / f"{name}.parquet").unlink(missing_ok=True)
    whole = folder / f"{into}.parquet"
    parts = [folder / f"{name}.parquet" for name in source_ids if name not in left_over]
    files = [path for path in [whole, *parts] if path.exists()]
    if all(path == whole for path in files):
        return
    profiles = [profile for path in files for profile in store.of_file(path)]
    replaced = [path.stem for path in files if path != whole]
    store.put(into, profiles, boundary=boundary, baseline=baseline, replaces=replaced)
    for name in replaced:
        (folder / f"{name}.parquet").unlink()


def _replaced(store: ProfileStore, boundary: str, baseline_id: str, into: str) -> Sequence[str]:
    path = store.folder / boundary / baseline_id / f"{into}.parquet"
    return read_file(path)[0] if path.exists() else ()
