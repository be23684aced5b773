"""Which transactions are open, and how does each one end?"""

import asyncio
import itertools
import time
from collections.abc import Callable

from streaming.embedded.codes import ErrorCode
from streaming.embedded.journal import Journal
from streaming.embedded.offsets import Committed, Offsets
from streaming.embedded.topics import Topics

_FIRST_PRODUCER_ID = 1000
_LAST_EPOCH = (1 << 15) - 2


class Transaction:
    """One transactional id: its producer now, and what its open transaction has touched."""

    def __init__(self, producer_id: int, epoch: int, timeout_s: float) -> None:
        self.producer_id = producer_id
        self.epoch = epoch
        self.timeout_s = timeout_s
        self.partitions: set[tuple[str, int]] = set()
        self.offsets: dict[str, dict[tuple[str, int], Committed]] = {}
        self.timer: asyncio.TimerHandle | None = None


class Transactions:
    """The transaction coordinator. A transaction that outlives its timeout is aborted and its producer fenced."""

    def __init__(
        self,
        topics: Topics,
        offsets: Offsets,
        journal: Journal,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 10**6,
    ) -> None:
        self._topics = topics
        self._offsets = offsets
        self._journal = journal
        self._clock_ms = clock_ms
        self._by_name: dict[str, Transaction] = {}
        self._by_producer: dict[int, Transaction] = {}
        [(_, last)] = journal.of("producer") or [((), _FIRST_PRODUCER_ID - 1)]
        self._ids = itertools.count(last + 1)
        for (_, name), (producer_id, epoch, timeout_s) in journal.of("transaction"):
            held = self._by_name[name] = Transaction(producer_id, epoch, timeout_s)
            self._by_producer[producer_id] = held

    def start(self, name: str | None, timeout_s: float, producer_id: int, epoch: int) -> tuple[ErrorCode, int, int]:
        """Producer id and epoch for a new producer; one of the same transactional id is fenced and its work aborted.

        `producer_id` and `epoch` are what the caller had before, -1 for none.
        """
        if not name:
            return ErrorCode.NONE, self._next_id(), 0
        held = self._by_name.get(name)
        if held is None:
            held = self._by_name[name] = Transaction(self._next_id(), 0, timeout_s)
            self._by_producer[held.producer_id] = held
        elif producer_id >= 0 and (producer_id, epoch) != (held.producer_id, held.epoch):
            return ErrorCode.PRODUCER_FENCED, -1, -1
        else:
            self._fence(held)
        held.timeout_s = timeout_s
        self._journal.note(("transaction", name), [held.producer_id, held.epoch, timeout_s])
        return ErrorCode.NONE, held.producer_id, held.epoch

    def find(self, name: str, producer_id: int, epoch: int) -> tuple[ErrorCode, Transaction | None]:
        """The transaction of a producer, where it is still the one in force."""
        held = self._by_name.get(name)
        if held is None or held.producer_id != producer_id:
            return ErrorCode.INVALID_PRODUCER_ID_MAPPING, None
        if epoch != held.epoch:
            return ErrorCode.INVALID_PRODUCER_EPOCH, None
        return ErrorCode.NONE, held

    def add_partition(self, held: Transaction, topic: str, partition: int) -> None:
        """The transaction will write to this partition; its timeout runs from the first one."""
        held.partitions.add((topic, partition))
        self._run_timer(held)

    def add_group(self, held: Transaction, group: str) -> None:
        """The transaction will commit offsets of this group."""
        held.offsets.setdefault(group, {})
        self._run_timer(held)

    def may_write(self, producer_id: int, epoch: int, topic: str, partition: int) -> ErrorCode:
        """Whether a transactional batch belongs to an open transaction."""
        held = self._by_producer.get(producer_id)
        if held is None:
            return ErrorCode.INVALID_PRODUCER_ID_MAPPING
        if epoch < held.epoch:
            return ErrorCode.INVALID_PRODUCER_EPOCH
        return ErrorCode.NONE if (topic, partition) in held.partitions else ErrorCode.INVALID_TXN_STATE

    def end(self, held: Transaction, *, commit: bool) -> None:
        """1. Markers in all partitions. 2. The offsets, where it commits. 3. The transaction is over."""
        for topic, partition in sorted(held.partitions):
            log = self._topics.partition(topic, partition)
            if log:
                log.end_transaction(held.producer_id, held.epoch, self._clock_ms(), commit=commit)
        if commit:
            for group, committed in held.offsets.items():
                for (topic, partition), offset in committed.items():
                    self._offsets.commit(group, topic, partition, offset)
        held.partitions = set()
        held.offsets = {}
        if held.timer:
            held.timer.cancel()
            held.timer = None

    def pending(self, group: str) -> set[tuple[str, int]]:
        """Partitions whose offsets of the group wait for a transaction's end."""
        return {each for held in self._by_name.values() for each in held.offsets.get(group, {})}

    def abort_recovered(self) -> None:
        """After a restart: no transaction can have survived the broker that coordinated it."""
        for topic in self._topics:
            for log in topic.partitions:
                for producer_id in log.open_producers():
                    held = self._by_producer.get(producer_id)
                    log.end_transaction(producer_id, held.epoch if held else 0, self._clock_ms(), commit=False)

    def close(self) -> None:
        """Stop all timers."""
        for held in self._by_name.values():
            if held.timer:
                held.timer.cancel()

    def _run_timer(self, held: Transaction) -> None:
        if held.timer is None:
            held.timer = asyncio.get_running_loop().call_later(held.timeout_s, self._fence, held)

    def _fence(self, held: Transaction) -> None:
        """Raise the epoch first, so that the abort markers carry it: what the old producer still sends is refused."""
        if held.epoch >= _LAST_EPOCH:
            del self._by_producer[held.producer_id]
            self.end(held, commit=False)
            held.producer_id, held.epoch = self._next_id(), -1
            self._by_producer[held.producer_id] = held
        held.epoch += 1
        self.end(held, commit=False)

    def _next_id(self) -> int:
        fresh: int = next(self._ids)
        self._journal.note(("producer",), fresh)
        return fresh
