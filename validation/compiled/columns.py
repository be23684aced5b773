"""How are all rules of one column judged in one look?

Most values break nothing, so the text that is generated asks first what all rules of the column ask together: one
range, one set, or for texts one look-up of what such a text breaks. Which rule it was is asked of the others alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from validation.check import INSTANTS, Between, Conforms, InSet, Matches, Null, RowCheckable
from validation.compiled.source import Namespace, bad_value
from validation.instant import to_us

_REMEMBERED: Final = 1_024
_SHORT: Final = 32

Marked = Sequence[tuple[int, RowCheckable]]
"""Bits, each with the check of one column that sets them."""
Define = Callable[[Sequence[str], Namespace, str], Callable[..., Any]]
"""Makes a function of statements, constants and parameters."""


def column_statements(
    column: str, logical_type: str, read: str, marked: Marked, ns: Namespace, define: Define, *, needed: bool
) -> list[str]:
    """Statements that set bits of `m` for one column, whose value is read by the expression `read`.

    Where it is `needed` by statements that follow, its local holds the value then, None where it is missing.
    """
    absent = sum(bit for bit, check in marked if isinstance(check, Null) and not check.null)
    present = [(bit, check) for bit, check in marked if not isinstance(check, Null) or check.null]
    local = ns.local(column)
    missing = [f"m |= {absent}"] if absent else []
    if logical_type == "string" and (len(present) > 1 or any(isinstance(check, Matches) for _, check in present)):
        known = ns.constant(TextBits(absent, _bits_of(column, present, define)))
        if not needed:
            return [f"m |= {known}[{read}]"]
        return [f"{local} = {read}", f"m |= {known}[{local}]", f"if {local} != {local}: {local} = None"]
    shaped = [(bit, check) for bit, check in present if isinstance(check, Conforms)]
    present = [(bit, check) for bit, check in present if not isinstance(check, Conforms)]
    statements = [f"{local} = {read}"]
    if logical_type in INSTANTS:
        statements += [f"if {local}.__class__ is not int: {local} = {ns.constant(to_us)}({local})"]
    single = [f"if {bad_value(check, ns)}: m |= {bit}" for bit, check in present if not isinstance(check, Null)]
    single += [f"m |= {bit}" for bit, check in present if isinstance(check, Null)]
    if shaped:
        # Before all others: what is of no use to a range or a set may stop them.
        statements += [f"if {local} is not None and {bad_value(check, ns)}: m |= {bit}" for bit, check in shaped]
        if not present and not missing and not needed:
            return statements
    good = _good(present, ns)
    if logical_type in INSTANTS:
        # What reads instants leaves no NaN.
        return [*statements, *_branches((f"{local} is None", missing), (good and f"not ({good})", single))]
    gone = [f"{local} = None", *missing]
    if not good:
        return [*statements, *_branches((f"{local} is None or {local} != {local}", gone), (None, single))]
    # NaN is in no range and in no set: who is in them need not be asked.
    nan = [f"if {local} != {local}:", *_indented(gone), "else:", *_indented(single)]
    return [*statements, *_branches((f"{local} is None", missing), (f"not ({good})", nan))]


def _branches(*given: tuple[str | None, list[str]]) -> list[str]:
    """An if statement of conditions and bodies; a condition of None is always met."""
    given = tuple((condition, body) for condition, body in given if body or condition)
    while given and not given[-1][1]:
        given = given[:-1]
    lines = []
    for n, (condition, body) in enumerate(given):
        word = "else:" if condition is None else f"{'elif' if n else 'if'} {condition}:"
        lines += [word, *_indented(body or ["pass"])]
    return lines


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _good(present: Marked, ns: Namespace) -> str | None:
    """An expression that is true only where a value breaks none of the checks; None where there is none."""
    ranges = [check for _, check in present if isinstance(check, Between) and check.of == "value"]
    sets = [frozenset(check.values) for _, check in present if isinstance(check, InSet) and not check.negate]
    if len(ranges) + len(sets) < len(present) or not _asks_something(ranges, sets):
        return None
    (column,) = {check.column for check in ranges} | {check.column for _, check in present if isinstance(check, InSet)}
    local, parts = ns.local(column), []
    if sets:
        parts.append(f"{local} in {ns.constant(frozenset.intersection(*sets))}")
    if ranges:
        parts.append(_within(ranges, local, ns))
    return " and ".join(parts)


def _asks_something(ranges: Sequence[Between], sets: Sequence[frozenset[Any]]) -> bool:
    """Whether NaN is outside: a range without bounds holds everything, and so does no range at all."""
    bounded = any(check.low is not None or check.high is not None for check in ranges)
    return (bounded or bool(sets)) and not any(value is None or value != value for each in sets for value in each)


def _within(ranges: Sequence[Between], local: str, ns: Namespace) -> str:
    """The one range in which a value is in all of them."""
    lows = [(check.low, check.strict_low) for check in ranges if check.low is not None]
    highs = [(check.high, not check.strict_high) for check in ranges if check.high is not None]
    left = right = ""
    if lows:
        low, strict = max(lows)
        left = f"{ns.constant(low)} {'<' if strict else '<='} "
    if highs:
        high, inclusive = min(highs)
        right = f" {'<=' if inclusive else '<'} {ns.constant(high)}"
    return f"{left}{local}{right}"


def _bits_of(column: str, present: Marked, define: Define) -> Callable[[Any], int]:
    """A function of one value that is there: the bits it sets."""
    ns = Namespace()
    local = ns.local(column)
    lines = ["m = 0"]
    for bit, check in present:
        guard = "" if isinstance(check, Null) else f"if {bad_value(check, ns)}: "
        lines.append(f"{guard}m |= {bit}")
    made: Callable[[Any], int] = define([*lines, "return m"], ns, local)
    return made


class TextBits(dict[Any, int]):
    """Text -> the bits it sets; of the first short texts that come, they are remembered.

    Codes and names repeat, and looking one up takes a sixth of the time of searching one pattern in it. What is
    remembered stays, so that a column of many texts pays for no more than a look-up in vain.
    """

    def __init__(self, absent: int, judge: Callable[[Any], int]) -> None:
        super().__init__()
        self._absent = absent
        self._judge = judge

    def __missing__(self, value: Any) -> int:
        if value is None or value != value:
            return self._absent
        bits = self._judge(value)
        # Only texts are remembered: 1, 1.0 and True are one key, and each breaks other rules.
        if value.__class__ is str and len(self) < _REMEMBERED and len(value) <= _SHORT:
            self[value] = bits
        return bits
