"""How does a whole file come into being, so that no reader sees half of it and no second writer spoils it?

On a disk: written and synced beside its place, then renamed over it, or linked to where there is none, and the folder
synced. In an object store, which has no rename, and where a stream that is closed by an error is an object of half the
data: finished on this machine's disk, then put whole, on condition that there is none where the first one counts.
"""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from validation.place import ObjectPath, Place


def replace_file(path: Place, data: bytes) -> None:
    """Puts `data` in the place of the file, durably; its folder is made where it is missing. Raises OSError.

    A crash leaves the old file; writers that race leave one of theirs whole.
    """
    if isinstance(path, ObjectPath):
        path.put(data)
        return
    with whole_file(path) as file:
        file.write(data)


def hint_file(path: Place, data: bytes) -> None:
    """As `replace_file`, but for what may be lost or empty after a power cut: nothing waits for a disk."""
    if isinstance(path, ObjectPath):
        path.put(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(data)
    fresh.replace(path)


def first_file(path: Place, data: bytes) -> bytes:
    """Makes the file of `data` where there is none; what is in it then, which another may have written. Raises OSError.

    Of writers that race one makes it, and all read the same.
    """
    if isinstance(path, ObjectPath):
        return data if path.put_first(data) else path.read_bytes()
    with _draft(path) as (draft, file):
        file.write(data)
        _sync(file)
        try:
            os.link(draft, path)
        except FileExistsError:
            return path.read_bytes()
    _sync_folder(path.parent)
    return data


@contextmanager
def whole_file(path: Place) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` at the end, durably. Raises OSError.

    An error meanwhile, or a crash, leaves what was there.
    """
    if isinstance(path, ObjectPath):
        with tempfile.TemporaryFile() as finished:
            yield finished
            finished.seek(0)
            path.put(finished)
        return
    with _draft(path) as (draft, file):
        yield file
        _sync(file)
        draft.replace(path)
    # The rename itself must outlive a power cut: sync the folder that holds the name.
    _sync_folder(path.parent)


@contextmanager
def _draft(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A file beside the path, gone afterwards unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with draft.open("w+b") as file:
            yield draft, file
    finally:
        draft.unlink(missing_ok=True)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    held = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(held)
    finally:
        os.close(held)
