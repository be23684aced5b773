"""Which rules of a source's contract can be judged on the rows of a view, and what may none of its rows break?"""

import re
from collections.abc import Collection
from dataclasses import dataclass

import msgspec

from featurestore.contracts import contract_of
from featurestore.plan import Plan, View
from validation.compiled.rows import RowCheck, compile_rows
from validation.contract import Contract, Rule

_COLUMNS = ("column", "column_A", "column_B", "column_list", "column_set")
_REFUSING = ("quarantine", "block")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, eq=False)
class ViewRules:
    """The rules that no row of a view may break."""

    check: RowCheck
    rules: tuple[Rule, ...]
    """In the order of the check's bits."""
    contract: Contract
    """With these rules alone."""

    @property
    def columns(self) -> tuple[tuple[str, ...], ...]:
        """The columns that each rule is about, as the source names them."""
        return tuple(columns_of_rule(rule) for rule in self.rules)


def rules_of(plan: Plan, view: View, names: Collection[str]) -> ViewRules | None:
    """The rules of mode quarantine or block that rows with these columns of the source decide; None where none are."""
    contract = contract_of(plan.contracts.values(), view.source)
    return None if contract is None else rules_for(contract, names)


def rules_for(contract: Contract, names: Collection[str]) -> ViewRules | None:
    """The same, of a contract that is known already."""
    contract = contract.at("online_write")
    rules = tuple(rule for rule in contract.rules if rule.mode in _REFUSING and _decided(rule, contract, names))
    if not rules:
        return None
    contract = msgspec.structs.replace(contract, rules=rules)
    return ViewRules(compile_rows(contract), rules, contract)


def columns_of_rule(rule: Rule) -> tuple[str, ...]:
    """The columns that a rule judges.

    >>> columns_of_rule(Rule(id="r", expectation="e", arguments={"column_A": "a", "column_B": "b"}))
    ('a', 'b')
    """
    found: list[str] = []
    for argument in _COLUMNS:
        value = rule.arguments.get(argument)
        found += [value] if isinstance(value, str) else list(value) if isinstance(value, (list, tuple, set)) else []
    return tuple(found)


def _decided(rule: Rule, contract: Contract, names: Collection[str]) -> bool:
    columns = columns_of_rule(rule)
    condition = set(_WORD.findall(str(rule.arguments.get("row_condition") or "")))
    elsewhere = {column.name for column in contract.columns} - set(names)
    return bool(columns) and set(columns) <= set(names) and not condition & elsewhere
