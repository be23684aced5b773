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
from featurestore.plan import OnDemandView, Plan, View, is_personal

_FEAST: dict[Action, tuple[str, ...]] = {
    "read_online": ("read_online",),
    "push": ("write_online",),
    "write_online": ("write_online",),
    "materialize": ("write_online",),
}


class Permissions:
    """The rules of one plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        views: list[View | OnDemandView] = [*plan.views.values(), *plan.on_demand.values()]
        self._pii = frozenset(view.name for view in views if is_personal(view.tags))

    def check_read(self, caller: Caller, features: Sequence[str], service: str | None) -> None:
        """Raises Refused (403) where a caller may not read these features; unknown names pass."""
        if service is not None:
            found = self.plan.services.get(service)
            views = [] if found is None else [projection.view for projection in found.projections]
        else:
            views = [feature.partition(":")[0] for feature in features]
        self.check(caller, "read_online", dict.fromkeys(views), service=service)

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
            for touched in self._touched(view):
                if touched in self._pii and not caller.grants & {touched, view, PII}:
                    raise _denied(
                        f"view {touched!r} holds personal data (tag pii): {caller.name} needs a grant of "
                        f"{touched!r} or {PII!r}"
                    )
        if not self.plan.permissions:
            if not caller.may(action):
                raise _denied(f"{caller.name} has the roles {_list(caller.roles)}; none of them may {action}")
            return
        if "admin" in caller.roles:
            return
        for name in [service] if service is not None else views:
            for wanted in feast or _FEAST[action]:
                self._check_feast(caller, wanted, str(name), is_service=service is not None)

    def _touched(self, view: str) -> list[str]:
        on_demand = self.plan.on_demand.get(view)
        return [view] if on_demand is None else [view, *(each.view for each in on_demand.inputs)]

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
        if not any(
            permission.everyone
            or caller.roles & set(permission.roles)
            or caller.groups & set(permission.groups)
            or caller.namespaces & set(permission.namespaces)
            for permission in about
        ):
            raise _denied(
                f"{caller.name} is accepted by none of the permissions about {action} on {kind} {name!r}: "
                + ", ".join(permission.name for permission in about)
            )


def _denied(why: str) -> Refused:
    return Refused(403, "forbidden", why)


def _list(words: Iterable[str]) -> str:
    return ", ".join(sorted(words)) or "(none)"
