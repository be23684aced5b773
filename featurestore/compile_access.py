"""Whom do Feast's Permission objects let do what? Each one resolved to the views and services it is about.

Types and name patterns are matched by Feast itself; actions that a feature API has not (create, describe, …) are left
out. One difference is deliberate: Feast 0.67 looks for required tags where no object has them, so that a permission
for some tag matches everything. Here a permission with required tags is about what has these tags, nothing else.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from feast.permissions.matcher import resource_match_config
from feast.permissions.policy import (
    AllowAll,
    CombinedGroupNamespacePolicy,
    GroupBasedPolicy,
    NamespaceBasedPolicy,
    RoleBasedPolicy,
)

from featurestore.errors import DefinitionError
from featurestore.plan import Permission

ACTIONS = ("read_online", "write_online", "write_offline")


def compile_permissions(
    permissions: Sequence[Any], *, views: Sequence[Any], services: Sequence[Any]
) -> tuple[Permission, ...]:
    """The permissions in order of their names; raises DefinitionError for a policy that nothing here can judge."""
    compiled = []
    for permission in sorted(permissions, key=lambda each: each.name):
        actions = {action.value for action in permission.actions}
        compiled.append(
            Permission(
                name=permission.name,
                views=_matched(permission, views),
                services=_matched(permission, services),
                actions=tuple(action for action in ACTIONS if action in actions),
                **_identities(permission.name, permission.policy),
            )
        )
    return tuple(compiled)


def _matched(permission: Any, resources: Sequence[Any]) -> tuple[str, ...]:
    wanted: Mapping[str, str] = permission.required_tags or {}
    return tuple(
        sorted(
            resource.name
            for resource in resources
            if resource_match_config(resource, permission.types, permission.name_patterns)
            and all((resource.tags or {}).get(tag) == value for tag, value in wanted.items())
        )
    )


def _identities(name: str, policy: Any) -> dict[str, Any]:
    if policy is AllowAll:
        return {"everyone": True}
    if isinstance(policy, RoleBasedPolicy):
        return {"roles": tuple(policy.roles)}
    if isinstance(policy, CombinedGroupNamespacePolicy):
        return {"groups": tuple(policy.groups), "namespaces": tuple(policy.namespaces)}
    if isinstance(policy, GroupBasedPolicy):
        return {"groups": tuple(policy.groups)}
    if isinstance(policy, NamespaceBasedPolicy):
        return {"namespaces": tuple(policy.namespaces)}
    raise DefinitionError(
        f"permission {name!r}: its policy is a {type(policy).__name__}; expected AllowAll, RoleBasedPolicy, "
        "GroupBasedPolicy, NamespaceBasedPolicy or CombinedGroupNamespacePolicy"
    )
