"""Sign what the online store is trusted with: plans, which carry users' functions, and API keys.

A signature is an HMAC-SHA256 under a key that the store never holds, so that write access to the store is neither a way
to run code in the processes that read it nor a way to make keys of the API.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from featurestore.errors import ConfigurationError

VARIABLE = "FEATURESTORE_SIGNING_KEY"
FILE_VARIABLE = "FEATURESTORE_SIGNING_KEY_FILE"
KEY_FILE = "signing.key"
SHORTEST_KEY = 32
"""In characters: a key of fewer could be guessed from one signature."""
SIGNATURE_BYTES = 64


class Signer:
    """Signs with the first of its keys and accepts signatures of all of them, so that keys can be changed.

    >>> old, both = Signer([b"a" * 32]), Signer([b"b" * 32, b"a" * 32])
    >>> both.accepts(old.sign(b"plan", b"x"), b"plan", b"x"), old.accepts(both.sign(b"plan", b"x"), b"plan", b"x")
    (True, False)
    """

    def __init__(self, keys: list[bytes]) -> None:
        """`keys` are secret; the newest comes first."""
        assert keys
        self._keys = tuple(keys)

    def sign(self, *parts: bytes) -> bytes:
        """The signature of some parts, the first of which says what they are; 64 hexadecimal digits."""
        return _mac(self._keys[0], parts)

    def accepts(self, signature: bytes, *parts: bytes) -> bool:
        """Whether one of the keys made this signature of these parts; compared in constant time."""
        # A list: every key is tried, whichever fits.
        return any([hmac.compare_digest(signature, _mac(key, parts)) for key in self._keys])  # noqa: C419


def _mac(key: bytes, parts: tuple[bytes, ...]) -> bytes:
    # Each part goes with its length: no two lists of parts are signed alike.
    text = b"".join(b"%d:%s" % (len(part), part) for part in parts)
    return hmac.new(key, text, hashlib.sha256).hexdigest().encode()


def signer_of(data_dir: Path | None, environ: Mapping[str, str] = os.environ) -> Signer:
    """The signer of a deployment.

    1. FEATURESTORE_SIGNING_KEY: keys separated by commas or one a line, the one that signs first.
    2. FEATURESTORE_SIGNING_KEY_FILE: a file of such keys, one a line.
    3. Else `DATA/signing.key`, which whoever needs it first makes; without a data folder there is none.

    Raises ConfigurationError for a key that is missing, too short, or readable by others in the data folder.
    """
    if text := environ.get(VARIABLE):
        return _signer(text.replace(",", "\n").splitlines(), VARIABLE)
    if name := environ.get(FILE_VARIABLE):
        return _signer(_read(Path(name)).splitlines(), f"{FILE_VARIABLE} ({name})")
    if data_dir is None:
        raise ConfigurationError(
            f"plans and API keys are signed, and there is no key: set {VARIABLE} or {FILE_VARIABLE}"
        )
    path = data_dir / KEY_FILE
    if not path.exists():
        _make(path)
    if path.stat().st_mode & 0o077:
        raise ConfigurationError(
            f"{path} can be read by others (mode {path.stat().st_mode & 0o777:o}); remove the file, then "
            "run `featurestore apply` and make the API keys again; or, where nobody else was there, chmod 600 it"
        )
    return _signer(_read(path).splitlines(), str(path))


def _signer(keys: list[str], place: str) -> Signer:
    found = [key.strip() for key in keys if key.strip()]
    if not found or min(map(len, found)) < SHORTEST_KEY:
        raise ConfigurationError(
            f"{place}: expected keys of at least {SHORTEST_KEY} characters; make one with: openssl rand -hex 32"
        )
    return Signer([key.encode() for key in found])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the signing key {path} cannot be read: {error}") from error


def _make(path: Path) -> None:
    """Make the data folder's key; where two do it at once, one of them is the key for both."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "w") as out:
            out.write(secrets.token_hex(32) + "\n")
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    except OSError as error:
        raise ConfigurationError(
            f"the signing key {path} cannot be made: {error}; set {VARIABLE}, or make the folder writable"
        ) from error
