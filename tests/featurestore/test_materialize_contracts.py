"""Contracts are kept before rows come online: by the command, by Feast's SDK, and over another offline store."""

import contextlib
import os
import textwrap
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.apply import apply
from featurestore.cli.main import main
from featurestore.config import load_settings
from featurestore.errors import ContractBroken, UsageError
from featurestore.materialize import materialize
from featurestore.monitor.kept_profiles import read_kept
from featurestore.online.connection import connect
from featurestore.online.reader import OnlineReader
from featurestore.plan import Projection
from featurestore.write_profiles import FIRST_ROWS, PROFILE_AGE_US
from validation.profile.store import ProfileStore
from validation.quarantine import read_quarantine
from validation.violations import ViolationStore

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("feast")]

NOW = datetime.now(UTC).replace(microsecond=0)
YAML = """\
project: shop
registry: ../data/registry.db
provider: local
offline_store: {type: OFFLINE}
online_store: {type: featurestore.plugins.RedisOnlineStore, connection: "ADDRESS"}
batch_engine: {type: featurestore.plugins.ArrowEngine}
entity_key_serialization_version: 3
"""
DEFINITIONS = """\
from datetime import timedelta
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64

card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.INT64)
other = FileSource(name="others", path="../data/others.parquet", timestamp_field="ts")
owners = FileSource(name="owners", path="../data/owners.parquet", timestamp_field="ts", field_mapping={"years": "age"})
owner = FeatureView(
    name="owner", entities=[card], ttl=timedelta(0), source=owners,
    schema=[Field(name="card_id", dtype=Int64), Field(name="age", dtype=Int64)],
)
second = FeatureView(
    name="second", entities=[card], ttl=timedelta(0), source=other,
    schema=[Field(name="card_id", dtype=Int64), Field(name="limit", dtype=Float64)],
)
"""
CONTRACT = """\
apiVersion: v3.1.0
kind: DataContract
id: owners
version: 1.2.0
status: active
team: {name: registry-office}
schema:
  - name: owners
    properties:
      - name: card_id
        logicalType: integer
      - name: years
        logicalType: integer
        quality:
          - id: age_range
            type: custom
            engine: great-expectations
            implementation: {type: expect_column_values_to_be_between, kwargs: {min_value: 0, max_value: 130}}
            customProperties:
              - {property: mode, value: observe}
              - {property: mode.source, value: MODE}
              - {property: mode.online_write, value: block}
"""


@pytest.fixture
def repo(tmp_path, store, online_url):
    """Applies a repo of two views; the contract of the first keeps `mode` before it is materialized."""

    def made(mode: str, offline: str = "featurestore.plugins.DuckDBOfflineStore") -> Any:
        folder, data = tmp_path / "feature_repo", tmp_path / "data"
        (folder / "contracts").mkdir(parents=True)
        data.mkdir()
        (folder / "feature_store.yaml").write_text(YAML.replace("OFFLINE", offline).replace("ADDRESS", online_url))
        (folder / "shop_definitions.py").write_text(textwrap.dedent(DEFINITIONS))
        (folder / "contracts" / "owners.odcs.yaml").write_text(CONTRACT.replace("MODE", mode))
        ts = pa.array([NOW - timedelta(minutes=m) for m in (3, 2, 1)], pa.timestamp("us", "UTC"))
        keys = pa.array([1, 1, 2], pa.int64())
        pq.write_table(pa.table({"card_id": keys, "years": pa.array([41, 410, 30]), "ts": ts}), data / "owners.parquet")
        pq.write_table(pa.table({"card_id": keys, "limit": [1.0, 2.0, 3.0], "ts": ts}), data / "others.parquet")
        settings = load_settings(folder, os.environ)
        apply(settings)
        return settings

    return made


def online(settings, view: str, feature: str) -> list[Any]:
    """What the online store holds of cards 1 and 2."""
    client = connect(settings.online, settings.data_dir)
    from featurestore.plan_store import load_plan_file

    reader = OnlineReader(client, load_plan_file(settings.plan_path), lambda: int(NOW.timestamp() * 1e6))
    (column,) = reader.read([Projection(view=view, features=(feature,))], {"card_id": [1, 2]}).columns
    return column.to_python()


def test_rows_that_quarantine_are_set_aside_and_told(repo):
    """The key keeps its last good value; the line, the violation and the quarantine say which row and why."""
    settings = repo("quarantine")
    told = {line.split(":")[0]: line for line in materialize(settings, [], None, None)}
    assert online(settings, "owner", "age") == [41, 30]
    assert told["owner"].startswith("owner: 2 keys written")
    assert "1 rows set aside by contract 'owners'" in told["owner"]
    (row,) = read_quarantine(settings.data_dir / "quarantine", "owners").to_pylist()
    assert (row["offset"], row["contract_version"], row["rule_ids"]) == (1, "1.2.0", ["age_range"])
    assert row["origin"].endswith("data/owners.parquet")
    (violation,) = ViolationStore(settings.data_dir / "violations").find()
    assert (violation.boundary, violation.rows, violation.evaluated, violation.producer) == (
        *("source", 1, 3, "registry-office"),
    )
    assert "view owner" in violation.affected


