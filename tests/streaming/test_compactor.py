"""Do workers and the command make few files of many, and is everything in them still there?"""

import random
import time

import msgspec
import pytest

from featurestore.errors import ViewsFailed
from featurestore.offline.event_log import read_events
from streaming.compactor import Compactor, compacting
from streaming.pipeline import TopicPipeline
from streaming.rehearsal import START_US, TOPIC, shop_events, shop_plan
from streaming.sinks import EventLog, Quarantine, RangeSink
from streaming.source.records import Batch, Record, TopicPartition
from validation.quarantine import read_quarantine
from validation.quarantine_compaction import compact_quarantine

PARTITION = TopicPartition(TOPIC, "id-1", 0)
LATER_S = 1e12


class Files:
    """A topic's event log and quarantine, of many small ranges."""

    def __init__(self, folder):
        self.log, self.aside = folder / "event_log", folder / "quarantine"
        self.plan = shop_plan()
        self.topic = TopicPipeline(tuple(self.plan.views.values()), self.plan.contracts[TOPIC])
        self.sinks = [
            RangeSink(s, lambda: 0) for s in (EventLog(self.log), Quarantine(self.aside, self.plan.contracts))
        ]
        for sink in self.sinks:
            sink.open(PARTITION, 0)
        self.end = 0
        self.rng = random.Random(1)

    def write(self, count, size=15):
        for _ in range(count):
            events = list(shop_events(self.rng, size, start_us=START_US))
            records = [Record(0, self.end + n, e.key, e.value, e.arrival_us) for n, e in enumerate(events)]
            judged = self.topic.judge(Batch(TOPIC, "id-1", 0, records, self.end, self.end + size))
            self.end += size
            for sink in self.sinks:
                sink.add(judged)
                sink.flush(PARTITION)

    def compactor(self):
        return Compactor(self.log, self.aside, tuple(self.plan.views.values()), self.plan.contracts)

    def held(self):
        events = read_events(self.log / TOPIC)
        kept = read_quarantine(self.aside, TOPIC)
        assert len(events) + len(kept) == self.end
        return sorted(map(repr, events.to_pylist())), kept.to_pylist(), [sink.cursor(PARTITION) for sink in self.sinks]

    def count(self):
        return sum(1 for root in (self.log, self.aside) for _ in root.rglob("*.parquet"))


@pytest.fixture
def files(tmp_path):
    found = Files(tmp_path)
    found.write(40)
    return found


def test_few_files_hold_what_many_held(files):
    """Rows, reasons and cursors are what they were; a sink goes on behind them."""
    before, many = files.held(), files.count()
    [done] = files.compactor().run([PARTITION], grace_s=0)
    assert (done.topic, done.written > 0, done.deleted > 0) == (TOPIC, True, True)
    assert files.held() == before
    assert files.count() < many / 4
    files.write(3)
    files.compactor().run(fan_in=2, grace_s=0)
    assert files.held()[2] == [files.end, files.end]
    assert files.compactor().run([TopicPartition(TOPIC, "other", 0)], grace_s=0)[0].written == 0
    assert files.compactor().run([]) == []


def test_a_thread_compacts_what_is_held_as_it_comes(files):
    """Over and over, until told to stop; what fails is tried again."""
    before = files.held()
    asked = []

    def compactor():
        asked.append(1)
        if len(asked) == 1:
            raise OSError(28, "no space left on device")
        return files.compactor()

    many = files.count()
    failed = []
    with compacting(compactor, lambda: [PARTITION], every_s=0.01, failed=failed.append):
        deadline = time.monotonic() + 30
        while len(asked) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(asked) >= 3
    assert failed == ["compaction"]
    assert files.count() != many
    assert files.held() == before


def test_quarantine_files_go_only_when_another_holds_all_their_rows(files):
    """A file that somebody added a row to since stays."""
    folder = files.aside / TOPIC
    before = files.held()[1]
    compact_quarantine(folder, fan_in=2)
    first = min(folder.glob("*-0-0-*.parquet"), key=lambda path: int(path.stem.rpartition("-")[2]))
    largest = max(folder.glob("*-0-0-*.parquet"), key=lambda path: path.stat().st_size)
    first.write_bytes(largest.read_bytes())  # it holds more rows now than its range
    smaller = sorted(folder.glob("*.parquet"), key=lambda path: path.stat().st_size)[-3]
    largest.write_bytes(smaller.read_bytes())  # and the large one no longer holds any of the others'
    _, deleted = compact_quarantine(folder, fan_in=100, now_s=LATER_S)
    assert deleted <= 1
    assert read_quarantine(files.aside, TOPIC).to_pylist() == before


def test_a_topic_that_cannot_be_compacted_starves_no_other(files):
    """Its file is torn; the topic after it is compacted, and the error names the one that was not."""
    view = files.plan.view("user_orders")
    renamed = msgspec.structs.replace(view.source.topic, name="a first topic")
    first = msgspec.structs.replace(
        view, name="first", source=msgspec.structs.replace(view.source, name="first", topic=renamed)
    )
    (files.log / TOPIC).parent.joinpath("a first topic").mkdir()
    for path in (files.log / TOPIC).rglob("*.parquet"):
        torn = files.log / "a first topic" / path.relative_to(files.log / TOPIC)
        torn.parent.mkdir(exist_ok=True)
        torn.write_bytes(path.read_bytes()[:-9])
    before, many = files.held(), files.count()
    compactor = Compactor(files.log, files.aside, (first, *files.plan.views.values()), files.plan.contracts)
    with pytest.raises(ViewsFailed, match=r"1 topic could not be compacted \(a first topic\)"):
        compactor.run(fan_in=2, grace_s=0)
    assert files.held() == before
    assert files.count() < many
