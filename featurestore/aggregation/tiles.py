"""How do a view's partials lie in bytes?

Time is cut into tiles, one hop long, on one *level* for every distinct hop (hop 0: one tile for all of time). A
*slot* holds the parts of one entity key's events in one tile, in a fixed number of bytes; 32 tiles make a block,
which is what the online store keeps under one key. All-zero bytes are the empty slot and the identity of `merge`.

Where a view has several levels, the newest tile of a key waits in its *head*, a slot with the parts of all levels, so
that an event changes one slot however many windows there are. The tiles of a head nest in those of every level. Once
the key has an event in a later tile, the head's slot is rolled up into every level, and that tile is the head; an
event of an earlier tile goes to the levels at once. What a window holds is what its tiles hold, and the head.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from featurestore.aggregation import slot_check
from featurestore.aggregation.errors import TornTiles
from featurestore.aggregation.partials import ColumnParts, Mask, Part, Raw, columns_of, too_large, too_long
from featurestore.aggregation.values import Events
from featurestore.aggregation.wide import WidePart
from featurestore.aggregation.windows import check_window
from featurestore.errors import DefinitionError
from featurestore.plan import Aggregation, View

SPAN = 32
"""Tiles in a block."""
ALL_TIME = 0
"""The hop of the level that has one tile."""
HEAD = -1
"""Stands for a hop where blocks are named: block 0 is the key's head."""

_CHECK, _HEAD_CHECK = 2, 3
"""Which word of a slot, and of a stored head, is its check."""
_OWN = ("check", "padding")
"""The fields of a slot that are of its bytes, not of events."""

Ints = npt.NDArray[np.int64]
Slots = npt.NDArray[np.void]

_NO_TIME = np.int64(-(1 << 63))


