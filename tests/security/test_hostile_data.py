"""Hostile messages, batches and files end in a named refusal: in a process of little memory and little time."""

# ruff: noqa: E501 - cases are one a line

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from served_project import NOW_US

from streaming.schema_registry import FirstAnswers
from validation.place import place_of

LIMITED = """
import resource, sys
def limit(megabytes, seconds):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20),) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds + 5, seconds + 6))
"""


def run(code: str, *arguments: str, timeout_s: float = 60) -> list[str]:
    """The lines that a process prints which may take so much more memory; a signal or a failure fails the test."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED + textwrap.dedent(code), *arguments],
        capture_output=True, text=True, check=False, timeout=timeout_s,
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout.splitlines()


AVRO = """
import json, struct, time
from featurestore.plan import Topic
from streaming.avro_messages import avro_reader
from streaming.messages import Refused

def num(n):
    n, out = (n << 1) ^ (n >> 63), b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])
def record(name, **fields):
    return {"type": "record", "name": name, "fields": [{"name": n, "type": t} for n, t in fields.items()]}
PLAIN = record("R", b="long")
class Registry:
    def __init__(self, text): self.text = text
    def schema(self, number): return self.text
def doubled():
    made = record("Z0")
    for level in range(1, 60):
        made = record(f"Z{level}", a=made, b=f"Z{level - 1}")
    return made
deep = "long"
for _ in range(200):
    deep = {"type": "array", "items": deep}
node = record("R", b="long", next=["null", "R"])
DECIMAL = {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2}
CASES = {
    "recursive": (node, (num(1) + num(1)) * 400_000 + num(1) + num(0)),
    "recursive and skipped": (record("R", b="long", n=record("N", b="long", next=["null", "N"])), num(1) + (num(1) + num(1)) * 400_000 + num(1) + num(0)),
    "recursive arrays": (record("R", b="long", a={"type": "array", "items": "R"}), (num(1) + num(1)) * 300_000),
    "recursive maps": (record("R", b="long", a={"type": "map", "values": "R"}), (num(1) + num(1) + num(0)) * 300_000),
    "recursive by union of arrays": (record("R", b="long", a=["null", {"type": "array", "items": "R"}]), num(1) * 900_000),
    "items without bytes": (record("R", b="long", a={"type": "array", "items": "null"}), num(1) + num(1 << 40) + num(0)),
    "blocks without bytes": (record("R", b="long", a={"type": "array", "items": "null"}), num(1) + (num(900) * 300_000) + num(0)),
    "empty records": (record("R", b="long", a={"type": "array", "items": record("E")}), num(1) + num(1 << 40) + num(0)),
    "empty fixed": (record("R", b="long", a={"type": "array", "items": {"type": "fixed", "name": "f", "size": 0}}), num(1) + num(1 << 40) + num(0)),
    "doubled records": (record("R", b="long", a=doubled()), num(1)),
    "doubled, negative block": (record("R", b="long", a={"type": "array", "items": "null"}), num(1) + num(-(1 << 40)) + num(0) + num(0)),
    "torn skipped text": (record("R", b="long", a="string"), num(1) + num(100) + b"abc"),
    "negative skipped text": (record("R", b="long", a="string"), num(1) + num(-9) + b"abc"),
    "torn skipped bytes": (record("R", b="long", a="bytes"), num(1) + num(1 << 50) + b"abc"),
    "torn skipped fixed": (record("R", b="long", a={"type": "fixed", "name": "f", "size": 50}), num(1) + b"abc"),
    "torn skipped double": (record("R", b="long", a="double"), num(1) + b"abc"),
    "torn skipped map": (record("R", b="long", a={"type": "map", "values": "string"}), num(1) + num(1) + num(90) + b"k"),
    "skipped branch that is none": (record("R", b="long", a=["null", "string"]), num(1) + num(7)),
    "skipped negative branch": (record("R", b="long", a=["null", "string"]), num(1) + num(-1) + num(0)),
    "skipped symbol that is none": (record("R", b="long", a={"type": "enum", "name": "e", "symbols": ["x"]}), num(1) + num(-1)),
    "number without end": (record("R", b="long", a="long"), num(1) + b"\\xff" * 900_000 + b"\\x01"),
    "deep schema": (record("R", b="long", a=deep), num(1)),
    "huge schema": ({**PLAIN, "doc": "x" * (2 << 20)}, num(1)),
    "no schema": ({"type": "record", "name": "R", "fields": [{"name": "b", "type": "nothing"}]}, num(1)),
    "fields that are none": ({"type": "record", "name": "R", "fields": "b"}, num(1)),
}
"""


def test_hostile_avro_is_set_aside_one_by_one() -> None:
    """Each schema and message is refused within a second and 300 MB; sound ones beside them are read."""
    lines = run(
        AVRO
        + """
