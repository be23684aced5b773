"""Which cohorts of a view's rows does somebody want to see by themselves?

Tag `drift_segments`, columns separated by commas: of a view columns of its rows; of a service entity columns, as the
service names them. A service's cohorts are those of its answers and training sets, and of each view that it reads.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from featurestore.errors import DefinitionError
from featurestore.plan import Plan, Projection, View
from featurestore.topic_schema import declared_columns
from validation.errors import did_you_mean

SEGMENTS_TAG: Final = "drift_segments"


def declared_segments(tags: Mapping[str, str]) -> tuple[str, ...]:
    """The columns that the tag names.

    >>> declared_segments({"drift_segments": "origin, carrier"})
    ('origin', 'carrier')
    """
    return tuple(dict.fromkeys(filter(None, map(str.strip, tags.get(SEGMENTS_TAG, "").split(",")))))


def segments_of(plan: Plan, views: Iterable[View]) -> tuple[str, ...]:
    """The columns of these views, as the views name them, whose values are cohorts; sorted.

    Raises DefinitionError for a view's tag that names no column of it.
    """
    found: set[str] = set()
    for view in views:
        for name in declared_segments(view.tags):
            columns = _columns(view)
            if name not in columns:
                raise DefinitionError(
                    f"view {view.name!r}: tag {SEGMENTS_TAG} names {name!r}, no column of it; "
                    f"{did_you_mean(name, sorted(columns))}"
                )
            found.add(name)
        keys = [key.name for key in view.join_keys]
        for service in plan.services.values():
            wanted = set(declared_segments(service.tags))
            for projection in _read(plan, service.projections):
                if projection.view == view.name:
                    found |= {key for key in keys if projection.join_key_map.get(key, key) in wanted}
    return tuple(sorted(found))


def _columns(view: View) -> set[str]:
    """What a row of the view may have, under the view's names."""
    found = {key.name for key in view.join_keys} | {each.name for each in (*view.features, *view.columns)}
    if view.source.topic is not None:
        mapping = view.source.field_mapping
        found |= {mapping.get(each.name, each.name) for each in declared_columns(view.source.topic)}
    return found


def _read(plan: Plan, projections: Iterable[Projection]) -> Iterator[Projection]:
    """The projections of views, those that on-demand views need included."""
    for projection in projections:
        if projection.view in plan.on_demand:
            yield from plan.on_demand[projection.view].inputs
        else:
            yield projection
