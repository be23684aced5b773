"""What do the stored tiles of a windowed view say at an instant? Merged over its shards, complete or said not to be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.aggregation.errors import TornTiles
from featurestore.aggregation.read import WindowReader, Windows
from featurestore.aggregation.results import Told
from featurestore.aggregation.tiles import HEAD
from featurestore.aggregation.windows import window_start
from featurestore.errors import NotExact, StaleStore, VersionDropped
from featurestore.online.keys import DROPPED, EntityKeyCodec, Shard, shards_key, tile_key
from featurestore.online.numbers import Numbers
from featurestore.online.partitioner import KEY_TYPES, message_key, partition_of
from featurestore.online.result import Column, Instants, Status
from featurestore.online.sealed import unsealed
from featurestore.plan import Aggregation, View

Positions = npt.NDArray[np.int64]
_BEGINNING = -(1 << 63)


class ShardState(msgspec.Struct, frozen=True):
    """One entry of the shards list, as the stream writes it."""

    topic_id: str
    partition: int
    complete_from_us: int | None = None
    """The event time from which on the shard has seen every event; None: from the beginning of time."""
    home: int | None = None
    """Among so many partitions every event of the shard lies where its key belongs; None: that is not known."""


@dataclass(frozen=True, slots=True, eq=False)
class ShardList:
    """The shards of a view version at one moment, and what their tile keys start with."""

    raw: bytes | None
    states: tuple[ShardState, ...]
    prefixes: Mapping[int, tuple[bytes, ...]]
    """By hop, one a shard."""
    homes: tuple[tuple[int, ...], ...] = ()
    """Of a keyed view: by partition of a key, the shards that hold it, as many for each; none: all shards do."""

    @property
    def per_key(self) -> int:
        """How many shards are merged for one key."""
        return len(self.homes[0]) if self.homes else len(self.states)

    @property
    def complete_from_us(self) -> int:
        """The event time from which on every shard has seen every event."""
        return max((_since(state) for state in self.states), default=_BEGINNING)


@dataclass(frozen=True, slots=True, eq=False)
class WindowedView:
    """One windowed view as a reader sees it: which keys to fetch, and what fetched tiles mean."""

    project: str
    view: View
    reader: WindowReader
    shards_key: bytes
    declared: Mapping[str, tuple[Aggregation, str]]
    """By feature: its aggregation and its type."""
    key_head: int = 0
    """Of a keyed view: where in a serialized key its value begins; 0: the view is spread."""

    @classmethod
    def of(cls, project: str, view: View) -> "WindowedView":
        """The view of that project."""
        types = {field.name: field.dtype for field in view.features}
        declared = {each.feature: (each, types[each.feature]) for each in view.aggregations if each.feature in types}
        keyed = view.partitions == "keyed" and view.join_keys[0].dtype in KEY_TYPES
        head = EntityKeyCodec(view.join_keys).value_at if keyed else 0
        return cls(project, view, WindowReader.of(view), shards_key(project, view.name, view.version), declared, head)

    def shards(self, raw: bytes | None) -> ShardList:
        """The stored list of shards; empty where nothing was streamed yet.

        Raises VersionDropped where readers were to have gone over to another version, StaleStore where it is torn.
        """
        if raw == DROPPED:
            raise VersionDropped(
                f"version {self.view.version} of view {self.view.name!r} was dropped; read by the plan in force"
            )
        what, remedy = (
            f"the list of shards of view {self.view.name!r}",
            "stop the stream, then run `featurestore stream rebuild`",
        )
        try:
            states = msgspec.json.decode(unsealed(raw, what, remedy), type=tuple[ShardState, ...]) if raw else ()
        except msgspec.MsgspecError as error:
            raise StaleStore(f"{what} in the online store cannot be read: {error}; {remedy}") from error
        view = self.view
        shards = [Shard(self.project, view.name, view.version, state.topic_id, state.partition) for state in states]
        partitions = view.source.topic.partitions if view.source.topic else None
        homes = _homes(states, partitions) if self.key_head and partitions else ()
        hops = [*(level.hop_us for level in self.reader.layout.levels), HEAD]
        return ShardList(
            raw, states, {hop_us: tuple(shard.tile_prefix(hop_us) for shard in shards) for hop_us in hops}, homes
        )

    def names(self, keys: Sequence[bytes], t_us: int, shards: ShardList) -> list[bytes]:
        """The store's keys of all tiles that these entity keys may need at t: by key, block, then shard."""
        blocks = self.reader.blocks(t_us)
        if shards.homes:
            return self._names_at_home(keys, blocks, shards)
        stems = [tile_key(prefix, block, b"") for hop_us, block in blocks for prefix in shards.prefixes[hop_us]]
        return [stem + key for key in keys for stem in stems]

    def _names_at_home(
        self, keys: Sequence[bytes], blocks: Sequence[tuple[int, int]], shards: ShardList
    ) -> list[bytes]:
        """The same, of the partition in which each key's events lie."""
        partitions, dtype = len(shards.homes), self.view.join_keys[0].dtype
        stems: dict[int, list[bytes]] = {}
        names: list[bytes] = []
        for key in keys:
            home = partition_of(message_key(key, self.key_head, dtype), partitions)
            own = stems.get(home)
            if own is None:
                own = stems[home] = [
                    tile_key(shards.prefixes[hop_us][shard], block, b"")
                    for hop_us, block in blocks
                    for shard in shards.homes[home]
                ]
            names += [stem + key for stem in own]
        return names

    def windows(self, count: int, t_us: int, held: Sequence[bytes | None], shards: ShardList) -> Windows:
        """The values of `count` entity keys at t, from what was fetched by `names`."""
        try:
            return self.reader.merge(t_us, count, held, shards.per_key)
        except TornTiles as error:
            raise TornTiles(f"view {self.view.name!r}, version {self.view.version}: {error}") from error

    def refuse_inexact(self, newest_us: Instants, t_us: int, now_us: int) -> None:
        """Raises NotExact where values as of t cannot be known any more."""
        newer = int((newest_us > t_us).sum())
        if newer:
            raise NotExact(
                f"view {self.view.name!r}: {newer} of the keys asked for hold events newer than as_of; "
                "ask the offline store for that instant"
            )
        for level in self.reader.layout.levels:
            blocks = [block for hop_us, block in self.reader.blocks(t_us) if hop_us == level.hop_us]
            if any((level.expires_us(block) or now_us) < now_us for block in blocks):
                raise NotExact(
                    f"view {self.view.name!r}: tiles that as_of needs may have expired; "
                    "ask the offline store for that instant"
                )

    def columns(
        self,
        alias: str,
        features: Sequence[str],
        windows: Windows,
        instant_us: Instants,
        place: Positions,
        t_us: int,
        shards: ShardList,
    ) -> list[Column]:
        """The columns of an answer; `place` says which entity key each row is (-1: none), instants are by key."""
        count = len(place)
        known = (place >= 0) & bool(shards.states)
        all_known = bool(known.all())
        whole = all_known and count == len(instant_us) and bool((place == np.arange(count)).all())
        gone = None if all_known else ~known
        if whole:
            newest_us, instants = windows.newest_us, instant_us
        elif len(instant_us):
            newest_us, instants = np.where(known, windows.newest_us[place], 0), np.where(known, instant_us[place], t_us)
        else:
            newest_us, instants = np.zeros(count, np.int64), np.full(count, t_us)
        since_us = shards.complete_from_us
        alike: dict[tuple[int | None, int | None, bytes], npt.NDArray[np.uint8]] = {}
        columns = []
        for name in features:
            aggregation, dtype = self.declared[name]
            told = windows.told[name]
            held: Numbers | pa.Array
            if isinstance(told, Told) and len(told.values):
                held = Numbers(told.dtype, told.values, told.nulls)
                held = held if whole else held.take(place, gone)
                nulls = held.nulls
            else:
                held = told.arrow() if isinstance(told, Told) else told
                held = held if whole else held.take(pa.array(place, mask=gone))
                nulls = held.is_null().to_numpy(zero_copy_only=False) if held.null_count else None
            # Columns of equal statuses share one array, so that an encoder sees it once.
            key = (
                aggregation.window_us if since_us > _BEGINNING else None,
                aggregation.hop_us if since_us > _BEGINNING else None,
                b"" if nulls is None else nulls.tobytes(),
            )
            statuses = alike.get(key)
            if statuses is None:
                statuses = alike[key] = np.full(count, Status.PRESENT, np.uint8)
                if nulls is not None:
                    statuses[nulls] = Status.NULL_VALUE
                if since_us > _BEGINNING:
                    statuses[_incomplete(aggregation, instants, since_us)] = Status.INCOMPLETE
                if gone is not None:
                    statuses[gone] = Status.NOT_FOUND
            columns.append(Column(alias, name, dtype, held, statuses, newest_us, instants))
        return columns


