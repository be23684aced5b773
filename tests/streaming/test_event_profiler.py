"""Do workers and the command profile the events that they accepted, each once?"""

import random
import time

import pytest

from featurestore.event_profiles import read_event_profiles
from featurestore.offline.event_log import read_events
from streaming.event_profiler import EventProfiler, profiling
from streaming.pipeline import TopicPipeline
from streaming.rehearsal import START_US, TOPIC, shop_events, shop_plan
from streaming.sinks import EventLog, RangeSink
from streaming.source.records import Batch, Record, TopicPartition
from validation.profile.store import ProfileStore

PARTITION = TopicPartition(TOPIC, "id-1", 0)


class Files:
    """A topic's event log, and what profiles it."""

    def __init__(self, folder):
        plan = shop_plan()
        self.view = plan.view("user_orders")
        self.store = ProfileStore(folder / "profiles")
        self.log = folder / "event_log"
        self.profiler = EventProfiler(self.log, self.store, [self.view], {"user_orders": ["currency"]})
        self.topic = TopicPipeline((self.view,), plan.contracts[TOPIC])
        self.sink = RangeSink(EventLog(self.log), lambda: 0)
        self.sink.open(PARTITION, 0)
        self.end = 0

    def write(self, count):
        events = list(shop_events(random.Random(self.end), count, start_us=START_US))
        records = [Record(0, self.end + n, e.key, e.value, e.arrival_us) for n, e in enumerate(events)]
        self.sink.add(self.topic.judge(Batch(TOPIC, "id-1", 0, records, self.end, self.end + count)))
        self.sink.flush(PARTITION)
        self.end += count

    def profiled(self, segment=""):
        found = read_event_profiles(self.store, self.view, 0, 2**62)
        return sum(each.rows for each in found if (each.feature, each.segment) == ("amount", segment))

    def stored(self):
        return len(read_events(self.log / TOPIC))


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def test_a_thread_profiles_what_is_held_and_the_rest_in_the_end(files):
    """Over and over, as it comes; what fails is tried again; what came last is profiled before the process ends."""
    asked, counted = [], []

    def held():
        asked.append(1)
        return [PARTITION] if len(asked) > 1 else [TopicPartition(TOPIC, "id-1", 1)]

    failing = [OSError(28, "no space left on device")]

    class Profiler:
        def run(self, *arguments, **more):
            if failing:
                raise failing.pop()
            return files.profiler.run(*arguments, **more)

    files.write(1_500)
    count = lambda topic, events: counted.append((topic, events))  # noqa: E731
    with profiling(Profiler, held, every_s=0.01, profiled=count):
        deadline = time.monotonic() + 60
        while not (files.store.folder / "event").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        files.write(7)
    assert len(asked) >= 2
    assert files.profiled() == files.stored() > 1_200
    assert {topic for topic, _ in counted} == {TOPIC}
    assert sum(events for _, events in counted) >= files.stored()
    assert sum(files.profiled(f"currency={each}") for each in ("EUR", "USD", "GBP")) == files.stored()


def test_nothing_is_profiled_where_it_is_switched_off(files):
    """0 seconds: never, not in the end either."""
    files.write(20)
    with profiling(lambda: files.profiler, lambda: [PARTITION], every_s=0):
        pass
    assert not files.store.folder.exists()


def test_a_worker_leaves_in_time(files):
    """What is left when a worker has to go is the next one's: each event still counts once."""
    files.write(3_000)
    files.profiler.run(None, last=True, stop=lambda: True)
    assert not list(files.store.paths("event"))
    files.profiler.run([PARTITION])
    assert files.profiled() == files.stored()
