"""Does an event that was set aside and replayed count as if it had been good, once, however often it is sent?

And do its letters reach the dead-letter topic, each at least once, whatever crashes?
"""

import itertools
import json
import random
import time

import msgspec
import pytest
import yaml
from shop_contracts import lenient, odcs
from topics import read_topic
from typer.testing import CliRunner

from featurestore.config import load_settings
from featurestore.offline.event_log import read_events
from featurestore.online.reader import OnlineReader
from featurestore.plan import Projection
from featurestore.plan_store import PlanStore, write_plan_file
from streaming import dead_letters as letters_module
from streaming.assembly import build_sinks, build_worker
from streaming.cluster import kafka_source, outbox_of
from streaming.commands import app as stream_app  # noqa: F401 - registers `quarantine replay`
from streaming.dead_letters import PREFIX, DeadLetters
from streaming.outbox import Outbox
from streaming.pipeline import TopicPipeline
from streaming.redelivery import Redelivery
from streaming.rehearsal import TOPIC, shop_contract, shop_event, shop_plan
from streaming.sinks import RangeSink, SinkUnavailable
from streaming.source import replayed as replayed_module
from streaming.source.kafka import KafkaSettings
from streaming.source.publisher import NotAcknowledged, Publisher
from streaming.source.records import Batch, Record, TopicPartition
from validation.commands import app
from validation.quarantine import read_quarantine
from validation.replay import counts, replay

pytestmark = [pytest.mark.kafka, pytest.mark.xdist_group("kafka")]
NOW_US = time.time_ns() // 1000
USERS = 7
BAD = (3, 11, 12, 40, 77)
NUMBERS = itertools.count()


def plan_of(topic, contract):
    """The shop's plan over a topic of this test's own."""
    plan = shop_plan()
    view = plan.views["user_orders"]
    source = view.source
    source = msgspec.structs.replace(source, name=topic, topic=msgspec.structs.replace(source.topic, name=topic))
    contract = msgspec.structs.replace(contract, source=topic, name=topic)
    return msgspec.structs.replace(
        plan, views={view.name: msgspec.structs.replace(view, source=source)}, contracts={topic: contract}
    )


