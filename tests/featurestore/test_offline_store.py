"""Does Feast's SDK, unchanged, get from our offline store what it promises?"""

import logging
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.errors import SourceError, UsageError
from featurestore.offline import asof, connection, mapped, windowed_stored
from featurestore.offline.connection import Limits
from featurestore.offline.event_log import write_events
from featurestore.offline.history import historical_features
from featurestore.plugins import offline_store

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*experimental feature.*:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.xdist_group("feast"),
]

T0 = datetime(2024, 1, 1, tzinfo=UTC)
US = pa.timestamp("us", "UTC")
DDL = "card string, fare double, event_timestamp timestamp"


def hours(*values: float | None) -> pa.Array:
    return pa.array([None if value is None else T0 + timedelta(hours=value) for value in values], US)


def store_of(repo: Path, offline: str = "featurestore.plugins.DuckDBOfflineStore") -> Any:
    from feast import FeatureStore

    (repo / "feature_store.yaml").write_text(
        f"project: demo\nprovider: local\nregistry: {offline.rsplit('.')[-1]}.db\noffline_store:\n  type: {offline}\n"
        "online_store:\n  type: sqlite\n  path: online.db\nentity_key_serialization_version: 3\n"
    )
    return FeatureStore(str(repo))


def definitions() -> list[Any]:
    from feast import (
        Entity,
        FeatureService,
        FeatureView,
        Field,
        FileSource,
        KafkaSource,
        RequestSource,
        StreamFeatureView,
        ValueType,
    )
    from feast.aggregation import Aggregation
    from feast.data_format import JsonFormat
    from feast.on_demand_feature_view import on_demand_feature_view
    from feast.types import Array, Float64, Int64, String

    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    card = Entity(name="card", join_keys=["card"], value_type=ValueType.STRING)
    trips = FileSource(
        name="trips",
        path="data/trips",
        timestamp_field="at",
        created_timestamp_column="made",
        field_mapping={"DRIVER": "driver_id", "n": "trips"},
    )
    stats = FeatureView(
        name="stats",
        entities=[driver],
        ttl=timedelta(hours=2),
        schema=[
            Field(name="driver_id", dtype=Int64),
            Field(name="rate", dtype=Float64),
            Field(name="trips", dtype=Int64),
            Field(name="tags_y", dtype=Array(String)),
        ],
        source=trips,
    )
    city = FeatureView(
        name="city",
        entities=[],
        ttl=timedelta(0),
        schema=[Field(name="holiday", dtype=Int64)],
        source=FileSource(name="days", path="data/days.parquet", timestamp_field="at"),
    )
    asked = RequestSource(name="asked", schema=[Field(name="bonus", dtype=Float64)])

    @on_demand_feature_view(sources=[stats, asked], schema=[Field(name="pay", dtype=Float64)], mode="python")
    def pay(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"pay": [(rate or 0.0) + bonus for rate, bonus in zip(inputs["rate"], inputs["bonus"], strict=True)]}

    log = FileSource(
        name="taps_log", path="data/log/taps", timestamp_field="event_timestamp", created_timestamp_column="_arrival"
    )
    taps = KafkaSource(
        name="taps",
        topic="taps",
        kafka_bootstrap_servers="localhost:1",
        timestamp_field="event_timestamp",
        message_format=JsonFormat(schema_json=DDL),
        batch_source=log,
        tags={"event_id": "uid", "event_id_horizon_s": "3600", "message_key": "card"},
    )
    hour = timedelta(hours=1)
    spending = StreamFeatureView(
        name="spending",
        entities=[card],
        ttl=timedelta(0),
        schema=[
            Field(name="card", dtype=String),
            Field(name="taps_1h", dtype=Int64),
            Field(name="sum_fare_3600s", dtype=Float64),
        ],
        aggregations=[
            Aggregation(column="fare", function="count", time_window=hour, name="taps_1h"),
            Aggregation(column="fare", function="sum", time_window=hour),
        ],
        timestamp_field="event_timestamp",
        source=taps,
    )

    @on_demand_feature_view(sources=[spending], schema=[Field(name="busy", dtype=Float64)], mode="python")
    def pace(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"busy": [taps / 60 for taps in inputs["taps_1h"]]}

    both = FeatureService(
        name="both",
        features=[
            stats[["rate"]].with_name("mine").with_join_key_map({"driver_id": "me"}),
            stats[["rate"]].with_name("yours").with_join_key_map({"driver_id": "you"}),
        ],
    )
    return [driver, card, stats, city, pay, spending, pace, both]


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repo")
    (folder / "data" / "trips").mkdir(parents=True)
    rows = pa.table(
        {
            "DRIVER": pa.array([1, 1, 1, 2, 3], pa.int32()),
            "at": hours(0, 2, 2, 1, 5),
            "made": hours(0, 2, 6, 1, 5),
            "rate": [0.1, 0.2, 0.3, 0.4, 0.5],
            "n": [2**53 + 1, 5, None, 7, 8],
            "tags_y": [["a"], [], None, ["b", "c"], ["d"]],
        }
    )
    pq.write_table(rows.slice(0, 2), folder / "data" / "trips" / "a.parquet")
    pq.write_table(rows.slice(2), folder / "data" / "trips" / "b.parquet")
    pq.write_table(pa.table({"at": hours(0, 4), "holiday": [1, 0]}), folder / "data" / "days.parquet")
    taps = pa.table(
        {
            "uid": ["a", "b", "c", "d", "a"],
            "card": ["x", "x", "x", "z", "x"],
            "fare": [1.0, 2.0, 4.0, 8.0, 1.0],
            "event_timestamp": hours(0.5, 1, 1, 1, 0.5),
            "_arrival": hours(0.5, 1, 3, 1, 1),
            "_offset": [0, 1, 2, 3, 4],
        }
    )
    write_events(folder / "data" / "log" / "taps", taps, topic_id="T", partition=0, first=0, last=4)
    return folder


