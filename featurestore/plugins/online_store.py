"""How does Feast's SDK reach our online store? As an `OnlineStore` that writes atomically and reads in one trip."""

# ruff: noqa: ARG002 - Feast's signatures have more than we need
import atexit
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from feast import utils
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import ConfigDict, StrictStr

from featurestore.clock import Clock, system_clock
from featurestore.config import EMBEDDED, OnlineSettings, clock_offset_us, data_dir, online_url
from featurestore.errors import StaleStore, UsageError
from featurestore.online.connection import StoreClient, connect
from featurestore.online.delete import delete_views
from featurestore.online.reader import OnlineReader
from featurestore.online.result import Column, Status
from featurestore.online.writer import RowWriter
from featurestore.plan import Plan, Projection, View
from featurestore.plan_store import PlanStore
from featurestore.plugins.definitions import is_windowed
from featurestore.plugins.protos import from_column, scalar, to_column
from featurestore.plugins.source_contract import SourceContracts
from featurestore.plugins.views import latest_view
from featurestore.signing import signer_of
from featurestore.view_rules import rules_for
from featurestore.write_reports import WrittenRows

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Feast has no INCOMPLETE; INVALID beside a value is the only one of its statuses that does not vouch for it.
_STATUSES: dict[Status, Any] = {status: int(status) for status in Status} | {Status.INCOMPLETE: FieldStatus.INVALID}
_GIVEN = frozenset([Status.PRESENT, Status.NULL_VALUE, Status.INCOMPLETE])


class RedisOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]  # Feast ships no types
    """The `online_store` section of feature_store.yaml."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    type: Literal["featurestore.plugins.RedisOnlineStore"] = "featurestore.plugins.RedisOnlineStore"
    connection: StrictStr = EMBEDDED
    """`embedded`, or a redis://, rediss:// or unix:// URL; FEATURESTORE_REDIS_URL goes before it."""


