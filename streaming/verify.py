"""Do the definition, the offline join, the tiles and the reader agree on a view's own history, to the bit?

Keys of the history are drawn, and for each of them instants on and around every edge at which a value may change: of
events, hops, windows, tiles and blocks, +-1 us. The keys' events go through the stream's own pipeline and commit into a
store of this process's own, in the order in which they arrived; at every instant the product's reader is asked, as a
service would ask it. Nothing has to run, and nothing that runs is touched.
"""

import bisect
import datetime as dt
import math
import random
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.aggregation.definition import value_at
from featurestore.clearance import withhold
from featurestore.clock import Clock
from featurestore.errors import UsageError
from featurestore.offline.event_log import ARRIVAL
from featurestore.offline.history import historical_features
from featurestore.offline.stored import scan_of
from featurestore.offline.windowed_keys import instants
from featurestore.online.connection import StoreClient
from featurestore.online.keys import Shard
from featurestore.online.reader import OnlineReader
from featurestore.plan import Aggregation, Plan, Projection, View
from featurestore.transform import transformed
from streaming.commit import ShardStore
from streaming.held_shard import HeldShard
from streaming.judged import Judged
from streaming.source.records import Batch
from streaming.verify_history import History, drawn_instants, drawn_keys, read_history, repeated
from streaming.view_pipeline import ViewPipeline

Ints = npt.NDArray[np.int64]

_NAME: Final = "verify"
AT: Final = "verified at"
"""The entity rows' timestamp; no column of events is called so."""


class Difference(msgspec.Struct, frozen=True):
    """A feature of a key at an instant, on every path that was asked."""

    feature: str
    key: str
    t_us: int
    by_path: dict[str, object]


class Verified(msgspec.Struct, frozen=True):
    """What was compared, and what differs."""

    view: str
    keys: int
    instants: int
    compared: int
    differences: tuple[Difference, ...]


def verify(
    plan: Plan,
    view: View,
    client: StoreClient,
    *,
    repo: Path,
    keys: int = 40,
    per_key: int = 12,
    seed: int = 0,
) -> Verified:
    """Compare definition, offline join and reader at drawn keys and instants; `client` is of an empty store.

    Raises UsageError where there is nothing to compare, SourceError, and what the paths raise.
    """
    if view.kind != "windowed":
        raise UsageError(f"view {view.name!r} has no windows: its newest row is its value; verify takes windowed views")
    rng = random.Random(seed)  # noqa: S311 - which keys are looked at is no secret
    plan, view = _arrivals_told(plan, view, repo)
    history, entities, code = drawn_keys(view, read_history(view, repo), keys, rng)
    cases = [
        (entity, t_us)
        for entity in range(len(entities))
        for t_us in drawn_instants(view, history, np.flatnonzero(code == entity), per_key, rng)
    ]
    if not cases:
        raise UsageError(f"view {view.name!r}: no instant of the keys drawn can be compared; draw more keys")
    cases.sort(key=lambda case: case[1])
    projection = Projection(view=view.name, features=tuple(field.name for field in view.features))
    paths = {
        "definition": _by_definition(view, history, code, cases),
        "offline": _offline(plan, projection, entities, cases, repo=repo, as_known=history.as_known),
        "reader": _read(plan, view, projection, history, entities, cases, client),
    }
    return compared(view, entities, cases, paths)


def verify_online(
    plan: Plan, view: View, client: StoreClient, *, repo: Path, clock: Clock, keys: int = 40, seed: int = 0
) -> Verified:
    """Compare what the live store serves now of drawn keys with the offline join at the instants it names."""
    rng = random.Random(seed)  # noqa: S311 - which keys are looked at is no secret
    _, entities, _ = drawn_keys(view, read_history(view, repo), keys, rng)
    projection = Projection(view=view.name, features=tuple(field.name for field in view.features))
    columns = OnlineReader(client, plan, clock).read([projection], _columns_of(view, entities)).columns
    times = columns[0].instant_us.tolist()
    cases = list(enumerate(times))
    served = {column.feature: [bits(value) for value in column.to_python()] for column in columns}
    offline = _offline(plan, projection, entities, cases, repo=repo, as_known=False)
    return compared(view, entities, cases, {"offline": offline, "online": served})


