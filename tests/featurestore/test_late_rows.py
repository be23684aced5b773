"""Rows that arrive late come online with the next incremental run, however it is started; again changes nothing."""

import contextlib
import os
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from featurestore.apply import apply
from featurestore.cli.main import build_app
from featurestore.config import Settings, load_settings
from featurestore.errors import ContractBroken
from featurestore.materialize import materialize
from featurestore.online.connection import StoreClient, connect
from featurestore.online.keys import loaded_key
from featurestore.online.loaded import Loaded, LoadedStore, Run, after_run, run_of
from featurestore.online.materialize import materialize_table
from featurestore.online.reader import OnlineReader
from featurestore.plan import Projection
from featurestore.plan_store import load_plan_file
from featurestore.plugins import engine, reading

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("feast")]

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
YAML = """\
project: shop
registry: ../data/registry.db
provider: local
offline_store: {type: featurestore.plugins.DuckDBOfflineStore}
online_store: {type: featurestore.plugins.RedisOnlineStore, connection: "ADDRESS"}
batch_engine: {type: featurestore.plugins.ArrowEngine}
entity_key_serialization_version: 3
"""
DEFINITIONS = """\
from datetime import timedelta
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Int64

card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.INT64)


def view(name, **source):
    return FeatureView(
        name=name, entities=[card], ttl=timedelta(0),
        source=FileSource(name=f"{name}_rows", path=f"../data/{name}", timestamp_field="ts", **source),
        schema=[Field(name="card_id", dtype=Int64), Field(name="age", dtype=Int64)],
    )


stamped = view("stamped", created_timestamp_column="made")
plain = view("plain")
"""


@pytest.fixture
def shop(tmp_path, store: StoreClient, online_url: str) -> Settings:
    """A view of rows that say when they were created, and one of rows that do not; a row of card 1 in each."""
    folder = tmp_path / "feature_repo"
    folder.mkdir()
    (folder / "feature_store.yaml").write_text(YAML.replace("ADDRESS", online_url))
    (folder / "definitions.py").write_text(textwrap.dedent(DEFINITIONS))
    settings = load_settings(folder, os.environ)
    for name in ("stamped", "plain"):
        land(settings, name, 1, age=10, dated=NOW - 2 * HOUR, made=NOW - 2 * HOUR)
    apply(settings)
    return settings


def land(settings: Settings, view: str, card: int, age: int, dated: datetime, made: datetime | None) -> None:
    """One more file of the view's source, of one row."""
    folder = settings.data_dir / view
    folder.mkdir(parents=True, exist_ok=True)
    when = pa.timestamp("us", "UTC")
    row = {"card_id": pa.array([card], pa.int64()), "age": pa.array([age], pa.int64()), "ts": pa.array([dated], when)}
    table = pa.table(row | ({"made": pa.array([made], when)} if view == "stamped" else {}))
    pq.write_table(table, folder / f"{len(list(folder.iterdir()))}.parquet")


def online(settings: Settings, view: str, cards: list[int]) -> list[Any]:
    client = connect(settings.online, settings.data_dir)
    reader = OnlineReader(client, load_plan_file(settings.plan_path), lambda: int(NOW.timestamp() * 1e6) + 10**12)
    (column,) = reader.read([Projection(view=view, features=("age",))], {"card_id": cards}).columns
    return column.to_python()


def by_command(settings: Settings, end: datetime) -> None:
    words = ["materialize", "--repo", str(settings.repo), "--incremental", "--end", end.isoformat()]
    done = CliRunner().invoke(build_app(), words)
    assert done.exit_code == 0, done.output


def by_sdk(settings: Settings, end: datetime) -> None:
    from feast import FeatureStore

    with contextlib.chdir(settings.repo):
        FeatureStore(str(settings.repo)).materialize_incremental(end)


