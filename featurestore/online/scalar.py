"""What does one stored row say? The codec's layout, read with `struct`: for a few rows numpy's calls cost more."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from featurestore.errors import StaleStore
from featurestore.plan import Field

_CODES = {"INT32": "i", "INT64": "q", "FLOAT": "f", "DOUBLE": "d", "BOOL": "?"}
_TEXT = frozenset({"STRING", "JSON", "UUID", "TIME_UUID", "DECIMAL"})
_BYTES = frozenset({"BYTES", "PDF_BYTES", "IMAGE_BYTES"})
SCALAR_TYPES = _CODES.keys() | _TEXT | _BYTES
"""Types whose Python value is what `struct` gives, text or bytes."""
_HEAD = 24
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

    @classmethod
    def of(cls, features: tuple[Field, ...], null_bytes: int) -> "ScalarCodec":
        """The codec of features that are all of SCALAR_TYPES."""
        codes = [_CODES[field.dtype] for field in features if field.dtype in _CODES]
        text = tuple(field.dtype in _TEXT for field in features if field.dtype not in _CODES)
        # Event time, created time, fingerprint, null bits; values; ends of the varying ones.
        layout = struct.Struct(f"<8s8s8s{null_bytes}s" + "".join(codes) + "I" * len(text))
        return cls(features, layout, len(codes), text)

    def choose(self, names: Sequence[str]) -> Chosen:
        """Picks the values of those features from a decoded row, in that order."""
        order = [field.name for field in self.features]
        places = [order.index(name) for name in names]
        if len(places) == 1:
            [only] = places
            return lambda row: (row[only],)
        return itemgetter(*places) if places else lambda _: ()

    def decode(self, row: bytes) -> tuple[int, Sequence[Any], bool]:
        """Event time (us), the features' Python values in the codec's order, and whether any is null (None).

        The row has the codec's fingerprint. Raises StaleStore where it is torn.
        """
        try:
            event, _, _, nulls, *values = self.layout.unpack_from(row)
        except struct.error:
            raise _torn() from None
        width = self.layout.size
        if self.text:
            ends, values = values[self.fixed :], values[: self.fixed]
            begin = width
            for end, text in zip(ends, self.text, strict=True):
                data = row[begin : width + end]
                values.append(data.decode() if text else data)
                begin = width + end
            width = begin
        if len(row) != width:
            raise _torn()
        event_us = int.from_bytes(event) - _SIGN
        if not nulls.strip(b"\0"):
            return event_us, values, False
        bits = int.from_bytes(nulls, "little")
        return event_us, [None if bits >> i & 1 else value for i, value in enumerate(values)], True


def _torn() -> StaleStore:
    return StaleStore("a row in the online store is torn; materialize its view again")
