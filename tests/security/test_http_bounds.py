"""No connection and no request of the API takes memory, time or files without bound."""

import asyncio
import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry
from served_project import GOOD, PROJECT, land, make_app, make_plan, serve

from featurestore.api.access import proxies_of
from featurestore.api.body import read_body
from featurestore.api.connections import ConnectionBounds
from featurestore.api.faults import Refused
from featurestore.api.key_store import digest_of
from featurestore.api.metrics import Metrics
from featurestore.api.protocol import DirectProtocol
from featurestore.errors import ConfigurationError
from featurestore.online.connection import StoreClient
from featurestore.plan_store import PlanStore
from streaming.health import HealthServer, Pulse

PATH = b"/get-online-features"
BODY = json.dumps(GOOD).encode()


class Short(DirectProtocol):
    """The protocol with bounds that a test can wait for."""

    bounds = ConnectionBounds(head_s=0.4, body_s=0.4, write_s=0.4, connections=40)


@pytest.fixture
def port(store: StoreClient) -> Iterator[int]:
    """Of an API on loopback with the product's own bounds."""
    with _served(store, DirectProtocol) as port:
        yield port


@pytest.fixture
def short(store: StoreClient) -> Iterator[int]:
    """Of an API on loopback whose bounds are fractions of a second and 40 connections."""
    with _served(store, Short) as port:
        yield port


@contextlib.contextmanager
def _served(store: StoreClient, protocol: type[DirectProtocol]) -> Iterator[int]:
    land(store)
    PlanStore(store, PROJECT).publish(make_plan())
    with serve(make_app(store, metrics=Metrics(CollectorRegistry())), protocol) as http:
        port = http.base_url.port
        assert port is not None
        yield port


def normal(port: int) -> int:
    """The status of a caller like any other, on a connection of its own."""
    return httpx.post(f"http://127.0.0.1:{port}{PATH.decode()}", json=GOOD, timeout=10).status_code


def flood(port: int, start: bytes, more: Callable[[int], bytes], most: int = 4 << 20) -> tuple[int, bytes]:
    """Send `start` and then more without end; how many bytes went before the server closed, and what it said."""
    said = b""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.settimeout(5)
        sent = 0
        try:
            connection.sendall(start)
            while sent < most:
                part = more(sent)
                connection.sendall(part)
                sent += len(part)
        except OSError:
            pass
        with contextlib.suppress(OSError):
            while data := connection.recv(1 << 16):
                said += data
    return sent, said


