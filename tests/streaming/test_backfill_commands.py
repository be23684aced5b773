"""Do `backfill`, `stream rebuild` and `stream drop` do on real processes what the chaos tests prove in one?"""

import os
import random
import subprocess
import sys
import time

import msgspec
import pytest

from featurestore.config import load_settings
from featurestore.offline.event_log import read_events
from featurestore.online.keys import Shard
from featurestore.plan import Field
from featurestore.plan_store import PlanStore, load_plan_file, write_plan_file
from featurestore.plan_versions import kept_in_force
from streaming.audit import audit_shard
from streaming.commit import ShardStore
from streaming.embedded.server import EmbeddedBroker
from streaming.rehearsal import START_US, TOPIC, shop_event, shop_events, shop_plan
from streaming.run_record import RunRecords
from streaming.source.file import digest_of
from streaming.source.kafka import KafkaSettings, KafkaSource
from streaming.source.publisher import Publisher

VIEW = "user_orders"
PATIENCE_S = 90


class Deployment:
    """A feature repo with the shop's plan in force, its topic, and processes."""

    def __init__(self, folder, online_url, store, servers):
        self.repo = folder / "feature_repo"
        self.repo.mkdir()
        (self.repo / "feature_store.yaml").write_text(
            f"project: shop\nregistry: ../data/registry.db\nonline_store:\n  connection: {online_url}\n"
        )
        self.offset_s = START_US / 1e6 - time.time()
        self.environ = {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": servers,
            "FEATURESTORE_CLOCK_OFFSET_S": str(self.offset_s),
        }
        self.settings = load_settings(self.repo, self.environ)
        self.client = store
        self.servers = servers
        self.plans = PlanStore(store, "shop")
        self.put(None, shop_plan())
        self.publisher = Publisher(KafkaSettings(servers), TOPIC, partitions=2)
        self.events = list(shop_events(random.Random(5), 900, start_us=START_US - 20_000 * 900_000))

    def put(self, held, plan):
        self.plans.replace(held, plan)
        write_plan_file(self.settings.plan_path, plan)

    def produce(self, count):
        for event in self.events[:count]:
            self.publisher.send(event.key, event.value, timestamp_us=event.arrival_us)
        del self.events[:count]
        self.publisher.flush()

    def start(self, *command):
        with (self.repo.parent / "log").open("ab") as log:
            command = [sys.executable, "-m", "featurestore.cli.main", *command, "--repo", str(self.repo)]
            return subprocess.Popen(command, stdout=log, stderr=log, env=self.environ)

    def done(self, *command):
        assert self.start(*command).wait(PATIENCE_S) == 0, (self.repo.parent / "log").read_text()

    def tiles(self):
        return {key: self.client.get(key) for key in self.client.keys("fs:tile:*")}

    def audit(self, version):
        view = self.plans.load().views[VIEW]
        assert view.version == version
        events = read_events(self.settings.event_log / TOPIC)
        source = KafkaSource(KafkaSettings(self.servers), [TOPIC], group="nobody")
        ends = source.end_offsets(source.partitions_of(TOPIC))
        source.close()
        for partition, end in ends.items():
            shard = Shard("shop", VIEW, version, partition.topic_id, partition.partition)
            assert ShardStore(self.client, lambda: 0).control(shard).offset == end
            stored = {key: self.client.get(key) for key in self.client.keys(f"fs:tile:{shard.tag}:*")}
            audit = audit_shard(view, shard, events, end, stored, now_us=int((time.time() + self.offset_s) * 1e6))
            assert (audit.exact, audit.compared > 10) == (True, True)


@pytest.fixture
def deployment(tmp_path, online_url, store):
    with EmbeddedBroker() as broker:
        made = Deployment(tmp_path, online_url, store, str(broker.address))
        yield made
        made.publisher.close()


def wider(plan, version):
    """A view's definition with one more window."""
    view = plan.views[VIEW]
    count = view.aggregations[0]
    added = msgspec.structs.replace(count, feature="amount_count_2h", window_us=7_200_000_000)
    view = msgspec.structs.replace(
        view,
        version=version,
        aggregations=(*view.aggregations, added),
        features=(*view.features, Field(name="amount_count_2h", dtype="INT64")),
    )
    return msgspec.structs.replace(plan, version=plan.version + 1, digest="wider", views={VIEW: view})


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
    assert not [key for key in deployment.client.keys("fs:*") if b" 11:user_orders 1 " in key]
    [record] = RunRecords(deployment.settings.data_dir / "backfills").all()
    assert (record.kind, record.version, record.state, record.offsets_left) == ("backfill", 2, "done", 0)
    assert record.events > 300


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
