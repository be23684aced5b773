"""Where do the bytes of a log live: in memory, or in a file that survives the process?"""

import os
from pathlib import Path
from typing import Protocol


class Storage(Protocol):
    """Bytes that only ever grow at the end."""

    size: int

    def append(self, data: bytes | bytearray) -> None:
        """Add bytes at the end; all of them or none."""
        ...

    def read(self, at: int, size: int) -> bytes:
        """`size` bytes from `at`, both within what was appended."""
        ...

    def cut(self, size: int) -> None:
        """Forget what lies beyond `size`."""
        ...

    def close(self) -> None:
        """Let go of the file; nothing in memory."""
        ...


class MemoryStorage:
    """Gone with the process."""

    def __init__(self) -> None:
        self.size = 0
        self._data = bytearray()

    def append(self, data: bytes | bytearray) -> None:
        """See Storage."""
        self._data += data
        self.size += len(data)

    def read(self, at: int, size: int) -> bytes:
        """See Storage."""
        return bytes(memoryview(self._data)[at : at + size])

    def cut(self, size: int) -> None:
        """See Storage."""
        del self._data[size:]
        self.size = size

    def close(self) -> None:
        """See Storage."""


class FileStorage:
    """One append-only file. Writes reach the operating system at once and the disk at close.

    So a killed process loses nothing that was acknowledged; a power cut may lose the last seconds.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.size = os.fstat(self._file).st_size

    def append(self, data: bytes | bytearray) -> None:
        """See Storage; a failed write (disk full) is taken back before the error is raised."""
        view, at = memoryview(data), self.size
        try:
            while view:
                written = os.pwrite(self._file, view, at)
                view, at = view[written:], at + written
        except OSError:
            os.ftruncate(self._file, self.size)
            raise
        self.size = at

    def read(self, at: int, size: int) -> bytes:
        """See Storage."""
        return os.pread(self._file, size, at)

    def cut(self, size: int) -> None:
        """See Storage."""
        os.ftruncate(self._file, size)
        self.size = size

    def close(self) -> None:
        """See Storage."""
        os.fsync(self._file)
        os.close(self._file)
