"""What does a worker do beside the stream, on threads of its own, and how often did it fail?"""

from prometheus_client import CollectorRegistry, Counter

from featurestore.repeated import Failed


def counted(registry: CollectorRegistry) -> Failed:
    """Counts, by name, looks that failed: an alert can say what is not done."""
    failures = Counter(
        "featurestore_stream_looks_failed",
        "Looks beside the stream that failed and are tried again: compaction, profiling, retention_check",
        ["look"],
        registry=registry,
    )
    return lambda name: failures.labels(name).inc()
