"""How do events of files come into the event log, by the steps that all events go through?"""

from collections.abc import Callable, Sequence
from pathlib import Path

from featurestore.clock import Clock
from featurestore.config import Settings
from featurestore.errors import UsageError
from featurestore.plan import Plan
from streaming.assembly import build_sinks
from streaming.in_force import definitions_of
from streaming.source.file import FileSource
from streaming.streamed import stream_views
from streaming.verdicts import Verdicts


def ingest(
    settings: Settings,
    plan: Plan,
    view: str,
    files: Sequence[Path],
    *,
    time_column: str | None,
    clock: Clock,
    stop: Callable[[], bool],
    say: Callable[[str], object],
    warn: Callable[[str], object],
) -> None:
    """Put the events of files into the event log of a view's topic; each file once. Raises UsageError, SourceError.

    `time_column` says when an event arrived; without it that is when the file was written last.
    """
    topic = plan.view(view).source.topic
    if not files or topic is None:
        return
    if topic.message_format != "json":
        raise UsageError(f"files are read as JSON, messages of topic {topic.name!r} are {topic.message_format}")
    readers = [each for each in stream_views(plan, [topic.name]) if each not in plan.retiring]
    sinks = build_sinks(settings, plan, readers, clock=clock, flush_s=5.0, flush_rows=100_000)
    verdicts = Verdicts(settings.event_log, topic.name)
    verdicts.propose(definitions_of(plan, readers)[topic.name], only_first=True)
    for path in files:
        landed_us = path.stat().st_mtime_ns // 1000 if path.exists() else 0
        source = FileSource(path, topic=topic.name, arrival_us=landed_us, key=topic.key_column, timestamp=time_column)
        partition = source.partition
        verdicts.pin(partition.topic_id)
        source.seek(partition, min(sink.open(partition, 0) for sink in sinks))
        end = source.end_offsets([partition])[partition]
        taken = set_aside = 0
        while (batches := source.poll(0)) and not stop():
            for batch in batches:
                for [judged], _ in verdicts.judge([batch]):
                    for sink in sinks:
                        sink.add(judged)
                    taken, set_aside = taken + len(judged.events), set_aside + len(judged.rejected)
            for sink in sinks:
                sink.flush_due()
        for sink in sinks:
            sink.flush(partition)
            sink.close(partition)
        say(f"{path}: {end} events, now {taken} accepted and {set_aside} set aside")
    others = sorted(each.name for each in readers if each.name != view and each.kind == "windowed")
    if others:
        warn(f"the same events are missing in {', '.join(others)}: backfill these too")
