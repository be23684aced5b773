"""What is served right now? One plan with its reader; a newer plan takes its place between two requests."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import orjson

from featurestore.api.again import Served, Wanted
from featurestore.api.answer import ARROW, JSON, MEDIA_TYPES, ROWS, Answered, arrow_stream, reading_instant, rows_json
from featurestore.api.body import decoded
from featurestore.api.faults import Refused
from featurestore.api.feast_json import feast_json
from featurestore.api.identity import Caller
from featurestore.api.limits import Limits
from featurestore.api.metrics import Metrics
from featurestore.api.policy import policy_of
from featurestore.api.request import Asked, FeatureRequest, entity_columns, instant_of, within
from featurestore.api.selection import Selection, select
from featurestore.api.straight import Straight
from featurestore.clock import Clock
from featurestore.errors import StaleStore
from featurestore.online.fetch import Fetcher
from featurestore.online.reader import Held, Steps
from featurestore.online.result import Block, Instants, OnlineResult, Status
from featurestore.online.together import Together
from featurestore.plan import Plan, Projection
from featurestore.user_code import run_on_demand
from validation.errors import PlatformError

Replace = Callable[[Sequence[Answered]], list[Answered]]
_KINDS = 1024
"""How many kinds of request are remembered; beyond it all are forgotten, so that memory stays bounded."""
_LONGEST = 65_536
"""In bytes of the features as they were asked for: what is longer is worked out each time."""
_CALLERS = 4096
_ENCODERS: dict[str, Callable[[Sequence[Answered], int, bytes | None], bytes]] = {
    JSON: feast_json,
    ROWS: rows_json,
    ARROW: arrow_stream,
}
assert set(_ENCODERS) == set(MEDIA_TYPES)
_log = logging.getLogger(__name__)


class Reader(Protocol):
    """What reads the online store for one plan."""

    def steps(
        self,
        projections: Sequence[Projection],
        entity_rows: Mapping[str, Sequence[object]],
        *,
        at_us: int | None = None,
        now_us: int | None = None,
    ) -> Steps:
        """The features of the projections for every entity row, whoever fetches."""
        ...

    def together(self, projections: Sequence[Projection]) -> Together | None:
        """What reads these in the shortest way; None where there is none."""
        ...


class Fetched(NamedTuple):
    """What the store holds under some names."""

    names: list[bytes]
    held: Held


class PlanSource(Protocol):
    """Where the plan in force is looked up."""

    def version(self) -> int | None:
        """The version in force, None where there is no plan."""
        ...

    def load(self) -> Plan:
        """The plan in force."""
        ...

    def of(self, version: int) -> Plan | None:
        """An earlier plan, None where it is forgotten."""
        ...


@dataclass(frozen=True, eq=False)
class Kind:
    """What is the same in all requests for the same features, worked out once a plan."""

    selection: Selection
    replace: Replace | None
    """By the service's policy; None where values go out as they are found."""
    names: bytes
    """Of the columns of an answer, as JSON."""
    direct: bool
    """Whether an answer in Feast's JSON is the join keys and what was read, in its order."""
    straight: Straight | None = None
    """What answers in the shortest way."""
    elsewhere: "tuple[Serving, Kind] | None" = None
    """Who answers in its place: an earlier plan, where an alarm switched the service to it."""
    permitted: set[Caller] = field(default_factory=set)
    """Who was found to be permitted to ask this."""

    def permit(self, caller: Caller) -> None:
        """Remembers that this caller may."""
        if len(self.permitted) >= _CALLERS:
            self.permitted.clear()
        self.permitted.add(caller)


