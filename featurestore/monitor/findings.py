"""What of an audit does somebody have to know?"""

from collections.abc import Iterable

from featurestore.clock import iso
from featurestore.monitor.alerts import Finding
from featurestore.monitor.causes import Cause
from featurestore.monitor.skew import Skew
from featurestore.monitor.skew_history import Audited
from featurestore.plan import Plan

SKEW_SCOPE = "skew:"


def of_skew(audits: Iterable[Audited], plan: Plan) -> list[Finding]:
    """One critical finding a feature with differences that nothing explains; the hours given are looked at together."""
    unknown: dict[tuple[str, str, str], list[Skew]] = {}
    for audited in audits:
        for skew in audited.skews:
            if skew.differing.get(Cause.UNKNOWN):
                unknown.setdefault((skew.service, skew.view, skew.feature), []).append(skew)
    return [_finding(skews, plan) for skews in unknown.values()]


def _finding(skews: list[Skew], plan: Plan) -> Finding:
    first = skews[0]
    wrong, compared = sum(each.differing[Cause.UNKNOWN] for each in skews), sum(each.compared for each in skews)
    example = first.examples[Cause.UNKNOWN][0]
    return Finding(
        key=f"{SKEW_SCOPE}{first.service}:{first.view}:{first.feature}",
        severity="critical",
        title=f"served values of {first.view}:{first.feature} differ from offline for no known cause",
        detail=f"{wrong} of {compared} sampled values of service {first.service}; for example {example.key} at "
        f"{iso(example.instant_us)}: served {example.served!r}, offline {example.offline!r}",
        owner=_owner(first, plan),
        service=first.service,
        view=first.view,
        feature=first.feature,
        evidence=f"featurestore skew history --service {first.service}",
    )


def _owner(skew: Skew, plan: Plan) -> str:
    service = plan.services.get(skew.service)
    names = {each.name: each.view for each in service.projections} if service else {}
    name = names.get(skew.view, skew.view)
    view = plan.views.get(name) or plan.on_demand.get(name)
    return (view.owner if view else "") or (service.owner if service else "")
