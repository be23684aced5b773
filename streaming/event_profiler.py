"""When are a deployment's accepted events profiled, and whose?

A worker looks every minute or so, on a thread of its own, after the events of the partitions that it holds, and once
more before it ends; the command does all at once. No commit waits for it. What fails is logged and tried again the next
time: the events are in their files, and which of them are profiled is what the profiles' names say.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Event
from typing import Any, Final

import msgspec

from featurestore.errors import ViewsFailed, failing
from featurestore.event_profiles import EventProfiles, Profiled
from featurestore.plan import View, is_personal
from featurestore.repeated import Failed, attempt, nobody, repeated
from streaming.event_columns import by_topic
from streaming.judged import producer_name
from streaming.source.records import TopicPartition
from streaming.source.replayed import is_replay
from validation.errors import PlatformError
from validation.place import Place
from validation.profile.store import ProfileStore

_NAME: Final = "profiling"
EVERY_S: Final = 60.0
RESTS: Final = 4
"""How many times as long as it works the thread rests."""
LEAVE_S: Final = 5.0
"""A worker that ends takes so long at most for the last events; what is left is the next one's."""


class ProfiledTopic(msgspec.Struct, frozen=True):
    """What was done of one topic's events."""

    topic: str
    events: int
    written: int
    deleted: int


class EventProfiler:
    """Profiles the events of the views' topics."""

    def __init__(
        self, event_log: Place, store: ProfileStore, views: Sequence[View], segments: Mapping[str, Sequence[str]]
    ) -> None:
        """`segments` names the columns of each view whose values are cohorts, as the view calls them.

        Topics that a view of personal data reads are not profiled.
        """
        self._topics = {
            topic: EventProfiles(
                event_log / topic,
                store,
                readers,
                sorted({producer_name(view, name) for view in readers for name in segments.get(view.name, ())}),
            )
            for topic, readers in by_topic(views).items()
            if not any(is_personal(view.tags) for view in readers)
        }

    def run(
        self,
        partitions: Sequence[TopicPartition] | None = None,
        *,
        last: bool = False,
        stop: Callable[[], bool] = lambda: False,
        rest: Callable[[float], object] = lambda took_s: None,  # noqa: ARG005 - no rest
    ) -> list[ProfiledTopic]:
        """Profile what is new of these partitions, of all without them.

        Raises ViewsFailed where topics cannot be profiled, once all others are.
        Who has a topic's first partition looks after the events of former topics and of files too.
        """
        told = []
        failed: dict[str, PlatformError] = {}
        for topic, profiles in self._topics.items():
            own, first = None, False
            if partitions is not None:
                mine = [each for each in partitions if each.topic == topic]
                if not mine:
                    continue
                own = {(each.topic_id, each.partition) for each in mine}
                first = any(each.partition == 0 and not is_replay(each.topic_id) for each in mine)
            with failing(topic, failed):
                done: Profiled = profiles.run(own, strangers=first, last=last, stop=stop, rest=rest)
                told.append(ProfiledTopic(topic, done.events, done.written, done.deleted))
        if failed:
            raise ViewsFailed("profiled", failed, kind="topic")
        return told


@contextmanager
def profiling(
    profiler: Callable[[], EventProfiler | None],
    held: Callable[[], Sequence[TopicPartition]],
    *,
    every_s: float = EVERY_S,
    profiled: Callable[[str, int], object] = lambda topic, events: None,  # noqa: ARG005 - nobody counts
    failed: Failed = nobody,
) -> Iterator[None]:
    """Profile what is held, over and over, meanwhile, and all that is left in the end; 0 seconds: never.

    `profiled` is told of every pass: the topic, and how many events.
    """

    def pass_over(partitions: Sequence[TopicPartition] | None, **how: Any) -> None:
        found = profiler()
        for each in found.run(partitions, **how) if found is not None else ():
            profiled(each.topic, each.events)

    def look(stopping: Event) -> None:
        # The stream has the interpreter for most of the time: a pass in one go would be seen in its slowest events.
        pass_over(held(), stop=stopping.is_set, rest=lambda took_s: stopping.wait(RESTS * took_s))

    with repeated(_NAME, look, every_s=every_s, failed=failed):
        yield
    if every_s:
        until_s = time.monotonic() + LEAVE_S
        attempt(_NAME, lambda: pass_over(None, stop=lambda: time.monotonic() >= until_s, last=True), failed)
