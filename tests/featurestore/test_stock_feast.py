"""Is stock Feast 0.67 still wrong where docs/feast.md says so, and are we right there?

Each test shows a line of the table "Where stock Feast 0.67 differs": what stock does, then what our store does with the
same definitions, files and entity rows. One that fails because stock mended itself takes its line out of the table.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.xdist_group("feast"),
]
OURS = "featurestore.plugins.DuckDBOfflineStore"
T0 = datetime(2024, 1, 1, tzinfo=UTC)
US = pa.timestamp("us", "UTC")


def at(*hours: float | None) -> list[datetime | None]:
    return [None if hour is None else T0 + timedelta(hours=hour) for hour in hours]


HISTORY = pa.table(
    {
        "id": [1, 1, 2],
        "at": pa.array(at(0, 2, 2), US),
        "f": [0.1, 0.2, 0.3],
        "n": pa.array([2**53 + 1, None, 7], pa.int64()),
        "f_y": [1.5, 2.5, 3.5],
    }
)
Store = Callable[..., Any]


@pytest.fixture(params=["file", "duckdb"])
def stock(request: pytest.FixtureRequest) -> str:
    if request.param == "duckdb":
        pytest.importorskip("ibis", reason="stock Feast's DuckDB store needs pip install 'featurestore[bench]'")
    name: str = request.param
    return name


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The same definitions over the same file, with the offline store of that type."""

    def make(offline: str, history: pa.Table = HISTORY, path: str = "") -> Any:
        from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
        from feast.types import Float64, Int64

        repo = tmp_path / offline.rpartition(".")[2]
        repo.mkdir(exist_ok=True)
        (repo / "feature_store.yaml").write_text(
            f"project: p\nprovider: local\nregistry: registry.db\noffline_store:\n  type: {offline}\n"
            "online_store:\n  type: sqlite\n  path: online.db\nentity_key_serialization_version: 3\n"
        )
        pq.write_table(history, repo / "a.parquet")
        source = FileSource(name="s", path=path or str(repo / "a.parquet"), timestamp_field="at")
        car = Entity(name="car", join_keys=["id"], value_type=ValueType.INT64)
        fields = [Field(name="f", dtype=Float64), Field(name="n", dtype=Int64), Field(name="f_y", dtype=Float64)]
        view = FeatureView(name="v", entities=[car], ttl=timedelta(hours=3), schema=fields, source=source)
        made = FeatureStore(str(repo))
        made.apply([car, view])
        return made

    return make


def asked(ids: list[Any], hours: list[float | None]) -> pd.DataFrame:
    return pd.DataFrame({"id": ids, "event_timestamp": pd.to_datetime(at(*hours), utc=True)})


def values(store: Any, rows: pd.DataFrame, feature: str = "f") -> list[Any]:
    frame = store.get_historical_features(rows, [f"v:{feature}"]).to_df()
    found: list[Any] = [None if pd.isna(value) else value for value in frame[feature]]
    return found


def test_whole_numbers_beside_null_lose_digits(store: Store, stock: str) -> None:
    """2^53 + 1 is no float64."""
    rows = asked([1, 1], [1, 3])
    assert set(values(store(stock), rows, "n")) == {None, 2.0**53}
    assert values(store(OURS), rows, "n") == [2**53 + 1, None]


def test_text_keys_fail_against_whole_numbers(store: Store, stock: str) -> None:
    """ "1" is the key 1 of an entity that is declared INT64."""
    rows = asked(["1", "2"], [3, 3])
    with pytest.raises(Exception, match=r".") as caught:
        values(store(stock), rows)
    assert type(caught.value).__module__.partition(".")[0] != "feast"
    assert values(store(OURS), rows) == [0.2, 0.3]


def test_a_feature_that_ends_in_y_fails(store: Store) -> None:
    """It has the name of a suffix that a library gives."""
    pytest.importorskip("ibis")
    rows = asked([1], [1])
    assert values(store("duckdb"), rows, "f") == [0.1]
    with pytest.raises(Exception, match="f_y"):
        values(store("duckdb"), rows, "f_y")
    assert values(store(OURS), rows, "f_y") == [1.5]


def test_every_row_is_paired_with_its_keys_history(store: Store) -> None:
    """Stock joins on the key and chooses afterwards; its plan has no ASOF join, ours has."""
    ibis = pytest.importorskip("ibis")
    rows = asked([1], [1])
    assert "ASOF" not in str(ibis.to_sql(store("duckdb").get_historical_features(rows, ["v:f"]).table)).upper()
    assert "ASOF" in store(OURS).get_historical_features(rows, ["v:f"]).to_sql()