topic = Topic(name="t", bootstrap_servers="", message_format="avro", schema_text=json.dumps(PLAIN), wire_format="confluent")
limit(300, 40)
for name, (schema, data) in CASES.items():
    read = avro_reader(topic, Registry(json.dumps(schema)))
    began = time.process_time()
    try:
        read(data, 7)
        told = "read"
    except (Refused, ValueError, TypeError) as error:
        told = type(error).__name__
    print(f"{name}: {told} {'slow' if time.process_time() - began > 1.5 else 'quick'}")
print(avro_reader(topic, Registry(json.dumps(record("R", b="long", a="string"))))(num(7) + num(3) + b"abc", 7))
chain = num(1) + num(1) + num(2) + num(1) + num(3) + num(0)
print(avro_reader(topic, Registry(json.dumps(node)))(chain, 7))
"""
    )
    told = dict(line.split(": ", 1) for line in lines[:-2])
    assert len(told) >= 24
    assert not [name for name, fate in told.items() if fate.startswith("read") or fate.endswith("slow")], told
    assert lines[-2:] == ["{'b': 7}", "{'b': 1}"]


def test_a_hostile_declared_schema_is_refused_or_bounded() -> None:
    """A declared schema that is deep or huge is a DefinitionError; one whose decimals are long is bounded too."""
    lines = run(
        AVRO
        + """
from featurestore.errors import DefinitionError
limit(300, 20)
for schema in (record("R", a=deep), {**PLAIN, "doc": "x" * (2 << 20)}, record("R", b="long", a=doubled())):
    try:
        avro_reader(Topic(name="t", bootstrap_servers="", message_format="avro", schema_text=json.dumps(schema)), None)
        print("read")
    except DefinitionError:
        print("refused")
topic = Topic(name="t", bootstrap_servers="", message_format="avro", schema_text=json.dumps(record("R", d=DECIMAL)))
read = avro_reader(topic, None)
print(read(num(2) + (-1234).to_bytes(2, "big", signed=True), None))
try:
    read(num(900_000) + b"\\x7f" * 900_000, None)
except ValueError:
    print("refused")
