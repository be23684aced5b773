"""What do the tiles of one shard hold, as far as this process knows?

A bounded cache of slots and heads between the events and Redis. It knows nothing that Redis does not know: whoever
doubts it (an error, another claim) drops it and starts with an empty one. `merge` reads what is missing and tells what
to write and changes nothing, `advance` takes the written slots in, after the commit.

Where a view has several levels, an event changes the head of its key, one slot. A head whose tile has passed is rolled
up into every level in the same change; events of tiles before the head's go to the levels at once. So the stored bytes
follow from the set of events alone: the head holds a key's newest tile, the levels hold all others.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from featurestore.aggregation.tiles import HEAD, SPAN, Level, TileLayout
from featurestore.online.keys import Shard, tile_key
from streaming.view_pipeline import LevelPartials, Partials

Ints = npt.NDArray[np.int64]
Slots = npt.NDArray[Any]
Read = Callable[[Sequence[bytes]], Mapping[bytes, bytes | None]]

SLOTS_KEPT: Final = 400_000
_TILE_BITS: Final = 40
"""Tiles are numbered below 2^40 until the year 36,000, at hops of a second."""
_BLOCK_BITS: Final = _TILE_BITS - 5
_FIRST_ROWS: Final = 1024


class BlockWrite(msgspec.Struct, frozen=True, gc=False):
    """Slots of one block: at each byte offset the bytes to be there; gone after `expires_us` (None: never)."""

    key: bytes
    expires_us: int | None
    runs: tuple[tuple[int, bytes], ...]
    lasting: bool = False
    """Whether Redis has been told of `expires_us` already."""


class Heads(msgspec.Struct, frozen=True):
    """The heads that a batch leaves behind."""

    entity: Ints
    tile: Ints
    slots: Slots


class LevelChange(msgspec.Struct, frozen=True):
    """The slots that a batch leaves behind on one level, and how far the blocks that were read reach."""

    level: Level
    numbers: Ints
    slots: Slots
    extents: dict[int, int]


class Change(msgspec.Struct, frozen=True):
    """The absolute slots that a batch leaves behind: as writes, and as `advance` takes them in."""

    writes: list[BlockWrite]
    slots: int
    levels: tuple[LevelChange, ...]
    heads: Heads | None = None


class _Arena:
    """Slots of one level by number; `extent` is how many slots of a block may differ from zero in Redis."""

    def __init__(self, level: Level) -> None:
        self.rows: dict[int, int] = {}
        self.extent: dict[int, int] = {}
        self.slots: Slots = np.zeros(_FIRST_ROWS, level.dtype)

    def put(self, numbers: list[int], slots: Slots) -> None:
        rows = self.rows
        places = [rows.setdefault(number, len(rows)) for number in numbers]
        self.slots = _grown(self.slots, len(rows))
        self.slots[places] = slots


class _HeadArena:
    """Heads by the number of their entity; `known` says whose are cached, `there` who has one."""

    def __init__(self, layout: TileLayout) -> None:
        self.known = np.zeros(_FIRST_ROWS, np.bool_)
        self.there = np.zeros(_FIRST_ROWS, np.bool_)
        self.heads: Slots = np.zeros(_FIRST_ROWS, layout.head_dtype)

    def reach(self, entities: int) -> None:
        self.known, self.there = _grown(self.known, entities), _grown(self.there, entities)
        self.heads = _grown(self.heads, entities)


class _Piece(msgspec.Struct, frozen=True):
    """Slots of entities and tiles, in any order."""

    entity: Ints
    tile: Ints
    slots: Slots


class ShardState:
    """The cached slots of one shard: about `slots_kept` of them, all dropped together when they are more."""

    def __init__(self, shard: Shard, *, slots_kept: int = SLOTS_KEPT) -> None:
        self.shard = shard
        self._slots_kept = slots_kept
        self._drop()

    def __len__(self) -> int:
        """How many slots are cached."""
        heads = int(self._heads.known.sum()) if self._heads else 0
        return heads + sum(len(arena.rows) for arena in self._arenas.values())

    def merge(self, partials: Partials, read: Read, *, slack_us: int) -> Change:
        """The partials merged with what is cached and, where it is not, `read` from the store (None where absent)."""
        if len(self) > self._slots_kept or len(self._keys) > self._slots_kept:
            self._drop()
        layout, own = partials.layout, self._own(partials.keys)
        heads: Heads | None = None
        rolled: _Piece | None = None
        writes: list[BlockWrite] = []
        if partials.head is not None:
            heads, rolled = self._heads_after(layout, partials.head, own, read)
            writes = self._head_writes(layout, heads, slack_us)
        direct = {part.level.hop_us: part for part in partials.levels}
        pieces = []
        for level in layout.levels:
            piece = _merged(level, layout, direct.get(level.hop_us), own, rolled)
            if piece is not None:
                pieces.append((level, *piece))
        stored = read([key for level, numbers, _ in pieces for key in self._unread(level, numbers)])
        levels = []
        for level, numbers, slots in pieces:
            arena, prefix = self._arena(level), self.shard.tile_prefix(level.hop_us)
            before, extents = self._before(arena, level, prefix, numbers.tolist(), stored)
            after = level.merge(before, slots)
            writes.extend(self._writes(level, prefix, numbers, after, slack_us))
            levels.append(LevelChange(level, numbers, after, extents))
        count = sum(len(change.numbers) for change in levels) + (len(heads.entity) if heads else 0)
        return Change(writes, count, tuple(levels), heads)

    def advance(self, change: Change) -> None:
        """Take in what was committed."""
        if change.heads is not None and self._heads is not None:
            heads, arena = change.heads, self._heads
            arena.known[heads.entity] = arena.there[heads.entity] = True
            arena.heads["tile"][heads.entity], arena.heads["slot"][heads.entity] = heads.tile, heads.slots
        for each in change.levels:
            listed = each.numbers.tolist()
            level_arena = self._arena(each.level)
            level_arena.put(listed, each.slots)
            known = level_arena.extent
            known.update(each.extents)
            for number in listed:
                block, place = number // SPAN, number % SPAN + 1
                if known.get(block, 0) < place:
                    known[block] = place

    def _drop(self) -> None:
        self._entities: dict[bytes, int] = {}
        self._keys: list[bytes] = []
        self._arenas: dict[int, _Arena] = {}
        self._heads: _HeadArena | None = None

    def _own(self, keys: Sequence[bytes]) -> Ints:
        """The number of every key's entity."""
        entities, known = self._entities, self._keys
        own = []
        for key in keys:
            entity = entities.get(key)
            if entity is None:
                entity = entities[key] = len(known)
                known.append(key)
            own.append(entity)
        return np.array(own, np.int64)

    def _heads_after(self, layout: TileLayout, part: LevelPartials, own: Ints, read: Read) -> tuple[Heads, _Piece]:
        """The heads as the batch leaves them, and what is rolled up into the levels: passed heads, earlier tiles."""
        arena = self._heads = self._heads or _HeadArena(layout)
        arena.reach(len(self._keys))
        last = np.flatnonzero(np.append(part.code[1:] != part.code[:-1], [True]))
        entity = own[part.code[last]]
        there, held = arena.there[entity], arena.heads[entity]
        unread = np.flatnonzero(~arena.known[entity])
        if len(unread):
            names = self._head_keys(entity[unread])
            found = read(names)
            stored = [found[name] for name in names]
            some = unread[[i for i, data in enumerate(stored) if data]]
            there[some] = True
            held[some] = layout.decode_heads([data for data in stored if data])
        newest = part.tile[last]
        passes = there & (held["tile"] < newest)
        same = there & (held["tile"] == newest)
        changed = np.flatnonzero(~there | (held["tile"] <= newest))
        assert layout.head is not None  # partials that go through heads are of a layout that has them
        before = layout.head.empty(len(last))
        before[same] = held["slot"][same]
        slots = layout.head.merge(before[changed], part.slots[last[changed]])
        stays = np.zeros(len(part.code), np.bool_)
        stays[last[changed]] = True
        rolled = _Piece(
            np.concatenate([own[part.code[~stays]], entity[passes]]),
            np.concatenate([part.tile[~stays], held["tile"][passes]]),
            np.concatenate([part.slots[~stays], held["slot"][passes]]),
        )
        return Heads(entity[changed], newest[changed], slots), rolled

    def _head_writes(self, layout: TileLayout, heads: Heads, slack_us: int) -> list[BlockWrite]:
        arena = self._heads
        assert arena is not None  # made before the heads were
        stored = layout.heads(heads.tile, heads.slots)
        data, size = stored.tobytes(), layout.head_dtype.itemsize
        lasting = arena.known[heads.entity] & arena.there[heads.entity]
        lasting &= arena.heads["tile"][heads.entity] == heads.tile
        expires = {}
        for tile in np.unique(heads.tile).tolist():
            at = layout.head_expires_us(tile)
            expires[tile] = None if at is None else at + slack_us
        rows = zip(self._head_keys(heads.entity), heads.tile.tolist(), lasting.tolist(), strict=True)
        return [
            BlockWrite(key, expires[tile], ((0, data[number * size : (number + 1) * size]),), told)
            for number, (key, tile, told) in enumerate(rows)
        ]

    def _head_keys(self, entity: Ints) -> list[bytes]:
        stem, keys = tile_key(self.shard.tile_prefix(HEAD), 0, b""), self._keys
        return [stem + keys[number] for number in entity.tolist()]

    def _unread(self, level: Level, numbers: Ints) -> list[bytes]:
        """The keys of the blocks that must be read before these slots can be merged."""
        arena = self._arena(level)
        unread: dict[int, None] = {}
        for number in numbers.tolist():
            if number not in arena.rows:
                block = number // SPAN
                extent = arena.extent.get(block)
                if extent is None or number % SPAN < extent:
                    unread[block] = None
        prefix = self.shard.tile_prefix(level.hop_us)
        return [self._block_key(prefix, block) for block in unread]

    def _before(
        self, arena: _Arena, level: Level, prefix: bytes, numbers: list[int], read: Mapping[bytes, bytes | None]
    ) -> tuple[Slots, dict[int, int]]:
        """The slots as they are now, and how far the blocks that were read reach."""
        places = np.array([arena.rows.get(number, -1) for number in numbers], np.int64)
        before = level.empty(len(numbers))
        cached = places >= 0
        before[cached] = arena.slots[places[cached]]
        extents: dict[int, int] = {}
        blocks: dict[int, bytes] = {}
        found: list[int] = []
        stored: list[bytes] = []
        size = level.slot_bytes
        for place in np.flatnonzero(~cached).tolist():
            block, inside = divmod(numbers[place], SPAN)
            if block not in blocks:
                payload = read.get(self._block_key(prefix, block))
                known = arena.extent.get(block)
                if payload is None and known is not None and inside >= known:
                    continue
                blocks[block] = payload or b""
                extents[block] = max(len(level.decode(blocks[block])), known or 0)
            if slot := blocks[block][inside * size : inside * size + size]:
                found.append(place)
                stored.append(slot)
        if found:
            before[found] = level.decode(b"".join(stored))
        return before, extents

    def _writes(self, level: Level, prefix: bytes, numbers: Ints, slots: Slots, slack_us: int) -> list[BlockWrite]:
        size = level.slot_bytes
        data = slots.tobytes()
        block_of = numbers // SPAN
        # Runs of neighbouring tiles of one block become one write each.
        breaks = np.flatnonzero((np.diff(numbers) != 1) | (np.diff(block_of) != 0)) + 1
        starts = [0, *breaks.tolist()]
        ends = [*breaks.tolist(), len(numbers)]
        runs: dict[int, list[tuple[int, bytes]]] = {}
        listed = numbers.tolist()
        for start, end in zip(starts, ends, strict=True):
            block, inside = divmod(listed[start], SPAN)
            runs.setdefault(block, []).append((inside * size, data[start * size : end * size]))
        extent = self._arena(level).extent
        writes = []
        for block, parts in runs.items():
            expires = level.expires_us(block & ((1 << _BLOCK_BITS) - 1))
            expires_us = None if expires is None else expires + slack_us
            # A block that we have written has its expiry; one that was read and is empty has none.
            lasting = extent.get(block, 0) > 0
            writes.append(BlockWrite(self._block_key(prefix, block), expires_us, tuple(parts), lasting))
        return writes

    def _arena(self, level: Level) -> _Arena:
        arena = self._arenas.get(level.hop_us)
        if arena is None:
            arena = self._arenas[level.hop_us] = _Arena(level)
        return arena

    def _block_key(self, prefix: bytes, block: int) -> bytes:
        return tile_key(prefix, block & ((1 << _BLOCK_BITS) - 1), self._keys[block >> _BLOCK_BITS])


