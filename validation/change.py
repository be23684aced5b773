"""What does a new version of a contract change, and for whom does it break?

A change breaks *consumers* where data may come that the old promise ruled out, and *producers* where data that kept the
old promise no longer keeps the new one. A wider enumeration therefore breaks consumers, a narrower one producers.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from validation.check import Aggregate, Between, InSet, Pair
from validation.contract import MODES, Column, Contract, Rule, meaning_of
from validation.promise import Promise

Party = Literal["consumers", "producers"]
Level = Literal["major", "minor", "patch"]
BOTH: Final[tuple[Party, ...]] = ("consumers", "producers")
LEVELS: Final[tuple[Level, ...]] = ("patch", "minor", "major")
_REJECTING: Final = frozenset({"quarantine", "block"})
_DERIVED: Final = ("_required", "_unique")
"""Endings of the rules that the schema itself states: `required` and `unique` tell of them already."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One difference between two versions of a contract."""

    id: str
    """What a waiver names, e.g. `column.carrier.removed`."""
    message: str
    breaks: tuple[Party, ...] = ()
    columns: tuple[str, ...] = ()
    """The columns it is about; empty: the whole source."""
    minor: bool = False
    """Whether it adds something, where it breaks nobody."""

    @property
    def level(self) -> Level:
        """Which part of the version it asks to grow."""
        return "major" if self.breaks else "minor" if self.minor else "patch"


def changes(old: Contract, new: Contract) -> tuple[Change, ...]:
    """Every difference between two versions, the breaking ones first; raises ContractError where a rule is wrong.

    >>> x, y = (Column(name="x", logical_type=kind) for kind in ("number", "integer"))
    >>> a = Contract(name="c", version="1.0.0", source="s", columns=(x,), rules=())
    >>> b = msgspec.structs.replace(a, columns=(y,))
    >>> [(change.id, change.breaks) for change in changes(a, b)]
    [('column.x.type', ('producers',))]
    """
    found = [*_of_contract(old, new), *_of_columns(old, new), *_of_rules(old, new), *_of_sla(old, new)]
    return tuple(sorted(found, key=lambda change: (-LEVELS.index(change.level), change.id)))


def level_of(found: Iterable[Change]) -> Level | None:
    """The part of the version that must grow; None where nothing changed."""
    levels = [LEVELS.index(change.level) for change in found]
    return LEVELS[max(levels)] if levels else None


def next_version(version: str, level: Level | None) -> str | None:
    """The least version that announces a change of that level; None where the version is no MAJOR.MINOR.PATCH.

    >>> next_version("1.4.2", "major"), next_version("1.4.2", "patch"), next_version("draft", "major")
    ('2.0.0', '1.4.3', None)
    """
    numbers = _numbers(version)
    if numbers is None or level is None:
        return None if numbers is None else version
    major, minor, patch = numbers
    return {"major": f"{major + 1}.0.0", "minor": f"{major}.{minor + 1}.0", "patch": f"{major}.{minor}.{patch + 1}"}[
        level
    ]


def announced(old: str, new: str, level: Level | None) -> bool:
    """Whether the step from one version to the other is at least of that level.

    >>> announced("1.4.2", "1.5.0", "major"), announced("1.4.2", "2.0.0", "minor")
    (False, True)
    """
    needed, given = _numbers(next_version(old, level) or ""), _numbers(new)
    return needed is None or (given is not None and given >= needed)


def _numbers(version: str) -> tuple[int, int, int] | None:
    parts = version.split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        return None
    return int(parts[0]), int(parts[1]), int(parts[2])


