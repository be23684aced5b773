"""What does an Avro message hold, by column? Read under the schema it was written with, as the declared one says."""

import datetime as dt
import io
from collections.abc import Callable
from typing import Any

import fastavro
from fastavro.read import SchemaResolutionError
from fastavro.schema import SchemaParseException, UnknownType

from featurestore.errors import DefinitionError
from featurestore.plan import Topic
from featurestore.topic_schema import NANOS, avro_schema
from streaming.avro_guard import bound_decimals, check_schema, guard
from streaming.messages import UNKNOWN_SCHEMA, Refused
from streaming.schema_registry import SchemaRegistry

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_TORN = (EOFError, LookupError, ValueError, ArithmeticError, TypeError, StopIteration)
"""What fastavro raises for bytes that are no record of the schema."""
_SCHEMAS = 1_000
"""Schemas that are remembered; beyond it all are forgotten, so that memory stays bounded."""
Check = Callable[[bytes], None] | None


def avro_reader(topic: Topic, registry: SchemaRegistry | None) -> Callable[[bytes, int | None], dict[str, Any]]:
    """A function of a message's bytes and, where the wire format has one, its schema id.

    It raises Refused for an id that the registry does not have, ValueError for bytes that are no record, and TypeError
    where the record's schema cannot be read as the declared one. Raises DefinitionError for a declared schema that
    makes no sense.
    """
    bound_decimals()
    try:
        declared, check_declared = _parsed(topic.schema_text, topic.name)
    except (SchemaParseException, UnknownType) as error:
        raise DefinitionError(f"topic {topic.name!r}: its Avro schema cannot be used: {error}") from error
    written = _Written(topic.name, declared, registry)
    nanos = _in_nanoseconds(declared["fields"])

    def read(value: bytes, number: int | None) -> dict[str, Any]:
        schema, check = declared, check_declared
        if number is not None:
            schema, check = written.of(number)
        if check is not None:
            check(value)
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
        return found | {name: _instant(found[name]) for name in nanos}

    return read


def _in_nanoseconds(fields: list[dict[str, Any]]) -> list[str]:
    """The fields of the logical types that the library leaves as integers."""
    found = []
    for field in fields:
        kinds = field["type"] if isinstance(field["type"], list) else [field["type"]]
        if any(isinstance(kind, dict) and kind.get("logicalType") in NANOS for kind in kinds):
            found.append(str(field["name"]))
    return found


def _instant(nanoseconds: int | None) -> dt.datetime | None:
    """Every 64-bit number of nanoseconds is within the calendar; floored to microseconds."""
    return None if nanoseconds is None else _EPOCH + dt.timedelta(microseconds=nanoseconds // 1000)


def _parsed(text: str, where: str, reader: Any = None) -> tuple[Any, Check]:
    """A schema as the decoder takes it, and what looks at messages first; `reader` is what it is read as, if another.

    Raises DefinitionError, and what fastavro raises for a schema that makes no sense.
    """
    check_schema(text, where=where)
    schema = fastavro.parse_schema(avro_schema(text, where=where))
    return schema, guard(schema, skips=reader is not None and schema != reader)


class _Written:
    """The schemas that messages name by their ids, each asked for once."""

    def __init__(self, topic: str, declared: Any, registry: SchemaRegistry | None) -> None:
        self._topic, self._declared, self._registry = topic, declared, registry
        self._known: dict[int, tuple[Any, Check]] = {}
        self._useless: dict[int, str] = {}
        """Schemas that are there and cannot be used, and why: their messages come again and again."""

    def of(self, number: int) -> tuple[Any, Check]:
        """A schema and what looks at its messages first; raises Refused, SourceUnavailable."""
        found = self._known.get(number)
        if found is None:
            if len(self._known) >= _SCHEMAS:
                self._known.clear()
            found = self._known[number] = self._asked(number)
        return found

    def _asked(self, number: int) -> tuple[Any, Check]:
        if number in self._useless:
            raise Refused(UNKNOWN_SCHEMA, self._useless[number])
        registry = self._registry
        assert registry is not None  # a decoder asks for one where the wire format needs it
        text = registry.schema(number)
        if text is None:
            raise Refused(UNKNOWN_SCHEMA, f"{registry} has no schema {number}")
        try:
            return _parsed(text, f"{self._topic} (schema {number})", self._declared)
        except (SchemaParseException, UnknownType, DefinitionError, *_TORN, RecursionError) as error:
            if len(self._useless) >= _SCHEMAS:
                self._useless.clear()
            why = self._useless[number] = f"schema {number} of {registry} is no Avro record: {str(error)[:300]}"
            raise Refused(UNKNOWN_SCHEMA, why) from error
