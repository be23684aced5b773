"""A single-node Kafka-protocol broker for laptops and tests."""
