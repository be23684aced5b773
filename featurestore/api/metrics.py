"""What can be measured of the API? Prometheus metrics, in a registry that the process hands in."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from featurestore.online.result import Block, Column, Status

_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.012, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_NEVER = (1 << 63) - 1
_AGES_S = (1.0, 5.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 86400.0, 7 * 86400.0)


class _Tally:
    """What a histogram has observed since it was last told."""

    __slots__ = ("_bounds", "_histogram", "_sum", "_times")

    def __init__(self, histogram: Histogram, bounds: Sequence[float]) -> None:
        self._histogram = histogram
        self._bounds = bounds
        self._times = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, amount: float) -> None:
        self._times[bisect_left(self._bounds, amount)] += 1
        self._sum += amount

    def fold(self) -> None:
        times, self._times = self._times, [0] * len(self._times)
        amount, self._sum = self._sum, 0.0
        if any(times):
            # The library takes observations one by one only; a test compares the two.
            self._histogram._sum.inc(amount)  # noqa: SLF001
            for bucket, count in zip(self._histogram._buckets, times, strict=True):  # noqa: SLF001
                if count:
                    bucket.inc(count)


class _ViewTally:
    """What one view served since Prometheus's client was last told."""

    __slots__ = ("_counters", "_counts", "ages")

    def __init__(self, counters: Sequence[Counter], ages: _Tally) -> None:
        self._counters = counters
        self._counts = [0] * (len(counters) + 1)
        self.ages = ages

    def present(self, count: int) -> None:
        self._counts[Status.PRESENT] += count

    def count(self, statuses: bytes, times: int) -> None:
        first = statuses[:1]
        if statuses.count(first) == len(statuses):
            if first:
                self._counts[first[0]] += len(statuses) * times
            return
        for status in set(statuses):
            self._counts[status] += statuses.count(status) * times

    def fold(self) -> None:
        counts, self._counts = self._counts, [0] * len(self._counts)
        for counter, count in zip(self._counters, counts[1:], strict=True):
            if count:
                counter.inc(count)
        self.ages.fold()


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
        self._by_code: dict[int, _Tally] = {}
        self._by_view: dict[str, _ViewTally] = {}
        self._plan_version = Gauge(
            "featurestore_plan_version",
            "Version of the plan in force; of several workers the least",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._plan_errors = Counter(
            "featurestore_plan_watch_errors", "Times the plan could not be looked up or read", registry=registry
        )
        self._look_errors = Counter(
            "featurestore_look_errors",
            "Looks that failed and are tried again: plan, API keys, issuer keys",
            ["look"],
            registry=registry,
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
        tally = self._by_code.get(code)
        if tally is None:
            tally = self._by_code[code] = _Tally(self._requests.labels(code), _SECONDS)
        tally.observe(seconds)

    def served(self, parts: Iterable[Block | Column]) -> None:
        """Counts the values of an answer, and the age of the oldest row of each view."""
        columns: list[Column] = []
        for part in parts:
            if isinstance(part, Column):
                columns.append(part)
                continue
            view = self._of(part.view)
            view.count(part.statuses, len(part.features))
            if part.oldest_us > 0:
                newest_us = part.t_us if part.instant_us is None else int(max(part.instant_us))
                view.ages.observe((newest_us - part.oldest_us) / 1_000_000)
        if columns:
            self._served_columns(columns)

    def all_present(self, views: Sequence[str], count: int, oldest_us: Sequence[int], t_us: int) -> None:
        """Counts so many values of each view, all present, the oldest of them as old as that."""
        for name, since_us in zip(views, oldest_us, strict=True):
            view = self._by_view.get(name) or self._of(name)
            view.present(count)
            if since_us > 0:
                view.ages.observe((t_us - since_us) / 1_000_000)

    def _served_columns(self, columns: Iterable[Column]) -> None:
        # Columns of one view share their arrays where these are equal.
        alike: dict[tuple[str, int], list[Column]] = {}
        views: dict[str, Column] = {}
        for column in columns:
            alike.setdefault((column.view, id(column.statuses)), []).append(column)
            views.setdefault(column.view, column)
        for (view, _), same in alike.items():
            self._of(view).count(same[0].statuses.tobytes(), len(same))
        for view, column in views.items():
            oldest_us = int(column.event_us.min(initial=_NEVER))
            if oldest_us <= 0:
                oldest_us = int(column.event_us.min(initial=_NEVER, where=column.event_us > 0))
            if oldest_us != _NEVER:
                self._of(view).ages.observe((int(column.instant_us.max()) - oldest_us) / 1_000_000)

    def _of(self, view: str) -> "_ViewTally":
        found = self._by_view.get(view)
        if found is None:
            counters = [self._values.labels(view, status.name) for status in Status]
            found = self._by_view[view] = _ViewTally(counters, _Tally(self._ages.labels(view), _AGES_S))
        return found

    def fold(self) -> None:
        """Brings what was counted since the last call to where Prometheus's client, and other workers, see it.

        Called by the event loop every second and before each exposition: counting in its objects costs a lock and, with
        several workers, a write to a shared file each time.
        """
        for tally in self._by_code.values():
            tally.fold()
        for view in self._by_view.values():
            view.fold()

    def plan_in_force(self, version: int) -> None:
        """Shows the plan's version."""
        self._plan_version.set(version)

    def plan_error(self) -> None:
        """Counts a look-up of the plan that failed."""
        self._plan_errors.inc()

    def look_failed(self, name: str) -> None:
        """Counts a look that failed."""
        self._look_errors.labels(name).inc()

    def exposition(self) -> bytes:
        """Everything in Prometheus's text format; other workers' counts are up to a second old."""
        self.fold()
        return generate_latest(self._registry if self._exposed is None else self._exposed())
