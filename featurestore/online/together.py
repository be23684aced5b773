"""What do the rows of several views say, whose features lie alike? All of them in the calls that one row takes."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import add
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from featurestore.online.codec import Frame, Numeric
from featurestore.online.keys import EntityKeyCodec, row_tags
from featurestore.online.latest import LatestView
from featurestore.online.row_check import all_sound, sound
from featurestore.plan import Projection

_SIGN = 1 << 63
_CODES = {"i4": "i", "i8": "q", "f4": "f", "f8": "d", "b1": "?"}


class Decoded(NamedTuple):
    """Rows of all views, those of a view side by side."""

    event_us: list[int]
    """Of every row."""
    oldest_us: list[int]
    """The least event time of each view."""
    values: npt.NDArray[Any] | list[Any]
    """[features of all views, rows]; a list where each view has one row."""


@dataclass(frozen=True, slots=True, eq=False)
class Together:
    """Latest-value views of the same entity keys, and of each as many features, all of one type of number."""

    views: tuple[str, ...]
    """The names the views go by in this request."""
    features: int
    """Of each view."""
    codec: EntityKeyCodec
    columns: tuple[str, ...]
    """Where each join key of the codec is among the entity rows."""
    prefixes: tuple[tuple[bytes, ...], ...]
    frames: tuple[Frame, ...]
    chosen: Numeric
    row: struct.Struct
    """Event time, fingerprint and null bits, and values of one row."""
    ttls_us: tuple[int, ...]

    @classmethod
    def of(
        cls,
        views: Sequence[LatestView],
        projections: Sequence[Projection],
        codec: EntityKeyCodec,
        columns: Mapping[str, str],
    ) -> "Together | None":
        """None where what is asked for does not lie alike in all views."""
        codecs = [view.schemas.declared for view in views]
        chosen = [codec.choose(each.features) for codec, each in zip(codecs, projections, strict=True)]
        first = chosen[0] if chosen else None
        if first is None or any(its is None or not first.alike(its) for its in chosen):
            return None
        frames = tuple(codec.frame for codec in codecs)
        if len({(frame.width, frame.told.start, frame.told.stop) for frame in frames}) > 1:
            return None
        return cls(
            tuple(each.name for each in projections),
            len(projections[0].features),
            codec,
            tuple(columns.values()),
            tuple(view.prefixes for view in views),
            frames,
            first,
            _row(frames[0], first),
            tuple(view.view.ttl_us for view in views),
        )

    def names(self, entity_rows: Mapping[str, Sequence[object]], rows: int) -> list[bytes] | None:
        """The store's keys of all rows, view by view; None unless every row is another entity key."""
        keys = self.codec.encode_rows([entity_rows[column] for column in self.columns], rows)
        if None in keys or len(set(keys)) < rows:
            return None
        found = cast("list[bytes]", keys)
        tags = row_tags(found)
        names: list[bytes] = []
        for prefixes in self.prefixes:
            names += map(add, map(prefixes.__getitem__, tags), found)
        return names

    def decode(self, held: Sequence[bytes | None], rows: int, t_us: int) -> Decoded | None:
        """What the store has of `names`.

        None unless all rows are there, of the declared layouts, without nulls, younger than their view's ttl and not
        ahead of t.
        """
        if None in held:
            return None
        found = cast("Sequence[bytes]", held)
        # A few rows are read with `struct`: numpy's calls cost more.
        decoded = self._one(found) if rows == 1 else self._many(found, rows)
        if decoded is None or max(decoded.event_us) > t_us:
            return None
        for ttl_us, since_us in zip(self.ttls_us, decoded.oldest_us, strict=True):
            if ttl_us and since_us < t_us - ttl_us:
                return None
        return decoded

    def _one(self, held: Sequence[bytes]) -> Decoded | None:
        if not all_sound(held):
            return None  # read again the long way, which says what is wrong
        unpack, order = self.row.unpack, self.chosen.order
        event_us: list[int] = []
        values: list[Any] = []
        try:
            for frame, row in zip(self.frames, held, strict=True):
                since, told, *found = unpack(row)
                if told != frame.without_nulls:
                    return None
                event_us.append(int.from_bytes(since) - _SIGN)
                values += found if order is None else [found[place] for place in order]
        except struct.error:
            # Of another length: of another layout, or torn.
            return None
        return Decoded(event_us, event_us, values)

    def _many(self, held: Sequence[bytes], rows: int) -> Decoded | None:
        told, width = self.frames[0].told, self.frames[0].width
        expected: list[bytes] = []
        for frame in self.frames:
            expected += [frame.without_nulls] * rows
        if [*map(len, held)].count(width) < len(held) or [row[told] for row in held] != expected:
            return None
        data, chosen = b"".join(held), self.chosen
        if not sound(data):
            return None
        event_us = (np.ndarray((len(held),), ">i8", data, 0, (width,)).astype(np.int64) ^ np.int64(-_SIGN)).tolist()
        shape, strides = (len(self.frames), chosen.count, rows), (rows * width, chosen.kind.itemsize, width)
        values: npt.NDArray[Any] = np.ndarray(shape, chosen.kind, data, chosen.start, strides)
        if chosen.order is not None:
            values = values.take(chosen.order, 1)
        # float32 as the doubles that they become in Python.
        values = np.ascontiguousarray(values, np.float64 if values.dtype == np.float32 else None)
        oldest_us = [min(event_us[start : start + rows]) for start in range(0, len(held), rows)]
        return Decoded(event_us, oldest_us, values.reshape(-1, rows))


def _row(frame: Frame, chosen: Numeric) -> struct.Struct:
    before = chosen.start - frame.told.stop
    after = frame.width - chosen.start - chosen.count * chosen.kind.itemsize
    told = frame.told.stop - frame.told.start
    return struct.Struct(
        f"<8s{frame.told.start - 8}x{told}s{before}x{chosen.count}{_CODES[chosen.kind.str[1:]]}{after}x"
    )
