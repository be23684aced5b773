"""How does a column of fixed width wait until Arrow, Python or JSON is asked for? As the bytes that were stored."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from featurestore.online.types import FIXED

Mask = npt.NDArray[np.bool_]
_PLAIN = frozenset({"INT32", "INT64", "BOOL"})


class Numbers:
    """The values of one feature of a type in `FIXED`; iterates over Python values, None for null.

    >>> Numbers("DOUBLE", np.array([1.5, 0.0]), np.array([False, True])).tolist()
    [1.5, None]
    """

    __slots__ = ("_made", "dtype", "nulls", "raw")

    def __init__(self, dtype: str, raw: npt.NDArray[Any], nulls: Mask | None = None) -> None:
        self.dtype = dtype
        self.raw = raw
        """One value each, contiguous: numpy's type of `FIXED`, truth values as such."""
        self.nulls = nulls
        """Which are null; None: none is."""
        self._made: list[Any] | None = None

    def take(self, index: npt.NDArray[np.int64], gone: Mask | None) -> "Numbers":
        """The values at those positions (any where gone), null where gone."""
        nulls = None if self.nulls is None else self.nulls[index]
        if gone is not None:
            nulls = gone if nulls is None else nulls | gone
        return Numbers(self.dtype, self.raw[index], nulls)

    def arrow(self) -> pa.Array:
        """The column of the type's Arrow form."""
        kind = FIXED[self.dtype][1]
        nulls = self.nulls
        # Written from buffers: pa.array would look at each value, and for pandas.
        data = np.packbits(self.raw, bitorder="little") if self.dtype == "BOOL" else self.raw
        valid = None if nulls is None else pa.py_buffer(np.packbits(~nulls, bitorder="little"))
        return pa.Array.from_buffers(kind, len(self.raw), [valid, pa.py_buffer(data)])

    def tolist(self) -> list[Any]:
        """The values as Python values."""
        if self._made is None:
            if self.dtype == "UNIX_TIMESTAMP":
                self._made = self.arrow().to_pylist()
            else:
                values: list[Any] = self.raw.tolist()
                if self.nulls is not None:
                    for i in np.flatnonzero(self.nulls).tolist():
                        values[i] = None
                self._made = values
        return self._made

    def json(self) -> bytes | None:
        """The values as a JSON array, without the detour over Python; None where JSON has no word for one of them."""
        if self.nulls is not None:
            return None
        if self.dtype in _PLAIN:
            return orjson.dumps(self.raw, option=orjson.OPT_SERIALIZE_NUMPY)
        if self.dtype in ("DOUBLE", "FLOAT") and np.isfinite(self.raw).all():
            return orjson.dumps(self.doubled(), option=orjson.OPT_SERIALIZE_NUMPY)
        return None

    def doubled(self) -> npt.NDArray[Any]:
        """The stored values, float32 as the doubles that they become in Python: JSON tells their digits."""
        return self.raw.astype(np.float64) if self.dtype == "FLOAT" else self.raw

    def __len__(self) -> int:
        return len(self.raw)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tolist())
