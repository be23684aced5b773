"""When does an embedded server end? When nobody uses it any more, however its users ended.

Run as a script beside every server: it waits for the shared lock that all users hold, without using the processor,
and shuts the server down once the last of them is gone, be it by SIGKILL. It imports the standard library alone, so
that it starts in milliseconds and stays small.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import time
from pathlib import Path

PATIENCE_S = 30.0
_POLL_S = 0.01


def alive(folder: Path) -> bool:
    """Whether a server holds that folder's lock; the lock ends with it, so no process id has to be believed."""
    try:
        with (folder / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def recorded_address(folder: Path) -> Path | None:
    """The socket of the server that was started last; it may be gone."""
    try:
        return Path((folder / "address").read_text(encoding="utf-8").rstrip("\n"))
    except FileNotFoundError:
        return None


def shut_down(folder: Path, patience_s: float = PATIENCE_S) -> None:
    """Stop the folder's server, first politely, so that its file is flushed; the caller holds the users' lock alone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if alive(folder):
            with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
                os.kill(int((folder / "pid").read_text(encoding="utf-8")), number)
        wait_until_gone(folder, patience_s)
    forget_address(folder)


def wait_until_gone(folder: Path, patience_s: float = PATIENCE_S) -> None:
    """Return once the folder's server has ended, or patience has."""
    deadline = time.monotonic() + patience_s
    while alive(folder) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def forget_address(folder: Path) -> None:
    """Remove the recorded address, with the short folder that a long path needed."""
    recorded = recorded_address(folder)
    if recorded is not None and recorded.parent != folder:
        shutil.rmtree(recorded.parent, ignore_errors=True)
    (folder / "address").unlink(missing_ok=True)


def watch(folder: Path) -> None:
    """Wait until nobody uses the folder's server, then shut it down; who comes meanwhile waits, then starts anew."""
    with (folder / "users").open("rb") as users:
        fcntl.flock(users, fcntl.LOCK_EX)
        shut_down(folder)


if __name__ == "__main__":
    # The folder may have been removed under us, as tests do: then there is nothing to watch.
    with contextlib.suppress(FileNotFoundError):
        watch(Path(sys.argv[1]))
