"""Does an event mean the same whether it comes as JSON, Avro or Protobuf?"""

import base64
import datetime as dt
import decimal
import io
import json
import random
import struct
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import fastavro
import msgspec
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import ConfigurationError, DefinitionError
from featurestore.topic_schema import declared_columns
from streaming.decode import Decoder
from streaming.http_registry import HttpRegistry
from streaming.pipeline import TopicPipeline
from streaming.rehearsal import START_US, TOPIC, shop_contract, shop_event, shop_plan
from streaming.schema_registry import FirstAnswers, FolderRegistry, registry_of
from streaming.source.records import Batch, Record, SourceUnavailable
from validation.place import place_of

INSTANT = {"type": "long", "logicalType": "timestamp-micros"}
AVRO = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": name, "type": ["null", kind], "default": None}
        for name, kind in {
            "event_id": "string",
            "event_timestamp": INSTANT,
            "user_id": "long",
            "amount": "double",
            "quantity": "long",
            "currency": "string",
            "country": "string",
            "page": "string",
            "discount": "double",
            "device": "string",
        }.items()
    ],
}
_PROTO_TYPES = {"string": 9, "long": 3, "double": 1}


def proto_files():
    """Descriptors as protoc would make them: google's Timestamp and the shop's order, every field optional."""
    file = descriptor_pb2.FileDescriptorProto(name="orders.proto", package="shop", syntax="proto3")
    file.dependency.append("google/protobuf/timestamp.proto")
    file.message_type.add(name="Other")
    order = file.message_type.add(name="Order")
    for number, field in enumerate(AVRO["fields"], start=1):
        kind = field["type"][1]
        made = order.field.add(name=field["name"], number=number, label=1)
        if kind is INSTANT:
            made.type, made.type_name = 11, ".google.protobuf.Timestamp"
        else:
            made.type, made.proto3_optional, made.oneof_index = _PROTO_TYPES[kind], True, len(order.oneof_decl)
            order.oneof_decl.add(name=f"_{field['name']}")
    files = descriptor_pb2.FileDescriptorSet()
    timestamp_pb2.DESCRIPTOR.CopyToProto(files.file.add())
    files.file.add().CopyFrom(file)
    return files


def proto_class(files):
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("shop.Order"))


ORDER = proto_class(proto_files())
SCHEMAS = {
    "json": {},
    "avro": {"schema_text": json.dumps(AVRO)},
    "protobuf": {
        "schema_text": base64.b64encode(proto_files().SerializeToString()).decode(),
        "message_type": "shop.Order",
    },
}


def avro(event):
    file = io.BytesIO()
    fastavro.schemaless_writer(file, fastavro.parse_schema(AVRO), event)
    return file.getvalue()


def proto(event):
    message = ORDER()
    for name, value in event.items():
        if value is not None and name == "event_timestamp":
            message.event_timestamp.FromMicroseconds(value)
        elif value is not None:
            setattr(message, name, value)
    return message.SerializeToString()


ENCODE = {"json": msgspec.json.encode, "avro": avro, "protobuf": proto}


def views(message_format, **more):
    view = shop_plan(keyed=True).view("user_orders")
    topic = msgspec.structs.replace(
        view.source.topic, message_format=message_format, **{**SCHEMAS[message_format], **more}
    )
    return [msgspec.structs.replace(view, source=msgspec.structs.replace(view.source, topic=topic))]


def orders(count=200):
    """Orders, sound ones and such that break a rule, lack a key or a time, or are dated ahead."""
    rng = random.Random(5)
    changes = (
        *({},) * 8,
        {"amount": -1.0},
        {"amount": 1e300},
        {"currency": "XXX"},
        {"user_id": None},
        {"event_id": None},
        {"quantity": 0},
        {"page": "relative"},
        {"event_timestamp": None},
        {"event_timestamp": START_US + 3_600_000_000},
        {"event_timestamp": 631_152_000_000_000},  # 1990
        {"country": ""},
        {"country": "DEU", "discount": 2.0},
    )
    for number in range(count):
        sound = msgspec.json.decode(shop_event(rng, number, START_US - number * 1_000_001, 20))
        yield sound | rng.choice(changes)