class Deployment:
    """A repo, a topic, a store; `run` is the life of one worker that leaves when it has caught up."""

    def __init__(self, folder, client, url, broker, monkeypatch, *, contract=None, partitions=2):
        self.folder = folder / f"d{next(NUMBERS)}"
        repo = self.folder / "feature_repo"
        repo.mkdir(parents=True)
        project = f"shop{next(NUMBERS)}"
        (repo / "feature_store.yaml").write_text(
            f"project: {project}\nregistry: ../data/registry.db\nonline_store:\n  connection: {url}\n"
        )
        monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", broker.bootstrap_servers)
        self.settings = load_settings(repo, {"KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers})
        self.broker, self.client, self.topic = broker, client, broker.topic(partitions)
        plan = msgspec.structs.replace(plan_of(self.topic, contract or shop_contract()), project=project)
        self.plan, self.views = plan, tuple(plan.views.values())
        self.quarantine = self.settings.data_dir / "quarantine"
        PlanStore(client, project).publish(plan)
        write_plan_file(self.settings.plan_path, plan)

    def send(self):
        """A hundred orders of the last hour; those in BAD give money back."""
        publisher = Publisher(KafkaSettings(self.broker.bootstrap_servers), self.topic)
        rng = random.Random(5)
        for number in range(100):
            ts_us = NOW_US - 3_600_000_000 + number * 1_000_000
            order = json.loads(shop_event(rng, number, ts_us, USERS))
            if number in BAD:
                order["amount"] = -0.1 * number
            publisher.send(str(order["user_id"]).encode(), json.dumps(order).encode(), timestamp_us=ts_us)
        publisher.flush()
        publisher.close()
        return self

    def run(self, *, letters=False):
        def now_us():
            return time.time_ns() // 1000

        source, _ = kafka_source(self.settings, self.plan, self.views, None)
        outbox = outbox_of(self.settings, self.views) if letters else None
        worker = build_worker(
            self.settings,
            self.plan,
            self.views,
            source,
            build_sinks(
                self.settings, self.plan, self.views, clock=now_us, flush_s=5, flush_rows=100_000, outbox=outbox
            ),
            client=self.client,
            clock=now_us,
        )
        try:
            worker.run(lambda: False, until_caught_up=True)
            return source
        finally:
            source.close()
            if outbox is not None:
                outbox.close()

    def redelivery(self):
        return Redelivery(self.topic, self.views, outbox_of(self.settings, self.views), registry=lambda: None)

    def replay(self, contract=None):
        contract = msgspec.structs.replace(contract or lenient(), source=self.topic, name=self.topic)
        return replay(
            self.quarantine, contract, self.folder / "out", now_us=time.time_ns() // 1000, events=self.redelivery()
        )

    def values(self):
        """Every feature of every user at one instant, as its bytes."""
        reader = OnlineReader(self.client, self.plan, lambda: NOW_US + 60_000_000)
        view = self.views[0]
        projection = Projection(view=view.name, features=tuple(field.name for field in view.features))
        found = reader.read([projection], {"user_id": list(range(USERS))})
        return {each.feature: (repr(each.values.to_pylist()), each.statuses.tolist()) for each in found.columns}

    def tiles(self):
        """All tiles, as they are stored."""
        prefix = f"fs:tile:{{{len(self.plan.project)}:{self.plan.project}".encode()
        keys = [key for key in self.client.scan_iter() if key.startswith(prefix)]
        return {key: self.client.get(key) for key in keys}

    def event_log(self):
        """The files of the event log, byte by byte."""
        root = self.settings.event_log / self.topic
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.parquet")}

    def logged(self):
        """The events of the log, without where and when they came in."""
        schema = TopicPipeline(self.views, None).decoder.schema
        rows = read_events(self.settings.event_log / self.topic, schema=schema).to_pylist()
        told = [{name: value for name, value in row.items() if not name.startswith("_")} for row in rows]
        return sorted(json.dumps(row, sort_keys=True, default=str) for row in told)


@pytest.fixture
def deploy(tmp_path, store, online_url, broker, monkeypatch):
    return lambda **options: Deployment(tmp_path, store, online_url, broker, monkeypatch, **options)


@pytest.fixture
def good(deploy):
    """What there is where all of it had been good at once."""
    twin = deploy(contract=lenient()).send()
    twin.run()
    assert not read_quarantine(twin.quarantine).num_rows
    return twin


def test_replayed_events_count_as_if_they_had_been_good(deploy, good):
    """To the bit, in every window and in the event log; and in = accepted + quarantined at every step."""
    shop = deploy().send()
    shop.run()
    assert counts(shop.quarantine, shop.topic) == {"quarantined": 5, "open": 5, "accepted": 0, "discarded": 0}
    assert shop.values() != good.values()
    run = shop.replay()
    assert (run.accepted, run.rejected, run.topics) == (5, 0, (f"{shop.topic}.replay",))
    shop.run()
    assert shop.values() == good.values()
    assert shop.logged() == good.logged()
    assert counts(shop.quarantine, shop.topic) == {"quarantined": 5, "open": 0, "accepted": 5, "discarded": 0}


def test_replaying_twice_changes_nothing(deploy):
    """Neither a second replay, nor the same events sent once more after a crash: tiles and event log stay."""
    shop = deploy().send()
    shop.run()
    rows = [{**row, "attempt": 2} for row in read_quarantine(shop.quarantine, shop.topic).to_pylist()]
    shop.replay()
    shop.run()
    tiles, log = shop.tiles(), shop.event_log()
    assert tiles
    assert log
    assert shop.replay().judged == 0
    shop.redelivery().deliver(rows, lenient(), time.time_ns() // 1000)
    source = shop.run()
    assert source.repeats == len(BAD)
    assert (shop.tiles(), shop.event_log()) == (tiles, log)


def test_origins_that_nobody_remembers_would_be_caught(deploy, monkeypatch):
    """The planted fault: were repeated origins not left out, the same events sent again would count again."""
    shop = deploy().send()
    shop.run()
    rows = [{**row, "attempt": 2} for row in read_quarantine(shop.quarantine, shop.topic).to_pylist()]
    shop.replay()
    shop.run()
    tiles, log = shop.tiles(), shop.event_log()
    shop.redelivery().deliver(rows, lenient(), time.time_ns() // 1000)
    monkeypatch.setattr(replayed_module._Origins, "first", lambda self, record: True)
    shop.run()
    assert shop.tiles() != tiles
    assert shop.event_log() != log


def test_a_contract_that_still_rejects_keeps_them(deploy):
    """Under the contract in force nothing is sent; what is wrong for the pipeline is wrong for any contract."""
    shop = deploy().send()
    shop.run()
    run = shop.replay(shop_contract())
    assert (run.judged, run.rejected, run.topics) == (5, 5, ())
    assert counts(shop.quarantine, shop.topic)["open"] == 5


def test_what_is_set_aside_again_lies_in_quarantine_as_another_attempt(deploy):
    """A replayed event that the stream cannot take is a row of its own: nothing is lost between the two."""
    shop = deploy().send()
    shop.run()
    rows = read_quarantine(shop.quarantine, shop.topic).to_pylist()[:1]
    torn = [{**row, "row": b"torn", "attempt": 2} for row in rows]
    shop.redelivery().deliver(torn, lenient(), time.time_ns() // 1000)
    shop.run()
    again = [row for row in read_quarantine(shop.quarantine, shop.topic).to_pylist() if row["reason"] == "malformed"]
    assert [(row["attempt"], row["origin"], row["row"]) for row in again] == [(2, shop.topic, b"torn")]
    assert again[0]["origin_id"].endswith(".replay")


def test_the_commands_replay_events(deploy, tmp_path):
    """Under the contract in force, then under a named one; what is left is given up; a list that says so."""
    shop = deploy().send()
    shop.run()
    contracts = tmp_path / "contracts"
    contracts.mkdir()
    for contract, path in ((shop_contract(), contracts / "a.odcs.yaml"), (lenient(), tmp_path / "b.odcs.yaml")):
        path.write_text(yaml.safe_dump(odcs(contract, shop.topic)))
    options = ["--repo", str(shop.settings.repo), "--folder", str(shop.quarantine), "--contracts", str(contracts)]
    run = CliRunner()
    strict = run.invoke(app, ["quarantine", "replay", shop.topic, *options])
    assert strict.exit_code == 1, strict.output
    assert "5 rows judged, 0 accepted, 5 rejected again; 5 open" in strict.output
    named = run.invoke(app, ["quarantine", "replay", shop.topic, *options, "--contract", str(tmp_path / "b.odcs.yaml")])
    assert named.exit_code == 0, named.output
    assert f"contract {shop.topic} 1.1.0: 5 rows judged, 5 accepted, 0 rejected again; 0 open" in named.output
    assert f"{shop.topic}.replay: `featurestore stream run` takes them" in named.output
    listed = run.invoke(app, ["quarantine", "list", "--folder", str(shop.quarantine)])
    assert "nothing is in quarantine" in listed.output
    unknown = run.invoke(app, ["quarantine", "replay", "no-such", *options])
    assert "no contract of source 'no-such'" in str(unknown.exception)


def headers(record):
    return {name.removeprefix(PREFIX): value.decode() for name, value in record.headers}


def test_a_dead_letter_is_the_record_and_why(deploy, broker):
    """Key, value and headers as they were; time, reason, rules, contract and origin beside them; partitions alike."""
    shop = deploy().send()
    shop.run(letters=True)
    found = read_topic(broker, f"{shop.topic}.dead")
    rows = {(row["partition"], row["offset"]): row for row in read_quarantine(shop.quarantine).to_pylist()}
    assert len(found) == len(rows) == len(BAD)
    for record in found:
        told = headers(record)
        row = rows[int(told["partition"]), int(told["offset"])]
        assert (record.key, record.value, record.partition) == (row["key"], row["row"], row["partition"])
        assert told["topic-id"] == row["origin_id"]
        # Dated when it was set aside, an hour after its event: retention counts from there.
        assert record.timestamp * 1000 - int(told["timestamp-us"]) > 3_000_000_000
        assert (told["reason"], told["rule-ids"], told["contract-version"]) == ("contract", "amount_range", "1.0.0")
    shop.run(letters=True)
    assert len(read_topic(broker, f"{shop.topic}.dead")) == len(BAD)


def test_letters_can_be_switched_off(deploy, broker):
    """By the command, or for one topic by its tag; switched on again they begin where they ended."""
    shop = deploy().send()
    shop.run()
    topic = shop.views[0].source.topic
    for declared in ("", None):
        view = msgspec.structs.replace(
            shop.views[0],
            source=msgspec.structs.replace(
                shop.views[0].source, topic=msgspec.structs.replace(topic, dead_letters=declared)
            ),
        )
        there = letters_module.dead_letter_topics([view])
        assert there == ({} if declared == "" else {shop.topic: f"{shop.topic}.dead"})
    shop.run(letters=True)
    assert len(read_topic(broker, f"{shop.topic}.dead")) == len(BAD)


PARTITION = TopicPartition(TOPIC, "id-1", 0)
PIPELINE = TopicPipeline(tuple(shop_plan().views.values()), shop_contract())


class Post:
    """A topic that behaves: what was not flushed when the process died may be there or not; here it is not."""

    def __init__(self, kept, *, refuse=False):
        self.kept, self.waiting, self.refuse, self.partitions = kept, [], refuse, 3

    def send(self, key, value, *, timestamp_us, headers=(), partition=None):
        self.waiting.append((key, value, timestamp_us, tuple(headers), partition))

    def flush(self):
        if self.refuse:
            raise NotAcknowledged("orders.dead", len(self.waiting), len(self.waiting), "planted")
        self.kept += self.waiting
        self.waiting = []
        return len(self.kept)

    def close(self):
        self.waiting = []


def letter_sink(folder, post):
    outbox = Outbox(lambda topic, like: post)
    return RangeSink(DeadLetters(folder, outbox, {TOPIC: "orders.dead"}, {}, lambda: NOW_US), lambda: NOW_US)


def torn(first, last):
    records = [Record(0, offset, b"k", b"torn", NOW_US, (("trace", b"1"),)) for offset in range(first, last)]
    return PIPELINE.judge(Batch(TOPIC, "id-1", 0, records, first, last))


def offsets(kept):
    return [int(dict(letter[3])[PREFIX + "offset"]) for letter in kept]


@pytest.mark.parametrize("moved_first", [False, True])
def test_a_crash_before_the_acknowledgement_leaves_no_letter_out(place, monkeypatch, moved_first):
    """Written again rather than not at all; a cursor moved before its letters (the planted fault) loses them."""
    kept = []
    first = letter_sink(place, Post(kept, refuse=True))
    if moved_first:
        store = DeadLetters.store
        monkeypatch.setattr(
            DeadLetters,
            "store",
            lambda self, partition, batches, low, high: (
                first._move(partition, high + 1),
                store(self, partition, batches, low, high),
            ),
        )
    first.open(PARTITION, 0)
    first.add(torn(0, 4))
    with pytest.raises(SinkUnavailable, match="not acknowledged"):
        first.flush(PARTITION)
    second = letter_sink(place, Post(kept))
    second.add(torn(second.open(PARTITION, 0), 6))
    second.flush(PARTITION)
    assert (offsets(kept) == list(range(6))) is not moved_first


def test_a_letter_keeps_what_it_had_and_fits_its_topic(tmp_path):
    """Headers of its own stay, those that look like ours do not; what no broker takes is told without its value."""
    kept = []
    sink = letter_sink(tmp_path, Post(kept))
    sink.open(PARTITION, 0)
    large = b"x" * (letters_module.LARGEST_BYTES + 1)
    records = [
        Record(0, 0, None, large, NOW_US, (("trace", b"1"), (PREFIX + "reason", b"forged"))),
        Record(0, 1, b"k", None, NOW_US + 86_400_000_000),
        Record(0, 2, b"k", b"torn", -1),
        Record(0, 3, b"k", b"torn", NOW_US - 365 * 86_400_000_000),
    ]
    sink.add(PIPELINE.judge(Batch(TOPIC, "id-1", 0, records, 0, 4)))
    sink.flush(PARTITION)
    assert [letter[1] for letter in kept] == [None, None, b"torn", b"torn"]
    # A letter dated a year back would be gone at the broker's next look.
    assert [letter[2] for letter in kept] == [NOW_US] * 4
    first = kept[0][3]
    assert first[0] == ("trace", b"1")
    assert [value for name, value in first if name == PREFIX + "reason"] == [b"malformed"]
    assert dict(first)[PREFIX + "value-omitted-bytes"] == str(len(large)).encode()
    assert [dict(letter[3])[PREFIX + "timestamp-us"] for letter in kept[1:]] == [
        str(NOW_US + 86_400_000_000).encode(),
        b"-1",
        str(NOW_US - 365 * 86_400_000_000).encode(),
    ]
    assert {letter[4] for letter in kept} == {0}
