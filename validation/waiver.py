"""Who has agreed to a breaking change, and until when?

waivers:
  - change: rule.late_flag.loosened
    owner: fares-team
    reason: the model does not read it
    expires: 2026-12-31
"""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

import msgspec

from validation.change import Change
from validation.errors import did_you_mean
from validation.odcs import Place


class Waiver(msgspec.Struct, frozen=True, kw_only=True):
    """One agreement; it holds up to and including the day `expires`, in UTC."""

    change: str
    owner: str
    reason: str
    expires: dt.date


def load_waivers(path: Path) -> tuple[Waiver, ...]:
    """The waivers of a file; every one names its change, owner, reason and last day. Raises ContractError."""
    found = []
    for item in Place.open(Path(path)).items("waivers"):
        item.only(("change", "owner", "reason", "expires"))
        try:
            expires = dt.date.fromisoformat(item.text("expires"))
        except ValueError as error:
            raise item.child("expires").error(f"found {item.value['expires']!r}; expected a day: YYYY-MM-DD") from error
        for name in ("change", "owner", "reason"):
            if not item.text(name).strip():
                raise item.child(name).error("found nothing; a waiver names its change, owner and reason")
        found.append(
            Waiver(change=item.text("change"), owner=item.text("owner"), reason=item.text("reason"), expires=expires)
        )
    return tuple(found)


class Waived(msgspec.Struct, frozen=True, kw_only=True):
    """Breaking changes with and without a waiver in force, and what to say of the waivers themselves."""

    waived: tuple[tuple[Change, Waiver], ...]
    unwaived: tuple[Change, ...]
    remarks: tuple[str, ...]


def apply_waivers(changes: Sequence[Change], waivers: Sequence[Waiver], *, today: dt.date) -> Waived:
    """Parts the breaking changes by whether a waiver in force names them.

    >>> change = Change(id="column.x.removed", message="gone", breaks=("consumers",))
    >>> waiver = Waiver(change="column.x.removed", owner="o", reason="r", expires=dt.date(2026, 1, 31))
    >>> apply_waivers([change], [waiver], today=dt.date(2026, 1, 31)).unwaived
    ()
    >>> apply_waivers([change], [waiver], today=dt.date(2026, 2, 1)).remarks
    ('the waiver of column.x.removed (o) expired on 2026-01-31',)
    """
    breaking = {change.id: change for change in changes if change.breaks}
    in_force: dict[str, Waiver] = {}
    remarks = []
    for waiver in waivers:
        if waiver.change not in breaking:
            near = did_you_mean(waiver.change, breaking)
            remarks.append(f"the waiver of {waiver.change} ({waiver.owner}) meets no breaking change; {near}")
        elif waiver.expires < today:
            remarks.append(f"the waiver of {waiver.change} ({waiver.owner}) expired on {waiver.expires}")
        else:
            in_force[waiver.change] = waiver
    return Waived(
        waived=tuple((change, in_force[name]) for name, change in breaking.items() if name in in_force),
        unwaived=tuple(change for name, change in breaking.items() if name not in in_force),
        remarks=tuple(remarks),
    )
