"""What can be measured of the API? Prometheus metrics, in a registry that the process hands in."""

from collections.abc import Iterable

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from featurestore.online.result import Column, Status

_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.012, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_AGES_S = (1.0, 5.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 86400.0, 7 * 86400.0)


class Metrics:
    """Latencies, statuses and ages per view, and the plan in force."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._requests = Histogram(
            "featurestore_request_seconds",
            "Time from the first byte of a body to the last byte of its answer",
            ["code"],
            registry=registry,
            buckets=_SECONDS,
        )
        self._values = Counter(
            "featurestore_values", "Values served, by view and status", ["view", "status"], registry=registry
        )
        self._ages = Histogram(
            "featurestore_value_age_seconds",
            "Age of the oldest value of a view in one answer",
            ["view"],
            registry=registry,
            buckets=_AGES_S,
        )
        self._plan_version = Gauge("featurestore_plan_version", "Version of the plan in force", registry=registry)
        self._plan_errors = Counter(
            "featurestore_plan_watch_errors", "Times the plan could not be looked up or read", registry=registry
        )

    def answered(self, code: int, seconds: float) -> None:
        """Counts a request by its HTTP status."""
        self._requests.labels(code).observe(seconds)

    def served(self, columns: Iterable[Column]) -> None:
        """Counts the values of an answer; arrays that columns share are looked at once."""
        shared: dict[tuple[str, int, int], tuple[Column, int]] = {}
        for column in columns:
            key = (column.view, id(column.statuses), id(column.event_us))
            shared[key] = (column, shared[key][1] + 1 if key in shared else 1)
        for column, times in shared.values():
            counts = np.bincount(column.statuses, minlength=len(Status) + 1)
            for status in Status:
                if counts[status]:
                    self._values.labels(column.view, status.name).inc(int(counts[status]) * times)
            known = column.event_us > 0
            if known.any():
                oldest_us = int((column.instant_us - column.event_us)[known].max())
                self._ages.labels(column.view).observe(oldest_us / 1_000_000)

    def plan_in_force(self, version: int) -> None:
        """Shows the plan's version."""
        self._plan_version.set(version)

    def plan_error(self) -> None:
        """Counts a look-up of the plan that failed."""
        self._plan_errors.inc()

    def exposition(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self._registry)
