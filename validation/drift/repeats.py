"""Rows that repeat: whose each row is, where no column says so.

Answers of a service ask for the same keys again and again, and their rows are equal then. Rows that are equal on one
side far more often than a row of one side is equal to one of the other are repeats of one thing, and no independent
rows: two samples of one distribution have the same chance of equal rows within them as between them.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from validation.profile.baseline import FeatureBaseline, as_promised
from validation.profile.entities import hashes_of_rows
from validation.profile.sketch import Hashes

OWNER: Final = "\0owner"
"""The column that says whose a row is."""
EXCESS: Final = 1.25
"""Rows that are equal to a row, itself included, beyond what chance makes: from here on they are repeats."""
_FEWEST: Final = 5
"""Different rows that repeat without those most often; fewer are values that became frequent."""


def with_owners(
    reference: pa.Table, current: pa.Table, *, entities: Sequence[str], features: Sequence[FeatureBaseline]
) -> tuple[pa.Table, pa.Table, bool]:
    """Both tables with a column OWNER: of the entities' columns, or of whole rows where they repeat (then True).

    The tables as they are where there is neither.
    """
    if entities:
        owned = [_owned(table, hashes_of_rows(table, entities)) for table in (reference, current)]
        return owned[0], owned[1], False
    if not features or not reference.num_rows or not current.num_rows:
        return reference, current, False
    contents = [_content(table, features) for table in (reference, current)]
    hashes = [hashes_of_rows(table, table.column_names) for table in contents]
    if not any(_repeats(*pair) for pair in (hashes, hashes[::-1])):
        return reference, current, False
    return _owned(reference, hashes[0]), _owned(current, hashes[1]), True


def _content(table: pa.Table, features: Sequence[FeatureBaseline]) -> pa.Table:
    """The features as they are profiled, so that equal values are equal in whatever type; missing ones are equal."""
    columns = {}
    for feature in features:
        column = as_promised(table.column(feature.name), feature)
        if feature.kind == "number":
            columns[feature.name] = column.cast(pa.float64(), safe=False).fill_null(float("nan"))
        else:
            columns[feature.name] = column.cast(pa.string()).fill_null("\0")
    return pa.table(columns)


def owners_of(
    reference: pa.Table, current: pa.Table, *, entities: Sequence[str], features: Sequence[FeatureBaseline]
) -> tuple[Hashes, Hashes] | None:
    """Whose each row of both sides is, as `with_owners` finds it; None where rows stand for themselves."""
    sides = with_owners(reference, current, entities=entities, features=features)[:2]
    if OWNER not in sides[0].column_names:
        return None
    found = [side.column(OWNER).to_numpy() for side in sides]
    return found[0], found[1]


def most_repeated(table: pa.Table, columns: Sequence[str]) -> list[str]:
    """Of columns that each name an entity the one whose entities repeat most: rows of it depend on each other most.

    >>> most_repeated(pa.table({"trip": [1, 2, 3], "driver": [7, 7, 8]}), ["trip", "driver"])
    ['driver']
    """

    def rows(name: str) -> float:
        counts = np.unique(hashes_of_rows(table, [name]), return_counts=True)[1]
        return float((counts.astype(np.float64) ** 2).sum())

    return [max(columns, key=rows)] if columns else []


def _owned(table: pa.Table, hashes: Hashes) -> pa.Table:
    return table.append_column(OWNER, pa.array(hashes, pa.uint64()))


def _repeats(side: Hashes, other: Hashes) -> bool:
    """Whether many rows of a side are equal to each other far more often than to those of the other side.

    One value that becomes frequent, a reading that means none or a new category, is drift and no repeat.
    """
    words, counts = np.unique(side, return_counts=True)
    of_other, theirs = np.unique(other, return_counts=True)
    expected = np.zeros(len(words))
    expected[np.isin(words, of_other, assume_unique=True)] = theirs[np.isin(of_other, words, assume_unique=True)]
    chance = counts * expected / len(other)
    excess = counts * (counts - 1) / len(side) - chance
    others = np.argsort(-excess)[_FEWEST:]
    return float(excess[others].sum()) > max(EXCESS - 1, float(chance[others].sum()))
