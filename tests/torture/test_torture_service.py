"""Generated requests and messages against the running service and the stream."""

import json
import random
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
from command_outcome import check, report, run, seeds
from dirty_inputs import INSTANTS, message, request

REFUSED = range(400, 500)


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once the service answers."""
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError(log.read_text())


def ask(port: int, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
    """The status and the answer of a request sent byte for byte as it was drawn; 0 where the connection was closed."""
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", f"Content-Length: {len(body)}"]
    head = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items())]) + "\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as peer:
        peer.sendall(head.encode("latin-1", errors="replace") + body)
        answer = b""
        try:
            while piece := peer.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
    found = re.match(rb"HTTP/1\.1 (\d{3})", answer)
    return (int(found[1]) if found else 0), answer


def test_service_answers_every_request(deployment, environ: dict[str, str], tmp_path: Path) -> None:
    """Every generated request gets an answer below 500, and the service lives on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "log"
    command = [
        sys.executable,
        "-m",
        "featurestore.cli.main",
        "serve",
        "--open",
        "--port",
        str(port),
        "--repo",
        str(deployment.repo),
    ]
    faults: list[str] = []
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environ)
    try:
        wait_for(port, process, log)
        for seed in seeds(300):
            method, target, headers, body = request(random.Random(seed))
            status, answer = ask(port, method, target, headers, body)
            # 503 is an answer where no stream worker runs: what is not ready says so.
            ready = target.startswith("/ready") and status == 503
            if (status >= 500 and not ready) or b"Traceback" in answer:
                faults.append(f"seed {seed}: {method} {target} {headers} {body[:300]!r}: {status} {answer[-300:]!r}")
        assert process.poll() is None, log.read_text()[-2000:]
        assert ask(port, "GET", "/health", {}, b"")[0] == 200
    finally:
        process.terminate()
        process.wait(30)
    if "Traceback" in log.read_text():
        faults.append(log.read_text()[-3000:])
    report(faults)


def test_stream_survives_every_message(deployment) -> None:
    """Every generated message is counted or set aside with a reason; in is accepted plus set aside."""
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=deployment.broker)
    sound = {"user_id": 1, "ts": INSTANTS[0].isoformat(), "amount": 1.0}
    sent = 0
    faults: list[str] = []
    try:
        for seed in seeds(300):
            value = message(random.Random(seed)) if seed % 10 else json.dumps(sound).encode()
            producer.send("orders", value, partition=seed % 2)
            sent += 1
            if sent % 2000 == 0:
                producer.flush()
        producer.flush()
    finally:
        producer.close()
    words = ["stream", "run", "--until-caught-up", "--repo", str(deployment.repo)]
    check(outcome := run(words, patience_s=240), sent, words, faults)
    assert outcome.code == 0, outcome
    assert f"{sent:,}" in outcome.out or str(sent) in outcome.out, outcome.out
    for words in (["stream", "status"], ["verify", "spent"], ["doctor"], ["status"], ["catalog"]):
        words = [*words, "--repo", str(deployment.repo)]
        check(run(words), 0, words, faults)
    report(faults)
