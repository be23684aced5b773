"""How is a small file made or replaced, so that a reader sees the old one or the new one, never half?"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Puts `data` in the place of the file, durably; its folder is made where it is missing. Raises OSError.

    A crash leaves the old file; writers that race leave one of theirs whole.
    """
    with _drafted(path, data) as draft:
        draft.replace(path)


def first_file(path: Path, data: bytes) -> bytes:
    """Makes the file of `data` where there is none; what is in it then, which another may have written. Raises OSError.

    Of writers that race one makes it, and all read the same.
    """
    with _drafted(path, data) as draft:
        try:
            os.link(draft, path)
        except FileExistsError:
            return path.read_bytes()
    return data


@contextmanager
def _drafted(path: Path, data: bytes) -> Iterator[Path]:
    """A whole file of `data` beside the path, gone afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)