POST = b"POST %s HTTP/1.1\r\nhost: localhost\r\n" % PATH
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
FLOODS: dict[str, tuple[bytes, Callable[[int], bytes]]] = {
    "one header without end": (POST + b"x: ", lambda sent: b"a" * 8192),
    "headers without end": (POST, lambda sent: b"x-%d: y\r\n" % sent * 100),
    "empty headers without end": (POST, lambda sent: b"x:\r\n" * 1000),
    "a header's name without end": (POST, lambda sent: b"a" * 8192),
    "a path without end": (b"POST /", lambda sent: b"a" * 8192),
    "a query without end": (b"GET /health?", lambda sent: b"a" * 8192),
    "a method without end": (b"", lambda sent: b"A" * 8192),
    "folded lines without end": (POST + b"x: y\r\n", lambda sent: b" z\r\n" * 1000),
    "empty lines without end": (b"", lambda sent: b"\r\n" * 4096),
    "the extension of a chunk": (CHUNKED + b"1;", lambda sent: b"a" * 8192),
    "the size of a chunk": (CHUNKED, lambda sent: b"0" * 8192),
    "headers after a body": (CHUNKED + b"0\r\n", lambda sent: b"x-%d: y\r\n" % sent * 100),
    "one header after a body": (CHUNKED + b"0\r\nx: ", lambda sent: b"a" * 8192),
    "chunks of one byte": (CHUNKED, lambda sent: b"1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n{\r\n" * 200),
    "a body without end": (CHUNKED, lambda sent: b"2000\r\n" + b"[" * 8192 + b"\r\n"),
    "pipelined requests": (b"", lambda sent: b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n" * 500),
    "half of pipelined requests": (b"", lambda sent: b"POST /push HTTP/1.1\r\ncontent-length: 9\r\n\r\n" + b" " * 9),
}  # fmt: skip


@pytest.mark.parametrize("kind", FLOODS)
def test_a_request_without_end_is_cut_off_early(kind: str, port: int) -> None:
    """The server closes long before four megabytes were taken, and goes on serving others."""
    sent, said = flood(port, *FLOODS[kind])
    assert sent < 3 << 20, kind
    assert b" 500 " not in said.split(b"\r\n", 1)[0]
    assert normal(port) == 200


HEADS = {
    "too many headers": POST + b"".join(b"x-%d: y\r\n" % n for n in range(150)) + b"content-length: 0\r\n\r\n",
    "a header that is too long": POST + b"x: " + b"a" * 40_000 + b"\r\ncontent-length: 0\r\n\r\n",
    "a path that is too long": b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_in_one_piece_is_bounded_too(kind: str, port: int) -> None:
    """A head that arrives at once is refused as one that comes in parts: 431, and the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(HEADS[kind])
        said = b""
        while data := connection.recv(1 << 16):
            said += data
    assert said.startswith(b"HTTP/1.1 431 ")
    assert json.loads(said.partition(b"\r\n\r\n")[2])["code"] == "headers_too_large"


def test_a_head_within_the_bounds_is_answered(port: int) -> None:
    """Ninety headers and 20 kB of them are fine, in one piece and byte by byte."""
    head = POST + b"".join(b"x-%d: %s\r\n" % (n, b"y" * 200) for n in range(90))
    head += b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(BODY)
    for piece in (1 << 20, 997):
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            for place in range(0, len(head), piece):
                connection.sendall(head[place : place + piece])
            connection.sendall(BODY)
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


SLOW = {
    "says nothing": b"",
    "half a request line": b"POST /get-onl",
    "half a head": POST + b"x-a: b\r\n",
    "half a body": POST + b"content-length: 100\r\n\r\n{",
    "half a body elsewhere": b"POST /push HTTP/1.1\r\ncontent-length: 100\r\n\r\n{",
    "half a chunk": CHUNKED + b"64\r\n{",
    "half of a second request": POST + b"content-length: %d\r\n\r\n" % len(BODY) + BODY + POST,
}


@pytest.mark.parametrize("kind", SLOW)
def test_what_is_not_sent_in_time_is_closed(kind: str, short: int) -> None:
    """A connection that says only a part is closed within its bound, although a byte still comes now and then."""
    with socket.create_connection(("127.0.0.1", short), 5) as connection:
        connection.sendall(SLOW[kind])
        began, said = time.monotonic(), b""
        connection.settimeout(0.2)
        while time.monotonic() - began < 8:
            with contextlib.suppress(TimeoutError):
                try:
                    data = connection.recv(1 << 16)
                    said += data
                    if not data:
                        break
                except ConnectionError:
                    break
            if kind not in ("says nothing", "half of a second request"):
                with contextlib.suppress(OSError):
                    connection.sendall(b" ")
        else:
            pytest.fail(f"still open after 8 s: {said!r}")
    assert normal(short) == 200


def test_an_answer_that_is_not_read_is_given_up(short: int) -> None:
    """A caller who asks and asks and reads nothing is cut off, and its answers with it."""
    ask = POST + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    with socket.create_connection(("127.0.0.1", short), 5) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(2)
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 20:
                connection.sendall(ask * 20)
        assert time.monotonic() - began < 20
    assert normal(short) == 200


def test_slow_connections_make_room_for_others(short: int) -> None:
    """With more slow connections than there may be at all, every other caller is still answered."""
    slow: list[socket.socket] = []
    try:
        for _ in range(100):
            slow.append(socket.create_connection(("127.0.0.1", short), 5))
            slow[-1].sendall(POST)
        assert [normal(short) for _ in range(10)] == [200] * 10
    finally:
        for each in slow:
            each.close()


def test_bounds_that_are_not_kept_would_be_seen(store: StoreClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the sweep a connection that says nothing stays open: the tests of slow ones can fail."""
    monkeypatch.setattr(Short, "late", lambda self, now_s: "")
    with _served(store, Short) as port, socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.settimeout(2)
        with pytest.raises(TimeoutError):
            connection.recv(1)


@pytest.mark.parametrize("path", [b"/get-online-features", b"/push", b"/health"])
@pytest.mark.parametrize("size", [b"9" * 5000, b"1" * 25, b"-1", b"+1", b"1e3", b"0x10", "²".encode(), b"9" * 15])
def test_a_length_that_is_none_is_no_failure_of_ours(path: bytes, size: bytes, port: int) -> None:
    """Whatever Content-Length says, the answer is a refusal and no 500."""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-length: %s\r\n\r\n{}" % (path, size))
        connection.shutdown(socket.SHUT_WR)
        said = connection.recv(1 << 16)
    assert re.match(rb"HTTP/1.1 4\d\d ", said) or said == b"", said


def test_a_length_of_many_digits_is_too_large() -> None:
    """The body's reader refuses it by itself, whatever server is around it."""

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    with pytest.raises(Refused) as caught:
        asyncio.run(read_body({"content-length": "9" * 5000}, receive, 100))
    assert caught.value.status == 413


def test_a_body_that_is_deep_is_refused(port: int) -> None:
    """Ten thousand brackets in each place of a body are answered 4xx, on every route that takes one."""
    deep = b"[" * 9000 + b"]" * 9000
    for path in ("/get-online-features", "/push", "/write-to-online-store", "/materialize"):
        for body in (deep, b'{"entities":{"origin":%s}}' % deep, b'{"features":%s,"entities":{}}' % deep,
                     b'{"x":' * 2500 + b"1" + b"}" * 2500):  # fmt: skip
            answer = httpx.post(f"http://127.0.0.1:{port}{path}", content=body, timeout=10)
            assert 400 <= answer.status_code < 500, (path, answer.text)


def resident_mb(pid: int | str = "self") -> float:
    """The memory that a process holds."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def test_a_fuzz_of_heads_and_bodies_ends_nothing_and_holds_no_memory(port: int) -> None:
    """Five hundred torn, doubled and random requests: no 500, bounded memory, and others are served."""
    rng = random.Random(7)
    whole = POST + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY
    words = [b"\r\n", b"\x00", b"\xff", b": ", b"transfer-encoding: chunked\r\n", b"content-length: 5\r\n", b"{", b"\n",
             b"expect: 100-continue\r\n", b"upgrade: websocket\r\nconnection: upgrade\r\n", b"0\r\n\r\n", b" " * 500,
             b"x-forwarded-for: " + b"1" * 300 + b"\r\n", b"host: \xe2\x80\xae\r\n",
             b"authorization: Bearer \xff\r\n"]  # fmt: skip
    before = resident_mb()
    for number in range(500):
        made = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            place = rng.randrange(len(made))
            if rng.random() < 0.5:
                made[place:place] = rng.choice(words)
            else:
                del made[place : place + rng.randrange(1, 40)]
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.settimeout(0.05 if number % 10 else 1)
            connection.sendall(made)
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                said = connection.recv(1 << 16)
                assert b" 500 " not in said.split(b"\r\n", 1)[0], bytes(made)
    assert normal(port) == 200
    assert resident_mb() - before < 60


@pytest.mark.parametrize("wrong", ["*", "0.0.0.0/33", "proxy.example", "10.0.0.1/8"])
def test_only_addresses_can_be_declared_proxies(wrong: str) -> None:
    """Everybody, names and networks with host bits are refused where they are declared."""
    with pytest.raises(ConfigurationError, match="FEATURESTORE_TRUSTED_PROXIES"):
        proxies_of({"FEATURESTORE_TRUSTED_PROXIES": wrong})


SERVE = "import sys; from featurestore.cli.main import main; sys.exit(main(['serve', *sys.argv[1:]]))"


@contextlib.contextmanager
def process(repo: Path, url: str, **environ: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`featurestore serve` of a repo, and its address."""
    (repo / "feature_store.yaml").write_text(f"project: {PROJECT}\nonline_store:\n  connection: {url}\n")
    started = subprocess.Popen(
        [sys.executable, "-c", SERVE, "--repo", str(repo), "--port", "0"],
        stderr=subprocess.PIPE, text=True, env=os.environ | environ,
    )  # fmt: skip
    try:
        assert started.stderr is not None
        for line in started.stderr:
            if found := re.search(r"http://[^ ]+:\d+", line):
                break
        else:
            raise AssertionError("it never listened")
        yield started, found[0]
    finally:
        started.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(20)
        started.kill()
        started.communicate()


def test_the_served_process_believes_declared_proxies_alone(
    store: StoreClient, online_url: str, tmp_path: Path
) -> None:
    """X-Forwarded-For of a stranger is not what the audit log keeps; that of a declared proxy is, in 64 characters."""
    digest = "ab" * 32
    address = {"x-forwarded-for": "203.0.113.9"}
    kept = tmp_path / "data" / "audit.jsonl"

    def addresses() -> list[str]:
        return [json.loads(line)["address"] for line in kept.read_text().splitlines()]

    with process(tmp_path, online_url, FEATURESTORE_API_KEYS=digest) as (_, url):
        assert httpx.get(f"{url}/version", headers=address).status_code == 401
        assert addresses() == ["127.0.0.1"]
    with process(tmp_path, online_url, FEATURESTORE_API_KEYS=digest, FEATURESTORE_TRUSTED_PROXIES="127.0.0.1") as (
        served,
        url,
    ):
        httpx.get(f"{url}/version", headers=address)
        httpx.get(f"{url}/version", headers={"x-forwarded-for": "x" * 20_000})
        assert addresses()[1] == "203.0.113.9"
        assert all(len(each) <= 64 for each in addresses())
        before = resident_mb(served.pid)
        for kind in ("one header without end", "headers without end", "pipelined requests"):
            flood(int(url.rpartition(":")[2]), *FLOODS[kind])
        assert resident_mb(served.pid) - before < 40


@pytest.mark.slow
def test_the_worker_s_own_server_makes_room_too() -> None:
    """Half-open connections to /metrics of a worker hold 64 threads at most, and others are answered."""
    server = HealthServer("127.0.0.1", 0, registry=CollectorRegistry(), pulse=Pulse(), standing=lambda: None)
    slow: list[socket.socket] = []
    with server:
        host, _, port = server.address.partition(":")
        try:
            before = threading.active_count()
            for _ in range(200):
                slow.append(socket.create_connection((host, int(port)), 5))
                slow[-1].sendall(b"GET /metrics HTTP/1.1\r\n")
            assert httpx.get(f"http://{server.address}/metrics", timeout=5).status_code == 200
            assert threading.active_count() - before < 100
        finally:
            for each in slow:
                each.close()


def asked(connection: socket.socket, key: str) -> bytes:
    """The head of the answer to a request with a key."""
    head = POST + b"x-api-key: %s\r\ncontent-length: %d\r\n\r\n" % (key.encode(), len(BODY))
    connection.sendall(head + BODY)
    said = b""
    while b"\r\n\r\n" not in said and (data := connection.recv(1 << 16)):
        said += data
    return said


@pytest.mark.nightly
def test_a_normal_caller_is_answered_in_50_ms_while_1000_connections_send_their_heads_slowly(
    store: StoreClient, online_url: str, tmp_path: Path
) -> None:
    """The 99th percentile of 500 requests on new and kept connections, under 1,000 slow ones that never end."""
    land(store)
    PlanStore(store, PROJECT).publish(make_plan())
    key = "fsk_test"
    digest = digest_of(key).hex()
    with process(tmp_path, online_url, FEATURESTORE_API_KEYS=digest) as (_, url):
        port, slow = int(url.rpartition(":")[2]), []
        for _ in range(1000):
            slow.append(socket.create_connection(("127.0.0.1", port), 5))
            slow[-1].sendall(POST)
        ended = threading.Event()

        def drip() -> None:
            while not ended.wait(0.5):
                for place, each in enumerate(slow):
                    try:
                        each.sendall(b"x: y\r\n")
                    except OSError:
                        each.close()
                        slow[place] = socket.create_connection(("127.0.0.1", port), 5)

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            took = []
            kept = socket.create_connection(("127.0.0.1", port), 5)
            for number in range(500):
                began = time.perf_counter()
                if number % 2:
                    assert asked(kept, key).startswith(b"HTTP/1.1 200 ")
                else:
                    with socket.create_connection(("127.0.0.1", port), 5) as new:
                        assert asked(new, key).startswith(b"HTTP/1.1 200 ")
                took.append(time.perf_counter() - began)
                time.sleep(0.01)
            kept.close()
        finally:
            ended.set()
            thread.join()
            for each in slow:
                each.close()
    assert sorted(took)[int(len(took) * 0.99)] < 0.05
