"""How does a row of features become bytes, and bytes a row again? Exactly, and readable when the features change.

    event time     8 bytes   big-endian microseconds with the sign bit flipped: byte order is time order
    created time   8 bytes   likewise
    fingerprint    8 bytes   of the layout: format, names and types
    nulls          1 bit a feature, then padding to whole bytes
    fixed values   4, 8 or 1 bytes each, little-endian; zeros where null
    ends           4 bytes a feature of varying length: where its bytes end, from the end of this table
    bytes          text, bytes, lists, packed maps
    check          4 bytes, by which a row that was damaged in the store is known (`row_check`)

Features lie in the order of their types and names, those of fixed width first, so that reordering a view changes
nothing and the values of one type are decoded together.
Equal values have equal bytes, so the greatest row bytes order rows that time cannot. A list is its length (4 bytes,
the top bit set where items are null), then where needed a byte per item that says so, then the items; items of
varying length are preceded by all their lengths.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import StaleStore, UsageError
from featurestore.online import blobs, row_check
from featurestore.online.blobs import Flat, Ints
from featurestore.online.numbers import Numbers
from featurestore.online.row_check import RowDamaged
from featurestore.online.scalar import SCALAR_TYPES, ScalarCodec
from featurestore.online.types import FIXED, arrow_type, item_of, to_column
from featurestore.plan import Field

LAYOUT = 2
"""The format of the bytes; part of every fingerprint."""
TIMES = 16
"""Bytes of event and created time, which open every row."""
FINGERPRINT = slice(16, 24)
"""Where a row tells its layout."""
_HEAD = 24
_SIGN = np.int64(-(1 << 63))
_NUMERIC = frozenset({"INT32", "INT64", "FLOAT", "DOUBLE", "BOOL"})
_HAS_NULLS = np.uint32(1 << 31)

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Decoded rows of one layout, in the order given."""

    event_us: Ints
    created_us: Ints
    columns: dict[str, pa.Array]


@dataclass(frozen=True, slots=True, eq=False)
class Numeric:
    """Features of one numeric type, as they lie in every row of a layout."""

    kind: np.dtype[Any]
    start: int
    """Where in a row the first feature of that type lies."""
    count: int
    order: npt.NDArray[np.int64] | None
    """Which of the `count` are wanted, in the wanted order; None: all, as they lie."""

    def alike(self, other: "Numeric") -> bool:
        """Whether what another layout has chosen lies at the same places, in the same order."""
        places = [None if each.order is None else each.order.tolist() for each in (self, other)]
        return places[0] == places[1] and (self.kind, self.start, self.count) == (other.kind, other.start, other.count)


class Frame(NamedTuple):
    """What rows without nulls of a layout of fixed width have in common."""

    width: int
    """Bytes of a row."""
    told: slice
    """Where in a row fingerprint and null bits are."""
    without_nulls: bytes
    """What is there."""