@pytest.fixture(scope="module")
def store(repo: Path) -> Iterator[Any]:
    store = store_of(repo)
    store.apply(definitions())
    yield store
    store.teardown()


def entities() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "driver_id": [2, 1, 1, 9, 1],
            "event_timestamp": [T0 + timedelta(hours=h) for h in (3, 3, 1, 3, 4)],
            "bonus": [1.0, 2.0, 3.0, 4.0, 5.0],
        }
    )


EXPECTED = [0.4, 0.3, 0.1, None, 0.3]


def test_features_come_in_the_callers_order_and_types(store: Any) -> None:
    """Ttl inclusive on both sides, created breaks the tie, mapped columns, whole numbers exact beside NULL."""
    table = store.get_historical_features(entities(), ["stats:rate", "stats:trips", "stats:tags_y"]).to_arrow()
    assert table.column_names == ["driver_id", "event_timestamp", "bonus", "rate", "trips", "tags_y"]
    assert table["rate"].to_pylist() == EXPECTED
    assert table["trips"].to_pylist() == [7, None, 2**53 + 1, None, None]
    assert table["tags_y"].to_pylist() == [["b", "c"], None, ["a"], None, None]
    frame = store.get_historical_features(entities(), ["stats:trips"]).to_df()
    assert frame["trips"].dtype == pd.Int64Dtype()
    assert frame["trips"][2] == 2**53 + 1


def test_as_known_leaves_out_what_was_created_later(store: Any) -> None:
    """At 03:00 the correction of 06:00 was not known yet."""
    job = store.get_historical_features(entities(), ["stats:rate"], filter_by_created_timestamp=True)
    assert job.to_arrow()["rate"].to_pylist() == [0.4, 0.2, 0.1, None, 0.2]


