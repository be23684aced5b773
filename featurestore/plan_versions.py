"""Which version of a windowed view is read, which one is built, and how do they change places?

A windowed view whose state would differ gets a new version. Where the one before is live, readers keep it until a
backfill has built the new one: `Plan.views` holds what is read, `Plan.building` what is built, and whatever needs
features that only the new version has waits with it. `flipped` changes places at once, in one Plan; the version that
was read is `retiring` until nobody reads it, then `unused` until its keys are gone.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec

from featurestore.errors import DefinitionError, UnknownName
from featurestore.plan import OnDemandView, Plan, Projection, Service, View, Waiting, definitions_digest

Live = Callable[[View], bool]
"""Whether a version of a view has state in the online store."""

_T = TypeVar("_T", Service, OnDemandView)
_STATE = ("kind", "join_keys", "columns", "aggregations", "transform", "partitions", "withheld")


def same_state(one: View, other: View) -> bool:
    """Whether both definitions leave the same tiles behind."""
    return all(getattr(one, name) == getattr(other, name) for name in _STATE) and _reading(one) == _reading(other)


def version_of(view: View, previous: Plan | None) -> int:
    """The version of a freshly compiled view: that of the same state, else one that no state has had."""
    if previous is None:
        return 1
    read, built = previous.views.get(view.name), previous.building.get(view.name)
    if view.kind == "latest":
        return read.version if read is not None else 1
    for known in (built, read):
        if known is not None and same_state(known, view):
            return known.version
    others = [each for each in (*previous.retiring, *previous.unused) if each.name == view.name]
    return max((each.version for each in (read, built, *others) if each is not None), default=0) + 1


def kept_in_force(desired: Plan, previous: Plan | None, live: Live) -> Plan:
    """The Plan that may come into force now: what is live stays readable as it is until its successor is built.

    Raises DefinitionError for a change that cannot be built beside what is live.
    """
    if previous is None:
        return desired
    views, building = dict(desired.views), dict[str, View]()
    for name, view in desired.views.items():
        read = previous.views.get(name)
        if read is None or read.version == view.version or "windowed" not in (read.kind, view.kind) or not live(read):
            continue
        _check(read, view)
        building[name] = view
        views[name] = msgspec.structs.replace(read, source=view.source) if _one_topic(read, view) else read
    # What was being built and is not any more: nobody ever read it.
    abandoned = [view for name, view in previous.building.items() if not _is_kept(view, (views, building))]
    draft = msgspec.structs.replace(
        desired,
        views=views,
        building=building,
        retiring=tuple(each for each in previous.retiring if each.name in views),
        # A view that left the repo takes all of its keys with it, whatever their version.
        unused=tuple(each for each in (*previous.unused, *abandoned) if each.name in views),
    )
    return _with_waiting(draft, previous)


def begun(plan: Plan, name: str, *, now_us: int) -> Plan:
    """The Plan in which a next version of a view is built: `apply`'s, or one of the definition that is read.

    Raises UnknownName, and DefinitionError for a view whose history is no windows.
    """
    view = plan.view(name)
    if name in plan.building:
        return plan
    if view.kind != "windowed" or not view.is_stream:
        raise DefinitionError(f"view {name!r} has no windows over a topic: there is no next version of it to build")
    others = [each.version for each in (*plan.retiring, *plan.unused) if each.name == name]
    fresh = msgspec.structs.replace(view, version=max([view.version, *others]) + 1)
    return _next(msgspec.structs.replace(plan, building={**plan.building, name: fresh}), now_us)


def flipped(plan: Plan, name: str, *, now_us: int) -> Plan:
    """The Plan in which the version that was built is the one that is read. Raises UnknownName where none is built."""
    if name not in plan.building:
        raise UnknownName("view that is being built", name, plan.building)
    building = dict(plan.building)
    view = building.pop(name)
    changed = msgspec.structs.replace(
        plan,
        views={**plan.views, name: view},
        building=building,
        retiring=(*plan.retiring, plan.views[name]),
        services={**plan.services, **plan.waiting.services},
        on_demand={**plan.on_demand, **plan.waiting.on_demand},
        waiting=Waiting(),
    )
    return _next(_with_waiting(changed, plan), now_us)


def retired(plan: Plan, name: str, version: int, *, now_us: int) -> Plan:
    """The Plan in which nobody keeps that version of a view current any more."""
    gone = [view for view in plan.retiring if (view.name, view.version) == (name, version)]
    return _next(
        msgspec.structs.replace(
            plan,
            retiring=tuple(view for view in plan.retiring if view not in gone),
            unused=(*plan.unused, *gone),
        ),
        now_us,
    )


def dropped(plan: Plan, name: str, version: int, *, now_us: int) -> Plan:
    """The Plan that does not know that version any more: its keys are gone."""
    unused = tuple(view for view in plan.unused if (view.name, view.version) != (name, version))
    return _next(msgspec.structs.replace(plan, unused=unused), now_us)


def _next(plan: Plan, now_us: int) -> Plan:
    changed = msgspec.structs.replace(plan, version=plan.version + 1, created_us=max(now_us, plan.created_us))
    return msgspec.structs.replace(changed, digest=definitions_digest(changed))


def _with_waiting(plan: Plan, previous: Plan) -> Plan:
    """Services and on-demand views that what is read cannot serve wait; their last version that it can stays."""
    on_demand, later_views = _split(
        plan.on_demand, previous.on_demand, lambda view: all(_has(plan, each) for each in view.inputs)
    )
    known = msgspec.structs.replace(plan, on_demand=on_demand)
    services, later = _split(
        plan.services, previous.services, lambda service: all(_has(known, each) for each in service.projections)
    )
    return msgspec.structs.replace(known, services=services, waiting=Waiting(services=later, on_demand=later_views))


def _split(
    wanted: dict[str, _T], before: dict[str, _T], served: Callable[[_T], bool]
) -> tuple[dict[str, _T], dict[str, _T]]:
    now: dict[str, _T] = {}
    later: dict[str, _T] = {}
    for name, each in wanted.items():
        if served(each):
            now[name] = each
            continue
        later[name] = each
        if name in before and served(before[name]):
            now[name] = before[name]
    return now, later


def _has(plan: Plan, projection: Projection) -> bool:
    owner = plan.on_demand.get(projection.view) or plan.views.get(projection.view)
    return owner is not None and {field.name for field in owner.features} >= set(projection.features)


def _is_kept(view: View, places: Iterable[dict[str, View]]) -> bool:
    return any(place.get(view.name) is not None and place[view.name].version == view.version for place in places)


def _check(read: View, view: View) -> None:
    if read.kind != view.kind:
        raise DefinitionError(
            f"view {view.name!r} is live as {read.kind} and would become {view.kind}: readers cannot go over from one "
            "to the other; declare a view of another name"
        )
    if _one_topic(read, view) and read.source.timestamp_field != view.source.timestamp_field:
        raise DefinitionError(
            f"view {view.name!r} is live by {read.source.timestamp_field!r} and would take its time from "
            f"{view.source.timestamp_field!r}: both versions would read one topic; declare a view of another name"
        )


def _one_topic(read: View, view: View) -> bool:
    topics = read.source.topic, view.source.topic
    return all(topic is not None for topic in topics) and len({topic.name for topic in topics if topic}) == 1


def _reading(view: View) -> tuple[object, ...]:
    """What of a source decides what ends up in the tiles."""
    source, topic = view.source, view.source.topic
    names = {column.name for column in view.columns} | {key.name for key in view.join_keys}
    mapping = sorted((old, new) for old, new in source.field_mapping.items() if new in names)
    once = topic is not None and topic.event_id_horizon_us is not None
    return (
        source.timestamp_field,
        mapping,
        topic.name if topic is not None else None,
        (topic.event_id, topic.event_id_horizon_us) if topic is not None and once else None,
        # Among how many partitions the events of a key have one; None where they may lie anywhere.
        topic.partitions if topic is not None and view.partitions == "keyed" else None,
    )
