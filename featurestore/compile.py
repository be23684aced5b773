"""What does this Feast registry mean? Feast objects in, a Plan out; nothing is written.

The one place, with the plug-ins and `featurestore.apply`, that imports Feast. Whatever cannot be honoured exactly is
refused here, by name, before anything changes.
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import msgspec
from feast import Entity, FeatureService, FeatureStore, FeatureView, OnDemandFeatureView, StreamFeatureView
from feast.data_source import KafkaSource, PushSource
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.offline_stores.file_source import FileSource

from featurestore.clearance import withheld_of
from featurestore.compile_access import compile_permissions
from featurestore.compile_policy import compile_policy
from featurestore.contracts import contract_of
from featurestore.errors import DefinitionError
from featurestore.function_proof import prove
from featurestore.function_source import extract_source
from featurestore.personal import masked_contracts
from featurestore.plan import (
    Field,
    JoinKey,
    OnDemandView,
    Plan,
    Projection,
    Service,
    Source,
    View,
    definitions_digest,
)
from featurestore.plan_versions import Live, kept_in_force, version_of
from featurestore.plugins.definitions import feature_fields, is_windowed, resolve_aggregations
from featurestore.plugins.feast_sources import READ, lake_table, source_path, time_unit
from featurestore.plugins.topics import topic_of
from featurestore.plugins.transforms import transform_of
from featurestore.segments import segments_of
from featurestore.topic_schema import declared_columns
from featurestore.transform import on_demand_of
from validation.compiled.rows import compile_rows
from validation.contract import SERVICE, VIEW, Contract
from validation.errors import did_you_mean

log = logging.getLogger(__name__)

KEY_TYPES = ("STRING", "BYTES", "INT32", "INT64", "UNIX_TIMESTAMP")


class Definitions(NamedTuple):
    """The Feast objects of one project, inferences made (types of entities and features are known)."""

    entities: Sequence[Entity]
    views: Sequence[FeatureView]
    """Batch and stream feature views."""
    on_demand: Sequence[OnDemandFeatureView]
    services: Sequence[FeatureService]
    permissions: Sequence[Any] = ()
    """Feast's Permission objects."""


def registered(store: FeatureStore) -> Definitions:
    """What the registry of a Feast store holds; file and SQL registries alike."""
    return Definitions(
        entities=store.list_entities(),
        views=[*store.list_batch_feature_views(), *store.list_stream_feature_views()],
        on_demand=store.list_on_demand_feature_views(),
        services=store.list_feature_services(),
        permissions=store.list_permissions(),
    )


def compile_plan(
    project: str,
    definitions: Definitions,
    contracts: Iterable[Contract],
    *,
    previous: Plan | None,
    now_us: int,
    live: Live = lambda view: False,  # noqa: ARG005 - of nothing anything is known
    together: Iterable[Collection[str]] = (),
) -> Plan:
    """The Plan of these definitions; `previous` itself where nothing changed. A view that is `live` stays as it is.

    `together` are the sources that the contracts of one file are about: where one is known, those that are not are
    left out.

    Raises DefinitionError for whatever cannot be honoured: a window without a feature of its name, a hop that does
    not divide its window, a key of a type that cannot be one, user code that is not self-contained. Raises
    ContractError for a contract that cannot be kept: a rule that is to set events aside and needs more than one.
    """
    promised = list(contracts)
    views = {view.name: _view(view, definitions.entities, previous, promised) for view in definitions.views}
    on_demand = {view.name: _on_demand(view, views) for view in definitions.on_demand}
    services = {service.name: _service(service, views, on_demand) for service in definitions.services}
    draft = Plan(
        project=project,
        version=0,
        digest="",
        created_us=now_us,
        views=views,
        on_demand=on_demand,
        services=services,
        contracts=_contracts(promised, views, services, together),
        permissions=compile_permissions(
            definitions.permissions,
            views=[*definitions.views, *definitions.on_demand],
            services=definitions.services,
        ),
    )
    draft = msgspec.structs.replace(draft, contracts=masked_contracts(draft.contracts, views, services, draft))
    segments_of(draft, views.values())  # refuses what no column is
    draft = kept_in_force(draft, previous, live)
    digest = definitions_digest(draft)
    if previous is not None and previous.digest == digest:
        return previous
    return msgspec.structs.replace(draft, version=previous.version + 1 if previous else 1, digest=digest)


def _view(view: FeatureView, entities: Sequence[Entity], previous: Plan | None, contracts: Sequence[Contract]) -> View:
    source = _source(view)
    join_keys = _join_keys(view, entities)
    features = tuple(_field(field) for field in feature_fields(view))
    windowed = isinstance(view, StreamFeatureView) and is_windowed(view)
    columns: tuple[Field, ...] = ()
    aggregations: tuple[Any, ...] = ()
    declared = _event_columns(source)
    untouched = [*(key.name for key in join_keys), source.timestamp_field, source.created_field or ""]
    transform = transform_of(view, declared, untouched) if isinstance(view, StreamFeatureView) else None
    if transform is not None:
        prove(on_demand_of(view.name, transform), {}, exact=True)
        columns = transform.inputs
    if windowed:
        types = {column.name: column.dtype for column in [*declared, *(transform.outputs if transform else ())]}
        aggregations = resolve_aggregations(view, types)
        wanted = {key.name for key in join_keys} | {aggregation.column for aggregation in aggregations}
        columns = columns or tuple(column for column in declared if column.name in wanted)
    compiled = View(
        name=view.name,
        version=1,
        kind="windowed" if windowed else "latest",
        join_keys=join_keys,
        features=features,
        ttl_us=_microseconds(view.ttl),
        source=source,
        columns=columns,
        aggregations=aggregations,
        partitions=_partitions(source, join_keys),
        transform=transform,
        online=view.online,
        description=view.description,
        owner=view.owner,
        tags=dict(view.tags or {}),
    )
    compiled = msgspec.structs.replace(compiled, withheld=withheld_of(compiled, contract_of(contracts, source)))
    return msgspec.structs.replace(compiled, version=version_of(compiled, previous))


