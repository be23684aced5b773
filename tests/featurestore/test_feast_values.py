"""A value is the same in training, through Feast's SDK and over HTTP, wherever Feast's messages can hold it."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.type_map import feast_value_type_to_python_type
from feast.types import Array, Int64, String, UnixTimestamp

from featurestore.api.answer import json_values
from featurestore.errors import DefinitionError
from featurestore.online.types import arrow_type, from_python, to_column, to_python
from featurestore.plugins.feast_sources import time_unit
from featurestore.plugins.protos import from_column
from featurestore.plugins.protos import to_column as of_messages

LISTS = {
    "STRING_LIST": ["a", None, ""],
    "INT32_LIST": [1, None, 0],
    "INT64_LIST": [(1 << 53) + 1, None],
    "DOUBLE_LIST": [1.5, None],
    "FLOAT_LIST": [None, 0.5],
    "BOOL_LIST": [True, None, False],
    "BYTES_LIST": [b"\0", None],
    "UNIX_TIMESTAMP_LIST": [datetime(2024, 3, 10, tzinfo=UTC), None],
}


@pytest.mark.parametrize("dtype", LISTS)
def test_a_null_inside_a_list_is_null_for_the_sdk(dtype: str) -> None:
    """Never 0, "" or False, which nobody wrote; and lists without one stay Feast's own lists."""
    value: Any = LISTS[dtype]
    column = from_python([value, None, []], dtype, name="f")
    messages = from_column(column, dtype)
    assert [feast_value_type_to_python_type(each) for each in messages] == [value, None, []]
    whole = from_column(from_python([value[:1] if value[0] is not None else value[1:]], dtype, name="f"), dtype)
    assert whole[0].WhichOneof("val") == f"{dtype.lower()}_val"
    assert of_messages(messages, dtype, name="f").equals(column)


@pytest.mark.parametrize("dtype", ["STRUCT_LIST", "MAP_LIST"])
def test_a_null_among_structs_is_null_for_the_sdk(dtype: str) -> None:
    """Integers beside it stay exact."""
    values: list[Any] = [[{"n": (1 << 53) + 1}, None], None, [], [{"n": 5}]]
    column = from_python(values, dtype, name="f")
    messages = from_column(column, dtype)
    assert [feast_value_type_to_python_type(each) for each in messages] == values
    assert messages[3].WhichOneof("val") == f"{dtype.lower()}_val"
    assert of_messages(messages, dtype, name="f").equals(column)


@pytest.mark.parametrize("dtype", ["STRING_SET", "INT64_SET"])
def test_a_null_inside_a_set_comes_back(dtype: str) -> None:
    """Members are ordered, null last."""
    column = from_python([["1", None] if dtype == "STRING_SET" else [1, None]], dtype, name="f")
    assert of_messages(from_column(column, dtype), dtype, name="f").equals(column)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("second", [1_710_050_400, 0, -1])
def test_timestamp_features_are_whole_seconds_everywhere(unit: str, second: int) -> None:
    """Feast's messages have no fraction of a second, so no path has one; before 1970 it is floored too."""
    per_second = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[unit]
    column = pa.array([second * per_second + per_second - 1], pa.timestamp(unit, "UTC"))
    held = to_column(column, "UNIX_TIMESTAMP", name="f")
    assert held.cast(pa.int64()).to_pylist() == [second * 1_000_000]
    for several in ("LIST", "SET"):
        listed = to_column(pa.array([[column[0].value]], pa.list_(column.type)), f"UNIX_TIMESTAMP_{several}", name="f")
        assert listed.flatten().cast(pa.int64()).to_pylist() == [second * 1_000_000]
    [message] = from_column(held, "UNIX_TIMESTAMP")
    assert message.unix_timestamp_val == second
    assert json_values(to_python(held, "UNIX_TIMESTAMP"), "UNIX_TIMESTAMP") == [second]
    listed = to_column(pa.array([[column[0].as_py() if unit != "ns" else None]]), "UNIX_TIMESTAMP_LIST", name="f")
    assert listed.type == arrow_type("UNIX_TIMESTAMP_LIST")


def test_a_unit_of_time_that_is_none_is_refused() -> None:
    """The tag is of the batch source, of the stream, or of both alike."""
    ms = FileSource(name="f", path="p", tags={"time_unit": "ms"})
    assert (time_unit(ms), time_unit(ms, None), time_unit(FileSource(name="g", path="p"))) == ("ms", "ms", "")
    for wrong in ("hours", "MS", ""):
        with pytest.raises(DefinitionError, match="one of s, ms, us, ns"):
            time_unit(FileSource(name="f", path="p", tags={"time_unit": wrong}))
    with pytest.raises(DefinitionError, match="ms, s"):
        time_unit(ms, FileSource(name="s", path="p", tags={"time_unit": "s"}))


def project(folder: Path) -> Entity:
    """A project in the folder, and its only entity."""
    (folder / "feature_store.yaml").write_text(
        "project: times\nprovider: local\nregistry: data/registry.db\n"
        "offline_store: {type: featurestore.plugins.DuckDBOfflineStore}\n"
        "online_store: {type: featurestore.plugins.RedisOnlineStore, connection: embedded}\n"
        "batch_engine: {type: featurestore.plugins.ArrowEngine}\nentity_key_serialization_version: 3\n",
        encoding="utf-8",
    )
    (folder / "data").mkdir()
    return Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)


