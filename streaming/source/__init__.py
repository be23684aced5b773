"""Where do events come from? One interface over Kafka, a file and a scripted log: partitions, offsets, positions."""