def judge(message_format, values, keys, **options):
    pipeline = TopicPipeline(views(message_format, **options.pop("topic", {})), shop_contract(), **options)
    records = [
        Record(0, offset, key, value, START_US) for offset, (key, value) in enumerate(zip(keys, values, strict=True))
    ]
    return pipeline.judge(Batch(TOPIC, "id", 0, records, 0, len(records)))


@pytest.mark.parametrize("message_format", ["avro", "protobuf"])
def test_the_same_events_have_the_same_fate_and_rows(message_format):
    """Verdicts, rules, event times and the event log's columns do not depend on the format."""
    events = list(orders())
    keys = [b"" if event["user_id"] is None else str(event["user_id"]).encode() for event in events]
    expected = judge("json", map(ENCODE["json"], events), keys)
    found = judge(message_format, map(ENCODE[message_format], events), keys)
    assert len(expected.events) > 80
    assert len({item.reason for item in expected.rejected}) >= 4
    assert found.events.equals(expected.events)
    assert np.array_equal(found.ts_us, expected.ts_us)
    told = [(item.record.offset, item.reason, item.rule_ids) for item in found.rejected]
    assert told == [(item.record.offset, item.reason, item.rule_ids) for item in expected.rejected]
    assert found.warned == expected.warned


def test_all_formats_declare_the_same_columns():
    """The columns that joins and views are told are those of the schema."""
    wanted = {field["name"] for field in AVRO["fields"]}
    for message_format in ("avro", "protobuf"):
        topic = views(message_format)[0].source.topic
        found = {column.name: column.dtype for column in declared_columns(topic)}
        assert found.keys() == wanted
        assert (found["event_timestamp"], found["user_id"], found["amount"]) == ("UNIX_TIMESTAMP", "INT64", "DOUBLE")


class Text(msgspec.Struct):
    value: bytes
    key: bytes | None = b"7"


SOUND = {"event_timestamp": START_US, "user_id": 7, "amount": 1.0}


def fates(message_format, values, **options):
    """'row', or the reason why there is none, of each message."""
    registry = options.pop("registry", None)
    found = Decoder(views(message_format, **options), registry=registry).decode([Text(value) for value in values])
    reasons = {bad.index: bad.reason for bad in found.malformed}
    return [reasons.get(place, "row") for place in range(len(values))]


@pytest.mark.parametrize(
    ("message_format", "values", "expected"),
    [
        ("avro", [avro(SOUND), b"", None, avro(SOUND)], ["row", "empty", "empty", "row"]),
        ("avro", [avro(SOUND)[:-3], avro(SOUND) * 2, b"\xff" * 40, avro(SOUND)], ["malformed"] * 3 + ["row"]),
        (
            "avro",
            [avro({**SOUND, "event_timestamp": None}), avro({**SOUND, "user_id": 8})],
            ["no_timestamp", "key_mismatch"],
        ),
        ("protobuf", [proto(SOUND), b"", None, proto(SOUND)], ["row", "empty", "empty", "row"]),
        ("protobuf", [proto(SOUND)[:-3], b"\xff" * 40, b'{"user_id": 7}'], ["malformed"] * 3),
        (
            "protobuf",
            [proto({**SOUND, "event_timestamp": None}), proto({**SOUND, "user_id": 8})],
            ["no_timestamp", "key_mismatch"],
        ),
    ],
)
def test_each_bad_message_is_set_aside_and_its_neighbours_pass(message_format, values, expected):
    """Torn, two documents, nothing, no time, another's key: each has its reason."""
    assert fates(message_format, values) == expected


@pytest.mark.parametrize("message_format", ["avro", "protobuf"])
@given(data=st.data())
def test_no_bytes_stop_a_decoder(message_format, data):
    """Whatever the bytes, a message is a row or has a reason, and the sound one after it passes."""
    sound = bytearray(ENCODE[message_format](SOUND))
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(sound)))
        sound[place:place] = data.draw(st.binary(max_size=12))
        place = data.draw(st.integers(0, len(sound)))
        del sound[place : place + data.draw(st.integers(0, 3))]
    damaged = bytes(sound[: data.draw(st.integers(0, len(sound)))])
    assert fates(message_format, [damaged, ENCODE[message_format](SOUND)])[1] == "row"


