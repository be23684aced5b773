"""What does a Feast request ask of which sources? Feast's views in, the joins' views and scans out."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
from feast.repo_config import RepoConfig
from feast.type_map import pa_to_feast_value_type
from feast.utils import _get_requested_feature_views_to_features_dict

from featurestore.clearance import CLEARANCE, How, withheld_of
from featurestore.contracts import contract_of
from featurestore.errors import UnknownName, UsageError
from featurestore.offline.asof_view import AsOfView
from featurestore.offline.connection import Limits
from featurestore.offline.joined import WindowedView
from featurestore.offline.sources import Scan, local_path
from featurestore.offline.stored import (
    as_of_view,
    declared_types,
    needed_columns,
    time_columns,
    transformed_scan,
    withheld_scan,
)
from featurestore.plan import Field, Projection, Transform, View
from featurestore.plugins.definitions import feature_fields, is_windowed, resolve_aggregations
from featurestore.plugins.feast_sources import lake_table, scan_source
from featurestore.plugins.topics import HORIZON, topic_of
from featurestore.plugins.transforms import transform_of
from featurestore.plugins.views import latest_view
from featurestore.topic_schema import declared_columns
from validation.contract import load_contracts


class Wanted(msgspec.Struct, frozen=True):
    """A Feast view, what is asked of it, and the names its features get in the result."""

    view: Any
    projection: Projection
    names: Mapping[str, str]


def requested(refs: list[str], views: list[Any], on_demand: list[Any], *, full_feature_names: bool) -> list[Wanted]:
    try:
        requested, _ = _get_requested_feature_views_to_features_dict(refs, views, on_demand)
    except ValueError as error:
        raise UsageError(str(error)) from error
    wanted = []
    for view, features in requested.items():
        known = [field.name for field in feature_fields(view)]
        for position, name in enumerate(features):
            if name not in known:
                raise UnknownName(f"feature in view {view.name!r}", name, known)
            if name in features[:position]:
                raise UsageError(f"feature {view.projection.name_to_use()}:{name} is asked for twice")
        prefix = f"{view.projection.name_alias or view.name}__" if full_feature_names else ""
        projection = Projection(
            view=view.name,
            alias=view.projection.name_to_use(),
            features=tuple(features),
            join_key_map=dict(view.projection.join_key_map or {}),
        )
        wanted.append(Wanted(view, projection, {name: prefix + name for name in features}))
    return wanted


def entity_columns(wanted: Sequence[Wanted], on_demand: Iterable[Any]) -> set[str]:
    """The columns that the entity rows must have beside their instant: join keys, and what on-demand views ask for."""
    found = {
        each.projection.join_key_map.get(key.name, key.name)
        for each in wanted
        for key in latest_view(each.view).join_keys
    }
    for view in on_demand:
        for source in view.source_request_sources.values():
            found.update(field.name for field in source.schema)
    return found


def prepared(wanted: Sequence[Wanted], config: RepoConfig) -> tuple[list[AsOfView], list[WindowedView]]:
    latest, windowed = [], []
    for each in wanted:
        view, scan = stored_view(each.view, config)
        if view.kind == "windowed":
            windowed.append(WindowedView(view, each.projection, scan, each.names))
        elif scan is not None:
            latest.append(as_of_view(view, each.projection, scan, each.names))
    return latest, windowed


def stored_view(feast_view: Any, config: RepoConfig) -> tuple[View, Scan | None]:
    """A Feast view as the joins know it, and its source; no source where a topic's event log has no file yet."""
    source = feast_view.batch_source
    if source is None:
        raise UsageError(f"view {feast_view.name!r} has no batch source and no history")
    view = latest_view(feast_view)
    transform = _transform_of(feast_view, view, Path(config.repo_path))
    if not is_windowed(feast_view):
        view = msgspec.structs.replace(view, transform=transform)
        types, times = declared_types(view), time_columns(view)
        stored = scan_of(source, config, needed_columns(view), view=feast_view.name, times=times, declared=types)
        withheld = _withheld(feast_view, view, Path(config.repo_path))
        return view, withheld_scan(transformed_scan(view, stored, limits_of(config)), withheld)
    streamed = type(feast_view.stream_source).__name__ == "KafkaSource"
    scan = None if streamed and not any_file(source, config) else scan_of(source, config, [], view=feast_view.name)
    types = _event_types(feast_view, scan, Path(config.repo_path))
    if transform is not None:
        types |= {field.name: field.dtype for field in transform.outputs}
    aggregations = resolve_aggregations(feast_view, types)
    view = msgspec.structs.replace(view, kind="windowed", aggregations=aggregations, transform=transform)
    if streamed and HORIZON in (feast_view.stream_source.tags or {}):
        topic = topic_of(feast_view.stream_source, Path(config.repo_path))
        view = msgspec.structs.replace(view, source=msgspec.structs.replace(view.source, topic=topic))
    if scan is not None:
        types, times = declared_types(view), time_columns(view)
        scan = scan_of(source, config, needed_columns(view), view=feast_view.name, times=times, declared=types)
        scan = withheld_scan(scan, _withheld(feast_view, view, Path(config.repo_path)))
    return view, scan


