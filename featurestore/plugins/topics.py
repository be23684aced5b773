"""Which topic does a Feast KafkaSource stand for, and what do its tags say of it?

message_key: COLUMN              the column whose value is the message key
partitions: NUMBER               how many the topic has; with message_key, where an event of a key must lie
partitioner: murmur2_random      how producers place keys; there is no other here
event_id: COLUMN                 the column that identifies an event
event_id_horizon_s: SECONDS      how long its repeats are duplicates; without it all of them count
event_id_scope: partition        ids need only be unique within a partition: no message key says where a repeat goes
dead_letters: TOPIC              where events go that were set aside; `off`: nowhere; without it, `<topic>.dead`
wire_format: confluent           messages begin with a magic byte and a schema id, which a schema registry resolves
"""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final, Literal, cast

import msgspec

from featurestore.errors import DefinitionError
from featurestore.plan import Field, Topic
from featurestore.plugins.proto_classes import described
from featurestore.topic_schema import declared_columns

HORIZON: Final = "event_id_horizon_s"
EVENT_ID_SCOPE: Final = "event_id_scope"
DEAD_LETTERS: Final = "dead_letters"
_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
_FORMATS: Final = {"JsonFormat": "json", "AvroFormat": "avro", "ProtoFormat": "protobuf"}
_ID_TYPES: Final = ("STRING", "BYTES", "INT32", "INT64")
_LONGEST_S: Final = 366 * 86_400
_MOST_PARTITIONS: Final = 100_000


def topic_of(stream: Any, repo: Path) -> Topic:  # Feast ships no types for it
    """The topic of a KafkaSource of a repo; raises DefinitionError for what cannot be honoured."""
    options = stream.kafka_options
    kind = _FORMATS.get(type(options.message_format).__name__)
    if kind is None:
        raise DefinitionError(
            f"source {stream.name!r}: message format {type(options.message_format).__name__}; "
            f"expected one of {', '.join(_FORMATS)}"
        )
    tags = stream.tags or {}
    wire = tags.get("wire_format", "plain")
    if wire not in ("plain", "confluent"):
        raise DefinitionError(f"source {stream.name!r}: tag wire_format is {wire!r}; expected plain or confluent")
    schema, message = getattr(options.message_format, "schema_json", ""), ""
    if kind == "protobuf":
        schema, message = described(options.message_format.class_path, repo, where=stream.name)
    topic = Topic(
        name=options.topic,
        bootstrap_servers=options.kafka_bootstrap_servers or "",
        message_format=cast('Literal["json", "avro", "protobuf"]', kind),
        schema_text=schema,
        message_type=message,
        wire_format=cast('Literal["plain", "confluent"]', wire),
        event_id=tags.get("event_id"),
        key_column=tags.get("message_key"),
        partitions=_partitions(stream.name, tags),
        dead_letters=_dead_letters(stream.name, options.topic, tags),
    )
    horizon_us = _horizon_us(stream.name, tags, declared_columns(topic))
    _check_event_id(stream.name, tags)
    return msgspec.structs.replace(topic, event_id_horizon_us=horizon_us)


def _check_event_id(source: str, tags: Mapping[str, str]) -> None:
    """Refuse an event id whose repeats may reach another partition, where they would count twice in silence."""
    scope, event_id = tags.get(EVENT_ID_SCOPE), tags.get("event_id")
    if scope is not None and (scope != "partition" or event_id is None):
        raise DefinitionError(
            f"source {source!r}: tag {EVENT_ID_SCOPE} is {scope!r}; expected partition, beside the tag event_id"
        )
    if event_id is not None and scope is None and not tags.get("message_key"):
        raise DefinitionError(
            f"source {source!r}: event id {event_id!r} without a message key: repeats of an event are found within a "
            "partition, and without a key a repeat may go to another one and count twice; name the column that is the "
            f"message key (tag message_key), or say that ids are unique within a partition (tag {EVENT_ID_SCOPE}: "
            "partition)"
        )


def _partitions(source: str, tags: Mapping[str, str]) -> int | None:
    partitioner, text = tags.get("partitioner", "murmur2_random"), tags.get("partitions")
    if partitioner != "murmur2_random":
        raise DefinitionError(
            f"source {source!r}: tag partitioner is {partitioner!r}; expected murmur2_random, Kafka's Java client's"
        )
    if text is None:
        return None
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_PARTITIONS or "message_key" not in tags:
        raise DefinitionError(
            f"source {source!r}: tag partitions is {text!r}; expected a number from 1 to {_MOST_PARTITIONS}, beside "
            "the tag message_key"
        )
    return int(text)


def _dead_letters(source: str, topic: str, tags: Mapping[str, str]) -> str | None:
    named = tags.get(DEAD_LETTERS)
    if named is None or named == "off":
        return None if named is None else ""
    if not _TOPIC.fullmatch(named) or named == topic:
        raise DefinitionError(
            f"source {source!r}: tag {DEAD_LETTERS} is {named!r}; expected the name of another topic than {topic!r} "
            "(letters, digits, full stops, _ and -), or off"
        )
    return named


def _horizon_us(source: str, tags: Mapping[str, str], columns: Sequence[Field]) -> int | None:
    text = tags.get(HORIZON)
    if text is None:
        return None
    event_id = tags.get("event_id")
    if event_id is None:
        raise DefinitionError(
            f"source {source!r}: tag {HORIZON} without tag event_id; name the column that identifies an event"
        )
    for column in columns:
        if column.name == event_id and column.dtype not in _ID_TYPES:
            raise DefinitionError(
                f"source {source!r}: event id {event_id!r} is {column.dtype}; an id is one of {', '.join(_ID_TYPES)}"
            )
    try:
        seconds = Decimal(text)
    except InvalidOperation:
        seconds = Decimal("NaN")
    if not seconds.is_finite() or not 0 < seconds <= _LONGEST_S or seconds * 1_000_000 % 1:
        raise DefinitionError(
            f"source {source!r}: tag {HORIZON} is {text!r}; expected seconds, more than 0 and at most {_LONGEST_S} "
            "(366 days), with at most six decimals; without the tag every event counts"
        )
    return int(seconds * 1_000_000)
