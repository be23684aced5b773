"""What the API refuses: each wrong request gets a 4xx of one shape that says what would have been right."""

import hashlib
import json

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.api.access import ApiKeys, check_bind, keys_of
from featurestore.errors import ConfigurationError

GOOD = {"features": ["weather:temp_f"], "entities": {"origin": ["EWR"]}}


def refusal(api, body: object, **options: object) -> dict:
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    response = api.post("/get-online-features", content=content, **options)
    told = response.json()
    assert set(told) == {"code", "message", "exists"}
    assert response.headers["content-type"] == "application/json"
    return {"status": response.status_code, **told}


@pytest.mark.parametrize(
    ("body", "status", "code", "said"),
    [
        (GOOD | {"features": ["wether:temp_f"]}, 404, "unknown_name", "did you mean 'weather'?"),
        (GOOD | {"features": ["weather:tmp"]}, 404, "unknown_name", "no feature in view 'weather'"),
        (GOOD | {"features": ["temp_f"]}, 404, "unknown_name", "view:feature"),
        (GOOD | {"features": ["trip:speed"]}, 404, "unknown_name", "headwind"),
        ({"feature_service": "delays", "entities": {"origin": ["EWR"]}}, 404, "unknown_name", "'delay'"),
        (GOOD | {"features": []}, 422, "invalid_request", "no features"),
        (GOOD | {"feature_service": "delay"}, 422, "invalid_request", "both"),
        (GOOD | {"features": ["weather:temp_f"] * 2}, 422, "invalid_request", "comes from view 'weather' and from"),
        (GOOD | {"entities": {}}, 422, "invalid_request", "no rows"),
        (GOOD | {"entities": {"origin": []}}, 422, "invalid_request", "no rows"),
        (GOOD | {"entities": {"orign": ["EWR"]}}, 422, "invalid_request", "lacks the column 'origin'"),
        (GOOD | {"entities": {"origin": ["EWR"], "x": [1, 2]}}, 422, "invalid_request", "origin has 1, x has 2"),
        (GOOD | {"entities": {"origin": [["EWR"]]}}, 422, "invalid_request", "a JSON array cannot"),
        (GOOD | {"entities": {"origin": [True]}}, 422, "invalid_request", "a JSON boolean cannot"),
        ({"features": ["planes:seats"], "entities": {"plane": [7.5]}}, 422, "invalid_request", "declared INT64"),
        ({"features": ["planes:seats"], "entities": {"plane": ["07"]}}, 422, "invalid_request", "declared INT64"),
        ({"features": ["planes:seats"], "entities": {"plane": [10**30]}}, 422, "invalid_request", "INT64"),
        (
            {"features": ["trip:headwind"], "entities": {"origin": ["EWR"]}},
            422,
            "invalid_request",
            "needed: origin, sched_hour",
        ),
        (
            {"features": ["trip:headwind"], "entities": {"origin": ["EWR"], "sched_hour": ["nine"]}},
            422,
            "invalid_request",
            "request column 'sched_hour': declared INT64, found str",
        ),
        (GOOD | {"features": ["x" * 101 + ":y"]}, 422, "too_large", "longer than 100"),
        ({"features": ["echo:back"], "entities": {"sent": [{"a": 10**30}]}}, 422, "invalid_request", "nested value"),
        (GOOD | {"as_of": "yesterday"}, 422, "invalid_request", "RFC 3339"),
        (GOOD | {"as_of": -1}, 422, "invalid_request", "microseconds"),
        (GOOD | {"as_of": "2999-01-01T00:00:00Z"}, 422, "not_exact", "future"),
        (GOOD | {"entities": {"origin": ["E"] * 51}}, 422, "too_large", "51 entities"),
        (GOOD | {"features": ["weather:temp_f"] * 21}, 422, "too_large", "21 features"),
        (GOOD | {"entities": {"origin": ["E" * 101]}}, 422, "too_large", "longer than 100"),
        (GOOD | {"entities": {"origin": ["E" * 30_000]}}, 413, "body_too_large", "20000 bytes"),
        (GOOD | {"features": "weather:temp_f"}, 400, "invalid_body", "Expected `array`"),
        ([], 400, "invalid_body", "Expected `object`"),
        ({"features": ["weather:temp_f"]}, 400, "invalid_body", "entities"),
        (b"", 400, "malformed_json", "not JSON"),
        (b"{", 400, "malformed_json", "not JSON"),
        (b'{"entities": {"origin": ["\xff"]}}', 400, "malformed_json", "not JSON"),
        (b'{"entities": {"origin": [NaN]}}', 400, "malformed_json", "not JSON"),
        (b'{"entities": {"origin": ' + b"[" * 10_000, 400, "malformed_json", "not JSON"),
        (b'{"entities": {"origin": ["\\ud800"]}}', 400, "malformed_json", "not JSON"),
    ],
)
def test_wrong_requests(api, body: object, status: int, code: str, said: str) -> None:
    """Every wrong request is told what is wrong with it."""
    told = refusal(api, body)
    assert (told["status"], told["code"]) == (status, code)
    assert said in told["message"]


