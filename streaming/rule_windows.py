"""What do rules about many events say of the topics that a worker reads? Told as violations, and counted.

Fed with what is committed, topic by topic under the contract in force there (`validation.arrival_windows`). Nothing is
set aside: these rules observe and warn. A range of offsets is told once for ever, whoever reads it again.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Final

from featurestore.clock import Clock
from streaming.judged import Judged
from streaming.source.records import TopicPartition
from validation.arrival_windows import ROWS, WINDOW_US, ArrivalWindows, Closed, of_windows
from validation.contract import Contract
from validation.errors import PlatformError
from validation.report import report_of
from validation.tally import Affected
from validation.violations import Overtaken, Stretch, ViolationStore

_LOG: Final = logging.getLogger(__name__)


class RuleWindows:
    """The windows of all partitions of one worker; not shared by threads."""

    def __init__(
        self,
        violations: ViolationStore,
        affected: Mapping[str, Affected],
        clock: Clock,
        *,
        counted: Callable[[str, str, str], None] = lambda _topic, _rule, _outcome: None,
        window_us: int = WINDOW_US,
        rows_at_most: int = ROWS,
    ) -> None:
        """`counted` hears topic, rule and outcome of every verdict on a window."""
        self._counted = counted
        self._violations, self._affected, self._clock = violations, affected, clock
        self._window_us, self._most = window_us, rows_at_most
        self._windows: dict[TopicPartition, ArrivalWindows | None] = {}
        self._contracts: dict[TopicPartition, Contract] = {}

    def judged(self, judged: Judged) -> None:
        """Takes a committed batch. A report that cannot be kept is logged: the stream goes on."""
        partition, batch = judged.batch.source, judged.batch
        windows = self._of(partition, judged.contract)
        if windows is None:
            return
        for closed in windows.add(
            judged.events, judged.arrival_us, judged.offsets, before=batch.position_before, after=batch.position_after
        ):
            for rule in closed.verdict.rules:
                self._counted(partition.topic, rule.rule_id, rule.outcome)
            try:
                self._tell(partition, windows.contract, closed)
            except Overtaken:
                continue  # told by whoever read these offsets before
            except (PlatformError, OSError) as error:
                _LOG.warning("%s: the verdict on a window cannot be kept: %s", partition, error)

    def _of(self, partition: TopicPartition, contract: Contract | None) -> ArrivalWindows | None:
        if contract is None:
            return None
        if self._contracts.get(partition) is not contract:
            # Another contract begins with a window of its own, at the offset from which it is in force.
            if self._contracts.get(partition) != contract:
                mine = of_windows(contract)
                self._windows[partition] = (
                    None if mine is None else ArrivalWindows(mine, window_us=self._window_us, rows_at_most=self._most)
                )
            self._contracts[partition] = contract
        return self._windows[partition]

    def _tell(self, partition: TopicPartition, contract: Contract, closed: Closed) -> None:
        failed = {rule.rule_id for rule in closed.verdict.rules if rule.outcome in {"failed", "broken"}}
        if not failed:
            return
        meanings = zip(contract.rules, contract.expectations(), strict=True)
        columns = frozenset(name for rule, meaning in meanings if rule.id in failed for name in meaning.columns)
        affected = self._affected.get(partition.topic)
        origin = f"{partition.topic_id}-{partition.partition}"
        report = report_of(
            closed.verdict,
            contract,
            report_id=f"{contract.name}-{contract.version}-{origin}-{closed.first}-{closed.last}",
            now_us=self._clock(),
            boundary="event",
            origin=partition.topic,
            origin_id=partition.topic_id,
            origin_partition=partition.partition,
            origin_range=(closed.first, closed.last),
            affected=() if affected is None else affected(columns),
        )
        self._violations.record(report, stretch=Stretch(f"windows {origin}", closed.first, closed.last + 1))
