"""Do `backfill`, `stream rebuild` and `stream drop` do on real processes what the chaos tests prove in one?"""

import os
import random
import subprocess
import sys
import time

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from kafka import KafkaAdminClient
from shop_deployment import PATIENCE_S, VIEW, Deployment, wider

from featurestore.config import load_settings
from featurestore.offline.event_log import ARRIVAL, read_events
from featurestore.offline.windowed import windowed_join
from featurestore.online.keys import Shard
from featurestore.online.reader import OnlineReader
from featurestore.plan import Projection
from featurestore.plan_store import load_plan_file
from featurestore.plan_users import PlanUsers
from featurestore.plan_versions import kept_in_force
from streaming import chaser, history_run
from streaming.audit import audit_shard
from streaming.commit import ShardStore
from streaming.embedded.server import EmbeddedBroker
from streaming.pipeline import AHEAD_TOLERANCE_US
from streaming.rehearsal import START_US, TOPIC, shop_event, shop_plan
from streaming.run_record import RunRecords
from streaming.source.file import digest_of
from streaming.source.kafka import KafkaSettings
from streaming.source.publisher import Publisher


@pytest.fixture
def deployment(tmp_path, online_url, store):
    with EmbeddedBroker() as broker:
        made = Deployment(tmp_path, online_url, store, str(broker.address))
        yield made
        made.publisher.close()


@pytest.mark.slow
def test_a_window_is_added_to_a_live_view(deployment):
    """Built beside it, put in force, taken over by the worker that runs, and the former version is gone."""
    deployment.produce(400)
    deployment.done("stream", "run", "--until-caught-up")
    before = deployment.plans.load()
    deployment.put(before, kept_in_force(wider(before, 2), before, lambda view: True))
    worker = deployment.start("stream", "run", "--flush-s", "0.2")
    try:
        deployment.produce(250)
        deployment.done("backfill", VIEW)
        deployment.produce(250)
    finally:
        worker.terminate()
        assert worker.wait(PATIENCE_S) == 0
    deployment.done("stream", "run", "--until-caught-up")
    deployment.audit(2)
    plan = deployment.plans.load()
    assert (plan.building, plan.retiring, plan.unused) == ({}, (), ())
    assert load_plan_file(deployment.settings.plan_path) == plan
    former = [key for key in deployment.client.keys("fs:*") if b" 11:user_orders 1 " in key]
    assert all(0 <= deployment.client.pttl(key) <= 10_000 for key in former)
    [record] = RunRecords(deployment.settings.data_dir / "backfills").all()
    assert (record.kind, record.version, record.state, record.offsets_left) == ("backfill", 2, "done", 0)
    assert record.events > 300


@pytest.mark.slow
def test_a_backfill_that_is_killed_goes_on_where_it_was(deployment):
    """Kill -9 while it folds the log, while it chases Kafka, while it hands over: given again, it ends the same."""
    deployment.produce(600)
    deployment.done("stream", "run", "--until-caught-up")
    before = deployment.plans.load()
    deployment.put(before, kept_in_force(wider(before, 2), before, lambda view: True))
    deployment.produce(150)
    records, store = RunRecords(deployment.settings.data_dir / "backfills"), ShardStore(deployment.client, lambda: 0)

    def state():
        return next((each.state for each in records.all()), None)

    moments = {
        "log": lambda: any(
            store.control(Shard("shop", VIEW, 2, each.topic_id, each.partition))
            for each in store.registered("shop", VIEW, 2)
        ),
        "chase": lambda: state() == "chase",
        "hand-over": lambda: state() == "hand-over",
    }
    killed = []
    users = PlanUsers(deployment.client, "shop", lambda: round(time.time() * 1_000_000))
    users.report("stream elsewhere 1", before.version, holds_s=600)  # a worker that takes nothing over
    for come in moments.values():
        run = deployment.start("backfill", VIEW)
        deadline = time.monotonic() + PATIENCE_S
        while not come():
            assert run.poll() is None
            assert time.monotonic() < deadline
        run.kill()
        run.wait()
        killed.append(state())
    assert "done" not in killed
    users.leave("stream elsewhere 1")
    worker = deployment.start("stream", "run", "--flush-s", "0.2")
    try:
        deployment.produce(100)
        deployment.done("backfill", VIEW, "--wait-s", "0")
    finally:
        worker.terminate()
        assert worker.wait(PATIENCE_S) == 0
    deployment.done("stream", "run", "--until-caught-up")
    deployment.audit(2)
    assert deployment.plans.load().building == {}


def test_a_backfill_waits_for_nobody_where_nobody_runs(deployment):
    """No worker is there to take the version over, and no reader to go over to it: it ends when it is built."""
    deployment.produce(300)
    deployment.done("stream", "run", "--until-caught-up")
    before = deployment.plans.load()
    deployment.put(before, kept_in_force(wider(before, 2), before, lambda view: True))
    began = time.monotonic()
    deployment.done("backfill", VIEW)
    assert time.monotonic() - began < 20  # it took 42 s, of which it waited 40
    plan = deployment.plans.load()
    assert (plan.views[VIEW].version, plan.building, plan.retiring, plan.unused) == (2, {}, (), ())
    assert "version 1 dropped" in (deployment.repo.parent / "log").read_text()