def _withheld(feast_view: Any, view: View, repo: Path) -> dict[str, How]:
    """What is beyond the clearance of a view, as `apply` finds it."""
    tags = dict(feast_view.tags or {})
    if CLEARANCE not in tags or type(feast_view.stream_source).__name__ != "KafkaSource":
        return {}
    source = msgspec.structs.replace(view.source, topic=topic_of(feast_view.stream_source, repo))
    whole = msgspec.structs.replace(view, tags=tags, source=source)
    return withheld_of(whole, contract_of(load_contracts(repo / "contracts").values(), source))


def _transform_of(feast_view: Any, view: View, repo: Path) -> Transform | None:
    if getattr(feast_view, "udf", None) is None or type(feast_view.stream_source).__name__ != "KafkaSource":
        return None
    declared = [Field(name=name, dtype=dtype) for name, dtype in _event_types(feast_view, None, repo).items()]
    untouched = [*(key.name for key in view.join_keys), view.source.timestamp_field, view.source.created_field or ""]
    return transform_of(feast_view, declared, untouched)


def _event_types(feast_view: Any, scan: Scan | None, repo: Path) -> dict[str, str]:
    """The columns of a windowed view's events: as its topic declares them, else as its source has them."""
    mapping = feast_view.batch_source.field_mapping or {}
    if type(feast_view.stream_source).__name__ == "KafkaSource":
        declared = declared_columns(topic_of(feast_view.stream_source, repo))
        if declared:
            return {mapping.get(field.name, field.name): field.dtype for field in declared}
    columns = {} if scan is None else {field.name: field.type for field in scan.schema}
    return {mapping.get(name, name): dtype.name for name, dtype in value_types(columns).items()}


def value_types(columns: Mapping[str, pa.DataType]) -> dict[str, Any]:
    found = {}
    for name, dtype in columns.items():
        plain = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
        try:
            found[name] = pa_to_feast_value_type(str(plain))
        except KeyError:
            continue  # A type that Feast has no name for cannot be a feature.
    return found


def scan_of(
    source: Any,
    config: RepoConfig,
    columns: Iterable[str],
    view: str | None = None,
    times: Iterable[str] = (),
    *,
    declared: Mapping[str, str] | None = None,
) -> Scan:
    return scan_source(
        source,
        repo=Path(config.repo_path),
        columns=columns,
        missing_columns=config.offline_store.missing_columns,
        name=f"source {source.name!r}" + (f" of view {view!r}" if view else ""),
        limits=limits_of(config),
        times=times,
        declared=declared,
    )


def any_file(source: Any, config: RepoConfig) -> bool:
    """Whether anything was written to a source yet; a table was made by somebody."""
    if lake_table(source) is not None:
        return True
    root = local_path(source.path, Path(config.repo_path))
    return root.is_file() or any(root.rglob("*.parquet"))


def limits_of(config: RepoConfig) -> Limits:
    store = config.offline_store
    return Limits(
        memory=store.memory_limit,
        temp_dir=None if store.temp_directory is None else local_path(store.temp_directory, Path(config.repo_path)),
        threads=store.threads,
    )
