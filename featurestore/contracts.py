"""Which contracts are about these features, and which of their rules can be held against them?

A source's contract promises rows, not matches. Where its columns have become features, in a training set or in an
answer, its rules about values that are there still hold: ranges, sets, patterns, pairs, and means, medians, extremes
and deviations of a column. Whether a value is there, how often a row occurs and how many rows there are is not the
source's to promise: a key without a row, or with an expired one, has no value. A rule that says so itself
(`mode.training`, `mode.online_serve`) is held all the same. Contracts of a view (`feastView`) or service
(`feastService`) are about the features as they go out, and all of their rules hold.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from featurestore.plan import Plan, Projection, Source, View
from validation.check import Aggregate, Expectation, Null, RowCheckable
from validation.contract import SERVICE, VIEW, Boundary, Contract, Rule

_OF_VALUES: Final = frozenset({"mean", "median", "min", "max", "stdev"})


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A contract with the rules that are held against features, each with its mode there."""

    contract: Contract
    columns: dict[str, str]
    """Column of the contract -> column of the set or answer."""


def contract_of(contracts: Iterable[Contract], source: Source) -> Contract | None:
    """The contract about a source: by its name, else by that of its topic or push source."""
    return contract_about(contracts, [source.name, source.topic.name if source.topic is not None else "", source.push])


def contract_about(contracts: Iterable[Contract], names: Sequence[str]) -> Contract | None:
    """The contract about the first of these names that has one; empty names have none."""
    by_source = {contract.source: contract for contract in contracts}
    return next((by_source[name] for name in names if name and name in by_source), None)


def held(
    plan: Plan,
    projections: Sequence[Projection],
    names: Mapping[tuple[str, str], str],
    *,
    boundary: Boundary,
    service: str | None,
    others: Sequence[str] = (),
) -> list[Held]:
    """The contracts that are held against features; those without a rule that can be are left out.

    `names` gives the column of each (projection, feature) that goes out, `others` the columns beside features.
    """
    found = []
    for projection in projections:
        view = plan.views.get(projection.view)
        if view is None:
            continue  # an on-demand view has no source of its own
        mine = {feature: names[projection.name, feature] for feature in projection.features}
        contract = contract_of(plan.contracts.values(), view.source) if view.kind == "latest" else None
        if contract is not None:
            found.append(_of_source(contract, view, mine, boundary))
        promised = _named(plan, VIEW + view.name)
        if promised is not None:
            keys = {key.name: projection.join_key_map.get(key.name, key.name) for key in view.join_keys}
            columns = {**{name: column for name, column in keys.items() if column in others}, **mine}
            found.append(_kept(promised, columns, boundary, lambda _rule, _meaning: True))
    whole = _named(plan, SERVICE + service) if service is not None else None
    if whole is not None:
        found.append(Held(contract=whole.at(boundary), columns={name: name for name in [*others, *names.values()]}))
    return [one for one in found if one.contract.rules]


def _named(plan: Plan, source: str) -> Contract | None:
    return next((contract for contract in plan.contracts.values() if contract.source == source), None)


def _of_source(contract: Contract, view: View, features: Mapping[str, str], boundary: Boundary) -> Held:
    mapping = view.source.field_mapping
    columns = {
        column.name: features[mapping.get(column.name, column.name)]
        for column in contract.columns
        if mapping.get(column.name, column.name) in features
    }
    return _kept(contract, columns, boundary, lambda rule, meaning: boundary in rule.modes or _of_values(meaning))


def _kept(
    contract: Contract, columns: dict[str, str], boundary: Boundary, holds: Callable[[Rule, Expectation], bool]
) -> Held:
    rules = zip(contract.rules, contract.expectations(), strict=True)
    kept = tuple(rule for rule, meaning in rules if set(meaning.columns) <= set(columns) and holds(rule, meaning))
    return Held(contract=msgspec.structs.replace(contract, rules=kept).at(boundary), columns=columns)


def _of_values(meaning: Expectation) -> bool:
    if isinstance(meaning.check, Aggregate):
        return meaning.check.column is not None and meaning.check.function in _OF_VALUES
    return isinstance(meaning.check, RowCheckable) and not isinstance(meaning.check, Null)
