"""A proxy before the online store whose address stays, whatever happens behind it; it cuts or delays replies."""

import contextlib
import socket
import threading
import time
from pathlib import Path


class CuttingProxy:
    """Forwards 127.0.0.1:`port` to a unix socket that may come and go."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._cut_after: int | None = None
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.cuts = 0
        self.delay_s = 0.0
        """So much later every reply goes on."""
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, after_bytes: int) -> None:
        """The next reply that reaches so many bytes ends there, and so does its connection."""
        with self._lock:
            self._cut_after = after_bytes

    def close(self) -> None:
        """Close everything."""
        self._listener.close()
        for each in list(self._open):
            _end(each)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(str(self._target))
            except OSError:
                client.close()
                server.close()
                continue
            self._open |= {client, server}
            threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, replies: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if replies and self.delay_s:
                    time.sleep(self.delay_s)
                sink.sendall(self._shortened(data) if replies else data)
                if replies and self._was_cut:
                    self._was_cut = False
                    break
        for each in (source, sink):
            self._open.discard(each)
            _end(each)

    _was_cut = False

    def _shortened(self, data: bytes) -> bytes:
        with self._lock:
            if self._cut_after is None or len(data) <= self._cut_after:
                return data
            data, self._cut_after, self._was_cut = data[: self._cut_after], None, True
            self.cuts += 1
            return data


def _end(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
