"""Entities of a profile's rows: how often each is there, and how alike its rows are.

Rows of one entity are no independent rows: a service is asked for the same keys again and again. A profile keeps the
entities with the least hashes, of each the rows, those with a value, and those above and below the baseline's centre
(of categories: in every other one, and in the most frequent one). What was dropped had that many smaller hashes beside
it, which any union still holds: what is kept depends on the rows alone, and profiles merge in any order.

`repeats_of` makes of it by how much a share's variance is larger than that of as many independent rows: the design
effect (Kish 1965), 1 + (rows an entity - 1) * intraclass correlation, with the correlation's upper limit.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from validation.profile.sketch import Hashes, mixed, word_hash

Counts = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

KEPT: Final = 128
"""Entities of a profile that is kept."""
EVERY: Final = 1 << 40
"""Of one that is compared and thrown away."""
FIELDS: Final = 4
"""Rows, values, values above, values below."""
_FEWEST: Final = 3.0
"""Of fewer entities nothing tells how alike their rows are."""
_LIMIT: Final = 1.645
"""The correlation's upper limit is so many standard errors above what was found."""
_NONE: Final[Hashes] = np.zeros(0, np.uint64)
_NO_COUNTS: Final[Counts] = np.zeros((0, FIELDS), np.int64)


class Entities(msgspec.Struct, frozen=True, eq=False):
    """The entities with the least hashes, ascending, and the counts of each; at most `most`, 0: nothing is known."""

    most: int = 0
    hashes: Hashes = msgspec.field(default_factory=lambda: _NONE)
    counts: Counts = msgspec.field(default_factory=lambda: _NO_COUNTS)
    """[entities, FIELDS]"""

    @property
    def complete(self) -> bool:
        """Whether none was dropped."""
        return len(self.hashes) < self.most


def merge_entities(parts: Sequence[Entities]) -> Entities:
    """Those of all parts; nothing where nothing is known of one."""
    most = min((one.most for one in parts), default=0)
    if not most:
        return Entities()
    hashes, place = np.unique(np.concatenate([one.hashes for one in parts]), return_inverse=True)
    counts = np.zeros((len(hashes), FIELDS), np.int64)
    np.add.at(counts, place, np.concatenate([one.counts for one in parts]))
    return Entities(most, hashes[:most], counts[:most])


def hashes_of_rows(table: pa.Table, columns: Sequence[str]) -> Hashes:
    """A hash of what each row has in these columns together. A null is nothing that two rows share."""
    out = np.full(table.num_rows, 0x9E3779B97F4A7C15, np.uint64)
    for name in columns:
        column = table.column(name)
        out = mixed(out ^ _hashes(column))
        if column.null_count:
            missing = column.is_null().to_numpy()
            out[missing] = mixed(np.flatnonzero(missing).astype(np.uint64) ^ out[missing])
    return out


def _hashes(column: pa.ChunkedArray) -> Hashes:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type) or pa.types.is_timestamp(column.type):
        whole = column.cast(pa.int64() if not pa.types.is_uint64(column.type) else pa.uint64(), safe=False)
        return mixed(whole.fill_null(0).to_numpy().view(np.uint64))
    if pa.types.is_floating(column.type):
        return mixed((column.cast(pa.float64()).fill_null(0.0).to_numpy() + 0.0).view(np.uint64))
    encoded = pa.chunked_array([column.combine_chunks()]).combine_chunks().dictionary_encode()
    from_text = [word_hash(str(value)) for value in encoded.dictionary.to_pylist()]
    codes = encoded.indices.fill_null(len(from_text)).to_numpy(zero_copy_only=False).astype(np.int64)
    out: Hashes = np.array([*from_text, 0], np.uint64)[codes]
    return out


class Grouped(msgspec.Struct, frozen=True, eq=False):
    """The kept entities of slices of rows, for all features alike."""

    most: int
    rows: Counts
    """Places of the rows that belong to kept entities."""
    groups: Counts
    """Of each such row its entity's number, counted on from slice to slice."""
    hashes: Hashes
    """By that number."""
    edges: Counts
    """First number of each slice, and the end."""

    def entities_of(self, valid: Bools, above: Bools, below: Bools) -> list[Entities]:
        """The entities of each slice; arguments tell of each row whether it has a value, and where that lies."""
        counts = np.zeros((len(self.hashes), FIELDS), np.int64)
        counts[:, 0] = np.bincount(self.groups, minlength=len(self.hashes))
        for field, told in enumerate((valid, above, below), start=1):
            counts[:, field] = np.bincount(self.groups[told[self.rows]], minlength=len(self.hashes))
        return [
            Entities(self.most, self.hashes[start:end], counts[start:end])
            for start, end in zip(self.edges[:-1].tolist(), self.edges[1:].tolist(), strict=True)
        ]