def framed(number, value):
    return struct.pack(">bI", 0, number) + value


@pytest.fixture
def registry(tmp_path):
    """7 is the declared schema, 8 an older one without a device and with another order of fields, 9 no record."""
    folder = tmp_path / "registry"
    folder.mkdir()
    older = {**AVRO, "fields": [field for field in reversed(AVRO["fields"]) if field["name"] != "device"]}
    (folder / "7.avsc").write_text(json.dumps(AVRO))
    (folder / "8.avsc").write_text(json.dumps(older))
    (folder / "9.avsc").write_text('"string"')
    return FirstAnswers(FolderRegistry(folder), tmp_path / "kept")


def test_avro_is_read_under_the_schema_that_its_id_names(registry):
    """An older producer's events become rows of the declared schema; unknown ids are set aside by name."""
    older = fastavro.parse_schema(json.loads(registry.schema(8)))
    file = io.BytesIO()
    fastavro.schemaless_writer(file, older, SOUND)
    values = [framed(7, avro(SOUND)), framed(8, file.getvalue()), framed(9, b"x"), framed(10, b"x"), b"\x01x", b"\0\0"]
    values += [framed(7, avro(SOUND))]
    found = fates("avro", values, wire_format="confluent", registry=registry)
    assert found == ["row", "row", "unknown_schema", "unknown_schema", "malformed", "malformed", "row"]


def test_protobuf_and_json_messages_may_carry_ids_too(registry):
    """Protobuf has the message's place in its file before it; JSON has the document."""
    values = [
        framed(7, b"\x02\x02" + proto(SOUND)),
        framed(7, b"\x00" + proto(SOUND)),
        framed(11, b"\x02\x02"),
        framed(7, b"\xff"),
    ]
    found = fates("protobuf", values, wire_format="confluent", registry=registry)
    assert found == ["row", "unknown_schema", "unknown_schema", "malformed"]
    text = msgspec.json.encode({**SOUND, "event_timestamp": "2023-11-14T22:13:20.123456999Z"})
    decoder = Decoder(views("json", wire_format="confluent"), registry=registry)
    decoded = decoder.decode([Text(framed(7, text)), Text(framed(11, text)), Text(text)])
    assert decoded.ts_us.tolist() == [1_700_000_000_123_456]
    assert [bad.reason for bad in decoded.malformed] == ["unknown_schema", "malformed"]


def test_the_first_answer_about_an_id_counts(tmp_path, place):
    """What was set aside once is set aside again, by every worker, until its answer is removed and looked for again."""
    now_s = [0.0]
    (tmp_path / "registry").mkdir()
    registry = FirstAnswers(FolderRegistry(tmp_path / "registry"), place / "kept", monotonic=lambda: now_s[0])
    assert registry.schema(12) is None
    (tmp_path / "registry" / "12.avsc").write_text(json.dumps(AVRO))
    now_s[0] += 2
    assert registry.schema(12) is None
    assert registry_of(str(tmp_path / "registry"), place / "kept").schema(12) is None
    (place / "kept" / "12.schema").unlink()
    assert registry.schema(12) is None
    now_s[0] += 1
    assert registry.schema(12) == json.dumps(AVRO)
    (tmp_path / "registry" / "12.avsc").unlink()
    assert registry.schema(12) == json.dumps(AVRO)
    assert registry_of(None, tmp_path) is None
    with pytest.raises(ConfigurationError, match="no folder"):
        registry_of(str(tmp_path / "nowhere"), tmp_path)


def test_answers_that_cannot_be_read_are_an_outage_and_no_verdict(tmp_path, monkeypatch):
    """The worker waits: another machine might be told something else of the same id."""
    for name, value in (("ENDPOINT_URL", "http://127.0.0.1:9"), ("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b")):
        monkeypatch.setenv(f"AWS_{name}", value)
    (tmp_path / "7.avsc").write_text(json.dumps(AVRO))
    with pytest.raises(SourceUnavailable, match="schema 7"):
        FirstAnswers(FolderRegistry(tmp_path), place_of("s3://gone/schemas")).schema(7)


