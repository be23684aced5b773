"""What does a Protobuf message hold, by column?

A field that tells whether it was set is null where it was not; one that does not tell is what it reads as. Enums are
their names (an unknown number is its digits), wrappers what they wrap, timestamps instants to the microsecond.
"""

import datetime as dt
from collections.abc import Callable, Collection
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from featurestore.plan import Topic
from featurestore.topic_schema import TIMESTAMP, proto_message
from streaming.messages import UNKNOWN_SCHEMA, WRONG_TYPE, Refused
from streaming.schema_registry import SchemaRegistry

_MOST_NESTED = 64
_SCHEMAS = 10_000
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def proto_reader(
    topic: Topic, columns: Collection[str], registry: SchemaRegistry | None
) -> Callable[[bytes, int | None], dict[str, Any]]:
    """A function of a message's bytes and, where the wire format has one, its schema id; it gives these columns.

    It raises Refused for an id that the registry does not have and for another message of the schema's file,
    ValueError for bytes that are no message. Fields are known by their numbers: any version of the schema that keeps
    them can be read. Raises DefinitionError where the topic's descriptors make no sense.
    """
    descriptor = proto_message(topic)
    made = message_factory.GetMessageClass(descriptor)
    getters = [(field.name, _getter(field)) for field in descriptor.fields if field.name in columns]
    place = _place(descriptor)
    known: set[int] = set()

    def read(value: bytes, number: int | None) -> dict[str, Any]:
        if number is not None:
            if number not in known:
                if len(known) >= _SCHEMAS:
                    known.clear()
                assert registry is not None  # a decoder asks for one where the wire format needs it
                if registry.schema(number) is None:
                    raise Refused(UNKNOWN_SCHEMA, f"{registry} has no schema {number}")
                known.add(number)
            found, value = _split_place(value)
            if found != place:
                raise Refused(UNKNOWN_SCHEMA, f"message {found} of schema {number}, not {descriptor.full_name}")
        try:
            message = made.FromString(value)
        except DecodeError as error:
            raise ValueError(f"no {descriptor.full_name}: {error}") from error
        return {name: get(message) for name, get in getters}

    return read


def _getter(field: FieldDescriptor) -> Callable[[Any], Any]:
    name, kind = field.name, field.message_type
    if field.is_repeated and field.enum_type is not None:
        numbered = {number: value.name for number, value in field.enum_type.values_by_number.items()}
        return lambda message: [numbered.get(each, str(each)) for each in getattr(message, name)]
    if field.is_repeated:
        return lambda message: list(getattr(message, name))
    if kind is not None and kind.full_name == TIMESTAMP:
        # Nanoseconds are floored, and are never negative.
        def instant(message: Any) -> dt.datetime | None:
            if not message.HasField(name):
                return None
            found = getattr(message, name)
            try:
                return _EPOCH + dt.timedelta(seconds=found.seconds, microseconds=found.nanos // 1000)
            except OverflowError:
                raise Refused(WRONG_TYPE, f"{found.seconds} seconds are not within the years 1 to 9999") from None

        return instant
    if kind is not None:
        return lambda message: getattr(message, name).value if message.HasField(name) else None
    if field.enum_type is not None:
        names = {number: value.name for number, value in field.enum_type.values_by_number.items()}
        plain: Callable[[Any], Any] = lambda message: names.get(getattr(message, name), str(getattr(message, name)))  # noqa: E731
    else:
        plain = lambda message: getattr(message, name)  # noqa: E731
    if not field.has_presence:
        return plain
    return lambda message: plain(message) if message.HasField(name) else None


def _place(descriptor: Descriptor) -> list[int]:
    """Which message of its file it is: its index, after those of the messages around it."""
    around = descriptor.containing_type
    if around is None:
        return [list(descriptor.file.message_types_by_name).index(descriptor.name)]
    return [*_place(around), [each.name for each in around.nested_types].index(descriptor.name)]


def _split_place(value: bytes) -> tuple[list[int], bytes]:
    """The message index that Confluent's wire format has before a message: a count and as many numbers, zigzag."""
    count, at = _varint(value, 0)
    if count == 0:
        return [0], value[at:]
    if not 0 < count <= _MOST_NESTED:
        raise ValueError(f"a message index of {count} numbers")
    found = []
    for _ in range(count):
        number, at = _varint(value, at)
        found.append(number)
    return found, value[at:]


def _varint(value: bytes, at: int) -> tuple[int, int]:
    raw = shift = 0
    while True:
        if at >= len(value) or shift > 28:
            raise ValueError("its message index is torn")
        raw |= (value[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if value[at - 1] < 0x80:
            return (raw >> 1) ^ -(raw & 1), at
