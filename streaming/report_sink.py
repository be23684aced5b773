"""How do producers learn what was wrong with their events? Reports into the violation store, each offset in one.

What a flush hands over becomes one report: counts and a few samples, however many events broke something. The store
keeps, in the same file and with the same write, up to which offset each partition was reported on; a crash before it
repeats the range, a crash after it does not. A worker that was overtaken by the next owner reads on from there.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import msgspec

from featurestore.clock import Clock
from featurestore.plan import Plan, View
from streaming.event_columns import by_topic
from streaming.judged import Judged
from streaming.sinks import SinkUnavailable
from streaming.source.records import TopicPartition
from validation.contract import Contract
from validation.place import Place
from validation.reach import Reach
from validation.tally import Affected, Tally, of_topic
from validation.violations import Overtaken, Stretch, ViolationStore


class Reports(msgspec.Struct, frozen=True):
    """A sink's storage that reports what was broken."""

    name: ClassVar[str] = "violations"
    reports: ViolationStore
    contracts: Mapping[str, Contract]
    """By topic; a topic without one is reported under its own name, to nobody but those who see all."""
    affected: Mapping[str, Affected]
    """By topic, what its columns reach."""
    clock: Clock

    def folder(self, topic: str) -> Place:
        """Where the hints of a topic's cursors are."""
        return self.reports.folder / "_stream" / topic

    def cursor(self, partition: TopicPartition) -> int | None:
        """See Storage: the end of the last report; what lay behind it without any violation is in the hint."""
        contract = of_topic(self.contracts.get(partition.topic), partition.topic)
        return self.reports.judged(contract.source, _origin(partition))

    def rows(self, judged: Judged) -> int:
        """What is told of single events, and one for the batch: it counts as evaluated."""
        return len(judged.rejected) + len(judged.marked) + bool(judged.batch.records)

    def size_bytes(self, judged: Judged) -> int:
        """See Storage. The events themselves are the event log's, which holds them as long."""
        return 256 * len(judged.marked) + sum(len(item.record.value or b"") for item in judged.rejected)

    def store(self, partition: TopicPartition, batches: Sequence[Judged], first: int, last: int) -> None:
        """See Storage; raises SinkUnavailable where another owner has reported on a part of it."""
        contract = batches[0].contract or self.contracts.get(partition.topic)
        tally = Tally(of_topic(contract, partition.topic))
        for judged in batches:
            count(judged, tally)
        report = tally.report(
            report_id=f"{tally.contract.source}-{_origin(partition)}",
            now_us=self.clock(),
            origin=partition.topic,
            origin_id=partition.topic_id,
            origin_partition=partition.partition,
            affected=self.affected.get(partition.topic),
        )
        if report is not None:
            try:
                self.reports.record(report, stretch=Stretch(_origin(partition), first, last + 1))
            except Overtaken as error:
                raise SinkUnavailable(str(error)) from error


def count(judged: Judged, tally: Tally) -> None:
    """Count a batch's verdicts."""
    tally.accepted(judged.offsets, judged.ts_us)
    for item in judged.rejected:
        record = item.record
        tally.set_aside(item.reason, item.detail, item.rule_ids, record.offset, item.row, item.ts_us)
    for each in judged.marked:
        tally.broke(each.rule_ids, each.record.offset, each.row)


def reached(plan: Plan, views: Sequence[View]) -> dict[str, Affected]:
    """By topic, what the columns of its events reach in a plan."""
    reach = msgspec.json.decode(plan.encode(), type=Reach)
    return {topic: _reached(reach, readers) for topic, readers in by_topic(views).items()}


def _reached(reach: Reach, readers: Sequence[View]) -> Callable[[frozenset[str] | None], tuple[str, ...]]:
    sources = sorted({view.source.name for view in readers})
    return lambda columns: tuple(dict.fromkeys(name for source in sources for name in reach.of(source, columns)))


def _origin(partition: TopicPartition) -> str:
    return f"{partition.topic_id}-{partition.partition}"
