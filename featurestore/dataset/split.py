"""Into which part does a row go?

Decided by the row alone, so that appended rows move none that were there, and the same entity goes the same way in
every set that shares its seed.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from featurestore.dataset.manifest import Split
from featurestore.errors import UsageError

TRAIN, TEST, ALL = "train", "test", "all"


def split_rows(rows: pa.Table, split: Split, *, keys: Sequence[str], timestamp: str) -> dict[str, pa.Array]:
    """Part name -> boolean mask over the rows; a row is in one part or in none.

    Raises UsageError for an entity split without key columns or a fraction outside (0, 1). A row without timestamp
    or key is in no part that depends on it.

    >>> rows = pa.table({"t": pa.array([1, 5], pa.timestamp("us", "UTC")), "k": ["a", "b"]})
    >>> split_rows(rows, Split(cutoff_us=5), keys=["k"], timestamp="t")["test"].to_pylist()
    [False, True]
    """
    if split.cutoff_us is None and split.entity_fraction is None:
        return {ALL: pa.array(np.ones(rows.num_rows, bool))}
    train = np.ones(rows.num_rows, bool)
    test = train.copy()
    if split.cutoff_us is not None:
        instants = rows[timestamp].cast(pa.timestamp("us", "UTC"))
        cutoff = pa.scalar(split.cutoff_us, pa.timestamp("us", "UTC"))
        early = pc.less(instants, cutoff)
        train &= pc.fill_null(early, fill_value=False).to_numpy()
        test &= pc.fill_null(pc.invert(early), fill_value=False).to_numpy()
    if split.entity_fraction is not None:
        if not keys or not 0 < split.entity_fraction < 1:
            raise UsageError(
                f"an entity split needs key columns and a fraction between 0 and 1; "
                f"found keys {list(keys)} and {split.entity_fraction}"
            )
        bucket = _buckets(rows, keys, split.seed)
        chosen = bucket < split.entity_fraction * 2**64
        known = np.ones(rows.num_rows, bool)
        for key in keys:
            known &= pc.is_valid(rows[key]).to_numpy()
        train &= chosen & known
        test &= ~chosen & known
    return {TRAIN: pa.array(train), TEST: pa.array(test)}


def _buckets(rows: pa.Table, keys: Sequence[str], seed: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """A number in [0, 2^64) per row, from the values of its keys as text (5 and "5" are one entity)."""
    names = sorted(keys)
    columns = [rows[name].cast(pa.string()).to_pylist() for name in names]
    memo: dict[tuple[str | None, ...], int] = {}
    out = np.empty(rows.num_rows, np.float64)
    for index, values in enumerate(zip(*columns, strict=True)):
        if values not in memo:
            memo[values] = xxhash.xxh3_64_intdigest(repr((names, values)).encode(), seed)
        out[index] = memo[values]
    return out