def _arrivals_told(plan: Plan, view: View, repo: Path) -> tuple[Plan, View]:
    """The view with its event log's arrivals as created times, where its source names none.

    Events may come late: the stream has what had arrived, and what an instant knew is compared with what it knew.
    """
    if view.source.created_field is not None or ARRIVAL not in scan_of(view, repo=repo).schema.names:
        return plan, view
    source = msgspec.structs.replace(view.source, created_field=ARRIVAL)
    view = msgspec.structs.replace(view, source=source)
    return msgspec.structs.replace(plan, views={**plan.views, view.name: view}), view


def _by_definition(
    view: View, history: History, code: Ints, cases: Sequence[tuple[int, int]]
) -> dict[str, list[object]]:
    columns, failed = _aggregated(view, history.events)
    counts = ~repeated(view, history, code)
    counts[failed] = False
    values = {each.column: _values(columns[each.column], each) for each in view.aggregations}
    found: dict[str, list[object]] = {each.feature: [] for each in view.aggregations}
    of_key = [np.flatnonzero((code == entity) & counts) for entity in range(int(code.max()) + 1)]
    for entity, t_us in cases:
        rows = [row for row in of_key[entity].tolist() if history.arrival_us[row] <= t_us]
        for each in view.aggregations:
            events = [(int(history.ts_us[row]), values[each.column][row]) for row in rows]
            found[each.feature].append(bits(value_at(each, events, t_us)))
    return found


def _aggregated(view: View, events: pa.Table) -> tuple[dict[str, pa.ChunkedArray], list[int]]:
    """The columns that are aggregated, what the view's function makes among them; and the events on which it fails."""
    events = withhold(events, view.withheld)
    stored = {new: old for old, new in view.source.field_mapping.items()}
    made: dict[str, pa.ChunkedArray] = {}
    failed: list[int] = []
    if view.transform is not None:
        given = {field.name: events[stored.get(field.name, field.name)] for field in view.transform.inputs}
        result = transformed(view.name, view.transform, given)
        made = {name: result.columns[name] for name in result.columns.column_names}
        failed = list(result.failed)
    wanted = {each.column for each in view.aggregations}
    return {name: made[name] if name in made else events[stored.get(name, name)] for name in wanted}, failed


def _values(column: pa.ChunkedArray, aggregation: Aggregation) -> list[Any]:
    dtype = aggregation.column_dtype
    if dtype in ("UNIX_TIMESTAMP", "DATE"):
        micros, there = instants(column, aggregation.column)
        return [int(at) if known else None for at, known in zip(micros, there, strict=True)]
    if dtype.startswith("DECIMAL("):
        precision, scale = map(int, dtype.removeprefix("DECIMAL(").rstrip(")").split(","))
        return list(column.cast(pa.decimal128(precision, scale)).to_pylist())
    if dtype == "FLOAT":
        return list(column.cast(pa.float32()).to_pylist())
    return [float(value) if dtype == "DOUBLE" and value is not None else value for value in column.to_pylist()]


def _offline(
    plan: Plan,
    projection: Projection,
    entities: Sequence[tuple[object, ...]],
    cases: Sequence[tuple[int, int]],
    *,
    repo: Path,
    as_known: bool,
) -> dict[str, list[object]]:
    view = plan.view(projection.view)
    asked = pa.table(
        {
            **_columns_of(view, [entities[entity] for entity, _ in cases]),
            AT: pa.array([t_us for _, t_us in cases], pa.timestamp("us", "UTC")),
        }
    )
    joined = historical_features(plan, [projection], asked, repo=repo, timestamp=AT, as_known=as_known)
    return {name: [bits(value) for value in joined[name].to_pylist()] for name in projection.features}


def _read(
    plan: Plan,
    view: View,
    projection: Projection,
    history: History,
    entities: Sequence[tuple[object, ...]],
    cases: Sequence[tuple[int, int]],
    client: StoreClient,
) -> dict[str, list[object]]:
    """What the reader tells at every instant, of the events that had arrived by then."""
    now = [0]
    store = ShardStore(client, lambda: now[0])
    feeds = [_Feed(plan, view, history, shard, store, now) for shard in range(len(history.shards))]
    reader = OnlineReader(client, plan, lambda: now[0])
    found: dict[str, list[object]] = {name: [] for name in projection.features}
    for t_us, keys in _together(cases):
        now[0] = t_us
        for feed in feeds:
            feed.up_to(t_us)
        columns = reader.read([projection], _columns_of(view, [entities[key] for key in keys])).columns
        for column in columns:
            found[column.feature] += [bits(value) for value in column.to_python()]
    return found