def grouped(hashes: Hashes, edges: Sequence[tuple[int, int]], most: int) -> Grouped:
    """The kept entities of slices, `start` to before `end`, that lie side by side; `hashes` of all rows, in order."""
    number = np.zeros(len(hashes), np.int64)
    for place, (start, end) in enumerate(edges):
        number[start:end] = place
    order = np.lexsort((hashes, number))
    arranged, where = hashes[order], number[order]
    first = np.ones(len(order), bool)
    first[1:] = (arranged[1:] != arranged[:-1]) | (where[1:] != where[:-1])
    of_row = np.cumsum(first) - 1
    begins = np.searchsorted(where[first], np.arange(len(edges) + 1))
    stays = np.arange(int(first.sum())) - begins[where[first]] < most
    renumbered = np.cumsum(stays) - 1
    kept_rows = stays[of_row]
    kept_where = where[first][stays]
    return Grouped(
        most=most,
        rows=order[kept_rows],
        groups=renumbered[of_row[kept_rows]],
        hashes=arranged[first][stays],
        edges=np.searchsorted(kept_where, np.arange(len(edges) + 1)),
    )


def repeats_of(entities: Entities, values: int, *, number: bool) -> float:
    """How many rows tell as much as one of an entity of its own would; 1 where no entity repeats.

    `values` is how many values there are in all, of entities that are kept and that are not.
    """
    rows, told, above, below = entities.counts.astype(np.float64).T if len(entities.hashes) else np.zeros((4, 0))
    if not entities.most or not rows.sum():
        return 1.0
    found = [_design_effect(rows, rows - told, entities, rows.sum(), number=False)] if (rows > told).any() else []
    if told.sum():
        for hits in (above, below):
            found += [_design_effect(told, hits, entities, values, number=number)]
    usable = [one for one in found if one is not None]
    # A column of one value: nothing tells how alike the rows of an entity are, so they are taken as equal.
    return max(usable, default=_an_entity(rows, entities, values))


def _an_entity(rows: npt.NDArray[np.float64], entities: Entities, values: float) -> float:
    """Rows an entity, as a row sees them: the sum of their squares, divided by their sum."""
    sample = float((rows**2).sum() / max(rows.sum(), 1.0))
    if entities.complete or not values:
        return max(1.0, sample)
    # What the sample does not explain of all rows may be one entity's.
    share = float(entities.hashes[-1]) / 2.0**64
    explained = (len(rows) - 1) / max(share, 1e-19) * rows.mean() * (1 + 3 / len(rows) ** 0.5)
    return max(1.0, sample + max(0.0, values - float(explained)) ** 2 / values)


def _design_effect(
    rows: npt.NDArray[np.float64], hits: npt.NDArray[np.float64], entities: Entities, values: float, *, number: bool
) -> float | None:
    total, share = rows.sum(), hits.sum() / rows.sum()
    spread = share * (1 - share)
    pairs = float((rows**2).sum() - total)
    if spread <= 0:
        return None
    if pairs <= 0:
        return _an_entity(rows, entities, values)
    many = float((rows**2).sum() ** 2 / (rows**4).sum())
    if many < _FEWEST:
        return _an_entity(rows, entities, values)
    between = float(((hits - share * rows) ** 2).sum()) * many / (many - 1)
    alike = min(1.0, max(0.0, (between - total * spread) / (pairs * spread)))
    size = float((rows**2).sum() / total)
    error = (2 / ((many - 1) * size * max(size - 1, 0.1))) ** 0.5 * (1 - alike) * (1 + (size - 1) * alike)
    alike = min(1.0, alike + _LIMIT * error)
    if number:
        # Of two normal values that correlate so much this share lies on one side of the median (Sheppard).
        alike = float(np.sin(np.pi / 2 * alike))
    return float(1 + (_an_entity(rows, entities, values) - 1) * alike)