def test_what_exists_is_listed(api) -> None:
    """An unknown name comes with all names that would have been right."""
    assert refusal(api, GOOD | {"features": ["wether:temp_f"]})["exists"] == ["echo", "planes", "trip", "weather"]


def test_a_body_without_length_is_cut(api) -> None:
    """A chunked body is refused as soon as it is too large."""
    told = refusal_of_stream(api, (b" " * 1_000 for _ in range(1_000)))
    assert (told.status_code, told.json()["code"]) == (413, "body_too_large")


def refusal_of_stream(api, chunks):
    return api.post("/get-online-features", content=chunks)


def test_accept_is_honoured(api) -> None:
    """What we cannot answer in is refused; a list takes the first that we can."""
    assert refusal(api, GOOD, headers={"Accept": "text/html"})["status"] == 406
    response = api.post("/get-online-features", json=GOOD, headers={"Accept": "text/html, */*;q=0.1"})
    assert response.headers["content-type"] == "application/json"


def test_unknown_routes_have_the_same_shape(api) -> None:
    """A wrong path or method is told in the one error shape."""
    for response, status in ((api.get("/nowhere"), 404), (api.get("/get-online-features"), 405)):
        assert response.status_code == status
        assert "/get-online-features" in response.json()["exists"]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
WHOLE = {
    "feature_service": "delay",
    "entities": {
        "origin": ["EWR", "JFK"],
        "plane": [7, None],
        "sched_hour": [19, 7],
        "from": ["EWR", ""],
        "to": ["", ""],
        "sent": [{}, None],
    },
}
REFS = st.sampled_from(["weather:temp_f", "planes:seats", "trip:headwind", "echo:back", "weather:", ":"])
FIELDS = {
    "features": st.lists(REFS | st.text(max_size=3), max_size=3),
    "feature_service": st.sampled_from(["delay", "pair", "x", None]),
    "full_feature_names": st.booleans(),
    "as_of": st.integers() | st.datetimes().map(str) | st.datetimes().map(lambda when: when.isoformat() + "Z"),
    "other": VALUES,
}
COLUMNS = {
    "origin": st.text(max_size=3),
    "plane": st.integers() | st.integers().map(str) | st.floats(),
    "sched_hour": st.integers() | st.booleans(),
    "from": st.integers(),
    "to": st.none(),
    "sent": st.dictionaries(st.text(max_size=3), VALUES),
}


