"""What do the tiles of one shard hold, as far as this process knows?

A bounded cache of slots between the events and Redis. It knows nothing that Redis does not know: whoever doubts it
(an error, another claim) drops it and starts with an empty one. `missing` says which blocks must be read first,
`merge` tells what to write and changes nothing, `advance` takes the written slots in, after the commit.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from featurestore.aggregation.tiles import SPAN, Level
from featurestore.online.keys import Shard, tile_key
from streaming.pipeline import LevelPartials, Partials

Ints = npt.NDArray[np.int64]
Slots = npt.NDArray[Any]

SLOTS_KEPT: Final = 400_000
_TILE_BITS: Final = 40
"""Tiles are numbered below 2^40 until the year 36,000, at hops of a second."""
_FIRST_ROWS = 1024


class BlockWrite(msgspec.Struct, frozen=True, gc=False):
    """Slots of one block: at each byte offset the bytes to be there; gone after `expires_us` (None: never)."""

    key: bytes
    expires_us: int | None
    runs: tuple[tuple[int, bytes], ...]


class Change(msgspec.Struct, frozen=True):
    """The absolute slots that a batch leaves behind: as writes, and as `advance` takes them in."""

    writes: list[BlockWrite]
    slots: int
    levels: tuple[tuple[Level, Ints, Slots, dict[int, int]], ...]


class _Arena:
    """Slots of one level by number; `extent` is how many slots of a block may differ from zero in Redis."""

    def __init__(self, level: Level) -> None:
        self.rows: dict[int, int] = {}
        self.extent: dict[int, int] = {}
        self.slots: Slots = np.zeros(_FIRST_ROWS, level.dtype)

    def put(self, numbers: list[int], slots: Slots) -> None:
        rows = self.rows
        places = [rows.setdefault(number, len(rows)) for number in numbers]
        if len(rows) > len(self.slots):
            grown = np.zeros(max(len(rows), 2 * len(self.slots)), self.slots.dtype)
            grown[: len(self.slots)] = self.slots
            self.slots = grown
        self.slots[places] = slots


class ShardState:
    """The cached slots of one shard: about `slots_kept` of them, all dropped together when they are more."""

    def __init__(self, shard: Shard, *, slots_kept: int = SLOTS_KEPT) -> None:
        self.shard = shard
        self._slots_kept = slots_kept
        self._entities: dict[bytes, int] = {}
        self._keys: list[bytes] = []
        self._arenas: dict[int, _Arena] = {}

    def __len__(self) -> int:
        """How many slots are cached."""
        return sum(len(arena.rows) for arena in self._arenas.values())

    def missing(self, partials: Partials) -> list[bytes]:
        """The keys of the blocks that must be read before these partials can be merged."""
        if len(self) > self._slots_kept or len(self._keys) > self._slots_kept:
            self._entities, self._keys, self._arenas = {}, [], {}
        keys: list[bytes] = []
        for part in partials.levels:
            arena = self._arena(part.level)
            unread: dict[int, None] = {}
            for number in self._numbers(partials, part).tolist():
                if number not in arena.rows:
                    block = number // SPAN
                    extent = arena.extent.get(block)
                    if extent is None or number % SPAN < extent:
                        unread[block] = None
            prefix = self.shard.tile_prefix(part.level.hop_us)
            keys.extend(self._block_key(prefix, block) for block in unread)
        return keys

    def merge(self, partials: Partials, read: Mapping[bytes, bytes | None], *, slack_us: int) -> Change:
        """The partials merged with what is cached and `read` (everything `missing` named; None where absent)."""
        writes: list[BlockWrite] = []
        levels = []
        for part in partials.levels:
            level, arena = part.level, self._arena(part.level)
            prefix = self.shard.tile_prefix(level.hop_us)
            numbers = self._numbers(partials, part)
            before, extents = self._before(arena, level, prefix, numbers.tolist(), read)
            slots = level.merge(before, part.slots)
            writes.extend(self._writes(level, prefix, numbers, slots, slack_us))
            levels.append((level, numbers, slots, extents))
        return Change(writes, sum(len(numbers) for _, numbers, _, _ in levels), tuple(levels))

    def advance(self, change: Change) -> None:
        """Take in what was committed."""
        for level, numbers, slots, extents in change.levels:
            arena = self._arena(level)
            listed = numbers.tolist()
            arena.put(listed, slots)
            known = arena.extent
            known.update(extents)
            for number in listed:
                block, place = number // SPAN, number % SPAN + 1
                if known.get(block, 0) < place:
                    known[block] = place

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
        # Runs of neighbouring tiles of one block become one write each; numbers may come in any order of entities.
        breaks = np.flatnonzero((np.diff(numbers) != 1) | (np.diff(block_of) != 0)) + 1
        starts = [0, *breaks.tolist()]
        ends = [*breaks.tolist(), len(numbers)]
        runs: dict[int, list[tuple[int, bytes]]] = {}
        listed = numbers.tolist()
        for start, end in zip(starts, ends, strict=True):
            block, inside = divmod(listed[start], SPAN)
            runs.setdefault(block, []).append((inside * size, data[start * size : end * size]))
        writes = []
        for block, parts in runs.items():
            expires = level.expires_us(block & ((1 << _TILE_BITS) // SPAN - 1))
            expires_us = None if expires is None else expires + slack_us
            writes.append(BlockWrite(self._block_key(prefix, block), expires_us, tuple(parts)))
        return writes

    def _arena(self, level: Level) -> _Arena:
        arena = self._arenas.get(level.hop_us)
        if arena is None:
            arena = self._arenas[level.hop_us] = _Arena(level)
        return arena

    def _numbers(self, partials: Partials, part: LevelPartials) -> Ints:
        """int64[n]: one number per entity and tile; divided by 32 it is that of the entity and block."""
        entities, keys = self._entities, self._keys
        own = []
        for key in partials.keys:
            entity = entities.get(key)
            if entity is None:
                entity = entities[key] = len(keys)
                keys.append(key)
            own.append(entity)
        return (np.array(own, np.int64)[part.code] << _TILE_BITS) | part.tile

    def _block_key(self, prefix: bytes, block: int) -> bytes:
        entity, number = divmod(block, (1 << _TILE_BITS) // SPAN)
        return tile_key(prefix, number, self._keys[entity])
