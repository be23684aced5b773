"""Which views of a plan are kept current from topics, and from which?"""

from collections.abc import Sequence

from featurestore.errors import ConfigurationError, UnknownName
from featurestore.plan import Plan, View


def stream_views(plan: Plan, topics: Sequence[str]) -> tuple[View, ...]:
    """The plan's views of these topics, of all topics if none is named, and those versions of them that are retiring.

    Raises UnknownName and ConfigurationError.
    """
    found = {view.name: view.source.topic.name for view in plan.views.values() if view.source.topic is not None}
    for topic in topics:
        if topic not in found.values():
            raise UnknownName("topic of a stream view", topic, set(found.values()))
    served = [plan.view(name) for name, topic in sorted(found.items()) if not topics or topic in topics]
    retiring = [
        view for view in plan.retiring if view.source.topic and (not topics or view.source.topic.name in topics)
    ]
    views = (*served, *retiring)
    if not views:
        raise ConfigurationError(
            f"project {plan.project!r} has no stream views; declare a StreamFeatureView over a KafkaSource and apply"
        )
    return views
