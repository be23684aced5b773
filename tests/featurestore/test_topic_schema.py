"""A term that a schema defines once is read wherever it is named again."""

import base64
import json
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from featurestore.errors import DefinitionError
from featurestore.plan import Topic
from featurestore.topic_schema import declared_columns

STATE = {"type": "enum", "name": "State", "symbols": ["OPEN", "DONE"]}


def avro(*fields: dict[str, Any], **record: Any) -> dict[str, str]:
    schema = {"type": "record", "name": "Trip", "namespace": "com.example", "fields": list(fields), **record}
    topic = Topic(name="trips", bootstrap_servers="", message_format="avro", schema_text=json.dumps(schema))
    return {column.name: column.dtype for column in declared_columns(topic)}


@pytest.mark.parametrize("again", ["State", "com.example.State", ["null", "State"], {"type": "State"}])
def test_an_avro_type_that_is_named_again_is_a_column(again: Any) -> None:
    """By its short name, its full one, in a union, and as a type of its own."""
    found = avro({"name": "before", "type": STATE}, {"name": "after", "type": again})
    assert found == {"before": "STRING", "after": "STRING"}


def test_an_avro_type_keeps_its_logical_type_where_it_is_named_again() -> None:
    """A decimal by name is a decimal, not bytes."""
    money = {
        "type": "fixed", "name": "Money", "size": 8, "logicalType": "decimal", "precision": 10, "scale": 2,
    }  # fmt: skip
    found = avro({"name": "net", "type": money}, {"name": "gross", "type": ["null", "Money"]})
    assert found == {"net": "DECIMAL(10,2)", "gross": "DECIMAL(10,2)"}


def test_an_avro_type_may_be_defined_within_a_record_of_another_namespace() -> None:
    """The namespace of what is around it counts, a namespace of its own counts more."""
    inner = {"type": "record", "name": "org.other.Leg", "fields": [{"name": "state", "type": STATE}]}
    found = avro({"name": "leg", "type": inner}, {"name": "state", "type": "org.other.State"})
    assert found == {"state": "STRING"}
    with pytest.raises(DefinitionError, match="'State' and does not define it"):
        avro({"name": "leg", "type": inner}, {"name": "state", "type": "State"})


def test_an_avro_list_of_a_type_that_is_named_again_is_a_column() -> None:
    """Lists go by the type of their items."""
    found = avro({"name": "one", "type": STATE}, {"name": "all", "type": {"type": "array", "items": "State"}})
    assert found == {"one": "STRING", "all": "STRING_LIST"}


def test_an_avro_type_that_holds_itself_is_refused_by_name() -> None:
    """Neither read for ever nor dropped in silence."""
    with pytest.raises(DefinitionError, match="'Trip' holds itself"):
        avro({"name": "id", "type": "long"}, {"name": "next", "type": ["null", "Trip"]})


def protobuf(*files: descriptor_pb2.FileDescriptorProto) -> dict[str, str]:
    text = base64.b64encode(descriptor_pb2.FileDescriptorSet(file=files).SerializeToString()).decode()
    topic = Topic(
        name="trips", bootstrap_servers="", message_format="protobuf", schema_text=text, message_type="shop.Trip"
    )
    return {column.name: column.dtype for column in declared_columns(topic)}


def test_protobuf_imports_are_read_in_any_order_and_googles_own_need_no_file() -> None:
    """Tools write descriptor sets in any order, and leave well-known types out."""
    state = descriptor_pb2.FileDescriptorProto(name="state.proto", package="shop", syntax="proto3")
    state.enum_type.add(name="State").value.add(name="OPEN", number=0)
    trip = descriptor_pb2.FileDescriptorProto(name="trip.proto", package="shop", syntax="proto3")
    trip.dependency.extend(["state.proto", "google/protobuf/timestamp.proto", "google/protobuf/wrappers.proto"])
    message = trip.message_type.add(name="Trip")
    for number, (name, kind, type_name) in enumerate(
        [
            ("state", 14, ".shop.State"),
            ("at", 11, ".google.protobuf.Timestamp"),
            ("fare", 11, ".google.protobuf.DoubleValue"),
        ],
        1,
    ):
        message.field.add(name=name, number=number, type=kind, type_name=type_name, label=1)
    assert protobuf(trip, state) == {"state": "STRING", "at": "UNIX_TIMESTAMP", "fare": "DOUBLE"}


def test_a_protobuf_import_that_nobody_has_is_refused() -> None:
    """The error names the topic and the file."""
    trip = descriptor_pb2.FileDescriptorProto(name="trip.proto", package="shop", syntax="proto3")
    trip.dependency.append("lost.proto")
    with pytest.raises(DefinitionError, match=r"'trips'.*lost\.proto"):
        protobuf(trip)
