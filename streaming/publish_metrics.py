"""What can be measured of telling others about violations? Prometheus metrics, read when somebody asks."""

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from validation.publishing import Publication

_OUTCOMES = ("sent", "refused", "failed", "lost")


class PublishMetrics(Collector):
    """Counters of all channels of one process."""

    def __init__(self, publications: Sequence[Publication]) -> None:
        self._publications = tuple(publications)

    def collect(self) -> Iterator[Metric]:
        """See Collector. Runs on the thread of whoever asks."""
        told = CounterMetricFamily(
            "featurestore_violations_published",
            "Changes of violations: sent, refused for good, lost before they were sent; and rounds that failed",
            labels=["channel", "outcome"],
        )
        pending = GaugeMetricFamily(
            "featurestore_violations_pending", "Changes that a channel has not been told of", labels=["channel"]
        )
        for each in self._publications:
            for outcome in _OUTCOMES:
                told.add_metric([each.channel.name, outcome], each.counters[outcome])
            pending.add_metric([each.channel.name], each.pending)
        yield told
        yield pending
