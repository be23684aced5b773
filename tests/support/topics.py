"""What does a topic hold? Every record of every partition, read with a consumer of no group."""

import time

from kafka import KafkaConsumer
from kafka import TopicPartition as ClientPartition

PATIENCE_S = 60


def read_topic(broker, topic):
    """The records, those of one partition in the order of their offsets; fails where they do not come in time."""
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, enable_auto_commit=False)
    try:
        partitions = [ClientPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends, found = consumer.end_offsets(partitions), []
        deadline = time.monotonic() + PATIENCE_S
        while any(consumer.position(each) < end for each, end in ends.items()):
            assert time.monotonic() < deadline
            found += [record for some in consumer.poll(200).values() for record in some]
        return found
    finally:
        consumer.close()
