"""What was refused, what was written, by whom? An append-only log, one JSON object a line.

Every worker appends whole lines with one call to a file opened for appending, so that lines never mix and nothing is
ever written over. A line that a crash or a full disk cut short stays as it is, and the next one begins on a line of
its own. A write whose line cannot be kept does not happen.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from featurestore.api.faults import Refused
from featurestore.api.rate import RateLimit
from featurestore.clock import iso
from featurestore.errors import FeatureStoreError
from validation.printable import printable
from validation.redaction import redacted

FILE = "audit.jsonl"
STRANGERS_PER_S = 100.0
_LONGEST = 1000
_LONGEST_NAME, _MOST_NAMES = 200, 200


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line: `denied` for a call that was refused, `write` before a write begins, `written` or `failed` after it."""

    at: str
    event: Literal["denied", "write", "written", "failed"]
    caller: str
    address: str
    route: str
    resources: tuple[str, ...] = ()
    status: int = 0
    code: str = ""
    detail: str = ""


class AuditLog:
    """The log below a data folder; readable by its owner alone."""

    def __init__(
        self, path: Path, wall_clock: Callable[[], int], *, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._wall_clock = wall_clock
        self._strangers = RateLimit(STRANGERS_PER_S, monotonic_s=monotonic_s)
        self._left_out = 0
        self._file: int | None = None
        self._opening = threading.Lock()

    def refused_stranger(self, *, address: str, route: str, status: int, code: str, detail: str) -> None:
        """Appends the refusal of a caller who is nobody; beyond 100 a second they are counted in the next line.

        Whoever can reach the service could fill the disk otherwise, and so end every write.
        """
        try:
            self._strangers.take("strangers", None)
        except Refused:
            self._left_out += 1
            return
        left_out, self._left_out = self._left_out, 0
        self.record(
            "denied", caller="unknown", address=address, route=route, status=status, code=code,
            detail=f"{detail} ({left_out} more refusals came before it)" if left_out else detail,
        )  # fmt: skip

    def record(
        self,
        event: Literal["denied", "write", "written", "failed"],
        *,
        caller: str,
        address: str,
        route: str,
        resources: Sequence[str] = (),
        status: int = 0,
        code: str = "",
        detail: str = "",
    ) -> None:
        """Appends one line; raises FeatureStoreError where it cannot be kept."""
        entry = AuditEntry(
            at=iso(self._wall_clock()),
            event=event,
            caller=printable(caller, most=_LONGEST),
            address=printable(address, most=_LONGEST),
            route=printable(route, most=_LONGEST),
            resources=tuple(printable(each, most=_LONGEST) for each in _shortened(resources)),
            status=status,
            code=code,
            detail=printable(redacted(detail), most=_LONGEST),
        )
        line = msgspec.json.encode(entry) + b"\n"
        try:
            if os.write(self._open(), line) != len(line):
                raise OSError("the disk is full")  # noqa: TRY301 - told like every other failure
        except OSError as error:
            self.close()  # The next line looks again at how the file ends.
            raise FeatureStoreError(f"the audit log {self._path} cannot be written: {error}") from error

    def _open(self) -> int:
        with self._opening:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
                size = os.fstat(file).st_size
                if size and os.pread(file, 1, size - 1) != b"\n":
                    os.write(file, b"\n")
                self._file = file
            return self._file

    def close(self) -> None:
        """Lets go of the file."""
        with self._opening:
            if self._file is not None:
                os.close(self._file)
                self._file = None


def _shortened(resources: Sequence[str]) -> tuple[str, ...]:
    """At most 200 names of bounded length, and how many more there are."""
    named = tuple(name[:_LONGEST_NAME] for name in resources[:_MOST_NAMES])
    return named if len(resources) <= _MOST_NAMES else (*named, f"and {len(resources) - _MOST_NAMES} more")
