"""What is served right now? One plan with its reader; a newer plan takes its place between two requests."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from featurestore.api.again import Served, Wanted
from featurestore.api.answer import ENCODERS, Answered, reading_instant
from featurestore.api.faults import Refused
from featurestore.api.limits import Limits
from featurestore.api.metrics import Metrics
from featurestore.api.policy import policy_of
from featurestore.api.request import FeatureRequest, entity_columns, instant_of, within
from featurestore.api.selection import Selection, select
from featurestore.clock import Clock
from featurestore.errors import FeatureStoreError, StaleStore
from featurestore.online.numbers import Numbers
from featurestore.online.result import OnlineResult, Status
from featurestore.plan import Plan, Projection
from featurestore.user_code import run_on_demand

Replace = Callable[[Sequence[Answered]], list[Answered]]
_SELECTIONS = 1024
"""How many kinds of request are remembered; beyond it all are forgotten, so that memory stays bounded."""
_log = logging.getLogger(__name__)


class Reader(Protocol):
    """What reads the online store for one plan."""

    def read(
        self,
        projections: Sequence[Projection],
        entity_rows: Mapping[str, Sequence[object]],
        *,
        at_us: int | None = None,
    ) -> OnlineResult:
        """The features of the projections for every entity row."""
        ...


class PlanSource(Protocol):
    """Where the plan in force is looked up."""

    def version(self) -> int | None:
        """The version in force, None where there is no plan."""
        ...

    def load(self) -> Plan:
        """The plan in force."""
        ...


class Serving:
    """Answers requests from one plan; used by many requests, changed by none."""

    def __init__(
        self, plan: Plan, reader: Reader, clock: Clock, limits: Limits, metrics: Metrics, wanted: Wanted | None = None
    ) -> None:
        self.plan = plan
        self._wanted = wanted
        self._reader = reader
        self._clock = clock
        self._limits = limits
        self._metrics = metrics
        self._selections: dict[tuple[str | None, tuple[str, ...], bool], Selection] = {}
        self._policies: dict[int, tuple[Selection, Replace | None]] = {}

    def answer(self, request: FeatureRequest, media_type: str) -> bytes:
        """The body that answers a request; raises UsageError and its kinds, StoreUnavailable."""
        selection = self._selection(request)
        rows, keys, given = entity_columns(request.entities, selection, self._limits)
        now_us = self._clock()
        at_us = instant_of(request.as_of)
        read = self._read(selection, keys, rows, at_us)
        self._metrics.served(read.columns)
        columns = self._columns(selection, read, keys, given, rows)
        replace = self._policy(request.feature_service, selection)
        if replace is not None:
            columns[len(keys) :] = replace(columns[len(keys) :])
        body = ENCODERS[media_type](columns, reading_instant(columns, now_us if at_us is None else at_us))
        if self._wanted is not None and (looks := self._wanted.by(request.feature_service)):
            service = request.feature_service
            self._wanted.put(
                looks, Served(self.plan, service, now_us, at_us, selection, read.columns, keys, given, columns)
            )
        return body

    def _policy(self, service: str | None, selection: Selection) -> Replace | None:
        """What replaces values by the service's policy; worked out once a selection."""
        if service is None:
            return None
        # The selection is kept with its policy: an id may be another's once it is let go.
        found = self._policies.get(id(selection))
        if found is None or found[0] is not selection:
            if len(self._policies) >= _SELECTIONS:
                self._policies.clear()
            found = self._policies[id(selection)] = (selection, policy_of(self.plan, service, selection.outputs))
        return found[1]

    def _selection(self, request: FeatureRequest) -> Selection:
        key = (request.feature_service, tuple(request.features), request.full_feature_names)
        found = self._selections.get(key)
        if found is None:
            within(1, len(request.features), self._limits)
            # The search for a similar name would take seconds for one of megabytes.
            if any(len(name) > self._limits.text_chars for name in [*request.features, request.feature_service or ""]):
                raise Refused(422, "too_large", f"a feature or service name longer than {self._limits.text_chars}")
            found = select(
                self.plan, request.features, request.feature_service, full_feature_names=request.full_feature_names
            )
            if len(self._selections) >= _SELECTIONS:
                self._selections.clear()
            self._selections[key] = found
        return found

    def _read(self, selection: Selection, keys: dict[str, list[object]], rows: int, at_us: int | None) -> OnlineResult:
        if not selection.reads:
            return OnlineResult(rows=rows, columns=())
        # Entityless views have no key column; the request's rows say how many answers are wanted.
        return self._reader.read(selection.reads, keys or {"": [None] * rows}, at_us=at_us)

    def _columns(
        self,
        selection: Selection,
        read: OnlineResult,
        keys: dict[str, list[object]],
        given: dict[str, list[object]],
        rows: int,
    ) -> list[Answered]:
        present = np.full(rows, Status.PRESENT, np.uint8)
        none_us = np.zeros(rows, np.int64)
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
        columns = [
            Answered(name, selection.join_keys[name], key_values, present, none_us, None)
            for name, key_values in keys.items()
        ]
        for output in selection.outputs:
            if output.column >= 0:
                column = read.columns[output.column]
                # Numbers wait for the encoder: JSON of many is written from the stored bytes.
                held = column.held if type(column.held) in (list, Numbers) else stored(output.column)
                columns.append(
                    Answered(
                        output.name,
                        output.dtype,
                        held,
                        column.statuses,
                        column.event_us,
                        column.instant_us,
                    )
                )
            else:
                made = computed[output.view, output.feature]
                missing = np.fromiter((value is None for value in made), np.bool_, rows)
                statuses = np.where(missing, np.uint8(Status.NULL_VALUE), present) if missing.any() else present
                columns.append(Answered(output.name, output.dtype, made, statuses, none_us, None))
        return columns


class PlanWatch:
    """The Serving of the plan in force: `look` notices a new version, `current` is what to answer from."""

    def __init__(self, source: PlanSource, make: Callable[[Plan], Serving], metrics: Metrics) -> None:
        self._source = source
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
        """Looks the plan up and takes it over where it is another; a failure keeps the one in force, and is counted.

        A store that lost its plan (emptied, restored) does not take a working plan away.
        """
        with self._looking:
            try:
                version = self._source.version()
                if (version is not None and version != self.version) or self._serving is None:
                    serving = self._make(self._source.load())
                    self._metrics.plan_in_force(serving.plan.version)
                    self._serving = serving
                    _log.info("serving plan version %d", serving.plan.version)
            except FeatureStoreError as error:
                self._metrics.plan_error()
                if str(error) != self._trouble:
                    _log.warning("plan not renewed: %s", error)
                self._trouble = str(error)
