"""Which views must be read for a request, and under which names do their values go out?

A Selection is worked out once for each list of features or service of a Plan; requests that repeat it, nearly all,
pay a dictionary look-up.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from featurestore.errors import UsageError
from featurestore.plan import OnDemandView, Plan, Projection


@dataclass(frozen=True, kw_only=True)
class Output:
    """One column of the answer."""

    name: str
    dtype: str
    view: str
    """The name the view goes by in this request."""
    feature: str
    column: int
    """Which column of the online result holds it; -1 where an on-demand view computes it."""


@dataclass(frozen=True, kw_only=True)
class Computation:
    """An on-demand view and where the columns of its function come from."""

    name: str
    """The name the view goes by in this request."""
    view: OnDemandView
    inputs: tuple[tuple[str, int], ...]
    """(column of the function, column of the online result): each input as `feature` and as `view__feature`."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What one kind of request reads, computes and answers."""

    reads: tuple[Projection, ...]
    computations: tuple[Computation, ...]
    outputs: tuple[Output, ...]
    join_keys: dict[str, str]
    """Entity column -> Feast type; echoed in the answer."""
    request: dict[str, str]
    """Request column of on-demand views -> Feast type."""


def select(plan: Plan, features: Iterable[str], service: str | None, *, full_feature_names: bool) -> Selection:
    """The Selection of feature references ("view:feature") or of a feature service.

    Features keep the order they are asked for in. Raises UnknownName, and UsageError where nothing is asked for or two
    features would go out under one name.
    """
    projections = _asked(plan, list(features), service)
    computed = [projection for projection in projections if projection.view in plan.on_demand]
    stored = [projection for projection in projections if projection.view not in plan.on_demand]
    inputs = [each for projection in computed for each in plan.on_demand[projection.view].inputs]
    reads = _merged([*stored, *inputs])
    places = _places(reads)
    outputs = [
        Output(
            name=f"{projection.name}__{feature}" if full_feature_names else feature,
            dtype=_dtype(plan, projection.view, feature),
            view=projection.name,
            feature=feature,
            column=places.get((projection.name, feature), -1) if projection in stored else -1,
        )
        for projection in projections
        for feature in projection.features
    ]
    join_keys = {
        projection.join_key_map.get(key.name, key.name): key.dtype
        for projection in reads
        for key in plan.view(projection.view).join_keys
    }
    _refuse_collisions(outputs, join_keys)
    return Selection(
        reads=reads,
        computations=tuple(_computation(each.name, plan.on_demand[each.view], places) for each in computed),
        outputs=tuple(outputs),
        join_keys=join_keys,
        request={field.name: field.dtype for each in computed for field in plan.on_demand[each.view].request},
    )


def _asked(plan: Plan, features: list[str], service: str | None) -> tuple[Projection, ...]:
    if service is not None:
        if features:
            raise UsageError("both `features` and `feature_service` are given; give one of them")
        return plan.service(service).projections
    if not features:
        raise UsageError("no features: give `features` (a list of view:feature) or `feature_service`")
    return plan.projections(features)


def _dtype(plan: Plan, view: str, feature: str) -> str:
    on_demand = plan.on_demand.get(view)
    if on_demand is None:
        return plan.view(view).feature(feature).dtype
    return next(field.dtype for field in on_demand.features if field.name == feature)


def _merged(projections: Iterable[Projection]) -> tuple[Projection, ...]:
    """The same view under the same name and keys is read once, with all its features."""
    found: dict[tuple[str, str, tuple[tuple[str, str], ...]], dict[str, None]] = {}
    for projection in projections:
        key = (projection.view, projection.alias, tuple(sorted(projection.join_key_map.items())))
        found.setdefault(key, {}).update(dict.fromkeys(projection.features))
    merged = tuple(
        Projection(view=view, alias=alias, join_key_map=dict(keys), features=tuple(features))
        for (view, alias, keys), features in found.items()
    )
    names = [projection.name for projection in merged]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"view name {twice!r} stands for two different reads; give one another name (with_name)")
    return merged


def _places(reads: Iterable[Projection]) -> dict[tuple[str, str], int]:
    """Where the columns of the online result will be: in the order of the reads and of their features."""
    pairs = [(projection.name, feature) for projection in reads for feature in projection.features]
    return {pair: place for place, pair in enumerate(pairs)}


def _computation(name: str, view: OnDemandView, places: dict[tuple[str, str], int]) -> Computation:
    inputs: dict[str, int] = {}
    for projection in view.inputs:
        for feature in projection.features:
            inputs[feature] = inputs[f"{projection.view}__{feature}"] = places[projection.name, feature]
    return Computation(name=name, view=view, inputs=tuple(inputs.items()))


def _refuse_collisions(outputs: list[Output], join_keys: dict[str, str]) -> None:
    taken: dict[str, str] = dict.fromkeys(join_keys, "the entity columns")
    for output in outputs:
        if output.name in taken:
            raise UsageError(
                f"feature name {output.name!r} comes from {taken[output.name]} and from view {output.view!r}; "
                "ask once, or with full_feature_names"
            )
        taken[output.name] = f"view {output.view!r}"
