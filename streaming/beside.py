"""What does a worker do beside the stream, on threads of its own, and how often did it fail?"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter

from featurestore.config import Settings
from featurestore.plan import Plan, View
from featurestore.repeated import Failed
from streaming.assembly import build_compactor, build_profiler
from streaming.compactor import Compactor, compacting
from streaming.event_profiler import EventProfiler, profiling
from streaming.metrics import StreamMetrics
from streaming.retention import Exposure, RetentionMetrics, watched


class Beside:
    """Compaction, profiles and the retention check, of what the present worker holds."""

    def __init__(self, settings: Settings, metrics: StreamMetrics, registry: CollectorRegistry) -> None:
        self._settings, self._metrics = settings, metrics
        self._failed = counted(registry)
        self._kept = RetentionMetrics()
        registry.register(self._kept)
        self._compactor: Compactor | None = None
        self._profiler: EventProfiler | None = None

    def plan_failed(self) -> None:
        """Count a look at the plan that failed."""
        self._failed("plan")

    def take_up(self, plan: Plan, views: Sequence[View]) -> None:
        """From now on it is about these views."""
        self._compactor = build_compactor(self._settings, plan, views)
        self._profiler = build_profiler(self._settings, plan, views)

    @contextmanager
    def looking(
        self, exposed: Callable[[], Sequence[Exposure]], *, compact_s: float, profile_s: float
    ) -> Iterator[None]:
        """Look meanwhile, each so often; 0 seconds: never. `exposed` asks how sinks stand against retention."""
        held, failed = self._metrics.held, self._failed
        with (
            compacting(lambda: self._compactor, held, every_s=compact_s, failed=failed),
            profiling(lambda: self._profiler, held, every_s=profile_s, profiled=self._metrics.profiled, failed=failed),
            watched(exposed, self._kept, failed=failed),
        ):
            yield


def counted(registry: CollectorRegistry) -> Failed:
    """Counts, by name, looks that failed: an alert can say what is not done."""
    failures = Counter(
        "featurestore_stream_looks_failed",
        "Looks beside the stream that failed and are tried again: compaction, profiling, retention_check, plan",
        ["look"],
        registry=registry,
    )
    return lambda name: failures.labels(name).inc()
