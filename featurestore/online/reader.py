"""What are the features of these entities worth now? One round trip to the store for all views of a request."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.aggregation.read import Windows
from featurestore.aggregation.results import Told
from featurestore.clock import Clock
from featurestore.errors import NotExact, StoreUnavailable, UsageError
from featurestore.online.ahead import refuse_ahead
from featurestore.online.connection import StoreClient
from featurestore.online.keys import EntityKeyCodec, row_tags
from featurestore.online.latest import LatestView, Positions
from featurestore.online.result import Block, Column, OnlineResult
from featurestore.online.schemas import Schemas
from featurestore.online.together import Together
from featurestore.online.windowed import ShardList, WindowedView
from featurestore.plan import Plan, Projection, View

Held: TypeAlias = Sequence[bytes | None]
"""Values of the store, in the order of the keys asked for; None where there is none."""
Steps: TypeAlias = Generator[list[bytes], Held, OnlineResult]
"""A read without input and output: it yields keys, is sent their values, and returns the answer."""
_ROUNDS = 10
"""How often a key that keeps receiving events ahead of the clock is read again, at its newest event."""
_PLANS = 1024
"""How many lists of projections are remembered; beyond it all are forgotten, so that memory stays bounded."""


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """One projection, looked up once for all requests that repeat it."""

    projection: Projection
    keys: int
    """Which of the request's sets of keys is its own: views of the same entity share one."""
    latest: LatestView | None
    windowed: WindowedView | None


@dataclass(frozen=True, slots=True, eq=False)
class _ReadPlan:
    """What a list of projections reads."""

    projections: Sequence[Projection]
    key_sets: tuple[tuple[EntityKeyCodec, dict[str, str]], ...]
    """Codec, and by join key the column of the entity rows, in the codec's order."""
    reads: tuple[_Read, ...]
    latest: tuple[LatestView, ...]
    """Of all reads, where they are latest values of the same entity keys: the most frequent and shortest way."""
    together: Together | None
    """The same, where their features lie alike too."""


@dataclass(slots=True, eq=False)
class _Keys:
    """The distinct entity keys of a request, and which of them each entity row is."""

    keys: list[bytes]
    place: list[int] | None
    """-1 for a row without a key; None: the keys are the rows."""
    tags: list[int]


@dataclass(slots=True, eq=False)
class _Request:
    """One read on its way."""

    read: _Read
    keys: _Keys
    held: Held = ()
    shards: ShardList | None = None
    """Those that `held` was fetched by, for a windowed view."""


