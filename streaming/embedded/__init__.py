"""A Kafka-protocol broker of one node, in this process: for a laptop with Python alone, and for tests."""
