"""What can be measured of a monitor? Prometheus gauges of its last round."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from prometheus_client.registry import Collector

from featurestore.monitor.alerts import Alert
from featurestore.monitor.causes import Cause
from featurestore.monitor.round import Round


class MonitorMetrics:
    """Gauges that `take` sets; without a port nobody is told of them."""

    def __init__(self, *shown: Collector) -> None:
        """`shown` are what else its `/metrics` says."""
        self.registry = CollectorRegistry()
        for collector in shown:
            self.registry.register(collector)
        self._alerts = Gauge("featurestore_alerts", "Open alerts", ["severity"], registry=self.registry)
        self._spent = Gauge(
            "featurestore_error_budget_spent",
            "Share of an objective's error budget that is spent",
            ["view", "indicator"],
            registry=self.registry,
        )
        self._compared = Gauge(
            "featurestore_skew_compared", "Served values that the last audit compared", registry=self.registry
        )
        self._differing = Gauge(
            "featurestore_skew_differing", "Of these, those that differ", ["cause"], registry=self.registry
        )
        self._round = Gauge(
            "featurestore_monitor_round", "When the last round ended, in epoch seconds", registry=self.registry
        )

        self._failed = Counter(
            "featurestore_monitor_failed_rounds", "Rounds that failed and are tried again", registry=self.registry
        )

    def round_failed(self) -> None:
        """Counts a round that failed."""
        self._failed.inc()

    def serve(self, host: str, port: int) -> None:
        """Answers `/metrics` there, in a thread of its own; raises OSError where the port is taken."""
        start_http_server(port, host, registry=self.registry)

    def take(self, found: Round, open_alerts: Sequence[Alert], ended_us: int) -> None:
        """Takes over what a round found."""
        for severity in ("critical", "informative"):
            self._alerts.labels(severity).set(sum(each.finding.severity == severity for each in open_alerts))
        for budget in found.budgets:
            self._spent.labels(budget.objective.view, budget.objective.indicator).set(budget.spent)
        self._compared.set(sum(each.compared for each in found.audits))
        for cause in Cause:
            self._differing.labels(cause.value).set(sum(each.differing.get(cause, 0) for each in found.audits))
        self._round.set(ended_us / 1e6)
