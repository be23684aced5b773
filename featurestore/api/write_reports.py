"""What did rows that were written through the API break? Told as violations, gathered before they are.

A write that is refused is told to its caller at once; here it is kept for those who look after its contract, folded
like every other violation. What is gathered is told every few seconds, so that a flood of wrong writes does not become
one of files; it is counts and a few samples, however many rows there are.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec

from featurestore.api.again import Served
from featurestore.clock import Clock
from featurestore.plan import Plan, View
from validation.contract import Contract
from validation.instant import to_us
from validation.reach import Reach
from validation.report import ViolationReport
from validation.tally import Tally

REPORT_AGE_US: Final = 5_000_000


@dataclass(frozen=True, eq=False)
class WrittenRows:
    """Rows of one request that a contract was asked about."""

    view: View
    contract: Contract
    """The rules that were asked."""
    rows: Sequence[Mapping[str, Any]]
    broken: Sequence[tuple[str, ...]]
    """The ids of the rules that each row breaks."""
    event: str
    """The column of event times."""


class WriteReports:
    """What was gathered of all writes of one process; safe among threads. A Look that looks at no answers."""

    name = "writes"

    def __init__(self, record: Callable[[ViolationReport], object], clock: Clock, *, writer: str) -> None:
        """`writer` is this process's name, so that reports of two workers are two."""
        self._record, self._clock, self._writer = record, clock, writer
        self._held: dict[tuple[str, int], tuple[Plan, View, Tally]] = {}
        self._since_us = clock()
        self._gathering = threading.Lock()

    def judged(self, plan: Plan, written: WrittenRows) -> None:
        """Gathers the verdicts on a request's rows."""
        times = [at for row in written.rows if (at := to_us(row[written.event])) is not None]
        with self._gathering:
            key = (written.view.name, plan.version)
            if key not in self._held:
                self._held[key] = (plan, written.view, Tally(written.contract))
            tally = self._held[key][2]
            tally.written(len(written.rows), times)
            for number, (row, rule_ids) in enumerate(zip(written.rows, written.broken, strict=True)):
                if rule_ids:
                    tally.broke(rule_ids, number, row)

    def share(self, plan: Plan, service: str | None) -> float:  # noqa: ARG002 - the protocol's signature
        """See Look: no answers."""
        return 0.0

    def look(self, served: Served) -> None:
        """See Look."""

    def rest(self) -> None:
        """See Look."""
        if self._clock() - self._since_us >= REPORT_AGE_US:
            self.finish()

    def finish(self) -> None:
        """See Look: tell what was gathered."""
        with self._gathering:
            held, self._held = self._held, {}
            now_us = self._since_us = self._clock()
        for plan, view, tally in held.values():
            report = tally.report(
                report_id=f"{tally.contract.name}-{view.name}-{self._writer}-{now_us}",
                now_us=now_us,
                boundary="online_write",
                origin=f"writes to view {view.name}",
                affected=partial(msgspec.json.decode(plan.encode(), type=Reach).of, view.source.name),
                action="refused: of those requests nothing was written",
            )
            if report is not None:
                self._record(report)
