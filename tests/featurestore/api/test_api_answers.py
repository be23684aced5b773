"""What the API answers: Feast's JSON, rows, Arrow; from stored and computed features."""

import json
from datetime import UTC, datetime

import msgspec
import pyarrow as pa
import pytest

from featurestore.client import FeatureClient
from featurestore.online.writer import RowWriter
from featurestore.plan_store import PlanStore

ROWS = "application/vnd.featurestore.rows+json"
ARROW = "application/vnd.apache.arrow.stream"
EPOCH = "1970-01-01T00:00:00Z"


def column(answer: dict, name: str) -> dict:
    return answer["results"][answer["metadata"]["feature_names"].index(name)]


def test_feasts_shape(ask) -> None:
    """Join keys first, then features in the order asked; values, statuses and event times a row."""
    answer = ask(["weather:note", "weather:temp_f"], {"origin": ["EWR", "JFK", "LGA", "XXX"]})
    assert answer == {
        "results": [
            {
                "values": ["EWR", "JFK", "LGA", "XXX"],
                "statuses": ["PRESENT"] * 4,
                "event_timestamps": [EPOCH] * 4,
            },
            {
                "values": ["", "gusts", None, None],
                "statuses": ["PRESENT", "PRESENT", "OUTSIDE_MAX_AGE", "NOT_FOUND"],
                "event_timestamps": ["2024-06-01T11:30:00Z", "2024-06-01T11:59:00Z", "2024-06-01T08:59:00Z", EPOCH],
            },
            {
                "values": [39.02, None, None, None],
                "statuses": ["PRESENT", "NULL_VALUE", "OUTSIDE_MAX_AGE", "NOT_FOUND"],
                "event_timestamps": ["2024-06-01T11:30:00Z", "2024-06-01T11:59:00Z", "2024-06-01T08:59:00Z", EPOCH],
            },
        ],
        "metadata": {"feature_names": ["origin", "note", "temp_f"], "instant": "2024-06-01T12:00:00Z"},
    }


def test_every_type_has_feasts_json_form(ask) -> None:
    """Large integers keep their digits, NaN is a word, bytes are base64, timestamps whole seconds."""
    answer = ask(["weather:station", "weather:wind_mph"], {"origin": ["EWR", "JFK"]})
    assert column(answer, "station")["values"] == [(1 << 60) + 1, None]
    assert column(answer, "wind_mph")["values"] == [10.0, "NaN"]
    answer = ask(["planes:logo", "planes:made", "planes:tags", "planes:seats"], {"plane": [7]})
    assert [result["values"] for result in answer["results"]] == [[7], ["AP8="], [915148800], [["a", "b"]], [55]]


def test_nested_values_pass_through(api, ask) -> None:
    """A map comes back as it was sent, in JSON and through the client's Arrow."""
    sent = [{"a": [1, None, {"b": "x"}], "c": 1.5}, None]
    assert column(ask(["echo:back"], {"sent": sent}), "back")["values"] == sent
    body = {"features": ["echo:back"], "entities": {"sent": sent}}
    rows = api.post("/get-online-features", json=body, headers={"Accept": ROWS}).json()["rows"]
    assert [row["values"]["back"] for row in rows] == sent
    with FeatureClient(str(api.base_url)) as client:
        assert client.get_online_features(["echo:back"], {"sent": sent}).to_dict() == {"back": sent}


def test_full_feature_names(ask) -> None:
    """With full names a feature goes out as view__feature, computed ones too."""
    answer = ask(["weather:temp_f", "trip:headwind"], {"origin": ["EWR"], "sched_hour": [9]}, full_feature_names=True)
    assert answer["metadata"]["feature_names"] == ["origin", "weather__temp_f", "trip__headwind"]
    assert column(answer, "trip__headwind")["values"] == [15.0]


def test_service_with_computed_features(ask) -> None:
    """A service joins stored and computed features; inputs that nobody asked for stay inside."""
    answer = ask("delay", {"origin": ["EWR", "XXX"], "plane": [7, None], "sched_hour": [19, 7]})
    names = answer["metadata"]["feature_names"]
    assert names == ["origin", "plane", "temp_f", "station", "seats", "is_evening", "headwind"]
    assert column(answer, "is_evening") == {
        "values": [True, False],
        "statuses": ["PRESENT", "PRESENT"],
        "event_timestamps": [EPOCH, EPOCH],
    }
    assert column(answer, "headwind")["statuses"] == ["PRESENT", "NULL_VALUE"]
    assert column(answer, "seats")["statuses"] == ["PRESENT", "NOT_FOUND"]


