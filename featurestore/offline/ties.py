"""Which of several rows wins where (key, event_ts, created_ts) cannot tell them apart?

The one with the greatest canonical bytes: a total order that depends on the values alone, never on files, offsets or
threads, so that every path chooses alike.
"""

from collections.abc import Mapping

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.offline.declared import whole_or_null
from featurestore.online.codec import RowCodec
from featurestore.plan import Field


class Winners(msgspec.Struct, frozen=True):
    """One row per group of tied rows, and whom it answers."""

    rows: pa.Table
    """The winning rows, ordered by their group `g` (0, 1, …)."""
    differing: pa.Table
    """The winning rows of groups whose rows differ in value, with `n`, the group's size."""
    answered: npt.NDArray[np.int64]
    """Entity rows that a tied group answers …"""
    positions: npt.NDArray[np.int64]
    """… and the position in `rows` of the winner of each."""

    def answering(self, answered: npt.NDArray[np.int64], groups: npt.NDArray[np.int64]) -> "Winners":
        """The same winners, with the entity rows they answer."""
        return Winners(self.rows, self.differing, answered, groups)


def settle(candidates: pa.Table, fields: Mapping[str, Field]) -> Winners:
    """The winner of each group `g` of candidates: the greatest bytes of the fields, as the online store encodes them.

    `fields` says which feature each column of the candidates is; the bytes follow from the features' names.

    >>> rows = pa.table({"g": [0, 0, 1], "o0": [1, 2, 5]})
    >>> winners = settle(rows, {"o0": Field(name="f", dtype="INT64")})
    >>> winners.rows["o0"].to_pylist(), winners.differing["n"].to_pylist()
    ([2, 5], [2])
    """
    group = candidates["g"].to_numpy()
    sizes = np.bincount(group)
    best = np.zeros(len(sizes), np.int64)
    best[group] = np.arange(len(group))
    contested = np.flatnonzero(sizes[group] > 1)
    differs = np.zeros(len(sizes), bool)
    if len(contested):
        compared = candidates.take(pa.array(contested))
        times = np.zeros(len(contested), np.int64)
        columns = {field.name: whole_or_null(compared[name], field.dtype) for name, field in fields.items()}
        codec = RowCodec(list(fields.values()))
        greatest: dict[int, bytes] = {}
        for row, encoded in zip(contested.tolist(), codec.encode(columns, times, times), strict=True):
            number = int(group[row])
            held = greatest.get(number)
            differs[number] |= held is not None and held != encoded
            if held is None or encoded > held:
                greatest[number], best[number] = encoded, row
    rows = candidates.take(pa.array(best))
    differing = rows.append_column("n", pa.array(sizes)).filter(pa.array(differs))
    nobody = np.zeros(0, np.int64)
    return Winners(rows, differing, nobody, nobody)
