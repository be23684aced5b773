"""What does the platform know of a service, for its score?"""

from collections.abc import Sequence

from featurestore.clock import system_clock
from featurestore.config import Settings
from featurestore.dataset.manifest import Manifest, manifests
from featurestore.monitor.alerts import AlertBook
from featurestore.monitor.concept_history import read_signals
from featurestore.monitor.readiness import FRESH_US, Evidence
from featurestore.monitor.skew_history import SkewHistory
from featurestore.monitor.slo import objectives_of
from featurestore.monitor.slo_history import SloHistory
from featurestore.monitor.workspace import Workspace
from featurestore.plan import Plan, Service


def evidence_of(
    settings: Settings, place: Workspace, plan: Plan, service: str, *, drift_checked_us: int | None = None
) -> Evidence:
    """The evidence about one service of the plan; raises UnknownName, and SourceError for what is torn."""
    clock = system_clock(settings.clock_offset_us)
    now_us, asked = clock(), plan.service(service)
    measured, book = SloHistory(place.slo), AlertBook(place.alerts, clock)
    return Evidence(
        plan=plan,
        service=asked,
        datasets=_datasets(place, asked),
        audits=list(SkewHistory(place.skew).between(now_us - FRESH_US, now_us + 1, service=service)),
        budgets=[measured.budget(each, now_us) for view in plan.views.values() for each in objectives_of(view)],
        alerts=book.all(),
        signals=read_signals(place.concept, service),
        drift_checked_us=drift_checked_us,
        sinks=book.sinks(),
        now_us=now_us,
    )


def _datasets(place: Workspace, service: Service) -> Sequence[Manifest]:
    """The training sets of the service: made of it by name, or of all its features."""
    asked = {f"{each.view}:{feature}" for each in service.projections for feature in each.features}
    return [
        found
        for found in manifests(place.datasets)
        if found.features == (f"service:{service.name}",) or asked <= set(found.features)
    ]