class RowCodec:
    """Encodes and decodes the rows of one view as its features are declared; stateless once made."""

    def __init__(self, features: Sequence[Field]) -> None:
        self.features = tuple(sorted(features, key=lambda field: (field.dtype not in FIXED, field.dtype, field.name)))
        self.schema = msgspec.json.encode([LAYOUT, [[field.name, field.dtype] for field in self.features]])
        """The layout as JSON, from which `of_schema` makes this codec again."""
        self.fingerprint = hashlib.blake2b(self.schema, digest_size=8).digest()
        self._fixed = [field for field in self.features if field.dtype in FIXED]
        self._varying = self.features[len(self._fixed) :]
        self._types = {field.dtype for field in self.features}
        self._null_bytes = -(-len(self.features) // 8)
        self._told = slice(TIMES, _HEAD + self._null_bytes)
        self._without_nulls = self.fingerprint + bytes(self._null_bytes)
        """What a row without nulls has there."""
        self._width = _HEAD + self._null_bytes + 4 * len(self._varying)
        self._place: dict[str, tuple[int, int]] = {}
        at = _HEAD + self._null_bytes
        for field in self._fixed:
            size = np.dtype(FIXED[field.dtype][0]).itemsize
            self._place[field.name] = (at, at + size)
            at, self._width = at + size, self._width + size
        self._ends = at
        if not self._varying:
            self._width += row_check.CHECK_BYTES
        groups = groupby(self._fixed, key=lambda field: field.dtype)
        self._blocks = [(dtype, [field.name for field in fields]) for dtype, fields in groups]

    @classmethod
    def of_schema(cls, schema: bytes) -> "RowCodec":
        """The codec of a layout that an earlier definition of the view had; raises StaleStore for another format."""
        layout, features = msgspec.json.decode(schema, type=tuple[int, list[tuple[str, str]]])
        if layout != LAYOUT:
            raise StaleStore(
                f"rows in the online store are of format {layout}, this version reads {LAYOUT}: they were written by "
                "another version; materialize the view again (of a topic: `featurestore stream rebuild`)"
            )
        return cls([Field(name=name, dtype=dtype) for name, dtype in features])

    def encode(
        self, columns: Mapping[str, pa.Array | pa.ChunkedArray], event_us: Ints, created_us: Ints
    ) -> list[bytes]:
        """One byte string per row; the columns are those of the features, all as long as the times.

        Raises UsageError where a column is missing or a value does not fit its declared type without loss.

        >>> codec = RowCodec([Field(name="fare", dtype="DOUBLE"), Field(name="city", dtype="STRING")])
        >>> t = np.array([5, 6])
        >>> rows = codec.encode({"fare": pa.array([1.5, None]), "city": pa.array(["Rome", None])}, t, t)
        >>> codec.decode(rows).columns["city"].to_pylist()
        ['Rome', None]
        """
        arrays = {field.name: _column(columns, field) for field in self.features}
        count = len(event_us)
        head = np.zeros((count, self._width), np.uint8)
        head[:, 0:8] = _ordered(event_us)
        head[:, 8:16] = _ordered(created_us)
        head[:, FINGERPRINT] = np.frombuffer(self.fingerprint, np.uint8)
        if self.features:
            nulls = np.stack([_nulls(arrays[field.name]) for field in self.features], axis=1)
            head[:, _HEAD : _HEAD + self._null_bytes] = np.packbits(nulls, axis=1, bitorder="little")
        for field in self._fixed:
            start, end = self._place[field.name]
            head[:, start:end] = _raw(arrays[field.name], field.dtype).reshape(count, end - start)
        if not self._varying:
            width = self._width - row_check.CHECK_BYTES
            data = head[:, :width].tobytes()
            return row_check.sealed([data[at : at + width] for at in range(0, count * width, width)])
        payloads = [_payload(arrays[field.name], field.dtype) for field in self._varying]
        lengths = np.stack([blobs.spread(payload)[1] for payload in payloads], axis=1)
        head[:, self._ends :] = np.cumsum(lengths, axis=1).astype("<u4").view(np.uint8)
        return row_check.sealed(blobs.cut(blobs.join([blobs.fixed(head), *payloads])))

    def decode(self, rows: Sequence[bytes], names: Collection[str] | None = None) -> Rows:
        """The rows as columns: of those features (default all), each of the Arrow type of its Feast type.

        All rows have this codec's fingerprint. Raises StaleStore where one is torn.
        """
        event_us, created_us, columns = self.numbers(rows, names)
        arrays = {name: held.arrow() if isinstance(held, Numbers) else held for name, held in columns.items()}
        return Rows(event_us, created_us, arrays)

    def numbers(
        self, rows: Sequence[bytes], names: Collection[str] | None = None
    ) -> tuple[Ints, Ints, dict[str, Numbers | pa.Array]]:
        """As `decode`: event and created times, and the columns, those of fixed width as they were stored."""
        data = b"".join(rows)
        if not row_check.sound(data):
            raise _damaged(rows)
        flat = np.frombuffer(data, np.uint8)
        count = len(rows)
        lengths = np.fromiter(map(len, rows), np.int64, count)
        if not self._varying and len(flat) == count * self._width and (lengths == self._width).all():
            head = flat.reshape(count, self._width)
            starts = ends = lengths
        else:
            starts = np.cumsum(lengths) - lengths
            _refuse_torn(lengths < self._width)
            head = flat[starts[:, None] + np.arange(self._width)]
            ends = np.ascontiguousarray(head[:, self._ends :]).view("<u4").astype(np.int64)
            _refuse_torn(lengths != self._width + (ends[:, -1] + row_check.CHECK_BYTES if self._varying else 0))
        bits = head[:, _HEAD : _HEAD + self._null_bytes]
        masks: dict[str, Mask] = {}
        if bits.any():
            nulls = np.ascontiguousarray(np.unpackbits(bits, axis=1, bitorder="little").view(np.bool_).T)
            masks = {field.name: mask for field, mask in zip(self.features, nulls, strict=False) if mask.any()}
        wanted = {field.name for field in self.features} if names is None else names
        columns: dict[str, Numbers | pa.Array] = {}
        for dtype, members in self._blocks:
            if not any(name in wanted for name in members):
                continue
            start, end = self._place[members[0]][0], self._place[members[-1]][1]
            values = head[:, start:end].reshape(count, len(members), (end - start) // len(members))
            kind = np.bool_ if dtype == "BOOL" else np.dtype(FIXED[dtype][0])
            block = np.ascontiguousarray(values.transpose(1, 0, 2)).view(kind).reshape(len(members), count)
            for name, raw in zip(members, block, strict=True):
                if name in wanted:
                    columns[name] = Numbers(dtype, raw, masks.get(name))
        for j, field in enumerate(self._varying):
            if field.name in wanted:
                begin = ends[:, j - 1] if j else np.zeros(count, np.int64)
                at = starts + self._width + begin
                absent = masks.get(field.name)
                absent = np.zeros(count, np.bool_) if absent is None else absent
                columns[field.name] = _varying_column(flat, at, ends[:, j] - begin, field.dtype, absent)
        return _instants(head[:, 0:8]), _instants(head[:, 8:16]), columns

    def choose(self, names: Sequence[str]) -> "Numeric | None":
        """How `block` finds those features; None where they are not numbers of one type."""
        if self._varying:
            return None
        for dtype, members in self._blocks:
            if dtype in _NUMERIC and set(names) <= set(members):
                places = [members.index(name) for name in names]
                order = None if places == list(range(len(members))) else np.array(places)
                kind = np.dtype(np.bool_ if dtype == "BOOL" else FIXED[dtype][0])
                return Numeric(kind, self._place[members[0]][0], len(members), order)
        return None

    def block(self, rows: Sequence[bytes], chosen: "Numeric") -> tuple[Ints, npt.NDArray[Any]] | None:
        """Event times, and the chosen numbers by feature, then by row: what `numbers` gives, in a few calls.

        None where a row has another layout or a null; layouts with features of varying width are not chosen.
        """
        count, width, told = len(rows), self._width, self._told
        if (
            list(map(len, rows)).count(width) != count
            or [row[told] for row in rows].count(self._without_nulls) != count
        ):
            return None
        data = b"".join(rows)
        if not row_check.sound(data):
            raise _damaged(rows)
        event_us = np.ndarray((count,), ">i8", data, 0, (width,)).astype(np.int64) ^ _SIGN
        size = chosen.kind.itemsize
        values: npt.NDArray[Any] = np.ndarray((chosen.count, count), chosen.kind, data, chosen.start, (size, width))
        return event_us, np.ascontiguousarray(values) if chosen.order is None else values.take(chosen.order, 0)

    @property
    def frame(self) -> Frame:
        """The frame of the rows; a layout with features of varying width has none, and chooses nothing."""
        return Frame(self._width, self._told, self._without_nulls)

    @cached_property
    def scalar(self) -> "ScalarCodec | None":
        """Decodes one row at a time, faster for a few; None where a feature's type needs the columns' way."""
        return ScalarCodec.of(self.features, self._null_bytes) if SCALAR_TYPES.issuperset(self._types) else None


def fingerprint_of(row: bytes) -> bytes:
    """The fingerprint of the layout a row was written in; raises StaleStore where the row is torn."""
    if len(row) < _HEAD:
        raise StaleStore(f"a row of {len(row)} bytes in the online store is torn; materialize its view again")
    return row[FINGERPRINT]


def _column(columns: Mapping[str, pa.Array | pa.ChunkedArray], field: Field) -> pa.Array:
    try:
        values = columns[field.name]
    except KeyError:
        raise UsageError(
            f"no column {field.name!r} among the rows to write; what exists: {', '.join(sorted(columns))}"
        ) from None
    return to_column(values, field.dtype, name=field.name)


def _ordered(instants: Ints) -> Flat:
    return (instants.astype(np.int64) ^ _SIGN).astype(">i8").view(np.uint8).reshape(-1, 8)


def _instants(raw: Flat) -> Ints:
    return np.ascontiguousarray(raw).view(">i8").reshape(-1).astype(np.int64) ^ _SIGN


def _nulls(array: pa.Array) -> Mask:
    if not array.null_count:
        return np.zeros(len(array), np.bool_)
    mask: Mask = array.is_null().to_numpy(zero_copy_only=False)
    return mask


def _raw(array: pa.Array, dtype: str) -> Flat:
    """The values of a column of fixed width as bytes, zeros where null."""
    if array.null_count:
        array = pc.fill_null(array, pa.scalar(0, pa.int64()).cast(array.type) if dtype != "BOOL" else False)
    values = array.cast(pa.int64()) if dtype == "UNIX_TIMESTAMP" else array
    raw: Flat = values.to_numpy(zero_copy_only=False).astype(FIXED[dtype][0], copy=False)
    return np.ascontiguousarray(raw).view(np.uint8)


def _payload(array: pa.Array, dtype: str) -> pa.BinaryArray:
    item = item_of(dtype)
    if item is not None:
        return _pack_lists(array, item)
    array = array.cast(pa.binary())
    return pc.fill_null(array, b"") if array.null_count else array


def _pack_lists(array: pa.ListArray, item: str) -> pa.BinaryArray:
    counts = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    items = array.flatten()
    missing = _nulls(items)
    until = np.concatenate([[0], np.cumsum(missing)])
    ends = np.cumsum(counts)
    marked = until[ends] > until[ends - counts]
    header = (counts.astype("<u4") | np.where(marked, _HAS_NULLS, np.uint32(0))).astype("<u4")
    absent = _nulls(array)
    parts = [
        blobs.binary(np.where(absent, 0, 4), header[~absent].view(np.uint8)),
        blobs.binary(np.where(marked, counts, 0), missing[np.repeat(marked, counts)].view(np.uint8)),
    ]
    if item in FIXED:
        size = np.dtype(FIXED[item][0]).itemsize
        return blobs.join([*parts, blobs.binary(counts * size, _raw(items, item))])
    data, lengths = blobs.spread(items)
    until = np.concatenate([[0], np.cumsum(lengths)])
    parts.append(blobs.binary(counts * 4, lengths.astype("<u4").view(np.uint8)))
    return blobs.join([*parts, blobs.binary(until[ends] - until[ends - counts], data)])


def _unpack_lists(flat: Flat, at: Ints, item: str, absent: Mask) -> pa.ListArray:
    there = at[~absent]
    header = np.ascontiguousarray(flat[there[:, None] + np.arange(4)]).view("<u4").reshape(-1)
    marked = (header & _HAS_NULLS) != 0
    counts = (header & ~_HAS_NULLS).astype(np.int64)
    there = there + 4
    missing = np.zeros(int(counts.sum()), np.bool_)
    missing[np.repeat(marked, counts)] = blobs.gather(flat, there, np.where(marked, counts, 0)).view(np.bool_)
    there = there + np.where(marked, counts, 0)
    if item in FIXED:
        size = np.dtype(FIXED[item][0]).itemsize
        items = _fixed_column(blobs.gather(flat, there, counts * size).reshape(-1, size), item, missing)
    else:
        lengths = blobs.gather(flat, there, counts * 4).view("<u4").astype(np.int64)
        until = np.concatenate([[0], np.cumsum(lengths)])
        ends = np.cumsum(counts)
        there = there + counts * 4
        data = blobs.gather(flat, there, until[ends] - until[ends - counts])
        items = _varying_column(data, until[:-1], lengths, item, missing)
    offsets = np.zeros(len(at) + 1, np.int32)
    every = np.zeros(len(at), np.int64)
    every[~absent] = counts
    np.cumsum(every, out=offsets[1:])
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), items, mask=pa.array(absent) if absent.any() else None
    )


def _fixed_column(raw: Flat, dtype: str, nulls: Mask) -> pa.Array:
    data = np.ascontiguousarray(raw).reshape(-1)
    if dtype == "BOOL":
        data = np.packbits(data, bitorder="little")
    return pa.Array.from_buffers(FIXED[dtype][1], len(raw), [_validity(nulls), pa.py_buffer(data)])


def _varying_column(flat: Flat, at: Ints, lengths: Ints, dtype: str, nulls: Mask) -> pa.Array:
    item = item_of(dtype)
    if item is not None:
        return _unpack_lists(flat, at, item, nulls)
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    data = blobs.gather(flat, at, lengths)
    buffers = [_validity(nulls), pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(arrow_type(dtype), len(lengths), buffers)


def _validity(nulls: Mask) -> pa.Buffer | None:
    return pa.py_buffer(np.packbits(~nulls, bitorder="little")) if nulls.any() else None


def _damaged(rows: Sequence[bytes]) -> RowDamaged:
    return RowDamaged(len(rows) - sum(map(row_check.sound, rows)))


def _refuse_torn(torn: Mask) -> None:
    if torn.any():
        raise StaleStore(f"{int(torn.sum())} rows in the online store are torn; materialize their view again")
