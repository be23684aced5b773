"""What is a Feast view to the online store? The part of the Plan's View that rows and keys need."""

from typing import Any

from feast.feature_view import DUMMY_ENTITY_ID

from featurestore.plan import Field, JoinKey, Source, View
from featurestore.plugins.definitions import feature_fields


def latest_view(table: Any, key: Any = None) -> View:  # Feast ships no types for its views
    """A latest-value view as its Feast object declares it.

    `key` is an entity key of the table: what Feast makes up itself (precomputed vectors) declares no entities, and
    its keys are taken as they come.
    """
    declared = [
        (field.name, field.dtype.to_value_type().name) for field in getattr(table, "entity_columns", None) or []
    ]
    if not declared and key is not None:
        values = zip(key.join_keys, key.entity_values, strict=True)
        declared = [(name, _dtype(value)) for name, value in values]
    join_keys = [JoinKey(entity=name, name=name, dtype=dtype) for name, dtype in declared if name != DUMMY_ENTITY_ID]
    source = getattr(table, "batch_source", None)
    ttl = getattr(table, "ttl", None)
    return View(
        name=table.name,
        version=1,
        kind="latest",
        join_keys=tuple(sorted(join_keys, key=lambda each: each.name)),
        features=tuple(Field(name=f.name, dtype=f.dtype.to_value_type().name) for f in feature_fields(table)),
        ttl_us=round(ttl.total_seconds() * 1_000_000) if ttl else 0,
        source=Source(
            name=getattr(source, "name", "") or "",
            path="",
            timestamp_field=getattr(source, "timestamp_field", "") or "event_timestamp",
            created_field=getattr(source, "created_timestamp_column", None) or None,
            field_mapping=dict(getattr(source, "field_mapping", None) or {}),
        ),
    )


def _dtype(value: Any) -> str:
    return str(value.WhichOneof("val") or "string_val").removesuffix("_val").upper()