def test_one_view_under_two_names(ask) -> None:
    """A service may use a view twice, each under its own name and entity column."""
    answer = ask("pair", {"from": ["EWR"], "to": ["JFK"]}, full_feature_names=True)
    assert column(answer, "here__temp_f")["values"] == [39.02]
    assert column(answer, "there__temp_f")["statuses"] == ["NULL_VALUE"]


@pytest.mark.parametrize("value", [7, 7.0, "7"])
def test_keys_are_coerced(ask, value: object) -> None:
    """7, 7.0 and "7" are one INT64 key, and the answer shows it as the entity's type."""
    answer = ask(["planes:seats"], {"plane": [value]})
    assert column(answer, "seats")["values"] == [55]
    assert answer["results"][0]["values"] == [7]


@pytest.mark.parametrize("value", [2.0**53, -1e18])
def test_a_key_that_may_be_a_rounded_integer_is_refused(api, value: float) -> None:
    """From 2^53 on a float stands for several integers, and one of them is another entity."""
    response = api.post("/get-online-features", json={"features": ["planes:seats"], "entities": {"plane": [value]}})
    assert response.status_code == 422
    assert "join key 'plane' is declared INT64" in response.text


def test_rows(api) -> None:
    """Row by row: values, statuses and event times by name."""
    body = {"features": ["weather:temp_f", "weather:note"], "entities": {"origin": ["EWR", "XXX"]}}
    response = api.post("/get-online-features", json=body, headers={"Accept": ROWS})
    assert response.headers["content-type"].startswith(ROWS)
    assert response.json() == {
        "instant": "2024-06-01T12:00:00Z",
        "feature_names": ["origin", "temp_f", "note"],
        "rows": [
            {
                "values": {"origin": "EWR", "temp_f": 39.02, "note": ""},
                "statuses": {"origin": "PRESENT", "temp_f": "PRESENT", "note": "PRESENT"},
                "event_timestamps": {
                    "origin": None,
                    "temp_f": "2024-06-01T11:30:00Z",
                    "note": "2024-06-01T11:30:00Z",
                },
            },
            {
                "values": {"origin": "XXX", "temp_f": None, "note": None},
                "statuses": {"origin": "PRESENT", "temp_f": "NOT_FOUND", "note": "NOT_FOUND"},
                "event_timestamps": {"origin": None, "temp_f": None, "note": None},
            },
        ],
    }


def test_arrow(api) -> None:
    """An Arrow stream is typed as declared: an INT64 beside a null stays one, NaN is not null."""
    body = {
        "features": ["weather:station", "weather:wind_mph", "trip:is_evening"],
        "entities": {"origin": ["EWR", "JFK"], "sched_hour": [20, 1]},
    }
    response = api.post("/get-online-features", json=body, headers={"Accept": ARROW})
    table = pa.ipc.open_stream(response.content).read_all()
    assert table.schema.field("station").type == pa.int64()
    assert table.column("station").to_pylist() == [(1 << 60) + 1, None]
    assert table.column("wind_mph").null_count == 0
    assert table.column("is_evening").to_pylist() == [True, False]
    features = {name: rest for name, *rest in json.loads(table.schema.metadata[b"features"])}
    dtype, status, times = features["station"]
    assert dtype == "INT64"
    assert table.column(f"status:{status}").to_pylist() == ["PRESENT", "NULL_VALUE"]
    assert table.column(f"event_timestamp:{times}")[0].as_py() == datetime(2024, 6, 1, 11, 30, tzinfo=UTC)
    assert features["wind_mph"][2] == times
    assert table.column(f"instant:{features['is_evening'][2]}").null_count == 2
    assert table.schema.metadata[b"instant"] == b"2024-06-01T12:00:00Z"


