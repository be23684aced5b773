"""How far are the stream's views behind? Their shards' watermarks, against the clock and what each view may lag.

A view's tag `max_staleness_s` says how old its watermark may be before the service is not ready. Views without it are
only reported: nobody said that a quiet topic is a fault.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from featurestore.clock import Clock
from featurestore.errors import StaleStore
from featurestore.online.control import CONTROL_CHECK, CONTROL_FIELDS, control_damage
from featurestore.online.keys import Shard, is_awaited, shards_key
from featurestore.online.sealed import unsealed
from featurestore.online.windowed import ShardState
from featurestore.plan import Plan, View

TAG = "max_staleness_s"


class Controls(Protocol):
    """The calls that this makes of a key-value client."""

    def mget(self, keys: Sequence[bytes], /) -> Any:
        """The values of keys, None where there is none."""
        ...

    def pipeline(self, transaction: bool = True) -> Any:  # noqa: FBT001, FBT002 - the client's signature
        """Calls that are sent together."""
        ...


@dataclass(frozen=True)
class ViewStaleness:
    """One stream view's lag."""

    staleness_s: float | None
    """How far the clock is ahead of what the slowest partition has seen; None before any event."""
    most_s: float | None
    """What the view's tag allows; None where it says nothing."""


Staleness = Mapping[str, ViewStaleness]


def staleness_of(client: Controls, clock: Clock) -> Callable[[Plan], Staleness]:
    """What looks the lag of a plan's stream views up, in two round trips; raises StoreUnavailable."""

    def look(plan: Plan) -> Staleness:
        views = [view for view in plan.views.values() if view.is_stream]
        if not views:
            return {}
        lists = client.mget([shards_key(plan.project, view.name, view.version) for view in views])
        shards = {view.name: _shards(plan.project, view, raw) for view, raw in zip(views, lists, strict=True)}
        pipeline = client.pipeline(transaction=False)
        for each in shards.values():
            for shard in each:
                pipeline.hmget(shard.control_key, [*CONTROL_FIELDS, CONTROL_CHECK])
        marks = iter([_watermark(*held) for held in pipeline.execute()])
        now_us = clock()
        return {view.name: _staleness(view, [next(marks) for _ in shards[view.name]], now_us) for view in views}

    return look


def refuse_stale(found: Staleness) -> None:
    """Raises StaleStore where a view is staler than its tag allows, or has such a tag and no event yet."""
    stale = [
        f"{name} is {'without events' if each.staleness_s is None else f'{each.staleness_s:.1f} s behind'}, "
        f"at most {each.most_s:g} s allowed"
        for name, each in found.items()
        if each.most_s is not None and (each.staleness_s is None or each.staleness_s > each.most_s)
    ]
    if stale:
        raise StaleStore(f"views are staler than they may be: {'; '.join(stale)}; see `featurestore stream status`")


def _shards(project: str, view: View, raw: bytes | None) -> list[Shard]:
    what, remedy = f"the list of shards of view {view.name!r}", "run `featurestore stream rebuild`"
    try:
        states = msgspec.json.decode(unsealed(raw, what, remedy), type=tuple[ShardState, ...]) if raw else ()
    except msgspec.MsgspecError as error:
        raise StaleStore(f"the list of shards of view {view.name!r} cannot be read: {error}") from error
    # Nobody expects news of replayed events, of a file, of the time before a topic grew.
    return [
        Shard(project, view.name, view.version, state.topic_id, state.partition)
        for state in states
        if is_awaited(state.topic_id)
    ]


def _watermark(*held: bytes | None) -> bytes | None:
    *values, check = held
    if damage := control_damage(values, check):
        raise StaleStore(
            f"a control hash of the stream cannot be believed: {damage}; run `featurestore stream rebuild`"
        )
    return values[CONTROL_FIELDS.index("watermark")]


def _staleness(view: View, marks: list[bytes | None], now_us: int) -> ViewStaleness:
    # A partition that never had an event says nothing: an empty one beside a busy one is no lag.
    seen_us = [int(mark) for mark in marks if mark]
    allowed = view.tags.get(TAG, "")
    try:
        most_s = float(allowed) if allowed else None
    except ValueError:
        # A tag that nobody can keep is not kept: it is told as a view that may not lag at all.
        most_s = 0.0
    return ViewStaleness(max(0.0, (now_us - min(seen_us)) / 1e6) if seen_us else None, most_s)
