"""Who is calling, and which of the API's actions may such a caller do at all?"""

from typing import Literal

import msgspec

Action = Literal["read_online", "push", "write_online", "materialize", "see_violations"]
ROLES: dict[str, frozenset[Action]] = {
    "reader": frozenset({"read_online"}),
    "producer": frozenset({"push", "see_violations"}),
    "writer": frozenset({"push", "write_online", "materialize"}),
    "admin": frozenset({"read_online", "push", "write_online", "materialize", "see_violations"}),
}
"""What each role may do; other roles mean something to Feast's permissions alone."""
ROUTE_ACTIONS: dict[str, Action] = {
    "/get-online-features": "read_online",
    "/push": "push",
    "/write-to-online-store": "write_online",
    "/materialize": "materialize",
    "/materialize-incremental": "materialize",
    "/violations": "see_violations",
    "/violations/{violation_id}": "see_violations",
}
"""What a caller of a route must be allowed before anything of the request is looked at; other routes need no role."""
EVERYTHING = "*"
PII = "pii"
"""The grant that opens every view tagged `pii`, and that tag."""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a request comes from."""

    name: str
    """For logs: never a secret."""
    roles: frozenset[str] = frozenset()
    grants: frozenset[str] = frozenset()
    """Names of `pii` views that this caller may touch; `pii` is all of them."""
    producers: frozenset[str] = frozenset()
    """Producers on whose behalf this caller may see violations; an admin sees everybody's."""
    groups: frozenset[str] = frozenset()
    namespaces: frozenset[str] = frozenset()
    rate_per_s: float | None = None
    """Requests a second; None is what the service grants everybody."""

    def may(self, action: Action) -> bool:
        """Whether any of the caller's roles allows an action.

        >>> Caller(name="k", roles=frozenset({"producer"})).may("push")
        True
        """
        return any(action in ROLES.get(role, ()) for role in self.roles)


ANYONE = Caller(name="anyone on this machine", roles=frozenset({"admin"}), grants=frozenset({PII}))
"""Every caller of a service without keys, which listens on a loopback address only."""
