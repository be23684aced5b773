"""A feature repo with the shop's plan in force, its topic, and commands as processes."""

import os
import random
import subprocess
import sys
import time

import msgspec

from featurestore.config import load_settings
from featurestore.offline.event_log import read_events
from featurestore.online.keys import Shard
from featurestore.plan import Field
from featurestore.plan_store import PlanStore, write_plan_file
from streaming.audit import audit_shard
from streaming.commit import ShardStore
from streaming.rehearsal import START_US, TOPIC, shop_event, shop_events, shop_plan
from streaming.source.kafka import KafkaSettings, KafkaSource
from streaming.source.publisher import Publisher
from streaming.source.replayed import ACCEPTED, ATTEMPT, KEPT, ORIGIN, WithReplays, is_replay, replay_topic

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

    def audit(self, version, *, replayed=False):
        view = self.plans.load().views[VIEW]
        assert view.version == version
        events = read_events(self.settings.event_log / TOPIC)
        topics = [TOPIC, replay_topic(TOPIC)] if replayed else [TOPIC]
        source = WithReplays(KafkaSource(KafkaSettings(self.servers), topics, group="nobody"), topics[:-1])
        ends = source.end_offsets(source.partitions_of(TOPIC))
        source.close()
        assert len(ends) == (4 if replayed else 2)
        for partition, end in ends.items():
            shard = Shard("shop", VIEW, version, partition.topic_id, partition.partition)
            assert ShardStore(self.client, lambda: 0).control(shard).offset == end
            stored = {key: self.client.get(key) for key in self.client.keys(f"fs:tile:{shard.tag}:*")}
            audit = audit_shard(view, shard, events, end, stored, now_us=int((time.time() + self.offset_s) * 1e6))
            assert (audit.exact, audit.compared > (3 if is_replay(shard.topic_id) else 10)) == (True, True)
        listed = ShardStore(self.client, lambda: 0).registered("shop", VIEW, version)
        assert {(each.topic_id, each.partition) for each in listed} == {(p.topic_id, p.partition) for p in ends}

    def replay(self, count):
        """Events that were set aside come again, some of them twice."""
        publisher = Publisher(KafkaSettings(self.servers), replay_topic(TOPIC), partitions=2, configs=KEPT)
        for number in [*range(count), *range(0, count, 3)]:
            ts_us = START_US - 3_600_000_000 + number
            headers = ((ORIGIN, b"origin-%d" % number), (ACCEPTED, b"shop 1.0.0"), (ATTEMPT, b"2"))
            value = shop_event(random.Random(number), 10**7 + number, ts_us, 20)
            publisher.send(
                b"%d" % number, value, timestamp_us=START_US - 60_000_000, headers=headers, partition=number % 2
            )
        publisher.flush()
        publisher.close()


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
