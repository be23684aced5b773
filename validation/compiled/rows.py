"""Which rules does each event break?

One generated Python function judges a sequence of events and returns a bit mask for each: bit i is set where rule i of
the contract is broken. It answers as Great Expectations does on pandas: NULL and NaN are missing, missing values are
ignored except by the null rules. A value that is not of its column's logical type, so that a rule cannot be applied to
it, breaks that rule; it never stops its neighbours from being judged.

Rules of one event and its arrival set bits. Unique, aggregate and table rules, and those that only Great Expectations
judges, are listed in `unjudged` and never set one; with the mode `quarantine` they are refused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from validation.check import ARRIVAL, Across, Expectation, Null, Pair, RowCheckable
from validation.compiled.columns import column_statements
from validation.compiled.source import Namespace, bad_row, bad_value, bad_whole_row, holds
from validation.contract import Contract, why_not_by_row
from validation.errors import ContractError

HOLDS: Final = 0
BROKEN: Final = 1
MISSING: Final = 2
"""The row is not considered: its values are missing."""
FILTERED: Final = 3
"""The row is not considered: the row condition does not hold."""

Event = Any
"""A mapping of column -> value, or a Struct with the columns as attributes."""
_FEW: Final = 32
_UNJUDGEABLE = (TypeError, ValueError, ArithmeticError)


@dataclass(frozen=True, eq=False, slots=True)
class RowCheck:
    """A contract's rules as one function over events."""

    contract: str
    version: str
    rule_ids: tuple[str, ...]
    """In the order of the bits."""
    quarantine_mask: int
    """The bits of the rules whose breach sets the event aside."""
    unjudged: tuple[str, ...]
    """Rules that one event and its arrival cannot decide: their bits stay 0."""
    source: str
    """The generated text, for the curious."""
    _mappings: Callable[..., list[int]] = field(repr=False)
    _structs: Callable[..., list[int]] = field(repr=False)
    _single: tuple[Callable[[Event, int | None], int] | None, ...] = field(repr=False)

    def check(self, events: Sequence[Event], arrival_us: Sequence[int] | None = None) -> list[int]:
        """The mask of each event; `arrival_us` are their arrivals, without which rules about arrival see none.

        Events are all mappings (column -> value) or all Structs (attributes); an absent column is missing. Instants
        may be datetimes, ISO 8601 text or microseconds.
        """
        if not events:
            return []
        first = events[0]
        # Asking an abstract class costs as much as judging half an event.
        whole = self._mappings if first.__class__ is dict or isinstance(first, Mapping) else self._structs
        arrivals: Sequence[int | None] = [None] * len(events) if arrival_us is None else arrival_us
        if len(arrivals) != len(events):
            raise ValueError(f"{len(events)} events and {len(arrivals)} arrivals")
        try:
            return whole(events, arrivals)
        except _UNJUDGEABLE:
            return [self._alone(whole, event, arrival) for event, arrival in zip(events, arrivals, strict=True)]

    def _alone(self, whole: Callable[..., list[int]], event: Event, arrival: int | None) -> int:
        try:
            return whole([event], [arrival])[0]
        except _UNJUDGEABLE:
            mask = 0
            for bit, judge in enumerate(self._single):
                if judge is not None and judge_one(judge, event, arrival) == BROKEN:
                    mask |= 1 << bit
            return mask

    def judge(self, rule: int) -> Callable[[Event, int | None], int] | None:
        """A function that judges one event by one rule (HOLDS, BROKEN, MISSING, FILTERED); None where there is none."""
        judge = self._single[rule]
        return None if judge is None else lambda event, arrival: judge_one(judge, event, arrival)

    def ids(self, mask: int) -> tuple[str, ...]:
        """The ids of the rules in a mask."""
        return tuple(rule_id for bit, rule_id in enumerate(self.rule_ids) if mask >> bit & 1)

    def tally(self, masks: Sequence[int]) -> list[int]:
        """How many of the masks have each bit."""
        counts = [0] * len(self.rule_ids)
        if len(masks) <= _FEW:
            alike = {mask: masks.count(mask) for mask in set(masks)}
        else:
            alike = dict.fromkeys(masks, 0)
            for mask in masks:
                alike[mask] += 1
        for mask, count in alike.items():
            while mask:
                low = mask & -mask
                counts[low.bit_length() - 1] += count
                mask ^= low
        return counts


def judge_one(judge: Callable[[Event, int | None], int], event: Event, arrival: int | None) -> int:
    """The judgement of one event; a value that the rule cannot be applied to breaks it."""
    try:
        return judge(event, arrival)
    except _UNJUDGEABLE:
        return BROKEN


