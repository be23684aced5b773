"""The Python client against the real API, and against one that fails."""

import asyncio
import contextlib
import time
from datetime import UTC, datetime

import httpx
import orjson
import pyarrow as pa
import pytest

from featurestore.api.access import ApiKeys
from featurestore.api.audit import AuditLog
from featurestore.api.gate import Gate
from featurestore.api.key_store import KeyRing, KeyStore
from featurestore.api.rate import RateLimit
from featurestore.client import AsyncFeatureClient, FeatureClient, RequestRefused
from featurestore.errors import StoreUnavailable, UnknownName, UsageError


@pytest.fixture
def client(api):
    with FeatureClient(str(api.base_url)) as client:
        yield client


def test_typed_answers(client) -> None:
    """Values come back as declared, with statuses, event times and instants beside them."""
    answer = client.get_online_features("delay", {"origin": ["EWR", "JFK"], "plane": [7, 8], "sched_hour": [19, 7]})
    assert len(answer) == 2
    assert answer.names == ["origin", "plane", "temp_f", "station", "seats", "is_evening", "headwind"]
    table = answer.to_arrow()
    assert table.schema.field("station").type == pa.int64()
    assert table.schema.field("seats").type == pa.int32()
    assert table.column("station").to_pylist() == [(1 << 60) + 1, None]
    assert answer.statuses("seats") == ["PRESENT", "NOT_FOUND"]
    assert answer.event_timestamps("temp_f")[0] == datetime(2024, 6, 1, 11, 30, tzinfo=UTC)
    assert answer.event_timestamps("headwind") == [None, None]
    with pytest.raises(UnknownName, match="did you mean 'temp_f'"):
        answer.statuses("tempf")
    assert answer.instant == "2024-06-01T12:00:00Z"
    assert answer.instants("temp_f") == [datetime(2024, 6, 1, 12, tzinfo=UTC)] * 2


def test_frames_keep_integers(client) -> None:
    """In a data frame an integer beside a null keeps its digits."""
    frame = client.get_online_features(["weather:station"], {"origin": ["EWR", "JFK"]}).to_pandas()
    assert frame["station"][0] == (1 << 60) + 1
    assert frame["station"].isna().tolist() == [False, True]


def test_python_values_and_full_names(client) -> None:
    """`to_dict` gives Python's own values, bytes and timestamps included."""
    answer = client.get_online_features(["planes:logo", "planes:made"], {"plane": [7]}, full_feature_names=True)
    assert answer.to_dict() == {
        "plane": [7],
        "planes__logo": [b"\x00\xff"],
        "planes__made": [datetime(1999, 1, 1, tzinfo=UTC)],
    }


def test_refusals_are_typed(client) -> None:
    """A wrong request raises RequestRefused with what would have been right; nothing is sent where that is certain."""
    with pytest.raises(RequestRefused) as caught:
        client.get_online_features("delays", {"origin": ["EWR"]})
    assert (caught.value.status, caught.value.code, caught.value.exists) == (404, "unknown_name", ["delay", "pair"])
    with pytest.raises(UsageError, match="aware"):
        client.get_online_features("delay", {"origin": ["EWR"]}, as_of=datetime(2024, 1, 1))
    with pytest.raises(UsageError, match="cannot be sent"):
        client.get_online_features("delay", {"origin": [object()]})


def failing(*outcomes: object) -> tuple[FeatureClient, list[httpx.Request], list[float]]:
    """A client whose API gives these outcomes in turn, the requests it saw and how long it slept."""
    left, seen, slept = list(outcomes), [], []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    transport = httpx.MockTransport(handle)
    return FeatureClient("http://store", transport=transport, api_key="open sesame", sleep=slept.append), seen, slept


def busy() -> httpx.Response:
    body = orjson.dumps({"code": "store_unavailable", "message": "the store is away", "exists": []})
    return httpx.Response(503, content=body, headers={"Retry-After": "3"})


def ask(client: FeatureClient) -> None:
    client.get_online_features("delay", {"x": [float("nan"), b"\xff"]})


def test_a_busy_service_is_asked_again() -> None:
    """503 is repeated after Retry-After, a cut connection after a moment; the last failure is told."""
    client, seen, slept = failing(busy(), httpx.RemoteProtocolError("cut"), busy())
    with pytest.raises(StoreUnavailable, match="the store is away"):
        ask(client)
    assert len(seen) == 3
    assert slept[0] == 3.0
    assert len(slept) == 2
    assert seen[0].headers["authorization"] == "Bearer open sesame"
    assert orjson.loads(seen[0].content)["entities"] == {"x": ["NaN", "/w=="]}


