"""Nothing that a caller sends, or that the store holds, is a failure of ours: no answer is 500."""

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from served_project import GOOD, NOW_US, PROJECT, land, make_app, make_plan, serve

from featurestore.api.access import ApiKeys
from featurestore.api.audit import AuditLog
from featurestore.api.faults import Refused
from featurestore.api.gate import Gate
from featurestore.api.limits import Limits
from featurestore.api.tokens import Tokens, TokenSettings
from featurestore.api.writes import Writes, appender
from featurestore.clock import iso, parse_instant
from featurestore.config import OnlineSettings
from featurestore.errors import UsageError
from featurestore.online.connection import StoreClient, connect
from featurestore.online.server import EmbeddedServer
from featurestore.online.writer import RowWriter
from featurestore.plan_store import PlanStore
from validation.violations import ViolationStore

KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreClient]:
    """A store of these tests alone."""
    folder = tmp_path_factory.mktemp("no-500")
    with EmbeddedServer(folder) as server:
        client = connect(OnlineSettings(url=f"unix://{server.address}"), folder)
        yield client
        client.close()


@pytest.fixture(scope="module")
def api(spoiled: StoreClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """An open API with every route, over a landed project."""
    store, tmp_path = spoiled, tmp_path_factory.mktemp("api")
    land(store)
    PlanStore(store, PROJECT).publish(make_plan())

    def writes(plan: object) -> Writes:
        return Writes(
            plan, lambda view: RowWriter(store, PROJECT, view, clock=lambda: NOW_US), appender(tmp_path),
            lambda: NOW_US, Limits(),
        )  # fmt: skip

    gate = Gate(keys=ApiKeys(()), open=True, audit=AuditLog(tmp_path / "audit.jsonl", lambda: NOW_US))
    with serve(make_app(store, gate=gate, writes=writes, violations=ViolationStore(tmp_path / "violations"))) as http:
        yield http


INSTANTS = [
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-14:00", "0001-01-01T00:00:00", "9999-12-31T23:59:59Z",
    "0000-01-01", "10000-01-01", "1e400", "9" * 5000, "2024-01-01T00:00:00+99:99", "", "\u0660\u0661", "NaN",
]  # fmt: skip


@pytest.mark.parametrize("text", INSTANTS)
def test_an_instant_at_the_ends_of_time_is_answered(text: str, api: httpx.Client) -> None:
    """As `since` and as `as_of`; what can be read can be written again."""
    assert api.get("/violations", params={"since": text}).status_code in (200, 422)
    for value in (text, text[:200]):
        assert api.post("/get-online-features", json=GOOD | {"as_of": value}).status_code in (200, 422)
    with contextlib.suppress(UsageError):
        iso(parse_instant(text))


@pytest.mark.parametrize("number", [0, -1, 1 << 61, 1 << 62, 1 << 63, 10**400, 1e308, -0.5])
def test_an_instant_as_a_number_is_answered(number: float, api: httpx.Client) -> None:
    """Microseconds beyond the years that have names are refused or answered."""
    body = json.dumps(GOOD)[:-1] + f', "as_of": {number}}}'
    for accept in ("application/json", "application/vnd.featurestore.rows+json", "application/vnd.apache.arrow.stream"):
        answer = api.post("/get-online-features", content=body, headers={"accept": accept})
        assert answer.status_code in (200, 400, 422), answer.text


ODD = [
    "x" * 5000,
    "\x00",
    "../..",
    "\u202e",
    "é" * 200,
    "%",
    "a/b",
    "\ud7ff",
    "🙂" * 100,
    ".",
    "~",
    "[",
    "\n",
    "' OR 1=1",
]


@pytest.mark.parametrize("text", ODD)
def test_odd_and_long_names_are_answered(text: str, api: httpx.Client) -> None:
    """In every parameter and path of the violations' routes, and as names of features, services, keys and views."""
    for name in ("source", "producer", "contract", "after", "limit"):
        answer = api.get("/violations", params={name: text})
        assert answer.status_code in (200, 404, 422), (name, answer.text)
    assert api.get(f"/violations/{httpx.QueryParams({'x': text})!s}"[:8000]).status_code in (404, 422)
    for body in (
        {"features": [text], "entities": {"origin": ["EWR"]}},
        {"feature_service": text, "entities": {"origin": ["EWR"]}},
        {"features": ["weather:temp_f"], "entities": {text: ["EWR"]}},
        {"features": ["weather:temp_f"], "entities": {"origin": [text]}},
    ):
        assert api.post("/get-online-features", json=body).status_code in (200, 400, 404, 422)
    for path, body in (
        ("/push", {"push_source_name": text, "df": {}}),
        ("/push", {"push_source_name": "weather", "df": {text: []}, "to": text}),
        ("/write-to-online-store", {"feature_view_name": text, "df": {}}),
        (
            "/write-to-online-store",
            {"feature_view_name": "weather", "df": {"origin": [text], "event_timestamp": [text]}},
        ),
    ):
        assert 400 <= api.post(path, json=body).status_code < 500


@pytest.mark.parametrize(
    "body",
    [
        b'{"features": ["\\ud800:x"], "entities": {"origin": ["EWR"]}}',
        b'{"features": ["weather:temp_f"], "entities": {"origin": ["\\udfff"]}}',
        b'{"features": ["weather:temp_f"], "entities": {"\\ud800": [1]}}',
        b'{"feature_service": "\\ud800", "entities": {"origin": [1]}}',
        b'{"features": ["weather:temp_f"], "entities": {"origin": ["\xff"]}}',
        b'{"features": ["planes:seats"], "entities": {"plane": [1e400]}}',
        b'{"features": ["planes:seats"], "entities": {"plane": [' + b"9" * 5000 + b"]}}",
        b'{"features": ["planes:seats"], "entities": {"plane": ["' + b"9" * 5000 + b'"]}}',
        b'{"features": ["trip:headwind"], "entities": {"origin": ["EWR"], "sched_hour": [1e19]}}',
        b'{"features": ["echo:back"], "entities": {"sent": [{"a": "\\ud800"}]}}',
    ],
)
def test_halves_of_pairs_and_numbers_without_end_are_answered(body: bytes, api: httpx.Client) -> None:
    """In every place of a request for features."""
    assert api.post("/get-online-features", content=body).status_code in (200, 400, 404, 422)


def test_a_stored_row_that_is_not_utf_8_is_no_failure_of_ours(api: httpx.Client, spoiled: StoreClient) -> None:
    """Text of a row that somebody spoiled: 503 with the reason, in every format, and other rows are served."""
    store = spoiled
    (key,) = [key for key in store.scan_iter(match=b"fs:row:*") if b"gusts" in (store.get(key) or b"")]
    row = store.get(key)
    assert row is not None
    store.set(key, row.replace(b"gusts", b"gu\xff\xfes"))
    for accept in ("application/json", "application/vnd.featurestore.rows+json", "application/vnd.apache.arrow.stream"):
        for features in (["weather:note"], ["weather:note", "weather:temp_f"]):
            asked = {"features": features, "entities": {"origin": ["JFK", "EWR"]}}
            answer = api.post("/get-online-features", json=asked, headers={"accept": accept})
            assert answer.status_code in (200, 503), answer.text
            if answer.status_code == 503:
                assert answer.json()["code"] == "not_ready"
    store.set(key, row)
    sound = {"features": ["weather:note"], "entities": {"origin": ["EWR"]}}
    assert api.post("/get-online-features", json=sound).status_code == 200


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    """Of an issuer whose key is KEY, at second 1000."""
    key = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key())) | {"kid": "k", "alg": "ES256", "use": "sig"}
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [key]}))
    made = Tokens(TokenSettings(jwks=str(path), issuer="i", audience="a"), now_s=lambda: 1000.0)
    made.look()
    return made


