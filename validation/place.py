"""Where is a file or a folder: on this machine's disk, or in an object store?

A `Place` is a `Path`, or an `ObjectPath` that answers the same few questions of an object store: an address such as
`s3://bucket/prefix`. An object store has no folders and no rename. Its objects appear whole or not at all, listings
show what was put before they were asked for, and an object can be made on condition that there is none.

Credentials, region and endpoint come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_REGION`, `AWS_ENDPOINT_URL`, …),
else from the machine's role.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property, lru_cache, total_ordering
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import ObjectStore, from_url

from validation.errors import PlatformError

if TYPE_CHECKING:
    import pyarrow.fs

SCHEMES: Final = ("s3",)
_ANSWER_WITHIN: Final = timedelta(seconds=20)
"""A store that is away for longer is an error, which those who write answer by trying again later."""
_opening = threading.Lock()


class Found(NamedTuple):
    """What a listing or a question tells of an object; named as of a file."""

    st_size: int
    st_mtime: float


class Version(NamedTuple):
    """What was in an object, and by what the store knows whether it still is."""

    data: bytes
    version: str


@total_ordering
class ObjectPath:
    """An object, or what all objects below it begin with; errors of the store are OSError."""

    def __init__(self, root: str, key: PurePosixPath, found: Found | None = None) -> None:
        self._root = root
        self._key = key
        self._found = found

    @property
    def name(self) -> str:
        """The last part."""
        return self._key.name

    @property
    def parent(self) -> "ObjectPath":
        """All but the last part."""
        return ObjectPath(self._root, self._key.parent)

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The parts below the bucket."""
        return self._key.parts

    def __truediv__(self, name: str) -> "ObjectPath":
        return ObjectPath(self._root, self._key / name)

    def with_name(self, name: str) -> "ObjectPath":
        """The same, but for the last part."""
        return ObjectPath(self._root, self._key.with_name(name))

    def relative_to(self, above: "ObjectPath") -> PurePosixPath:
        """What follows `above`."""
        return PurePosixPath("/".join(self.parts[len(above.parts) :]))

    def __str__(self) -> str:
        return f"{self._root}/{self._key}" if self._key.parts else self._root

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and (self._root, self._key) == (other._root, other._key)

    def __lt__(self, other: "ObjectPath") -> bool:
        return (self._root, self._key) < (other._root, other._key)

    def __hash__(self) -> int:
        return hash((self._root, self._key))

    def exists(self) -> bool:
        """Whether there is an object of this name: one question. See `is_dir` for what only objects below it make."""
        return self._ask() is not None

    @property
    def is_listed(self) -> bool:
        """Whether it comes from a listing, as an object."""
        return self._found is not None

    def is_file(self) -> bool:
        """As `exists`."""
        return self.is_listed or self.exists()

    def is_dir(self) -> bool:
        """Whether any object lies below it."""
        with _mapped(self):
            return any(True for batch in obstore.list(self._store, self._prefix, chunk_size=1) for _ in batch)

    def stat(self) -> Found:
        """Size and time of the object, of the moment when it was listed where it comes from a listing."""
        found = self._found or self._ask()
        if found is None:
            raise FileNotFoundError(f"{self} does not exist")
        return found

    def iterdir(self) -> Iterator["ObjectPath"]:
        """What lies right below it, objects and folders; nothing where nothing does."""
        with _mapped(self):
            listed = obstore.list_with_delimiter(self._store, self._prefix)
        yield from (ObjectPath(self._root, PurePosixPath(prefix)) for prefix in listed["common_prefixes"])
        yield from (self._of(meta) for meta in listed["objects"])

    def glob(self, pattern: str) -> Iterator["ObjectPath"]:
        """The objects below it whose names match; `*` stays within a part.

        One listing: of what lies right below where the pattern has one part, else of all below.
        """
        if "/" not in pattern:
            yield from (each for each in self.iterdir() if each.is_listed and PurePosixPath(each.name).match(pattern))
            return
        depth = pattern.count("/") + 1
        for each in self.rglob("*"):
            inner = each.relative_to(self)
            if len(inner.parts) == depth and inner.match(pattern):
                yield each

    def rglob(self, pattern: str) -> Iterator["ObjectPath"]:
        """All objects below it, at any depth, whose last part matches."""
        with _mapped(self):
            listed = [meta for batch in obstore.list(self._store, self._prefix) for meta in batch]
        yield from (each for each in map(self._of, listed) if PurePosixPath(each.name).match(pattern))

    def read_bytes(self) -> bytes:
        """What is in the object."""
        with _mapped(self):
            return bytes(obstore.get(self._store, str(self._key)).bytes())

    def read_text(self) -> str:
        """What is in the object, as text."""
        return self.read_bytes().decode()

    def put(self, data: bytes | IO[bytes]) -> None:
        """Make the object, whole or not at all, in place of another; large ones in several parts, completed last."""
        with _mapped(self):
            obstore.put(self._store, str(self._key), data)

    def put_first(self, data: bytes) -> bool:
        """Make the object unless there is one, of any number of writers only one; whether it was this one.

        False also where the answer to this writer's own first try was lost: look at what is there.
        """
        with _mapped(self):
            try:
                obstore.put(self._store, str(self._key), data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
        return True

    def read_version(self) -> Version | None:
        """What is in the object, for who is to change it; None where there is none."""
        with _mapped(self):
            try:
                found = obstore.get(self._store, str(self._key))
            except FileNotFoundError:
                return None
            version = found.meta["e_tag"]
            if version is None:
                raise OSError(f"{self}: the store tells no versions (ETag) of its objects, by which writers take turns")
            return Version(bytes(found.bytes()), version)

    def put_over(self, data: bytes, version: str) -> bool:
        """Put `data` in place of that version of the object, of any number of writers one; whether it was this one.

        False also where the answer to this writer's own first try was lost: look at what is there. Versions may be made
        of the contents, so that let none be put that was there before.
        """
        with _mapped(self):
            try:
                obstore.put(self._store, str(self._key), data, mode={"e_tag": version}, use_multipart=False)
            except (PreconditionError, AlreadyExistsError, FileNotFoundError):
                return False
        return True

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Delete the object."""
        if not missing_ok and not self.exists():
            raise FileNotFoundError(f"{self} does not exist")
        with _mapped(self):
            try:
                obstore.delete(self._store, str(self._key))
            except FileNotFoundError:
                return

    def open_input(self) -> Any:
        """The object as a file that Arrow reads parts of."""
        return self.filesystem.open_input_file(self.arrow_path)

    @property
    def filesystem(self) -> "pyarrow.fs.FileSystem":
        """The store as Arrow's readers know it."""
        return _filesystem(self._root)

    @property
    def arrow_path(self) -> str:
        """The object's name in `filesystem`."""
        return f"{urlsplit(self._root).netloc}/{self._key}"

    @property
    def _store(self) -> ObjectStore:
        # One at a time: whoever comes second finds what the first one opened.
        with _opening:
            return _opened(self._root)

    @property
    def _prefix(self) -> str | None:
        return str(self._key) if self._key.parts else None

    def _of(self, meta: Any) -> "ObjectPath":
        found = Found(meta["size"], meta["last_modified"].timestamp())
        return ObjectPath(self._root, PurePosixPath(meta["path"]), found)

    def _ask(self) -> Found | None:
        with _mapped(self):
            try:
                meta = obstore.head(self._store, str(self._key))
            except FileNotFoundError:
                return None
        return Found(meta["size"], meta["last_modified"].timestamp())


Place = Path | ObjectPath


def is_address(text: str) -> bool:
    """Whether a text names a place in an object store.

    >>> is_address("s3://bucket/logs"), is_address("../data/logs")
    (True, False)
    """
    return text.partition("://")[0] in SCHEMES and "://" in text


def place_of(text: str | Path) -> Place:
    """The place that a setting names; raises PlatformError for an address of an unknown kind.

    >>> place_of("s3://bucket/logs") / "departures"
    ObjectPath('s3://bucket/logs/departures')
    >>> place_of("data/logs")
    PosixPath('data/logs')
    """
    plain = str(text)
    if "://" not in plain:
        return Path(text)
    parsed = urlsplit(plain)
    if parsed.scheme not in SCHEMES or not parsed.netloc or parsed.query or parsed.fragment:
        known = ", ".join(f"{scheme}://BUCKET/PREFIX" for scheme in SCHEMES)
        raise PlatformError(f"{plain!r} is no place for files; expected a folder or {known}")
    return ObjectPath(f"{parsed.scheme}://{parsed.netloc}", PurePosixPath(parsed.path.strip("/")))


def readable(place: Place) -> Any:
    """What Arrow's readers of Parquet take for it."""
    return place if isinstance(place, Path) else place.open_input()


@contextmanager
def _mapped(place: ObjectPath) -> Iterator[None]:
    try:
        yield
    except BaseError as error:
        raise OSError(f"{place}: {' '.join(str(error).split())[:500]}") from error


@lru_cache
def _opened(root: str) -> ObjectStore:
    # Whether an endpoint speaks plain HTTP is for its address to say.
    return from_url(
        root,
        client_options={"allow_http": True, "connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=60)},
        retry_config={"max_retries": 5, "retry_timeout": _ANSWER_WITHIN},
    )


@lru_cache
def _filesystem(root: str) -> "pyarrow.fs.FileSystem":
    # Settings name places: who reads those alone does not pay for Arrow.
    import pyarrow as pa
    import pyarrow.fs

    try:
        return pyarrow.fs.FileSystem.from_uri(root)[0]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise OSError(f"{root} cannot be opened: {error}") from error
