"""Do the examples that a contract gives keep the contract itself?

Whoever sends the data copies them first. An example is held to its column's logical type, and to the rules that its
column alone decides, row by row; nothing is said of those that need other columns or more than one row.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from validation.check import UNTYPED
from validation.compiled.rows import compile_rows
from validation.contract import Column, Contract
from validation.instant import to_us

_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "time": (str,),
    "object": (dict,),
    "array": (list,),
    "map": (dict,),
    "vector": (list,),
}


def wrong_examples(contract: Contract) -> list[str]:
    """What is wrong with them, a line for each; empty where none is.

    >>> from validation.testing import ORDERS
    >>> amount = msgspec.structs.replace(ORDERS.columns[1], examples=(9.5, -1, "much"))
    >>> wrong_examples(msgspec.structs.replace(ORDERS, columns=(ORDERS.columns[0], amount)))
    ["column 'amount': example -1 breaks rule positive", "column 'amount': example 'much' is no number"]
    """
    return [line for column in contract.columns if column.examples for line in _wrong(column, contract)]


def _wrong(column: Column, contract: Contract) -> list[str]:
    told = zip(contract.rules, contract.expectations(), strict=True)
    alone = tuple(
        msgspec.structs.replace(rule, mode="observe", modes={})
        for rule, meaning in told
        if meaning.by_row and meaning.where is None and rule.columns == (column.name,)
    )
    check = compile_rows(msgspec.structs.replace(contract, rules=alone))
    found = []
    for example in column.examples:
        (mask,) = check.check([{column.name: example}])
        if not _fits(example, column.logical_type):
            found.append(f"column {column.name!r}: example {example!r} is no {column.logical_type}")
        elif mask:
            rules = ", ".join(check.ids(mask))
            found.append(f"column {column.name!r}: example {example!r} breaks rule {rules}")
    return found


def _fits(example: Any, logical: str) -> bool:
    if logical == UNTYPED:
        return True
    if logical not in _TYPES:
        try:
            return isinstance(example, str) and to_us(example) is not None
        except ValueError:
            return False
    return isinstance(example, _TYPES[logical]) and (logical == "boolean") == isinstance(example, bool)
