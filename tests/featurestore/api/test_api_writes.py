"""What is written through the API can be read through it, and what must not be written is refused whole."""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.api.faults import Refused
from featurestore.api.limits import Limits
from featurestore.api.materialization import Materializer, MaterializeRequest, views_of, words_of
from featurestore.api.writes import Writes, appender
from featurestore.errors import FeatureStoreError, UsageError
from featurestore.online.writer import RowWriter
from featurestore.plan import Field, JoinKey, Plan, Source, Topic, View
from featurestore.plan_store import PlanStore
from validation.contract import Column, Contract, Rule

NOW = datetime(2024, 6, 1, 12, tzinfo=UTC)


def pushed(plan: Plan, path: str) -> Plan:
    """The tests' plan with a push source into two views over one folder, a windowed view and a contract."""
    source = Source(
        name="gusts",
        path=path,
        timestamp_field="at",
        created_field="made",
        field_mapping={"gust": "gust_mph"},
        push="gusts_push",
    )
    key = (JoinKey(entity="origin", name="origin", dtype="STRING"),)
    gusts = View(
        name="gusts", version=1, kind="latest", join_keys=key, ttl_us=0, source=source,
        features=(Field(name="gust_mph", dtype="DOUBLE"), Field(name="seen", dtype="INT64")),
    )  # fmt: skip
    calm = msgspec.structs.replace(gusts, name="calm", features=(Field(name="gust_mph", dtype="DOUBLE"),))
    topic = Topic(name="departures", bootstrap_servers="", message_format="json")
    windowed = View(
        name="late", version=1, kind="windowed", join_keys=key, ttl_us=0, features=(),
        source=Source(name="dep", path="x", timestamp_field="ts", topic=topic, push="gone_push"),
    )  # fmt: skip
    contract = Contract(
        name="gusts",
        version="1.0.0",
        source="gusts",
        columns=(Column(name="gust", logical_type="number"), Column(name="other", logical_type="string")),
        rules=(
            Rule(
                id="sane",
                expectation="expect_column_values_to_be_between",
                arguments={"column": "gust", "min_value": 0, "max_value": 300},
                mode="quarantine",
            ),
            Rule(
                id="known",
                expectation="expect_column_values_to_not_be_null",
                arguments={"column": "other"},
                mode="block",
            ),
        ),
    )  # fmt: skip
    hidden = msgspec.structs.replace(
        gusts, name="hidden", online=False, source=msgspec.structs.replace(source, push="hidden_push", path="hidden")
    )
    views = plan.views | {"gusts": gusts, "calm": calm, "late": windowed, "hidden": hidden}
    return msgspec.structs.replace(plan, views=views, contracts={"gusts": contract}, version=7, digest="pushed")


def writes_of(store, project, folder: Path):
    clock = lambda: project.NOW_US  # noqa: E731 - as the clocks of the other tests are
    limits = Limits()
    return lambda plan: Writes(
        plan, lambda view: RowWriter(store, plan.project, view, clock=clock), appender(folder), clock, limits
    )