class Serving:
    """Answers requests from one plan; used by many requests, changed by none."""

    def __init__(
        self,
        plan: Plan,
        reader: Reader,
        fetcher: Fetcher,
        clock: Clock,
        limits: Limits,
        metrics: Metrics,
        wanted: Wanted | None = None,
        fallbacks: frozenset[str] = frozenset(),
        pinned: Mapping[str, "Serving"] = {},
    ) -> None:
        """`fallbacks` are the services that answer by their fallback, `pinned` what answers for some of them."""
        self.plan = plan
        self.fallbacks = fallbacks
        self._pinned = pinned
        self._wanted = wanted
        self._reader = reader
        self._fetcher = fetcher
        self._clock = clock
        self._limits = limits
        self._metrics = metrics
        self._kinds: dict[tuple[bytes, str | None, bool], Kind] = {}

    def answering(self, service: str | None) -> Plan | None:
        """The earlier plan that answers for a service in this plan's place; None where this plan answers itself."""
        pinned = None if service is None else self._pinned.get(service)
        return None if pinned is None else pinned.plan

    def known(self, asked: Asked) -> Kind | None:
        """The kind of a request that was asked before in these very words."""
        return self._kinds.get((bytes(asked.features), asked.feature_service, asked.full_feature_names))

    def names_of(self, asked: Asked, body: bytes) -> FeatureRequest:
        """The request with its features decoded; raises Refused where they are no list of names of bounded length."""
        named = FeatureRequest(
            asked.entities,
            decoded(body, FeatureRequest).features,
            asked.feature_service,
            asked.full_feature_names,
        )
        within(1, len(named.features), self._limits)
        # The search for a similar name would take seconds for one of megabytes.
        if any(len(name) > self._limits.text_chars for name in [*named.features, named.feature_service or ""]):
            raise Refused(422, "too_large", f"a feature or service name longer than {self._limits.text_chars}")
        return named

    def kind(self, asked: Asked, named: FeatureRequest) -> Kind:
        """The kind of a request that may be asked; raises UnknownName, UsageError."""
        service, full = named.feature_service, named.full_feature_names
        selection = select(self.plan, named.features, service, full_feature_names=full)
        outputs = [(output.view, output.feature) for output in selection.outputs]
        read = [(each.name, feature) for each in selection.reads for feature in each.features]
        replace = policy_of(self.plan, service, selection.outputs, fallback=service in self.fallbacks)
        names = orjson.dumps([*selection.join_keys, *(output.name for output in selection.outputs)])
        pinned = None if service is None else self._pinned.get(service)
        elsewhere = None if pinned is None else (pinned, pinned.kind(asked, named))
        direct = replace is None and not selection.computations and outputs == read
        together = self._reader.together(selection.reads) if direct else None
        made = Kind(selection, replace, names, direct, Straight.of(together, selection.join_keys, names), elsewhere)
        words = bytes(asked.features)
        if len(words) <= _LONGEST:
            if len(self._kinds) >= _KINDS:
                self._kinds.clear()
            self._kinds[words, service, full] = made
        return made

    async def answer(self, kind: Kind, asked: Asked, media_type: str) -> bytes:
        """The body that answers a request; raises UsageError and its kinds, StoreUnavailable."""
        if kind.elsewhere is not None:
            earlier, its_kind = kind.elsewhere
            return await earlier.answer(its_kind, asked, media_type)
        selection, service = kind.selection, asked.feature_service
        rows, keys, given = entity_columns(asked.entities, selection, self._limits)
        at_us, now_us = instant_of(asked.as_of), self._clock()
        t_us = now_us if at_us is None else at_us
        looks = () if self._wanted is None else self._wanted.by(service)
        fetched: Fetched | None = None
        if kind.straight is not None and media_type == JSON and at_us is None and not looks:
            fetched = await self._fetched(kind.straight, keys, rows)
            body = None if fetched is None else kind.straight.json(keys, fetched.held, rows, now_us, self._metrics)
            if body is not None:
                return body
        read = await self._read(selection, keys, rows, at_us, now_us, fetched)
        self._metrics.served(read.parts)
        columns: list[Answered] | None = None
        if kind.direct and media_type == JSON:
            parts = _join_keys(selection, keys, rows) + [
                part if isinstance(part, Block) else Answered.of(part) for part in read.parts
            ]
            body = feast_json(parts, reading_instant(parts, t_us), kind.names)
        else:
            columns = self._columns(selection, read, keys, given, rows)
            if kind.replace is not None:
                columns[len(keys) :] = kind.replace(columns[len(keys) :])
            body = _ENCODERS[media_type](columns, reading_instant(columns, t_us), kind.names)
        if self._wanted is not None and looks:

            def made() -> Sequence[Answered]:
                return columns if columns is not None else self._columns(selection, read, keys, given, rows)

            self._wanted.put(looks, Served(self.plan, service, now_us, at_us, selection, read, keys, given, made))
        return body

    async def _fetched(self, straight: Straight, keys: dict[str, list[object]], rows: int) -> Fetched | None:
        names = straight.together.names(keys, rows)
        return None if names is None else Fetched(names, await self._fetcher.fetch(names))

    async def _read(
        self,
        selection: Selection,
        keys: dict[str, list[object]],
        rows: int,
        at_us: int | None,
        now_us: int,
        fetched: Fetched | None,
    ) -> OnlineResult:
        if not selection.reads:
            return OnlineResult(rows, ())
        # Entityless views have no key column; the request's rows say how many answers are wanted.
        steps = self._reader.steps(selection.reads, keys or {"": [None] * rows}, at_us=at_us, now_us=now_us)
        try:
            names = next(steps)
            # What was fetched already is not fetched again.
            if fetched is not None and fetched.names == names:
                names = steps.send(fetched.held)
            while True:
                names = steps.send(await self._fetcher.fetch(names))
        except StopIteration as done:
            read: OnlineResult = done.value
            return read

    def _columns(
        self,
        selection: Selection,
        read: OnlineResult,
        keys: dict[str, list[object]],
        given: dict[str, list[object]],
        rows: int,
    ) -> list[Answered]:
        present, none_us = _plain(rows)
        values: dict[int, list[Any]] = {}

        def stored(place: int) -> list[Any]:
            if place not in values:
                values[place] = read.columns[place].to_python()
            return values[place]

        computed: dict[tuple[str, str], list[object]] = {}
        for computation in selection.computations:
            inputs = given | {column: stored(place) for column, place in computation.inputs}
            for feature, made in run_on_demand(computation.view, inputs, rows).items():
                computed[computation.name, feature] = made
        columns = _join_keys(selection, keys, rows)
        for output in selection.outputs:
            if output.column >= 0:
                columns.append(Answered.of(read.columns[output.column], output.name))
            else:
                made = computed[output.view, output.feature]
                missing = np.fromiter((value is None for value in made), np.bool_, rows)
                statuses = np.where(missing, np.uint8(Status.NULL_VALUE), present) if missing.any() else present
                columns.append(Answered(output.name, output.dtype, made, statuses, none_us, None))
        return columns