@pytest.mark.parametrize(
    ("told", "waited"), [("7", 7.0), ("3600", 10.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 1.0), (None, 1.0)]
)
def test_a_rate_limit_is_waited_for(told: str | None, waited: float) -> None:
    """429 is repeated after Retry-After, ten seconds at most; a caller that is refused again and again is told."""
    body = orjson.dumps({"code": "rate_limited", "message": "slower", "exists": []})
    limited = httpx.Response(429, content=body, headers={} if told is None else {"Retry-After": told})
    client, seen, slept = failing(limited, limited, limited)
    with pytest.raises(RequestRefused, match="slower") as caught:
        ask(client)
    assert (caught.value.status, len(seen), slept) == (429, 3, [waited] * 2)


def test_a_rate_limit_of_the_api_itself_is_waited_for(landed, project, tmp_path) -> None:
    """More calls than one a second: all are answered, after the time that the API names; a reading is all that the
    client can repeat, for it has no other call."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        time.sleep(seconds)

    keys = KeyStore(landed, project.name)
    gate = Gate(
        keys=ApiKeys(()),
        ring=KeyRing(keys),
        rate=RateLimit(None, monotonic_s=time.monotonic),
        audit=AuditLog(tmp_path / "audit.jsonl", lambda: project.NOW_US),
    )
    with project.serve(project.make_app(landed, gate=gate)) as api:
        secret, _ = keys.create("test", ("reader",), clock=lambda: project.NOW_US, rate_per_s=1.0)
        gate.look()
        with FeatureClient(str(api.base_url), api_key=secret, sleep=sleep) as client:
            for _ in range(4):
                assert client.get_online_features(["planes:seats"], {"plane": [7]}).to_dict()["seats"] == [55]
    assert set(slept) == {1.0}
    assert [name for name in vars(FeatureClient) if not name.startswith("_")] == ["close", "get_online_features"]


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 422, 500, 502])
def test_what_cannot_change_is_not_repeated(status: int) -> None:
    """A refusal and a defect stay what they are however often they are asked for."""
    client, seen, _ = failing(httpx.Response(status, content=b"<html>"))
    with pytest.raises(Exception, match=f"answered {status} without saying why"):
        ask(client)
    assert len(seen) == 1


def test_connections_are_reused(api) -> None:
    """Calls one after another go over one connection; a refusal does not close it."""
    opened: list[object] = []

    class Counting(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            response = super().handle_request(request)
            opened.append(response.extensions["network_stream"].get_extra_info("client_addr"))
            return response

    with FeatureClient(str(api.base_url), transport=Counting()) as client:
        for service in ("delay", "delays", "delay", "delay"):
            with contextlib.suppress(RequestRefused):
                client.get_online_features(service, ROWS)
    assert len(opened) == 4
    assert len(set(opened)) == 1


def test_a_time_out_is_not_repeated() -> None:
    """A caller that waited its whole time out is not made to wait again."""
    client, seen, _ = failing(httpx.ReadTimeout("slow"))
    with pytest.raises(StoreUnavailable, match="in time"):
        ask(client)
    assert len(seen) == 1


def test_the_async_client_gives_the_same(api) -> None:
    """For a service, references and a refusal the asynchronous client answers what the other one does."""

    async def many(url: str) -> list:
        async with AsyncFeatureClient(url) as client:
            asked = [client.get_online_features("delay", ROWS) for _ in range(8)]
            answers = [each.to_arrow() for each in await asyncio.gather(*asked)]
            with pytest.raises(RequestRefused, match="no feature service"):
                await client.get_online_features("delays", ROWS)
            return answers

    with FeatureClient(str(api.base_url)) as client:
        expected = client.get_online_features("delay", ROWS).to_arrow()
    answers = asyncio.run(many(str(api.base_url)))
    assert len(answers) == 8
    # As text: a NaN does not equal itself.
    assert {repr(answer.to_pylist()) for answer in answers} == {repr(expected.to_pylist())}
    assert {answer.schema for answer in answers} == {expected.schema}


ROWS = {"origin": ["EWR", "JFK"], "plane": [7, 8], "sched_hour": [19, 7]}


def test_the_async_client_asks_again_likewise() -> None:
    """503 and cut connections are repeated after the same waits, the last failure told; a time-out is not repeated."""
    left: list = [busy(), httpx.RemoteProtocolError("cut"), busy(), httpx.ReadTimeout("slow")]
    seen: list[httpx.Request] = []
    slept: list[float] = []

    async def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def scenario() -> None:
        transport = httpx.MockTransport(handle)
        async with AsyncFeatureClient("http://store", transport=transport, api_key="k", sleep=sleep) as client:
            with pytest.raises(StoreUnavailable, match="the store is away"):
                await client.get_online_features("delay", ROWS)
            assert (len(seen), slept) == (3, [3.0, 0.1])
            with pytest.raises(StoreUnavailable, match="in time"):
                await client.get_online_features("delay", ROWS)
            assert len(seen) == 4

    asyncio.run(scenario())
    assert {request.headers["authorization"] for request in seen} == {"Bearer k"}