"""
    )
    assert lines == ["refused"] * 3 + ["{'d': Decimal('-12.34')}", "refused"]


def test_hostile_protobuf_is_set_aside() -> None:
    """Deep nesting, torn lengths and indexes without end are ValueErrors."""
    lines = run(
        """
        import base64
        from google.protobuf import descriptor_pb2
        from featurestore.plan import Topic
        from streaming.messages import Refused
        from streaming.proto_messages import proto_reader
        file = descriptor_pb2.FileDescriptorProto(name="a.proto", syntax="proto3")
        message = file.message_type.add(name="A")
        message.field.add(name="b", number=1, type=3, label=1)
        message.field.add(name="a", number=2, type=11, type_name=".A", label=1)
        message.field.add(name="n", number=3, type=3, label=3)
        text = base64.b64encode(descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString()).decode()
        class Registry:
            def schema(self, number): return "x"
        topic = Topic(name="t", bootstrap_servers="", message_format="protobuf", schema_text=text, message_type="A")
        read = proto_reader(topic, {"b"}, Registry())
        limit(300, 20)
        deep = b""
        for _ in range(5000):
            size, head = len(deep), b""
            while size > 127:
                head, size = head + bytes([size & 127 | 128]), size >> 7
            deep = b"\\x12" + head + bytes([size]) + deep
        for value, number in ((deep, None), (b"\\x12\\xff\\xff\\xff\\x7f", None), (b"\\x13" * 100_000, None), (b"\\xff" * 500_000, None),
                              (b"\\x08\\xff\\xff", None), (b"\\xff\\xff\\xff\\xff\\x0f", 1), (b"\\xfe\\xff\\xff\\x0f" + b"\\x00" * 900_000, 1)):
            try:
                read(value, number)
                print("read")
            except (ValueError, Refused):
                print("refused")
        print(read(b"\\x08\\x07", None))
        """
    )
    assert lines == ["refused"] * 7 + ["{'b': 7}"]


BATCH = """
    import gzip, lz4.frame, struct, time, zlib
    from kafka.errors import CorruptRecordError
    from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
    from streaming.source.flat_records import decode_batch
    def batch(codec, packed, count=1):
        builder = DefaultRecordBatchBuilder(magic=2, compression_type=0, is_transactional=False, producer_id=-1,
                                            producer_epoch=-1, base_sequence=-1, batch_size=1 << 30)
        builder.append(0, 0, b"k", b"v", [])
        head = bytearray(builder.build()[:61])
        struct.pack_into(">i", head, 8, len(packed) + 49)
        struct.pack_into(">h", head, 21, codec)
        struct.pack_into(">i", head, 57, count)
        return DefaultRecordBatch(head + packed)
    def told(made):
        try:
            return len(decode_batch(made, 0))
        except CorruptRecordError as error:
            return "refused"
    builder = DefaultRecordBatchBuilder(magic=2, compression_type=0, is_transactional=False, producer_id=-1,
                                        producer_epoch=-1, base_sequence=-1, batch_size=1 << 30)
    for n in range(3):
        builder.append(n, 0, b"k", b"v" * 1000, [])
    sound = bytes(builder.build()[61:])
    zeros = bytes(1 << 20)
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    bomb = b"".join([packer.compress(zeros) for _ in range(300)] + [packer.flush()])
    small = zlib.compressobj(9, zlib.DEFLATED, 31)
    framed = lz4.frame.LZ4FrameCompressor(block_size=7)
    parts = [framed.begin()] + [framed.compress(zeros) for _ in range(300)] + [framed.flush()]
    bomb4 = b"".join(parts)
"""


def test_compressed_batches_are_bounded() -> None:
    """Three hundred megabytes of zeros in one batch are refused in a process that may take 300; sound ones are read."""
    lines = run(
        BATCH
        + """
    limit(300, 20)
    print(len(bomb) < 8 << 20, len(bomb4) < 5 << 20)
    print(told(batch(1, bomb)), told(batch(3, bomb4)))
    print(told(batch(1, gzip.compress(bytes(100)) * 40_000)), told(batch(1, gzip.compress(sound)[:-4], 3)))
    print(told(batch(3, lz4.frame.compress(sound)[:-4], 3)), told(batch(1, b"x" * 100)), told(batch(3, b"x" * 100)))
    print(told(batch(2, sound)), told(batch(4, sound)), told(batch(7, sound)), told(batch(1, b"")))
    print(told(batch(0, sound, 2_000_000_000)), told(batch(0, sound, 2)), told(batch(0, sound, 4)), told(batch(0, b"\\xff" * 900_000)))
    print(told(batch(0, sound, 3)), told(batch(1, gzip.compress(sound), 3)), told(batch(3, lz4.frame.compress(sound), 3)))