@pytest.fixture
def writing(landed, project, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of an API that may write, over a plan with push sources; sources lie in the test's folder."""
    PlanStore(landed, project.name).publish(pushed(project.make_plan(), "gusts"))
    app = project.make_app(landed, writes=writes_of(landed, project, tmp_path))
    with project.serve(app) as client:
        yield client


def served(client: httpx.Client, feature: str, **entities: list) -> list:
    response = client.post("/get-online-features", json={"features": [feature], "entities": entities})
    assert response.status_code == 200, response.text
    return response.json()["results"][1]["values"]


def frame(**changes: object) -> dict:
    return {"origin": ["EWR", "JFK"], "gust": [30.5, None], "seen": [1, (1 << 60) + 1],
            "at": ["2024-06-01T11:00:00Z", "2024-06-01T11:30:00"]} | changes  # fmt: skip


def test_what_is_written_is_served(writing) -> None:
    """Rows of /write-to-online-store come back exactly, in pandas' own JSON too, and an older row changes nothing."""
    df = {
        "origin": {"0": "EWR"}, "temp_f": {"0": "NaN"}, "wind_mph": {"0": 3}, "station": {"0": (1 << 60) + 3},
        "note": {"0": None}, "event_timestamp": {"0": "2024-06-01T11:59:00"}, "unknown": {"0": 1},
    }  # fmt: skip
    body = {"feature_view_name": "weather", "df": df, "allow_registry_cache": False}
    response = writing.post("/write-to-online-store", content=json.dumps(body))
    assert (response.status_code, response.json()) == (200, {"rows": 1, "written": 1, "superseded": 0})
    assert served(writing, "weather:station", origin=["EWR"]) == [(1 << 60) + 3]
    assert served(writing, "weather:temp_f", origin=["EWR"]) == ["NaN"]
    older = df | {"station": {"0": 9}, "event_timestamp": {"0": "2024-06-01T10:00:00Z"}}
    told = writing.post("/write-to-online-store", json={"feature_view_name": "weather", "df": older}).json()
    assert told == {"rows": 1, "written": 0, "superseded": 1}
    assert served(writing, "weather:station", origin=["EWR"]) == [(1 << 60) + 3]


def test_a_push_reaches_every_view_and_the_source_once(writing, tmp_path: Path) -> None:
    """online_and_offline: both views of the push source serve the rows, their one source holds each row once."""
    body = {"push_source_name": "gusts_push", "df": frame(), "to": "online_and_offline"}
    response = writing.post("/push", json=body)
    assert (response.status_code, response.json()) == (200, {"rows": 2, "written": 4, "superseded": 0})
    assert served(writing, "gusts:gust_mph", origin=["EWR", "JFK"]) == [30.5, None]
    assert served(writing, "calm:gust_mph", origin=["EWR", "JFK"]) == [30.5, None]
    assert served(writing, "gusts:seen", origin=["JFK"]) == [(1 << 60) + 1]
    stored = pq.read_table(tmp_path / "gusts")
    assert sorted(stored.column_names) == ["at", "gust", "made", "origin", "seen"]
    assert stored.num_rows == 2
    assert stored["seen"].to_pylist() == [1, (1 << 60) + 1]
    assert stored["made"].to_pylist() == [NOW, NOW]


def test_a_push_goes_where_it_is_said_to(writing, tmp_path: Path) -> None:
    """offline changes nothing online, online nothing offline."""
    assert writing.post("/push", json={"push_source_name": "gusts_push", "df": frame(), "to": "offline"}).json() == {
        "rows": 2
    }
    assert served(writing, "gusts:seen", origin=["EWR"]) == [None]
    assert writing.post("/push", json={"push_source_name": "gusts_push", "df": frame(seen=[8, 8])}).status_code == 200
    assert served(writing, "gusts:seen", origin=["EWR"]) == [8]
    assert pq.read_table(tmp_path / "gusts")["seen"].to_pylist() == [1, (1 << 60) + 1]


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"at": ["2024-06-01T11:00:00Z", "2024-06-01T12:01:00Z"]}, 422, "ahead of the clock in row 1"),
        ({"at": ["2024-06-01T11:00:00Z", None]}, 422, "event time is null in row 1"),
        ({"at": [1, "yesterday"]}, 422, "UNIX_TIMESTAMP"),
        ({"origin": [None, "JFK"]}, 422, "join key 'origin' is null in row 0"),
        ({"origin": ["JFK"]}, 422, "differ in length"),
        ({"origin": "JFK"}, 422, "neither a list"),
        ({"gust": [301, -1]}, 422, "row 0, 1 (counted from 0) breaks contract 'gusts', rules sane"),
        ({"gust": ["30", 1]}, 422, "column 'gust_mph': declared DOUBLE, found str"),
        ({"seen": [1.5, 1]}, 422, "column 'seen': declared INT64, found a fraction"),
        ({"seen": {"0": 1}}, 422, "differ in length"),
    ],
)
def test_a_wrong_row_refuses_all(writing, tmp_path: Path, changes: dict, status: int, said: str) -> None:
    """One wrong row and nothing of the request is written, online or offline."""
    body = {"push_source_name": "gusts_push", "df": frame(**changes), "to": "online_and_offline"}
    response = writing.post("/push", json=body)
    assert response.status_code == status
    assert said in response.json()["message"]
    assert served(writing, "gusts:seen", origin=["EWR", "JFK"]) == [None, None]
    assert not (tmp_path / "gusts").exists()


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/push", {"push_source_name": "gust_push", "df": {}}, 404, "did you mean 'gusts_push'"),
        ("/push", {"push_source_name": "gusts_push", "df": {}}, 422, "df holds no rows"),
        ("/push", {"push_source_name": "gusts_push", "df": {}, "to": "both"}, 422, "online_and_offline"),
        ("/push", {"push_source_name": "gusts_push", "df": []}, 400, "Expected `object`"),
        ("/push", {"push_source_name": "gone_push", "df": {"a": [1]}}, 422, "produce events to the topic 'departures'"),
        ("/write-to-online-store", {"feature_view_name": "late", "df": {"a": [1]}}, 422, "windowed"),
        ("/write-to-online-store", {"feature_view_name": "hidden", "df": {"a": [1]}}, 422, "not kept online"),
        ("/push", {"push_source_name": "hidden_push", "df": {"a": [1]}}, 422, "not kept online"),
        ("/write-to-online-store", {"feature_view_name": "wether", "df": {"a": [1]}}, 404, "'weather'"),
        ("/write-to-online-store", {"feature_view_name": "weather", "df": {"origin": ["E"]}}, 422, "lacks the columns"),
    ],
)
def test_wrong_writes(writing, path: str, body: dict, status: int, said: str) -> None:
    """Wrong requests are told what is wrong, in the one error shape."""
    response = writing.post(path, json=body)
    assert response.status_code == status
    assert said in response.json()["message"]


