"""Where is each contract kept? Boundary by boundary, in which modes."""

from collections import Counter
from collections.abc import Mapping
from typing import Final

import msgspec

from validation.check import Aggregate, Expectation, RowCheckable, Unique
from validation.contract import BOUNDARIES, MODES, Boundary, Contract
from validation.reach import Reach

KEPT_BY: Final[Mapping[Boundary, str]] = {
    "producer": "kept by `featurestore contract test`",
    "event": "kept by `featurestore stream run`: event by event, rules about many over windows of arrival",
    "source": "kept by materialization, by whichever way: over the rows about to be loaded",
    "training": "kept by `featurestore dataset build`; verdicts stand in the manifest",
    "online_write": "kept by writes through the API and Feast's SDK: quarantine and block refuse, the rest is told",
    "online_serve": "kept by `featurestore serve`: a sample of its answers is judged after the response",
}
"""What of this product judges rows at a boundary."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One contract at one boundary."""

    source: str
    contract: str
    version: str
    boundary: Boundary
    applies: bool
    """Whether rows of the source cross this boundary: an event needs a stream, the last four a latest-value view."""
    modes: dict[str, int]
    """Mode -> rules; of events and answers those alone that can be judged there."""


def status(contracts: Mapping[str, Contract], reach: Reach | None = None) -> list[Kept]:
    """Each contract at each boundary, in their orders; without a plan every boundary is taken to apply.

    >>> from validation.testing import ORDERS
    >>> [(kept.boundary, kept.modes) for kept in status({"orders": ORDERS})][:2]
    [('producer', {'observe': 1, 'quarantine': 1}), ('event', {'observe': 1, 'quarantine': 1})]
    """
    return [
        Kept(
            source=source,
            contract=contract.name,
            version=contract.version,
            boundary=boundary,
            applies=reach is None or boundary == "producer" or boundary in reach.boundaries(source),
            modes=_modes(contract, boundary),
        )
        for source, contract in sorted(contracts.items())
        for boundary in BOUNDARIES
    ]


def _modes(contract: Contract, boundary: Boundary) -> dict[str, int]:
    counts: Counter[str] = Counter(
        rule.mode_at(boundary)
        for rule, meaning in zip(contract.rules, contract.expectations(), strict=True)
        if _judged(meaning, boundary)
    )
    return {mode: counts[mode] for mode in MODES if counts[mode]}


def _judged(meaning: Expectation, boundary: Boundary) -> bool:
    """Whether a rule can be judged at a boundary: events one by one or over windows, writes and answers row by row."""
    match boundary:
        case "event":
            over_windows = isinstance(meaning.check, Unique) or (
                isinstance(meaning.check, Aggregate) and meaning.check.column is not None
            )
            return isinstance(meaning.check, RowCheckable) or over_windows
        case "online_write":
            return meaning.by_row
        case "online_serve":
            return isinstance(meaning.check, RowCheckable)
        case _:
            return True
