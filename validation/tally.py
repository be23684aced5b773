"""What did a run of events, or of rows written one request after the other, break? Counts and a few samples.

Beside the contract's rules there are some that no contract needs to state: an event can be read, has a key and a time,
is not dated ahead of its arrival. Their ids are `event_` and the reason for which such an event is set aside.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from validation.check import ARRIVAL
from validation.contract import Boundary, Contract, Rule
from validation.instant import iso
from validation.quarantine import CONTRACT
from validation.report import MASK, SAMPLES, ViolationReport, report_of
from validation.verdict import RuleVerdict, Sample, Verdict, counted

EVENT: Final = "event_"
"""How the ids of rules begin that no contract states."""
Ints = npt.NDArray[np.int64]
Affected = Callable[[frozenset[str] | None], tuple[str, ...]]
"""What columns (None: any) reach."""


class _Extent:
    """The least and the greatest of some numbers."""

    def __init__(self) -> None:
        self.edges = (0, 0)
        self._any = False

    def __bool__(self) -> bool:
        return self._any

    def add(self, *numbers: int) -> None:
        known = self.edges if self._any else numbers
        self.edges, self._any = (min(*known, *numbers), max(*known, *numbers)), True


class Tally:
    """Counts of rows one after the other; `contract` is the one of their boundary."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.evaluated = 0
        self.quarantined = 0
        self._failed: dict[str, int] = {}
        self._samples: dict[str, list[Sample]] = {}
        self._reasons: dict[str, str] = {}
        self._meanings = dict(zip((rule.id for rule in contract.rules), contract.expectations(), strict=True))
        self._masked = any(column.masked for column in contract.columns)
        self._offsets = _Extent()
        self._times = _Extent()

    def accepted(self, offsets: Ints, ts_us: Ints) -> None:
        """Counts events that were accepted, by their offsets and event times."""
        if len(offsets):
            self.evaluated += len(offsets)
            self._offsets.add(int(offsets[0]), int(offsets[-1]))
            self._times.add(int(ts_us.min()), int(ts_us.max()))

    def written(self, count: int, ts_us: Sequence[int]) -> None:
        """Counts rows that have no offsets, and their event times."""
        self.evaluated += count
        if ts_us:
            self._times.add(min(ts_us), max(ts_us))

    def broke(self, rule_ids: Sequence[str], offset: int, row: Any) -> None:
        """Notes that an event, counted already, broke rules; `row` has its columns as keys or attributes."""
        for rule_id in rule_ids:
            meaning = self._meanings.get(rule_id)
            if meaning is not None and not meaning.by_row:
                continue  # a share of many events: `validation.arrival_windows` judges it
            if meaning is None:  # of another version of the contract, which judged this event
                self._reasons[rule_id] = CONTRACT
            if self._count(rule_id):
                names = () if meaning is None else [name for name in meaning.columns if name != ARRIVAL]
                self._samples[rule_id].append(Sample(row=offset, values={name: _value(row, name) for name in names}))

    def set_aside(
        self, reason: str, detail: str, rule_ids: Sequence[str], offset: int, row: Any, ts_us: int | None
    ) -> None:
        """Counts an event that was set aside; `row` and `ts_us` are None where it could not be read."""
        self.evaluated += 1
        self.quarantined += 1
        self._offsets.add(offset)
        if ts_us is not None:
            self._times.add(ts_us)
        if reason == CONTRACT:
            self.broke(rule_ids, offset, row)
            return
        rule_id = EVENT + reason
        self._reasons[rule_id] = reason
        if self._count(rule_id):
            # What could not be read has no columns to mask: where some are personal, nothing of it is shown.
            self._samples[rule_id].append(Sample(row=offset, values={"found": MASK if self._masked else detail}))

    def _count(self, rule_id: str) -> bool:
        self._failed[rule_id] = self._failed.get(rule_id, 0) + 1
        return len(self._samples.setdefault(rule_id, [])) < SAMPLES

    def report(
        self,
        *,
        report_id: str,
        now_us: int,
        boundary: Boundary = "event",
        origin: str,
        origin_id: str = "",
        origin_partition: int | None = None,
        affected: Affected | None = None,
        action: str = "",
    ) -> ViolationReport | None:
        """The report on all that was counted, under this id and the range of offsets; None where no rule is broken."""
        unwritten = [_unwritten(rule_id, reason) for rule_id, reason in sorted(self._reasons.items())]
        rules = [rule for rule in (*self.contract.rules, *unwritten) if rule.id in self._failed]
        told = tuple(map(self._verdict, rules))
        if not told:
            return None
        verdict = Verdict(
            contract=self.contract.name,
            version=self.contract.version,
            source=self.contract.source,
            rows=self.evaluated,
            rules=told,
        )
        known = [self._meanings[each.rule_id].columns for each in told if each.rule_id in self._meanings]
        columns = frozenset(name for names in known for name in names)
        first, last = self._offsets.edges
        return report_of(
            verdict,
            self.contract,
            report_id=f"{report_id}-{first}-{last}" if self._offsets else report_id,
            now_us=now_us,
            boundary=boundary,
            origin=origin,
            origin_id=origin_id,
            origin_partition=origin_partition,
            origin_range=(first, last) if self._offsets else None,
            event_window=(iso(self._times.edges[0]), iso(self._times.edges[1])) if self._times else None,
            quarantined=self.quarantined,
            affected=() if affected is None else affected(None if unwritten else columns),
            unwritten=unwritten,
            action=action,
        )

    def _verdict(self, rule: Rule) -> RuleVerdict:
        return counted(
            rule,
            rows=self.evaluated,
            evaluated=self.evaluated,
            unexpected=self._failed[rule.id],
            mostly=1.0,
            samples=tuple(self._samples[rule.id]),
        )


def _unwritten(rule_id: str, reason: str) -> Rule:
    return Rule(
        id=rule_id,
        expectation=rule_id,
        arguments={},
        severity="critical",
        mode="quarantine",
        dimension="timeliness" if "arrival" in reason else "conformity",
        description=f"set aside: {reason.replace('_', ' ')}",
    )


def _value(row: Any, name: str) -> Any:
    return row.get(name) if isinstance(row, Mapping) else getattr(row, name, None)


def of_topic(contract: Contract | None, topic: str) -> Contract:
    """The contract as it is kept on events; an empty one where the topic has none."""
    if contract is not None:
        return contract.at("event")
    return msgspec.convert({"name": "", "version": "", "source": topic, "columns": (), "rules": ()}, Contract)