def signed(claims: str) -> str:
    """A token whose claims are that JSON text, whatever it says."""
    head = base64.urlsafe_b64encode(b'{"alg":"ES256","kid":"k"}').rstrip(b"=")
    body = base64.urlsafe_b64encode(claims.encode()).rstrip(b"=")
    part = head + b"." + body
    signature = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256).sign(part, KEY)
    return (part + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


MOMENTS = [
    "1" + "0" * 400,
    "1e400",
    "-1e400",
    "NaN",
    "Infinity",
    '"soon"',
    "true",
    "null",
    "[1]",
    "1" + "0" * 5000,
    "1e308",
]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
def test_times_of_a_token_that_are_none_are_refused(moment: str, claim: str, tokens: Tokens) -> None:
    """10^400, infinity, text: 401, no failure. What `iat` says decides nothing, and breaks nothing."""
    claims = {"iss": '"i"', "aud": '"a"', "sub": '"ada"', "exp": "2000", claim: moment}
    text = "{" + ", ".join(f'"{name}": {value}' for name, value in claims.items()) + "}"
    with contextlib.suppress(Refused):
        caller = tokens.verify(signed(text))
        assert claim == "iat" or moment == "-1e400", caller


@pytest.mark.parametrize(
    "sub", ['"\\ud800"', '"a\\u0000b"', '"' + "x" * 5000 + '"', "17", "null", '"\\u202eeve"', '{"a": 1}']
)
def test_an_odd_subject_is_written_into_the_audit_log(sub: str, tokens: Tokens, tmp_path: Path) -> None:
    """Half a surrogate pair, control characters and 5,000 letters are a name that every log can hold, or refused."""
    claims = f'{{"iss": "i", "aud": "a", "exp": 2000, "sub": {sub}, "roles": ["\\ud800", "reader"]}}'
    try:
        caller = tokens.verify(signed(claims))
    except Refused:
        return
    assert len(caller.name) <= 210
    AuditLog(tmp_path / "audit.jsonl", lambda: NOW_US).record(
        "denied", caller=caller.name, address="\ud800", route="/\ud800", resources=["\udfff"], detail="\x1b\ud800"
    )
    (line,) = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert json.loads(line)["caller"].isprintable()


def test_an_unforeseen_error_would_be_seen(store: StoreClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instants were read without a bound: with that, the first of them is a 500 again."""
    from featurestore.api import violation_routes

    def careless(_: str) -> int:
        raise OverflowError("date value out of range")

    monkeypatch.setattr(violation_routes, "parse_instant", careless)
    app = make_app(store, gate=Gate(keys=ApiKeys(()), open=True), violations=ViolationStore(Path("/nowhere")))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    async def ask() -> int:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.get("/violations", params={"since": INSTANTS[0]})).status_code

    began = time.monotonic()
    assert asyncio.run(ask()) == 500
    assert time.monotonic() - began < 10
