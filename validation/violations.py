"""Which violations does a producer have to see, each once, however often it happens?

One small JSON file per source holds a line per (contract, rule, boundary, origin): how often it was reported, how many
rows it hit, when it was first and last seen, and the latest samples, masked as the report was. A file grows with rules
and origins, never with rows or time; of a source at most `KEPT` lines are kept, those seen last. Writers of several
processes, in an object store of several machines, take turns (`validation.changed_file`).

Each change of a line gets the file's next number, so that whoever passes violations on needs to remember one number a
file, and finds what he has missed and how many lines were pushed out before he saw them.
"""

import hashlib
import logging
import secrets
from collections.abc import Collection, Mapping
from typing import Any, Final
from urllib.parse import quote, unquote

import msgspec

from validation.changed_file import change_file
from validation.contract import Boundary, Mode, Severity
from validation.errors import PlatformError
from validation.place import Place
from validation.report import Violation, ViolationReport
from validation.verdict import Outcome, Sample
from validation.whole_file import first_file

KEPT: Final = 1_000
_LOG = logging.getLogger(__name__)
_LOSSES: Final = 1_000
"""Lines pushed out of which the numbers are known."""
_REMEMBERED: Final = 64
"""Reports whose repetition is noticed."""
_LONGEST_NAME = 255


class Overtaken(PlatformError):
    """Another process has reported rows of this range already: go on from where it ended."""


class Stretch(msgspec.Struct, frozen=True):
    """Rows of one origin, one after the other: `first` to before `end`."""

    origin: str
    first: int
    end: int


class Mark(msgspec.Struct, frozen=True):
    """Up to which change of which file somebody has seen everything."""

    file: str = ""
    """The random name that the file got when it was begun: one begun anew is seen anew."""
    number: int = 0


class Folded(msgspec.Struct, frozen=True, kw_only=True):
    """One violation, with all its repetitions."""

    id: str
    source: str
    contract: str
    version: str
    """The version that was broken last."""
    producer: str
    """Who sends the rows; the contract's owner where it names no other."""
    owner: str = ""
    support: str = ""
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
    """The topic or file; what follows is the latest report's."""
    origin_id: str = ""
    origin_partition: int | None = None
    origin_range: tuple[int, int] | None
    event_window: tuple[str, str] | None
    count: int
    """Reports that told of it."""
    rows: int
    """Rows that broke it, in all reports."""
    evaluated: int
    """Rows that were judged in those reports."""
    allowed: int | None = None
    """How many of the latest report's rows might have broken it."""
    first_seen: str
    last_seen: str
    report_id: str
    """The latest report."""
    observed: Any = None
    reason: str
    samples: tuple[Sample, ...]
    affected: tuple[str, ...]
    action: str
    replay: str
    number: int = 0
    """Of the change that made it what it is."""


class _Shelf(msgspec.Struct, kw_only=True):
    """The file of a source."""

    file: str = ""
    number: int = 0
    violations: dict[str, Folded] = {}
    reports: list[str] = []
    judged: dict[str, int] = {}
    """Origin -> the row up to which it was reported on."""
    pushed_out: list[int] = []
    """Numbers of the lines that went last to make room."""


class News(msgspec.Struct, frozen=True):
    """What changed since somebody looked: each violation with the mark that says it was seen."""

    changes: tuple[tuple[str, Mark, Folded], ...]
    """Source, mark and violation, by source and number."""
    lost: int
    """Lines that were pushed out before they were seen; exact up to the last 1,000 of a source."""
    marks: dict[str, Mark]
    """By source, the mark once all of it has been seen."""


