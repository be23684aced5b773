"""Columns of a comparison that are no features: join keys, timestamps, event ids, labels."""

from collections.abc import Mapping, Sequence

import msgspec

from validation.drift.compare import DriftError
from validation.drift.rows import Rows
from validation.errors import did_you_mean
from validation.reach import JOIN_KEY


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """What is not looked at, and whose rows are."""

    left_out: Mapping[str, str]
    """Column -> what it is."""
    entities: tuple[str, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """The columns, each with what it is."""
        return tuple(f"{name} ({role})" for name, role in self.left_out.items())

    def unused(self, entities: Sequence[str]) -> list[str]:
        """The columns that are of no use to a comparison by these entities."""
        return [name for name in self.left_out if name not in entities]


def chosen_columns(
    sides: Sequence[Rows],
    roles: Mapping[str, str],
    leave_out: Sequence[str],
    entity: Sequence[str] | None,
    *,
    time: str | None,
    segments: Sequence[str],
) -> Chosen:
    """The columns that are no features, by a plan's roles, a training set's entity rows, and as asked.

    Entities are those named, else the join keys that all sides have. Raises DriftError for a name that no side has.
    """
    differing = {name: why for side in sides for name, why in side.left_out.items()}
    refuse_differing(sides, [*(entity or ()), *filter(None, [time]), *segments])
    known = list(dict.fromkeys([*(name for side in sides for name in side.table.column_names), *differing]))
    for name in (*leave_out, *(entity or ())):
        if name not in known:
            raise DriftError(f"no column {name!r} to leave out or to take as entity; {did_you_mean(name, known)}")
    for name in entity or ():
        lacking = [side.name for side in sides if name not in side.table.column_names]
        if lacking:
            raise DriftError(f"{lacking[0]}: no column {name!r}, which says whose a row is")
    given = {name: "of the entity rows: a key or a label" for side in sides for name in side.given}
    found = dict.fromkeys(leave_out, "as asked") | dict.fromkeys(entity or (), "entity")
    why = {**differing, **given, **roles, **found}
    left_out = {name: why[name] for name in known if name in why}
    for name in (*filter(None, [time]), *segments):
        left_out.pop(name, None)  # they are read, and no features either
    keys = [name for name, role in roles.items() if role == JOIN_KEY]
    shared = [name for name in sorted(keys) if all(name in side.table.column_names for side in sides)]
    return Chosen(left_out=left_out, entities=tuple(entity) if entity else tuple(shared))


def refuse_differing(sides: Sequence[Rows], names: Sequence[str]) -> None:
    """Raise DriftError where a column is asked for by name that the files of a side store in types that differ."""
    for side in sides:
        for name in names:
            if name in side.left_out:
                raise DriftError(f"{side.name}: its files disagree about column {name!r}: {side.left_out[name]}")