@pytest.mark.parametrize("run", [by_command, by_sdk])
def test_late_rows_come_with_the_next_run(shop: Settings, run: Callable[[Settings, datetime], None]) -> None:
    """Rows that arrived since the last run are loaded although their event time is old: by their created time however
    old they are, else up to a day. Every run can be repeated."""
    run(shop, NOW - HOUR)
    land(shop, "stamped", 2, age=20, dated=NOW - 300 * DAY, made=NOW - HOUR / 2)
    land(shop, "plain", 2, age=20, dated=NOW - 20 * HOUR, made=None)
    land(shop, "plain", 3, age=30, dated=NOW - 30 * HOUR, made=None)
    for _ in range(2):
        run(shop, NOW)
        assert online(shop, "stamped", [1, 2]) == [10, 20]
        assert online(shop, "plain", [1, 2, 3]) == [10, 20, None]


def test_what_was_there_at_the_last_run_is_not_read_again(shop: Settings) -> None:
    """A row that a run has seen, or that was created long before it, is not read once more."""
    land(shop, "stamped", 2, age=20, dated=NOW - 300 * DAY, made=NOW - 300 * DAY)
    list(materialize(shop, [], None, (NOW - HOUR).isoformat()))
    (told,) = materialize(shop, ["stamped"], None, NOW.isoformat(), incremental=True)
    assert told == "stamped: 0 keys written, 1 rows superseded"


def test_a_late_correction_of_an_old_row_arrives(shop: Settings) -> None:
    """The same event time with a later created time replaces; an older event of a known key does not."""
    by_command(shop, NOW - HOUR)
    land(shop, "stamped", 1, age=11, dated=NOW - 2 * HOUR, made=NOW)
    by_command(shop, NOW)
    assert online(shop, "stamped", [1]) == [11]
    land(shop, "stamped", 1, age=9, dated=NOW - 3 * HOUR, made=NOW)
    by_command(shop, NOW)
    assert online(shop, "stamped", [1]) == [11]


def test_a_range_that_was_asked_for_is_read_as_it_stands(shop: Settings) -> None:
    """Late rows outside it wait for the next incremental run, which finds them whatever was loaded in between."""
    by_command(shop, NOW - HOUR)
    land(shop, "stamped", 2, age=20, dated=NOW - 300 * DAY, made=NOW - HOUR / 2)
    list(materialize(shop, ["stamped"], (NOW - HOUR / 2).isoformat(), NOW.isoformat()))
    assert online(shop, "stamped", [2]) == [None]
    land(shop, "stamped", 3, age=30, dated=NOW, made=NOW + 40 * DAY)
    by_command(shop, NOW)
    assert online(shop, "stamped", [2, 3]) == [20, 30]


def test_a_row_created_in_the_far_future_hides_no_late_row(shop: Settings) -> None:
    """A created time ahead of the clock does not move what counts as new."""
    land(shop, "stamped", 2, age=20, dated=NOW - 2 * HOUR, made=NOW + 3000 * DAY)
    by_command(shop, NOW - HOUR)
    land(shop, "stamped", 3, age=30, dated=NOW - 300 * DAY, made=NOW)
    by_command(shop, NOW)
    assert online(shop, "stamped", [2, 3]) == [20, 30]


def test_a_store_that_lost_its_rows_is_filled_from_the_beginning(shop: Settings, store: StoreClient) -> None:
    """The registry says that the view is loaded; the store does not."""
    land(shop, "plain", 2, age=20, dated=NOW - 300 * DAY, made=None)
    by_command(shop, NOW - HOUR)
    plan = store.get("fs:plan:{4:shop}")
    store.flushall()
    store.set("fs:plan:{4:shop}", plan)
    by_command(shop, NOW)
    assert online(shop, "plain", [1, 2]) == [10, 20]


def test_a_contract_judges_late_rows_too(shop: Settings) -> None:
    """A late row that breaks a rule stops the view like any other."""
    (shop.repo / "contracts").mkdir()
    (shop.repo / "contracts" / "stamped.odcs.yaml").write_text(CONTRACT)
    apply(shop)
    by_command(shop, NOW - HOUR)
    land(shop, "stamped", 2, age=200, dated=NOW - 300 * DAY, made=NOW)
    with pytest.raises(ContractBroken, match="age_range: 1 of 2 rows"):
        list(materialize(shop, ["stamped"], None, NOW.isoformat(), incremental=True))
    assert online(shop, "stamped", [2]) == [None]


