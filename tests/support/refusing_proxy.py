"""A proxy before the online store that answers chosen commands itself: with an error reply, or with garbage."""

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import hiredis

Answer = Callable[[list[bytes], int], bytes | None]
"""Given a command and how many of its name came before; the reply to send in the store's place, None to ask it."""


def error(code: str) -> bytes:
    """An error reply as the store words it."""
    return f"-{code} refused by the proxy\r\n".encode()


class RefusingProxy:
    """Forwards 127.0.0.1:`port` to a unix socket, one command after the other, so that replies keep their order."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.answer: Answer = lambda command, before: None
        self.seen: Counter[str] = Counter()
        """How often each command came."""
        self.refused = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """The address that the product is given."""
        return f"redis://127.0.0.1:{self.port}/0"

    def refuse(self, code: str, *, names: set[str] | None = None, first: int = 0, count: int = 1 << 30) -> None:
        """Refuse the named commands (all, without names) from the `first` of each on, `count` of each."""
        base = Counter(self.seen)

        def answer(command: list[bytes], before: int) -> bytes | None:
            name = command[0].decode().upper()
            place = before - base[name]
            wanted = names is None or name in names
            return error(code) if wanted and first <= place < first + count else None

        self.answer = answer

    def pass_all(self) -> None:
        """Refuse nothing from now on."""
        self.answer = lambda command, before: None

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
            threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        commands, replies = hiredis.Reader(), hiredis.Reader()
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                commands.feed(data)
                out = []
                while (command := commands.gets()) is not False:
                    out.append(self._reply(command, server, replies))
                if out:
                    client.sendall(b"".join(out))
        for each in (client, server):
            self._open.discard(each)
            _end(each)

    def _reply(self, command: list[bytes], server: socket.socket, replies: hiredis.Reader) -> bytes:
        name = command[0].decode().upper()
        with self._lock:
            before = self.seen[name]
            self.seen[name] += 1
        made = self.answer(command, before)
        if made is not None:
            self.refused += 1
            return made
        server.sendall(hiredis.pack_command(tuple(command)))
        raw = b""
        while replies.gets() is False:
            data = server.recv(1 << 16)
            if not data:
                raise ConnectionResetError
            raw += data
            replies.feed(data)
        return raw


def _end(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
