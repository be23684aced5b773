"""Settle, when a plan is put in force, from which offsets on its definitions judge events."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from featurestore.config import Settings
from featurestore.errors import ConfigurationError, UnknownName
from featurestore.plan import Plan
from streaming.cluster import kafka_source
from streaming.event_columns import by_topic
from streaming.in_force import Definitions, InForce, definitions_of
from streaming.sinks import SinkUnavailable
from streaming.source.records import SourceUnavailable, TopicPartition

_PATIENCE_MS = 5_000
_Ends = Callable[[], Mapping[TopicPartition, int]]


def settle_plan(settings: Settings, plan: Plan) -> Iterator[str]:
    """Put the plan's definitions in force at the ends that its topics have now; a line for each topic that changes.

    To be called once the plan is published: what arrives after the last line is judged by it, whether workers run,
    rest or are behind. Where no broker or no event log answers, the line says from when it is.
    """
    views = [view for view in plan.views.values() if view.source.topic is not None]
    for topic, definitions in definitions_of(plan, views).items():
        try:
            yield from _settled(settings, plan, topic, definitions)
        except (SinkUnavailable, SourceUnavailable, ConfigurationError) as error:
            yield (
                f"topic {topic!r}: {error}; what arrives is judged by plan version {plan.version} from the next "
                "poll of a worker on, and by what was in force before until then"
            )


def _settled(settings: Settings, plan: Plan, topic: str, definitions: Definitions) -> Iterator[str]:
    in_force = InForce(settings.event_log, topic)
    in_force.look()
    known = in_force.latest
    if not in_force.pending and (known is None or not definitions.replaces(known)):
        in_force.propose(definitions)
        return
    # Others may be pending, of an `apply` that met no broker: they are settled first, and these follow them.
    proposed = in_force.propose(definitions)
    with _ends_of(settings, plan, topic) as ends:
        while in_force.pending or not proposed:
            if in_force.pending:
                in_force.settle(ends())
            proposed = proposed or in_force.propose(definitions)
    yield f"topic {topic!r}: what arrives from now on is judged by plan version {plan.version}"


@contextmanager
def _ends_of(settings: Settings, plan: Plan, topic: str) -> Iterator[_Ends]:
    """Ask for the ends of all partitions of a topic and of its replays; a topic that is not there has none."""
    try:
        source, _ = kafka_source(
            settings, plan, by_topic(plan.views.values())[topic], None, request_timeout_ms=_PATIENCE_MS
        )
    except UnknownName:
        yield dict
        return
    try:
        partitions = source.partitions_of(topic)
        yield lambda: source.end_offsets(partitions)
    finally:
        source.close()