CONTRACT = """\
apiVersion: v3.1.0
kind: DataContract
id: stamped_rows
version: 1.0.0
status: active
schema:
  - name: stamped_rows
    properties:
      - name: age
        logicalType: integer
        quality:
          - id: age_range
            type: custom
            engine: great-expectations
            implementation: {type: expect_column_values_to_be_between, kwargs: {min_value: 0, max_value: 130}}
            customProperties: [{property: mode, value: block}]
"""


def test_a_row_ahead_of_the_clock_hides_nothing_and_comes_when_its_time_has_come(
    shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key's row of now is loaded beside it; a later run takes it, even one that was asked for a later range."""
    for view in ("stamped", "plain"):
        land(shop, view, 1, age=50, dated=NOW + 3 * HOUR, made=NOW)
    told = list(materialize(shop, [], None, (NOW + DAY).isoformat()))
    assert all("1 keys written" in line and "1 dated ahead of the clock and set aside" in line for line in told)
    assert online(shop, "plain", [1]) == online(shop, "stamped", [1]) == [10]
    monkeypatch.setenv("FEATURESTORE_CLOCK_OFFSET_S", str(4 * 3600))
    list(materialize(shop, ["plain"], (NOW + 2 * DAY).isoformat(), (NOW + 3 * DAY).isoformat()))
    by_sdk(shop, NOW + DAY)
    assert online(shop, "plain", [1]) == online(shop, "stamped", [1]) == [50]


def test_a_run_that_was_broken_off_is_taken_up_again(shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken off between two pieces, it is not taken for done; the next run loads what was missing."""
    for card in range(2, 40):
        land(shop, "plain", card, age=card, dated=NOW - 2 * HOUR, made=None)
    written = []

    def breaks(writer: Any, rows: pa.Table, **options: Any) -> Any:
        if written:
            raise KeyboardInterrupt
        written.append(rows.num_rows)
        return materialize_table(writer, rows, **options)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "PIECE_ROWS", 10)
        patch.setattr(engine, "materialize_table", breaks)
        with pytest.raises(KeyboardInterrupt):
            by_sdk_of(shop, ["plain"], NOW)
    cards = list(range(1, 40))
    assert 0 < written[0] == sum(value is not None for value in online(shop, "plain", cards)) < len(cards)
    by_sdk_of(shop, ["plain"], NOW)
    assert online(shop, "plain", cards) == [10, *range(2, 40)]


def by_sdk_of(settings: Settings, views: list[str], end: datetime) -> None:
    from feast import FeatureStore

    with contextlib.chdir(settings.repo):
        FeatureStore(str(settings.repo)).materialize(NOW - DAY, end, feature_views=views)


def test_reads_and_training_go_on_meanwhile(shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """While pieces are written every read gives an old value or its new one, and training reads the source.

    By the command: Feast's own `materialize` marks its view, and Feast's SDK refuses to read that until it ends.
    """
    from feast import FeatureStore

    cards = list(range(1, 200))
    when = pa.timestamp("us", "UTC")

    def land_all(name: str, age: int, dated: datetime) -> None:
        table = {"card_id": cards, "age": [age] * len(cards), "ts": pa.array([dated] * len(cards), when)}
        pq.write_table(pa.table(table), shop.data_dir / "plain" / name)

    land_all("old.parquet", 1, NOW - 2 * HOUR + timedelta(seconds=1))
    by_sdk_of(shop, ["plain"], NOW - HOUR)
    land_all("new.parquet", 2, NOW - HOUR / 2)
    monkeypatch.setattr(reading, "PIECE_ROWS", 20)
    feast = FeatureStore(str(shop.repo))
    seen: list[list[Any]] = []
    asked = pd.DataFrame({"card_id": cards, "event_timestamp": [NOW] * len(cards)})

    def watched(writer: Any, rows: pa.Table, **options: Any) -> Any:
        seen.append(online(shop, "plain", cards))
        trained = feast.get_historical_features(asked, ["plain:age"]).to_df()["age"]
        assert set(trained) == {2}
        return materialize_table(writer, rows, **options)

    monkeypatch.setattr(engine, "materialize_table", watched)
    by_command(shop, NOW)
    assert len(seen) > 10
    assert [set(values) <= {1, 2} for values in seen] == [True] * len(seen)
    renewed = [values.count(2) for values in seen]
    assert renewed == sorted(renewed)
    assert renewed[0] == 0 < renewed[-1]


def test_what_is_loaded_goes_with_its_view(shop: Settings, store: StoreClient) -> None:
    """A view that is deleted takes the answer along."""
    by_command(shop, NOW - HOUR)
    assert LoadedStore(store, "shop").of("plain") is not None
    definitions = shop.repo / "definitions.py"
    definitions.write_text(definitions.read_text().replace('plain = view("plain")', ""))
    apply(shop)
    assert store.get(loaded_key("shop", "plain")) is None
    assert store.get(loaded_key("shop", "stamped")) is not None


@pytest.mark.parametrize("run", [by_command, by_sdk])
def test_a_run_that_was_asked_for_too_much_is_gone_on_with(
    shop: Settings, run: Callable[[Settings, datetime], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a range that ends in the future the next run loads what has come since, though it ends before that."""
    list(materialize(shop, [], None, (NOW + DAY).isoformat()))
    for view in ("stamped", "plain"):
        land(shop, view, 2, age=20, dated=NOW + HOUR, made=NOW + HOUR)
    monkeypatch.setenv("FEATURESTORE_CLOCK_OFFSET_S", str(2 * 3600))
    run(shop, NOW + 2 * HOUR)
    assert online(shop, "plain", [2]) == online(shop, "stamped", [2]) == [20]


ROWS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)
ASKED = st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(1, 30)), min_size=1, max_size=6)


