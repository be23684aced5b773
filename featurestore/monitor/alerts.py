"""Who has to be told of what, once?

An alert is open from the first time its condition is found until it is found gone. Found again, it counts, and is not
told again for a day, unless it became critical; its end is told too. Alerts live in one small JSON file that processes
take turns with. Telling is at least once: an alert counts as told to a sink after the sink took it.
"""

import fcntl
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, Protocol

import msgspec

from featurestore.clock import Clock
from featurestore.errors import FeatureStoreError
from validation.whole_file import replace_file

Severity = Literal["critical", "informative"]
AGAIN_US: Final = 86_400_000_000
"""An alert that stays open is told again after that long."""
KEPT: Final = 1_000
"""Alerts that ended and are remembered."""
_log = logging.getLogger(__name__)


class SinkFailed(FeatureStoreError):
    """A sink did not take an alert; it is offered again."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A condition that somebody has to know of."""

    key: str
    """Names the condition: the same one is found under the same key every time."""
    severity: Severity
    title: str
    detail: str
    owner: str = ""
    service: str = ""
    """The feature service that is hurt, where it is one."""
    view: str = ""
    feature: str = ""
    """Of the view, where it is about one."""
    evidence: str = ""
    """A command, file or address that shows it."""


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """A finding with its history."""

    finding: Finding
    first_us: int
    last_us: int
    count: int
    ended_us: int | None = None
    revision: int = 1
    """Grows whenever there is something to tell."""
    revised_us: int

    @property
    def is_open(self) -> bool:
        """Whether the condition was there when it was last looked at."""
        return self.ended_us is None


class Sink(Protocol):
    """Where alerts are told."""

    @property
    def name(self) -> str:
        """Names the sink among those of a deployment."""
        ...

    def send(self, alert: Alert) -> None:
        """Tells of an alert that began, got worse, goes on, or ended; raises SinkFailed."""
        ...


class LogSink:
    """Tells the process's log: critical alerts as errors, others as warnings, ends as information."""

    name = "log"

    def send(self, alert: Alert) -> None:
        """See Sink."""
        level = logging.INFO if not alert.is_open else _LEVELS[alert.finding.severity]
        state = "since gone" if not alert.is_open else f"found {alert.count} times"
        found = alert.finding
        _log.log(level, "%s: %s (%s; owner %s; see %s)", found.title, found.detail, state, found.owner, found.evidence)


_LEVELS: Final = {"critical": logging.ERROR, "informative": logging.WARNING}


class _Book(msgspec.Struct, kw_only=True):
    alerts: dict[str, Alert] = {}
    told: dict[str, dict[str, int]] = {}
    """Sink -> alert's key -> the revision that it was told."""


class AlertBook:
    """The alerts of a deployment, in one file; safe among threads and processes."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock

    def open(self) -> list[Alert]:
        """The open alerts, critical ones first, then the newest."""
        found = [alert for alert in self._read().alerts.values() if alert.is_open]
        return sorted(found, key=lambda alert: (alert.finding.severity != "critical", -alert.first_us))

    def all(self) -> list[Alert]:
        """Open and ended alerts, those that were found last first."""
        return sorted(self._read().alerts.values(), key=lambda alert: -alert.last_us)

    def sinks(self) -> list[str]:
        """Names of the sinks that took an alert, but for the log."""
        return sorted(name for name in self._read().told if name != LogSink.name)

    def look(self, scope: str, findings: Sequence[Finding]) -> list[Alert]:
        """Takes over what was found of everything whose key starts with `scope`: what is not found any more has ended.

        Gives the alerts that there is something to tell of. Raises UsageError for a finding outside the scope.
        """
        now_us = self._clock()
        with self._alone() as book:
            news = [_found(book, finding, now_us) for finding in findings]
            here = {finding.key for finding in findings}
            for key, alert in list(book.alerts.items()):
                if key.startswith(scope) and key not in here and alert.is_open:
                    ended = msgspec.structs.replace(
                        alert, ended_us=now_us, revision=alert.revision + 1, revised_us=now_us
                    )
                    book.alerts[key] = ended
                    news.append(ended)
            _forget(book)
        return [alert for alert in news if alert is not None]

    def tell(self, sinks: Sequence[Sink]) -> dict[str, int]:
        """Tells every sink what it has not been told; how many alerts each took. A sink that fails is asked again."""
        taken = {}
        for sink in sinks:
            book = self._read()
            known = book.told.get(sink.name, {})
            due = [alert for key, alert in book.alerts.items() if known.get(key, 0) < alert.revision]
            taken[sink.name] = self._tell(sink, due)
        return taken

    def _tell(self, sink: Sink, due: Sequence[Alert]) -> int:
        for number, alert in enumerate(due):
            try:
                sink.send(alert)
            except SinkFailed as error:
                _log.warning("%s: %d alerts wait: %s", sink.name, len(due) - number, error)
                return number
            with self._alone() as book:
                book.told.setdefault(sink.name, {})[alert.finding.key] = alert.revision
        return len(due)

    def _read(self) -> _Book:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Book)
        except FileNotFoundError:
            return _Book()
        except (OSError, msgspec.MsgspecError) as error:
            raise FeatureStoreError(
                f"{self._path}: the alerts cannot be read: {error}; move the file away to begin anew"
            ) from error

    @contextmanager
    def _alone(self) -> Iterator[_Book]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_name(f".{self._path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            book = self._read()
            yield book
            replace_file(self._path, msgspec.json.encode(book))


def _found(book: _Book, finding: Finding, now_us: int) -> Alert | None:
    """The alert of a finding where there is something to tell of; None where it was told already."""
    known = book.alerts.get(finding.key)
    if known is None or not known.is_open:
        revision = 1 if known is None else known.revision + 1
        alert = Alert(finding=finding, first_us=now_us, last_us=now_us, count=1, revision=revision, revised_us=now_us)
        book.alerts[finding.key] = alert
        return alert
    worse = finding.severity == "critical" and known.finding.severity != "critical"
    news = worse or now_us - known.revised_us >= AGAIN_US
    alert = msgspec.structs.replace(
        known,
        finding=finding,
        last_us=now_us,
        count=known.count + 1,
        revision=known.revision + news,
        revised_us=now_us if news else known.revised_us,
    )
    book.alerts[finding.key] = alert
    return alert if news else None


def _forget(book: _Book) -> None:
    """Ended alerts beyond those that are kept go, and what was told of them."""
    ended = sorted((alert.last_us, key) for key, alert in book.alerts.items() if not alert.is_open)
    for _, key in ended[:-KEPT]:
        del book.alerts[key]
        for known in book.told.values():
            known.pop(key, None)
