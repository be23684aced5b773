"""Which violations does a producer have to see, each once, however often it happens?

One small JSON file per source holds a line per (contract, rule, boundary, origin): how often it was reported, how many
rows it hit, when it was first and last seen, and the latest samples, masked as the report was. A file grows with rules
and origins, never with rows or time; of a source at most `KEPT` lines are kept, those seen last. Writers of several
processes take turns.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec

from validation.contract import Boundary, Mode, Severity
from validation.errors import PlatformError
from validation.report import Violation, ViolationReport
from validation.verdict import Outcome, Sample

KEPT: Final = 1_000
_REMEMBERED: Final = 64
"""Reports whose repetition is noticed."""


class Folded(msgspec.Struct, frozen=True, kw_only=True):
    """One violation, with all its repetitions."""

    id: str
    source: str
    contract: str
    version: str
    """The version that was broken last."""
    producer: str
    """The contract's owner."""
    boundary: Boundary
    rule_id: str
    expectation: str
    expected: dict[str, Any]
    severity: Severity
    mode: Mode
    dimension: str
    description: str
    outcome: Outcome
    origin: str
    origin_range: tuple[int, int] | None
    event_window: tuple[str, str] | None
    count: int
    """Reports that told of it."""
    rows: int
    """Rows that broke it, in all reports."""
    evaluated: int
    first_seen: str
    last_seen: str
    report_id: str
    """The latest report."""
    observed: Any
    reason: str
    samples: tuple[Sample, ...]
    affected: tuple[str, ...]
    action: str
    replay: str


class _Shelf(msgspec.Struct, kw_only=True):
    """The file of a source."""

    violations: dict[str, Folded] = {}
    reports: list[str] = []


class ViolationStore:
    """Folded violations below one folder; safe among threads and processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def record(self, report: ViolationReport, *, again: bool = False) -> int:
        """Folds a report in; gives how many violations it told of that were not known.

        A report that is recorded twice counts once, while it is among the last ones, unless `again` says that it is
        about other rows.
        """
        if not report.violations:
            return 0
        path = self.folder / f"{quote(report.source, safe='')}.json"
        with self._alone(path):
            shelf = _read(path)
            if report.report_id in shelf.reports and not again:
                return 0
            new = 0
            for violation in report.violations:
                name = _name(report, violation)
                known = shelf.violations.pop(name, None)
                new += known is None
                shelf.violations[name] = _fold(name, known, report, violation)
            shelf.reports = [*shelf.reports, report.report_id][-_REMEMBERED:]
            shelf.violations = dict(list(shelf.violations.items())[-KEPT:])
            _write(path, msgspec.json.encode(shelf))
        return new

    def find(
        self,
        *,
        producer: str | None = None,
        contract: str | None = None,
        source: str | None = None,
        since: str | None = None,
    ) -> list[Folded]:
        """The violations, the latest first; `since` (an ISO 8601 instant in UTC) asks for those seen at or after it."""
        paths = [self.folder / f"{quote(source, safe='')}.json"] if source else sorted(self.folder.glob("*.json"))
        found = (one for path in paths for one in _read(path).violations.values())
        return sorted(
            _matching(found, producer, contract, since), key=lambda one: (one.last_seen, one.id), reverse=True
        )

    @contextlib.contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _matching(
    found: Iterable[Folded], producer: str | None, contract: str | None, since: str | None
) -> Iterator[Folded]:
    for one in found:
        if producer is not None and one.producer != producer:
            continue
        if contract is not None and one.contract != contract:
            continue
        if since is None or one.last_seen >= since:
            yield one


def _name(report: ViolationReport, violation: Violation) -> str:
    parts = (report.contract, report.source, violation.rule_id, report.boundary, report.origin, violation.outcome)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _fold(name: str, known: Folded | None, report: ViolationReport, violation: Violation) -> Folded:
    told = msgspec.structs.asdict(violation)
    failed, evaluated = told.pop("failed") or 0, told.pop("evaluated") or 0
    del told["percent"]
    return Folded(
        id=name,
        source=report.source,
        contract=report.contract,
        version=report.version,
        producer=report.owner,
        boundary=report.boundary,
        origin=report.origin,
        origin_range=report.origin_range,
        event_window=report.event_window,
        count=1 + (known.count if known else 0),
        rows=failed + (known.rows if known else 0),
        evaluated=evaluated + (known.evaluated if known else 0),
        first_seen=min(known.first_seen, report.created) if known else report.created,
        last_seen=max(known.last_seen, report.created) if known else report.created,
        report_id=report.report_id,
        affected=report.affected,
        action=report.action,
        replay=report.replay,
        **told,
    )


def _read(path: Path) -> _Shelf:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Shelf)
    except FileNotFoundError:
        return _Shelf()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise PlatformError(
            f"{path}: the violations cannot be read: {error}; move the file away to begin anew"
        ) from error


def _write(path: Path, data: bytes) -> None:
    hidden = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        with hidden.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)