def compile_rows(contract: Contract) -> RowCheck:
    """The contract's rules for events; raises ContractError where a quarantining rule needs more than one event.

    >>> from validation.contract import Column, Rule
    >>> check = compile_rows(Contract(name="c", version="1", source="s", rules=(
    ...     Rule(id="late", expectation="expect_column_values_to_be_between",
    ...          arguments={"column": "delay", "max_value": 15}, mode="quarantine"),
    ... ), columns=(Column(name="delay", logical_type="number"),)))
    >>> check.check([{"delay": 3.0}, {"delay": 99.0}, {"delay": None}, {"delay": "soon"}])
    [0, 1, 0, 1]
    """
    meanings = contract.expectations()
    unjudged, quarantine = [], 0
    for bit, (rule, meaning) in enumerate(zip(contract.rules, meanings, strict=True)):
        if not isinstance(meaning.check, RowCheckable):
            unjudged.append(rule.id)
        if rule.mode == "quarantine":
            if not meaning.by_row:
                raise ContractError(
                    f"contract {contract.name!r}, rule {rule.id!r}: mode quarantine cannot be kept for events: "
                    f"{why_not_by_row(meaning)}; allowed: observe, warn, block"
                )
            quarantine |= 1 << bit
    mappings, source = _whole(meanings, contract.types, of_mappings=True)
    structs, _ = _whole(meanings, contract.types, of_mappings=False)
    return RowCheck(
        contract=contract.name,
        version=contract.version,
        rule_ids=tuple(rule.id for rule in contract.rules),
        quarantine_mask=quarantine,
        unjudged=tuple(unjudged),
        source=source,
        _mappings=mappings,
        _structs=structs,
        _single=tuple(_single(meaning, contract.types) for meaning in meanings),
    )


def _whole(
    meanings: Sequence[Expectation], types: Mapping[str, str], *, of_mappings: bool
) -> tuple[Callable[..., list[int]], str]:
    ns = Namespace()
    marked: dict[str, list[tuple[int, RowCheckable]]] = {}
    """Column -> bits of the rules about it alone, with their checks."""
    rest: list[str] = []
    for bit, meaning in enumerate(meanings):
        check, mark = meaning.check, f"m |= {1 << bit}"
        if not isinstance(check, RowCheckable):
            continue
        if isinstance(check, Pair | Across):
            guard = "" if meaning.where is None else f"{holds(meaning.where, ns)} and "
            rest.append(f"if {guard}({bad_whole_row(check, ns)}): {mark}")
        elif meaning.where is not None:
            local = ns.local(check.column)
            bad = f"{local} is {'not ' if check.null else ''}None" if isinstance(check, Null) else bad_value(check, ns)
            considered = "True" if isinstance(check, Null) else f"{local} is not None"
            rest.append(f"if {holds(meaning.where, ns)} and {considered} and ({bad}): {mark}")
        else:
            marked.setdefault(check.column, []).append((1 << bit, check))
    needed = set(ns.columns)
    body = ["m = 0"]
    for column in dict.fromkeys((*ns.columns, *marked)):
        logical, read = types.get(column, "timestamp"), _read(column, ns, of_mappings=of_mappings)
        given = marked.get(column, ())
        body += column_statements(column, logical, read, given, ns, _define_one, needed=column in needed)
    body += [*rest, "add(m)"]
    getter = ["get = e.get"] if of_mappings else []
    lines = ["masks = []", "add = masks.append", "for e, arrival in zip(events, arrivals):"]
    lines += [f"    {line}" for line in (*getter, *body)]
    lines += ["return masks"]
    return _define(lines, ns, "events, arrivals")


def _define_one(lines: Sequence[str], ns: Namespace, parameters: str) -> Callable[..., Any]:
    return _define(lines, ns, parameters)[0]


def _single(meaning: Expectation, types: Mapping[str, str]) -> Callable[[Event, int | None], int] | None:
    check, ns = meaning.check, Namespace()
    if not isinstance(check, RowCheckable):
        return None
    if isinstance(check, Pair | Across):
        considered, bad = bad_row(check, ns)
    else:
        local = ns.local(check.column)
        if isinstance(check, Null):
            considered, bad = "True", f"{local} is {'not ' if check.null else ''}None"
        else:
            considered, bad = f"{local} is not None", bad_value(check, ns)
    where = "True" if meaning.where is None else holds(meaning.where, ns)
    lines = ["get = e.get if hasattr(e, 'get') else (lambda name: getattr(e, name, None))"]
    for column in ns.columns:
        lines += column_statements(
            column,
            types.get(column, "timestamp"),
            _read(column, ns, of_mappings=True),
            (),
            ns,
            _define_one,
            needed=True,
        )
    lines += [f"if not ({where}): return {FILTERED}", f"if not ({considered}): return {MISSING}"]
    lines += [f"return {BROKEN} if ({bad}) else {HOLDS}"]
    return _define(lines, ns, "e, arrival")[0]


def _read(column: str, ns: Namespace, *, of_mappings: bool) -> str:
    """An expression of what an event says of a column."""
    name = ns.constant(column)
    value = f"get({name})" if of_mappings else f"getattr(e, {name}, None)"
    # What the boundary says about arrival goes before what the row says of itself.
    return f"arrival if arrival is not None else {value}" if column == ARRIVAL else value


def _define(lines: Sequence[str], ns: Namespace, parameters: str) -> tuple[Callable[..., Any], str]:
    # Constants are default values of parameters: locals, which Python reads faster than globals.
    defaults = "".join(f", {name}={name}" for name in ns.constants)
    text = f"def judge({parameters}{defaults}):\n" + "".join(f"    {line}\n" for line in lines)
    scope = dict(ns.constants)
    exec(compile(text, "<contract>", "exec"), scope)  # noqa: S102  # text of ours alone: see validation.compiled.source
    return scope["judge"], text
