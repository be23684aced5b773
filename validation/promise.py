"""What does a contract promise about time and volume?"""

import re
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

from validation.odcs import Place

Kind = Literal["freshness", "latency", "volume"]
KINDS: Final[tuple[Kind, ...]] = ("freshness", "latency", "volume")
_UNITS: Final[Mapping[str, int]] = {
    unit: seconds * 1_000_000
    for units, seconds in (
        (("s", "second", "seconds"), 1),
        (("m", "min", "minute", "minutes"), 60),
        (("h", "hour", "hours"), 3600),
        (("d", "day", "days"), 86_400),
    )
    for unit in units
}
_CALENDAR: Final = frozenset(("w", "week", "weeks", "mo", "month", "months", "y", "yr", "year", "years"))
"""Units of the standard that are no number of seconds, or of no use here."""
_SEVERITIES: Final = ("critical", "warning", "info")
_MODES: Final = ("observe", "warn", "block")
"""A promise about many rows sets no single row aside."""


class Promise(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of ODCS's `slaProperties` that is judged here."""

    id: str
    kind: Kind
    column: str = ""
    """The column of instants: event time, or `_arrival`."""
    limit_us: int = 0
    least: int | None = None
    most: int | None = None
    """Rows; of volume alone."""
    per_us: int | None = None
    """Only rows that arrived so long ago at most count, of volume and latency; None: all that there are."""
    mostly: float = 1.0
    """The least share of rows that keep a latency."""
    severity: Literal["critical", "warning", "info"] = "warning"
    mode: Literal["observe", "warn", "block"] = "observe"


def promises(
    root: Place, source: str, instants: tuple[str, ...], *, object_name: str = "", columns: Sequence[str] = ()
) -> tuple[tuple[Promise, ...], tuple[str, ...]]:
    """The promises of `slaProperties`, and the names of those that nothing here judges (retention, support hours, …).

    `instants` are the columns that an element may name, `columns` all of the schema object `object_name`. Raises
    ContractError with the place.
    """
    found: dict[str, Promise] = {}
    unjudged = []
    for item in root.items("slaProperties"):
        kind = item.text("property")
        if kind not in KINDS:
            unjudged.append(f"sla {kind}")
            continue
        if _elsewhere(item, kind, instants, object_name, columns):
            unjudged.append(f"sla {item.text('id', kind)}")
            continue
        promise = _promise(item, kind, source, instants)
        if promise.id in found:
            raise item.error(f"promise {promise.id!r} is given twice; give each an id")
        found[promise.id] = promise
    return tuple(found.values()), tuple(unjudged)


def _elsewhere(item: Place, kind: str, instants: tuple[str, ...], object_name: str, columns: Sequence[str]) -> bool:
    """Whether a promise is about another object, about no column of instants, or not in numbers."""
    table, dot, column = item.text("element", "").rpartition(".")
    if dot and object_name and table.rpartition(".")[2] != object_name:
        return True
    if kind == "volume":
        return isinstance(item.value.get("value"), str)
    named = column not in instants and (not column or column in columns or column == object_name)
    return named or isinstance(item.value.get("value"), str) or item.text("unit", "s") in _CALENDAR


def _promise(item: Place, kind: Kind, source: str, instants: tuple[str, ...]) -> Promise:
    column = item.text("element", "").rpartition(".")[2]
    if kind != "volume" and column not in instants:
        raise item.child("element").error(f"found {column!r}; expected a column of instants: {', '.join(instants)}")
    head: dict[str, object] = {
        "id": item.text("id", f"{source}_{kind}" + (f"_{column}" if column and kind != "volume" else "")),
        "severity": item.choice("severity", _SEVERITIES, "warning"),
        "mode": item.custom("mode", _MODES, "observe"),
        "per_us": _per_us(item, kind),
    }
    value, other = item.value.get("value"), item.value.get("valueExt")
    if kind == "volume":
        for name, bound in (("value", value), ("valueExt", other)):
            if not isinstance(bound, int | None) or isinstance(bound, bool) or (bound or 0) < 0:
                raise item.child(name).error(f"found {bound!r}; expected a number of rows")
        if value is None and other is None:
            raise item.error("neither value (the least rows) nor valueExt (the most) is given")
        return msgspec.convert({**head, "kind": kind, "least": value, "most": other}, Promise)
    unit = item.text("unit", "s")
    if unit not in _UNITS:
        raise item.child("unit").error(f"found {unit!r}; allowed: {', '.join(_UNITS)}")
    if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
        raise item.child("value").error(f"found {value!r}; expected a duration in {unit}")
    share = item.custom_text("mostly", "1")
    if not re.fullmatch(r"1(\.0*)?|0(\.\d*)?", share):
        raise item.child("customProperties").error(f"found mostly {share!r}; expected a share between 0 and 1")
    limit_us = round(value * _UNITS[unit])
    return msgspec.convert(
        {**head, "kind": kind, "column": column, "limit_us": limit_us, "mostly": float(share)}, Promise
    )


def _per_us(item: Place, kind: Kind) -> int | None:
    """The custom property `per`, as in `1 h`."""
    text = item.custom_text("per", "")
    if not text:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text)
    if kind == "freshness" or found is None or found[2] not in _UNITS or not float(found[1]):
        raise item.child("customProperties").error(
            f"found per {text!r}; expected a duration, as in 1 h, of a volume or a latency; units: {', '.join(_UNITS)}"
        )
    return round(float(found[1]) * _UNITS[found[2]])