def test_entity_rows_come_as_pandas_arrow_sql_or_dates(store: Any) -> None:
    """SQL names files of the repo; dates give every (key, event time) of the source."""
    arrow = pa.Table.from_pandas(entities())
    assert store.get_historical_features(arrow, ["stats:rate"]).to_arrow()["rate"].to_pylist() == EXPECTED
    sql = "SELECT DRIVER AS driver_id, \"at\" AS event_timestamp FROM 'data/trips/b.parquet' ORDER BY rate DESC"
    found = store.get_historical_features(sql, ["stats:rate"]).to_arrow()
    assert found.drop("event_timestamp").to_pylist() == [
        {"driver_id": 3, "rate": 0.5},
        {"driver_id": 2, "rate": 0.4},
        {"driver_id": 1, "rate": 0.3},
    ]
    dated = store.get_historical_features(
        None, ["stats:rate"], start_date=T0 + timedelta(hours=1), end_date=T0 + timedelta(hours=2)
    )
    assert dated.to_arrow().to_pylist() == [
        {"driver_id": 2, "event_timestamp": T0 + timedelta(hours=1), "rate": 0.4},
        {"driver_id": 1, "event_timestamp": T0 + timedelta(hours=2), "rate": 0.3},
    ]


@pytest.mark.parametrize("form", ["naive", "zoned", "nanoseconds", "text", "objects"])
def test_timestamps_of_entity_rows_in_every_form(store: Any, form: str) -> None:
    """One instant, however pandas holds it."""
    frame = entities()
    stamps = frame["event_timestamp"]
    frame["event_timestamp"] = {
        "naive": lambda: stamps.dt.tz_localize(None),
        "zoned": lambda: stamps.dt.tz_convert("America/New_York"),
        "nanoseconds": lambda: stamps.astype("datetime64[ns, UTC]") + pd.Timedelta(999, "ns"),
        "text": lambda: stamps.map(lambda stamp: stamp.isoformat()),
        "objects": lambda: pd.Series(
            [
                s.to_pydatetime() if i % 2 else s.tz_convert("Asia/Kolkata").to_pydatetime()
                for i, s in enumerate(stamps)
            ],
            dtype=object,
        ),
    }[form]()
    table = store.get_historical_features(frame, ["stats:rate"]).to_arrow()
    assert table["rate"].to_pylist() == EXPECTED
    assert table.schema.field("event_timestamp").type == US


def test_on_demand_features_are_computed(store: Any) -> None:
    """Feast's own machinery runs them on our table, with its implied inputs."""
    table = store.get_historical_features(entities(), ["pay:pay", "stats:trips"]).to_arrow()
    assert table["pay"].to_pylist() == pytest.approx([1.4, 2.3, 3.1, 4.0, 5.3])
    named = store.get_historical_features(entities(), ["pay:pay", "stats:rate"], full_feature_names=True).to_arrow()
    assert named["stats__rate"].to_pylist() == EXPECTED
    assert named["pay__pay"].to_pylist() == table["pay"].to_pylist()


def test_one_view_twice_under_join_key_maps(store: Any) -> None:
    """A service may ask for one view by two entity columns."""
    rows = pd.DataFrame({"me": [1, 2], "you": [2, 1], "event_timestamp": [T0 + timedelta(hours=1)] * 2})
    service = store.get_feature_service("both")
    table = store.get_historical_features(rows, service, full_feature_names=True).to_arrow()
    assert table.drop("event_timestamp").to_pylist() == [
        {"me": 1, "you": 2, "mine__rate": 0.1, "yours__rate": 0.4},
        {"me": 2, "you": 1, "mine__rate": 0.4, "yours__rate": 0.1},
    ]


def test_an_entity_column_may_be_named_like_a_feature(store: Any) -> None:
    """Under full names there is no doubt which is which; without, the clash is an error that says so."""
    rows = entities().assign(rate=9.0, f0=8)
    table = store.get_historical_features(rows, ["stats:rate"], full_feature_names=True).to_arrow()
    assert table["rate"].to_pylist() == [9.0] * 5
    assert table["stats__rate"].to_pylist() == EXPECTED
    # The view's other features may be called like entity columns: nobody asks for them.
    assert store.get_historical_features(rows, ["stats:trips"]).to_arrow()["rate"].to_pylist() == [9.0] * 5


