"""Which row of a history that fits in memory was in force for each entity row?

The as-of join by one sort and one binary search, on keys and times made one integer: half the time of an ASOF JOIN in
SQL where the history fits. `featurestore.offline.asof` decides which of the two runs; they choose the same rows.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from featurestore.offline.windowed_keys import Ints, KeyIndex

_LARGEST = 1 << 62


class Chosen(NamedTuple):
    """The chosen row of each entity row that has one, and whether time left any choice open."""

    rows: pa.Table
    """The history's columns, and `row`: which entity row."""
    tied: bool
    """Whether several rows of the history share key and time with a chosen one."""


def choose(history: pa.Table, entities: pa.Table, index: KeyIndex, ttl_us: int) -> Chosen | None:
    """For every entity row the history's newest row of its key with `ts <= t` and, with a ttl, `t - ts <= ttl_us`.

    Both tables have the key columns, `index` is of the entities'; the history has `ts`, the entities `t` and `row`,
    int64 without nulls. None where keys times the span of time do not fit an int64: the caller joins another way.

    >>> history = pa.table({"k": [1, 1, 2], "ts": [10, 30, 10], "f": ["a", "b", "c"]})
    >>> entities = pa.table({"k": [1, 2, 3], "t": [29, 9, 99], "row": [0, 1, 2]})
    >>> index = KeyIndex(entities, {"k": "k"}, history.schema)
    >>> choose(history, entities, index, 0).rows.select(["row", "f"]).to_pylist()
    [{'row': 0, 'f': 'a'}]
    """
    code, asked = index.codes(history), index.rows
    ts, t = history["ts"].to_numpy(), entities["t"].to_numpy()
    kept = np.flatnonzero(code >= 0)
    if not len(kept) or not len(t):
        return _taken(history, entities, kept[:0], kept[:0], tied=False)
    code, ts = code[kept], ts[kept]
    least = int(ts.min())
    span = max(int(ts.max()), int(t.max())) - least + 1
    if index.size * span >= _LARGEST:
        return None
    instants = code * span + (ts - least)
    order = np.argsort(instants)
    instants = instants[order]
    first = asked * span
    at = np.searchsorted(instants, first + (t - least), "right") - 1
    # Before its key's first row an entity row would find another key's last.
    found = (asked >= 0) & (t >= least) & (at >= 0)
    at = np.where(found, at, 0)
    found &= instants[at] >= first
    if ttl_us:
        found &= t - ts[order[at]] <= ttl_us
    at = at[found]
    tied = bool((instants[at[at > 0]] == instants[at[at > 0] - 1]).any())
    return _taken(history, entities, kept[order[at]], np.flatnonzero(found), tied=tied)


def _taken(history: pa.Table, entities: pa.Table, positions: Ints, answered: Ints, *, tied: bool) -> Chosen:
    rows = history.take(pa.array(positions)).append_column("row", entities["row"].take(pa.array(answered)))
    return Chosen(rows, tied)