def _of_contract(old: Contract, new: Contract) -> Iterable[Change]:
    if old.source != new.source:
        yield Change(id="contract.source", message=f"source {old.source!r} became {new.source!r}", breaks=BOTH)
    before, after = (tuple(c.name for c in contract.columns if c.primary_key) for contract in (old, new))
    if set(before) != set(after):
        message = f"the primary key {list(before)} became {list(after)}"
        yield Change(id="contract.primary_key", message=message, breaks=BOTH, columns=(*before, *after))
    for name in ("owner", "support", "description"):
        if getattr(old, name) != getattr(new, name):
            message = f"{name} {getattr(old, name)!r} became {getattr(new, name)!r}"
            yield Change(id=f"contract.{name}", message=message)


def _of_columns(old: Contract, new: Contract) -> Iterable[Change]:
    before = {column.name: column for column in old.columns}
    after = {column.name: column for column in new.columns}
    for name, column in before.items():
        if name not in after:
            message = f"column {name!r} is promised no more"
            yield Change(id=f"column.{name}.removed", message=message, breaks=("consumers",), columns=(name,))
        else:
            yield from _of_column(column, after[name])
    for name, column in after.items():
        if name not in before:
            breaks: tuple[Party, ...] = ("producers",) if column.required or column.primary_key else ()
            message = f"column {name!r} ({column.logical_type}) is new" + (", and required" if breaks else "")
            yield Change(id=f"column.{name}.added", message=message, breaks=breaks, columns=(name,), minor=True)


def _of_column(old: Column, new: Column) -> Iterable[Change]:
    def change(what: str, message: str, *breaks: Party, minor: bool = False) -> Change:
        told = f"column {old.name!r}: {message}"
        return Change(id=f"column.{old.name}.{what}", message=told, breaks=breaks, columns=(old.name,), minor=minor)

    if old.logical_type != new.logical_type:
        types = (old.logical_type, new.logical_type)
        wider: Mapping[tuple[str, str], tuple[Party, ...]] = {
            ("integer", "number"): ("consumers",),
            ("number", "integer"): ("producers",),
            ("date", "timestamp"): ("consumers",),
            ("timestamp", "date"): ("producers",),
        }
        yield change("type", f"type {types[0]} became {types[1]}", *wider.get(types, BOTH))
    for name, lost, gained in (
        ("required", "may be missing now", "is required now"),
        ("unique", "may repeat now", "must be unique now"),
    ):
        if getattr(old, name) != getattr(new, name):
            yield change(name, gained, "producers") if getattr(new, name) else change(name, lost, "consumers")
    for name in ("unit", "zone"):
        was, now = getattr(old, name), getattr(new, name)
        if was != now:
            # Every number stays valid and means another thing: nothing else would notice.
            yield change(name, f"{name} {was or 'unstated'} became {now or 'unstated'}", *BOTH)
    impersonal = old.personal and not new.personal
    if old.masked != new.masked or impersonal:
        if old.masked:
            shown = "it is no personal value any more" if new.masked else "reports would show its values"
            yield change("classification", f"classification {old.classification!r} is lost: {shown}", "consumers")
        else:
            yield change("classification", f"is {new.classification!r} now: reports mask its values", minor=True)
    elif old.classification != new.classification:
        yield change("classification", f"classification {old.classification!r} became {new.classification!r}")
    for name in ("description", "examples"):
        if getattr(old, name) != getattr(new, name):
            yield change(name, "its description changed" if name == "description" else "its examples changed")


def _of_rules(old: Contract, new: Contract) -> Iterable[Change]:
    before, after = ({rule.id: rule for rule in contract.rules} for contract in (old, new))
    gone = [rule for rule in old.rules if rule.id not in after]
    come = [rule for rule in new.rules if rule.id not in before]
    for was in list(gone):
        # A rule under another id is the same rule: what it says counts, not what it is called.
        if now := _twin(was, old, come, new):
            gone.remove(was)
            come.remove(now)
            yield Change(
                id=f"rule.{was.id}.renamed",
                message=f"rule {was.id!r} is called {now.id!r} now",
                columns=_columns(was, old),
            )
            yield from _of_rule(was, old, now, new)
    for rule in gone:
        if not _told_by_schema(rule, old, new):
            # An observed rule rejected nothing, but it was a promise all the same.
            message = f"rule {rule.id!r} ({rule.expectation}) is promised no more: looser"
            yield _rule_change(rule, old, "removed", message, "consumers")
    for rule in come:
        if not _told_by_schema(rule, old, new):
            rejecting = _REJECTING & {rule.mode, *rule.modes.values()} or rule.severity == "critical"
            breaks: tuple[Party, ...] = ("producers",) if rejecting else ()
            message = f"rule {rule.id!r} ({rule.expectation}) is new: tighter"
            yield _rule_change(rule, new, "added", message, *breaks, minor=True)
    for name in before.keys() & after.keys():
        yield from _of_rule(before[name], old, after[name], new)


