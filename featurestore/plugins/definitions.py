"""Which windowed features does a Feast view declare?

Plain Feast says it: `StreamFeatureView(aggregations=[Aggregation(column, function, time_window, slide_interval,
name)])` and a schema field of the aggregation's name. What Feast has no field for is said in the view's tags:

    tumbling: "true", or the features' names, separated by commas    the hop is the window itself
    FEATURE.k, FEATURE.p, FEATURE.cap, FEATURE.max_bytes             parameters of one feature
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from feast.feature_view import DUMMY_ENTITY_ID

from featurestore.aggregation.partials import check
from featurestore.aggregation.windows import check_window, default_hop_us
from featurestore.errors import DefinitionError
from featurestore.plan import Aggregation
from validation.errors import did_you_mean

_PARAMETERS = ("k", "p", "cap", "max_bytes")


def is_windowed(view: Any) -> bool:
    """Whether a Feast view's features are aggregations over windows of events."""
    return bool(getattr(view, "aggregations", None))


def feature_fields(view: Any) -> list[Any]:
    """The features of a Feast view: a stream view that comes back from the registry lists its join keys among them."""
    keys = {DUMMY_ENTITY_ID, *(field.name for field in getattr(view, "entity_columns", None) or [])}
    return [field for field in view.features if field.name not in keys]


def resolve_aggregations(view: Any, column_types: Mapping[str, str]) -> tuple[Aggregation, ...]:
    """The aggregations of a StreamFeatureView in the order of its features; `column_types` are the event's columns.

    Raises DefinitionError where an aggregation has no feature of its name or a feature no aggregation, two have one
    feature, a column is unknown, a hop does not divide its window, or a function does not suit its types.
    """
    fields = {field.name: field.dtype.to_value_type().name for field in feature_fields(view)}
    tags = dict(view.tags or {})
    found: dict[str, Aggregation] = {}
    for declared in view.aggregations:
        feature = _feature_of(view.name, declared, fields)
        if feature in found:
            raise DefinitionError(
                f"view {view.name!r}: two aggregations are named {feature!r}; give each a name of its own"
            )
        found[feature] = _resolved(view.name, declared, feature, fields[feature], column_types, tags)
    for name in fields:
        if name not in found:
            raise DefinitionError(
                f"view {view.name!r}: no aggregation makes its feature {name!r}; aggregations make {', '.join(found)}"
            )
    return tuple(found[name] for name in fields)


def _feature_of(view: str, declared: Any, fields: Mapping[str, str]) -> str:
    names = [declared.resolved_name(declared.time_window), declared.resolved_name()]
    for name in names:
        if name in fields:
            return str(name)
    raise DefinitionError(
        f"view {view!r}: {declared.function} of {declared.column!r} makes {' or '.join(dict.fromkeys(names))}, "
        f"and the schema has no field of that name; {did_you_mean(names[0], fields)}"
    )


def _resolved(
    view: str, declared: Any, feature: str, dtype: str, column_types: Mapping[str, str], tags: Mapping[str, str]
) -> Aggregation:
    if declared.column not in column_types:
        raise DefinitionError(
            f"view {view!r}: feature {feature!r} aggregates column {declared.column!r}, which its events do not have; "
            f"{did_you_mean(declared.column, column_types)}"
        )
    window_us = None if not declared.time_window else _microseconds(declared.time_window)
    aggregation = Aggregation(
        feature=feature,
        column=declared.column,
        column_dtype=column_types[declared.column],
        function=declared.function,
        dtype=dtype,
        window_us=window_us,
        hop_us=None if window_us is None else _hop_us(declared, window_us, feature, tags),
        params={name: _number(view, f"{feature}.{name}", tags) for name in _PARAMETERS if f"{feature}.{name}" in tags},
    )
    try:
        if aggregation.window_us is not None and aggregation.hop_us is not None:
            check_window(aggregation.window_us, aggregation.hop_us)
        check(aggregation)
    except DefinitionError as error:
        raise DefinitionError(f"view {view!r}: {error}") from error
    return aggregation


def _hop_us(declared: Any, window_us: int, feature: str, tags: Mapping[str, str]) -> int:
    tumbling = [name.strip() for name in tags.get("tumbling", "").split(",")]
    if feature in tumbling or tumbling == ["true"]:
        return window_us
    # Where slide_interval was not said Feast stores the window itself.
    if declared.slide_interval and declared.slide_interval != declared.time_window:
        return _microseconds(declared.slide_interval)
    return default_hop_us(window_us)


def _number(view: str, tag: str, tags: Mapping[str, str]) -> float:
    try:
        return float(tags[tag])
    except ValueError as error:
        raise DefinitionError(f"view {view!r}: its tag {tag!r} is {tags[tag]!r}, not a number") from error


def _microseconds(duration: timedelta) -> int:
    return duration // timedelta(microseconds=1)