def _merged(
    level: Level, layout: TileLayout, direct: LevelPartials | None, own: Ints, rolled: _Piece | None
) -> tuple[Ints, Slots] | None:
    """What a batch adds to one level: numbers of entity and tile, ascending, and their slots; None: nothing.

    A number divided by 32 is that of the entity and block.
    """
    numbers, slots = [], []
    if direct is not None:
        numbers.append((own[direct.code] << _TILE_BITS) | direct.tile)
        slots.append(direct.slots)
    if rolled is not None and len(rolled.entity):
        assert layout.head is not None  # what is rolled up was a head, or on its way to one
        tile = level.tile(rolled.tile * layout.head.hop_us)
        numbers.append((rolled.entity << _TILE_BITS) | tile)
        slots.append(level.of_head(rolled.slots))
    if not numbers:
        return None
    number = np.concatenate(numbers)
    order = np.argsort(number, kind="stable")
    number, slot = number[order], np.concatenate(slots)[order]
    starts = np.flatnonzero(np.append([True], number[1:] != number[:-1]))
    return (number, slot) if len(starts) == len(number) else (number[starts], level.reduce(slot, starts))


def _grown(array: Slots, rows: int) -> Slots:
    if rows <= len(array):
        return array
    grown = np.zeros(max(rows, 2 * len(array)), array.dtype)
    grown[: len(array)] = array
    return grown
