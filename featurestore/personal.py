"""Find the views of personal data in a Plan, and keep their values out of what describes them.

A view holds personal data where it is tagged `pii`, or computes its features from one that is. Its values are stored,
served and audited, each under its grant; findings, alerts, profiles and reports about them hold none.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from featurestore.plan import OnDemandView, Plan, Projection, Service, View, is_personal
from validation.contract import PERSONAL, SERVICE, VIEW, Contract
from validation.report import MASK

_CLASSIFICATION: Final = PERSONAL[0]


def personal_views(plan: Plan) -> frozenset[str]:
    """The views that are tagged `pii` in any definition of that name which a plan knows.

    A tag counts from the `apply` that declared it, also while the version that carries it is still being built.
    """
    views: list[View | OnDemandView] = [
        *plan.views.values(),
        *plan.on_demand.values(),
        *plan.building.values(),
        *plan.retiring,
        *plan.waiting.on_demand.values(),
    ]
    return frozenset(view.name for view in views if is_personal(view.tags))


def holds_personal(plan: Plan, view: str) -> bool:
    """Whether the values of a view are personal data, its own or computed from such."""
    personal = personal_views(plan)
    on_demand = plan.on_demand.get(view)
    return view in personal or (on_demand is not None and any(each.view in personal for each in on_demand.inputs))


def any_personal(plan: Plan, projections: Iterable[Projection]) -> bool:
    """Whether any of the projections takes features of personal data."""
    return any(holds_personal(plan, each.view) for each in projections)


def masked(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same names with a mask for every value that is there.

    >>> masked({"card": 7, "mail": None})
    {'card': '***', 'mail': None}
    """
    return {name: None if value is None else MASK for name, value in values.items()}


def masked_contracts(
    contracts: Mapping[str, Contract], views: Mapping[str, View], services: Mapping[str, Service], plan: Plan
) -> dict[str, Contract]:
    """The contracts by name; those about personal data have every column classified so, and reports mask it."""
    about: set[str] = set()
    for view in views.values():
        if holds_personal(plan, view.name):
            topic = view.source.topic
            about |= {view.source.name, view.source.push, VIEW + view.name, topic.name if topic is not None else ""}
    about |= {VIEW + name for name in plan.on_demand if holds_personal(plan, name)}
    about |= {SERVICE + name for name, service in services.items() if any_personal(plan, service.projections)}
    return {
        name: msgspec.structs.replace(
            contract,
            columns=tuple(
                column if column.masked else msgspec.structs.replace(column, classification=_CLASSIFICATION)
                for column in contract.columns
            ),
        )
        if contract.source in about
        else contract
        for name, contract in contracts.items()
    }