def test_an_offline_push_that_does_not_fit_writes_nothing_online(writing, tmp_path: Path) -> None:
    """The offline source comes first: where it refuses, the online store is as it was."""
    (tmp_path / "gusts").mkdir()
    pq.write_table(pa.table({"origin": ["EWR"]}), tmp_path / "gusts" / "a.parquet")
    body = {"push_source_name": "gusts_push", "df": frame(), "to": "online_and_offline"}
    response = writing.post("/push", json=body)
    assert response.status_code == 422
    assert served(writing, "gusts:seen", origin=["EWR"]) == [None]


def test_a_contract_that_is_not_asked_would_be_seen(landed, project, tmp_path, monkeypatch) -> None:
    """With the contract's check left out, the same wrong rows go in: the test above can fail."""
    monkeypatch.setattr("featurestore.api.writes.rules_of", lambda *_: None)
    PlanStore(landed, project.name).publish(pushed(project.make_plan(), "gusts"))
    with project.serve(project.make_app(landed, writes=writes_of(landed, project, tmp_path))) as api:
        assert (
            api.post("/push", json={"push_source_name": "gusts_push", "df": frame(gust=[301, -1])}).status_code == 200
        )


def test_requests_become_commands() -> None:
    """Instants are normalized; views come after the end of options, so that none of them is taken for one."""
    request = MaterializeRequest(start_ts="2013-01-01", end_ts="2013-01-02T01:00:00+01:00", feature_views=["a"])
    assert words_of(request, ["a"]) == [
        "--start", "2013-01-01T00:00:00Z", "--end", "2013-01-02T00:00:00Z", "--", "a",
    ]  # fmt: skip
    assert words_of(MaterializeRequest(disable_event_timestamp=True), ["a", "b"]) == ["--", "a", "b"]
    with pytest.raises(UsageError, match="no view"):
        words_of(MaterializeRequest(disable_event_timestamp=True), [])
    for wrong in (
        MaterializeRequest(),
        MaterializeRequest(start_ts="2013-01-02", end_ts="2013-01-01"),
        MaterializeRequest(start_ts="soon", end_ts="2013-01-01"),
        MaterializeRequest(start_ts="0001-01-01T00:00:00+12:00", end_ts="2013-01-01"),
        MaterializeRequest(start_ts="2013-01-01", end_ts="2013-01-02", version="v2"),
    ):
        with pytest.raises(UsageError):
            words_of(wrong, ["a"])


def test_an_offline_view_is_pushed_offline(writing, tmp_path: Path) -> None:
    """A view that is not kept online takes offline pushes."""
    body = {"push_source_name": "hidden_push", "df": frame(), "to": "offline"}
    assert writing.post("/push", json=body).json() == {"rows": 2}
    assert pq.read_table(tmp_path / "hidden").num_rows == 2


