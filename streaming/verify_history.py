"""Of a view's own history, which events, keys and instants are worth comparing at?

Keys are drawn, and for each of them instants on and around every edge at which a value may change.
"""

import random
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.aggregation.tiles import SPAN
from featurestore.errors import UsageError
from featurestore.offline.event_log import ARRIVAL, OFFSET, PARTITION, PROVENANCE, TOPIC_ID
from featurestore.offline.raw_rows import raw_rows
from featurestore.offline.stored import needed_columns, scan_of
from featurestore.offline.windowed_keys import instants
from featurestore.plan import View
from streaming.view_pipeline import ViewPipeline

Ints = npt.NDArray[np.int64]

_ALONE: Final = "history"
"""The topic id of events that tell none: one shard, in the order of their arrival."""


class History(msgspec.Struct, frozen=True):
    """A view's events: under their source's names, with what the stream knows of each."""

    events: pa.Table
    ts_us: Ints
    arrival_us: Ints
    shard: Ints
    """Which of `shards` each event is of."""
    shards: tuple[tuple[str, int], ...]
    """Topic id and partition."""
    offset: Ints
    as_known: bool
    """Whether the source tells when an event arrived."""

    def take(self, rows: Ints) -> "History":
        """The events at those positions."""
        return msgspec.structs.replace(
            self,
            events=self.events.take(pa.array(rows)),
            ts_us=self.ts_us[rows],
            arrival_us=self.arrival_us[rows],
            shard=self.shard[rows],
            offset=self.offset[rows],
        )


def read_history(view: View, repo: Path) -> History:
    """All events of a view's source that have a time."""
    # As the topic had them: what is beyond the view's clearance is withheld by each path itself.
    scan = scan_of(msgspec.structs.replace(view, withheld={}), repo=repo)
    wanted = list(needed_columns(view))
    logged = all(name in scan.schema.names for name in PROVENANCE.names)
    if logged:
        wanted = list(dict.fromkeys([*wanted, *PROVENANCE.names]))
    events = raw_rows(scan, wanted)
    stored = {new: old for old, new in view.source.field_mapping.items()}
    timestamp = stored.get(view.source.timestamp_field, view.source.timestamp_field)
    ts_us, dated = instants(events[timestamp], timestamp)
    created = view.source.created_field
    created = ARRIVAL if created is None and logged else None if created is None else stored.get(created, created)
    arrival_us, arrived = (ts_us, dated) if created is None else instants(events[created], created)
    if logged:
        pairs = list(zip(events[TOPIC_ID].to_pylist(), events[PARTITION].to_pylist(), strict=True))
        shards = tuple(dict.fromkeys(pairs))
        number = {pair: place for place, pair in enumerate(shards)}
        shard, offset = np.array([number[pair] for pair in pairs], np.int64), events[OFFSET].to_numpy()
    else:
        order = np.lexsort((ts_us, arrival_us))
        offset = np.empty(len(order), np.int64)
        offset[order] = np.arange(len(order))
        shards, shard = ((_ALONE, 0),), np.zeros(len(order), np.int64)
    found = History(events, ts_us, arrival_us, shard, shards, offset, view.source.created_field is not None)
    return found.take(np.flatnonzero(dated & arrived))


def drawn_keys(
    view: View, history: History, keys: int, rng: random.Random
) -> tuple[History, list[tuple[object, ...]], Ints]:
    """The events of drawn keys, the keys, and whose each event is."""
    code, known = ViewPipeline(view).entities(history.events)
    if not known:
        raise UsageError(f"view {view.name!r}: its history holds no event of any key; stream or produce some first")
    chosen = sorted(rng.sample(range(len(known)), min(keys, len(known))))
    place = np.full(len(known) + 1, -1)
    place[chosen] = np.arange(len(chosen))
    own = place[code]
    rows = np.flatnonzero(own >= 0)
    history, own = history.take(rows), own[rows]
    stored = {new: old for old, new in view.source.field_mapping.items()}
    columns = [history.events[stored.get(key.name, key.name)] for key in view.join_keys]
    first = [int(np.flatnonzero(own == entity)[0]) for entity in range(len(chosen))]
    return history, [tuple(column[row].as_py() for column in columns) for row in first], own


def drawn_instants(view: View, history: History, rows: Ints, count: int, rng: random.Random) -> list[int]:
    """Instants on and around the edges of one key's events, at which all paths know the same events."""
    edges: set[int] = set()
    for row in rng.sample(rows.tolist(), min(len(rows), 4 * count)):
        ts_us = int(history.ts_us[row])
        edges |= {ts_us, int(history.arrival_us[row])}
        for each in view.aggregations:
            if each.window_us is not None and each.hop_us is not None:
                tile = ts_us // each.hop_us * each.hop_us
                block = ts_us // (each.hop_us * SPAN) * each.hop_us * SPAN
                edges |= {tile, tile + each.hop_us, tile + each.window_us, tile + each.window_us + each.hop_us, block}
    drawn = [edge + off for edge in edges for off in (-1, 0, 1)]
    rng.shuffle(drawn)
    ready = _ready_us(history)
    found: list[int] = []
    for t_us in drawn:
        arrived = history.arrival_us[rows] <= t_us
        # Left out: out of order in their partition, or dated ahead. There the stream's own t is another one.
        if (arrived == (ready[rows] <= t_us)).all() and (history.ts_us[rows][arrived] <= t_us).all():
            found.append(t_us)
            if len(found) == count:
                break
    return found


def _ready_us(history: History) -> Ints:
    """When the stream has every event: once all before it in its partition have arrived."""
    order = np.lexsort((history.offset, history.shard))
    ready = np.empty(len(order), np.int64)
    for shard in range(len(history.shards)):
        rows = order[history.shard[order] == shard]
        ready[rows] = np.maximum.accumulate(history.arrival_us[rows])
    return ready


def repeated(view: View, history: History, code: Ints) -> npt.NDArray[np.bool_]:
    """Which events count for nothing, one having counted under the same id, key and time less than a horizon before."""
    out = np.zeros(len(code), np.bool_)
    topic = view.source.topic
    if topic is None or topic.event_id is None or topic.event_id_horizon_us is None:
        return out
    ids = history.events[topic.event_id].to_pylist()
    counted: dict[tuple[object, ...], int] = {}
    for row in np.lexsort((history.offset, history.shard)).tolist():
        if ids[row] is None:
            continue
        same = (history.shard[row], ids[row], code[row], history.ts_us[row])
        arrival = int(history.arrival_us[row])
        if same in counted and abs(arrival - counted[same]) <= topic.event_id_horizon_us:
            out[row] = True
        else:
            counted[same] = arrival
    return out
