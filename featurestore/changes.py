"""What would a new Plan change, and what would it break?"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from featurestore.config import Settings
from featurestore.plan import Field, OnDemandView, Plan, View

Settle = Callable[[Settings, Plan], Iterable[str]]
"""Puts on record from which offsets on a Plan's definitions judge events; a line for each topic where that changes."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One difference between two Plans; `breaks` says whom it hurts, empty where it hurts nobody."""

    kind: str
    name: str
    what: str
    breaks: str = ""

    @property
    def line(self) -> str:
        """The change as one line for a person.

        >>> Change(kind="view", name="weather", what="added").line
        'view weather: added'
        """
        return f"{self.kind} {self.name}: {self.what}" + (f"; BREAKS {self.breaks}" if self.breaks else "")


def changes(before: Plan | None, after: Plan) -> list[Change]:
    """Every difference, in a stable order; `before` None is an empty Plan.

    Removing what a service uses and changing a feature's type or a view's keys are breaking, and so is changing a
    windowed view that is not live, whose new version starts without history.
    """
    if before is None:
        before = Plan(project=after.project, version=0, digest="", created_us=0)
    return [
        *_views(before, after),
        *_on_demand(before, after),
        *_named("service", before.services, after.services),
        *_named("contract", before.contracts, after.contracts),
        *_named("permission", *({each.name: each for each in plan.permissions} for plan in (before, after))),
    ]


def _views(before: Plan, after: Plan) -> Iterator[Change]:
    for name in sorted({*before.views, *after.views}):
        old, new = before.views.get(name), after.views.get(name)
        if new is None:
            yield Change(kind="view", name=name, what="removed", breaks=_users(before, name))
        elif old is None:
            yield Change(kind="view", name=name, what="added")
        elif old != new:
            yield from _view(before, old, new)
    for name, built in sorted(after.building.items()):
        if before.building.get(name) != built:
            what = (
                f"version {built.version} must be built: run `featurestore backfill {name}`; "
                f"until then readers keep version {after.views[name].version}"
            )
            yield Change(kind="view", name=name, what=what)
    for kind, waiting in (("service", after.waiting.services), ("on-demand view", after.waiting.on_demand)):
        for name in sorted(waiting):
            if after.waiting != before.waiting:
                yield Change(kind=kind, name=name, what="waits for a view that is being built")


def _view(before: Plan, old: View, new: View) -> Iterator[Change]:
    users = _users(before, old.name)
    yield from _features(before, "view", old.name, old.features, new.features)
    if old.join_keys != new.join_keys:
        keys = [", ".join(f"{key.name} {key.dtype}" for key in view.join_keys) for view in (old, new)]
        yield Change(
            kind="view", name=old.name, what=f"join keys {keys[0]} -> {keys[1]}", breaks=users or "its readers"
        )
    if old.version != new.version:
        yield Change(
            kind="view",
            name=old.name,
            what=f"version {old.version} -> {new.version}",
            breaks=f"{users or 'its readers'} until history is rebuilt: its windows start empty",
        )
    rest = ("ttl_us", "source", "online", "owner", "description", "tags", "kind")
    if changed := [field for field in rest if getattr(old, field) != getattr(new, field)]:
        yield Change(kind="view", name=old.name, what=f"changed {', '.join(changed)}")


def _on_demand(before: Plan, after: Plan) -> Iterator[Change]:
    for name in sorted({*before.on_demand, *after.on_demand}):
        old, new = before.on_demand.get(name), after.on_demand.get(name)
        if new is None:
            yield Change(kind="on-demand view", name=name, what="removed", breaks=_users(before, name))
        elif old is None:
            yield Change(kind="on-demand view", name=name, what="added")
        elif old != new:
            yield from _on_demand_view(before, old, new)


def _on_demand_view(before: Plan, old: OnDemandView, new: OnDemandView) -> Iterator[Change]:
    yield from _features(before, "on-demand view", old.name, old.features, new.features)
    asked = {field.name for field in new.request} - {field.name for field in old.request}
    if asked:
        what = f"asks for {', '.join(sorted(asked))}"
        yield Change(kind="on-demand view", name=old.name, what=what, breaks=_users(before, old.name) or "its callers")
    if old.function != new.function:
        yield Change(kind="on-demand view", name=old.name, what="changed function")


def _features(before: Plan, kind: str, name: str, old: tuple[Field, ...], new: tuple[Field, ...]) -> Iterator[Change]:
    types = {field.name: field.dtype for field in new}
    users = _users(before, name) or "its readers"
    for field in old:
        dtype = types.pop(field.name, None)
        if dtype is None:
            yield Change(kind=kind, name=name, what=f"feature {field.name} removed", breaks=users)
        elif dtype != field.dtype:
            yield Change(kind=kind, name=name, what=f"feature {field.name} {field.dtype} -> {dtype}", breaks=users)
    for added in types:
        yield Change(kind=kind, name=name, what=f"feature {added} added")


def _named(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for name in sorted({*old, *new}):
        if name not in new:
            yield Change(kind=kind, name=name, what="removed", breaks="its callers" if kind == "service" else "")
        elif name not in old:
            yield Change(kind=kind, name=name, what="added")
        elif old[name] != new[name]:
            yield Change(kind=kind, name=name, what="changed")


def _users(plan: Plan, view: str) -> str:
    services = [s.name for s in plan.services.values() if any(p.view == view for p in s.projections)]
    services += [v.name for v in plan.on_demand.values() if any(p.view == view for p in v.inputs)]
    return ", ".join(sorted(services))