def test_a_view_that_is_blocked_is_left_as_it_was_and_the_others_go_on(repo):
    """The error names rule and counts; nothing of the view is written; the other view is loaded."""
    settings = repo("block")
    lines = materialize(settings, [], None, None)
    told = []
    with pytest.raises(
        ContractBroken, match=r"'owner'.*contract 'owners' 1.2.0, 3 rows: age_range: 1 of 3 rows"
    ) as stopped:
        told.extend(iter(lambda: next(lines), None))
    assert stopped.value.exit_code == ContractBroken.BAD_DATA
    assert online(settings, "owner", "age") == [None, None]
    assert online(settings, "second", "limit") == [2.0, 3.0]
    assert not (settings.data_dir / "quarantine").exists()
    assert ViolationStore(settings.data_dir / "violations").find()[0].action.startswith("blocked")


def test_an_observing_rule_changes_nothing_and_is_counted(repo):
    """Every row is loaded; the violation is there for who asks."""
    settings = repo("observe")
    lines = list(materialize(settings, ["owner"], None, None))
    assert online(settings, "owner", "age") == [410, 30]
    assert "set aside" not in lines[0]
    assert ViolationStore(settings.data_dir / "violations").find()[0].mode == "observe"


def test_feasts_own_materialize_keeps_the_contract(repo):
    """`FeatureStore.materialize` goes through the same door."""
    from feast import FeatureStore

    settings = repo("block")
    store = FeatureStore(str(settings.repo))
    with pytest.raises(ContractBroken, match="age_range: 1 of 3 rows"):
        store.materialize(NOW - timedelta(hours=1), NOW + timedelta(seconds=1))
    assert online(settings, "owner", "age") == [None, None]
    assert online(settings, "second", "limit") == [2.0, 3.0]


def test_both_views_that_cannot_be_loaded_are_named(repo, capsys):
    """A blocked one and an unreadable one: the exit code is that of neither, the last line tells of both."""
    settings = repo("block")
    (settings.data_dir / "others.parquet").write_bytes(b"torn")
    assert main(["materialize", "--repo", str(settings.repo)]) == 1
    told = capsys.readouterr()
    assert [word in told.out for word in ("blocked: owner:", "failed: second:")] == [True, True]
    last = told.err.splitlines()[-1]
    assert last.startswith("error: 2 of 2 views could not be loaded (owner, second)")
    assert "age_range: 1 of 3 rows" in last
    assert "others.parquet" in last


def test_another_offline_store_is_held_to_the_contract_too(repo):
    """Rows that stock Feast's store pulls are judged as ours are."""
    settings = repo("quarantine", "dask")
    list(materialize(settings, ["owner"], None, None))
    assert online(settings, "owner", "age") == [41, 30]
    (row,) = read_quarantine(settings.data_dir / "quarantine", "owners").to_pylist()
    assert row["rule_ids"] == ["age_range"]


def test_a_renamed_column_is_a_broken_check_not_bad_data(repo):
    """Where a quarantining rule cannot be judged, nothing is loaded, and the message says that the check broke."""
    settings = repo("quarantine")
    path = settings.data_dir / "owners.parquet"
    table = pq.read_table(path)
    contract = settings.repo / "contracts" / "owners.odcs.yaml"
    contract.write_text(contract.read_text().replace("name: years", "name: jahre"))
    apply(settings)
    pq.write_table(table, path)
    with pytest.raises(ContractBroken, match="age_range: the check broke: no column 'jahre'") as stopped:
        list(materialize(settings, ["owner"], None, None))
    assert stopped.value.exit_code == ContractBroken.CHECK_BROKE


DRIFT = """\
    quality:
      - id: ages_as_before
        type: custom
        engine: great-expectations
        implementation:
          type: expect_table_to_not_drift
          kwargs: {columns: [years], reference: ../../data/known.parquet}
        customProperties:
          - {property: mode.source, value: block}
"""


