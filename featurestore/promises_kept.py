"""What did the last look at promises of time and volume find? As metrics of whatever process is asked.

Looking reads sources, which no process that serves or consumes should do; whoever looks (`featurestore monitor`,
`featurestore contract timeliness`) leaves one small file for each source, and `/metrics` of the API, the workers and
the monitor show what stands there.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from validation.verdict import Outcome
from validation.whole_file import replace_file

OUTCOMES: Final[tuple[Outcome, ...]] = ("passed", "failed", "no data", "broken")


class Looked(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one source's promises."""

    source: str
    outcomes: dict[str, Outcome]
    """By promise."""
    newest_us: dict[str, int]
    """By column of instants, the newest of them; `_arrival` is when rows came."""
    looked_us: int


def keep(folder: Path, found: Iterable[Looked], *, promising: Collection[str]) -> None:
    """Replaces what is known of these sources; those that are not `promising` any more are forgotten."""
    for one in found:
        replace_file(folder / _name(one.source), msgspec.json.encode(one))
    names = {_name(source) for source in promising}
    for file in folder.glob("*.json"):
        if file.name not in names:
            file.unlink(missing_ok=True)


def kept(folder: Path) -> list[Looked]:
    """What the last looks found, by source; a file that cannot be read is as good as none."""
    found = []
    for file in folder.glob("*.json"):
        try:
            found.append(msgspec.json.decode(file.read_bytes(), type=Looked))
        except (OSError, msgspec.MsgspecError):
            continue
    return sorted(found, key=lambda one: one.source)


class PromiseMetrics(Collector):
    """Gauges of what is kept in a folder, read whenever they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def describe(self) -> Iterator[Metric]:
        """See Collector: names are as they come, a registry need not ask for them."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        return families(kept(self._folder))


def families(found: Sequence[Looked]) -> Iterator[Metric]:
    """Outcomes, ages and times of looks: of each promise one outcome is 1, the others are 0."""
    outcomes = GaugeMetricFamily(
        "featurestore_promise_outcome",
        "What became of a promise of time or volume when it was looked at",
        labels=["source", "promise", "outcome"],
    )
    ages = GaugeMetricFamily(
        "featurestore_source_age_seconds",
        "Age of the newest instant of a column when it was looked at: event time, or _arrival",
        labels=["source", "column"],
    )
    looked = GaugeMetricFamily(
        "featurestore_promises_looked_at_seconds",
        "When a source's promises were looked at, in epoch seconds",
        labels=["source"],
    )
    for one in found:
        looked.add_metric([one.source], one.looked_us / 1e6)
        for promise, became in one.outcomes.items():
            for outcome in OUTCOMES:
                outcomes.add_metric([one.source, promise, outcome], int(became == outcome))
        for column, newest_us in sorted(one.newest_us.items()):
            ages.add_metric([one.source, column], (one.looked_us - newest_us) / 1e6)
    yield from (outcomes, ages, looked)


def _name(source: str) -> str:
    return f"{quote(source, safe='')}.json"
