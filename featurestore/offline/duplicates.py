"""Which events of a log are repeats of one that counted already?

Producers send again what they are not sure to have sent. Where a source declares an event id and a horizon, an event
is a *duplicate* of an earlier one of its partition that counted, if id, entity key and event time are equal and their
arrivals lie at most the horizon apart. One that arrives later than that counts anew, and starts a horizon of its own:
a duplicate never extends the horizon of what it repeats. An event without an id is never a duplicate, and the same id
at another event time is another event.

This is a function of the log alone. Partitions are looked at one by one, in the order of their offsets, because that
is what the stream can know: a producer that repeats an event gives it the same message key, hence the same partition.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_ROUNDS: Final = 16
"""So often may an event count anew before its repeats are looked at one by one."""


def duplicates(ids: Any, same: Sequence[Any], offset: Ints, arrival_us: Ints, *, horizon_us: int) -> Mask:
    """bool[n]: which events are duplicates; rows in any order.

    `ids` is the Arrow column of event ids; `same` are the columns that must be equal besides: topic id, partition,
    event time and the entity key's columns. A null in any of them is equal to nothing.

    >>> ids = pa.chunked_array([["a", "a", "a", "b", None, None]])
    >>> arrival_us = np.array([0, 10, 11, 11, 11, 11])
    >>> duplicates(ids, [], np.arange(6), arrival_us, horizon_us=10).tolist()
    [False, True, False, False, False, False]
    """
    found = np.zeros(len(ids), np.bool_)
    rows, code = _of_several(np.arange(len(ids)), _codes(ids))
    for column in same:
        if not len(rows):
            return found
        own = _codes(column.take(pa.array(rows)))
        both = np.where(own < 0, -1, code * (int(own.max()) + 1) + own)
        rows, code = _of_several(rows, np.unique(both, return_inverse=True)[1] - int((both < 0).any()))
    order = np.lexsort((offset[rows], code))
    rows, code = rows[order], code[order]
    found[rows] = _repeats(code, arrival_us[rows], horizon_us)
    return found


def _repeats(code: Ints, arrival_us: Ints, horizon_us: int) -> Mask:
    """bool[n]: which events are within the horizon of an earlier one of their code that counted; sorted by code."""
    found = np.zeros(len(code), np.bool_)
    left = np.arange(len(code))
    for _ in range(_ROUNDS):
        # The first that is left of each code is within no horizon: it counts, and takes its repeats out.
        first = np.diff(code[left], prepend=-1) != 0
        head = np.maximum.accumulate(np.where(first, np.arange(len(left)), 0))
        near = np.abs(arrival_us[left] - arrival_us[left[head]]) <= horizon_us
        found[left[near & ~first]] = True
        left = left[~near]
        if not len(left):
            return found
    counted: list[int] = []
    before = -1
    for row, own, at_us in zip(left.tolist(), code[left].tolist(), arrival_us[left].tolist(), strict=True):
        if own != before:
            counted, before = [], own
        place = bisect_left(counted, at_us - horizon_us)
        if place < len(counted) and counted[place] <= at_us + horizon_us:
            found[row] = True
        else:
            counted.insert(place, at_us)
    return found


def _codes(column: Any) -> Ints:
    """int64[n]: equal values have equal codes, nulls -1."""
    if not len(column):
        return np.zeros(0, np.int64)
    chunked = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
    encoded = chunked if pa.types.is_dictionary(chunked.type) else pc.dictionary_encode(chunked)
    codes = [pc.fill_null(chunk.indices, -1).to_numpy() for chunk in encoded.unify_dictionaries().chunks]
    return np.concatenate(codes).astype(np.int64)


def _of_several(rows: Ints, code: Ints) -> tuple[Ints, Ints]:
    """The rows whose code others have too: mostly none, which makes the rest cheap."""
    if not len(code):
        return rows, code
    several = (np.bincount(code + 1)[code + 1] > 1) & (code >= 0)
    return rows[several], code[several]
