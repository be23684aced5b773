"""Which columns has an event of a topic, by the views that read it, its schema and its contract?"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from featurestore.errors import DefinitionError
from featurestore.plan import Field, TimeUnit, Topic, View
from featurestore.topic_schema import declared_columns
from validation.contract import Contract
from validation.errors import did_you_mean

_LOGICAL: Final = {
    "string": "STRING",
    "integer": "INT64",
    "number": "DOUBLE",
    "boolean": "BOOL",
    "timestamp": "UNIX_TIMESTAMP",
    "date": "STRING",
    "time": "STRING",
}
"""ODCS logical types as Feast types; dates and times of day stay the text they are."""


class EventColumns:
    """The columns of one topic's events, as the producer names them.

    Raises DefinitionError where the views disagree about the topic, or an Avro or Protobuf schema lacks a column that a
    view reads.
    """

    def __init__(self, views: Sequence[View], contract: Contract | None) -> None:
        self.timestamp_field = _agreed(views, "timestamp field", lambda view: view.source.timestamp_field)
        topic = _agreed(views, "topic", lambda view: view.source.topic)
        if topic is None:
            raise DefinitionError(f"view {views[0].name!r} reads no topic; only stream views are decoded")
        self.topic: Topic = topic
        self.time_unit: TimeUnit = _agreed(views, "time unit", lambda view: view.source.time_unit) or "us"
        """In which unit integers are times, wherever the schema does not say it."""
        mapping = {new: old for view in views for old, new in view.source.field_mapping.items()}
        fields: dict[str, str] = {}
        keys: dict[str, str] = {}
        for view in views:
            for key in view.join_keys:
                _declare(keys, mapping.get(key.name, key.name), key.dtype, view)
            # What a view of latest values reads of an event are its features.
            for column in view.columns or view.features:
                name = mapping.get(column.name, column.name)
                _declare(fields, name, column.dtype, view)
        fields.update(keys)
        fields[self.timestamp_field] = "UNIX_TIMESTAMP"
        declared = {column.name: column.dtype for column in declared_columns(topic)}
        if topic.message_format != "json":
            _check_declared(topic.name, fields, declared)
        for name, dtype in declared.items():
            fields.setdefault(name, dtype)
        for promised in contract.columns if contract else ():
            if promised.name not in fields and promised.logical_type in _LOGICAL:
                fields[promised.name] = _LOGICAL[promised.logical_type]
        for name in (topic.event_id, topic.key_column):
            if name is not None:
                fields.setdefault(name, "STRING")
        self.fields = tuple(Field(name=name, dtype=dtype) for name, dtype in fields.items())
        """Every column of a row, with its Feast type, as the producer names it."""
        self.keys = {name: dtype for name, dtype in keys.items() if dtype in ("STRING", "INT32", "INT64")}
        """Join keys, with the type of their entity."""
        keyed = any(view.partitions == "keyed" for view in views)
        self.message_key = topic.key_column if keyed else None
        """The column that the message key repeats; None where nobody depends on it."""


def by_topic(views: Iterable[View]) -> dict[str, tuple[View, ...]]:
    """The stream views by the topic they read, in order of name; views that read none are left out."""
    found: dict[str, list[View]] = {}
    for view in sorted(views, key=lambda view: view.name):
        if view.source.topic is not None:
            found.setdefault(view.source.topic.name, []).append(view)
    return {topic: tuple(readers) for topic, readers in sorted(found.items())}


def _check_declared(topic: str, wanted: Iterable[str], declared: Mapping[str, str]) -> None:
    for name in wanted:
        if name not in declared:
            raise DefinitionError(
                f"topic {topic!r}: its schema has no column {name!r} of a type that a column can have; "
                + did_you_mean(name, declared)
            )


def _declare(fields: dict[str, str], name: str, dtype: str, view: View) -> None:
    if fields.setdefault(name, dtype) != dtype:
        raise DefinitionError(
            f"view {view.name!r} declares column {name!r} as {dtype}, another view of its topic as {fields[name]}; "
            "declare it alike in both"
        )


def _agreed(views: Sequence[View], what: str, of: Callable[[View], Any]) -> Any:
    found = of(views[0])
    for view in views[1:]:
        if of(view) != found:
            raise DefinitionError(
                f"views {views[0].name!r} and {view.name!r} read one topic and disagree about its {what}: "
                f"{found!r} and {of(view)!r}; let them share one source"
            )
    return found
