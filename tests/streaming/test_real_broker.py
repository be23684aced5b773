"""Is the real broker of the tests one that changes nothing of what they send?"""

import time

import pytest
from apache_kafka import ApacheKafka
from brokers import KAFKA, Broker, choice
from kafka import KafkaConsumer
from kafka import TopicPartition as ClientPartition

from streaming.rehearsal import START_US
from streaming.source.kafka import KafkaSettings
from streaming.source.publisher import Publisher

PATIENCE_S = 60


@pytest.mark.kafka
@pytest.mark.skipif(choice()[0] != KAFKA, reason="the broker of this run is another")
def test_it_keeps_events_of_long_ago(tmp_path):
    """Retention goes by a record's own time: events of 2023 stay, but for a topic that keeps an hour of them."""
    running = ApacheKafka(tmp_path, log_initial_task_delay_ms="100", log_retention_check_interval_ms="100")
    running.start()
    try:
        broker = Broker(KAFKA, running.bootstrap_servers)
        kept, short = "kept", broker.topic(retention_ms="3600000")
        for topic in (kept, short):
            publisher = Publisher(KafkaSettings(broker.bootstrap_servers), topic)  # makes the first of them
            publisher.send(b"1", b"{}", timestamp_us=START_US)
            publisher.flush()
            publisher.close()
        consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, enable_auto_commit=False)
        first = {topic: ClientPartition(topic, 0) for topic in (kept, short)}
        deadline = time.monotonic() + PATIENCE_S
        while (beginnings := consumer.beginning_offsets(list(first.values())))[first[short]] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert beginnings[first[kept]] == 0
        consumer.close()
    finally:
        running.stop()
