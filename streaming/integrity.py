"""Find what is stored and is not as it was written: rows, tiles, control hashes, event ids, files of the event log.

Everything that a view keeps is looked at, asked for or not. What is gone altogether leaves no trace here: `verify
--online` compares the values too.
"""

from collections.abc import Iterator
from itertools import pairwise

import msgspec

from featurestore.aggregation.errors import TornTiles
from featurestore.aggregation.tiles import HEAD, TileLayout
from featurestore.errors import FeatureStoreError, StaleStore
from featurestore.offline.event_log import EventFile, OffsetRange, event_files
from featurestore.online.codec import FINGERPRINT
from featurestore.online.connection import StoreClient
from featurestore.online.keys import Shard, row_prefixes, schema_key, version_tag
from featurestore.online.row_check import sound
from featurestore.online.schemas import Schemas
from featurestore.plan import Plan, View
from streaming.commit import NOT_YET, ShardStore, StateDamaged
from streaming.seen_ids import refuse_damaged
from validation.file_check import damage
from validation.place import Place

_AT_ONCE = 500


class Finding(msgspec.Struct, frozen=True):
    """Something stored that is not as it was written."""

    what: str
    shard: Shard | None = None
    """The shard that it belongs to, which is to be made again; None: it is no shard's."""


def examine_store(client: StoreClient, store: ShardStore, plan: Plan, view: View) -> Iterator[Finding]:
    """All that the online store keeps of the version of a view that is read."""
    if view.kind == "windowed" or view.is_stream:
        yield from _examine_shards(client, store, plan, view)
    if view.kind != "windowed":
        yield from _examine_rows(client, plan, view)


def examine_event_log(folder: Place) -> Iterator[Finding]:
    """The files of a topic's event log: each as it was written, and none missing between two others."""
    files = event_files(folder)
    parts: dict[OffsetRange, list[EventFile]] = {}
    for file in files:
        parts.setdefault(file.range, []).append(file)
    for covered, there in parts.items():
        if len({file.part for file in there}) < there[0].parts:
            yield Finding(f"event log: {folder} lacks files of offsets {covered.first} to {covered.last}")
    for before, after in pairwise(sorted(parts)):
        alike = (before.topic_id, before.partition) == (after.topic_id, after.partition)
        if alike and after.first > before.last + 1:
            gap = f"{before.last + 1} to {after.first - 1} of partition {after.partition}"
            yield Finding(f"event log: {folder} lacks the file of offsets {gap}; restore it from a backup")
    for file in files:
        if found := damage(file.path):
            yield Finding(f"event log: {found}; restore it from a backup")


def _examine_shards(client: StoreClient, store: ShardStore, plan: Plan, view: View) -> Iterator[Finding]:
    try:
        listed = store.registered(plan.project, view.name, view.version)
    except StateDamaged as error:
        yield Finding(str(error))
        listed = []
    shards = {
        shard.tag.encode(): shard
        for shard in (Shard(plan.project, view.name, view.version, each.topic_id, each.partition) for each in listed)
    }
    for shard, each in zip(shards.values(), listed, strict=True):
        try:
            if store.control(shard) is None:
                if each.complete_from_us != NOT_YET:
                    yield Finding(f"shard {shard.tag} is listed and has no control hash: the store lost it", shard)
                continue
        except StateDamaged as error:
            yield Finding(str(error), shard)
            continue
        for span in (client.hget(shard.control_key, "seen") or b"").split():
            if not client.exists(shard.seen_key(int(span))):
                yield Finding(f"shard {shard.tag} lacks the event ids of span {int(span)}: the store lost them", shard)
    yield from _examine_blocks(client, plan, view, shards)


def _examine_blocks(client: StoreClient, plan: Plan, view: View, shards: dict[bytes, Shard]) -> Iterator[Finding]:
    """Tiles and event ids."""
    layout = TileLayout.of(view) if view.kind == "windowed" else None
    tag = version_tag(plan.project, view.name, view.version).encode()
    tiles, seen = b"fs:tile:" + tag, b"fs:seen:" + tag
    keys = (key for key in client.scan_iter(match="fs:*", count=5_000) if key.startswith((tiles, seen)))
    for names in _chunks(keys):
        blocks = [name for name in names if name.startswith(tiles)]
        for name, value in zip(blocks, client.mget(blocks), strict=True):
            if layout is not None and value is not None and (found := _tile_damage(layout, name, value)):
                yield Finding(f"tile {name!r}: {found}", _shard_of(shards, name))
        for name in names:
            if name.startswith(seen) and (found := _ids_damage(client, name)):
                yield Finding(f"event ids {name!r}: {found}", _shard_of(shards, name))


def _ids_damage(client: StoreClient, name: bytes) -> str | None:
    try:
        for field, value in client.hscan_iter(name, count=1_000):
            refuse_damaged(field, value)
    except StaleStore as error:
        return str(error)
    return None


def _tile_damage(layout: TileLayout, name: bytes, value: bytes) -> str | None:
    hop_us = int(name.split(b"}:", 1)[1].split(b":", 1)[0])
    try:
        if hop_us == HEAD:
            layout.decode_heads([value])
        else:
            level = next((level for level in layout.levels if level.hop_us == hop_us), None)
            if level is not None:
                level.dense([[value]])
    except TornTiles as error:
        return str(error)
    return None


def _examine_rows(client: StoreClient, plan: Plan, view: View) -> Iterator[Finding]:
    schemas = Schemas(client, plan.project, view)
    prefixes = row_prefixes(plan.project, view.name)
    stem = prefixes[0].rsplit(b" ", 1)[0] + b" "
    looked: set[bytes] = set()
    for names in _chunks(key for key in client.scan_iter(match="fs:row:*", count=5_000) if key.startswith(stem)):
        for name, row in zip(names, client.mget(names), strict=True):
            if row is None:
                continue
            if not sound(row):
                yield Finding(
                    f"row {name!r} of view {view.name!r} does not match its check; materialize the view again"
                )
                continue
            looked.add(row[FINGERPRINT])
    described = client.hkeys(schema_key(plan.project, view.name))
    for fingerprint in {*looked, *described} - {schemas.declared.fingerprint}:
        try:
            schemas.codec(fingerprint if isinstance(fingerprint, bytes) else fingerprint.encode())
        except FeatureStoreError as error:
            yield Finding(str(error))


def _shard_of(shards: dict[bytes, Shard], name: bytes) -> Shard | None:
    return next((shard for tag, shard in shards.items() if tag + b":" in name), None)


def _chunks(keys: Iterator[bytes]) -> Iterator[list[bytes]]:
    held: list[bytes] = []
    for key in keys:
        held.append(key)
        if len(held) == _AT_ONCE:
            yield held
            held = []
    if held:
        yield held