@dataclass(frozen=True)
class Level:
    """All tiles of one hop; slots are numpy structured arrays in wire format.

    Fields: `rows` (events), `newest` (greatest event time, 0 where there is none), `check`, parts as `column.part`.
    Slots that a level makes carry their check (`slot_check`), so that their bytes may be stored as they are.
    """

    hop_us: int
    aggregations: tuple[Aggregation, ...]
    every: tuple[Aggregation, ...] = ()
    """The aggregations of all levels: a part has one size on all of them."""

    @cached_property
    def columns(self) -> tuple[ColumnParts, ...]:
        """What is kept of every column."""
        return columns_of(self.aggregations, self.every)

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """One slot."""
        fields: list[Any] = [("rows", "<i8"), ("newest", "<i8"), ("check", "<u8")]
        for kept, part in self.parts:
            shape = part.dtype
            fields.append((_field(kept, part), *shape) if isinstance(shape, tuple) else (_field(kept, part), shape))
        if padding := -np.dtype(fields).itemsize % slot_check.WORD:
            fields.append(("padding", f"V{padding}"))
        return np.dtype(fields)

    @cached_property
    def slot_bytes(self) -> int:
        """Length of one slot."""
        return self.dtype.itemsize

    @property
    def span(self) -> int:
        """How many tiles a block has."""
        return SPAN if self.hop_us else 1

    @cached_property
    def windows_us(self) -> tuple[int, ...]:
        """The distinct windows of this hop, ascending; none on the all-time level."""
        return tuple(sorted({a.window_us for a in self.aggregations if a.window_us is not None}))

    @cached_property
    def parts(self) -> tuple[tuple[ColumnParts, Part | WidePart], ...]:
        """What is kept, in the order of the slot's fields."""
        return tuple((kept, part) for kept in self.columns for part in kept.parts)

    @cached_property
    def _fields(self) -> tuple[tuple[str, Part | WidePart], ...]:
        return tuple((_field(kept, part), part) for kept, part in self.parts)

    def tile(self, ts_us: Ints) -> Ints:
        """The number of the tile that holds each event time."""
        return ts_us // self.hop_us if self.hop_us else np.zeros(len(ts_us), np.int64)

    def expires_us(self, block: int) -> int | None:
        """The instant after which no window can need that block; None for all of time. Slack is the caller's."""
        if not self.hop_us:
            return None
        return (block + 1) * SPAN * self.hop_us + self.windows_us[-1] + self.hop_us

    def of_head(self, slots: Slots) -> Slots:
        """What this level keeps of slots of the head."""
        out = self.empty(len(slots))
        for name in self.dtype.names or ():
            if name not in _OWN:
                out[name] = slots[name]
        return slot_check.seal(out, _CHECK)

    def empty(self, slots: int) -> Slots:
        """That many empty slots."""
        return np.zeros(slots, self.dtype)

    def decode(self, data: bytes) -> Slots:
        """Slots from stored bytes; raises TornTiles where they are no whole number of slots, or not as written."""
        if len(data) % self.slot_bytes:
            raise TornTiles(
                f"{len(data)} stored bytes are no whole number of {self.slot_bytes}-byte slots; "
                "the tiles were written by another version of the view"
            )
        return self._sound(np.frombuffer(data, self.dtype))

    def _sound(self, slots: Slots) -> Slots:
        if count := slot_check.damaged(slots, _CHECK):
            raise TornTiles(
                f"{count} stored slots of hop {self.hop_us} us do not match their checks: they are damaged, or were "
                "written by another version; stop the stream, then run `featurestore stream rebuild`"
            )
        return slots

    def aggregate(self, group: Ints, groups: int, ts_us: Ints, columns: Mapping[str, Any]) -> Slots:
        """slots[groups] of n events: `group` int64[n] in 0..groups-1, columns as Arrow arrays of length n.

        Events without a value in a column still count in `rows` and `newest`. Raises MagnitudeTooLarge for floats
        of 2**78 and more, ValueTooLong for text that does not fit: set those events aside first
        (`TileLayout.too_large`, `too_long`).
        """
        out = self.empty(groups)
        if not len(group):
            return out
        order = None if (group[1:] >= group[:-1]).all() else np.argsort(group, kind="stable")
        if order is not None:
            group, ts_us = group[order], ts_us[order]
        starts = _starts(group)
        at = group[starts]
        out["rows"][at] = np.diff(starts, append=len(group))
        out["newest"][at] = np.maximum.reduceat(ts_us, starts)
        for kept in self.columns:
            values, present, lexicon = kept.read(columns[kept.column])
            kept.refuse_too_large(values)
            if order is not None:
                values, present = values[order], present[order] if present is not None else None
            events, places, to = Events(values, ts_us, lexicon), starts, at
            if present is not None:
                some = np.flatnonzero(present)
                if not len(some):
                    continue
                events, places = events.take(some), _starts(group[some])
                to = group[some][places]
            for part in kept.parts:
                out[_field(kept, part)][to] = part.pack(part.lift(events, places))
        return slot_check.seal(out, _CHECK)

    def merge(self, a: Slots, b: Slots) -> Slots:
        """Slot by slot, the slots of all events of both."""
        out = self.empty(len(a))
        out["rows"] = a["rows"] + b["rows"]
        newer = (b["rows"] > 0) & ((a["rows"] == 0) | (b["newest"] > a["newest"]))
        out["newest"] = np.where(newer, b["newest"], a["newest"])
        for kept, part in self.parts:
            name = _field(kept, part)
            out[name] = part.pack(part.merge(part.unpack(a[name]), part.unpack(b[name])))
        return slot_check.seal(out, _CHECK)

    def reduce(self, slots: Slots, starts: Ints) -> Slots:
        """The merge of contiguous runs of slots that begin at `starts` (ascending, the first 0)."""
        out = self.empty(len(starts))
        if not len(starts):
            return out
        out["rows"] = np.add.reduceat(slots["rows"], starts)
        out["newest"] = self.newest(slots, starts)
        for kept, part in self.parts:
            name = _field(kept, part)
            out[name] = part.pack(part.reduce(part.unpack(slots[name]), starts))
        return slot_check.seal(out, _CHECK)

    def newest(self, slots: Slots, starts: Ints) -> Ints:
        """The greatest event time in each run of slots; 0 where a run holds no event."""
        times = np.maximum.reduceat(np.where(slots["rows"] > 0, slots["newest"], _NO_TIME), starts)
        return np.where(times == _NO_TIME, 0, times)

    def dense(self, groups: Sequence[Sequence[bytes | None]]) -> Slots:
        """The slots of as many consecutive blocks for each group, [groups, tiles]; empty ones where nothing is stored.

        Raises TornTiles where a block is no whole number of slots, or more than a block has, or not as written.
        """
        width = self.slot_bytes * self.span
        lengths = set(map(len, filter(None, chain.from_iterable(groups))))
        if any(length % self.slot_bytes or length > width for length in lengths):
            raise TornTiles(
                f"stored blocks of hop {self.hop_us} us are no whole number of {self.slot_bytes}-byte slots, or more "
                f"than {self.span} of them; they were written by another version of the view"
            )
        nothing = bytes(width)
        data = b"".join([block.ljust(width, b"\0") if block else nothing for blocks in groups for block in blocks])
        return self._sound(np.frombuffer(data, self.dtype)).reshape(len(groups), -1)

    def reduce_tiles(self, tiles: Slots, runs: Ints) -> list[Raw]:
        """By part as `parts` lists them: the merge of contiguous runs of tiles of each group, [..., runs, groups].

        `tiles` are slots[groups, tiles]; `runs` are the tiles where runs begin, ascending, the first 0.
        """
        found = []
        used: tuple[Ints, Ints] | None = None
        for name, part in self._fields:
            packed = tiles[name]
            if isinstance(part, Part) and not part.words:
                found.append(part.reduce_tiles(packed, runs))
                continue
            # What is wide is looked at where there are events only.
            if used is None:
                used = np.divmod(np.flatnonzero(tiles["rows"]), tiles.shape[1])
            group, tile = used
            run = group * len(runs) + np.searchsorted(runs, tile, side="right") - 1
            starts = _starts(run)
            raw = part.empty(tiles.shape[0] * len(runs))
            if len(run):
                raw[..., run[starts]] = part.reduce(part.unpack(packed[group, tile]), starts)
            found.append(raw.reshape(*raw.shape[:-1], -1, len(runs)).swapaxes(-1, -2))
        return found

    def raw(self, slots: Slots) -> list[Raw]:
        """By part as `parts` lists them, what slots of this level, or of a head, hold."""
        return [part.unpack(slots[name]) for name, part in self._fields]