def _join_keys(view: FeatureView, entities: Sequence[Entity]) -> tuple[JoinKey, ...]:
    types = {field.name: field.dtype.to_value_type().name for field in view.entity_columns}
    by_name = {entity.name: entity for entity in entities}
    keys = []
    for name in view.entities:
        entity = by_name.get(name)
        if entity is None or entity.join_key == DUMMY_ENTITY_ID:
            continue
        dtype = types.get(entity.join_key) or entity.value_type.name
        if dtype not in KEY_TYPES:
            raise DefinitionError(
                f"view {view.name!r}: join key {entity.join_key!r} is {dtype}; a key is one of {', '.join(KEY_TYPES)};"
                " declare it in the view's schema"
            )
        keys.append(JoinKey(entity=name, name=entity.join_key, dtype=dtype))
    return tuple(sorted(keys, key=lambda key: key.name))


def _source(view: FeatureView) -> Source:
    batch = view.batch_source
    table = lake_table(batch)
    if not isinstance(batch, FileSource) and table is None:
        found = "none" if batch is None else type(batch).__name__
        raise DefinitionError(f"view {view.name!r}: its batch source is {found}; what is read: {READ}")
    stream = view.stream_source
    return Source(
        name=batch.name,
        path=source_path(batch),
        table=table,
        timestamp_field=batch.timestamp_field,
        created_field=batch.created_timestamp_column or None,
        field_mapping=dict(batch.field_mapping or {}),
        topic=topic_of(stream, Path.cwd()) if isinstance(stream, KafkaSource) else None,
        push=stream.name if isinstance(stream, PushSource) else "",
        time_unit=time_unit(batch, stream if isinstance(stream, KafkaSource) else None),
    )


def _partitions(source: Source, join_keys: Sequence[JoinKey]) -> Literal["keyed", "spread"]:
    keyed = source.topic is not None and [key.name for key in join_keys] == [source.topic.key_column]
    return "keyed" if keyed else "spread"


def _event_columns(source: Source) -> tuple[Field, ...]:
    """What the topic declares, as views name it."""
    declared = declared_columns(source.topic) if source.topic else ()
    return tuple(Field(name=source.field_mapping.get(each.name, each.name), dtype=each.dtype) for each in declared)


def _on_demand(view: OnDemandFeatureView, views: Mapping[str, View]) -> OnDemandView:
    if view.mode not in ("python", "pandas"):
        raise DefinitionError(f"on-demand view {view.name!r}: mode {view.mode!r}; expected 'python' or 'pandas'")
    compiled = OnDemandView(
        name=view.name,
        features=tuple(_field(field) for field in view.features),
        request=tuple(_field(field) for source in view.source_request_sources.values() for field in source.schema),
        inputs=tuple(_projection(each) for each in view.source_feature_view_projections.values()),
        mode=cast('Literal["python", "pandas"]', view.mode),
        singleton=bool(view.singleton),
        function=extract_source(view.feature_transformation.udf),
        description=view.description,
        owner=view.owner,
        tags=dict(view.tags or {}),
    )
    prove(compiled, views)
    return compiled


def _service(service: FeatureService, views: Mapping[str, View], on_demand: Mapping[str, OnDemandView]) -> Service:
    projections = tuple(_projection(each) for each in service.feature_view_projections)
    owners: dict[str, View | OnDemandView] = {**views, **on_demand}
    fields = {
        (each.name, field.name): field.dtype
        for each in projections
        if each.view in owners
        for field in owners[each.view].features
        if field.name in each.features
    }
    return Service(
        name=service.name,
        projections=projections,
        policy=compile_policy(service.name, service.tags or {}, fields),
        description=service.description,
        owner=service.owner,
        tags=dict(service.tags or {}),
    )


def _projection(projection: Any) -> Projection:  # Feast ships no types for it
    return Projection(
        view=projection.name,
        features=tuple(field.name for field in projection.features),
        alias=projection.name_alias or "",
        join_key_map=dict(projection.join_key_map or {}),
    )


def _contracts(
    contracts: Iterable[Contract],
    views: Mapping[str, View],
    services: Mapping[str, Service],
    together: Iterable[Collection[str]],
) -> dict[str, Contract]:
    known = {view.source.name for view in views.values()}
    known |= {view.source.topic.name for view in views.values() if view.source.topic}
    known |= {VIEW + name for name in views} | {SERVICE + name for name in services}
    by_name = {}
    left_out = {source for sources in together if known.intersection(sources) for source in sources} - known
    for contract in contracts:
        if contract.source in left_out:
            continue
        if contract.source not in known:
            raise DefinitionError(
                f"contract {contract.name!r} is about {contract.source!r}, which is no source of a view, no view "
                f"and no service; {did_you_mean(contract.source, known)}"
            )
        by_name[contract.name] = contract
    for view in views.values():
        if view.source.topic is not None and (kept := contract_of(by_name.values(), view.source)) is not None:
            compile_rows(kept.at("event"))  # here, not in the worker: what events cannot be held to is refused by name
    return by_name


def _field(field: Any) -> Field:  # Feast ships no types for it
    return Field(name=field.name, dtype=field.dtype.to_value_type().name)


def _microseconds(ttl: timedelta | None) -> int:
    return 0 if ttl is None else ttl // timedelta(microseconds=1)
