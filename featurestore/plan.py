"""What must a process know to read, join, aggregate or serve? The Plan: frozen values, no Feast.

`featurestore.compile` makes a Plan from a Feast registry at `apply`; the API, the stream and the joins load it
from a file or from Redis. Durations and instants are int64 microseconds, instants since the epoch in UTC. Types
are the names of Feast's `ValueType` ("INT64", "DOUBLE_LIST", …).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

import msgspec

from featurestore.errors import ConfigurationError, UnknownName
from validation.contract import Contract

FORMAT = 1
"""The layout of the encoded Plan; a reader refuses any other."""


class Field(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named, typed column."""

    name: str
    dtype: str


class JoinKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One key column of an entity, as the view calls it, and the type every edge coerces it to."""

    entity: str
    name: str
    dtype: str


class Topic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The Kafka topic a stream view reads."""

    name: str
    bootstrap_servers: str
    message_format: Literal["json", "avro", "protobuf"]
    schema_text: str = ""
    """JSON: `name type, …`; Avro: the record schema; Protobuf: a FileDescriptorSet in base64."""
    message_type: str = ""
    """Protobuf: the full name of the message."""
    wire_format: Literal["plain", "confluent"] = "plain"
    """confluent: each message begins with a zero byte and the id of its schema (tag `wire_format`)."""
    event_id: str | None = None
    """The column that identifies an event, where the source declares one (tag `event_id`)."""
    event_id_horizon_us: int | None = None
    """How long after an event that counted its repeats are duplicates (tag `event_id_horizon_s`); None: all count."""
    key_column: str | None = None
    """The column whose value is the message key (tag `message_key`): views of that key alone may be keyed."""
    partitions: int | None = None
    """How many partitions it has, where that is declared (tag `partitions`): events of keyed views that lie in another
    than their key's are set aside, and readers look into that one alone."""
    dead_letters: str | None = None
    """The topic of events that were set aside (tag `dead_letters`); None: `NAME.dead`; empty: there is none."""


class LakeTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table whose log says which of its files count."""

    format: Literal["delta", "iceberg"]
    name: str = ""
    """Iceberg: namespace.table in the catalog."""
    catalog: str = ""
    properties: dict[str, str] = {}
    """What the library is given to open the catalog, or the store of a Delta table; no secrets."""
    token_env: str = ""
    """The environment variable that holds the catalog's token."""


TimeUnit = Literal["", "s", "ms", "us", "ns"]


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the rows of a view are kept offline."""

    name: str
    path: str
    """A Parquet file or folder; relative paths start at the feature repo."""
    timestamp_field: str
    created_field: str | None = None
    field_mapping: dict[str, str] = {}
    """Column name in the file -> name in the view; applied before the join."""
    topic: Topic | None = None
    table: LakeTable | None = None
    """What lies there, where it is more than Parquet files."""
    push: str = ""
    """The push source that feeds the view; empty where none does."""
    time_unit: TimeUnit = ""
    """In which unit integers are times; empty: microseconds in messages, in files what their magnitude says."""


class Aggregation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One windowed feature: `function` over `column` of the events in the window ending now."""

    feature: str
    column: str
    column_dtype: str
    function: str
    dtype: str
    window_us: int | None
    """None is all of time."""
    hop_us: int | None
    """The window's tail moves in multiples of it; None only without a window."""
    params: dict[str, float] = {}
    """k of last_k, p of a percentile, the declared cap of count_distinct, the max_bytes of text that is kept."""