@dataclass(frozen=True)
class TileLayout:
    """The levels of one windowed view, by ascending hop."""

    aggregations: tuple[Aggregation, ...]
    levels: tuple[Level, ...]
    head: Level | None = None
    """The parts of all levels; tiles of its hop nest in theirs. None: one level needs no head."""

    @classmethod
    def of(cls, view: View) -> Self:
        """The layout of a view's tiles; raises DefinitionError for what tiles cannot keep."""
        if view.kind != "windowed" or not view.aggregations:
            raise DefinitionError(f"view {view.name!r} declares no aggregations; only windowed views have tiles")
        return cls.of_aggregations(view.aggregations)

    @classmethod
    def of_aggregations(cls, aggregations: Sequence[Aggregation]) -> Self:
        """The layout that these aggregations need.

        >>> fare = Aggregation(feature="n", column="fare", column_dtype="DOUBLE", function="count", dtype="INT64",
        ...                    window_us=3_600_000_000, hop_us=300_000_000)
        >>> [level.hop_us for level in TileLayout.of_aggregations([fare]).levels]
        [300000000]
        """
        columns_of(aggregations)
        by_hop: dict[int, list[Aggregation]] = {}
        for aggregation in aggregations:
            by_hop.setdefault(hop_of(aggregation), []).append(aggregation)
        every = tuple(aggregations)
        levels = tuple(Level(hop_us, tuple(by_hop[hop_us]), every) for hop_us in sorted(by_hop))
        head = Level(math.gcd(*by_hop), every) if len(levels) > 1 else None
        return cls(every, levels, head)

    @cached_property
    def _columns(self) -> tuple[ColumnParts, ...]:
        return columns_of(self.aggregations)

    @cached_property
    def head_dtype(self) -> np.dtype[np.void]:
        """A stored head: the number of its tile, and its slot."""
        return np.dtype([("tile", "<i8"), ("slot", self.head.dtype if self.head else "V0")])

    def decode_heads(self, stored: Sequence[bytes]) -> Slots:
        """Stored heads, `head_dtype`; raises TornTiles where one is of another layout, or not as written."""
        size = self.head_dtype.itemsize
        if any(len(data) != size for data in stored):
            raise TornTiles(
                f"a stored head is not {size} bytes long; it was written by another version of the view, or cut short"
            )
        heads = np.frombuffer(b"".join(stored), self.head_dtype)
        if count := slot_check.damaged(heads, _HEAD_CHECK):
            raise TornTiles(
                f"{count} stored heads do not match their checks: they are damaged, or were written by another "
                "version; stop the stream, then run `featurestore stream rebuild`"
            )
        return heads

    def heads(self, tile: Ints, slots: Slots) -> Slots:
        """Heads as they are stored: the check of a head's slot stands for the number of its tile too."""
        heads = np.zeros(len(slots), self.head_dtype)
        heads["tile"], heads["slot"] = tile, slots
        return slot_check.seal(heads, _HEAD_CHECK)

    def head_expires_us(self, tile: int) -> int | None:
        """The instant after which no window can need the head of that tile; None: there is one of all time."""
        assert self.head is not None  # a layout without one has no such tile
        start = np.array([tile * self.head.hop_us])
        expires = [level.expires_us(int(level.tile(start)[0]) // SPAN) for level in self.levels]
        return None if None in expires else max(at for at in expires if at is not None)

    def too_large(self, columns: Mapping[str, Any]) -> Mask | None:
        """Which events must be set aside because a float of theirs is too large to sum exactly; None: none."""
        return too_large(self._columns, columns)

    def too_long(self, columns: Mapping[str, Any]) -> Mask | None:
        """Which events must be set aside because a text of theirs is longer than a slot keeps; None: none."""
        return too_long(self._columns, columns)


def hop_of(aggregation: Aggregation) -> int:
    """The hop of an aggregation's level; raises DefinitionError where window and hop do not go together."""
    if aggregation.window_us is None:
        return ALL_TIME
    if aggregation.hop_us is None:
        raise DefinitionError(f"feature {aggregation.feature!r} has a window and no hop; apply the definitions again")
    check_window(aggregation.window_us, aggregation.hop_us)
    return aggregation.hop_us


def _field(kept: ColumnParts, part: Part | WidePart) -> str:
    return f"{kept.column}.{part.name}"


def _starts(group: Ints) -> Ints:
    return np.flatnonzero(np.concatenate(([True], group[1:] != group[:-1])))
