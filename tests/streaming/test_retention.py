"""Is a sink that is about to lose events to the broker's retention told, and one that has lost some?"""

import logging
import random
import time

import msgspec
import pytest
from kafka import KafkaAdminClient
from kafka import TopicPartition as ClientPartition
from prometheus_client import CollectorRegistry

from featurestore.config import load_settings
from featurestore.online.keys import Shard
from featurestore.plan_store import PlanStore
from streaming.commit import NOT_YET, ShardStore
from streaming.rehearsal import shop_event, shop_plan
from streaming.retention import RetentionMetrics, exposures, look, watched
from streaming.sinks import EventLog, Quarantine, RangeSink
from streaming.source.kafka import KafkaSettings
from streaming.source.peek import Peeked, peek
from streaming.source.publisher import Publisher
from streaming.source.records import TopicPartition
from streaming.status import status_of
from streaming.status_page import show

PARTITION = TopicPartition("orders", "id-1", 0)
NOW_US = 1_700_000_000_000_000
HOUR_S = 3_600.0


def exposed(stored, *, beginning=0, end=100, age_s=60.0, retention_s=HOUR_S, partition=PARTITION):
    arrival_us = None if stored >= end else NOW_US - round(age_s * 1e6)
    peeked = {partition: Peeked(beginning, end, arrival_us)}
    [found] = exposures({partition: ("event_log", stored)}, peeked, {"orders": retention_s}, now_us=NOW_US)
    return found


def test_a_sink_that_keeps_up_is_not_worth_a_word():
    """It lacks what came a minute ago, or nothing at all."""
    assert exposed(99).line is None
    assert exposed(100).used == 0
    assert exposed(10, age_s=10 * HOUR_S, retention_s=None).line is None


def test_half_of_the_retention_is_said_before_anything_is_lost():
    """Which sink, how old, how long: there is as much time left as has passed."""
    found = exposed(10, age_s=HOUR_S / 2)
    assert (found.used, found.lost) == (0.5, 0)
    assert "event_log" in found.line
    assert "1800 s old" in found.line


def test_what_retention_took_is_lost_whatever_its_age():
    """The sink lacks what the broker has no more; one that never stored anything begins where the broker does."""
    found = exposed(10, beginning=25, age_s=1)
    assert (found.lost, found.used) == (15, 1.0)
    assert "15 offsets" in found.line
    assert exposed(-1, beginning=25, age_s=1).lost == 0


def test_replayed_events_are_kept_for_ever():
    """Their topic is, whatever the topic beside it keeps."""
    replayed = TopicPartition("orders", "id-1.replay", 0)
    assert exposed(10, age_s=10 * HOUR_S, partition=replayed).used == 0


@pytest.fixture
def shop(tmp_path, online_url, store, each_broker, monkeypatch):
    """A topic that keeps an hour, with events of the last 40 minutes, and the plan that reads it."""
    topic = each_broker.topic(retention_ms="3600000", message_timestamp_type="CreateTime")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", each_broker.bootstrap_servers)
    repo = tmp_path / "feature_repo"
    repo.mkdir()
    text = f"project: shop\nregistry: ../data/registry.db\nonline_store:\n  connection: {online_url}\n"
    (repo / "feature_store.yaml").write_text(text)
    plan = shop_plan(topic=topic)
    PlanStore(store, "shop").publish(plan)
    now_us = time.time_ns() // 1000
    with_settings = KafkaSettings(each_broker.bootstrap_servers)
    publisher = Publisher(with_settings, topic)
    for minutes in (40, 30, 20, 10):
        ts_us = now_us - minutes * 60_000_000
        publisher.send(b"1", shop_event(random.Random(0), minutes, ts_us, 20), timestamp_us=ts_us)
    publisher.flush()
    publisher.close()
    return load_settings(repo, {"KAFKA_BOOTSTRAP_SERVERS": each_broker.bootstrap_servers}), plan, with_settings, topic


def sinks_of(settings):
    storages = [EventLog(settings.event_log), Quarantine(settings.data_dir / "quarantine", {})]
    return [RangeSink(storage, lambda: 0) for storage in storages]


def partition_of(kafka, topic):
    admin = KafkaAdminClient(**kafka.client)
    try:
        [described] = admin.describe_topics([topic])
    finally:
        admin.close()
    return TopicPartition(topic, str(described["topic_id"]), 0)


@pytest.mark.kafka
def test_a_real_topic_is_held_against_what_is_stored(shop, store, caplog, capsys):
    """40 of 60 minutes used, then two records gone: in the log of a worker, its metrics, and `stream status`."""
    settings, plan, kafka, topic = shop
    partition, views = partition_of(kafka, topic), tuple(plan.views.values())
    sinks = sinks_of(settings)
    for sink in sinks:
        sink._move(partition, 0)

    def now():
        return look(settings, views, sinks, [partition], now_us=time.time_ns() // 1000)

    [found] = now()
    assert found.used == pytest.approx(40 / 60, abs=0.05)
    sinks[1]._move(partition, 4)
    sinks[0]._move(partition, 3)
    [found] = now()
    assert (found.sink, found.stored) == ("event_log", 3)
    assert found.used == pytest.approx(10 / 60, abs=0.05)
    admin = KafkaAdminClient(**kafka.client)
    admin.delete_records({ClientPartition(topic, 0): 4})
    admin.close()
    metrics, registry = RetentionMetrics(), CollectorRegistry()
    registry.register(metrics)
    deadline = time.monotonic() + 30
    with watched(now, metrics, every_s=0.05), caplog.at_level(logging.WARNING):
        while not metrics.found:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert "retention took 1 offsets that sink event_log has not stored" in caplog.text
    labels = {"sink": "event_log", "topic": topic, "partition": "0"}
    assert registry.get_sample_value("featurestore_stream_retention_used_ratio", labels) == 1.0
    view = msgspec.structs.replace(plan, views={"user_orders": plan.view("user_orders")})
    told = status_of(store, view, [], {}, {partition: found}, store=_listed(store, partition), now_us=NOW_US)
    assert [(each.stored, round(each.retention_used, 1)) for each in told[0].partitions] == [(3, 0.2)]
    show(told, [])
    assert "17%" in capsys.readouterr().out


def _listed(client, partition):
    store = ShardStore(client, lambda: NOW_US)
    store.register(Shard("shop", "user_orders", 1, partition.topic_id, 0), NOT_YET)
    return store


@pytest.mark.kafka
def test_peeking_finds_the_first_record_from_an_offset_on(shop):
    """Its arrival, and none at the end; a topic that is gone is left out."""
    _, _, kafka, topic = shop
    partition, gone = partition_of(kafka, topic), TopicPartition("nowhere", "id", 0)
    found = {at: peek(kafka, {partition: at, gone: 0})[partition] for at in (-1, 1, 4)}
    assert found[-1].arrival_us < found[1].arrival_us
    assert (found[4].arrival_us, found[4].beginning, found[4].end) == (None, 0, 4)
