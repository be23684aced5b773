"""What can be measured of the API? Prometheus metrics, in a registry that the process hands in."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from featurestore.online.result import Column, Status

_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.012, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_NEVER = (1 << 63) - 1
_AGES_S = (1.0, 5.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 86400.0, 7 * 86400.0)


class Metrics:
    """Latencies, statuses and ages per view, and the plan in force."""

    def __init__(self, registry: CollectorRegistry, exposed: Callable[[], CollectorRegistry] | None = None) -> None:
        """Counts in `registry`; `exposed` gives what is shown, where that is more than this process has counted."""
        self._registry = registry
        self._exposed = exposed
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
            "Age of the oldest row of a view in one answer",
            ["view"],
            registry=registry,
            buckets=_AGES_S,
        )
        self._values_of: dict[str, dict[int, Counter]] = {}
        self._age_of: dict[str, Histogram] = {}
        self._plan_version = Gauge(
            "featurestore_plan_version",
            "Version of the plan in force; of several workers the least",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._plan_errors = Counter(
            "featurestore_plan_watch_errors", "Times the plan could not be looked up or read", registry=registry
        )

        self._looked = Counter(
            "featurestore_served_again",
            "Answers that were to be looked at again: looked_at, dropped (too many waited) or failed",
            ["look", "outcome"],
            registry=registry,
        )
        self._held_to = Counter(
            "featurestore_served_contract_rows",
            "Rows of sampled answers that kept or broke a rule of a contract",
            ["contract", "rule", "outcome"],
            registry=registry,
        )

    def looked(self, look: str, outcome: str) -> None:
        """Counts an answer that somebody wanted to look at again."""
        self._looked.labels(look, outcome).inc()

    def held_to(self, contract: str, rule: str, *, kept: int, broken: int) -> None:
        """Counts rows of sampled answers by what a contract's rule says of them."""
        self._held_to.labels(contract, rule, "kept").inc(kept)
        self._held_to.labels(contract, rule, "broken").inc(broken)

    def answered(self, code: int, seconds: float) -> None:
        """Counts a request by its HTTP status."""
        self._requests.labels(code).observe(seconds)

    def served(self, columns: Iterable[Column]) -> None:
        """Counts the values of an answer; columns with equal statuses are counted together, ages once a view."""
        # Columns of one view share their arrays where these are equal.
        alike: dict[tuple[str, int], list[Column]] = {}
        views: dict[str, Column] = {}
        for column in columns:
            alike.setdefault((column.view, id(column.statuses)), []).append(column)
            views.setdefault(column.view, column)
        for (view, _), same in alike.items():
            statuses, times = same[0].statuses.tobytes(), len(same)
            for status in set(statuses):
                self._of(view)[status].inc(statuses.count(status) * times)
        for view, column in views.items():
            oldest_us = int(column.event_us.min(initial=_NEVER))
            if oldest_us <= 0:
                oldest_us = int(column.event_us.min(initial=_NEVER, where=column.event_us > 0))
            if oldest_us != _NEVER:
                self._age_of[view].observe((int(column.instant_us.max()) - oldest_us) / 1_000_000)

    def _of(self, view: str) -> dict[int, Counter]:
        # Looking children up by label costs more than counting with them.
        found = self._values_of.get(view)
        if found is None:
            found = {int(status): self._values.labels(view, status.name) for status in Status}
            self._age_of[view] = self._ages.labels(view)
            self._values_of[view] = found
        return found

    def plan_in_force(self, version: int) -> None:
        """Shows the plan's version."""
        self._plan_version.set(version)

    def plan_error(self) -> None:
        """Counts a look-up of the plan that failed."""
        self._plan_errors.inc()

    def exposition(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self._registry if self._exposed is None else self._exposed())