def _rule_change(
    rule: Rule, contract: Contract, what: str, message: str, *breaks: Party, minor: bool = False
) -> Change:
    columns = _columns(rule, contract)
    return Change(id=f"rule.{rule.id}.{what}", message=message, breaks=breaks, columns=columns, minor=minor)


def _columns(rule: Rule, contract: Contract) -> tuple[str, ...]:
    return tuple(name for name in meaning_of(rule, contract).columns if name in contract.types)


def _twin(rule: Rule, contract: Contract, others: Sequence[Rule], new: Contract) -> Rule | None:
    columns = _columns(rule, contract)
    alike = [one for one in others if one.expectation == rule.expectation and _columns(one, new) == columns]
    return next((one for one in alike if one.arguments == rule.arguments), alike[0] if len(alike) == 1 else None)


def _told_by_schema(rule: Rule, old: Contract, new: Contract) -> bool:
    """Whether `required` and `unique` of a column, or the column itself, tell of this rule's coming or going."""
    before, after = ({column.name: column for column in contract.columns} for contract in (old, new))
    column = str(rule.arguments.get("column"))
    if column not in before or column not in after:
        return column in before or column in after
    named = {f"{column}{ending}": ending.removeprefix("_") for ending in _DERIVED}
    return rule.id in named and (
        getattr(before[column], named[rule.id]) != getattr(after[column], named[rule.id])
        or before[column].primary_key != after[column].primary_key
    )


def _of_rule(was: Rule, old: Contract, now: Rule, new: Contract) -> Iterable[Change]:
    if (was.expectation, was.arguments) != (now.expectation, now.arguments):
        breaks = _direction(was, old, now, new)
        word = {("consumers",): "looser", ("producers",): "tighter", (): "said otherwise"}.get(breaks, "other")
        message = f"rule {was.id!r} is {word}: {_said(was)} became {_said(now)}"
        yield _rule_change(
            was, old, {"looser": "loosened", "tighter": "tightened"}.get(word, "changed"), message, *breaks
        )
    was_modes, now_modes = ({"": r.mode, **r.modes} for r in (was, now))
    if was_modes != now_modes:
        parties: list[Party] = []
        for boundary in sorted(was_modes.keys() | now_modes.keys()):
            step = MODES.index(now_modes.get(boundary, now.mode)) - MODES.index(was_modes.get(boundary, was.mode))
            rejects = _REJECTING & {now_modes.get(boundary, now.mode), was_modes.get(boundary, was.mode)}
            if step and rejects:
                parties.append("producers" if step > 0 else "consumers")
        shown = [", ".join(f"{b or 'mode'} {m}" for b, m in modes.items()) for modes in (was_modes, now_modes)]
        message = f"rule {was.id!r}: {shown[0]} became {shown[1]}"
        yield _rule_change(was, old, "mode", message, *(p for p in BOTH if p in parties), minor=True)
    if was.severity != now.severity:
        looser = was.severity == "critical"
        message = f"rule {was.id!r}: severity {was.severity} became {now.severity}"
        # What was critical told consumers that it never happens.
        yield _rule_change(was, old, "severity", message, *(("consumers",) if looser else ()), minor=True)
    if (was.description, was.dimension) != (now.description, now.dimension):
        yield _rule_change(was, old, "description", f"rule {was.id!r}: its description or dimension changed")


