"""Which columns do a topic's messages declare, whatever their format?

JSON: a list of `name type`, as Feast's documentation has it. Avro: a record schema. Protobuf: a set of file descriptors
and the message's name. Columns whose type no feature can have (maps, nested records, times of day) are left out;
whoever needs one is told that there is no such column.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from featurestore.aggregation.values import decimal_of
from featurestore.ddl import ddl_columns
from featurestore.errors import DefinitionError
from featurestore.plan import Field, Topic

INSTANTS: Final = frozenset(
    {"timestamp-millis", "timestamp-micros", "local-timestamp-millis", "local-timestamp-micros"}
)
"""Avro's logical types that are event times."""
_KEPT: Final = INSTANTS | {"date", "decimal"}
"""Any other logical type is read as the type below it."""
TIMESTAMP: Final = "google.protobuf.Timestamp"
_NO_LISTS: Final = ("UNIX_TIMESTAMP", "DATE")
_AVRO: Final = {
    "boolean": "BOOL",
    "int": "INT32",
    "long": "INT64",
    "float": "FLOAT",
    "double": "DOUBLE",
    "string": "STRING",
    "enum": "STRING",
    "bytes": "BYTES",
    "fixed": "BYTES",
}
_PROTO: Final[Mapping[int, str]] = {
    FieldDescriptor.CPPTYPE_BOOL: "BOOL",
    FieldDescriptor.CPPTYPE_INT32: "INT32",
    FieldDescriptor.CPPTYPE_UINT32: "INT64",
    FieldDescriptor.CPPTYPE_INT64: "INT64",
    FieldDescriptor.CPPTYPE_UINT64: "INT64",
    FieldDescriptor.CPPTYPE_FLOAT: "FLOAT",
    FieldDescriptor.CPPTYPE_DOUBLE: "DOUBLE",
    FieldDescriptor.CPPTYPE_ENUM: "STRING",
    FieldDescriptor.CPPTYPE_STRING: "STRING",
}
_WRAPPERS: Final = frozenset(
    f"google.protobuf.{kind}Value"
    for kind in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)


def declared_columns(topic: Topic) -> tuple[Field, ...]:
    """The columns of the topic's schema, in its order; raises DefinitionError for a schema that makes no sense.

    >>> ddl = Topic(name="t", bootstrap_servers="", message_format="json", schema_text="origin string, late bigint")
    >>> [(column.name, column.dtype) for column in declared_columns(ddl)]
    [('origin', 'STRING'), ('late', 'INT64')]
    >>> text = '{"type": "record", "name": "R", "fields": [{"name": "late", "type": ["null", "long"]}]}'
    >>> avro = Topic(name="t", bootstrap_servers="", message_format="avro", schema_text=text)
    >>> [(column.name, column.dtype) for column in declared_columns(avro)]
    [('late', 'INT64')]
    """
    if topic.message_format == "json":
        return ddl_columns(topic.schema_text, where=topic.name)
    if topic.message_format == "avro":
        fields = avro_schema(topic.schema_text, where=topic.name)["fields"]
        found = [(str(field["name"]), _avro_type(field["type"])) for field in fields]
    else:
        found = [(field.name, proto_type(field)) for field in proto_message(topic).fields]
    return tuple(Field(name=name, dtype=dtype) for name, dtype in found if dtype is not None)


def avro_schema(text: str, *, where: str) -> dict[str, Any]:
    """A record schema without the logical types that no column has; raises DefinitionError."""
    try:
        schema = _plain(msgspec.json.decode(text))
    except msgspec.MsgspecError as error:
        raise DefinitionError(f"topic {where!r}: its Avro schema is not JSON: {error}") from error
    if not isinstance(schema, dict) or schema.get("type") != "record" or not isinstance(schema.get("fields"), list):
        raise DefinitionError(f"topic {where!r}: its Avro schema is not a record: {text[:80]}")
    return schema


def _plain(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if isinstance(schema, dict):
        return {
            key: _plain(value)
            for key, value in schema.items()
            if key != "logicalType" or value in _KEPT or "nanos" in str(value)
        }
    return schema


def _avro_type(kind: Any) -> str | None:
    if isinstance(kind, list):
        others = [each for each in kind if each != "null"]
        return _avro_type(others[0]) if len(others) == 1 else None
    if isinstance(kind, dict):
        logical = kind.get("logicalType")
        if logical in INSTANTS:
            return "UNIX_TIMESTAMP"
        if logical == "date":
            return "DATE"
        if logical == "decimal":
            dtype = f"DECIMAL({kind.get('precision')},{kind.get('scale', 0)})"
            return dtype if _fits(dtype) else None
        if logical is not None:
            return None
        if kind.get("type") == "array":
            inner = _avro_type(kind.get("items"))
            return (
                None
                if inner is None or inner.endswith("_LIST") or inner.startswith("DECIMAL") or inner in _NO_LISTS
                else f"{inner}_LIST"
            )
        return _avro_type(kind.get("type"))
    return _AVRO.get(kind) if isinstance(kind, str) else None


def _fits(dtype: str) -> bool:
    try:
        return decimal_of(dtype) is not None
    except DefinitionError:
        return False


def proto_message(topic: Topic) -> Descriptor:
    """The descriptor of the topic's message; raises DefinitionError."""
    pool = descriptor_pool.DescriptorPool()
    try:
        files = descriptor_pb2.FileDescriptorSet.FromString(base64.b64decode(topic.schema_text, validate=True))
        for file in files.file:
            pool.Add(file)
        return pool.FindMessageTypeByName(topic.message_type)
    except (DecodeError, binascii.Error, TypeError, KeyError) as error:
        raise DefinitionError(
            f"topic {topic.name!r}: its descriptors define no message {topic.message_type!r}: {error}"
        ) from error


def proto_type(field: FieldDescriptor) -> str | None:
    """The Feast type of a field's values; None where no column has such."""
    if field.message_type is not None:
        name = field.message_type.full_name
        kind = proto_type(field.message_type.fields[0]) if name in _WRAPPERS else None
        kind = "UNIX_TIMESTAMP" if name == TIMESTAMP else kind
    else:
        binary = field.type == FieldDescriptor.TYPE_BYTES
        kind = "BYTES" if binary else _PROTO[field.cpp_type]
    if not field.is_repeated:
        return kind
    return None if kind is None or field.message_type is not None else f"{kind}_LIST"
