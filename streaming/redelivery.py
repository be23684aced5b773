"""How are events that were set aside judged again, and sent again? As their stream would, through `<topic>.replay`.

What is sent is the record as it came (key, value), dated by the replay, with headers that say where it came from,
which contract accepted it, and for how many times it is judged. It goes to the partition that its own had the number
of, so that a repetition meets what it repeats (`streaming.source.replayed`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from featurestore.plan import View
from streaming.outbox import Outbox
from streaming.pipeline import TopicPipeline
from streaming.schema_registry import SchemaRegistry
from streaming.source.records import Batch, Record
from streaming.source.replayed import ACCEPTED, ATTEMPT, ORIGIN, replay_topic
from validation.contract import Contract
from validation.replay import Decision, origin_of

_AT_ONCE = 5_000


class Redelivery:
    """`validation.replay.Events` of one topic. Not shared by threads."""

    def __init__(
        self, topic: str, views: Sequence[View], outbox: Outbox, *, registry: Callable[[], SchemaRegistry | None]
    ) -> None:
        self._topic = topic
        self._views = tuple(views)
        self._outbox = outbox
        self._registry = registry

    def judge(self, rows: Sequence[Mapping[str, Any]], contract: Contract, now_us: int) -> Sequence[Decision]:
        """See Events: the verdict of the topic's own pipeline under this contract."""
        pipeline = TopicPipeline(self._views, contract, registry=self._registry())
        decisions: list[Decision] = []
        for first in range(0, len(rows), _AT_ONCE):
            some = rows[first : first + _AT_ONCE]
            records = [Record(0, number, row["key"], row["row"], now_us) for number, row in enumerate(some)]
            found = [Decision()] * len(some)
            for item in pipeline.judge(Batch(self._topic, "", 0, records, 0, len(some))).rejected:
                found[item.record.offset] = Decision(item.reason, item.detail, item.rule_ids)
            decisions += found
        return decisions

    def deliver(self, rows: Sequence[Mapping[str, Any]], contract: Contract, now_us: int) -> str:
        """See Events; raises SourceUnavailable and NotAcknowledged."""
        topic = replay_topic(self._topic)
        under = f"{contract.name} {contract.version}".encode()
        try:
            for row in rows:
                headers = (
                    (ORIGIN, origin_of(row).encode()),
                    (ACCEPTED, under),
                    (ATTEMPT, str(row["attempt"]).encode()),
                )
                self._outbox.send(
                    topic,
                    row["key"],
                    row["row"],
                    timestamp_us=now_us,
                    headers=headers,
                    like=self._topic,
                    partition=row["partition"],
                )
            self._outbox.flush()
        finally:
            self._outbox.close()
        return topic
