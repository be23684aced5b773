"""What did rows that were written through the API or Feast's SDK break? Told as violations, gathered before they are.

A write that is refused is told to its caller at once, and what a row breaks of rules that observe or warn to nobody;
here both are kept for those who look after the contract, folded like every other violation. What is gathered is told
every few seconds, so that a flood of wrong writes does not become one of files; it is counts and a few samples, however
many rows there are.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec

from featurestore.clock import Clock
from featurestore.plan import Plan, View
from validation.contract import Contract
from validation.instant import to_us
from validation.reach import Reach
from validation.report import ViolationReport
from validation.tally import Tally

REPORT_AGE_US: Final = 5_000_000
_REFUSED: Final = "refused: of requests with rows that break a rule of mode quarantine or block nothing was written"
_WRITTEN: Final = "none: the rows were written"


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
    refused: bool
    """Whether nothing of the request was written."""


class _Gathered:
    """What the rows of one view broke under one plan."""

    def __init__(self, plan: Plan, written: WrittenRows) -> None:
        self.plan, self.view = plan, written.view
        self.tally = Tally(written.contract)
        self.refused = False


class WriteReports:
    """What was gathered of all writes of one process; safe among threads. A Look that looks at no answers."""

    name = "writes"

    def __init__(self, record: Callable[[ViolationReport], object], clock: Clock, *, writer: str) -> None:
        """`writer` is this process's name, so that reports of two workers are two."""
        self._record, self._clock, self._writer = record, clock, writer
        self._held: dict[tuple[str, int], _Gathered] = {}
        self._since_us = clock()
        self._gathering = threading.Lock()

    def judged(self, plan: Plan, written: WrittenRows) -> None:
        """Gathers the verdicts on a request's rows."""
        times = [at for row in written.rows if (at := to_us(row[written.event])) is not None]
        with self._gathering:
            key = (written.view.name, plan.version)
            if key not in self._held:
                self._held[key] = _Gathered(plan, written)
            gathered = self._held[key]
            gathered.refused |= written.refused
            tally = gathered.tally
            tally.written(len(written.rows), times)
            for number, (row, rule_ids) in enumerate(zip(written.rows, written.broken, strict=True)):
                if rule_ids:
                    tally.broke(rule_ids, number, row)

    def share(self, plan: Plan, service: str | None) -> float:  # noqa: ARG002 - the protocol's signature
        """See Look: no answers."""
        return 0.0

    def look(self, served: object) -> None:
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
        for one in held.values():
            report = one.tally.report(
                report_id=f"{one.tally.contract.name}-{one.view.name}-{self._writer}-{now_us}",
                now_us=now_us,
                boundary="online_write",
                origin=f"writes to view {one.view.name}",
                affected=partial(msgspec.json.decode(one.plan.encode(), type=Reach).of, one.view.source.name),
                action=_REFUSED if one.refused else _WRITTEN,
            )
            if report is not None:
                self._record(report)