@given(rows=ROWS, asked=ASKED)
def test_runs_that_go_on_miss_no_row(rows: list[tuple[int, int]], asked: list[tuple[bool, int, int]]) -> None:
    """Whatever ranges were asked for in between: after a run that goes on, every row that is visible and not after its
    end was read, unless it lies before where all began. Rows are (event time, created = visible since)."""
    loaded, read, last, now = None, set(), None, 0
    for goes_on, start, step in asked:
        now += step
        end = now
        goes_on = goes_on and last is not None
        begin = last if goes_on else min(start, end - 1)
        seen = [row for row in rows if row[1] <= now]
        run = run_of(loaded, begin, end, goes_on=goes_on, overlap_us=0, created=True)
        late = run.created_since_us
        taken = {r for r in seen if r[0] <= end and (r[0] >= run.start_us or (late is not None and r[1] >= late))}
        read |= taken
        newest = max((made for _, made in taken), default=None)
        loaded = after_run(loaded, run, created_us=newest, ahead_until_us=None)
        last = max(end, last or 0)
        if goes_on:
            assert {row for row in seen if loaded.start_us <= row[0] <= end} <= read


def test_a_watermark_that_any_run_moves_would_be_seen(shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: with every run taken for one that looked at all that arrived, the late row is lost."""

    def careless(loaded: Loaded | None, run: Run, **seen: Any) -> Loaded:
        return after_run(None, run, **seen)

    monkeypatch.setattr(engine, "after_run", careless)
    by_command(shop, NOW - HOUR)
    land(shop, "stamped", 2, age=20, dated=NOW - 300 * DAY, made=NOW - 30 * HOUR)
    land(shop, "stamped", 3, age=30, dated=NOW - HOUR / 2, made=NOW)
    list(materialize(shop, ["stamped"], (NOW - HOUR).isoformat(), NOW.isoformat()))
    by_command(shop, NOW)
    assert online(shop, "stamped", [2, 3]) == [None, 30]
