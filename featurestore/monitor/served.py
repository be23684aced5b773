"""Which served answers are kept for a second look, and how are they read back?

The serve log holds whole rows of answers, chosen by a hash of their entity keys: a key is in it always or never, so
that its history can be followed. What the store held is kept beside what the caller got, typed as it was, with the
instant that it held at. One Parquet file holds rows of one shape: one plan version, one service. Files are finished
under a temporary name and renamed; readers see whole files or none.
"""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from featurestore.clock import Clock
from featurestore.errors import DefinitionError, SourceError
from featurestore.online.result import Column
from featurestore.online.types import from_python
from featurestore.plan import Plan, Projection, Service, definition_digests
from validation.file_check import UNSEALED, damage, seal

RATE_TAG: Final = "audit_rate"
"""Tag of a feature service: the share of its entity keys whose answers are kept, 0 to 1; without it none are."""
HOUR_US: Final = 3_600_000_000
FLUSH_ROWS: Final = 20_000
FLUSH_AGE_US: Final = 60_000_000
KEPT_ROWS: Final = 200_000
"""Rows that wait for their file at most, over all shapes; beyond, rows are dropped and counted."""
REQUESTED: Final = "requested"
_META: Final = b"served"
_HASHES: Final = 1 << 64


class Answer(msgspec.Struct, frozen=True, kw_only=True, eq=False, gc=False):
    """One request that was answered: what was read of the store, and what the caller got."""

    plan: Plan
    service: str
    requested_us: int
    reads: tuple[Projection, ...]
    """What was read, on-demand views' inputs included."""
    read: Sequence[Column]
    """In the order of the reads and of their features."""
    keys: Mapping[str, Sequence[object]]
    """Entity columns, as their entities' types."""
    request: Mapping[str, Sequence[object]]
    """Columns that the caller supplied to on-demand views."""
    given: Mapping[tuple[str, str], Sequence[object]]
    """By view and feature: the values that went out, after the service's policy, as Python values."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What all rows of a file have in common."""

    project: str
    plan_version: int
    service: str
    reads: tuple[Projection, ...]
    definitions: dict[str, str]
    """View -> digest of the definition in force."""
    keys: dict[str, str]
    """Entity column -> Feast type."""
    request: dict[str, str]
    given: dict[str, str]
    """`view:feature` that went out -> Feast type."""

    @property
    def name(self) -> str:
        """Names the shape within the names of files."""
        return xxhash.xxh3_64_hexdigest(msgspec.json.encode(self, order="sorted"))


def audit_rate(service: Service) -> float:
    """The share of a service's entity keys that is kept; raises DefinitionError where the tag says no such thing.

    >>> audit_rate(Service(name="s", projections=(), tags={"audit_rate": "0.25"}))
    0.25
    """
    text = service.tags.get(RATE_TAG, "0")
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise DefinitionError(
            f"feature service {service.name!r}: tag {RATE_TAG} is {text!r}; give a share of entity keys from 0 to 1"
        )
    return rate


def kept_rows(keys: Mapping[str, Sequence[object]], rate: float) -> list[int]:
    """Which rows are kept: those whose entity keys, taken together, hash below the rate.

    >>> kept_rows({"driver": [1, 2, 1]}, 1.0)
    [0, 1, 2]
    """
    limit = int(rate * _HASHES)
    names = sorted(keys)
    rows = zip(*(keys[name] for name in names), strict=True)
    return [place for place, row in enumerate(rows) if xxhash.xxh3_64_intdigest(msgspec.msgpack.encode(row)) < limit]


