"""Are these two tables the same data? Digests that do not depend on how rows are chunked or stored.

`table_digest` respects row order; `multiset_digest` does not, so that it can identify an event log whatever its files.
Both depend on column names, types, values and nulls alone: not on row groups, chunks, offsets of slices, dictionary
encoding or the bytes that happen to lie under a null.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from featurestore.offline.sql_types import is_string


def table_digest(table: pa.Table, rows: pa.Array | None = None) -> str:
    """SHA-256 over a table's schema and values, in row order; metadata does not count. `rows` says which rows do.

    >>> whole = pa.table({"x": [1, None, 3]})
    >>> table_digest(whole) == table_digest(pa.concat_tables([whole.slice(0, 1), whole.slice(1)]))
    True
    """
    count = table.num_rows if rows is None else pc.sum(rows).as_py() or 0
    # A column at a time: the table may be larger than memory.
    columns = (
        (name, column if rows is None else column.filter(rows))
        for name, column in zip(table.column_names, table.columns, strict=True)
    )
    return _digest(count, columns)


def parquet_digest(path: str) -> str:
    """The `table_digest` of a Parquet file, of which a column is held at a time."""
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        return _digest(file.metadata.num_rows, ((name, file.read(columns=[name])[name]) for name in names))


def _digest(rows: int, columns: Iterable[tuple[str, pa.ChunkedArray]]) -> str:
    digest = hashlib.sha256(f"{rows}".encode())
    for name, column in columns:
        array = _plain(column)
        digest.update(f"\x00{len(name.encode())}:{name}:{_named(array.type)}\x00".encode())
        for part in _canonical(array):
            digest.update(part)
    return digest.hexdigest()


def multiset_digest(table: pa.Table) -> str:
    """128 bits over the rows of a table whatever their order: the sum of the rows' hashes, with their number.

    >>> one = pa.table({"x": [1, 2], "y": ["a", None]})
    >>> multiset_digest(one) == multiset_digest(one.take([1, 0]))
    True
    >>> multiset_digest(one) == multiset_digest(one.slice(0, 1))
    False
    """
    names = sorted(table.column_names)
    schema = ",".join(f"{len(name)}:{name}:{_named(_plain(table[name]).type)}" for name in names)
    halves = []
    for seed in (1, 2):
        rows = np.full(table.num_rows, seed, np.uint64)
        for name in names:
            rows = _mix(rows ^ _hashes(_plain(table[name]), seed))
        halves.append(int(rows.sum(dtype=np.uint64)))
    return f"{table.num_rows}-{xxhash.xxh3_64_hexdigest(schema.encode())}-{halves[0]:016x}{halves[1]:016x}"


def file_digest(path: str) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:  # noqa: PTH123 - hashlib wants the file object, the path may be a str
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """One contiguous array, dictionaries and large types resolved, NaN and -0.0 made one."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    # In the large types: text of more than 2 GB does not fit one array of the others.
    if is_string(column.type):
        column = column.cast(pa.large_string())
    if pa.types.is_binary(column.type) or pa.types.is_binary_view(column.type):
        column = column.cast(pa.large_binary())
    # Concatenating copies, which drops the offset of a slice and what lay outside it.
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_floating(array.type):
        values = pc.add(array, pa.scalar(0.0, array.type))  # -0.0 + 0.0 is 0.0
        return pc.if_else(pc.is_nan(values), pa.scalar(float("nan"), array.type), values)
    return array


def _named(dtype: pa.DataType) -> pa.DataType:
    """The type by which it is known, whatever the width of its offsets."""
    if pa.types.is_large_string(dtype):
        return pa.string()
    return pa.binary() if pa.types.is_large_binary(dtype) else dtype


def _canonical(array: pa.Array) -> Sequence[bytes | memoryview]:
    valid = pc.is_valid(array)
    parts: list[bytes | memoryview] = [np.packbits(valid.to_numpy(zero_copy_only=False)).tobytes()]
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        listed = array.cast(pa.list_(kind.value_type)) if pa.types.is_large_list(kind) else array
        lengths = pc.fill_null(_lengths(listed), 0).cast(pa.int64())
        return [*parts, lengths.to_numpy().tobytes(), *_canonical(_plain(pa.chunked_array([_flat(listed)])))]
    if pa.types.is_struct(kind):
        for index, field in enumerate(kind):
            child = pc.struct_field(array, index)
            parts += [field.name.encode(), *_canonical(_plain(pa.chunked_array([child])))]
        return parts
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        # Filled anew, so that neither an offset nor what lay under a null is in its buffers.
        filled = pc.fill_null(array.cast(pa.large_binary()), b"")
        lengths = pc.binary_length(filled).cast(pa.int32()).to_numpy()
        data = filled.buffers()[2]
        start = np.frombuffer(filled.buffers()[1], np.int64)[filled.offset] if len(filled) else 0
        return [*parts, lengths.tobytes(), b"" if data is None else memoryview(data)[start : start + lengths.sum()]]
    if pa.types.is_null(kind):
        return parts
    return [*parts, _words(array).tobytes()]


def _lengths(array: pa.Array) -> pa.Array:
    if pa.types.is_map(array.type):
        offsets = array.offsets.to_numpy()
        return pa.array(np.where(pc.is_valid(array).to_numpy(zero_copy_only=False), np.diff(offsets), 0))
    return pc.list_value_length(array)


def _flat(array: pa.Array) -> pa.Array:
    if pa.types.is_map(array.type):
        return pa.StructArray.from_arrays([array.keys, array.items], ["key", "value"])
    return array.flatten()  # leaves out what lies under nulls


def _words(array: pa.Array) -> npt.NDArray[Any]:
    """Fixed-width values as bytes, zero under nulls."""
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    if pa.types.is_decimal(array.type):
        return np.frombuffer("\x00".join("" if v is None else str(v) for v in array.to_pylist()).encode(), np.uint8)
    width = array.type.bit_width
    whole = array.view(pa.int64() if width == 64 else pa.int32() if width == 32 else array.type)
    words: npt.NDArray[Any] = pc.fill_null(whole, 0).to_numpy(zero_copy_only=False)
    return words


def _hashes(array: pa.Array, seed: int) -> npt.NDArray[Any]:
    """uint64 per row."""
    kind = array.type
    valid = pc.is_valid(array).to_numpy(zero_copy_only=False)
    fixed = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_temporal(kind)
    if fixed or pa.types.is_boolean(kind):
        hashes = _mix(_words(array).astype(np.int64, copy=False).view(np.uint64) + np.uint64(seed))
    else:
        text = pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
        words = array.dictionary_encode() if text else None
        values = (words.dictionary if words is not None else array).to_pylist()
        each = np.array([xxhash.xxh3_64_intdigest(repr(value).encode(), seed) for value in values], np.uint64)
        hashes = each[pc.fill_null(words.indices, 0).to_numpy()] if words is not None and len(each) else each
    if len(hashes) != len(array):
        hashes = np.zeros(len(array), np.uint64)
    chosen: npt.NDArray[Any] = np.where(valid, hashes, np.uint64(0x9E3779B97F4A7C15))
    return chosen


def _mix(words: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014), on every word."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[Any] = words ^ (words >> np.uint64(31))
    return mixed
