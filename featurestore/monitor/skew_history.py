"""What did the audits of each hour find? One small JSON file an hour and service, written whole.

An hour that is audited again, because answers or events came late, replaces what was known of it.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

import msgspec
import numpy as np

from featurestore.clock import Clock
from featurestore.errors import SourceError
from featurestore.monitor.causes import Cause
from featurestore.monitor.served import HOUR_US, REQUESTED, read_served
from featurestore.monitor.skew import EXAMPLES, Audit, Part, Skew, audit
from featurestore.monitor.skew_reads import Say
from featurestore.plan import Plan
from validation.errors import PlatformError
from validation.whole_file import replace_file

AT_ONCE: Final = 250_000
"""Answers whose hours are read together: some hundred bytes of memory each."""


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


class Audits(NamedTuple):
    """What an audit of hours found, hours in order, and the views that it could not read."""

    audited: list[Audited]
    failed: dict[str, PlatformError]
    """By view, why; what earlier audits found of it is kept."""


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
    say: Say = lambda line: None,  # noqa: ARG005
    at_once: int = AT_ONCE,
) -> Audits:
    """Audit the sampled answers of whole hours, and keep what is found.

    As many hours as hold `at_once` answers are read together; `say` hears how far it is. Raises SourceError where the
    log cannot be read; the hours before are kept.
    """
    start_us, end_us = start_us // HOUR_US * HOUR_US, -(-end_us // HOUR_US) * HOUR_US
    done = Audits([], {})
    parts: list[Part] = []

    def look() -> None:
        say(f"{sum(part.table.num_rows for part in parts):,} answers of {len({p.hour_us for p in parts})} hours")
        found = audit(parts, plan, repo=repo, say=say)
        done.failed.update(found.failed)
        done.audited.extend(_kept(parts, found, history, plan, clock))
        parts.clear()

    for shape, table in read_served(log, start_us, end_us, service=service):
        hour_us = int(table[REQUESTED][0].as_py()) // HOUR_US * HOUR_US
        if parts and parts[-1].hour_us != hour_us and sum(part.table.num_rows for part in parts) >= at_once:
            look()
        parts.append(Part(shape, hour_us, table))
    if parts:
        look()
    return done


def _kept(parts: Sequence[Part], found: Audit, history: SkewHistory, plan: Plan, clock: Clock) -> Iterator[Audited]:
    """The audits of these parts' hours and services, put into the history in place of earlier ones."""
    by_hour: dict[tuple[int, str], list[Skew]] = {(part.hour_us, part.shape.service): [] for part in parts}
    for skew in found.skews:
        by_hour[skew.hour_us, skew.service].append(skew)
    for (hour_us, name), skews in sorted(by_hour.items()):
        if found.failed:
            now = {(skew.view, skew.feature) for skew in skews}
            before = [each for old in history.between(hour_us, hour_us + 1, service=name) for each in old.skews]
            skews += [skew for skew in before if (skew.view, skew.feature) not in now]
        audited = Audited(
            service=name, hour_us=hour_us, audited_us=clock(), plan_version=plan.version, skews=merged(skews)
        )
        history.put(audited)
        yield audited


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