def test_a_registry_over_http(tmp_path):
    """Ids are asked for once; 404 is an answer, anything else is an outage and no verdict."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            number = int(self.path.rpartition("/")[2])
            code, body = {7: (200, json.dumps({"schema": json.dumps(AVRO)})), 8: (404, "{}")}.get(number, (500, "down"))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        url = f"http://user:secret@127.0.0.1:{server.server_port}/base"
        registry = FirstAnswers(HttpRegistry(url), tmp_path)
        assert "secret" not in str(registry)
        values = [framed(7, avro(SOUND)), framed(8, b""), framed(8, b"x"), framed(7, avro(SOUND))]
        found = fates("avro", values, wire_format="confluent", registry=registry)
        assert found == ["row", "unknown_schema", "unknown_schema", "row"]
        assert [path for path, _ in asked] == ["/base/schemas/ids/7", "/base/schemas/ids/8"]
        assert asked[0][1].startswith("Basic ")
        with pytest.raises(SourceUnavailable, match="schema 9"):
            fates("avro", [framed(9, b"x")], wire_format="confluent", registry=registry)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_avro_decimals_dates_and_lists_are_what_json_has_of_them():
    """Logical types that a column can have are kept, any other is the type below it."""
    fields = {
        "event_timestamp": {"type": "long", "logicalType": "timestamp-millis"},
        "user_id": "int",
        "amount": "double",
        "price": {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2},
        "day": {"type": "int", "logicalType": "date"},
        "event_id": {"type": "string", "logicalType": "uuid"},
        "sizes": {"type": "array", "items": ["null", "long"]},
        "kind": {"type": "enum", "name": "Kind", "symbols": ["A", "B"]},
        "nested": {"type": "map", "values": "string"},
    }
    schema = {"type": "record", "name": "R", "fields": [{"name": n, "type": kind} for n, kind in fields.items()]}
    ddl = "price decimal(10, 2), day date, kind string"
    event = {"user_id": 7, "amount": 1.0, "event_id": "ab", "kind": "B"}
    as_avro = event | {"price": decimal.Decimal("12.50"), "day": dt.date(2024, 2, 29), "sizes": [1, None], "nested": {}}
    as_avro["event_timestamp"] = dt.datetime(2024, 2, 29, 12, tzinfo=dt.UTC)
    as_json = event | {"price": "12.5", "day": "2024-02-29", "event_timestamp": "2024-02-29T12:00:00Z"}
    file = io.BytesIO()
    fastavro.schemaless_writer(file, fastavro.parse_schema(schema), as_avro)
    tables = []
    for decoder, value in (
        (Decoder(views("avro", schema_text=json.dumps(schema))), file.getvalue()),
        (Decoder(views("json", schema_text=ddl)), msgspec.json.encode(as_json)),
    ):
        found = decoder.decode([Text(value)])
        assert not found.malformed
        tables.append(decoder.table(found.rows))
    names = ["event_timestamp", "user_id", "amount", "price", "day", "event_id", "kind"]
    assert tables[0].select(names).to_pylist() == tables[1].select(names).to_pylist()
    assert tables[0]["sizes"].to_pylist() == [[1, None]]


def test_what_cannot_be_decoded_is_refused_at_the_start():
    """A schema without a column that a view reads, one that is none, ids without a registry."""
    without = {**AVRO, "fields": [field for field in AVRO["fields"] if field["name"] != "amount"]}
    with pytest.raises(DefinitionError, match="no column 'amount'"):
        Decoder(views("avro", schema_text=json.dumps(without)))
    with pytest.raises(DefinitionError, match="not a record"):
        Decoder(views("avro", schema_text='"string"'))
    with pytest.raises(DefinitionError, match="no message 'shop"):
        Decoder(views("protobuf", message_type="shop.Nothing"))
    with pytest.raises(ConfigurationError, match="schema-registry"):
        Decoder(views("avro", wire_format="confluent"))
