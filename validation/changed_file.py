"""How is a small file changed by many writers, each of whom goes on from what the one before has left?

On a disk they take turns, by a lock beside the file that ends with its holder. In an object store a lock would outlive
whoever is killed; there a change is put on condition that the object is the one that was read, and whoever was too late
makes his change again, of what is there by then. No clock decides, and of all who try at once one gets on.
"""

import fcntl
from collections.abc import Callable

from validation.place import ObjectPath, Place
from validation.whole_file import replace_file


def change_file(path: Place, change: Callable[[bytes | None], bytes | None]) -> None:
    """Puts what `change` makes of the file (None: there is none) in its place, durably; None leaves it as it is.

    Raises OSError, after which the change may be made or not, and what `change` raises. In an object store `change` may
    be asked several times, the last answer counts; one whose acknowledgement was lost is found again by its bytes, so
    let these say whose they are.
    """
    if isinstance(path, ObjectPath):
        _change_object(path, change)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = change(path.read_bytes() if path.exists() else None)
        if made is not None:
            replace_file(path, made)


def _change_object(path: ObjectPath, change: Callable[[bytes | None], bytes | None]) -> None:
    made: bytes | None = None
    while True:
        held = path.read_version()
        if held is not None and held.data == made:
            return
        made = change(None if held is None else held.data)
        if made is None or (path.put_first(made) if held is None else path.put_over(made, held.version)):
            return