def test_windowed_views_are_not_materialized(project) -> None:
    """A windowed view that is named is refused with the reason; where none is named it is left out."""
    plan = pushed(project.make_plan(), "gusts")
    assert views_of(MaterializeRequest(), plan) == ["weather", "planes", "gusts", "calm"]
    with pytest.raises(UsageError, match="the stream keeps it current"):
        views_of(MaterializeRequest(feature_views=["late"]), plan)


SLEEPER = (
    "import sys, time, pathlib; pathlib.Path(sys.argv[2], 'words').write_text(repr(sys.argv)); time.sleep({s}); {end}"
)


def materializer(folder: Path, seconds: float, end: str = "") -> Materializer:
    return Materializer(folder, folder, {}, [sys.executable, "-c", SLEEPER.format(s=seconds, end=end)])


def test_one_materialization_at_a_time(tmp_path: Path) -> None:
    """While one runs another is refused, even by another worker, even after the starter has gone; then it is let in."""

    async def scenario() -> None:
        first = materializer(tmp_path, 1.0)
        await first.run(["--incremental"], wait=False)
        del first
        with pytest.raises(Refused) as refused:
            await materializer(tmp_path, 0).run([], wait=True)
        assert (refused.value.status, refused.value.code) == (409, "already_materializing")
        deadline = time.monotonic() + 20
        for _ in itertools.count():
            try:
                await materializer(tmp_path, 0).run([], wait=True)
                break
            except Refused:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
        assert "--incremental" not in (tmp_path / "words").read_text()

    asyncio.run(scenario())


def test_what_the_command_says_is_told(tmp_path: Path) -> None:
    """Exit code 2 is a wrong request, any other a failure of the service; its last line is the message."""
    say = "sys.stderr.write('noise\\nerror: no view x\\n'); sys.exit({})"
    with pytest.raises(UsageError, match="materialize: no view x"):
        asyncio.run(materializer(tmp_path, 0, say.format(2)).run([], wait=True))
    with pytest.raises(FeatureStoreError, match="materialize: no view x") as failed:
        asyncio.run(materializer(tmp_path, 0, say.format(1)).run([], wait=True))
    assert not isinstance(failed.value, UsageError)


@pytest.mark.parametrize(("code", "told"), [(5, "contract_broken"), (3, "check_broke")])
def test_a_contract_that_stops_a_materialization_is_told_apart(code: int, told: str, tmp_path: Path) -> None:
    """Bad data and a check that broke are no failure of the service, and not the same."""
    say = f"sys.stderr.write('error: contract c: 1 of 3 rows\\n'); sys.exit({code})"
    with pytest.raises(Refused, match="1 of 3 rows") as refused:
        asyncio.run(materializer(tmp_path, 0, say).run([], wait=True))
    assert (refused.value.status, refused.value.code) == (422, told)


def test_materialize_routes(landed, project, tmp_path: Path) -> None:
    """Feast's statuses: 200 at the end, 202 with the views for async, 409 while one runs, 4xx for wrong requests."""
    app = project.make_app(
        landed, writes=writes_of(landed, project, tmp_path), materializer=materializer(tmp_path, 1.0)
    )
    with project.serve(app) as api:
        body = {"start_ts": "2013-01-01T00:00:00", "end_ts": "2013-01-02T00:00:00", "feature_views": ["weather"]}
        response = api.post("/materialize?async=true", json=body)
        assert (response.status_code, response.json()) == (202, {"status": "accepted", "feature_views": ["weather"]})
        assert api.post("/materialize-incremental", json={"end_ts": "2013-01-02"}).status_code == 409
        for wrong, status in (({}, 422), (body | {"feature_views": ["x"]}, 404), (body | {"start_ts": 1}, 400)):
            assert api.post("/materialize", json=wrong).status_code == status
        assert api.post("/materialize?async=perhaps", json=body).json()["code"] == "invalid_request"
        deadline = time.monotonic() + 20
        while (response := api.post("/materialize-incremental", json={"end_ts": "2013-01-02"})).status_code == 409:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert (response.status_code, response.json()) == (200, None)
        assert "'--incremental', '--end', '2013-01-02T00:00:00Z'" in (tmp_path / "words").read_text()