class Function(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """User code, proved self-contained at apply: source text that defines `name` where nothing else exists."""

    name: str
    source: str


class Transform(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a stream view makes of each of its events before anything else looks at them."""

    function: Function
    mode: Literal["python", "pandas"]
    inputs: tuple[Field, ...]
    """The event's columns, as the view names them."""
    outputs: tuple[Field, ...]
    """The columns that the function makes; one that is named like an input takes its place."""


class View(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A feature view that has rows or events of its own."""

    name: str
    version: int
    kind: Literal["latest", "windowed"]
    join_keys: tuple[JoinKey, ...]
    """Empty for an entityless view."""
    features: tuple[Field, ...]
    ttl_us: int
    """0 never expires; not applied to windowed features."""
    source: Source
    columns: tuple[Field, ...] = ()
    """The event's columns that a stream view reads: join keys and aggregated columns, or what its function is given."""
    aggregations: tuple[Aggregation, ...] = ()
    partitions: Literal["keyed", "spread"] = "spread"
    """keyed: the entity key is the message key, so one partition holds it; spread: the reader merges all."""
    transform: Transform | None = None
    withheld: dict[str, Literal["dropped", "masked"]] = {}
    """Column of the source -> what is done to it before the view sees it: it is classified beyond its clearance."""
    online: bool = True
    description: str = ""
    owner: str = ""
    tags: dict[str, str] = {}

    @property
    def is_stream(self) -> bool:
        """Whether events, not materialization, keep this view current."""
        return self.source.topic is not None

    def feature(self, name: str) -> Field:
        """The feature of that name; raises UnknownName."""
        for field in self.features:
            if field.name == name:
                return field
        raise UnknownName(f"feature in view {self.name!r}", name, [f.name for f in self.features])


class Projection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The features one service or request takes of a view, under which name, by which entity columns."""

    view: str
    features: tuple[str, ...]
    alias: str = ""
    """The name the view goes by here; empty is its own."""
    join_key_map: dict[str, str] = {}
    """Join key of the view -> column of the entity rows."""

    @property
    def name(self) -> str:
        """The name the view goes by here."""
        return self.alias or self.view


class OnDemandView(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Features computed from request values and other views' features when they are asked for."""

    name: str
    features: tuple[Field, ...]
    request: tuple[Field, ...]
    """Columns that the caller supplies."""
    inputs: tuple[Projection, ...]
    mode: Literal["python", "pandas"]
    singleton: bool
    """Whether the function takes one row (a dict of values) instead of columns (a dict of lists)."""
    function: Function
    description: str = ""
    owner: str = ""
    tags: dict[str, str] = {}


PII = "pii"
"""The tag of views that hold personal data."""


def is_personal(tags: Mapping[str, str]) -> bool:
    """Whether a view of these tags holds personal data: tag `pii`, unless it says no.

    >>> is_personal({"pii": "true"}), is_personal({"pii": "no"}), is_personal({})
    (True, False, False)
    """
    return tags.get(PII, "false").lower() not in ("", "false", "no", "0")


Instead = Literal["value", "null", "default", "error"]
"""What an answer holds in place of a value that is not what it should be; `value` is whatever was found."""


class ServingPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a service's callers get where a value is missing, stale, incomplete or invalid (tags of the service)."""

    missing: Instead = "value"
    """NOT_FOUND, and nulls."""
    stale: Instead = "value"
    """OUTSIDE_MAX_AGE."""
    incomplete: Instead = "value"
    """INCOMPLETE: a window that is older than its history."""
    invalid: Instead = "value"
    """NaN and infinities, and what breaks a rule of the contract of the view's source."""
    alarm: str = "value"
    """While a critical alarm is on: `value` (nothing changes), `null`, `default`, or `version:N`, a plan's version."""
    defaults: dict[str, Any] = {}
    """By feature, or view__feature: the value of `default`, of the feature's type as JSON has it."""
    told: bool = True
    """Whether the status of a replaced value says why it was; else it is PRESENT, or NULL_VALUE for null."""

    @property
    def pinned_version(self) -> int | None:
        """The plan version that holds while an alarm is on, where that is the fallback.

        >>> ServingPolicy(alarm="version:7").pinned_version
        7
        """
        return int(self.alarm.removeprefix("version:")) if self.alarm.startswith("version:") else None


class Permission(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Feast permission, resolved to what it is about: any of these identities may do these actions there."""

    name: str
    views: tuple[str, ...]
    """Feature views and on-demand views that its types, name patterns and required tags match."""
    services: tuple[str, ...]
    actions: tuple[str, ...]
    """Of read_online, write_online and write_offline, those that it is about."""
    everyone: bool = False
    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()


class Service(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named list of features that one model uses."""

    name: str
    projections: tuple[Projection, ...]
    policy: ServingPolicy = ServingPolicy()
    description: str = ""
    owner: str = ""
    tags: dict[str, str] = {}


class Waiting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Definitions that need features of views which are still being built."""

    services: dict[str, Service] = {}
    on_demand: dict[str, OnDemandView] = {}


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything `apply` found in a feature repo, compiled."""

    project: str
    version: int
    """Grows by one whenever `digest` changes."""
    digest: str
    """SHA-256 of the definitions, without version and time."""
    created_us: int
    views: dict[str, View] = {}
    on_demand: dict[str, OnDemandView] = {}
    services: dict[str, Service] = {}
    contracts: dict[str, Contract] = {}
    permissions: tuple[Permission, ...] = ()
    """Feast's Permission objects; with none, the roles of the API alone decide."""
    building: dict[str, View] = {}
    """By name, the version of a windowed view that a backfill builds; `views` holds the one that is read meanwhile."""
    waiting: Waiting = Waiting()
    """What takes effect with the views that are being built."""
    retiring: tuple[View, ...] = ()
    """Versions that the stream keeps current until every reader has gone over to the next one."""
    unused: tuple[View, ...] = ()
    """Versions that nobody reads or writes any more: their keys may be dropped."""
    format: int = FORMAT

    def view(self, name: str) -> View:
        """The view of that name; raises UnknownName."""
        try:
            return self.views[name]
        except KeyError:
            raise UnknownName("feature view", name, [*self.views, *self.on_demand]) from None

    def service(self, name: str) -> Service:
        """The feature service of that name; raises UnknownName."""
        try:
            return self.services[name]
        except KeyError:
            raise UnknownName("feature service", name, self.services) from None

    def projections(self, refs: list[str]) -> tuple[Projection, ...]:
        """Feature references ("view:feature") as projections, in the order of first mention; raises UnknownName.

        A reference to an unknown view or feature is refused before any work is done.
        """
        wanted: dict[str, list[str]] = {}
        for ref in refs:
            view, separator, feature = ref.partition(":")
            if not separator:
                raise UnknownName("feature reference (view:feature)", ref, self._all_refs())
            if view not in self.on_demand:
                self.view(view).feature(feature)
            elif feature not in {f.name for f in self.on_demand[view].features}:
                raise UnknownName(f"feature in view {view!r}", feature, [f.name for f in self.on_demand[view].features])
            wanted.setdefault(view, []).append(feature)
        return tuple(Projection(view=view, features=tuple(features)) for view, features in wanted.items())

    def _all_refs(self) -> list[str]:
        refs = [f"{view.name}:{field.name}" for view in self.views.values() for field in view.features]
        return refs + [f"{view.name}:{field.name}" for view in self.on_demand.values() for field in view.features]

    def encode(self) -> bytes:
        """The Plan as JSON, stable for equal Plans."""
        return msgspec.json.encode(self, order="sorted")

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """A Plan from `encode`; raises ConfigurationError where it is torn or of another format."""
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"the plan cannot be read: {error}; run `featurestore apply` with this version of the product"
            ) from error


def used_views(plan: Plan, projections: Iterable[Projection]) -> list[View]:
    """The views whose rows the projections need, on-demand views' inputs included, by name; raises UnknownName."""
    names: set[str] = set()
    for projection in projections:
        if projection.view in plan.on_demand:
            names |= {each.view for each in plan.on_demand[projection.view].inputs}
        else:
            names.add(plan.view(projection.view).name)
    return [plan.view(name) for name in sorted(names)]


def definition_digests(plan: Plan, projections: Sequence[Projection]) -> dict[str, str]:
    """View -> SHA-256 of its compiled definition, for every view that the projections need.

    What does not change a value does not count: versions, descriptions, owners and tags.
    """
    bare = {"description": "", "owner": "", "tags": {}}
    out = {
        view.name: _sha256(msgspec.structs.replace(view, version=0, **bare)) for view in used_views(plan, projections)
    }
    for projection in projections:
        if on_demand := plan.on_demand.get(projection.view):
            out[on_demand.name] = _sha256(msgspec.structs.replace(on_demand, **bare))
    return out


def definitions_digest(plan: Plan) -> str:
    """SHA-256 over a Plan's definitions alone: equal definitions have equal digests, whenever compiled."""
    bare: dict[str, Any] = msgspec.to_builtins(plan)
    for volatile in ("version", "digest", "created_us"):
        del bare[volatile]
    return _sha256(bare)


def _sha256(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()
