"""What does a plan hold for who looks for a feature? One entry a view, with its contract and where that is kept."""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from featurestore.contracts import contract_of
from featurestore.monitor.status import FeatureHealth
from featurestore.plan import OnDemandView, Plan, View, is_personal
from validation.reach import Reach
from validation.status import Kept, status


class FeatureEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One feature."""

    name: str
    dtype: str
    made: str
    """How it comes to be: a column of the source, a window, or a function."""
    health: str
    reasons: tuple[str, ...]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One view."""

    view: str
    kind: Literal["latest", "windowed", "on demand"]
    version: int
    owner: str
    description: str
    personal: bool
    """Whether reading it needs a grant."""
    keys: dict[str, str]
    """Join key -> Feast type."""
    source: str
    topic: str
    contract: str
    """Name and version; empty where there is none."""
    kept: tuple[Kept, ...]
    """The contract at each boundary that the source's rows cross."""
    services: tuple[str, ...]
    features: tuple[FeatureEntry, ...]
    tags: dict[str, str]


def entries(plan: Plan, health: Sequence[FeatureHealth] = ()) -> list[Entry]:
    """Every view of the plan, by name; without any health told, each feature's is unknown."""
    known = {(each.view, each.feature): each for each in health}
    kept = status(plan.contracts, msgspec.json.decode(plan.encode(), type=Reach))
    views: list[View | OnDemandView] = [*plan.views.values(), *plan.on_demand.values()]
    return [_entry(plan, view, known, kept) for view in sorted(views, key=lambda each: each.name)]


def _entry(
    plan: Plan, view: View | OnDemandView, known: Mapping[tuple[str, str], FeatureHealth], kept: Sequence[Kept]
) -> Entry:
    contract = contract_of(plan.contracts.values(), view.source) if isinstance(view, View) else None
    return Entry(
        view=view.name,
        kind=view.kind if isinstance(view, View) else "on demand",
        version=view.version if isinstance(view, View) else 0,
        owner=view.owner,
        description=view.description,
        personal=is_personal(view.tags),
        keys={key.name: key.dtype for key in view.join_keys} if isinstance(view, View) else {},
        source=view.source.name if isinstance(view, View) else "",
        topic=view.source.topic.name if isinstance(view, View) and view.source.topic else "",
        contract=f"{contract.name} {contract.version}" if contract else "",
        kept=tuple(each for each in kept if contract and each.source == contract.source and each.applies),
        services=tuple(
            service.name
            for service in plan.services.values()
            if any(each.view == view.name for each in service.projections)
        ),
        features=tuple(
            FeatureEntry(
                name=field.name,
                dtype=field.dtype,
                made=_made(view, field.name),
                health=known[view.name, field.name].health if (view.name, field.name) in known else "unknown",
                reasons=known[view.name, field.name].reasons if (view.name, field.name) in known else (),
            )
            for field in view.features
        ),
        tags=view.tags,
    )


def _made(view: View | OnDemandView, feature: str) -> str:
    if isinstance(view, OnDemandView):
        return f"function {view.function.name}"
    stored = {name: column for column, name in view.source.field_mapping.items()}
    for each in view.aggregations:
        if each.feature == feature:
            span = "all time" if each.window_us is None else _span(each.window_us)
            return f"{each.function} of {stored.get(each.column, each.column)} over {span}"
    return f"column {stored.get(feature, feature)}"


def _span(us: int) -> str:
    """A duration in the largest unit that divides it.

    >>> _span(3_600_000_000), _span(7 * 86_400_000_000)
    ('1 h', '7 d')
    """
    for unit, size in (("d", 86_400_000_000), ("h", 3_600_000_000), ("min", 60_000_000), ("s", 1_000_000)):
        if us % size == 0:
            return f"{us // size} {unit}"
    return f"{us} us"
