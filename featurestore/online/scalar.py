"""What does one stored row say? The codec's layout, read with `struct`: for a few rows numpy's calls cost more."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from featurestore.online.row_check import CHECK_BYTES, RowDamaged, sound
from featurestore.plan import Field

_CODES = {"INT32": "i", "INT64": "q", "FLOAT": "f", "DOUBLE": "d", "BOOL": "?"}
_TEXT = frozenset({"STRING", "JSON", "UUID", "TIME_UUID", "DECIMAL"})
_BYTES = frozenset({"BYTES", "PDF_BYTES", "IMAGE_BYTES"})
SCALAR_TYPES = _CODES.keys() | _TEXT | _BYTES
"""Types whose Python value is what `struct` gives, text or bytes."""
HEAD_PARTS = 4
"""Event time, created time, fingerprint, null bits: what comes before the values of an unpacked row."""
_SIGN = 1 << 63

Chosen = Callable[[Sequence[Any]], tuple[Any, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class ScalarCodec:
    """Decodes rows one by one; the features must be in the codec's order, those of fixed width first."""

    features: tuple[Field, ...]
    layout: struct.Struct
    fixed: int
    """How many features are of fixed width."""
    text: tuple[bool, ...]
    """Of each feature of varying length: whether it is text, else bytes."""
    unpack: Callable[[bytes], tuple[Any, ...]]
    """Of a row that has the layout's size."""
    no_nulls: bytes

    @classmethod
    def of(cls, features: tuple[Field, ...], null_bytes: int) -> "ScalarCodec":
        """The codec of features that are all of SCALAR_TYPES."""
        codes = [_CODES[field.dtype] for field in features if field.dtype in _CODES]
        text = tuple(field.dtype in _TEXT for field in features if field.dtype not in _CODES)
        # Event time, created time, fingerprint, null bits; values; ends of the varying ones.
        layout = struct.Struct(
            f"<8s8s8s{null_bytes}s" + "".join(codes) + "I" * len(text) + ("" if text else f"{CHECK_BYTES}x")
        )
        return cls(features, layout, len(codes), text, layout.unpack, bytes(null_bytes))

    def choose(self, names: Sequence[str]) -> Chosen:
        """Picks the values of those features from what `decode` gives, in that order."""
        order = [field.name for field in self.features]
        places = [HEAD_PARTS + order.index(name) for name in names]
        if len(places) == 1:
            [only] = places
            return lambda row: (row[only],)
        return itemgetter(*places) if places else lambda _: ()

    def decode(self, row: bytes) -> tuple[int, Sequence[Any], bool]:
        """Event time (us), four parts of the head and the features' Python values, and whether any is null (None).

        The features are in the codec's order; `choose` knows their places. The row has the codec's fingerprint. Raises
        RowDamaged where it is torn or damaged.
        """
        if not sound(row):
            raise RowDamaged(1)
        try:
            whole: Sequence[Any] = self.unpack(row) if not self.text else self._with_text(row)
        except struct.error:
            raise RowDamaged(1) from None
        event_us = int.from_bytes(whole[0]) - _SIGN
        nulls = whole[HEAD_PARTS - 1]
        if nulls == self.no_nulls:
            return event_us, whole, False
        bits = int.from_bytes(nulls, "little") << HEAD_PARTS
        return event_us, [None if bits >> i & 1 else value for i, value in enumerate(whole)], True

    def _with_text(self, row: bytes) -> list[Any]:
        whole, begin = self.layout.unpack_from(row), self.layout.size
        made = [*whole[: HEAD_PARTS + self.fixed]]
        width = begin
        for end, text in zip(whole[HEAD_PARTS + self.fixed :], self.text, strict=True):
            data = row[begin : width + end]
            made.append(data.decode() if text else data)
            begin = width + end
        if len(row) != begin + CHECK_BYTES:
            raise RowDamaged(1)
        return made
