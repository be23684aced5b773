"""What does an Avro message hold, by column? Read under the schema it was written with, as the declared one says."""

import io
from collections.abc import Callable
from typing import Any

import fastavro
from fastavro.read import SchemaResolutionError
from fastavro.schema import SchemaParseException, UnknownType

from featurestore.errors import DefinitionError
from featurestore.plan import Topic
from featurestore.topic_schema import avro_schema
from streaming.messages import UNKNOWN_SCHEMA, Refused
from streaming.schema_registry import SchemaRegistry

_TORN = (EOFError, LookupError, ValueError, ArithmeticError, TypeError, StopIteration)
"""What fastavro raises for bytes that are no record of the schema."""


def avro_reader(topic: Topic, registry: SchemaRegistry | None) -> Callable[[bytes, int | None], dict[str, Any]]:
    """A function of a message's bytes and, where the wire format has one, its schema id.

    It raises Refused for an id that the registry does not have, ValueError for bytes that are no record, and TypeError
    where the record's schema cannot be read as the declared one. Raises DefinitionError for a declared schema that
    makes no sense.
    """
    try:
        declared = fastavro.parse_schema(avro_schema(topic.schema_text, where=topic.name))
    except (SchemaParseException, UnknownType) as error:
        raise DefinitionError(f"topic {topic.name!r}: its Avro schema cannot be used: {error}") from error
    written: dict[int, Any] = {}

    def schema_of(number: int) -> Any:
        assert registry is not None  # a decoder asks for one where the wire format needs it
        text = registry.schema(number)
        if text is None:
            raise Refused(UNKNOWN_SCHEMA, f"{registry} has no schema {number}")
        try:
            return fastavro.parse_schema(avro_schema(text, where=f"{topic.name} (schema {number})"))
        except (SchemaParseException, UnknownType, DefinitionError) as error:
            raise Refused(UNKNOWN_SCHEMA, f"schema {number} of {registry} is no Avro record: {error}") from error

    def read(value: bytes, number: int | None) -> dict[str, Any]:
        schema = declared
        if number is not None:
            schema = written.get(number)
            if schema is None:
                schema = written[number] = schema_of(number)
        file = io.BytesIO(value)
        try:
            found = fastavro.schemaless_reader(file, schema, None if schema is declared else declared)
        except SchemaResolutionError as error:
            raise TypeError(f"schema {number} cannot be read as the declared one: {error}") from error
        except _TORN as error:
            raise ValueError(f"no record of its schema ({type(error).__name__}: {error})") from error
        if file.tell() != len(value):
            raise ValueError(f"{len(value) - file.tell()} bytes after the record")
        assert isinstance(found, dict)  # the declared schema is a record
        return found

    return read
