"""The times of Avro and Protobuf messages are what their schema says, and integers what the source says."""

import base64
import io
import json
from typing import Any

import fastavro
import msgspec
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from featurestore.plan import Source, Topic, View
from streaming.decode import Decoded, Decoder

NOON = 1_710_072_000_000_000


class Message(msgspec.Struct):
    value: bytes
    key: bytes | None = None


def decoded(topic: Topic, values: list[bytes], unit: Any = "") -> Decoded:
    source = Source(name="s", path="s", timestamp_field="ts", topic=topic, time_unit=unit)
    view = View(name="v", version=1, kind="windowed", join_keys=(), features=(), ttl_us=0, source=source)
    return Decoder([view]).decode([Message(value) for value in values])


def avro(kind: Any, value: Any, unit: Any = "") -> Decoded:
    schema = {"type": "record", "name": "R", "fields": [{"name": "ts", "type": kind}]}
    topic = Topic(name="t", bootstrap_servers="", message_format="avro", schema_text=json.dumps(schema))
    file = io.BytesIO()
    plain = {"type": "record", "name": "R", "fields": [{"name": "ts", "type": _bare(kind)}]}
    fastavro.schemaless_writer(file, fastavro.parse_schema(plain), {"ts": value})
    return decoded(topic, [file.getvalue()], unit)


def _bare(kind: Any) -> Any:
    if isinstance(kind, list):
        return [_bare(each) for each in kind]
    return kind["type"] if isinstance(kind, dict) else kind


@pytest.mark.parametrize(
    ("logical", "per_second"),
    [("timestamp-millis", 1_000), ("timestamp-micros", 1_000_000), ("timestamp-nanos", 1_000_000_000)],
)
@pytest.mark.parametrize("prefix", ["", "local-"])
@pytest.mark.parametrize("seconds", [NOON // 1_000_000, 0, -1])
def test_avro_says_the_unit_itself(logical: str, per_second: int, prefix: str, seconds: int) -> None:
    """Whatever the tag says, and of any year; a null is no timestamp."""
    kind = ["null", {"type": "long", "logicalType": prefix + logical}]
    for unit in ("", "ns"):
        assert avro(kind, seconds * per_second, unit).ts_us.tolist() == [seconds * 1_000_000]
    assert [bad.reason for bad in avro(kind, None).malformed] == ["no_timestamp"]


def test_an_avro_time_may_be_a_date_a_text_or_an_integer() -> None:
    """By the one table; an integer without a logical type is in the declared unit, else microseconds."""
    assert avro({"type": "int", "logicalType": "date"}, 19_792).ts_us.tolist() == [NOON - 43_200_000_000]
    assert avro("string", "2024-03-10 12:00").ts_us.tolist() == [NOON]
    assert avro("long", NOON).ts_us.tolist() == [NOON]
    assert avro("long", NOON // 1_000, "ms").ts_us.tolist() == [NOON]
    assert avro("double", NOON / 1_000_000, "s").ts_us.tolist() == [NOON]
    [bad] = avro("long", NOON // 1_000).malformed
    assert "time_unit: ms" in bad.detail


def protobuf(fields: list[tuple[str, int, str, int]]) -> tuple[Topic, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="m.proto", package="shop", syntax="proto3")
    file.dependency.append("google/protobuf/timestamp.proto")
    file.enum_type.add(name="State").value.add(name="OPEN", number=0)
    message = file.message_type.add(name="M")
    for number, (name, kind, type_name, label) in enumerate(fields, 1):
        message.field.add(name=name, number=number, type=kind, type_name=type_name or None, label=label)
    text = base64.b64encode(descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString()).decode()
    topic = Topic(name="t", bootstrap_servers="", message_format="protobuf", schema_text=text, message_type="shop.M")
    pool = descriptor_pool.DescriptorPool()
    stamp = descriptor_pb2.FileDescriptorProto()
    descriptor_pool.Default().FindFileByName("google/protobuf/timestamp.proto").CopyToProto(stamp)
    pool.Add(stamp)
    pool.Add(file)
    return topic, message_factory.GetMessageClass(pool.FindMessageTypeByName("shop.M"))


def test_a_protobuf_timestamp_is_no_integer_of_a_declared_unit() -> None:
    """Its nanoseconds are floored; 1970 is an instant where the schema says so; year 10000 is none."""
    topic, made = protobuf([("ts", 11, ".google.protobuf.Timestamp", 1)])
    values = []
    for seconds, nanos in ((NOON // 1_000_000, 1_999), (0, 0), (-1, 999_999_999), (1 << 40, 0)):
        message = made()
        message.ts.seconds, message.ts.nanos = seconds, nanos
        values.append(message.SerializeToString())
    found = decoded(topic, values, "ms")
    assert found.ts_us.tolist() == [NOON + 1, 0, -1]
    assert [(bad.index, bad.reason) for bad in found.malformed] == [(3, "wrong_type")]


def test_a_protobuf_list_of_an_imported_enum_holds_its_names() -> None:
    """As a single value does."""
    topic, made = protobuf([("ts", 3, "", 1), ("states", 14, ".shop.State", 3)])
    message = made()
    message.ts = NOON // 1_000
    message.states.extend([0, 7])
    found = decoded(topic, [message.SerializeToString()], "ms")
    assert found.ts_us.tolist() == [NOON], found.malformed
    assert found.rows[0].states == ["OPEN", "7"]