def test_values_ahead_of_the_clock_say_so(landed, project) -> None:
    """A row dated just ahead of the clock counts; its values name the later instant that they hold at."""
    ahead = pa.table(
        {
            "origin": ["SFO"],
            "temp_f": [60.0],
            "wind_mph": [1.0],
            "station": [1],
            "note": ["early"],
            "ts": pa.array([project.NOW_US + 2_000_000], pa.timestamp("us", tz="UTC")),
        }
    )
    view = project.make_plan().views["weather"]
    RowWriter(landed, project.name, view, clock=lambda: project.NOW_US).write(ahead, event_timestamp="ts")
    with project.serve(project.make_app(landed)) as api:
        body = {"features": ["weather:temp_f"], "entities": {"origin": ["EWR", "SFO"]}}
        answer = api.post("/get-online-features", json=body).json()
        rows = api.post("/get-online-features", json=body, headers={"Accept": ROWS}).json()["rows"]
    assert answer["metadata"]["instant"] == "2024-06-01T12:00:00Z"
    assert column(answer, "temp_f")["instants"] == ["2024-06-01T12:00:00Z", "2024-06-01T12:00:02Z"]
    assert "instants" not in rows[0]
    assert rows[1]["instants"] == {"origin": None, "temp_f": "2024-06-01T12:00:02Z"}


def test_as_of_is_exact_or_refused(api, ask) -> None:
    """An instant before the stored row cannot be answered exactly; one after it can, and is the answer's instant."""
    at = ask(["weather:temp_f"], {"origin": ["EWR"]}, as_of="2024-06-01T13:45:00+02:00")
    assert at["metadata"]["instant"] == "2024-06-01T11:45:00Z"
    assert column(at, "temp_f")["values"] == [39.02]
    body = {"features": ["weather:temp_f"], "entities": {"origin": ["EWR"]}, "as_of": "2024-06-01T11:00:00Z"}
    refused = api.post("/get-online-features", json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "not_exact")


def test_entityless_views(landed, project) -> None:
    """A view without entities has one row, which every row of the request gets."""
    plan = project.make_plan()
    single = msgspec.structs.replace(plan.views["weather"], name="world", join_keys=())
    PlanStore(landed, project.name).publish(msgspec.structs.replace(plan, version=2, views={"world": single}))
    row = {"temp_f": [1.5], "wind_mph": [1.0], "station": [1], "note": ["x"], "ts": [project.NOW]}
    RowWriter(landed, project.name, single, clock=lambda: project.NOW_US).write(pa.table(row), event_timestamp="ts")
    with project.serve(project.make_app(landed)) as api:
        body = {"features": ["world:temp_f"], "entities": {"any": [1, 2]}}
        answer = api.post("/get-online-features", json=body).json()
        alone = api.post("/get-online-features", json={"features": ["world:temp_f"], "entities": {}}).json()
    assert answer["metadata"]["feature_names"] == ["temp_f"]
    assert column(answer, "temp_f")["values"] == [1.5, 1.5]
    assert column(alone, "temp_f")["values"] == [1.5]


def test_content_type_does_not_matter(api) -> None:
    """Feast's clients send JSON with and without saying so."""
    body = msgspec.json.encode({"features": ["weather:note"], "entities": {"origin": ["EWR"]}})
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/json"}):
        assert api.post("/get-online-features", content=body, headers=headers).status_code == 200


def test_unneeded_columns_are_ignored(ask) -> None:
    """As in Feast, a column that nothing needs is no error and not echoed."""
    answer = ask(["weather:note"], {"origin": ["EWR"], "shoe_size": [44]})
    assert answer["metadata"]["feature_names"] == ["origin", "note"]


def test_routes_for_operators(landed, project) -> None:
    """Health, readiness, version and metrics tell what they are for."""
    with project.serve(project.make_app(landed)) as api:
        api.post("/get-online-features", json={"features": ["weather:temp_f"], "entities": {"origin": ["EWR", "LGA"]}})
        assert api.get("/health").json() == {"status": "ok"}
        assert api.get("/ready").json() == {"status": "ready", "plan_version": 1}
        assert api.get("/version").json()["plan_digest"] == "digest-1"
        metrics = api.get("/metrics").text
    assert 'featurestore_values_total{status="OUTSIDE_MAX_AGE",view="weather"} 1.0' in metrics
    assert 'featurestore_value_age_seconds_count{view="weather"} 1.0' in metrics
    assert 'featurestore_request_seconds_count{code="200"} 1.0' in metrics
    assert "featurestore_plan_version 1.0" in metrics


def test_openapi_document(api) -> None:
    """The document describes the request, and what it may be answered."""
    document = api.get("/openapi.json").json()
    operation = document["paths"]["/get-online-features"]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    assert content["schema"]["$ref"].rsplit("/", 1)[-1] in document["components"]["schemas"]
    assert {"200", "4XX", "503"} <= operation["responses"].keys()
