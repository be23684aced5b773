"""Who reads on in Kafka, for a version that is being built, where the event log ended?"""

import os
import secrets
from collections.abc import Callable
from functools import partial

from featurestore.clock import Clock
from featurestore.config import Settings
from featurestore.plan import Plan, View
from streaming.backfill import Builder, Standing, chase, hand_over, standings
from streaming.claim_record import ClaimRecord
from streaming.cluster import kafka_source
from streaming.commit import ShardStore
from streaming.options import SCHEMA_REGISTRY
from streaming.schema_registry import registry_of
from streaming.source.records import TopicPartition
from streaming.worker import Worker


class Chaser:
    """A consumer of its own over the topic of the version, and over that of its replayed events once there is one."""

    def __init__(
        self, settings: Settings, plan: Plan, built: View, *, store: ShardStore, record: ClaimRecord, clock: Clock
    ) -> None:
        self._settings, self._plan, self._built = settings, plan, built
        self._store, self._record, self._clock = store, record, clock
        self._open()

    def _open(self) -> None:
        beside = f"backfill-{self._built.name}-{self._built.version}"
        self._source, self._appeared = kafka_source(self._settings, self._plan, [self._built], None, beside=beside)
        self._worker = Worker(
            self._source,
            self._store,
            (),
            self._plan,
            views=(self._built,),
            record=self._record,
            clock=self._clock,
            new_token=lambda: secrets.token_hex(8),
            decides=False,
            registry=registry_of(os.environ.get(SCHEMA_REGISTRY), self._settings.schemas),
        )

    def live(self) -> tuple[TopicPartition, ...]:
        """The partitions that there are now."""
        assert self._built.source.topic is not None  # only such are built
        return self._source.partitions_of(self._built.source.topic.name)

    def overtake(self, read: View, builder: Builder, stop: Callable[[], bool]) -> bool:
        """Read until the version has passed the one that is read, everywhere; False where it was stopped before."""
        while chase(self._worker, self._standings(read), stop):
            if not self._appeared():
                return True
            # A first event was replayed: its partitions are part of what is read, and are to be of this.
            self._worker.leave()
            self._open()
            builder.announce(self.live())
        self._worker.leave()
        return False

    def _standings(self, read: View) -> Callable[[], tuple[Standing, ...]]:
        return partial(standings, self._store, self._source, self._plan, self._built, read)

    def hand_over(self, stop: Callable[[], bool]) -> None:
        """Keep the version current until a worker has taken it over, or `stop` says so."""
        hand_over(self._worker, stop)

    def close(self) -> None:
        """Leave the group."""
        self._source.close()