class _Feed:
    """One shard of the history on its way through the stream."""

    def __init__(self, plan: Plan, view: View, history: History, shard: int, store: ShardStore, now: list[int]) -> None:
        topic_id, partition = history.shards[shard]
        rows = np.flatnonzero(history.shard == shard)
        self._history = history.take(rows[np.argsort(history.offset[rows], kind="stable")])
        self._ready = np.maximum.accumulate(self._history.arrival_us).tolist()
        self._place = Shard(plan.project, view.name, view.version, topic_id, partition)
        self._version = plan.version
        self._done = 0
        start = int(self._history.offset[0]) if len(rows) else 0
        claim = store.claim(
            self._place,
            token=_NAME,
            plan_version=plan.version,
            start=start,
            complete_from_us=0,
        )
        assert claim is not None  # a shard with a start is claimed
        self._held = HeldShard(
            ViewPipeline(view), claim, claim.offset, store=store, clock=lambda: now[0], counters=Counter()
        )

    def up_to(self, t_us: int) -> None:
        """Commit what had arrived by then."""
        end = bisect.bisect_right(self._ready, t_us)
        if end == self._done:
            return
        part = self._history.take(np.arange(self._done, end))
        before, after = self._held.claim.offset, int(part.offset[-1]) + 1
        batch = Batch(_NAME, self._place.topic_id, self._place.partition, (), before, after)
        self._held.fold(Judged(batch, part.events, part.ts_us, part.arrival_us, part.offset, ()), self._version)
        self._done = end


def _together(cases: Sequence[tuple[int, int]]) -> Iterator[tuple[int, list[int]]]:
    """The keys that are asked for at every instant, in order."""
    start = 0
    for place in range(1, len(cases) + 1):
        if place == len(cases) or cases[place][1] != cases[start][1]:
            yield cases[start][1], [entity for entity, _ in cases[start:place]]
            start = place


def _columns_of(view: View, entities: Sequence[tuple[object, ...]]) -> dict[str, list[object]]:
    """The join keys' columns; a view without keys is asked for by a column that it does not look at."""
    columns = {key.name: [values[place] for values in entities] for place, key in enumerate(view.join_keys)}
    return columns or {"no key": [0 for _ in entities]}


def compared(
    view: View,
    entities: Sequence[tuple[object, ...]],
    cases: Sequence[tuple[int, int]],
    paths: Mapping[str, Mapping[str, list[object]]],
) -> Verified:
    differences = []
    for field in view.features:
        columns = {path: found[field.name] for path, found in paths.items()}
        for place, (entity, t_us) in enumerate(cases):
            values = {path: column[place] for path, column in columns.items()}
            if len(set(map(repr, values.values()))) > 1:
                told = {path: _shown(value) for path, value in values.items()}
                differences.append(Difference(field.name, repr(entities[entity]), t_us, told))
    instants_of = len({t_us for _, t_us in cases})
    compared = len(cases) * len(view.features)
    return Verified(view.name, len({entity for entity, _ in cases}), instants_of, compared, tuple(differences))


def bits(value: object) -> object:
    """Floats as their bits, one NaN; instants in UTC, whatever the library calls it; anything else as it is."""
    if isinstance(value, float):
        return ("float", "nan" if math.isnan(value) else struct.pack(">d", value))
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC)
    return [bits(each) for each in value] if isinstance(value, list) else value


def _shown(value: object) -> object:
    if isinstance(value, tuple):
        return float("nan") if value[1] == "nan" else struct.unpack(">d", value[1])[0]
    return [_shown(each) for each in value] if isinstance(value, list) else value


def lines(found: Verified, shown: int = 20) -> Iterable[str]:
    """What there is to say, differing values first."""
    for each in found.differences[:shown]:
        told = ", ".join(f"{path} {value!r}" for path, value in each.by_path.items())
        yield f"{each.feature} of {each.key} at {each.t_us} us: {told}"
    if len(found.differences) > shown:
        yield f"and {len(found.differences) - shown} more"
    yield (
        f"view {found.view!r}: {found.compared} values of {found.keys} keys at {found.instants} instants compared by "
        f"bits, {len(found.differences)} differ"
    )
