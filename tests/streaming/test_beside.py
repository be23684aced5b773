"""Is what a worker fails to do beside the stream told?"""

from prometheus_client import CollectorRegistry

from featurestore.repeated import attempt
from streaming.beside import counted


def test_what_fails_beside_the_stream_is_counted_by_name():
    """What works is not counted."""

    def full():
        raise OSError(28, "no space left on device")

    registry = CollectorRegistry()
    failed = counted(registry)
    for name in ("compaction", "compaction", "profiling"):
        attempt(name, full, failed)
    attempt("retention_check", lambda: None, failed)
    found = {
        name: registry.get_sample_value("featurestore_stream_looks_failed_total", {"look": name})
        for name in ("compaction", "profiling", "retention_check")
    }
    assert found == {"compaction": 2, "profiling": 1, "retention_check": None}