def test_a_drift_rule_stops_what_is_materialized(repo):
    """Rows that look like the reference are loaded; rows that drifted are not, and the error names the rule."""
    settings = repo("observe")
    contract = settings.repo / "contracts" / "owners.odcs.yaml"
    contract.write_text(contract.read_text() + DRIFT)
    ages = pa.array([20 + n % 50 for n in range(400)])
    pq.write_table(pa.table({"years": ages}), settings.data_dir / "known.parquet")

    def land(shift: int) -> None:
        pq.write_table(
            pa.table(
                {
                    "card_id": pa.array([n % 2 + 1 for n in range(300)], pa.int64()),
                    "years": pa.array([20 + shift + n * 7 % 50 for n in range(300)]),
                    "ts": pa.array([NOW - timedelta(minutes=300 - n) for n in range(300)], pa.timestamp("us", "UTC")),
                }
            ),
            settings.data_dir / "owners.parquet",
        )

    apply(settings)
    land(40)
    with pytest.raises(ContractBroken, match="ages_as_before"):
        list(materialize(settings, ["owner"], None, None))
    assert online(settings, "owner", "age") == [None, None]
    land(0)
    list(materialize(settings, ["owner"], None, None))
    assert online(settings, "owner", "age") != [None, None]


def test_feasts_own_writes_keep_the_contract(repo):
    """`write_to_online_store` refuses all rows where one breaks a rule, as the API does; good ones are written."""
    import pandas as pd
    from feast import FeatureStore

    settings = repo("observe")
    store = FeatureStore(str(settings.repo))
    rows = pd.DataFrame({"card_id": [1, 2], "age": [50, 500], "ts": [NOW - timedelta(minutes=1)] * 2})
    with pytest.raises(UsageError, match=r"row 1 .*breaks contract 'owners', rules age_range; nothing was written"):
        store.write_to_online_store("owner", rows)
    assert online(settings, "owner", "age") == [None, None]
    store.write_to_online_store("owner", rows.head(1))
    assert online(settings, "owner", "age") == [50, None]


@pytest.mark.parametrize(("mode", "held"), [("warn", [50, 500]), ("observe", [50, 500]), ("block", [None, None])])
def test_what_feasts_own_writes_break_is_told(repo, mode, held):
    """Refused rows, and rows that were written although a rule is broken: both become violations."""
    import pandas as pd
    from feast import FeatureStore

    settings = repo("observe")
    contract = settings.repo / "contracts" / "owners.odcs.yaml"
    contract.write_text(
        contract.read_text().replace("mode.online_write, value: block", f"mode.online_write, value: {mode}")
    )
    apply(settings)
    store = FeatureStore(str(settings.repo))
    rows = pd.DataFrame({"card_id": [1, 2], "age": [50, 500], "ts": [NOW - timedelta(minutes=1)] * 2})
    with pytest.raises(UsageError) if mode == "block" else contextlib.nullcontext():
        store.write_to_online_store("owner", rows)
    assert online(settings, "owner", "age") == held
    (contracts,) = store._provider.online_store._contracts.values()
    contracts.finish()
    written = read_kept(ProfileStore(settings.data_dir / "profiles"), "online_write", "owner", 0, 2**62)
    assert [(one.feature, one.rows, one.high) for one in written] == ([] if mode == "block" else [("age", 2, 500.0)])
    (told,) = ViolationStore(settings.data_dir / "violations").find()
    found = (told.boundary, told.rule_id, told.mode, told.rows, told.evaluated)
    assert found == ("online_write", "age_range", mode, 1, 2)


def test_a_long_running_script_profiles_what_it_writes_meanwhile(repo):
    """What waited long enough is kept with the next write: a script need not end, and may be killed."""
    import pandas as pd
    from feast import FeatureStore

    settings = repo("observe")
    store = FeatureStore(str(settings.repo))
    keys = range(FIRST_ROWS)
    rows = pd.DataFrame({"card_id": keys, "age": [50] * len(keys), "ts": [NOW - timedelta(minutes=1)] * len(keys)})
    store.write_to_online_store("owner", rows)
    (contracts,) = store._provider.online_store._contracts.values()
    contracts._profiles._since_us -= PROFILE_AGE_US
    store.write_to_online_store("owner", rows.head(1))
    written = read_kept(ProfileStore(settings.data_dir / "profiles"), "online_write", "owner", 0, 2**62)
    assert [(one.feature, one.rows) for one in written] == [("age", FIRST_ROWS + 1)]


def test_what_a_materialization_writes_is_profiled(repo):
    """Under the view's names, by the hour it is written in: the rows that became their key's value."""
    settings = repo("observe")
    list(materialize(settings, [], None, None))
    store = ProfileStore(settings.data_dir / "profiles")
    found = {
        (view, one.feature): (one.rows, one.low, one.high)
        for view in ("owner", "second")
        for one in read_kept(store, "online_write", view, int(NOW.timestamp() - 3_600) * 1_000_000, 2**62)
    }
    assert found == {("owner", "age"): (2, 30.0, 410.0), ("second", "limit"): (2, 2.0, 3.0)}
