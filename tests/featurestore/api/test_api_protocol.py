"""Does the shorter way from a connection to its handler answer as uvicorn's own does, and leave to it what it must?"""

import json
import re
import socket
import threading
import time

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from featurestore.api import protocol
from featurestore.api.features_route import FeaturesRoute

PATH = "/get-online-features"
BODY = json.dumps({"features": ["weather:temp_f"], "entities": {"origin": ["EWR", "JFK"]}}).encode()


def request(body: bytes = BODY, *headers: str, path: str = PATH, version: str = "1.1", method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "host: localhost", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


CHUNKED = request(b"", "transfer-encoding: chunked").replace(b"content-length: 0\r\n", b"")
CHUNKED += b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:7], BODY[7:], b""))
USUAL = {
    "plain": request(),
    "accept rows": request(BODY, "accept: application/vnd.featurestore.rows+json"),
    "no json": request(b"{"),
    "nothing": request(b""),
    "unknown feature": request(BODY.replace(b"temp_f", b"temp_c")),
    "elsewhere": request(BODY).replace(b"host: localhost", b"host: example.com"),
    "a page": request(BODY, "origin: https://example.com"),
    "two origins": request(BODY, "origin: http://localhost", "origin: https://example.com"),
}
UNUSUAL = {
    "the last": request(BODY, "connection: close"),
    "old version": request(version="1.0"),
    "in chunks": CHUNKED,
    "large": request(b" " * 70_000 + BODY),
    "a proxy's": request(BODY, "x-forwarded-for: 10.0.0.1"),
    "expecting": request(BODY, "expect: 100-continue"),
    "with a query": request(path=PATH + "?a=b"),
    "spelled otherwise": request(path="/get-online%2Dfeatures"),
    "another method": request(method="GET"),
    "another path": request(b"", path="/health", method="GET"),
}


def exchange(port: int, sent: bytes, until: int = 1, *, pieces: int = 1) -> bytes:
    """What comes back, up to as many whole responses."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        size = -(-len(sent) // pieces)
        for start in range(0, len(sent), size):
            connection.sendall(sent[start : start + size])
            time.sleep(0.01 if pieces > 1 else 0)
        got = b""
        while len(whole_responses(got)) < until:
            data = connection.recv(1 << 20)
            if not data:
                break
            got += data
        return got


def whole_responses(data: bytes) -> list[bytes]:
    """The bodies of the responses in it, those of one hundred left out."""
    bodies = []
    while b"\r\n\r\n" in data:
        head, _, rest = data.partition(b"\r\n\r\n")
        size = re.search(rb"content-length: (\d+)", head)
        length = int(size[1]) if size else 0
        if len(rest) < length:
            break
        if b" 100 " not in head:
            bodies.append(rest[:length])
        data = rest[length:]
    return bodies


@pytest.fixture
def short(monkeypatch) -> list[str]:
    """The paths that were answered on the shorter way."""
    seen: list[str] = []
    true = protocol._Cycle.run

    async def run(self) -> None:
        seen.append(self._path)
        await true(self)

    monkeypatch.setattr(protocol._Cycle, "run", run)
    return seen


@pytest.fixture
def servers(project, landed):
    """The ports of a server on the shorter way, and of one on uvicorn's."""
    app = project.make_app(landed)
    with project.serve(app) as ours, project.serve(project.make_app(landed), http=HttpToolsProtocol) as its:
        yield ours.base_url.port, its.base_url.port


def dateless(response: bytes) -> bytes:
    return re.sub(rb"date: [^\r]*\r\n", b"", response)


@pytest.mark.parametrize("name", [*USUAL, *UNUSUAL])
def test_both_ways_answer_alike(servers, short, name) -> None:
    """Status, headers and body; what is unusual takes uvicorn's way."""
    sent = (USUAL | UNUSUAL)[name]
    ours, its = (exchange(port, sent) for port in servers)
    assert dateless(ours) == dateless(its)
    assert ours.startswith(b"HTTP/1.")
    assert short == ([PATH] if name in USUAL else [])


def test_pieces_of_a_request_are_put_together(servers, short) -> None:
    """However the network cuts it."""
    [body] = whole_responses(exchange(servers[0], request(), pieces=9))
    assert json.loads(body)["results"][1]["values"] == [39.02, None]
    assert short == [PATH]


def test_pipelined_requests_are_answered_in_their_order(servers, short) -> None:
    """The first on the shorter way, those that come meanwhile as uvicorn queues them; a connection serves many."""
    names = ["EWR", "LGA", "JFK", "XXX"]
    bodies = [BODY.replace(b'"EWR", "JFK"', b'"%b"' % name.encode()) for name in names]
    sent = b"".join(map(request, bodies)) + request(b"", path="/health", method="GET")
    found = [json.loads(each) for each in whole_responses(exchange(servers[0], sent, until=5))]
    assert [each["results"][0]["values"] for each in found[:4]] == [[name] for name in names]
    assert len(found) == 5
    assert short == [PATH]


def test_a_caller_who_goes_away_harms_nobody(servers) -> None:
    """Neither before nor after its body is whole."""
    for cut in (20, len(request()) - 5, len(request())):
        with socket.create_connection(("127.0.0.1", servers[0]), 10) as connection:
            connection.sendall(request()[:cut])
    assert whole_responses(exchange(servers[0], request()))


def test_open_requests_are_answered_before_the_server_ends(project, landed, monkeypatch) -> None:
    """The connection is then closed, and says so."""
    begun, true = threading.Event(), FeaturesRoute.respond

    async def slow(self, *given):
        begun.set()
        await protocol.asyncio.sleep(0.3)
        return await true(self, *given)

    monkeypatch.setattr(FeaturesRoute, "respond", slow)
    got: list[bytes] = []
    with project.serve(project.make_app(landed)) as client:
        thread = threading.Thread(target=lambda: got.append(exchange(client.base_url.port, request())))
        thread.start()
        assert begun.wait(5)
    thread.join(10)
    assert b"200 OK" in got[0]
    assert b"connection: close" in got[0]
    assert whole_responses(got[0])


def test_a_broken_handler_ends_its_connection_only(project, landed, monkeypatch) -> None:
    """What no handler should do, raising, is no silence."""

    async def broken(self, *given):
        raise RuntimeError("planted")

    true = FeaturesRoute.respond
    with project.serve(project.make_app(landed)) as client:
        port = client.base_url.port
        monkeypatch.setattr(FeaturesRoute, "respond", broken)
        assert b"200" not in exchange(port, request())
        monkeypatch.setattr(FeaturesRoute, "respond", true)
        assert whole_responses(exchange(port, request()))