class ServeLog:
    """Keeps answers in files under a folder, one folder an hour. Used by one thread; `writer` is this process's name.

    What waits for its file is lost with the process: a sample may have gaps, but no row of it is wrong.
    """

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        *,
        writer: str,
        flush_rows: int = FLUSH_ROWS,
        flush_age_us: int = FLUSH_AGE_US,
        kept_rows: int = KEPT_ROWS,
    ) -> None:
        self.counters: Counter[str] = Counter()
        """Rows: seen, kept, dropped."""
        self._folder = folder
        self._clock = clock
        self._writer = writer
        self._flush_rows = flush_rows
        self._flush_age_us = flush_age_us
        self._most = kept_rows
        self._waiting: dict[tuple[str, int], tuple[Shape, list[pa.Table]]] = {}
        self._rows = 0
        self._since_us = clock()
        self._shapes: dict[tuple[int, str], Shape] = {}
        self._number = 0

    def add(self, answer: Answer) -> int:
        """Keeps the sampled rows of an answer; how many. Stores what is due; raises OSError where that fails."""
        rate = audit_rate(answer.plan.service(answer.service))
        rows = kept_rows(answer.keys, rate) if rate else []
        self.counters["seen"] += len(next(iter(answer.keys.values()), ()))
        if self._rows + len(rows) > self._most:
            self.counters["dropped"] += len(rows)
            rows = []
        if rows:
            self.counters["kept"] += len(rows)
            shape = self._shape(answer)
            place = (shape.name, answer.requested_us // HOUR_US)
            self._waiting.setdefault(place, (shape, []))[1].append(_table(answer, shape, rows))
            self._rows += len(rows)
        self.flush_due()
        return len(rows)

    def flush_due(self) -> None:
        """Stores what waits if it is many rows, or has waited long; raises OSError."""
        if self._rows >= self._flush_rows or self._clock() - self._since_us >= self._flush_age_us:
            self.flush()

    def flush(self) -> None:
        """Stores everything that waits; raises OSError. What could be stored does not wait any more."""
        self._since_us = self._clock()
        for place, (shape, tables) in list(self._waiting.items()):
            table, hour = pa.concat_tables(tables), place[1]
            self._number += 1
            name = f"{place[0]}-{self._writer}-{self._number}.parquet"
            target = self._folder / f"hour={np.datetime64(hour, 'h')}" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = target.with_name(f".{name}.{os.getpid()}")
            table = table.replace_schema_metadata({_META: msgspec.json.encode(shape)})
            with pq.ParquetWriter(draft, table.schema) as file:
                file.write_table(table)
                file.add_key_value_metadata(UNSEALED)
            with draft.open("r+b") as written:
                seal(written)
            draft.replace(target)
            self._rows -= table.num_rows
            del self._waiting[place]

    def _shape(self, answer: Answer) -> Shape:
        key = (answer.plan.version, answer.service)
        found = self._shapes.get(key)
        # One service of one plan is asked for in one way, but for full feature names, which change no read.
        if found is None or found.reads != answer.reads:
            found = self._shapes[key] = _shape_of(answer)
        return found


def read_served(
    folder: Path,
    start_us: int,
    end_us: int,
    *,
    service: str | None = None,
    columns: Callable[[Shape], Collection[str]] | None = None,
) -> Iterator[tuple[Shape, pa.Table]]:
    """The answers requested at start <= t < end, a table a shape and hour, hours in order.

    Without `columns`, which names those that are wanted of a shape beside the request's instant, all are read. Raises
    SourceError for a file that is none of the serve log's, or was damaged after it was written.
    """
    for place in sorted(folder.glob("hour=*")):
        hour_us = int(np.datetime64(place.name.removeprefix("hour="), "us").astype(np.int64))
        if hour_us + HOUR_US <= start_us or hour_us >= end_us:
            continue
        found: dict[bytes, tuple[Shape, list[pa.Table]]] = {}
        for path in sorted(place.glob("[!.]*.parquet")):
            with _opened(path) as file:
                raw = file.schema_arrow.metadata[_META]
                shape = found[raw][0] if raw in found else msgspec.json.decode(raw, type=Shape)
                if service is None or shape.service == service:
                    wanted = None if columns is None else [*columns(shape), REQUESTED]
                    found.setdefault(raw, (shape, []))[1].append(_read(file, path, wanted))
        for shape, tables in found.values():
            table = pa.concat_tables(tables)
            at = table[REQUESTED].to_numpy()
            inside = table.filter(pa.array((at >= start_us) & (at < end_us)))
            if inside.num_rows:
                yield shape, inside


def prune(folder: Path, before_us: int) -> int:
    """Removes the hours that ended before an instant; how many files."""
    removed = 0
    for place in sorted(folder.glob("hour=*")):
        hour_us = int(np.datetime64(place.name.removeprefix("hour="), "us").astype(np.int64))
        if hour_us + HOUR_US > before_us:
            continue
        for path in place.iterdir():
            path.unlink()
            removed += 1
        place.rmdir()
    return removed


def value_column(view: str, feature: str) -> str:
    """The column of what the store held; `view` is the name the view goes by in the service."""
    return f"value {view}:{feature}"


def status_column(view: str, feature: str) -> str:
    """The column of its status."""
    return f"status {view}:{feature}"


def event_column(view: str) -> str:
    """The column of the event time of what the store held of a view, int64 microseconds, 0 for nothing."""
    return f"event {view}"


def instant_column(view: str) -> str:
    """The column of the instant that a view's values hold at, int64 microseconds."""
    return f"instant {view}"


def given_column(view: str, feature: str) -> str:
    """The column of what the caller got."""
    return f"given {view}:{feature}"


def _opened(path: Path) -> pq.ParquetFile:
    try:
        if found := damage(path):
            raise SourceError(f"the serve log: {found}; remove it to go on without")
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(path, error) from error
    if _META not in (file.schema_arrow.metadata or {}):
        file.close()
        raise SourceError(f"{path} is no file of a serve log; move it elsewhere")
    return file


def _read(file: pq.ParquetFile, path: Path, columns: Sequence[str] | None) -> pa.Table:
    try:
        return file.read(columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> SourceError:
    return SourceError(f"{path} of the serve log cannot be read: {error}; remove it to go on without")


def _shape_of(answer: Answer) -> Shape:
    plan = answer.plan
    key_types = {
        projection.join_key_map.get(key.name, key.name): key.dtype
        for projection in answer.reads
        for key in plan.view(projection.view).join_keys
    }
    service = plan.service(answer.service)
    computed = [plan.on_demand[each.view] for each in service.projections if each.view in plan.on_demand]
    given = {}
    for projection in service.projections:
        view = plan.on_demand.get(projection.view) or plan.view(projection.view)
        types = {field.name: field.dtype for field in view.features}
        for feature in projection.features:
            given[f"{projection.name}:{feature}"] = types[feature]
    return Shape(
        project=plan.project,
        plan_version=plan.version,
        service=answer.service,
        reads=answer.reads,
        definitions=definition_digests(plan, service.projections),
        keys={name: key_types[name] for name in answer.keys},
        request={field.name: field.dtype for view in computed for field in view.request},
        given=given,
    )


def _table(answer: Answer, shape: Shape, rows: Sequence[int]) -> pa.Table:
    columns: dict[str, Any] = {REQUESTED: np.full(len(rows), answer.requested_us, np.int64)}

    def take(values: Sequence[object], dtype: str, name: str) -> pa.Array:
        return from_python([values[row] for row in rows], dtype, name=name)

    for name, dtype in shape.keys.items():
        columns[f"key {name}"] = take(answer.keys[name], dtype, name)
    for name, dtype in shape.request.items():
        columns[f"request {name}"] = take(answer.request[name], dtype, name)
    indices = pa.array(rows)
    for column in answer.read:
        columns[value_column(column.view, column.feature)] = column.values.take(indices)
        columns[status_column(column.view, column.feature)] = column.statuses[rows]
        columns[event_column(column.view)] = column.event_us[rows]
        columns[instant_column(column.view)] = column.instant_us[rows]
    for name, dtype in shape.given.items():
        view, _, feature = name.partition(":")
        columns[given_column(view, feature)] = take(answer.given[view, feature], dtype, name)
    return pa.table(columns)
