"""Which columns do a topic's messages declare, whatever their format?

JSON: a list of `name type`, as Feast's documentation has it. Avro: a record schema. Protobuf: a set of file descriptors
and the message's name. A type that is defined once and named again (Avro's named types, Protobuf's imports) is read
wherever it is named. Columns whose type no feature can have (maps, nested records, times of day) are left out;
whoever needs one is told that there is no such column.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from featurestore.aggregation.values import decimal_of
from featurestore.ddl import ddl_columns
from featurestore.errors import DefinitionError
from featurestore.plan import Field, Topic

NANOS: Final = frozenset({"timestamp-nanos", "local-timestamp-nanos"})
INSTANTS: Final = NANOS | {"timestamp-millis", "timestamp-micros", "local-timestamp-millis", "local-timestamp-micros"}
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
_COMPLEX: Final = frozenset({"null", "record", "error", "array", "map"})
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
_KNOWN_FILES: Final = {each.DESCRIPTOR.name: each.DESCRIPTOR for each in (duration_pb2, timestamp_pb2, wrappers_pb2)}
"""Google's own files, which tools leave out of what they write."""
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
        schema = avro_schema(topic.schema_text, where=topic.name)
        terms = _named(schema, "", topic.name)
        found = [
            (str(field["name"]), _avro_type(field["type"], _Scope(terms, _space(schema, ""))))
            for field in schema["fields"]
        ]
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
        return {key: _plain(value) for key, value in schema.items() if key != "logicalType" or value in _KEPT}
    return schema


class _Scope(NamedTuple):
    """What a name within an Avro schema stands for."""

    terms: Mapping[str, Any]
    """Full name -> the definition."""
    namespace: str

    def term(self, name: str) -> Any:
        """The definition of a name that is used again; None for one that is not defined."""
        full = name if "." in name or not self.namespace else f"{self.namespace}.{name}"
        return self.terms.get(full, self.terms.get(name))


def _space(kind: Mapping[str, Any], around: str) -> str:
    """The namespace of what stands within a named type."""
    name = str(kind.get("name", ""))
    return name.rpartition(".")[0] if "." in name else str(kind.get("namespace", around) or "")


def _named(kind: Any, namespace: str, where: str) -> dict[str, Any]:
    """Every named type of an Avro schema by its full name; raises DefinitionError for one that holds itself."""
    found: dict[str, Any] = {}
    _gather(kind, namespace, where, found, ())
    return found


def _gather(kind: Any, namespace: str, where: str, found: dict[str, Any], within: tuple[str, ...]) -> None:
    if isinstance(kind, list):
        for each in kind:
            _gather(each, namespace, where, found, within)
    elif isinstance(kind, str):
        full = kind if "." in kind or not namespace else f"{namespace}.{kind}"
        if full in within or kind in within:
            raise DefinitionError(
                f"topic {where!r}: Avro type {kind!r} holds itself, and no column can; leave the field out of the "
                "schema, or give it a type of its own"
            )
        if kind not in _AVRO and kind not in _COMPLEX and full not in found and kind not in found:
            raise DefinitionError(f"topic {where!r}: its Avro schema uses the type {kind!r} and does not define it")
    elif isinstance(kind, dict):
        if kind.get("type") in ("record", "error", "enum", "fixed"):
            space = _space(kind, namespace)
            name = str(kind.get("name", "")).rpartition(".")[2]
            full = f"{space}.{name}" if space else name
            found[full] = kind
            fields = kind.get("fields")
            for field in fields if isinstance(fields, list) else ():
                if isinstance(field, dict):
                    _gather(field.get("type"), space, where, found, (*within, full))
        else:
            for part in ("type", "items", "values"):
                if part in kind:
                    _gather(kind[part], namespace, where, found, within)


def _avro_type(kind: Any, scope: _Scope) -> str | None:
    if isinstance(kind, list):
        others = [each for each in kind if each != "null"]
        return _avro_type(others[0], scope) if len(others) == 1 else None
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
            inner = _avro_type(kind.get("items"), scope)
            return (
                None
                if inner is None or inner.endswith("_LIST") or inner.startswith("DECIMAL") or inner in _NO_LISTS
                else f"{inner}_LIST"
            )
        return _avro_type(kind.get("type"), scope)
    if not isinstance(kind, str):
        return None
    return _AVRO.get(kind) or (None if (term := scope.term(kind)) is None else _avro_type(term, scope))


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
        _add(pool, {file.name: file for file in files.file})
        return pool.FindMessageTypeByName(topic.message_type)
    except (DecodeError, binascii.Error, TypeError, KeyError) as error:
        raise DefinitionError(
            f"topic {topic.name!r}: its descriptors define no message {topic.message_type!r}: {error}"
        ) from error


def _add(pool: descriptor_pool.DescriptorPool, files: Mapping[str, descriptor_pb2.FileDescriptorProto]) -> None:
    """Each file after those that it imports, in whatever order they come; Google's own need not be among them."""
    added: set[str] = set()

    def add(name: str) -> None:
        if name in added:
            return
        added.add(name)
        file = files.get(name)
        if file is None:
            file = descriptor_pb2.FileDescriptorProto()
            _KNOWN_FILES[name].CopyToProto(file)
        for imported in file.dependency:
            add(imported)
        pool.Add(file)

    for name in files:
        add(name)


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