@st.composite
def bodies(draw: st.DrawFn) -> dict:
    """A good request with up to three things changed: mostly to something plausible, sometimes to anything."""
    body: dict = WHOLE | {"entities": dict(WHOLE["entities"])}
    if draw(st.booleans()):
        body |= {"feature_service": None, "features": ["weather:temp_f", "planes:seats", "echo:back"]}
    for _ in range(draw(st.integers(0, 3))):
        wild = draw(st.integers(0, 3)) == 0
        if draw(st.booleans()):
            name = draw(st.sampled_from([*FIELDS, "entities"]))
            body[name] = draw(VALUES if wild or name == "entities" else FIELDS[name])
        elif isinstance(body["entities"], dict):
            name = draw(st.sampled_from(list(COLUMNS)))
            body["entities"][name] = draw(VALUES if wild else st.lists(COLUMNS[name], min_size=2, max_size=2))
    return body


def test_no_body_breaks_the_service(landed, project) -> None:
    """Whatever JSON is sent, the answer is 200 or a 4xx of the one shape, never a 5xx."""
    with project.serve(project.make_app(landed)) as api:
        seen: set[int] = set()

        @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
        @given(
            bodies(),
            st.sampled_from(["*/*", "application/vnd.featurestore.rows+json", "application/vnd.apache.arrow.stream"]),
        )
        def fuzz(body: dict, accept: str) -> None:
            response = api.post("/get-online-features", content=json.dumps(body).encode(), headers={"Accept": accept})
            seen.add(response.status_code)
            assert response.status_code in (200, 400, 404, 413, 422), response.text

        fuzz()
        assert {200, 400, 422} <= seen

        @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.binary(max_size=200))
        def fuzz_bytes(body: bytes) -> None:
            assert api.post("/get-online-features", content=body).status_code == 400

        fuzz_bytes()


def test_the_fuzz_can_fail(landed, project) -> None:
    """A handler that breaks on a value is seen as 5xx by the same client."""

    class Broken:
        def read(self, *_: object, **__: object) -> None:
            raise KeyError("planted")

    app = project.make_app(landed, reader=lambda plan: Broken())
    with project.serve(app) as api:
        told = refusal(api, GOOD)
    assert (told["status"], told["code"]) == (500, "defect")


def test_keys_are_asked_for(landed, project) -> None:
    """With keys set, every route but health and readiness wants one; the others are as good as none."""
    keys = keys_of({"FEATURESTORE_API_KEYS": hashlib.sha256(b"open sesame").hexdigest()})
    with project.serve(project.make_app(landed, keys=keys)) as api:
        for headers in ({}, {"Authorization": "Bearer open"}, {"Authorization": "open sesame"}, {"X-API-Key": b"\xff"}):
            assert refusal(api, GOOD, headers=headers)["status"] == 401
            assert api.get("/metrics", headers=headers).status_code == 401
            assert api.get("/version", headers=headers).status_code == 401
        for headers in ({"Authorization": "Bearer open sesame"}, {"X-API-Key": "open sesame"}):
            assert api.post("/get-online-features", json=GOOD, headers=headers).status_code == 200
        assert api.get("/health").status_code == api.get("/ready").status_code == 200


def test_a_key_is_not_its_digest(landed, project) -> None:
    """Who can read the configuration still cannot get in."""
    digest = hashlib.sha256(b"open sesame").hexdigest()
    with project.serve(project.make_app(landed, keys=keys_of({"FEATURESTORE_API_KEYS": digest}))) as api:
        assert refusal(api, GOOD, headers={"X-API-Key": digest})["status"] == 401


def test_a_pasted_key_is_noticed() -> None:
    """A key in place of its digest is refused, without showing it."""
    with pytest.raises(ConfigurationError) as caught:
        keys_of({"FEATURESTORE_API_KEYS": "open sesame"})
    assert "sesame" not in str(caught.value)


def test_no_network_without_keys() -> None:
    """A listener that others can reach needs keys; loopback does not."""
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org", ""):
        with pytest.raises(ConfigurationError, match="API key"):
            check_bind(host, ApiKeys(()))
        check_bind(host, ApiKeys((b"x" * 32,)))
    check_bind("127.0.0.1", ApiKeys(()))