def test_windowed_features_are_not_computed(tmp_path: Path) -> None:
    """Stock looks for a column of the feature's name among the events."""
    from feast import Entity, FeatureStore, Field, FileSource, StreamFeatureView, ValueType
    from feast.aggregation import Aggregation
    from feast.data_source import PushSource
    from feast.types import Int64

    found: list[Any] = []
    for offline in ("file", OURS):
        repo = tmp_path / offline.rpartition(".")[2]
        repo.mkdir()
        (repo / "feature_store.yaml").write_text(
            f"project: p\nprovider: local\nregistry: registry.db\noffline_store:\n  type: {offline}\n"
            "online_store:\n  type: sqlite\n  path: online.db\nentity_key_serialization_version: 3\n"
        )
        pq.write_table(HISTORY, repo / "a.parquet")
        car = Entity(name="car", join_keys=["id"], value_type=ValueType.INT64)
        events = FileSource(name="events", path=str(repo / "a.parquet"), timestamp_field="at")
        view = StreamFeatureView(
            name="taps",
            entities=[car],
            schema=[Field(name="id", dtype=Int64), Field(name="taps_1d", dtype=Int64)],
            aggregations=[Aggregation(column="f", function="count", time_window=timedelta(days=1), name="taps_1d")],
            timestamp_field="at",
            source=PushSource(name="pushed", batch_source=events),
        )
        store = FeatureStore(str(repo))
        store.apply([car, view])
        try:
            table = store.get_historical_features(asked([1], [3]), ["taps:taps_1d"]).to_arrow()
            found.append(table["taps_1d"].to_pylist())
        except Exception as error:  # noqa: BLE001 - whatever stock meets on its way
            found.append(error)
    assert isinstance(found[0], Exception)
    assert found[1] == [2]


def test_entity_rows_are_dropped(store: Store) -> None:
    """Of a key that has history but none in force."""
    rows = asked([1, 1, 2, 9], [1, 9, 1, 1])
    assert len(values(store("file"), rows)) < 4
    assert values(store(OURS), rows) == [0.1, None, None, None]


def test_duplicate_entity_rows_collapse(store: Store) -> None:
    """Two rows asked alike are two rows to train on."""
    rows = asked([1, 1, 2], [1, 1, 3])
    assert len(values(store("file"), rows)) == 2
    assert values(store(OURS), rows) == [0.1, 0.1, 0.3]


def test_null_keys_match(store: Store) -> None:
    """NULL is nobody."""
    history = HISTORY.set_column(0, "id", pa.array([1, None, None], pa.int64()))
    rows = asked([1.0, None], [1, 3])
    assert set(values(store("file", history), rows)) == {0.1, 0.3}
    assert values(store(OURS, history), rows) == [0.1, None]


def test_timestamps_stored_as_text_fail(store: Store) -> None:
    """ISO 8601 is read as what it is."""
    text = pa.array([when.isoformat() for when in at(0, 2, 2) if when])
    history = HISTORY.set_column(1, "at", text)
    rows = asked([1], [1])
    with pytest.raises(Exception, match=r"."):
        values(store("file", history), rows)
    assert values(store(OURS, history), rows) == [0.1]


def test_relative_paths_start_elsewhere(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the repo, wherever the process was started."""
    pytest.importorskip("ibis")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    rows = asked([1], [1])
    with pytest.raises(Exception, match=r"."):
        values(store("duckdb", path="a.parquet"), rows)
    assert values(store(OURS, path="a.parquet"), rows) == [0.1]


def test_writing_rewrites_the_file(store: Store) -> None:
    """Readers may find half a file, and every write costs the whole history; ours appends files to folders."""
    pytest.importorskip("ibis")
    made = store("duckdb")
    path = Path(made.repo_path) / "a.parquet"
    before = path.read_bytes()
    more = pd.DataFrame({"id": [1], "at": [T0 + timedelta(hours=5)], "f": [0.5], "n": [1], "f_y": [0.0]})
    made.write_to_offline_store("v", more)
    assert path.read_bytes() != before
    assert pq.read_table(path).num_rows == 4


def test_join_keys_of_a_stream_view_become_features(tmp_path: Path) -> None:
    """A StreamFeatureView that comes back from the registry."""
    from feast import Entity, FeatureStore, Field, FileSource, KafkaSource, StreamFeatureView, ValueType
    from feast.aggregation import Aggregation
    from feast.data_format import JsonFormat
    from feast.types import Int64

    from featurestore.plugins.definitions import feature_fields, resolve_aggregations

    (tmp_path / "feature_store.yaml").write_text(
        "project: p\nprovider: local\nregistry: registry.db\nonline_store:\n  type: sqlite\n  path: online.db\n"
        "entity_key_serialization_version: 3\n"
    )
    card = Entity(name="card", join_keys=["card"], value_type=ValueType.INT64)
    day = timedelta(days=1)
    view = StreamFeatureView(
        name="taps",
        entities=[card],
        schema=[Field(name="card", dtype=Int64), Field(name="n", dtype=Int64)],
        aggregations=[Aggregation(column="card", function="count", time_window=day, name="n")],
        timestamp_field="at",
        source=KafkaSource(
            name="taps",
            topic="taps",
            kafka_bootstrap_servers="localhost:1",
            timestamp_field="at",
            message_format=JsonFormat(schema_json="card long, at timestamp"),
            batch_source=FileSource(name="log", path="log", timestamp_field="at"),
        ),
    )
    store = FeatureStore(str(tmp_path))
    store.apply([card, view])
    back = store.get_stream_feature_view("taps")
    assert {field.name for field in back.features} == {"card", "n"}
    assert [field.name for field in feature_fields(back)] == ["n"]
    # An absent slide_interval becomes the window itself: a day that moves by days.
    assert back.aggregations[0].slide_interval == day
    assert resolve_aggregations(back, {"card": "INT64"})[0].hop_us == 3_600_000_000