"""
    )
    assert lines[0] == "True True"
    assert {word for line in lines[1:-1] for word in line.split()} == {"refused"}
    assert lines[-1] == "3 3 3"


def test_hostile_files_are_named_refusals(tmp_path: Path) -> None:
    """Torn and random Parquet, Arrow under a Parquet name, and a column that grows past memory: UnreadableData each."""
    lines = run(
        """
        from pathlib import Path
        import random, sys
        import pyarrow as pa, pyarrow.parquet as pq
        from validation.contract import Column, Contract
        from validation.files import read_data
        from validation.lines import UnreadableData
        folder = Path(sys.argv[1])
        contract = Contract(name="c", version="1", source="s", columns=(Column(name="a", logical_type="string"),), rules=())
        good = folder / "good.parquet"
        pq.write_table(pa.table({"a": ["x", "y"] * 500}), good)
        data = good.read_bytes()
        text = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), ["y" * 1_000_000])
        pq.write_table(pa.table({"a": text}), folder / "bomb.parquet", store_schema=False)
        with pa.OSFile(str(folder / "arrow.parquet"), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("a", pa.string())])) as out:
            out.write_table(pa.table({"a": ["x"]}))
        rng = random.Random(1)
        for number in range(150):
            torn = bytearray(data)
            for _ in range(rng.randrange(1, 20)):
                torn[rng.randrange(len(torn))] = rng.randrange(256)
            (folder / f"torn-{number}.parquet").write_bytes(torn[: rng.choice((len(torn), len(torn), rng.randrange(len(torn))))])
        limit(700, 40)
        fates = []
        for path in sorted(folder.glob("*.parquet")):
            try:
                fates.append((path.stem, read_data(path, contract).num_rows))
            except UnreadableData:
                fates.append((path.stem, "refused"))
        told = dict(fates)
        print(told["good"], told["arrow"], told["bomb"], len(told))
        """,
        str(tmp_path),
        timeout_s=120,
    )
    assert lines[-1].split() == ["1000", "refused", "refused", "153"]


class Counting:
    """A registry that knows one schema, and is told of another later."""

    def __init__(self) -> None:
        self.known: dict[int, str] = {1: json.dumps({"type": "record", "name": "R", "fields": []})}
        self.asked = 0

    def schema(self, number: int) -> str | None:
        self.asked += 1
        return self.known.get(number)


def test_invented_schema_ids_cost_neither_a_file_nor_a_request_each(tmp_path: Path) -> None:
    """Of 20,000 ids within a second some are asked for and kept; a known schema beside them is found."""
    registry, now = Counting(), [0.0]
    answers = FirstAnswers(registry, place_of(str(tmp_path)), monotonic=lambda: now[0], wall_s=lambda: NOW_US / 1e6)
    assert answers.schema(1)
    for number in range(2, 20_000):
        assert answers.schema(number) is None
        now[0] += 0.00005
    assert registry.asked < 200
    assert len(list(tmp_path.iterdir())) < 1100


def test_a_schema_that_is_registered_late_is_found(tmp_path: Path) -> None:
    """That there is none is believed by every worker for a while and not for ever, an empty file of old included."""
    registry, now, wall = Counting(), [0.0], [1000.0]

    def answers() -> FirstAnswers:
        return FirstAnswers(registry, place_of(str(tmp_path)), monotonic=lambda: now[0], wall_s=lambda: wall[0])

    first = answers()
    (tmp_path / "6.schema").write_bytes(b"")
    assert first.schema(5) is None
    registry.known |= {5: registry.known[1], 6: registry.known[1]}
    now[0] += 2
    assert first.schema(5) is None
    assert answers().schema(5) is None
    assert answers().schema(6) == registry.known[1]
    wall[0] += 601
    now[0] += 2
    assert first.schema(5) == registry.known[1]
    del registry.known[5]
    assert answers().schema(5) is not None


@pytest.mark.parametrize("guard", ["streaming.avro_messages.guard"])
def test_a_reader_without_the_walk_would_be_seen(guard: str) -> None:
    """Without it a torn text in a skipped field passes for whole: the test of Avro can fail."""
    lines = run(
        AVRO
        + f"""
import importlib
module, _, name = {guard!r}.rpartition(".")
setattr(importlib.import_module(module), name, lambda schema, skips: None)
topic = Topic(name="t", bootstrap_servers="", message_format="avro", schema_text=json.dumps(PLAIN), wire_format="confluent")
schema, data = CASES["torn skipped text"]
print(avro_reader(topic, Registry(json.dumps(schema)))(data, 7))
"""
    )
    assert lines == ["{'b': 1}"]
