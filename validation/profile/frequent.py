"""Which numbers occur most often? A sketch of constant size, the same for any order and grouping of the values.

As long as there are at most SEEN different numbers each has its exact count. Beyond, every number adds to one of CELLS
cells how many it was and, for each of BITS bits of its hash, how often that bit was one: a count sketch (Charikar,
Chen, Farach-Colton 2002) with a hash's own bits as signs. What is in a cell beside a frequent number agrees with its
bits half of the time, so that they stand out, and a hash that is one to one tells the number. All are sums of integers;
which of both is kept depends on how many different numbers there were alone.

Numbers are told apart as four-byte floats: integers below 2**24 exactly, others to seven digits.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint32]
Frequent = tuple[Keys, Counts, Counts]
"""Keys and their counts, and no sums; or no keys, no counts, and sums."""

SEEN: Final = 1_024
ROWS: Final = 2
"""Hashes: of two numbers that share a cell by one of them, the other tells them apart."""
CELLS: Final = 32
BITS: Final = 27
"""Of a hash's 32; the others are the cell's number."""
CLEAR: Final = 4.0
"""So many times above what its cell's others make by chance a number is told."""
_NO_KEYS: Final[Keys] = np.zeros(0, np.uint32)
_NO_COUNTS: Final[Counts] = np.zeros(0, np.int64)
_FEW: Final = 16_384
_FIRST, _SECOND, _STEP = 0x85EBCA6B, 0xC2B2AE35, 0x9E3779B9


def _parts(*lengths: int) -> list[tuple[int, int, Floats]]:
    """First bit and length of what is counted in one table, and which bits each of its places has."""
    ends = np.cumsum(lengths).tolist()
    return [
        (end - length, length, ((np.arange(1 << length)[:, None] >> np.arange(length)) & 1).astype(np.float64))
        for end, length in zip(ends, lengths, strict=True)
    ]


_WIDE: Final = _parts(9, 9, 9)
_NARROW: Final = _parts(7, 7, 7, 6)


def no_keys() -> Keys:
    """The keys of no number."""
    return _NO_KEYS


def keys_of(values: Floats) -> Keys:
    """The four bytes of each number; -0.0 is 0.0, what is too large for four bytes is infinite."""
    with np.errstate(over="ignore"):
        small = values.astype(np.float32)
    small += np.float32(0.0)
    return small.view(np.uint32)


def numbers_of(keys: Keys) -> list[float]:
    """The numbers, as the shortest text that means them.

    >>> numbers_of(keys_of(np.array([0.1, -999.0, -0.0])))
    [0.1, -999.0, 0.0]
    """
    return [float(str(number)) for number in keys.view(np.float32)]


def distinct(keys: Keys) -> tuple[Keys, Counts]:
    """The different keys, ascending, and how often each occurs."""
    arranged = np.sort(keys)
    starts = np.flatnonzero(np.concatenate([[True], arranged[1:] != arranged[:-1]])) if len(keys) else _no_places()
    return arranged[starts], np.diff(np.append(starts, len(keys)))


def nothing_frequent() -> Frequent:
    """What is kept of no number."""
    return no_keys(), _no_places(), _no_places()


def _no_places() -> Counts:
    return _NO_COUNTS


def seen_or_sums(keys: Keys, counts: Counts) -> Frequent:
    """What is kept of different keys, ascending, and their counts."""
    if len(keys) <= SEEN:
        return keys, counts, _no_places()
    return no_keys(), _no_places(), sums_of(keys, counts)


def with_more(known: Frequent, values: Floats) -> Frequent:
    """What is kept of the numbers before and of these."""
    more = keys_of(values)
    # The first ones tell mostly that there are too many to be counted one by one.
    if not len(known[2]) and len(distinct(more[: 2 * SEEN])[0]) <= SEEN:
        return merge_frequent([known, (*distinct(more), _no_places())])
    sums = sums_of(more)
    for before in known[2:] if len(known[2]) else [sums_of(*known[:2])] if len(known[0]) else []:
        sums += before
    return no_keys(), _no_places(), sums


def merge_frequent(parts: Sequence[Frequent]) -> Frequent:
    """What is kept of all of them."""
    keys, place = np.unique(np.concatenate([one[0] for one in parts]), return_inverse=True)
    counts = np.zeros(len(keys), np.int64)
    np.add.at(counts, place, np.concatenate([one[1] for one in parts]))
    sums = [one[2] for one in parts if len(one[2])]
    if not sums:
        return seen_or_sums(keys, counts)
    return no_keys(), _no_places(), np.sum([*sums, sums_of(keys, counts)], axis=0, dtype=np.int64)


def sums_of(keys: Keys, counts: Counts | None = None) -> Counts:
    """A count and BITS sums of each cell, row after row; without `counts` each key is there once."""
    if not len(keys):
        return np.zeros(ROWS * CELLS * (1 + BITS), np.int64)
    marks = np.concatenate([_marks(keys, row) for row in range(ROWS)])
    cells = marks >> np.uint32(BITS)
    cells.reshape(ROWS, -1)[:] += np.arange(0, ROWS * CELLS, CELLS, dtype=np.uint32)[:, None]
    weights = None if counts is None else np.tile(counts.astype(np.float64), ROWS)
    out = np.empty((ROWS * CELLS, 1 + BITS))
    for first, length, bits in _NARROW if len(keys) <= _FEW else _WIDE:
        place = marks >> np.uint32(first)
        place &= np.uint32((1 << length) - 1)
        place |= cells << np.uint32(length)
        counted = np.bincount(place.astype(np.intp), weights, minlength=ROWS * CELLS << length)
        by_cell = counted.reshape(ROWS * CELLS, -1).astype(np.float64)
        out[:, 1 + first : 1 + first + length] = by_cell @ bits
    out[:, 0] = by_cell.sum(axis=1)
    return out.reshape(-1).astype(np.int64)


