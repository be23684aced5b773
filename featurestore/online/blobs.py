"""How are byte strings joined and cut for many rows at once? Arrow binary arrays and numpy, no object per row.

A `flat` array holds the bytes of all rows, one after the other; `starts` and `lengths` (int64) say which are whose.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Flat = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


def binary(lengths: Ints, flat: Flat) -> pa.BinaryArray:
    """Rows of those lengths, cut from `flat` in order.

    >>> binary(np.array([1, 2]), np.frombuffer(b"abc", np.uint8)).to_pylist()
    [b'a', b'bc']
    """
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    data = np.ascontiguousarray(flat)
    return pa.BinaryArray.from_buffers(pa.binary(), len(lengths), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def fixed(matrix: Flat) -> pa.BinaryArray:
    """Rows of equal length: one per row of a two-dimensional array."""
    count, width = matrix.shape
    return binary(np.full(count, width, np.int64), matrix.reshape(-1))


def repeat(value: bytes, rows: int) -> pa.BinaryArray:
    """The same bytes in every row."""
    return fixed(np.broadcast_to(np.frombuffer(value, np.uint8), (rows, len(value))))


def join(parts: Sequence[pa.BinaryArray]) -> pa.BinaryArray:
    """Row by row, the parts one after the other; no part has nulls.

    >>> join([pa.array([b"a", b"b"]), pa.array([b"1", b""])]).to_pylist()
    [b'a1', b'b']
    """
    return parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, pa.scalar(b"", pa.binary()))


def cut(array: pa.BinaryArray) -> list[bytes]:
    """The rows as byte strings; nulls are empty."""
    offsets = np.frombuffer(array.buffers()[1], np.int32, len(array) + 1, array.offset * 4).tolist()
    data = array.buffers()[2].to_pybytes() if array.buffers()[2] is not None else b""
    return [data[a:b] for a, b in itertools.pairwise(offsets)]


def spread(array: pa.Array) -> tuple[Flat, Ints]:
    """The bytes of a binary or string array, and the length of each row; nulls are empty."""
    array = array.cast(pa.binary()) if not pa.types.is_binary(array.type) else array
    if array.null_count:
        array = pc.fill_null(array, b"")
    offsets = np.frombuffer(array.buffers()[1], np.int32, len(array) + 1, array.offset * 4).astype(np.int64)
    data = array.buffers()[2]
    flat = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return flat[offsets[0] : offsets[-1]], np.diff(offsets)


def gather(flat: Flat, starts: Ints, lengths: Ints) -> Flat:
    """The bytes of those rows, one after the other.

    >>> gather(np.frombuffer(b"hello", np.uint8), np.array([3, 0]), np.array([2, 1])).tobytes()
    b'loh'
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return flat[np.repeat(starts - (ends - lengths), lengths) + np.arange(total)]
