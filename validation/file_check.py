"""The check of a whole Parquet file, kept in its own footer: a file that was changed anywhere is known by it.

The footer's key-value metadata holds `fs-check:` and 32 hexadecimal digits, the XXH3 digest of the file's bytes with
zeros in the place of those digits. Readers of Parquet do not notice it.
"""

import re
from io import BytesIO
from typing import IO, Final

import pyarrow as pa
import xxhash

from validation.place import Place

KEY: Final = "featurestore.check"
_DIGITS: Final = 32
_MARK: Final = b"fs-check:"
_CHECK: Final = re.compile(re.escape(_MARK) + rb"([0-9a-f]{32})")
_CHUNK: Final = 1 << 22

UNSEALED: Final = {KEY: (_MARK + b"0" * _DIGITS).decode()}
"""What a writer puts into the file's metadata, for `seal` to fill in."""


def without_check(schema: pa.Schema) -> pa.Schema:
    """A schema without the check of the file that it was read from."""
    kept = {name: value for name, value in (schema.metadata or {}).items() if name != KEY.encode()}
    return schema.with_metadata(kept or None)


def seal(file: IO[bytes]) -> None:
    """Fill in the check of a finished file that is open for reading and writing."""
    place = _place(file)
    file.seek(0)
    digest = _digest(file)
    file.seek(place)
    file.write(digest)


def sealed(data: bytes) -> bytes:
    """The same of a file in memory."""
    file = BytesIO(data)
    seal(file)
    return file.getvalue()


def damage(path: Place) -> str | None:
    """What is wrong with a file; None where it is as it was written, or was written before files had checks.

    Raises OSError where it cannot be read.
    """
    data = path.read_bytes()
    at = data.rfind(_MARK) + len(_MARK)
    found = _CHECK.fullmatch(data[at - len(_MARK) : at + _DIGITS])
    if found is None:
        # A file without one: of before, or cut off behind its footer's beginning.
        whole = data[:4] == data[-4:] == b"PAR1"
        return None if whole and KEY.encode() not in data else f"{path} is torn"
    digest = xxhash.xxh3_128(data[:at])
    digest.update(b"0" * _DIGITS)
    digest.update(data[at + _DIGITS :])
    if digest.hexdigest().encode() == found[1]:
        return None
    return f"{path} does not match its check: it was damaged after it was written"


def _digest(file: IO[bytes]) -> bytes:
    digest = xxhash.xxh3_128()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest().encode()


def _place(file: IO[bytes]) -> int:
    """Where in the file the digits of its check begin."""
    end = file.seek(0, 2)
    size = _CHUNK
    while True:
        start = max(0, end - size)
        file.seek(start)
        at = file.read(end - start).rfind(_MARK + b"0" * _DIGITS)
        if at >= 0:
            return start + at + len(_MARK)
        if not start:
            raise ValueError("the file's metadata has no place for its check")
        size *= 4
