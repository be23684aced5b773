"""Feast's materialize goes through Arrow, skips windowed views and says so; windows are read through Feast's SDK."""

import json
import logging
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.aggregation.tiles import SPAN, TileLayout
from featurestore.errors import StaleStore, UsageError
from featurestore.online.connection import StoreClient
from featurestore.online.keys import EntityKeyCodec, Shard, shards_key, tile_key
from featurestore.online.materialize import materialize_table
from featurestore.online.sealed import sealed
from featurestore.online.writer import RowWriter
from featurestore.plan import Field, JoinKey, Source, View
from featurestore.plan_store import PlanStore

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pandas as pd
    from feast import Entity, FeatureStore, FileSource, KafkaSource, RepoConfig, StreamFeatureView, types
    from feast import Field as FeastField
    from feast.aggregation import Aggregation
    from feast.data_format import JsonFormat
    from feast.value_type import ValueType

    from featurestore.compile import Definitions, compile_plan

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("feast")]

NOW = datetime.now(UTC).replace(microsecond=0)
NOW_US = int(NOW.timestamp()) * 1_000_000


@pytest.fixture
def repo(tmp_path: Path, online_url: str, store: StoreClient) -> Iterator[FeatureStore]:
    """A Feast repo of one windowed view."""
    stamp = pa.timestamp("us", tz="UTC")
    columns = {
        "origin": ["LGA"],
        "delay": [1.0],
        "event_timestamp": pa.array([NOW], stamp),
        "_arrival": pa.array([NOW], stamp),
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    config = RepoConfig(
        project="ml",
        provider="local",
        registry=str(tmp_path / "registry.db"),
        online_store={"type": "featurestore.plugins.RedisOnlineStore", "connection": online_url},
        offline_store={"type": "dask"},
        batch_engine="featurestore.plugins.ArrowEngine",
        entity_key_serialization_version=3,
        repo_path=tmp_path,
    )
    feast = FeatureStore(config=config)
    origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
    source = KafkaSource(
        name="departures",
        topic="departures",
        kafka_bootstrap_servers="localhost:1",
        timestamp_field="event_timestamp",
        message_format=JsonFormat(schema_json="origin string, delay double, event_timestamp timestamp"),
        batch_source=FileSource(
            name="log",
            path=str(tmp_path / "log.parquet"),
            timestamp_field="event_timestamp",
            created_timestamp_column="_arrival",
        ),
    )
    view = StreamFeatureView(
        name="departures",
        entities=[origin],
        ttl=timedelta(0),
        schema=[
            FeastField(name="origin", dtype=types.String),
            FeastField(name="flights_1h", dtype=types.Int64),
            FeastField(name="delay_mean_1h", dtype=types.Float64),
        ],
        aggregations=[
            Aggregation(column="delay", function="count", time_window=timedelta(hours=1), name="flights_1h"),
            Aggregation(column="delay", function="mean", time_window=timedelta(hours=1), name="delay_mean_1h"),
        ],
        timestamp_field="event_timestamp",
        source=source,
    )
    feast.apply([origin, view])
    feast.defined = Definitions([origin], [view], [], [])
    yield feast
    feast.teardown()


def publish(feast: FeatureStore, store: StoreClient) -> View:
    plan = compile_plan("ml", feast.defined, [], previous=None, now_us=NOW_US)
    PlanStore(store, "ml").publish(plan)
    return plan.view("departures")


def stream(store: StoreClient, view: View, origin: str, delays: list[float]) -> None:
    """The tiles of events of this minute, as the stream stores them."""
    shard, key = Shard("ml", view.name, view.version, "t", 0), EntityKeyCodec(view.join_keys).encode({"origin": origin})
    for level in TileLayout.of(view).levels:
        ts = np.full(len(delays), NOW_US)
        slots = level.aggregate(np.zeros(len(delays), np.int64), 1, ts, {"delay": pa.array(delays)})
        tile = int(level.tile(ts)[0])
        name = tile_key(shard.tile_prefix(level.hop_us), tile // SPAN, key or b"")
        store.setrange(name, tile % SPAN * level.slot_bytes, slots.tobytes())
    state = {"topic_id": "t", "partition": 0, "complete_from_us": None}
    store.set(shards_key("ml", view.name, view.version), sealed(json.dumps([state]).encode()))


def test_windows_are_read_through_the_sdk(repo: FeatureStore, store: StoreClient) -> None:
    """get_online_features gives the merged windows of the Plan's version of the view; an unseen key counts 0."""
    stream(store, publish(repo, store), "LGA", [2.0, 5.0])
    response = repo.get_online_features(
        ["departures:flights_1h", "departures:delay_mean_1h"], [{"origin": "LGA"}, {"origin": "JFK"}]
    )
    assert response.to_dict() == {"origin": ["LGA", "JFK"], "flights_1h": [2, 0], "delay_mean_1h": [3.5, None]}


def test_without_a_plan_windows_are_not_guessed(repo: FeatureStore) -> None:
    """Tiles are laid out by the Plan: where there is none, the message says to apply."""
    with pytest.raises(StaleStore, match="featurestore apply"):
        repo.get_online_features(["departures:flights_1h"], [{"origin": "LGA"}])


def test_materialize_skips_windowed_views_and_says_so(
    repo: FeatureStore, store: StoreClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is written; one line says why."""
    with caplog.at_level(logging.WARNING):
        repo.materialize(NOW - timedelta(days=1), NOW + timedelta(seconds=1))
    assert "departures: skipped, its windows are kept current by the stream" in caplog.text
    assert store.keys("fs:*") == []


def test_writes_to_a_windowed_view_are_refused(repo: FeatureStore) -> None:
    """Its features are counted from events; the message says where these go."""
    frame = pd.DataFrame({"origin": ["LGA"], "flights_1h": [1], "delay_mean_1h": [1.0]})
    frame["event_timestamp"] = frame["_arrival"] = NOW
    with pytest.raises(UsageError, match=r"is windowed.*send them to its topic"):
        repo.write_to_online_store("departures", frame)


def test_a_table_of_the_source_is_renamed_and_written(store: StoreClient) -> None:
    """The field mapping applies to keys, features and timestamps; a windowed view is refused."""
    view = View(
        name="rides",
        version=1,
        kind="latest",
        join_keys=(JoinKey(entity="driver", name="driver_id", dtype="INT64"),),
        features=(Field(name="fare", dtype="DOUBLE"),),
        ttl_us=0,
        source=Source(
            name="s",
            path="",
            timestamp_field="ts",
            created_field="made",
            field_mapping={"driver": "driver_id", "usd": "fare", "ts": "event_timestamp"},
        ),
    )
    stamp = pa.timestamp("us")
    rows = {"driver": [1, 1], "usd": [1.0, 2.0], "ts": pa.array([NOW_US] * 2, stamp), "made": pa.array([2, 1], stamp)}
    result = materialize_table(RowWriter(store, "ml", view, clock=lambda: NOW_US), pa.table(rows))
    assert (result.written, result.superseded) == (1, 1)


def test_a_windowed_view_cannot_be_materialized_by_hand(repo: FeatureStore, store: StoreClient) -> None:
    """The same refusal below Feast."""
    writer = RowWriter(store, "ml", publish(repo, store), clock=lambda: NOW_US)
    with pytest.raises(UsageError, match="nothing to materialize"):
        materialize_table(writer, pa.table({"x": [1]}))
