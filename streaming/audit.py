"""Do the stored tiles hold exactly the events of the event log?

Tiles are made again, in one go and from nothing, out of the events that the log holds of a shard up to its offset,
and compared byte for byte with what the online store has. The stream merges batch by batch and this does not: they
share the layout of a slot and no more.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.aggregation.tiles import HEAD, SPAN, Level, TileLayout
from featurestore.clearance import withhold
from featurestore.offline.duplicates import duplicates
from featurestore.offline.event_log import ARRIVAL, OFFSET, PARTITION, TOPIC_ID
from featurestore.online.keys import EntityKeyCodec, Shard, tile_key
from featurestore.plan import View
from featurestore.transform import transformed
from streaming.view_pipeline import SLACK_US

Ints = npt.NDArray[np.int64]


class Audit(msgspec.Struct, frozen=True):
    """How many blocks were compared, and the keys of those that differ, lack or should not be there."""

    compared: int
    different: tuple[bytes, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether not one byte differs."""
        return not self.different


def audit_shard(
    view: View, shard: Shard, events: pa.Table, offset: int, stored: Mapping[bytes, bytes], *, now_us: int
) -> Audit:
    """Compare a shard's stored blocks with the events of its topic below `offset`.

    `events` are rows of the event log; `stored` holds every block that the shard has in the store. Blocks that no
    window needs at `now_us` are not compared: they may be gone. Trailing empty slots make no difference.
    """
    needed = expected_blocks(view, shard, events, offset)
    alive = {key: block for key, (block, expires) in needed.items() if expires is None or expires > now_us}
    keys = alive.keys() | (stored.keys() - needed.keys())
    different = [key for key in keys if stored.get(key, b"").rstrip(b"\0") != alive.get(key, b"").rstrip(b"\0")]
    return Audit(len(keys), tuple(sorted(different)))


def expected_blocks(
    view: View, shard: Shard, events: pa.Table, offset: int, *, slack_us: int = SLACK_US
) -> dict[bytes, tuple[bytes, int | None]]:
    """Key -> the bytes a block must have and when it may be gone, from the events of the shard below `offset`."""
    ours = pc.and_(
        pc.and_(pc.equal(events[TOPIC_ID], shard.topic_id), pc.equal(events[PARTITION], shard.partition)),
        pc.less(events[OFFSET], offset),
    )
    events = withhold(events.filter(ours).combine_chunks(), view.withheld)
    raw = {new: old for old, new in view.source.field_mapping.items()}
    ts_us = _micros(events[raw.get(view.source.timestamp_field, view.source.timestamp_field)])
    arrival_us = _micros(events[ARRIVAL])
    names = [key.name for key in view.join_keys]
    rows = zip(*(events[raw.get(name, name)].to_pylist() for name in names), strict=True) if names else iter(())
    codec = EntityKeyCodec(view.join_keys)
    keys = (
        [codec.encode(dict(zip(names, row, strict=True))) for row in rows]
        if names
        else [codec.encode({})] * len(events)
    )
    repeated = _duplicates(view, events, keys, ts_us, arrival_us)
    layout = TileLayout.of(view)
    own = _columns(view, events, raw)

    def slot(level: Level, members: list[int]) -> bytes:
        index = np.array(members)
        columns = {name: column.take(pa.array(index)) for name, column in own.items()}
        return level.aggregate(np.zeros(len(index), np.int64), 1, ts_us[index], columns).tobytes()

    in_time: dict[int, list[bool]] = {}
    for level in layout.levels:
        expires = [level.expires_us(tile // SPAN) for tile in level.tile(ts_us).tolist()]
        in_time[level.hop_us] = [
            end is None or end + slack_us > arrival for end, arrival in zip(expires, arrival_us.tolist(), strict=True)
        ]
    counts = [row for row in range(len(events)) if keys[row] is not None and not repeated[row]]
    blocks: dict[bytes, tuple[bytes, int | None]] = {}
    waiting: set[int] = set()
    if layout.head is not None:
        tiles = layout.head.tile(ts_us).tolist()
        newest: dict[bytes | None, int] = {}
        through = [row for row in counts if all(each[row] for each in in_time.values())]
        for row in through:
            newest[keys[row]] = max(newest.get(keys[row], tiles[row]), tiles[row])
        heads: dict[bytes | None, list[int]] = {}
        for row in through:
            if tiles[row] == newest[keys[row]]:
                heads.setdefault(keys[row], []).append(row)
                waiting.add(row)
        for key, members in heads.items():
            end = layout.head_expires_us(newest[key])
            name = tile_key(shard.tile_prefix(HEAD), 0, key or b"")
            head = layout.heads(np.array([newest[key]]), np.frombuffer(slot(layout.head, members), layout.head.dtype))
            blocks[name] = (head.tobytes(), None if end is None else end + slack_us)
    for level in layout.levels:
        tiles = level.tile(ts_us).tolist()
        groups: dict[tuple[bytes | None, int], list[int]] = {}
        for row in counts:
            if in_time[level.hop_us][row] and row not in waiting:
                groups.setdefault((keys[row], tiles[row]), []).append(row)
        for (key, tile), members in groups.items():
            name = tile_key(shard.tile_prefix(level.hop_us), tile // SPAN, key or b"")
            held, _ = blocks.get(name, (b"\0" * (SPAN * level.slot_bytes), None))
            at = tile % SPAN * level.slot_bytes
            end = level.expires_us(tile // SPAN)
            expires_us = None if end is None else end + slack_us
            blocks[name] = (held[:at] + slot(level, members) + held[at + level.slot_bytes :], expires_us)
    return blocks


def _columns(view: View, events: pa.Table, raw: Mapping[str, str]) -> dict[str, pa.Array]:
    """The view's columns of the events, after its function where it has one."""
    own = {column.name: events[raw.get(column.name, column.name)].combine_chunks() for column in view.columns}
    if view.transform is not None:
        given = {field.name: own[field.name] for field in view.transform.inputs}
        made = transformed(view.name, view.transform, given).columns
        own |= {name: made[name].combine_chunks() for name in made.column_names}
    return own


def _duplicates(
    view: View, events: pa.Table, keys: Sequence[bytes | None], ts_us: Ints, arrival_us: Ints
) -> Sequence[bool]:
    """Which events of one shard are duplicates of others that count."""
    topic = view.source.topic
    if topic is None or topic.event_id is None or topic.event_id_horizon_us is None:
        return [False] * len(events)
    found = duplicates(
        events[topic.event_id],
        [pa.array(keys, pa.binary()), pa.array(ts_us)],
        events[OFFSET].to_numpy(),
        arrival_us,
        horizon_us=topic.event_id_horizon_us,
    )
    return [bool(each) for each in found]


def _micros(column: pa.ChunkedArray) -> Ints:
    micros: Ints = pc.cast(column, pa.int64()).to_numpy()
    return micros
