"""What did a run over history do, and how far is it? A file for each, so that whoever asks later finds it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from featurestore.errors import UsageError

State = Literal["log", "chase", "hand-over", "done", "stopped", "failed"]


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Its position is beside the state that it builds; this says what people ask for."""

    kind: Literal["backfill", "rebuild"]
    view: str
    version: int
    """The version that is built."""
    state: State
    started_us: int
    updated_us: int
    offsets: int = 0
    """Offsets of the event log that the run had to go through when it began."""
    offsets_left: int = 0
    events: int = 0
    from_us: int | None = None
    to_us: int | None = None
    files: tuple[str, ...] = ()
    withheld: dict[str, str] = {}
    """Column -> what was done to it, because it is classified beyond the view's clearance."""
    plan_version: int | None = None
    """The plan that made it the version that is read."""
    message: str = ""

    @property
    def eta_s(self) -> float | None:
        """How long the rest of the log takes at the rate so far; None before there is one.

        >>> run = RunRecord(kind="backfill", view="clicks", version=2, state="log", started_us=0, updated_us=10_000_000)
        >>> run.eta_s, msgspec.structs.replace(run, offsets=100, offsets_left=75).eta_s
        (None, 30.0)
        """
        done, seconds = self.offsets - self.offsets_left, (self.updated_us - self.started_us) / 1e6
        return None if not done or not seconds else self.offsets_left / (done / seconds)


class RunRecords:
    """The records of a deployment, by view and version."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, record: RunRecord) -> None:
        """Replace the record of that view and version; readers see a whole one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{record.view}-{record.version}-{record.kind}.json"
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_bytes(msgspec.json.encode(record))
        fresh.replace(path)

    def all(self) -> tuple[RunRecord, ...]:
        """Every record, the latest first."""
        found = [msgspec.json.decode(path.read_bytes(), type=RunRecord) for path in self.folder.glob("*.json")]
        return tuple(sorted(found, key=lambda record: -record.started_us))

    @contextmanager
    def alone(self, view: str) -> Iterator[None]:
        """One run over a view at a time, on this machine: two would fence each other for ever."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f".{view}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"a backfill or rebuild of view {view!r} is running already") from None
            yield
