"""Which services answer by their fallback while an alarm is on? Those that declare one and are hurt."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from featurestore.fallback import Fallback
from featurestore.monitor.alerts import Alert
from featurestore.plan import Plan, Service, used_views


class Switches(Protocol):
    """What of `featurestore.fallback.Fallbacks` is called."""

    def active(self) -> Mapping[str, Fallback]:
        """Service -> why it answers by its fallback."""
        ...

    def switch(self, service: str, fallback: Fallback) -> None:
        """Switches it on."""
        ...

    def clear(self, service: str) -> None:
        """Switches it off."""
        ...


def settle(plan: Plan, alerts: Sequence[Alert], switches: Switches, now_us: int) -> list[str]:
    """Switches on what a critical open alert hurts, and off what none hurts any more; says what was done.

    A service is hurt by an alert about itself or about a view that it needs. What a person switched stays.
    """
    active, done = switches.active(), []
    for service in plan.services.values():
        known = active.get(service.name)
        hurt = next((each for each in alerts if service.policy.alarm != "value" and _hurts(each, service, plan)), None)
        if hurt is not None and known is None:
            title = hurt.finding.title
            switches.switch(service.name, Fallback(since_us=now_us, reason=title, by_monitor=True))
            done.append(f"service {service.name} answers by its fallback ({service.policy.alarm}): {title}")
        elif hurt is None and known is not None and known.by_monitor:
            switches.clear(service.name)
            done.append(f"service {service.name} answers from the plan in force again")
    return done


def _hurts(alert: Alert, service: Service, plan: Plan) -> bool:
    found = alert.finding
    if not alert.is_open or found.severity != "critical":
        return False
    named = {each.view for each in service.projections} | {each.name for each in service.projections}
    views = named | {view.name for view in used_views(plan, service.projections)}
    return found.service == service.name or (not found.service and found.view in views)