class ViolationStore:
    """Folded violations below one folder; safe among threads and processes."""

    def __init__(self, folder: Place) -> None:
        self.folder = folder

    def record(self, report: ViolationReport, *, again: bool = False, stretch: Stretch | None = None) -> int:
        """Folds a report in; gives how many violations it told of that were not known.

        A report that is recorded twice counts once, while it is among the last ones, unless `again` says that it is
        about other rows. With `stretch` a range of rows counts once for ever: raises Overtaken where a part of it was
        reported before. `judged` tells up to where.
        """
        if not report.violations:
            return 0
        path, new = self._path(report.source), 0

        def change(held: bytes | None) -> bytes | None:
            nonlocal new
            new = 0
            shelf = _shelf_or_begin(path, held)
            if stretch is None and report.report_id in shelf.reports and not again:
                return None
            if stretch is not None:
                done = shelf.judged.pop(stretch.origin, stretch.first)
                if done > stretch.first:
                    raise Overtaken(f"{stretch.origin}: rows up to {done} have been reported, not from {stretch.first}")
                shelf.judged[stretch.origin] = stretch.end
            for violation in report.violations:
                name = _name(report, violation)
                known = shelf.violations.pop(name, None)
                new += known is None
                shelf.number += 1
                shelf.violations[name] = fold(name, known, report, violation, shelf.number)
            shelf.reports = [*shelf.reports, report.report_id][-_REMEMBERED:]
            _make_room(shelf)
            return msgspec.json.encode(shelf)

        change_file(path, change)
        return new

    def judged(self, source: str, origin: str) -> int | None:
        """Up to which row of an origin violations are recorded; None where none ever was. Raises OSError."""
        path = self._path(source)
        try:
            return _shelf(path, path.read_bytes()).judged.get(origin)
        except (FileNotFoundError, PlatformError):
            return None  # as for whoever records next: a file that is torn is begun anew

    def find(
        self,
        *,
        producer: str | None = None,
        among: Collection[str] | None = None,
        contract: str | None = None,
        source: str | None = None,
        since: str | None = None,
        after: tuple[str, str] | None = None,
        limit: int | None = None,
    ) -> list[Folded]:
        """The violations, the latest first, `limit` at most; `among` are the producers whose violations may be seen.

        `since` (an ISO 8601 instant in UTC) asks for those seen at or after it; `after` (last seen, id) goes on behind
        the last one of a page. One that is seen again meanwhile moves to the front.
        """
        found = [
            one
            for path in self._paths(source)
            for one in _read(path).violations.values()
            if (producer is None or one.producer == producer)
            and (among is None or one.producer in among)
            and (contract is None or one.contract == contract)
            and (since is None or one.last_seen >= since)
            and (after is None or (one.last_seen, one.id) < after)
        ]
        found.sort(key=lambda one: (one.last_seen, one.id), reverse=True)
        return found[:limit]

    def get(self, violation_id: str) -> Folded | None:
        """The violation of that id, None where there is none (any more)."""
        shelves = (_read(path) for path in self._paths(None))
        return next((shelf.violations[violation_id] for shelf in shelves if violation_id in shelf.violations), None)

    def news(self, marks: Mapping[str, Mark]) -> News:
        """What changed since these marks (source -> Mark), oldest change first; a source without one is all news."""
        changes: list[tuple[str, Mark, Folded]] = []
        lost, seen = 0, {}
        for path in self._paths(None):
            shelf, source = _read(path), unquote(path.name.removesuffix(".json"))
            mark = marks.get(source, Mark())
            last = mark.number if mark.file == shelf.file else 0
            lost += sum(number > last for number in shelf.pushed_out)
            changes += [
                (source, Mark(shelf.file, one.number), one)
                for one in sorted(shelf.violations.values(), key=lambda one: one.number)
                if one.number > last
            ]
            seen[source] = Mark(shelf.file, shelf.number)
        return News(tuple(changes), lost, seen)

    def _path(self, source: str) -> Place:
        return self.folder / f"{quote(source, safe='')}.json"

    def _paths(self, source: str | None) -> list[Place]:
        if source and len(self._path(source).name.encode()) > _LONGEST_NAME:
            return []  # no disk has a file of such a name, and so no source
        try:
            found: list[Place] = [self._path(source)] if source else [*self.folder.glob("[!.]*.json")]
        except OSError as error:
            raise PlatformError(f"{self.folder}: the violations cannot be listed: {error}") from error
        return sorted(found, key=str)


def _name(report: ViolationReport, violation: Violation) -> str:
    parts = (report.contract, report.source, violation.rule_id, report.boundary, report.origin, violation.outcome)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _make_room(shelf: _Shelf) -> None:
    while len(shelf.violations) > KEPT:
        oldest = next(iter(shelf.violations))
        shelf.pushed_out.append(shelf.violations.pop(oldest).number)
    shelf.pushed_out = shelf.pushed_out[-_LOSSES:]
    shelf.judged = dict(list(shelf.judged.items())[-KEPT:])


def fold(name: str, known: Folded | None, report: ViolationReport, violation: Violation, number: int) -> Folded:
    """A violation of a report, put together with what was known of it."""
    told = msgspec.structs.asdict(violation)
    failed, evaluated = told.pop("failed") or 0, told.pop("evaluated") or 0
    del told["percent"]
    return Folded(
        id=name,
        source=report.source,
        contract=report.contract,
        version=report.version,
        producer=report.producer or report.owner,
        owner=report.owner,
        support=report.support,
        boundary=report.boundary,
        origin=report.origin,
        origin_id=report.origin_id,
        origin_partition=report.origin_partition,
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
        number=number,
        **told,
    )


def _shelf_or_begin(path: Place, held: bytes | None) -> _Shelf:
    """The shelf; a torn one is kept beside it, under another name: reporting must not stop a stream."""
    if held is None:
        return _Shelf(file=secrets.token_hex(8))
    try:
        return _shelf(path, held)
    except PlatformError as error:
        aside = path.with_name(f"{path.name.removesuffix('.json')}.torn-{secrets.token_hex(4)}")
        first_file(aside, held)
        _LOG.warning("%s; it is kept as %s", error, aside)
        return _Shelf(file=secrets.token_hex(8))


def _read(path: Place) -> _Shelf:
    try:
        return _shelf(path, path.read_bytes())
    except FileNotFoundError:
        return _Shelf(file=secrets.token_hex(8))
    except OSError as error:
        raise PlatformError(f"{path}: the violations cannot be read: {error}") from error


def _shelf(path: Place, held: bytes) -> _Shelf:
    try:
        return msgspec.json.decode(held, type=_Shelf)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise PlatformError(
            f"{path}: the violations cannot be read: {error}; the next report begins the file anew"
        ) from error
