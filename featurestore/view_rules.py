"""Which rules of a source's contract can be judged on the rows of a view, and which of them may no row break?"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec

from featurestore.contracts import contract_of
from featurestore.plan import Plan, View
from validation.compiled.rows import RowCheck, compile_rows
from validation.contract import Contract, Rule

_REFUSING = ("quarantine", "block")
_WORD = re.compile(r"\w+")
_TOLD = 10


@dataclass(frozen=True, eq=False)
class ViewRules:
    """The rules that each row of a view decides by itself."""

    check: RowCheck
    rules: tuple[Rule, ...]
    """In the order of the check's bits."""
    contract: Contract
    """With these rules alone."""
    refusing: int
    """The bits of the rules that no row may break: those of mode quarantine or block."""

    @property
    def columns(self) -> tuple[tuple[str, ...], ...]:
        """The columns that each rule is about, as the source names them."""
        return tuple(rule.columns for rule in self.rules)

    def refusal(self, view: str, masks: Sequence[int]) -> str | None:
        """Why rows with these masks are not written, which rows and which rules; None where they are."""
        refused = [(number, mask & self.refusing) for number, mask in enumerate(masks) if mask & self.refusing]
        if not refused:
            return None
        numbers = [str(number) for number, _ in refused]
        broken = [rule.id for bit, rule in enumerate(self.rules) if any(mask >> bit & 1 for _, mask in refused)]
        return (
            f"view {view!r}: row {', '.join(numbers[:_TOLD])} (counted from 0) breaks contract "
            f"{self.check.contract!r}, rules {', '.join(broken[:_TOLD])}; nothing was written"
        )


def rules_of(plan: Plan, view: View, names: Collection[str]) -> ViewRules | None:
    """The rules that each row with these columns of the source decides, in any mode; None where there are none."""
    contract = contract_of(plan.contracts.values(), view.source)
    return None if contract is None else rules_for(contract, names)


def rules_for(contract: Contract, names: Collection[str]) -> ViewRules | None:
    """The same, of a contract that is known already."""
    contract = contract.at("online_write")
    meant = zip(contract.rules, contract.expectations(), strict=True)
    rules = tuple(rule for rule, meaning in meant if meaning.by_row and _decided(rule, contract, names))
    if not rules:
        return None
    contract = msgspec.structs.replace(contract, rules=rules)
    refusing = sum(1 << bit for bit, rule in enumerate(rules) if rule.mode in _REFUSING)
    return ViewRules(compile_rows(contract), rules, contract, refusing)


def _decided(rule: Rule, contract: Contract, names: Collection[str]) -> bool:
    columns = rule.columns
    condition = set(_WORD.findall(str(rule.arguments.get("row_condition") or "")))
    elsewhere = {column.name for column in contract.columns} - set(names)
    return bool(columns) and set(columns) <= set(names) and not condition & elsewhere