def _homes(states: Sequence[ShardState], partitions: int) -> tuple[tuple[int, ...], ...]:
    """By partition of a key the places of the shards that can hold it: of each topic its own partition's.

    A topic that has other partitions than those (it grew, or it is one of replays), or holds an event elsewhere, is
    looked through as a whole.
    """
    by_topic: dict[str, dict[int, int]] = {}
    for place, state in enumerate(states):
        by_topic.setdefault(state.topic_id, {})[state.partition] = place
    own: list[dict[int, int]] = []
    all_of: list[int] = []
    for found in by_topic.values():
        settled = all(states[place].home == partitions for place in found.values())
        if settled and set(found) == set(range(partitions)):
            own.append(found)
        else:
            all_of += found.values()
    if not own:
        return ()
    return tuple((*(found[partition] for found in own), *all_of) for partition in range(partitions))


def _incomplete(aggregation: Aggregation, instants: Instants, since_us: int) -> npt.NDArray[np.bool_]:
    if aggregation.window_us is None or aggregation.hop_us is None:
        return np.full(len(instants), since_us > _BEGINNING)
    return window_start(instants, aggregation.window_us, aggregation.hop_us) < since_us


def _since(state: ShardState) -> int:
    return _BEGINNING if state.complete_from_us is None else state.complete_from_us
