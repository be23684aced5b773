"""Messages as strangers send them: a sound event counts whatever comes beside it, and each other one has its reason."""

import base64
import io
import json
import random
from pathlib import Path
from typing import Any

import fastavro
import msgspec
import pytest
from command_outcome import check, report, run, seeds
from dirty_documents import TEXTS, mutate_document, mutated, value
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from shop_deployment import Deployment

from featurestore.online.connection import StoreClient
from featurestore.plan import View
from streaming.embedded.server import EmbeddedBroker
from streaming.pipeline import TopicPipeline
from streaming.rehearsal import START_US, TOPIC, shop_contract, shop_event, shop_plan
from streaming.source.records import Batch, Record

TYPES = {
    "event_id": "string", "event_timestamp": "long", "user_id": "long", "amount": "double", "quantity": "long",
    "currency": "string", "country": "string", "page": "string", "discount": "double", "device": "string",
}  # fmt: skip
AVRO = {
    "type": "record",
    "name": "Order",
    "fields": [{"name": name, "type": ["null", kind], "default": None} for name, kind in TYPES.items()],
}


def descriptors() -> descriptor_pb2.FileDescriptorSet:
    """The order as protoc would describe it, every field optional."""
    file = descriptor_pb2.FileDescriptorProto(name="orders.proto", package="shop", syntax="proto3")
    order = file.message_type.add(name="Order")
    for number, (name, kind) in enumerate(TYPES.items(), start=1):
        field = order.field.add(name=name, number=number, label=1, type={"string": 9, "long": 3, "double": 1}[kind])
        field.proto3_optional, field.oneof_index = True, len(order.oneof_decl)
        order.oneof_decl.add(name=f"_{name}")
    files = descriptor_pb2.FileDescriptorSet()
    files.file.append(file)
    return files


def proto_class() -> Any:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptors().file:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("shop.Order"))


ORDER = proto_class()
SCHEMAS: dict[str, dict[str, str]] = {
    "json": {},
    "avro": {"schema_text": json.dumps(AVRO)},
    "protobuf": {
        "schema_text": base64.b64encode(descriptors().SerializeToString()).decode(),
        "message_type": "shop.Order",
    },
}


def encoded(message_format: str, event: dict[str, Any]) -> bytes:
    if message_format == "json":
        return msgspec.json.encode(event)
    if message_format == "protobuf":
        made: bytes = ORDER(**{name: held for name, held in event.items() if held is not None}).SerializeToString()
        return made
    file = io.BytesIO()
    fastavro.schemaless_writer(file, fastavro.parse_schema(AVRO), event)
    return file.getvalue()


def views(message_format: str) -> tuple[View, ...]:
    view = shop_plan().view("user_orders")
    assert view.source.topic is not None
    topic = msgspec.structs.replace(view.source.topic, message_format=message_format, **SCHEMAS[message_format])
    return (msgspec.structs.replace(view, source=msgspec.structs.replace(view.source, topic=topic)),)


def sound(number: int) -> dict[str, Any]:
    held: dict[str, Any] = msgspec.json.decode(shop_event(random.Random(number), number, START_US - number * 1_001, 20))
    return {name: held.get(name) for name in TYPES}


def dirty(dice: random.Random, message_format: str, number: int) -> bytes | None:
    """A message that is none, or one with places changed."""
    if dice.random() < 0.05:
        return dice.choice((None, b"", b"null", b"[]", b"{}", dice.choice(TEXTS).encode()))
    event = sound(number)
    if message_format != "json" or dice.random() < 0.3:
        return mutated(dice, encoded(message_format, event))
    mutate_document(dice, event)
    if dice.random() < 0.2:
        event[dice.choice(tuple(TYPES))] = value(dice)
    return json.dumps(event, default=str).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("message_format", sorted(SCHEMAS))
def test_messages_are_accepted_or_set_aside(message_format: str) -> None:
    """Every one has its place among the accepted or the rejected, and none harms its neighbours."""
    pipeline = TopicPipeline(views(message_format), shop_contract())
    faults: list[str] = []
    for seed in seeds(100):
        dice = random.Random(seed)
        values = [dirty(dice, message_format, 10_000 + number) for number in range(40)]
        good = set(dice.sample(range(40), 10))
        for place in good:
            values[place] = encoded(message_format, sound(place))
        keys = [dice.choice((None, b"", b"1", b"\xff", dice.choice(TEXTS).encode())) for _ in values]
        records = [Record(0, n, key, held, START_US) for n, (key, held) in enumerate(zip(keys, values, strict=True))]
        try:
            judged = pipeline.judge(Batch(TOPIC, "id", 0, records, 0, len(records)))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a fault
            faults.append(f"seed {seed}: {type(error).__name__}: {error}")
            continue
        accepted = judged.offsets.tolist()
        if sorted([*accepted, *(each.record.offset for each in judged.rejected)]) != list(range(40)):
            faults.append(f"seed {seed}: a message has no verdict, or two")
        if not good <= set(accepted):
            faults.append(f"seed {seed}: sound messages were set aside: {sorted(good - set(accepted))}")
    report(faults)


def test_windows_are_right_whatever_comes_beside(
    tmp_path: Path, online_url: str, store: StoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real command over a real topic of dirty and sound messages: tiles are those of the log, to the byte."""
    faults: list[str] = []
    with EmbeddedBroker() as broker:
        deployment = Deployment(tmp_path, online_url, store, str(broker.address))
        for name in ("KAFKA_BOOTSTRAP_SERVERS", "FEATURESTORE_CLOCK_OFFSET_S"):
            monkeypatch.setenv(name, deployment.environ[name])
        words = ["stream", "run", "--until-caught-up", "--repo", str(deployment.repo)]
        try:
            for seed in seeds(1):
                dice = random.Random(seed)
                for number in range(300):
                    held = dirty(dice, "json", 10_000_000 + seed * 1_000 + number)
                    deployment.publisher.send(b"%d" % dice.randrange(20), held, timestamp_us=START_US - 1_000)
                deployment.produce(30)
                outcome = run(words)
                check(outcome, seed, words, faults)
                if outcome.code or "330 events" not in outcome.out:
                    faults.append(f"seed {seed}: exit code {outcome.code}: {outcome.out[-300:]}")
                deployment.audit(1)
        finally:
            deployment.publisher.close()
    report(faults)
