"""May this caller do this, with these views? The plan's tags and Feast permissions, the roles of the API.

1. A view tagged `pii` wants a grant, of its name or `pii`, whatever the caller's role; so does what is computed from
   it.
2. Where the repo has Feast permissions they decide, as in Feast: some permission about the view (or the service that is
   asked for) and the action must accept the caller, and what no permission is about is denied. Admins pass.
3. Where it has none, the caller's roles decide.
"""

from collections.abc import Iterable, Sequence

from featurestore.api.faults import Refused
from featurestore.api.identity import PII, Action, Caller
from featurestore.personal import personal_views
from featurestore.plan import Permission, Plan

_FEAST: dict[Action, tuple[str, ...]] = {
    "read_online": ("read_online",),
    "push": ("write_online",),
    "write_online": ("write_online",),
    "materialize": ("write_online",),
}
_CALLERS = 4096
_BEGIN: dict[Action, set[str]] = {action: set(words) for action, words in _FEAST.items()} | {
    "push": {"write_online", "write_offline"}
}


class Permissions:
    """The rules of one plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._pii = personal_views(plan)
        self.begun: set[tuple[Caller, Action]] = set()
        """Who was found to be allowed to begin what."""

    def remember(self, caller: Caller, action: Action) -> None:
        """Remember that this caller may begin this; beyond a bound all are forgotten."""
        if len(self.begun) >= _CALLERS:
            self.begun.clear()
        self.begun.add((caller, action))

    def check_action(self, caller: Caller, action: Action) -> None:
        """Raise Refused (403) where a caller may not do this with any view at all; asked before a request is read."""
        if not self.plan.permissions or action == "see_violations":
            if not caller.may(action):
                raise _denied(f"{caller.name} has the roles {_list(caller.roles)}; none of them may {action}")
        elif "admin" not in caller.roles and not any(
            _accepts(permission, caller) and {*permission.actions} & _BEGIN[action]
            for permission in self.plan.permissions
        ):
            raise _denied(f"{caller.name} is accepted by no permission about {action}")

    def check_read(
        self, caller: Caller, features: Sequence[str], service: str | None, *, answering: Plan | None = None
    ) -> None:
        """Raise Refused (403) where a caller may not read these features; unknown names pass.

        `answering` is the earlier plan that answers for the service in this plan's place. Its views are judged too, by
        the tags of both plans: a view that either of them tags `pii` holds personal data.
        """
        views = views_asked(self.plan, features, service)
        self.check(caller, "read_online", views, service=service)
        if answering is not None:
            pii = self._pii | personal_views(answering)
            for view in views_asked(answering, features, service):
                _check_grant(caller, view, [*_touched(answering, view), *_touched(self.plan, view)], pii)

    def check(
        self,
        caller: Caller,
        action: Action,
        views: Iterable[str],
        *,
        service: str | None = None,
        feast: tuple[str, ...] = (),
    ) -> None:
        """Raises Refused (403) where a caller may not do this with one of the views.

        `service` is the one asked for: Feast's permissions are then about it instead of its views. `feast` are Feast's
        actions, where they are others than those that the action stands for.
        """
        views = list(views)
        for view in views:
            _check_grant(caller, view, _touched(self.plan, view), self._pii)
        if not self.plan.permissions:
            if not caller.may(action):
                raise _denied(f"{caller.name} has the roles {_list(caller.roles)}; none of them may {action}")
            return
        if "admin" in caller.roles:
            return
        for name in [service] if service is not None else views:
            for wanted in feast or _FEAST[action]:
                self._check_feast(caller, wanted, str(name), is_service=service is not None)

    def _check_feast(self, caller: Caller, action: str, name: str, *, is_service: bool) -> None:
        if name not in (self.plan.services if is_service else {**self.plan.views, **self.plan.on_demand}):
            return
        kind = "service" if is_service else "view"
        about = [
            permission
            for permission in self.plan.permissions
            if action in permission.actions and name in (permission.services if is_service else permission.views)
        ]
        if not about:
            raise _denied(f"no permission is about {action} on {kind} {name!r}; define one, or ask as an admin")
        if not any(_accepts(permission, caller) for permission in about):
            raise _denied(
                f"{caller.name} is accepted by none of the permissions about {action} on {kind} {name!r}: "
                + ", ".join(permission.name for permission in about)
            )


def views_asked(plan: Plan, features: Sequence[str], service: str | None) -> list[str]:
    """The views that a request for features or for a service names, each once; unknown services name none."""
    if service is not None:
        found = plan.services.get(service)
        names = [] if found is None else [projection.view for projection in found.projections]
    else:
        names = [feature.partition(":")[0] for feature in features]
    return [*dict.fromkeys(names)]


def _touched(plan: Plan, view: str) -> list[str]:
    on_demand = plan.on_demand.get(view)
    return [view] if on_demand is None else [view, *(each.view for each in on_demand.inputs)]


def _check_grant(caller: Caller, view: str, touched: Iterable[str], pii: frozenset[str]) -> None:
    for name in touched:
        if name in pii and not caller.grants & {name, view, PII}:
            raise _denied(
                f"view {name!r} holds personal data (tag pii): {caller.name} needs a grant of {name!r} or {PII!r}"
            )


def _accepts(permission: Permission, caller: Caller) -> bool:
    return bool(
        permission.everyone
        or caller.roles & set(permission.roles)
        or caller.groups & set(permission.groups)
        or caller.namespaces & set(permission.namespaces)
    )


def _denied(why: str) -> Refused:
    return Refused(403, "forbidden", why)


def _list(words: Iterable[str]) -> str:
    return ", ".join(sorted(words)) or "(none)"