class RedisOnlineStore(OnlineStore):  # type: ignore[misc]  # Feast ships no types
    """Feast's online store on Redis or Valkey, embedded or not.

    Latest-value views are written and read; windowed views are read (the stream writes them, a write through Feast
    is refused). Reads apply the view's ttl and say PRESENT, NULL_VALUE, NOT_FOUND or OUTSIDE_MAX_AGE.
    """

    def __init__(self) -> None:
        self._clients: dict[str, StoreClient] = {}
        self._contracts: dict[tuple[str, str], SourceContracts] = {}

    def client(self, config: RepoConfig) -> StoreClient:
        """The client of the configured store; the embedded server is started where none is alive."""
        url = str(online_url(config.online_store.connection, os.environ))
        if url not in self._clients:
            self._clients[url] = connect(OnlineSettings(url=url), _folder(config))
        return self._clients[url]

    def writer(self, config: RepoConfig, view: View) -> RowWriter:
        """A writer of the view's rows."""
        return RowWriter(self.client(config), config.project, view, clock=_clock())

    def online_write_batch(
        self,
        config: RepoConfig,
        table: Any,
        data: Sequence[tuple[Any, dict[str, Value], datetime, datetime | None]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows; the greatest (event timestamp, created timestamp) of a key stays.

        Raises UsageError for a windowed view, for values that do not fit, for rows of which one breaks a rule of the
        source's contract that sets aside or blocks (nothing is written), and for rows dated ahead of the clock beyond
        the tolerance (all others are written first).
        """
        if is_windowed(table):
            raise UsageError(
                f"view {table.name!r} is windowed: its features are counted from events; send them to its topic"
            )
        if not data:
            return
        view = latest_view(table, data[0][0])
        rows, created = _rows(view, data)
        contracts = self._kept_by(config)
        self._judge(contracts, table, view, rows)
        result = self.writer(config, view).write(
            rows,
            event_timestamp=_EVENT,
            created=_CREATED if created else None,
            progress=progress,
            became=partial(contracts.profiled, view),
        )
        if result.ahead.num_rows:
            raise UsageError(
                f"view {view.name!r}: {result.ahead.num_rows} of {len(data)} rows are dated ahead of the clock and "
                "were not written; send them again when their time has come"
            )

    def _kept_by(self, config: RepoConfig) -> SourceContracts:
        place = (config.project, str(config.repo_path))
        if place not in self._contracts:
            self._contracts[place] = SourceContracts(config, self.client(config))
            # A script ends when its last row is written: what was gathered by then is told then.
            atexit.register(self._contracts[place].finish)
        return self._contracts[place]

    def _judge(self, contracts: SourceContracts, table: Any, view: View, rows: pa.Table) -> None:
        """Holds rows that Feast writes or pushes to the contract of their source, as the API holds its own."""
        contract = contracts.of(table)
        if contract is None:
            return
        back = {inner: outer for outer, inner in view.source.field_mapping.items()}
        times = {_EVENT: view.source.timestamp_field, _CREATED: view.source.created_field or _CREATED}
        names = [times.get(name, back.get(name, name)) for name in rows.column_names]
        rules = rules_for(contract, names)
        if rules is None:
            return
        held = rows.rename_columns(names).to_pylist()
        masks = rules.check.check(held, [_clock()()] * len(held))
        refusal = rules.refusal(view.name, masks)
        broken = list(map(rules.check.ids, masks))
        event = view.source.timestamp_field
        written = WrittenRows(view, rules.contract, held, broken, event, refused=refusal is not None)
        contracts.written(written)
        if refusal is not None:
            raise UsageError(refusal)

    def online_read(
        self, config: RepoConfig, table: Any, entity_keys: Sequence[Any], requested_features: list[str] | None = None
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """Per entity key the event timestamp and the values that hold now; (None, None) where there are none.

        A value older than its ttl is left out of the dict, and Feast calls it NOT_FOUND; `get_online_features` says
        OUTSIDE_MAX_AGE.
        """
        if not entity_keys:
            return []
        view = self._view(config, table, entity_keys[0])
        names = requested_features or [field.name for field in view.features]
        values: dict[str, list[Any]] = {name: [] for name in entity_keys[0].join_keys}
        for key in entity_keys:
            for name, value in zip(key.join_keys, key.entity_values, strict=True):
                values[name].append(scalar(value))
        columns = self._read(config, [view], [Projection(view=view.name, features=tuple(names))], values)
        protos = [from_column(column.values, column.dtype) for column in columns]
        answer: list[tuple[datetime | None, dict[str, Value] | None]] = []
        for row in range(len(entity_keys)):
            held = [i for i, column in enumerate(columns) if column.statuses[row] in _GIVEN]
            if not held:
                answer.append((None, None))
                continue
            when = _EPOCH + timedelta(microseconds=int(columns[held[0]].event_us[row]))
            answer.append((when, {columns[i].feature: protos[i][row] for i in held}))
        return answer

    def _read_features_per_fv(
        self,
        config: RepoConfig,
        grouped_refs: list[Any],
        join_key_values: dict[str, Any],
        entity_name_to_join_key_map: dict[str, str],
        online_features_response: Any,
        full_feature_names: bool,  # noqa: FBT001 - Feast's signature
        include_feature_view_version_metadata: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        """All views of a request in one round trip, with their true statuses: Feast's own hook for batching."""
        views, projections = [], []
        values: dict[str, list[Any]] = {}
        for i, (table, features) in enumerate(grouped_refs):
            keys = utils._get_table_entity_values(table, entity_name_to_join_key_map, join_key_values)  # noqa: SLF001 - no other way
            columns = {name: f"{i} {name}" for name in keys}
            values |= {columns[name]: [scalar(value) for value in column] for name, column in keys.items()}
            view = self._view(config, table)
            views.append(view)
            projections.append(Projection(view=view.name, features=tuple(features), alias=str(i), join_key_map=columns))
        read = iter(self._read(config, views, projections, values))
        names, metadata = online_features_response.metadata.feature_names.val, online_features_response.metadata
        for table, features in grouped_refs:
            prefix = f"{table.projection.name_to_use()}__" if full_feature_names else ""
            names.extend(f"{prefix}{feature}" for feature in features)
            known = {each.name for each in metadata.feature_view_metadata}
            plain = table.projection.name_alias or table.projection.name
            if include_feature_view_version_metadata and plain not in known:
                version = getattr(table, "current_version_number", 0) or 0
                metadata.feature_view_metadata.add(name=plain, version=version)
            for _ in features:
                online_features_response.results.append(_vector(next(read)))

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[Any],
        tables_to_keep: Sequence[Any],
        entities_to_delete: Sequence[Any],
        entities_to_keep: Sequence[Any],
        partial: bool,  # noqa: FBT001 - Feast's signature
    ) -> None:
        """Remove what deleted views of this project held; nothing has to be prepared for the others."""
        kept = {table.name for table in tables_to_keep}
        gone = [table.name for table in tables_to_delete if table.name not in kept]
        if gone:
            delete_views(self.client(config), config.project, gone)

    def teardown(self, config: RepoConfig, tables: Sequence[Any], entities: Sequence[Any]) -> None:
        """Remove what these views of this project hold."""
        if tables:
            delete_views(self.client(config), config.project, [table.name for table in tables])

    def _view(self, config: RepoConfig, table: Any, key: Any = None) -> View:
        if not is_windowed(table):
            return latest_view(table, key)
        # Tiles are laid out by the Plan in force, whose version of the view a Feast object does not know.
        plan = PlanStore(self.client(config), config.project, signer_of(_folder(config))).load()
        view = plan.view(table.name)
        if view.kind != "windowed":
            raise StaleStore(f"view {table.name!r} is windowed, the plan in force says not; run `featurestore apply`")
        return view

    def _read(
        self,
        config: RepoConfig,
        views: Sequence[View],
        projections: Sequence[Projection],
        values: dict[str, list[Any]],
    ) -> tuple[Column, ...]:
        plan = Plan(
            project=config.project, version=0, digest="", created_us=0, views={view.name: view for view in views}
        )
        return OnlineReader(self.client(config), plan, _clock()).read(projections, values).columns


_EVENT, _CREATED = "event timestamp", "created timestamp"
"""Column names with a blank: no join key or feature has one, so these are free."""


def _clock() -> Clock:
    return system_clock(clock_offset_us(os.environ))


def _rows(view: View, data: Sequence[tuple[Any, dict[str, Value], datetime, datetime | None]]) -> tuple[pa.Table, bool]:
    """Feast's rows as a table, and whether any of them has a created timestamp."""
    names = {key.name for key in view.join_keys}
    keys: dict[str, list[Any]] = {name: [] for name in names}
    for key, _, _, _ in data:
        given = dict(zip(key.join_keys, map(scalar, key.entity_values), strict=True))
        for name in names:
            keys[name].append(given.get(name))
    columns = {name: pa.array(column) for name, column in keys.items()}
    for field in view.features:
        columns[field.name] = to_column([row.get(field.name) for _, row, _, _ in data], field.dtype, name=field.name)
    created = [created for _, _, _, created in data]
    columns[_EVENT] = _instants([event for _, _, event, _ in data])
    columns[_CREATED] = _instants(created)
    return pa.table(columns), any(each is not None for each in created)


def _instants(values: Sequence[datetime | None]) -> pa.Array:
    us = [
        None if t is None else ((t if t.tzinfo else t.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)
        for t in values
    ]
    return pa.array(us, pa.int64()).cast(pa.timestamp("us", tz="UTC"))


def _vector(column: Column) -> Any:
    known: dict[int, Timestamp] = {}
    for event_us in np.unique(column.event_us).tolist():
        known[event_us] = Timestamp()
        known[event_us].FromMicroseconds(event_us)
    return GetOnlineFeaturesResponse.FeatureVector(
        values=from_column(column.values, column.dtype),
        statuses=[_STATUSES[Status(status)] for status in column.statuses.tolist()],
        event_timestamps=[known[event_us] for event_us in column.event_us.tolist()],
    )


def _folder(config: RepoConfig) -> Path:
    """The data folder of a repo."""
    repo = Path(config.repo_path) if config.repo_path else Path.cwd()
    return data_dir(repo.absolute(), getattr(config.registry, "path", None))
