"""What does the platform know of a service, for its score?"""

from featurestore.clock import system_clock
from featurestore.config import Settings
from featurestore.monitor.alerts import AlertBook
from featurestore.monitor.concept_history import read_signals
from featurestore.monitor.model_drift import last_check
from featurestore.monitor.readiness import FRESH_US, Evidence
from featurestore.monitor.skew_history import SkewHistory
from featurestore.monitor.slo import objectives_of
from featurestore.monitor.slo_history import SloHistory
from featurestore.monitor.training_sets import training_sets
from featurestore.monitor.workspace import Workspace
from featurestore.plan import Plan


def evidence_of(settings: Settings, place: Workspace, plan: Plan, service: str) -> Evidence:
    """The evidence about one service of the plan; raises UnknownName, and SourceError for what is torn."""
    clock = system_clock(settings.clock_offset_us)
    now_us, asked = clock(), plan.service(service)
    checked = last_check(place.drift, service)
    measured, book = SloHistory(place.slo), AlertBook(place.alerts, clock)
    return Evidence(
        plan=plan,
        service=asked,
        datasets=training_sets(place.datasets, asked),
        audits=list(SkewHistory(place.skew).between(now_us - FRESH_US, now_us + 1, service=service)),
        budgets=[measured.budget(each, now_us) for view in plan.views.values() for each in objectives_of(view)],
        alerts=book.all(),
        signals=read_signals(place.concept, service),
        drift_checked_us=None if checked is None else checked.checked_us,
        sinks=book.sinks(),
        now_us=now_us,
    )