def test_many_threads_ask_at_once(store: Any) -> None:
    """One store, eight threads, latest values and windows: every answer is right."""
    rows = entities().assign(card="x")

    def ask(_: int) -> pa.Table:
        return store.get_historical_features(rows, ["stats:rate", "spending:taps_1h"]).to_arrow()

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(16)))
    assert answers[0]["rate"].to_pylist() == EXPECTED
    assert all(answer.equals(answers[0]) for answer in answers)


def test_entityless_view(store: Any) -> None:
    """What has no entity is everybody's."""
    rows = pd.DataFrame({"event_timestamp": [T0 + timedelta(hours=h) for h in (3, 4, -1)]})
    assert store.get_historical_features(rows, ["city:holiday"]).to_arrow()["holiday"].to_pylist() == [1, 0, None]


@pytest.mark.parametrize("held_bytes", [windowed_stored.HELD_BYTES, 0], ids=["in memory", "on disk"])
def test_windowed_features_come_from_the_event_log(
    store: Any, held_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts and sums, 0 and NULL of nothing; a duplicate counts not; as known, the late event is not there yet."""
    monkeypatch.setattr(windowed_stored, "HELD_BYTES", held_bytes)
    rows = pd.DataFrame(
        {"card": ["x", "x", "y", "x"], "event_timestamp": [T0 + timedelta(hours=h) for h in (1, 4, 1, 1.75)]}
    )
    wanted = ["spending:taps_1h", "spending:sum_fare_3600s"]
    plain = store.get_historical_features(rows, wanted).to_arrow()
    assert plain["taps_1h"].to_pylist() == [3, 0, 0, 2]
    assert plain["sum_fare_3600s"].to_pylist() == [7.0, None, None, 6.0]
    above = store.get_historical_features(rows, ["pace:busy", "spending:taps_1h"]).to_arrow()
    assert above["busy"].to_pylist() == [3 / 60, 0.0, 0.0, 2 / 60]
    known = store.get_historical_features(rows, wanted, filter_by_created_timestamp=True).to_arrow()
    assert known["taps_1h"].to_pylist() == [2, 0, 0, 1]


def test_windowed_features_at_every_event_of_a_range(store: Any) -> None:
    """Without entity rows, each (key, event time) of the log within the dates is asked about."""
    job = store.get_historical_features(None, ["spending:taps_1h"], start_date=T0, end_date=T0 + timedelta(hours=1))
    assert job.to_arrow().to_pylist() == [
        {"card": "x", "event_timestamp": T0 + timedelta(minutes=30), "taps_1h": 1},
        {"card": "x", "event_timestamp": T0 + timedelta(hours=1), "taps_1h": 3},
        {"card": "z", "event_timestamp": T0 + timedelta(hours=1), "taps_1h": 1},
    ]


def test_a_topic_without_events_yet_counts_zero(store: Any, repo: Path) -> None:
    """The event log of a new topic does not exist; that is no error, for retrieval or for validation."""
    log = repo / "data" / "log" / "taps"
    log.rename(repo / "data" / "log" / "elsewhere")
    try:
        rows = pd.DataFrame({"card": ["x", None], "event_timestamp": [T0, T0]})
        table = store.get_historical_features(rows, ["spending:taps_1h", "spending:sum_fare_3600s"]).to_arrow()
        assert table["taps_1h"].to_pylist() == [0, None]
        assert table["sum_fare_3600s"].null_count == 2
        offline, view = store._get_provider().offline_store, store.get_stream_feature_view("spending")
        offline.validate_data_source(store.config, view.batch_source)
    finally:
        (repo / "data" / "log" / "elsewhere").rename(log)


@pytest.mark.parametrize("as_known", [False, True])
def test_the_plans_history_is_the_same(store: Any, repo: Path, as_known: bool) -> None:
    """What processes without Feast read offline is what Feast's SDK gives: latest and windowed, as known or not."""
    from featurestore.compile import compile_plan, registered  # imports Feast

    plan = compile_plan("demo", registered(store)._replace(on_demand=[], services=[]), [], previous=None, now_us=0)
    refs = ["stats:rate", "stats:trips", "stats:tags_y", "spending:taps_1h", "spending:sum_fare_3600s", "city:holiday"]
    cards = pd.Series(["x", "y", None, "x", "z"])
    rows = entities().drop(columns="bonus").assign(card=cards)
    given = pa.Table.from_pandas(rows, preserve_index=False)
    history = historical_features(plan, plan.projections(refs), given, repo=repo, as_known=as_known)
    sdk = store.get_historical_features(rows, refs, filter_by_created_timestamp=as_known).to_arrow()
    assert history.equals(sdk.select(history.column_names))


def test_a_result_larger_than_memory_is_the_same(store: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file a view, entity rows in stripes, entity rows of SQL in a file: equal tables, and nothing left behind."""
    rows = entities().assign(card=["x", "x", "y", "z", None])
    refs = ["stats:rate", "stats:trips", "stats:tags_y", "spending:taps_1h", "spending:sum_fare_3600s", "pay:pay"]
    sql = "SELECT DRIVER AS driver_id, \"at\" AS event_timestamp FROM 'data/trips/*.parquet' ORDER BY rate"
    jobs = [lambda: store.get_historical_features(rows, refs), lambda: store.get_historical_features(sql, refs[:3])]
    expected = [job().to_arrow() for job in jobs]
    monkeypatch.setattr(mapped, "SHARE", 1 << 60)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for job, table in zip(jobs, expected, strict=True):
        assert job().to_arrow().equals(table)
        assert pa.Table.from_batches(list(job().to_arrow_batches(2))).equals(table)
    pulled = store._get_provider().offline_store.pull_all_from_table_or_query
    view = store.get_feature_view("stats")
    assert pulled(store.config, view.batch_source, ["DRIVER"], ["rate"], "at").to_arrow()["rate"].to_pylist() == [
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
    ]
    assert not list(tmp_path.iterdir())


def test_pieces_of_a_result_read_the_sources_once(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pieces are asked for, each view is joined once."""
    heard: list[str] = []
    monkeypatch.setattr(offline_store, "_joined", heard.append)
    assert len(list(store.get_historical_features(entities(), ["stats:rate", "pay:pay"]).to_arrow_batches(1))) == 5
    assert heard == ["stats"]


def test_long_joins_say_how_far_they_are(
    store: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A line every few seconds, which say the view and the share that is done; then that it is joined."""
    monkeypatch.setattr(offline_store, "WATCH_S", 0)
    monkeypatch.setattr(connection, "WATCH_S", 0.001)
    monkeypatch.setattr(asof, "MEMORY_CELLS", 0)
    rows = entities().assign(card="x")
    with caplog.at_level(logging.INFO, "featurestore"):
        store.get_historical_features(rows, ["stats:rate", "spending:taps_1h"]).to_arrow()
    assert "joining view 'spending': 100 %" in caplog.text
    assert "joined view 'stats'" in caplog.text
    shares: list[float] = []
    with connection.connection(Limits()) as session, connection.watched(session, shares.append):
        session.sql("SELECT max(hash(i)) FROM range(30000000) t(i)").fetchall()
    assert shares
    assert all(0 <= share <= 1 for share in shares)


def test_pieces_without_a_value_have_their_declared_type(store: Any, repo: Path) -> None:
    """An on-demand feature that is NULL throughout a piece is written beside pieces where it is not."""
    from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

    job = store.get_historical_features(entities(), ["stats:rate", "pay:pay"])
    typed = job._typed(pa.table({"pay": pa.nulls(2)}))
    assert typed.schema.field("pay").type == pa.float64()
    job.persist(SavedDatasetFileStorage("data/in_pieces.parquet"))
    assert pq.read_table(repo / "data" / "in_pieces.parquet").equals(job.to_arrow())


def test_batches_and_sql_say_the_same(store: Any) -> None:
    """A result larger than memory comes in pieces; the statement run by hand gives the same values."""
    job = store.get_historical_features(entities(), ["stats:rate", "pay:pay"])
    pieces = list(job.to_arrow_batches(2))
    assert max(piece.num_rows for piece in pieces) == 2
    assert pa.Table.from_batches(pieces).equals(job.to_arrow())
    for as_known in (False, True):
        job = store.get_historical_features(entities(), ["stats:rate"], filter_by_created_timestamp=as_known)
        with duckdb.connect() as session:
            session.register("entity_rows", pa.Table.from_pandas(entities()))
            by_hand = session.sql(job.to_sql()).to_arrow_table()
        assert by_hand["rate"].to_pylist() == job.to_arrow()["rate"].to_pylist()


def test_a_saved_dataset_comes_back(store: Any, repo: Path) -> None:
    """On-demand features included; an existing place is overwritten only when told to."""
    from feast.errors import SavedDatasetLocationAlreadyExists
    from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

    job = store.get_historical_features(entities(), ["stats:rate", "pay:pay"])
    for path in ("data/saved.parquet", "data/saved"):
        store.create_saved_dataset(job, path.replace("/", "_"), SavedDatasetFileStorage(path))
        back = store.get_saved_dataset(path.replace("/", "_")).to_arrow()
        assert back["rate"].to_pylist() == EXPECTED
        assert back["pay"].to_pylist() == job.to_arrow()["pay"].to_pylist()
        with pytest.raises(SavedDatasetLocationAlreadyExists):
            job.persist(SavedDatasetFileStorage(path))
        job.persist(SavedDatasetFileStorage(path), allow_overwrite=True)


def test_materialize_reads_the_newest_rows(store: Any) -> None:
    """Feast's own engine and online store get the right row of each key."""
    store.materialize(T0 - timedelta(days=1), T0 + timedelta(days=1), feature_views=["stats"])
    found = store.get_online_features(["stats:rate", "stats:trips"], [{"driver_id": 1}, {"driver_id": 2}]).to_dict()
    assert found["rate"] == [0.3, 0.4]
    assert found["trips"] == [None, 7]


def test_rows_written_through_feast_are_appended(tmp_path: Path) -> None:
    """A push to the offline store is a new file; the next join sees it; a single file is refused."""
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64

    (tmp_path / "rows").mkdir()
    first = pa.table({"id": [1], "at": hours(0), "f": [1.0]})
    pq.write_table(first, tmp_path / "rows" / "a.parquet")
    pq.write_table(first, tmp_path / "one.parquet")
    entity = Entity(name="e", join_keys=["id"], value_type=ValueType.INT64)
    views = [
        FeatureView(
            name=name,
            entities=[entity],
            schema=[Field(name="f", dtype=Float64)],
            source=FileSource(name=name, path=path, timestamp_field="at"),
        )
        for name, path in (("many", "rows"), ("single", "one.parquet"))
    ]
    store = store_of(tmp_path)
    store.apply([entity, *views])
    more = pd.DataFrame({"id": [1], "at": [T0 + timedelta(hours=1)], "f": [2.0]})
    store.write_to_offline_store("many", more)
    rows = pd.DataFrame({"id": [1], "event_timestamp": [T0 + timedelta(hours=2)]})
    assert store.get_historical_features(rows, ["many:f"]).to_arrow()["f"].to_pylist() == [2.0]
    assert len(list((tmp_path / "rows").iterdir())) == 2
    with pytest.raises(UsageError, match="is a single file, which is never rewritten"):
        store.write_to_offline_store("single", more)
    store.teardown()


def test_logged_features_are_appended(tmp_path: Path) -> None:
    """Logs become files under the destination, partitioned as it says."""
    from feast.feature_logging import LoggingConfig
    from feast.infra.offline_stores.file_source import FileLoggingDestination

    store = store_of(tmp_path)
    logging_config = LoggingConfig(FileLoggingDestination(path="logs", partition_by=["day"]))
    offline = store._get_provider().offline_store
    for value in (1, 2):
        data = pa.table({"day": ["a"], "value": [value]})
        offline.write_logged_features(store.config, data, None, logging_config, store.registry)
    assert sorted(pq.read_table(tmp_path / "logs")["value"].to_pylist()) == [1, 2]


@pytest.mark.parametrize(
    ("change", "features", "error", "message"),
    [
        (lambda e: e.drop(columns="driver_id"), ["stats:rate"], UsageError, "entity rows have no join key 'driver_id'"),
        (lambda e: e.drop(columns="event_timestamp"), ["stats:rate"], UsageError, "have no column 'event_timestamp'"),
        (lambda e: e.assign(driver_id=1.5), ["stats:rate"], UsageError, "holds double, its entity is declared INT64"),
        (lambda e: e.assign(driver_id="x"), ["stats:rate"], UsageError, "holds string, its entity is declared INT64"),
        (
            lambda e: e.assign(rate=1),
            ["stats:rate"],
            UsageError,
            "'rate' of view 'stats' has the name of an entity column",
        ),
        (lambda e: e.assign(event_timestamp=5), ["stats:rate"], UsageError, "1990 to 2100"),
        (lambda e: "SELECT nothing", ["stats:rate"], UsageError, "SQL cannot be run"),
        (lambda e: [1], ["stats:rate"], UsageError, "entity rows are a list"),
    ],
)
def test_bad_requests_are_refused_before_any_work(
    store: Any, change: Any, features: list[str], error: type[Exception], message: str
) -> None:
    """At get_historical_features, not when the result is asked for; in one line."""
    with pytest.raises(error, match=message) as caught:
        store.get_historical_features(change(entities()), features)
    assert "\n" not in str(caught.value)


def test_duplicate_and_unknown_features_are_refused(store: Any) -> None:
    """The store itself, below Feast's own checks."""
    offline, views = store._get_provider().offline_store, [store.get_feature_view("stats")]
    for refs, message in ((["stats:rate", "stats:rate"], "asked for twice"), (["stats:rat"], "did you mean 'rate'")):
        with pytest.raises(UsageError, match=message):
            offline.get_historical_features(store.config, views, refs, entities(), store.registry, "demo")


def test_a_source_that_broke_is_told_at_once(tmp_path: Path) -> None:
    """Lost columns, torn files and missing files: one line that names the source and the view."""
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1], "at": hours(0), "f": [1.0]}), path)
    entity = Entity(name="e", join_keys=["id"], value_type=ValueType.INT64)
    view = FeatureView(
        name="v",
        entities=[entity],
        schema=[Field(name="f", dtype=Float64)],
        source=FileSource(name="s", path="a.parquet", timestamp_field="at"),
    )
    store = store_of(tmp_path)
    store.apply([entity, view])
    rows = pd.DataFrame({"id": [1], "event_timestamp": [T0]})
    whole = path.read_bytes()
    pq.write_table(pa.table({"id": [1], "at": hours(0), "g": [1.0]}), path)
    with pytest.raises(SourceError, match="source 's' of view 'v' has no column 'f'"):
        store.get_historical_features(rows, ["v:f"])
    path.write_bytes(whole[:100])
    with pytest.raises(SourceError, match=r"a\.parquet cannot be read as Parquet"):
        store.get_historical_features(rows, ["v:f"])
    pq.write_table(pa.table({"id": [1], "at": hours(0), "f": [1.0]}).slice(0, 0), path)
    with pytest.raises(SourceError, match="source 's' of view 'v' has no rows"):
        store.get_historical_features(rows, ["v:f"])
    path.unlink()
    with pytest.raises(SourceError, match="does not exist"):
        store.get_historical_features(rows, ["v:f"])
    with pytest.raises(SourceError, match="does not exist"):
        store._get_provider().offline_store.validate_data_source(store.config, view.batch_source)
    store.teardown()