class OnlineReader:
    """Reads the features of one Plan. Make a new one when the Plan changes; threads may share it."""

    def __init__(self, client: StoreClient, plan: Plan, clock: Clock) -> None:
        self.plan = plan
        self._client = client
        self._clock = clock
        self._codecs: dict[str, EntityKeyCodec] = {}
        self._latest: dict[str, LatestView] = {}
        self._windowed: dict[str, WindowedView] = {}
        self._shards: dict[str, ShardList] = {}
        """The shards last seen; every fetch checks that they still are, so that one round trip is enough."""
        self._plans: dict[int, _ReadPlan] = {}
        """By identity of the projections, which the value keeps alive."""

    def read(
        self,
        projections: Sequence[Projection],
        entity_rows: Mapping[str, Sequence[object]],
        *,
        at_us: int | None = None,
    ) -> OnlineResult:
        """The features of every entity row, in order; columns in the order of the projections and their features.

        `entity_rows` are columns of equal length that hold every join key (under the projection's name for it); a
        row with a null key is NOT_FOUND, equal rows are fetched once. Values hold at the reading instant max(t,
        newest event time of the key), t being the clock's or `at_us`. `at_us` is exact or refused: NotExact where a
        key holds something newer or its history may be gone. Raises UnknownName, UsageError for a missing or unfit
        key column, StaleStore for rows that nothing here can read, StoreUnavailable.
        """
        return run(self.steps(projections, entity_rows, at_us=at_us), self._mget)

    def steps(
        self,
        projections: Sequence[Projection],
        entity_rows: Mapping[str, Sequence[object]],
        *,
        at_us: int | None = None,
        now_us: int | None = None,
    ) -> Steps:
        """What `read` does, whoever fetches; `now_us` is what the clock said, where it was asked already."""
        if now_us is None:
            now_us = self._clock()
        t_us = now_us if at_us is None else at_us
        if t_us > now_us:
            raise NotExact(f"as_of is {t_us - now_us} us in the future: its events are not known yet")
        rows = _row_count(entity_rows)
        plan = self._plan(projections)
        keys = [_distinct(codec, columns, entity_rows, rows) for codec, columns in plan.key_sets]
        if plan.latest:
            return (yield from _latest(plan, keys[0], rows, t_us, as_of=at_us is not None, now_us=now_us))
        requests = [_Request(read, keys[read.keys]) for read in plan.reads]
        yield from self._fetch(requests, t_us)
        parts: list[Block | Column] = []
        for request in requests:
            projection = request.read.projection
            if latest := request.read.latest:
                parts += latest.parts(
                    projection.name, projection.features, request.held, request.keys.place, t_us,
                    as_of=at_us is not None, now_us=now_us,
                )  # fmt: skip
            elif windowed := request.read.windowed:
                parts += yield from self._windows(windowed, request, t_us, now_us, as_of=at_us is not None)
        return OnlineResult(rows, parts)

    def together(self, projections: Sequence[Projection]) -> Together | None:
        """What reads these in the shortest way; None where their features do not lie alike."""
        return self._plan(projections).together

    def _plan(self, projections: Sequence[Projection]) -> _ReadPlan:
        found = self._plans.get(id(projections))
        if found is not None and found.projections is projections:
            return found
        reads = []
        key_sets: dict[object, tuple[EntityKeyCodec, dict[str, str]]] = {}
        for projection in projections:
            view = self.plan.view(projection.view)
            for feature in projection.features:
                view.feature(feature)
            self._prepare(view)
            codec = self._codecs[view.name]
            columns = {key.name: projection.join_key_map.get(key.name, key.name) for key in codec.join_keys}
            token = (codec.join_keys, tuple(columns.items()))
            key_sets.setdefault(token, (codec, columns))
            reads.append(
                _Read(
                    projection,
                    list(key_sets).index(token),
                    self._latest.get(view.name),
                    self._windowed.get(view.name),
                )
            )
        latest = tuple(read.latest for read in reads if read.latest is not None)
        alike = len(key_sets) == 1 and len(latest) == len(reads)
        together = Together.of(latest, projections, *next(iter(key_sets.values()))) if alike else None
        made = _ReadPlan(projections, tuple(key_sets.values()), tuple(reads), latest if alike else (), together)
        # A list may change under its identity.
        if isinstance(projections, tuple):
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            self._plans[id(projections)] = made
        return made

    def _prepare(self, view: View) -> None:
        if view.name in self._codecs:
            return
        if view.kind == "windowed":
            windowed = WindowedView.of(self.plan.project, view)
            self._shards[view.name] = windowed.shards(None)
            self._windowed[view.name] = windowed
        else:
            schemas = Schemas(self._client, self.plan.project, view)
            self._latest[view.name] = LatestView.of(self.plan.project, view, schemas)
        # Last: another thread that finds the codec finds the rest.
        self._codecs[view.name] = EntityKeyCodec(view.join_keys)

    def _fetch(self, requests: Sequence[_Request], t_us: int) -> Generator[list[bytes], Held, None]:
        """One MGET for everything; a second one for views whose list of shards is new to this reader."""
        pending = list(requests)
        for _ in range(_ROUNDS):
            names: list[bytes] = []
            starts = []
            for request in pending:
                starts.append(len(names))
                keys = request.keys
                if latest := request.read.latest:
                    names += latest.names(keys.keys, keys.tags)
                elif windowed := request.read.windowed:
                    request.shards = self._shards[windowed.view.name]
                    names.append(windowed.shards_key)
                    names += windowed.names(keys.keys, t_us, request.shards)
            held = (yield names) if names else ()
            again = []
            for request, start, end in zip(pending, starts, [*starts[1:], len(held)], strict=True):
                request.held = held[start:end]
                if request.shards is not None:
                    raw, request.held = request.held[0], request.held[1:]
                    if raw != request.shards.raw:
                        view = request.read.projection.view
                        self._shards[view] = self._windowed[view].shards(raw)
                        again.append(request)
            if not again:
                return
            pending = again
        raise StoreUnavailable("the shards of a view change faster than they can be read; ask again")

    def _windows(
        self, view: WindowedView, request: _Request, t_us: int, now_us: int, *, as_of: bool
    ) -> Generator[list[bytes], Held, list[Column]]:
        """The columns of a windowed view; every key at its own instant: t, or its newest event where that is later."""
        keys, shards = request.keys.keys, request.shards
        assert shards is not None
        windows = view.windows(len(keys), t_us, request.held, shards)
        instant_us = np.full(len(keys), t_us, np.int64)
        if as_of:
            view.refuse_inexact(windows.newest_us, t_us, now_us)
        for _ in range(_ROUNDS):
            late = np.flatnonzero(windows.newest_us > instant_us)
            if not len(late):
                break
            refuse_ahead(view.view.name, int(windows.newest_us[late].max()), now_us)
            instant_us[late] = windows.newest_us[late]
            for instant in np.unique(instant_us[late]).tolist():
                group = late[instant_us[late] == instant]
                raw, *held = yield [view.shards_key, *view.names([keys[i] for i in group], instant, shards)]
                if raw != shards.raw:
                    view.shards(raw)  # a version that was dropped meanwhile has no tiles, which is not zero events
                windows = _replaced(windows, view.windows(len(group), instant, held, shards), group)
        else:
            raise StoreUnavailable(
                f"keys of view {view.view.name!r} receive events faster than they are read; ask again"
            )
        projection = request.read.projection
        place = np.arange(len(keys)) if request.keys.place is None else np.array(request.keys.place, np.int64)
        return view.columns(projection.name, projection.features, windows, instant_us, place, t_us, shards)

    def _mget(self, names: list[bytes]) -> Held:
        return cast(Held, self._client.mget(names))


