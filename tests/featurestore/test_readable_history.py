"""What the offline store refuses of a topic's history, `plan` and `backfill` refuse; a plain file is history too."""

import datetime as dt
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.aggregation.definition import _typed
from featurestore.apply import apply, preview
from featurestore.config import Settings, load_settings
from featurestore.dataset.identity import changes, identify
from featurestore.errors import SourceError
from featurestore.offline.event_log import ARRIVAL, OFFSET, write_events
from featurestore.offline.history import historical_features
from featurestore.offline.readable_history import refuse_unreadable_history
from featurestore.plan import Aggregation, Projection

YAML = """\
project: shop
registry: ../data/registry.db
provider: local
offline_store: {type: featurestore.plugins.DuckDBOfflineStore}
online_store: {type: featurestore.plugins.RedisOnlineStore}
batch_engine: {type: featurestore.plugins.ArrowEngine}
entity_key_serialization_version: 3
"""
DEFINITIONS = """\
from datetime import timedelta
from feast import Entity, Field, FileSource, KafkaSource, StreamFeatureView, ValueType
from feast.aggregation import Aggregation
from feast.data_format import JsonFormat
from feast.types import Float64, Int64

card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.INT64)
taps = KafkaSource(
    name="taps", topic="taps", kafka_bootstrap_servers="localhost:1", timestamp_field="ts",
    message_format=JsonFormat(schema_json="card_id bigint, ts timestamp, fare double, note bigint"),
    batch_source=FileSource(name="taps_log", path="../data/event_log/taps", timestamp_field="ts"),
)
spending = StreamFeatureView(
    name="spending", entities=[card], source=taps, timestamp_field="ts", ttl=timedelta(0),
    schema=[Field(name="card_id", dtype=Int64), Field(name="spent", dtype=Float64)],
    aggregations=[Aggregation(column="fare", function="sum", time_window=timedelta(hours=1), name="spent")],
)
everybody = StreamFeatureView(
    name="everybody", entities=[], source=taps, timestamp_field="ts", ttl=timedelta(0),
    schema=[Field(name="all", dtype=Int64)],
    aggregations=[Aggregation(column="card_id", function="count", time_window=timedelta(hours=1), name="all")],
)
"""
NOW = dt.datetime(2024, 3, 1, 12, tzinfo=dt.UTC)
US = pa.timestamp("us", "UTC")
EVENTS = pa.table({"card_id": [1, 1, 2], "ts": pa.array([NOW] * 3, US), "fare": [1.5, 2.5, 4.0], "note": [1, 2, 3]})


def write(folder: Path, *replacements: tuple[str, str]) -> Settings:
    """The repo, with text of its definitions replaced."""
    (folder / "feature_repo").mkdir(exist_ok=True)
    (folder / "feature_repo" / "feature_store.yaml").write_text(YAML)
    text = DEFINITIONS
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    (folder / "feature_repo" / "taps_definitions.py").write_text(text)
    return load_settings(folder / "feature_repo", os.environ)


def logged(settings: Settings) -> None:
    """The events, as a sink writes them."""
    events = EVENTS.append_column(OFFSET, pa.array([0, 1, 2])).append_column(ARRIVAL, EVENTS["ts"])
    write_events(settings.event_log / "taps", events, topic_id="t", partition=0, first=0, last=2)


@pytest.mark.parametrize(
    ("replacements", "said"),
    [
        ([("fare", "price")], "has no column 'price'"),
        (
            [("fare double", "fare string"), ('function="sum"', 'function="count"'), ("Float64)", "Int64)")],
            "declared STRING now",
        ),
        ([("note bigint", "note string")], ""),
    ],
    ids=["renamed", "another type", "an unread column"],
)
def test_plan_says_what_a_changed_topic_column_does_to_history(
    tmp_path: Path, replacements: list[tuple[str, str]], said: str
) -> None:
    """A view that could not read its log any more breaks, and its backfill is refused; other columns may change."""
    settings = write(tmp_path)
    apply(settings)
    logged(settings)
    assert preview(settings) == []
    settings = write(tmp_path, *replacements)
    found = {change.name: change.what for change in preview(settings) if "history" in change.breaks}
    assert set(found) == ({"spending"} if said else set())
    assert said in found.get("spending", "")
    plan = apply(settings).plan
    view = plan.building.get("spending", plan.view("spending"))
    if said:
        with pytest.raises(SourceError, match=said):
            refuse_unreadable_history(view, settings.repo)
    else:
        refuse_unreadable_history(view, settings.repo)


@pytest.mark.filterwarnings("ignore:Stream feature views are experimental")
@pytest.mark.parametrize("plain", [True, False], ids=["plain file", "event log"])
def test_a_topics_history_is_one_answer_on_every_path(tmp_path: Path, plain: bool) -> None:
    """SDK, training set and identity see the same events, whether a sink or somebody else wrote them."""
    from feast import FeatureStore

    settings = write(tmp_path)
    plan = apply(settings).plan
    if plain:
        (settings.event_log / "taps").mkdir(parents=True)
        pq.write_table(EVENTS, settings.event_log / "taps" / "history.parquet")
    else:
        logged(settings)
    frame = pd.DataFrame({"card_id": [1, 2], "event_timestamp": [NOW, NOW]})
    store = FeatureStore(repo_path=str(settings.repo))
    by_sdk = store.get_historical_features(frame, ["spending:spent", "everybody:all"]).to_arrow()
    projections = [Projection(view="spending", features=("spent",)), Projection(view="everybody", features=("all",))]
    rows: Any = pa.Table.from_pandas(frame, preserve_index=False)
    by_plan = historical_features(plan, projections, rows, repo=settings.repo)
    for found in (by_sdk, by_plan):
        assert found.select(["spent", "all"]).to_pydict() == {"spent": [4.0, 4.0], "all": [3, 3]}
    source = plan.view("spending").source
    before = identify(source, settings.repo)
    assert before.kind == ("files" if plain else "event log")
    assert changes(before, source, settings.repo) == []


def test_a_decimal_of_38_digits_is_defined_by_all_of_them() -> None:
    """The definition that `verify` judges by rounds no decimal to the 28 digits of Python's default context."""
    dtype = "DECIMAL(38,4)"
    aggregation = Aggregation(
        feature="s", column="d", column_dtype=dtype, function="sum", dtype="DECIMAL", window_us=1, hop_us=1, params={}
    )
    digits = "1234567890123456789012345678901234.5678"
    assert _typed(aggregation, Decimal(digits)) == digits
    assert _typed(aggregation, Decimal("-0.0000")) == "0.0000"