FORMS: dict[str, Any] = {
    "text": "2024-03-10T06:00:00+00:00",
    "blank": "2024-03-10 06:00:00",
    "day": date(2024, 3, 10),
    "millis": 1_710_050_400_000,
    "seconds": 1_710_050_400,
    "berlin": pa.array([datetime(2024, 10, 27, 1, 30, tzinfo=UTC)], pa.timestamp("ns", "Europe/Berlin"))[0],
}


NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)
TIED: dict[str, tuple[pa.Array, Any]] = {
    "zoned": (pa.array([NOON, NOON + timedelta(1)], pa.timestamp("ns", "America/New_York")), UnixTimestamp),
    "etc": (pa.array([NOON, NOON + timedelta(1)], pa.timestamp("us", "Etc/UTC")), UnixTimestamp),
    "millis": (pa.array([NOON, NOON + timedelta(1)], pa.timestamp("ms", "UTC")), UnixTimestamp),
    "day": (pa.array([date(2024, 3, 10), date(2024, 3, 11)]), UnixTimestamp),
    "zoned_list": (pa.array([[NOON], [None]], pa.list_(pa.timestamp("ns", "Asia/Tokyo"))), Array(UnixTimestamp)),
    "large_text": (pa.array(["a", "b"], pa.large_string()), String),
    "words": (pa.array(["a", "b"]).dictionary_encode(), String),
    "decimals": (pa.array([Decimal(255), Decimal(256)]), Int64),
    "whole_floats": (pa.array([255.0, 256.0]), Int64),
    "narrow": (pa.array([255, 256], pa.int16()), Int64),
}


def test_a_tie_has_one_winner_offline_and_online_whatever_type_a_file_has(tmp_path: Path) -> None:
    """Both compare the bytes of the declared types, and neither fails on what an Arrow type is called."""
    views = []
    user = project(tmp_path)
    for name, (column, dtype) in TIED.items():
        pq.write_table(pa.table({"user_id": [1, 1], "ts": [NOON] * 2, "x": column}), tmp_path / f"data/{name}.parquet")
        source = FileSource(name=f"s_{name}", path=f"data/{name}.parquet", timestamp_field="ts")
        schema = [Field(name="user_id", dtype=Int64), Field(name="x", dtype=dtype)]
        views.append(FeatureView(name=name, entities=[user], ttl=timedelta(0), schema=schema, source=source))
    store = FeatureStore(repo_path=str(tmp_path))
    store.apply([user, *views])
    store.materialize(NOON - timedelta(1), NOON + timedelta(1))
    features = [f"{name}:x" for name in TIED]
    asked = pd.DataFrame({"user_id": [1], "event_timestamp": [NOON + timedelta(1)]})
    joined = store.get_historical_features(asked, features=features, full_feature_names=True).to_arrow().to_pylist()[0]
    served = store.get_online_features(features, [{"user_id": 1}], full_feature_names=True).to_dict()
    for name in TIED:
        assert joined[f"{name}__x"] == served[f"{name}__x"][0] is not None, name
    assert joined["narrow__x"] == joined["decimals__x"] == joined["whole_floats__x"]
    store.teardown()


def test_times_of_every_form_are_joined_and_loaded(tmp_path: Path) -> None:
    """What the offline store reads, materialize loads: text, dates, integers, nanoseconds of the repeated hour."""
    user = project(tmp_path)
    views = []
    for name, value in FORMS.items():
        ts = pa.array([value.as_py()], value.type) if isinstance(value, pa.Scalar) else pa.array([value])
        table = pa.table({"user_id": [1], "ts": ts, "x": [7], "seen": ts})
        pq.write_table(table, tmp_path / f"data/{name}.parquet")
        source = FileSource(name=f"s_{name}", path=f"data/{name}.parquet", timestamp_field="ts")
        dtypes = {"user_id": Int64, "x": Int64, "seen": UnixTimestamp}
        schema = [Field(name=field, dtype=dtype) for field, dtype in dtypes.items()]
        views.append(FeatureView(name=name, entities=[user], ttl=timedelta(0), schema=schema, source=source))
    store = FeatureStore(repo_path=str(tmp_path))
    store.apply([user, *views])
    now = datetime(2024, 11, 1, tzinfo=UTC)
    store.materialize(datetime(2024, 1, 1, tzinfo=UTC), now)
    features = [f"{view.name}:{name}" for view in views for name in ("x", "seen")]
    asked = pd.DataFrame({"user_id": [1], "event_timestamp": [now]})
    joined = store.get_historical_features(asked, features=features, full_feature_names=True).to_arrow().to_pylist()[0]
    served = store.get_online_features(features, [{"user_id": 1}], full_feature_names=True).to_dict()
    for view in views:
        assert joined[f"{view.name}__x"] == served[f"{view.name}__x"][0] == 7
        assert joined[f"{view.name}__seen"] == served[f"{view.name}__seen"][0] is not None
    assert joined["seconds__seen"] == joined["millis__seen"] == joined["text__seen"] == joined["blank__seen"]
    store.teardown()