def _latest(plan: _ReadPlan, keys: _Keys, rows: int, t_us: int, *, as_of: bool, now_us: int) -> Steps:
    """The latest values of the same keys in several views: every view gets its stretch of one MGET."""
    count = len(keys.keys)
    names: list[bytes] = []
    for view in plan.latest:
        names += view.names(keys.keys, keys.tags)
    held = (yield names) if names else ()
    parts: list[Block | Column] = []
    start = 0
    for view, read in zip(plan.latest, plan.reads, strict=True):
        projection = read.projection
        found = held[start : start + count]
        start += count
        parts += view.parts(
            projection.name, projection.features, found, keys.place, t_us, as_of=as_of, now_us=now_us
        )  # fmt: skip
    return OnlineResult(rows, parts)


def run(steps: Steps, fetch: Callable[[list[bytes]], Held]) -> OnlineResult:
    """Takes a read to its end with what `fetch` gives for keys."""
    try:
        names = next(steps)
        while True:
            names = steps.send(fetch(names))
    except StopIteration as done:
        return cast(OnlineResult, done.value)


def _replaced(windows: Windows, found: Windows, group: Positions) -> Windows:
    """The windows with those of some keys replaced."""
    keys = len(windows.newest_us)
    index = np.arange(keys)
    index[group] = keys + np.arange(len(group))
    newest_us = np.concatenate([windows.newest_us, found.newest_us])[index]
    order = pa.array(index)
    told: dict[str, Told | pa.Array] = {}
    for name, old in windows.told.items():
        new = found.told[name]
        if isinstance(old, Told):
            nulls = None
            if old.nulls is not None or new.nulls is not None:
                nulls = np.concatenate([_mask(old), _mask(new)])[index]
            told[name] = Told(old.dtype, np.concatenate([old.values, new.values])[index], nulls)
        else:
            told[name] = pa.concat_arrays([old, new]).take(order)
    return Windows(told, newest_us)


def _mask(told: Told) -> npt.NDArray[np.bool_]:
    return np.zeros(len(told.values), np.bool_) if told.nulls is None else told.nulls


def _row_count(entity_rows: Mapping[str, Sequence[object]]) -> int:
    lengths = {name: len(values) for name, values in entity_rows.items()}
    if len(set(lengths.values())) > 1:
        raise UsageError(f"entity columns differ in length: {lengths}")
    return next(iter(lengths.values()), 1)


def _distinct(
    codec: EntityKeyCodec, columns: Mapping[str, str], entity_rows: Mapping[str, Sequence[object]], rows: int
) -> _Keys:
    """The distinct entity keys, and which of them each row is; -1 for a row with a null key."""
    for key, column in columns.items():
        if column not in entity_rows:
            raise UsageError(
                f"the entity rows lack {column!r}, the join key {key!r}; what they have: "
                + (", ".join(sorted(entity_rows)) or "nothing")
            )
    encoded = codec.encode_rows([entity_rows[column] for column in columns.values()], rows)
    distinct = set(encoded)
    if len(distinct) == rows and None not in distinct:
        keys, place = cast("list[bytes]", encoded), None
    else:
        numbers: dict[bytes, int] = {}
        place = [-1 if key is None else numbers.setdefault(key, len(numbers)) for key in encoded]
        keys = list(numbers)
    return _Keys(keys, place, row_tags(keys))
