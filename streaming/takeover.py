"""How does a worker take one shard of a partition over, and where must it not begin as if nothing had been?"""

from collections.abc import Callable

from featurestore.online.keys import Shard
from streaming.claim_record import ClaimRecord
from streaming.commit import NOT_YET, Claim, Fenced, ShardStore, StateLost
from streaming.source.records import TopicPartition


class Takeover:
    """Claims shards: those that were written before go on, those that never were begin at the topic's beginning."""

    def __init__(
        self, store: ShardStore, record: ClaimRecord, new_token: Callable[[], str], *, start_over: bool = False
    ) -> None:
        self._store = store
        self._record = record
        self._new_token = new_token
        self._start_over = start_over

    def claim(
        self,
        partition: TopicPartition,
        shard: Shard,
        beginning: int,
        end: Callable[[], int],
        *,
        plan_version: int,
        home: int | None,
    ) -> tuple[Claim, int]:
        """The claim, and from which offset on readers may take the shard for whole.

        A shard that begins is behind: until it has reached `end`, what is the topic's end now, windows would be too
        small. `home` is how many partitions the topic of a keyed view is declared to have. Raises StateLost where the
        store lost what it held of the shard.
        """
        token = self._new_token()
        claim = self._store.claim(shard, token=token, plan_version=plan_version)
        if claim is None:
            if self._store.is_dropped(shard.project, shard.view, shard.version):
                raise Fenced(
                    f"version {shard.version} of view {shard.view!r} was dropped: the plan in force has another"
                )
            known = self._record.holds(partition.topic, shard)
            if known:
                # Two workers begin together: the record is written after the state, so that it is there by now.
                claim = self._store.claim(shard, token=token, plan_version=plan_version)
            if known and claim is None and not self._start_over:
                raise StateLost(
                    f"the online store has no state of view {shard.view!r} version {shard.version} for {partition}, "
                    f"which has been written before: it lost its data. Run `featurestore stream rebuild`, which makes "
                    f"it again from the event log, or `featurestore stream run --start-over` to begin again at offset "
                    f"{beginning}, the first that the topic still has"
                )
        if claim is None:
            # From offset 0 on nothing can be missing; else the first record will tell.
            complete = 0 if beginning == 0 else None
            claim = self._store.claim(
                shard, token=token, plan_version=plan_version, start=beginning, complete_from_us=complete
            )
            assert claim is not None  # with `start`, the hash is made
            # Nothing lies in it yet: from here on it is known where the events of its keys lie.
            self._store.register(shard, NOT_YET, home=home)
        self._record.add(partition.topic, shard)
        listed = self._store.registered(shard.project, shard.view, shard.version)
        complete_from = {(entry.topic_id, entry.partition): entry.complete_from_us for entry in listed}
        if complete_from.get((shard.topic_id, shard.partition), NOT_YET) != NOT_YET:
            return claim, claim.offset
        return claim, end()