@lru_cache(maxsize=256)
def _plain(rows: int) -> tuple[npt.NDArray[np.uint8], Instants]:
    """Statuses and event times of that many given or computed values."""
    present, none_us = np.full(rows, Status.PRESENT, np.uint8), np.zeros(rows, np.int64)
    present.setflags(write=False)
    none_us.setflags(write=False)
    return present, none_us


def _join_keys(selection: Selection, keys: dict[str, list[object]], rows: int) -> list[Answered]:
    present, none_us = _plain(rows)
    return [Answered(name, selection.join_keys[name], values, present, none_us, None) for name, values in keys.items()]


class Servings:
    """Makes the Serving of a plan, with those of the earlier plans that its services are switched to."""

    def __init__(
        self, make: Callable[[Plan, frozenset[str], Mapping[str, Serving]], Serving], source: PlanSource
    ) -> None:
        self._make = make
        self._source = source

    def of(self, plan: Plan, fallbacks: frozenset[str]) -> Serving:
        """`fallbacks` are the services that answer by their fallback; an earlier plan that is gone leaves them null."""
        pinned = {}
        for service in plan.services.values():
            version = service.policy.pinned_version
            if version is None or service.name not in fallbacks:
                continue
            earlier = self._source.of(version)
            if earlier is not None and service.name in earlier.services:
                pinned[service.name] = self._make(earlier, frozenset(), {})
            else:
                _log.warning("service %s answers null: plan version %d is forgotten or lacks it", service.name, version)
        return self._make(plan, fallbacks, pinned)


class PlanWatch:
    """The Serving of the plan in force: `look` notices a new version, `current` is what to answer from."""

    def __init__(
        self,
        source: PlanSource,
        make: Callable[[Plan, frozenset[str]], Serving],
        metrics: Metrics,
        *,
        fallbacks: Callable[[], Iterable[str]] = tuple,
        report: Callable[[int], object] | None = None,
    ) -> None:
        """`make` is given the services that `fallbacks` says answer by their fallback; `report` hears plan versions."""
        self._source = source
        self._fallbacks = fallbacks
        self._report = report
        self._make = make
        self._metrics = metrics
        self._serving: Serving | None = None
        self._trouble = "the plan has not been looked up yet"
        # Two threads must not both build the same plan's reader; readers of `current` need no lock.
        self._looking = threading.Lock()

    @property
    def current(self) -> Serving:
        """What to answer from; raises StaleStore before any plan was found."""
        serving = self._serving
        if serving is None:
            raise StaleStore(f"no plan to serve from: {self._trouble}")
        return serving

    @property
    def version(self) -> int | None:
        """The version served from, None before any plan was found."""
        return None if self._serving is None else self._serving.plan.version

    def look(self) -> None:
        """Look the plan up and take it over where it is another one; raises what is in the way, after counting it.

        A failure keeps the plan that is served from. A store that lost its plan (emptied, restored) does not take a
        working plan away. What is served from is reported each time, whether or not a newer plan could be read.
        """
        with self._looking:
            try:
                self._renew()
                # A version of a view is dropped only once no process says that it reads it.
                if self._report is not None and self._serving is not None:
                    self._report(self._serving.plan.version)
            except Exception as error:
                self._metrics.plan_error()
                self._trouble = str(error) if isinstance(error, PlatformError) else f"{type(error).__name__}: {error}"
                raise

    def _renew(self) -> None:
        version, fallbacks = self._source.version(), frozenset(self._fallbacks())
        held = self._serving
        if held is None or (version is not None and version != self.version) or fallbacks != held.fallbacks:
            plan = held.plan if held is not None and version is None else self._source.load()
            self._serving = self._make(plan, fallbacks)
            self._metrics.plan_in_force(plan.version)
            _log.info("serving plan version %d; by fallback: %s", plan.version, sorted(fallbacks) or "none")
