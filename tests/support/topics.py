"""What does a topic hold? Everything in its first partition, read with a consumer of no group."""

from kafka import KafkaConsumer
from kafka import TopicPartition as ClientPartition


def read_topic(broker, topic):
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, enable_auto_commit=False)
    try:
        partition = ClientPartition(topic, 0)
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        end = consumer.end_offsets([partition])[partition]
        found = []
        while consumer.position(partition) < end:
            found += [record for some in consumer.poll(500).values() for record in some]
        return found
    finally:
        consumer.close()
