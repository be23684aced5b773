"""`stream broker` and `stream produce` as processes, the way a script uses them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streaming.source.kafka import KafkaSettings, KafkaSource
from streaming.source.publisher import Publisher
from validation.inference import infer, read_sample

pytestmark = pytest.mark.xdist_group("kafka")
COMMAND = [sys.executable, "-c", "from streaming.commands import app; app()", "stream"]


@contextmanager
def broker_process(*options: str) -> Iterator[str]:
    """A broker of its own process; its address."""
    process = subprocess.Popen([*COMMAND, "broker", *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stdout is not None
        process.stdout.close()


def produce(address: str, file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "produce", str(file), "--topic", "clicks", "--timestamp", "ts", *options],
        env={**os.environ, "KAFKA_BOOTSTRAP_SERVERS": address, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def events(tmp_path: Path) -> Path:
    path = tmp_path / "events.parquet"
    times = pa.array(range(100), pa.timestamp("s", tz="UTC"))
    pq.write_table(pa.table({"who": [f"k{n % 3}" for n in range(100)], "ts": times}), path)
    return path


def test_a_file_goes_in_and_survives_a_restart(events: Path, tmp_path: Path) -> None:
    """The count is confirmed; with --data the topic is there again, under its id."""
    ids = []
    with broker_process("--data", str(tmp_path / "kept")) as address:
        done = produce(address, events, "--key", "who", "--partitions", "2")
        assert "100 messages acknowledged in topic 'clicks' (2 partitions" in done.stdout, done.stderr
        assert done.returncode == 0
        source = KafkaSource(KafkaSettings(address), ["clicks"], group="g")
        ids.append(source.partitions_of("clicks"))
        source.close()
    with broker_process("--data", str(tmp_path / "kept")) as address:
        source = KafkaSource(KafkaSettings(address), ["clicks"], group="g")
        ids.append(source.partitions_of("clicks"))
        assert sum(source.end_offsets(ids[-1]).values()) == 100
        source.close()
    assert ids[0] == ids[1]


def test_commands_import_lightly() -> None:
    """`--help` waits for no Kafka, Arrow or server."""
    slow = "{'kafka', 'pyarrow', 'rich.progress', 'numpy', 'asyncio', 'redis'}"
    code = f"import sys, streaming.commands; print(sorted({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_topics_newest_messages_become_a_file_for_a_contract(tmp_path: Path) -> None:
    """Those at the ends of its partitions; what is no JSON object is counted; a contract is inferred from the rest."""
    target = tmp_path / "clicks.jsonl"
    with broker_process() as address:
        publisher = Publisher(KafkaSettings(address), "clicks", partitions=1)
        for n in range(100):
            value = b"no json" if n == 99 else msgspec.json.encode({"who": f"k{n}", "n": n})
            publisher.send(None, value, timestamp_us=n)
        publisher.flush()
        publisher.close()
        command = [
            *COMMAND,
            "sample",
            "clicks",
            "--output",
            str(target),
            "--rows",
            "20",
            "--bootstrap-servers",
            address,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        again = subprocess.run(command, capture_output=True, text=True, check=False)
        missing = [word if word != "clicks" else "klicks" for word in command]
        missing[missing.index(str(target))] = str(tmp_path / "none.jsonl")
        unknown = subprocess.run(missing, capture_output=True, text=True, check=False)
    assert "19 messages of topic 'clicks', 1 messages were no JSON objects" in done.stdout
    assert sorted(msgspec.json.decode(line)["n"] for line in target.read_bytes().splitlines()) == list(range(80, 99))
    assert "exists already" in again.stderr
    assert "did you mean 'clicks'" in unknown.stderr
    document = infer(read_sample(target), source="clicks")
    assert [each["name"] for each in document["schema"][0]["properties"]] == ["who", "n"]