def count_of(sums: Counts) -> int:
    """How many numbers were added."""
    return int(sums.reshape(ROWS, CELLS, 1 + BITS)[0, :, 0].sum())


def frequent(sums: Counts) -> tuple[list[tuple[float, int]], int]:
    """The numbers that stand out of their cells and about how often they occur; about the most of any other."""
    table = sums.reshape(ROWS, CELLS, 1 + BITS).astype(np.float64)
    # +1 for each number with a bit, -1 for one without: what has no bit in common with a number cancels out.
    signed = 2 * table[:, :, 1:] - table[:, :, :1]
    found: dict[int, list[tuple[int, int, Floats]]] = {}
    left = signed.copy()
    while more := _standing_out(left) - found.keys():
        for key in more:
            found[key] = [_place(key, row) for row in range(ROWS)]
        sizes = _sizes(signed, found)
        left = signed.copy()
        for (row, cell), members in sizes.items():
            for size, signs in members.values():
                left[row, cell] -= size * signs
    noise = np.sqrt((left**2).mean(axis=2))
    # Of two guesses the one of the cell with less beside it.
    told = []
    for key, places in found.items():
        row, cell, _ = min(places, key=lambda one: (noise[one[0], one[1]], one[0]))
        told.append((numbers_of(np.array([key], np.uint32))[0], max(1, round(sizes[row, cell][key][0]))))
    rest = min(float((CLEAR * noise).max(axis=1).min()), float(table[:, :, 0].max(axis=1).min()))
    return told, round(rest)


def _standing_out(left: Floats) -> set[int]:
    """The keys of those numbers that make most of what is left of a cell, or of one where the other row agrees."""
    heights = np.abs(left)
    means, spreads = heights.mean(axis=2), heights.std(axis=2)
    clear = (means > CLEAR * spreads) & (heights.min(axis=2) > means / 2)
    found = set()
    for row, cell in zip(*(each.tolist() for each in np.nonzero(means > 1.5)), strict=True):
        low = int(((left[row, cell] > 0).astype(np.int64) << np.arange(BITS)).sum())
        key = _key((cell << BITS) | low, row)
        if clear[row, cell] or all(_agrees(left, *_place(key, other)) for other in range(ROWS) if other != row):
            found.add(key)
    return found


def _agrees(left: Floats, row: int, cell: int, signs: Floats) -> bool:
    """Whether a cell has more of a number with these signs than chance makes: one cell in a million by itself."""
    size = float((left[row, cell] * signs).mean())
    others = left[row, cell] - size * signs
    return size > 1.5 and size * BITS**0.5 > 5 * float(np.sqrt((others**2).mean()))


def _place(key: int, row: int) -> tuple[int, int, Floats]:
    """The row, its cell, and the signs of a key there."""
    mark = int(_marks(np.array([key], np.uint32), row)[0])
    return row, mark >> BITS, np.where((mark >> np.arange(BITS)) & 1, 1.0, -1.0)


def _sizes(
    signed: Floats, found: dict[int, list[tuple[int, int, Floats]]]
) -> dict[tuple[int, int], dict[int, tuple[float, Floats]]]:
    """By row and cell: how often each key found there occurs, by least squares."""
    by_cell: dict[tuple[int, int], list[tuple[int, Floats]]] = {}
    for key, places in found.items():
        for row, cell, signs in places:
            by_cell.setdefault((row, cell), []).append((key, signs))
    made = {}
    for place, members in by_cell.items():
        solved = np.linalg.lstsq(np.column_stack([signs for _, signs in members]), signed[place], rcond=None)[0]
        made[place] = {key: (size, signs) for (key, signs), size in zip(members, solved.tolist(), strict=True)}
    return made


def _marks(keys: Keys, row: int) -> Keys:
    """The hash of that row: that of the row before, hashed again."""
    marks = _mixed(keys)
    for _ in range(row):
        marks = _mixed(marks + np.uint32(_STEP))
    return marks


def _key(mark: int, row: int) -> int:
    marks = np.array([mark], np.uint32)
    for _ in range(row):
        marks = _unmixed(marks) - np.uint32(_STEP)
    return int(_unmixed(marks)[0])


def _mixed(keys: Keys) -> Keys:
    """A hash of four bytes that is one to one: the last steps of MurmurHash3."""
    x = keys ^ (keys >> np.uint32(16))
    x *= np.uint32(_FIRST)
    x ^= x >> np.uint32(13)
    x *= np.uint32(_SECOND)
    x ^= x >> np.uint32(16)
    return x


def _unmixed(marks: Keys) -> Keys:
    """What was hashed.

    >>> _unmixed(_mixed(np.array([0, 1, 2**32 - 1], np.uint32))).tolist()
    [0, 1, 4294967295]
    """
    x = marks ^ (marks >> np.uint32(16))
    x *= np.uint32(pow(_SECOND, -1, 1 << 32))
    x ^= (x >> np.uint32(13)) ^ (x >> np.uint32(26))
    x *= np.uint32(pow(_FIRST, -1, 1 << 32))
    x ^= x >> np.uint32(16)
    return x