def test_rows_that_time_cannot_order_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A warning names the view and an example; the values do not depend on the files' order."""
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64

    found = []
    for order in ([1.0, 2.0], [2.0, 1.0]):
        pq.write_table(pa.table({"id": [1, 1], "at": hours(0, 0), "f": order}), tmp_path / "a.parquet")
        entity = Entity(name="e", join_keys=["id"], value_type=ValueType.INT64)
        view = FeatureView(
            name="v",
            entities=[entity],
            schema=[Field(name="f", dtype=Float64)],
            source=FileSource(name="s", path="a.parquet", timestamp_field="at"),
        )
        store = store_of(tmp_path)
        store.apply([entity, view])
        rows = pd.DataFrame({"id": [1], "event_timestamp": [T0]})
        with caplog.at_level(logging.WARNING, "featurestore"):
            found += store.get_historical_features(rows, ["v:f"]).to_arrow()["f"].to_pylist()
        assert "view 'v': 1 chosen rows equal others" in caplog.text
    assert found[0] == found[1]
    store.teardown()


def test_stock_feast_agrees_where_it_is_right(tmp_path: Path) -> None:
    """Feast's own file store on the same files: no ties, no nulls, distinct entity rows; zero differences."""
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64, Int64

    random = np.random.default_rng(7)
    count = 4_000
    minutes = random.permutation(60 * 24 * 20)[:count]
    at = pa.array([T0 + timedelta(minutes=int(m)) for m in minutes], US)
    made = pa.array(
        [T0 + timedelta(minutes=int(m + d)) for m, d in zip(minutes, random.integers(0, 600, count), strict=True)], US
    )
    source = pa.table(
        {
            "id": random.integers(0, 40, count),
            "at": at,
            "made": made,
            "f": random.random(count),
            "n": random.integers(0, 9, count),
        }
    )
    pq.write_table(source, tmp_path / "a.parquet")
    asked_minutes = random.permutation(60 * 24 * 22)[:1_500] - 60 * 24
    rows = pd.DataFrame(
        {
            "id": random.integers(0, 42, 1_500),
            "event_timestamp": [T0 + timedelta(minutes=int(m)) for m in asked_minutes],
        }
    )
    results = []
    for offline in ("file", "featurestore.plugins.DuckDBOfflineStore"):
        entity = Entity(name="e", join_keys=["id"], value_type=ValueType.INT64)
        view = FeatureView(
            name="v",
            entities=[entity],
            ttl=timedelta(hours=6),
            schema=[Field(name="f", dtype=Float64), Field(name="n", dtype=Int64)],
            source=FileSource(
                name="s", path=str(tmp_path / "a.parquet"), timestamp_field="at", created_timestamp_column="made"
            ),
        )
        store = store_of(tmp_path, offline)
        store.apply([entity, view])
        for as_known in (False, True):
            frame = store.get_historical_features(rows, ["v:f", "v:n"], filter_by_created_timestamp=as_known).to_df()
            results.append(frame.set_index(["event_timestamp", "id"])[["f", "n"]].astype("float64").sort_index())
        store.teardown()
    for stock, ours in zip(results[:2], results[2:], strict=True):
        # Stock loses entity rows whose key has rows but none in force; what it keeps is right.
        kept = ours.loc[stock.index].reset_index(drop=True)
        pd.testing.assert_frame_equal(stock.reset_index(drop=True), kept, check_exact=True)
        assert ours.drop(stock.index)["f"].isna().all()
        assert 200 < ours["f"].notna().sum() < 1_400
    assert not results[2].equals(results[3])
