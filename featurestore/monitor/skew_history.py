"""What did the audits of each hour find? One small JSON file an hour and service, written whole.

An hour that is audited again, because answers or events came late, replaces what was known of it.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

import msgspec
import numpy as np

from featurestore.clock import Clock
from featurestore.errors import SourceError
from featurestore.monitor.causes import Cause
from featurestore.monitor.served import HOUR_US, read_served
from featurestore.monitor.skew import EXAMPLES, Skew, audit
from featurestore.plan import Plan
from validation.whole_file import replace_file


class Audited(msgspec.Struct, frozen=True, kw_only=True):
    """What the last audit of one service's hour found."""

    service: str
    hour_us: int
    audited_us: int
    plan_version: int
    """The plan that it was held to."""
    skews: tuple[Skew, ...]

    @property
    def compared(self) -> int:
        """Values that were compared."""
        return sum(skew.compared for skew in self.skews)

    @property
    def differing(self) -> dict[Cause, int]:
        """Values that differ, by cause."""
        found: dict[Cause, int] = {}
        for skew in self.skews:
            for cause, count in skew.differing.items():
                found[cause] = found.get(cause, 0) + count
        return found


class SkewHistory:
    """The audits below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, audited: Audited) -> None:
        """Keeps an hour's audit, in place of an earlier one."""
        path = self._place(audited.hour_us) / f"{quote(audited.service, safe='')}.json"
        replace_file(path, msgspec.json.encode(audited))

    def between(self, start_us: int, end_us: int, *, service: str | None = None) -> Iterator[Audited]:
        """The audits of the hours that begin at start <= t < end, in order; raises SourceError for a torn file."""
        for place in sorted(self._folder.glob("hour=*")):
            hour_us = int(np.datetime64(place.name.removeprefix("hour="), "us").astype(np.int64))
            if not start_us <= hour_us < end_us:
                continue
            for path in sorted(place.glob("[!.]*.json")):
                try:
                    found = msgspec.json.decode(path.read_bytes(), type=Audited)
                except (OSError, msgspec.MsgspecError) as error:
                    raise SourceError(f"{path} of the skew history cannot be read: {error}; audit again") from error
                if service is None or found.service == service:
                    yield found

    def _place(self, hour_us: int) -> Path:
        return self._folder / f"hour={np.datetime64(hour_us // HOUR_US, 'h')}"


def audit_hours(
    log: Path,
    history: SkewHistory,
    plan: Plan,
    *,
    repo: Path,
    start_us: int,
    end_us: int,
    clock: Clock,
    service: str | None = None,
) -> list[Audited]:
    """Audits the sampled answers of whole hours, keeps what it finds, and gives it, hours in order.

    Raises SourceError and UsageError where the log, a source or a definition cannot be read; the hours before are kept.
    """
    start_us, end_us = start_us // HOUR_US * HOUR_US, -(-end_us // HOUR_US) * HOUR_US
    found = []
    for hour_us in range(start_us, end_us, HOUR_US):
        by_service: dict[str, list[Skew]] = {}
        for shape, table in read_served(log, hour_us, hour_us + HOUR_US, service=service):
            by_service.setdefault(shape.service, []).extend(audit(shape, table, plan, repo=repo, hour_us=hour_us))
        for name, skews in sorted(by_service.items()):
            audited = Audited(
                service=name, hour_us=hour_us, audited_us=clock(), plan_version=plan.version, skews=merged(skews)
            )
            history.put(audited)
            found.append(audited)
    return found


def merged(skews: Iterable[Skew]) -> tuple[Skew, ...]:
    """One Skew a service, view, feature and hour: several plan versions may have served one hour."""
    found: dict[tuple[str, str, str, int], Skew] = {}
    for skew in skews:
        key = (skew.service, skew.view, skew.feature, skew.hour_us)
        before = found.get(key)
        found[key] = skew if before is None else _sum(before, skew)
    return tuple(found.values())


def _sum(one: Skew, other: Skew) -> Skew:
    causes = dict.fromkeys([*one.differing, *other.differing])
    return msgspec.structs.replace(
        one,
        compared=one.compared + other.compared,
        incomplete=one.incomplete + other.incomplete,
        differing={cause: one.differing.get(cause, 0) + other.differing.get(cause, 0) for cause in causes},
        examples={cause: (*one.examples.get(cause, ()), *other.examples.get(cause, ()))[:EXAMPLES] for cause in causes},
    )