def _of_sla(old: Contract, new: Contract) -> Iterable[Change]:
    before, after = ({promise.id: promise for promise in contract.sla} for contract in (old, new))
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name), after.get(name)
        if was is None and now is not None:
            message = f"{now.kind} is promised: {name!r}"
            yield Change(id=f"sla.{name}.added", message=message, breaks=("producers",))
        elif now is None and was is not None:
            message = f"{was.kind} is promised no more: {name!r}"
            yield Change(id=f"sla.{name}.removed", message=message, breaks=("consumers",))
        elif was is not None and now is not None and was != now:
            looser, tighter = _slack(was, now)
            breaks = tuple(party for party, hit in zip(BOTH, (looser, tighter), strict=True) if hit)
            word = "changed" if looser == tighter else "loosened" if looser else "tightened"
            yield Change(id=f"sla.{name}.{word}", message=f"{was.kind} {name!r} is {word}", breaks=breaks)


def _slack(was: Promise, now: Promise) -> tuple[bool, bool]:
    """Whether a promise allows more than it did, and less."""
    if (was.kind, was.column) != (now.kind, now.column):
        return True, True
    room = [
        (p.limit_us, -p.mostly, -(p.least or 0), float("inf") if p.most is None else float(p.most)) for p in (was, now)
    ]
    pairs = list(zip(*room, strict=True))
    return any(b > a for a, b in pairs), any(b < a for a, b in pairs)


def _said(rule: Rule) -> str:
    told = ", ".join(f"{name}={value!r}" for name, value in rule.arguments.items() if name != "column")
    return f"{rule.expectation.removeprefix('expect_')}({told})"


def _direction(was: Rule, old: Contract, now: Rule, new: Contract) -> tuple[Party, ...]:
    """Whom a changed rule breaks: looser consumers, tighter producers, what cannot be compared both."""
    a, b = meaning_of(was, old), meaning_of(now, new)
    if a == b and a.check is not None:
        return ()
    if a.check is None or b.check is None or type(a.check) is not type(b.check) or a.where != b.where:
        return BOTH
    looser = b.mostly < a.mostly
    tighter = b.mostly > a.mostly
    if a.check != b.check:
        compared = _compare(a.check, b.check)
        if compared is None:
            return BOTH
        looser, tighter = looser or compared[0], tighter or compared[1]
    return tuple(party for party, hit in zip(BOTH, (looser, tighter), strict=True) if hit)


def _compare(a: Any, b: Any) -> tuple[bool, bool] | None:
    """Whether b allows what a does not, and a what b does not; None where the two cannot be compared."""
    match a, b:
        case (InSet(), InSet()) if (a.column, a.negate) == (b.column, b.negate):
            more, fewer = bool(set(b.values) - set(a.values)), bool(set(a.values) - set(b.values))
            return (fewer, more) if a.negate else (more, fewer)
        case (Between(), Between()) if (a.column, a.of) == (b.column, b.of):
            return _bounds(a, b)
        case (Aggregate(), Aggregate()) if (a.column, a.function) == (b.column, b.function):
            return _bounds(a, b)
        case (Pair(), Pair()) if (a.a, a.b, a.op, a.ignore) == (b.a, b.b, b.op, b.ignore):
            return b.slack_us > a.slack_us, b.slack_us < a.slack_us
    return None


def _bounds(a: Any, b: Any) -> tuple[bool, bool]:
    lows = [(one.low is not None, one.low if one.low is not None else 0, one.strict_low) for one in (a, b)]
    highs = [(one.high is None, one.high if one.high is not None else 0, not one.strict_high) for one in (a, b)]
    return lows[1] < lows[0] or highs[1] > highs[0], lows[1] > lows[0] or highs[1] < highs[0]
