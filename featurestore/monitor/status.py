"""How healthy is every feature? One line each, from what audits, objectives, alerts and violations say."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from featurestore.monitor.alerts import Alert
from featurestore.monitor.causes import Cause
from featurestore.monitor.skew_history import Audited, merged
from featurestore.monitor.slo import Budget
from featurestore.plan import OnDemandView, Plan, View
from validation.violations import Folded

Health = Literal["ok", "warn", "bad", "unknown"]
_ORDER: Final[tuple[Health, ...]] = ("bad", "warn", "unknown", "ok")


class FeatureHealth(msgspec.Struct, frozen=True, kw_only=True):
    """One feature's line."""

    view: str
    feature: str
    dtype: str
    owner: str
    services: tuple[str, ...]
    health: Health
    """unknown: nothing has been measured of it."""
    reasons: tuple[str, ...]
    compared: int
    """Served values that audits compared."""
    differing: dict[Cause, int]
    budget: float | None
    """Share of the tightest error budget that is spent; None without an objective or without cases."""


def health_of(
    plan: Plan,
    *,
    audits: Iterable[Audited],
    budgets: Sequence[Budget],
    alerts: Sequence[Alert],
    violations: Sequence[Folded],
) -> list[FeatureHealth]:
    """Every feature of the plan, the worst first, then by view; alerts are the open ones."""
    skews = {}
    for skew in merged(
        msgspec.structs.replace(skew, hour_us=0, view=_view_of(plan, audited.service, skew.view), service="")
        for audited in audits
        for skew in audited.skews
    ):
        skews[skew.view, skew.feature] = skew
    found = []
    views: list[View | OnDemandView] = [*plan.views.values(), *plan.on_demand.values()]
    for view in views:
        about = _about(view, budgets)
        spent = [each.spent for each in budgets if each.objective.view == view.name and each.total]
        for field in view.features:
            measured = skews.get((view.name, field.name))
            differing = measured.differing if measured else {}
            reasons = about | _alarms(view, field.name, alerts)
            reasons |= _broken(view, field.name, violations) if isinstance(view, View) else {}
            for cause, count in differing.items():
                level: Health = "bad" if cause == Cause.UNKNOWN else "warn"
                reasons[f"{count} of {measured.compared if measured else 0} served differ: {cause}"] = level
            evidence = bool(spent or (measured and measured.compared))
            health: Health = min(reasons.values(), key=_ORDER.index, default="ok" if evidence else "unknown")
            found.append(
                FeatureHealth(
                    view=view.name,
                    feature=field.name,
                    dtype=field.dtype,
                    owner=view.owner,
                    services=_services(plan, view.name, field.name),
                    health=health,
                    reasons=tuple(sorted(reasons, key=lambda each: _ORDER.index(reasons[each]))),
                    compared=measured.compared if measured else 0,
                    differing=differing,
                    budget=max(spent, default=None),
                )
            )
    return sorted(found, key=lambda each: (_ORDER.index(each.health), each.view))


def _about(view: View | OnDemandView, budgets: Sequence[Budget]) -> dict[str, Health]:
    """What is known of a whole view: reason -> how bad."""
    reasons: dict[str, Health] = {}
    for budget in budgets:
        if budget.objective.view == view.name and budget.kept is False:
            reasons[f"{budget.objective.indicator} objective missed: {budget.spent:.0%} of the budget spent"] = "bad"
    return reasons


def _alarms(view: View | OnDemandView, feature: str, alerts: Sequence[Alert]) -> dict[str, Health]:
    """The open alerts about the feature, or about its view as a whole."""
    return {
        alert.finding.title: "bad" if alert.finding.severity == "critical" else "warn"
        for alert in alerts
        if alert.finding.view == view.name and alert.finding.feature in ("", feature)
    }


def _broken(view: View, feature: str, violations: Sequence[Folded]) -> dict[str, Health]:
    """The rules that the view's source breaks and that are about the feature's column, or about whole rows."""
    sources = {view.source.name, view.source.push} | ({view.source.topic.name} if view.source.topic else set())
    stored = {name: column for column, name in view.source.field_mapping.items()}
    made_of = {each.column for each in view.aggregations if each.feature == feature} or {feature}
    columns = {stored.get(name, name) for name in made_of}
    reasons: dict[str, Health] = {}
    for each in violations:
        about = {value for name, value in each.expected.items() if name in ("column", "column_A", "column_B")}
        if each.source in sources and (not about or about & columns):
            level: Health = "bad" if each.severity == "critical" else "warn"
            reasons[f"rule {each.rule_id} broken {each.count} times at {each.boundary}"] = level
    return reasons


def _services(plan: Plan, view: str, feature: str) -> tuple[str, ...]:
    return tuple(
        service.name
        for service in plan.services.values()
        if any(each.view == view and feature in each.features for each in service.projections)
    )


def _view_of(plan: Plan, service: str, name: str) -> str:
    """The view behind the name that it goes by in a service."""
    found = plan.services.get(service)
    names: Mapping[str, str] = {each.name: each.view for each in found.projections} if found else {}
    return names.get(name, name)
