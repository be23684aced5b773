"""Which views and services does a column of a source reach?

Read from a plan file, of which only what the answer needs is looked at.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from validation.contract import Contract
from validation.errors import ContractError
from validation.verdict import Verdict

JOIN_KEY: Final = "join key"


class _Named(msgspec.Struct, frozen=True):
    name: str


class _Topic(msgspec.Struct, frozen=True):
    name: str
    event_id: str | None = None


class _Source(msgspec.Struct, frozen=True):
    name: str
    path: str = ""
    timestamp_field: str = ""
    created_field: str | None = None
    field_mapping: dict[str, str] = {}
    topic: _Topic | None = None
    push: str = ""

    @property
    def names(self) -> frozenset[str]:
        """All that a contract about its rows may name: the source, its topic, its push source."""
        return frozenset({self.name, *([self.topic.name] if self.topic else []), *([self.push] if self.push else [])})


class _Aggregation(msgspec.Struct, frozen=True):
    feature: str
    column: str


class _View(msgspec.Struct, frozen=True):
    name: str
    source: _Source
    join_keys: tuple[_Named, ...] = ()
    features: tuple[_Named, ...] = ()
    aggregations: tuple[_Aggregation, ...] = ()
    transform: msgspec.Raw | None = None


class _Projection(msgspec.Struct, frozen=True):
    view: str
    features: tuple[str, ...] = ()


class _OnDemand(msgspec.Struct, frozen=True):
    name: str
    inputs: tuple[_Projection, ...] = ()


class _Service(msgspec.Struct, frozen=True):
    name: str
    projections: tuple[_Projection, ...] = ()


class Reach(msgspec.Struct, frozen=True):
    """The part of a plan that tells what depends on what."""

    views: dict[str, _View] = {}
    on_demand: dict[str, _OnDemand] = {}
    services: dict[str, _Service] = {}

    @property
    def sources(self) -> frozenset[str]:
        """All that a contract may be about, as `apply` has it."""
        rows = {view.source.name for view in self.views.values()}
        topics = {view.source.topic.name for view in self.views.values() if view.source.topic is not None}
        features = {f"view:{name}" for name in self.views} | {f"service:{name}" for name in self.services}
        return frozenset(rows | topics | features)

    def boundaries(self, source: str) -> frozenset[str]:
        """The boundaries that rows of a source cross on their way into views; a producer's batch is not one of them.

        Events of a windowed view are no features: only as events do its source's promises hold. `view:NAME` and
        `service:NAME` stand for features as they go out.
        """
        kind, _, name = source.rpartition(":")
        if kind in ("view", "service"):
            known = {*self.views, *self.on_demand} if kind == "view" else self.services
            return frozenset({"training", "online_serve"} if name in known else ())
        crossed: set[str] = set()
        for view in self.views.values():
            if source not in view.source.names:
                continue
            if view.source.topic is not None:
                crossed.add("event")
            if not view.aggregations:
                crossed |= {"training", "online_serve"} | (
                    {"source", "online_write"} if view.source.topic is None else set()
                )
        return frozenset(crossed)

    def of(self, source: str, columns: Collection[str] | None = None) -> tuple[str, ...]:
        """What columns (None: any) of a source, or of its topic, reach: `view NAME` and `service NAME`, sorted.

        A view's timestamp and join keys reach all of its features; user code that transforms rows may read any column.
        `view:NAME` and `service:NAME` stand for features as they go out: columns are features and keys then.
        """
        kind, _, name = source.rpartition(":")
        if kind == "service":
            return (f"service {name}",) if name in self.services else ()
        touched: dict[str, frozenset[str]] = {}
        if kind == "view" and name in {*self.views, *self.on_demand}:
            features = {one.name for one in self.views[name].features} if name in self.views else set()
            whole = columns is None or not set(columns) <= features
            touched[name] = frozenset() if whole else frozenset(columns or ())
        for view in self.views.values():
            if source in view.source.names and (found := _features(view, columns)):
                touched[view.name] = found
        for computed in self.on_demand.values():  # their code may use any input for any feature
            if any(_touches(projection, touched) for projection in computed.inputs):
                touched[computed.name] = frozenset()
        services = [
            service.name
            for service in self.services.values()
            if any(_touches(projection, touched) for projection in service.projections)
        ]
        return (*(f"view {name}" for name in sorted(touched)), *(f"service {name}" for name in sorted(services)))

    def of_verdict(self, verdict: Verdict, contract: Contract) -> tuple[str, ...]:
        """What the columns of the rules that failed or broke reach; nothing where none did."""
        broken = {rule.rule_id for rule in verdict.rules if rule.outcome in {"failed", "broken"}}
        meanings = zip(contract.rules, contract.expectations(), strict=True)
        columns = {name for rule, meaning in meanings if rule.id in broken for name in meaning.columns}
        return self.of(contract.source, columns or None) if broken else ()


def _features(view: _View, columns: Collection[str] | None) -> frozenset[str]:
    everything = frozenset({"", *(feature.name for feature in view.features)})
    if columns is None or (columns and view.transform is not None):
        return everything
    mapped = {view.source.field_mapping.get(column, column) for column in columns}
    whole = {key.name for key in view.join_keys} | {view.source.timestamp_field, view.source.created_field}
    if mapped & whole or set(columns) & whole:
        return everything
    if view.aggregations:
        return frozenset(one.feature for one in view.aggregations if one.column in mapped)
    return frozenset(feature.name for feature in view.features if feature.name in mapped)


def _touches(projection: _Projection, touched: dict[str, frozenset[str]]) -> bool:
    if projection.view not in touched:
        return False
    features = touched[projection.view]
    return not features or not projection.features or bool(features & set(projection.features))


def load_reach(path: Path) -> Reach:
    """What depends on what, of a plan file; raises ContractError where it is none."""
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=Reach)
    except OSError as error:
        raise ContractError(
            f"{path}: the plan cannot be read: {error.strerror}; `featurestore apply` writes it"
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ContractError(f"{path}: no plan: {error}; `featurestore apply` writes one") from error


def column_roles(path: Path) -> dict[str, str]:
    """The columns that a plan's views read and that are no features, and what each is; nothing without a plan.

    Under the producer's name and the view's. A column that is a feature of any view has no such role.
    """
    if not path.exists():
        return {}
    plan = load_reach(path)
    roles: dict[str, str] = {}
    for view in plan.views.values():
        source = view.source
        found = {key.name: JOIN_KEY for key in view.join_keys}
        found |= {source.timestamp_field: "event timestamp", source.created_field or "": "created timestamp"}
        if source.topic is not None and source.topic.event_id:
            found[source.topic.event_id] = "event id"
        for name, role in found.items():
            if name:
                roles.setdefault(name, role)
                for old, new in source.field_mapping.items():
                    if name in (old, new):
                        roles.setdefault(old, role)
                        roles.setdefault(new, role)
    features = {feature.name for view in plan.views.values() for feature in view.features}
    return {name: role for name, role in roles.items() if name not in features}


def source_paths(path: Path, repo: Path) -> dict[str, Path]:
    """Source -> its Parquet file or folder, of a plan file whose relative paths start at `repo`."""
    sources = {view.source.name: view.source.path for view in load_reach(path).views.values()}
    return {name: repo / found for name, found in sources.items() if found}