@pytest.mark.slow
def test_a_backfill_says_for_whom_it_waits(deployment):
    """A worker that is behind is named, first for the hand-over, then for the former version."""
    deployment.produce(300)
    deployment.done("stream", "run", "--until-caught-up")
    before = deployment.plans.load()
    deployment.put(before, kept_in_force(wider(before, 2), before, lambda view: True))
    users = PlanUsers(deployment.client, "shop", lambda: round(time.time() * 1_000_000))
    users.report("stream elsewhere 1", before.version, holds_s=8)
    deployment.done("backfill", VIEW)
    told = (deployment.repo.parent / "log").read_text()
    assert "user_orders version 2: waits for stream elsewhere 1 to take it over" in told
    assert "Traceback" not in told


def in_this_process(deployment, monkeypatch, **options):
    """The command's run, without its last step: to wait for everybody who reads the former version."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", deployment.servers)
    monkeypatch.setattr(history_run, "HAND_OVER_S", 0.0)
    settings = load_settings(deployment.repo, deployment.environ)
    run = history_run.HistoryRun(settings)
    wanted = {"from_us": None, "to_us": None, "files": (), "use_log": False, "stop": lambda: False, **options}
    assert run.backfill(VIEW, **wanted)


def test_replayed_events_are_part_of_a_backfill_from_kafka(deployment, monkeypatch):
    """Topic and replay topic, each origin once, and nothing of the event log; the worker goes on from there."""
    deployment.produce(300)
    deployment.replay(40)
    deployment.done("stream", "run", "--until-caught-up")
    deployment.audit(1, replayed=True)
    in_this_process(deployment, monkeypatch)
    deployment.audit(2, replayed=True)
    deployment.produce(100)
    deployment.done("stream", "run", "--until-caught-up")
    deployment.audit(2, replayed=True)


@pytest.mark.parametrize("use_log", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_a_first_event_that_is_replayed_meanwhile_is_not_left_out(deployment, monkeypatch, use_log):
    """Its topic appears while the next version is built: readers go over to one that has it, and is whole."""
    deployment.produce(300)
    deployment.done("stream", "run", "--until-caught-up")
    sound = chaser.chase
    chased = []

    def chase(*arguments):
        if not chased:
            deployment.replay(30)
        chased.append(arguments)
        return sound(*arguments)

    monkeypatch.setattr(chaser, "chase", chase)
    in_this_process(deployment, monkeypatch, use_log=use_log)
    assert len(chased) == 2
    deployment.done("stream", "run", "--until-caught-up")
    deployment.audit(2, replayed=True)
    listed = ShardStore(deployment.client, lambda: 0).registered("shop", VIEW, 2)
    assert {each.complete_from_us for each in listed} == {None}


def test_a_range_of_kafka_is_told_from_all_of_it(deployment, monkeypatch):
    """What arrived before `--from` is left out, and windows that reach before it are not complete."""
    arrivals = sorted(event.arrival_us for event in deployment.events[:400])
    deployment.produce(400)
    deployment.done("stream", "run", "--until-caught-up")
    in_this_process(deployment, monkeypatch, from_us=arrivals[200])
    store = ShardStore(deployment.client, lambda: 0)
    listed = store.registered("shop", VIEW, 2)
    assert {each.complete_from_us for each in listed} == {arrivals[200] + AHEAD_TOLERANCE_US}
    view = deployment.plans.load().views[VIEW]
    events = read_events(deployment.settings.event_log / TOPIC)
    late = events.filter(pc.greater_equal(events[ARRIVAL].cast(pa.int64()), arrivals[200] // 1000 * 1000))
    assert 100 < len(late) < len(events)
    for each in listed:
        shard = Shard("shop", VIEW, 2, each.topic_id, each.partition)
        stored = {key: deployment.client.get(key) for key in deployment.client.keys(f"fs:tile:{shard.tag}:*")}
        audit = audit_shard(view, shard, late, store.control(shard).offset, stored, now_us=START_US)
        assert (audit.exact, audit.compared > 3) == (True, True)


def test_kafka_is_read_to_its_end(deployment):
    """`--to` with `--kafka` is refused, and the reason is said."""
    assert deployment.start("backfill", VIEW, "--kafka", "--to", "2023-11-14T00:00:00Z").wait(PATIENCE_S) == 2
    assert "--kafka reads to the end" in " ".join((deployment.repo.parent / "log").read_text().split())


def keyed(partitions, version):
    """The shop's plan, each key in its partition of so many."""
    plan = shop_plan(keyed=True)
    view = plan.views[VIEW]
    topic = msgspec.structs.replace(view.source.topic, partitions=partitions)
    view = msgspec.structs.replace(view, version=version, source=msgspec.structs.replace(view.source, topic=topic))
    return msgspec.structs.replace(plan, digest=f"keyed {partitions}", views={VIEW: view})


@pytest.mark.nightly  # in one process: test_backfill.py
def test_a_topic_that_grew_is_keyed_again_by_its_backfill(deployment):
    """Keyed; spread when the topic has grown; keyed again under the next version, and exact to the bit."""

    def reads():
        command = [sys.executable, "-m", "featurestore.cli.main", "stream", "status", "--json"]
        command += ["--repo", str(deployment.repo)]
        told = subprocess.run(command, capture_output=True, env=deployment.environ, check=True).stdout
        [view] = [each for each in msgspec.json.decode(told)["views"] if each["role"] == "read"]
        return view["version"], view["reads"]

    before = deployment.plans.load()
    deployment.put(before, msgspec.structs.replace(keyed(2, 1), version=before.version + 1))
    deployment.produce(300)
    deployment.done("stream", "run", "--until-caught-up")
    assert reads() == (1, "keyed")
    admin = KafkaAdminClient(bootstrap_servers=deployment.servers)
    admin.create_partitions({TOPIC: 3})
    admin.close()
    deployment.publisher.close()
    deployment.publisher = Publisher(KafkaSettings(deployment.servers), TOPIC, partitions=3)
    deployment.produce(200)
    deployment.done("stream", "run", "--until-caught-up")
    assert reads() == (1, "spread")
    before = deployment.plans.load()
    wanted = msgspec.structs.replace(keyed(3, 2), version=before.version + 1)
    deployment.put(before, kept_in_force(wanted, before, lambda view: True))
    worker = deployment.start("stream", "run", "--flush-s", "0.2")
    try:
        deployment.produce(200)
        deployment.done("backfill", VIEW, "--wait-s", "0")
        deployment.produce(200)
    finally:
        worker.terminate()
        assert worker.wait(PATIENCE_S) == 0
    deployment.done("stream", "run", "--until-caught-up")
    assert reads() == (2, "keyed")
    view = deployment.plans.load().views[VIEW]
    now_us = int((time.time() + deployment.offset_s) * 1e6)
    features = tuple(field.name for field in view.features)
    served = OnlineReader(deployment.client, deployment.plans.load(), lambda: now_us).read(
        [Projection(view=VIEW, features=features)], {"user_id": list(range(20))}
    )
    expected = windowed_join(
        read_events(deployment.settings.event_log / TOPIC),
        pa.table({"user_id": list(range(20)), "at": served.columns[0].instant_us}),
        keys={"user_id": "user_id"},
        event_ts="event_timestamp",
        entity_ts="at",
        aggregations=view.aggregations,
    )
    for column in served.columns:
        assert column.values.to_pylist() == expected[column.feature].to_pylist()


def test_a_lost_store_is_rebuilt_byte_for_byte(deployment):
    """The plan from its file, tiles from the event log, the rest from Kafka: every byte is as it was."""
    deployment.produce(500)
    deployment.done("stream", "run", "--until-caught-up")
    before = deployment.tiles()
    deployment.client.flushall()
    assert deployment.start("stream", "rebuild").wait(PATIENCE_S) == 0
    deployment.done("stream", "run", "--until-caught-up")
    deployment.audit(1)
    after = deployment.tiles()
    assert after.keys() == before.keys()
    assert {key: value.rstrip(b"\0") for key, value in after.items()} == {
        key: value.rstrip(b"\0") for key, value in before.items()
    }


@pytest.mark.nightly  # it waits a minute and a half for versions that nobody reads any more
def test_a_file_of_history_becomes_part_of_the_view(deployment):
    """Events that the topic never had: judged, logged, counted once, however often the file is named."""
    deployment.produce(200)
    deployment.done("stream", "run", "--until-caught-up")
    path = deployment.repo.parent / "history.jsonl"
    ts_us = START_US - 3_600_000_000
    rows = [shop_event(random.Random(number), number, ts_us + number, 5) for number in range(50)] + [b"broken"]
    path.write_bytes(b"\n".join(rows))
    arrived_s = START_US / 1e6 - 1_800
    os.utime(path, (arrived_s, arrived_s))
    for _ in range(2):
        deployment.done("backfill", VIEW, "--file", str(path), "--wait-s", "30")
    plan = deployment.plans.load()
    view = plan.views[VIEW]
    assert (view.version, plan.building, plan.unused) == (3, {}, ())
    events = read_events(deployment.settings.event_log / TOPIC)
    topic_id = digest_of(path)
    shard = Shard("shop", VIEW, 3, topic_id, 0)
    assert ShardStore(deployment.client, lambda: 0).control(shard).offset == 51
    stored = {key: deployment.client.get(key) for key in deployment.client.keys(f"fs:tile:{shard.tag}:*")}
    audit = audit_shard(view, shard, events, 51, stored, now_us=START_US)
    assert (audit.exact, audit.compared > 3) == (True, True)
    assert sum(each == topic_id for each in events["_topic_id"].to_pylist()) == 50
    deployment.done("stream", "run", "--until-caught-up")
    listed = ShardStore(deployment.client, lambda: 0).registered("shop", VIEW, 3)
    assert sorted(each.complete_from_us is None for each in listed) == [True, True, True]
