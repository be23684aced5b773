"""Definitions come into force whole or not at all, and apply says what changed and whom it breaks."""

import datetime as dt
import json
import os
import random
import textwrap
from decimal import Decimal

import msgspec
import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureStore
from google.protobuf import descriptor_pb2
from typer.testing import CliRunner

from featurestore.apply import apply, preview
from featurestore.config import load_settings
from featurestore.errors import ConfigurationError, DefinitionError, FeatureStoreError, StaleStore
from featurestore.materialize import materialize
from featurestore.offline.event_log import write_events
from featurestore.online.connection import connect
from featurestore.online.keys import plan_key, plans_key, shards_key
from featurestore.plan_store import PlanStore, load_plan_file
from featurestore.plan_versions import flipped
from featurestore.topic_schema import declared_columns
from validation.commands import app as contracts_app
from validation.errors import ContractError

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
from feast import Entity, FeatureService, FeatureView, Field, FileSource, KafkaSource, RequestSource
from feast import StreamFeatureView, ValueType
from feast.stream_feature_view import stream_feature_view
from feast.aggregation import Aggregation
from feast.data_format import AvroFormat, JsonFormat, ProtoFormat
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String

LIMIT = 10
card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.INT64)
taps = KafkaSource(
    name="taps", topic="taps", kafka_bootstrap_servers="localhost:9092", timestamp_field="ts",
    message_format=JsonFormat(schema_json="card_id bigint, ts timestamp, fare double"),
    batch_source=FileSource(name="taps_log", path="../data/event_log/taps", timestamp_field="ts"),
    tags={"message_key": "card_id"},
)
spending = StreamFeatureView(
    name="spending", entities=[card], source=taps, timestamp_field="ts", ttl=timedelta(0),
    schema=[Field(name="card_id", dtype=Int64), Field(name="spent_1h", dtype=Float64)],
    aggregations=[Aggregation(column="fare", function="sum", time_window=timedelta(hours=1), name="spent_1h")],
)
owner = FeatureView(
    name="owner", entities=[card], ttl=timedelta(days=1),
    schema=[Field(name="card_id", dtype=Int64), Field(name="age", dtype=Int64)],
    source=FileSource(name="owners", path="../data/owners.parquet", timestamp_field="ts"),
)

@on_demand_feature_view(
    sources=[owner, RequestSource(name="asked", schema=[Field(name="amount", dtype=Float64)])],
    schema=[Field(name="per_year", dtype=Float64)], mode="python",
)
def ratio(inputs):
    return {"per_year": [a / y if y else None for a, y in zip(inputs["amount"], inputs["age"])]}

fraud = FeatureService(name="fraud", features=[owner, spending, ratio])
"""
TAGS = '"message_key": "card_id"'


@pytest.fixture
def repo(tmp_path):
    """Writes a small feature repo; keyword `old=new` pairs replace text of its definitions."""
    folder = tmp_path / "feature_repo"
    folder.mkdir()
    (folder / "feature_store.yaml").write_text(YAML)

    def write(*replacements):
        text = textwrap.dedent(DEFINITIONS)
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        (folder / "shop_definitions.py").write_text(text)
        return load_settings(folder, os.environ)

    return write


def test_a_repo_comes_into_force(repo):
    """Registry, plan file and online store agree; applying again changes nothing."""
    settings = repo()
    outcome = apply(settings)
    assert outcome.plan.version == 1
    assert {change.what for change in outcome.changes} == {"added"}
    assert load_plan_file(settings.plan_path) == outcome.plan
    assert PlanStore(connect(settings.online, settings.data_dir), "shop").load() == outcome.plan
    again = apply(settings)
    assert (again.plan, again.changes) == (outcome.plan, [])


def test_the_plan_says_what_feast_defines(repo):
    """Keys, types, windows, partitions and services arrive as declared."""
    plan = apply(repo()).plan
    spending = plan.view("spending")
    assert (spending.kind, spending.partitions, spending.join_keys[0].dtype) == ("windowed", "keyed", "INT64")
    assert (spending.aggregations[0].window_us, spending.aggregations[0].hop_us) == (3_600_000_000, 300_000_000)
    assert plan.view("owner").ttl_us == 86_400_000_000
    assert [p.view for p in plan.service("fraud").projections] == ["owner", "spending", "ratio"]
    assert plan.on_demand["ratio"].request[0].name == "amount"


@pytest.mark.filterwarnings("ignore:Stream feature views are experimental:RuntimeWarning")
def test_text_decimals_and_dates_are_aggregated_from_plain_feast(repo):
    """From Feast's definitions to Feast's own training call: the newest text, exact sums, the last day."""
    fields = """Field(name="spent_1h", dtype=Float64), Field(name="shop", dtype=String),
        Field(name="paid", dtype=Decimal), Field(name="day", dtype=UnixTimestamp)"""
    more = """Aggregation(column="fare", function="sum", time_window=timedelta(hours=1), name="spent_1h"),
        Aggregation(column="name", function="last", time_window=timedelta(hours=1), name="shop"),
        Aggregation(column="price", function="sum", time_window=timedelta(hours=1), name="paid"),
        Aggregation(column="on_day", function="max", time_window=timedelta(hours=1), name="day")]"""
    one = 'Aggregation(column="fare", function="sum", time_window=timedelta(hours=1), name="spent_1h")]'
    settings = repo(
        ("Float64, Int64, String\n", "Decimal, Float64, Int64, String, UnixTimestamp\n"),
        ("ts timestamp, fare double", "ts timestamp, fare double, name string, price decimal(10, 2), on_day date"),
        ('Field(name="spent_1h", dtype=Float64)', fields),
        (one, more),
        ("    aggregations=[", '    tags={"shop.max_bytes": "16"}, aggregations=['),
    )
    plan = apply(settings).plan
    assert {each.feature: each.column_dtype for each in plan.view("spending").aggregations} == {
        "spent_1h": "DOUBLE",
        "shop": "STRING",
        "paid": "DECIMAL(10,2)",
        "day": "DATE",
    }
    stamp = pa.timestamp("us", "UTC")
    at = [dt.datetime(2024, 5, 1, 12, minute, tzinfo=dt.UTC) for minute in (0, 10, 20)]
    events = pa.table(
        {
            "card_id": [7, 7, 7],
            "ts": pa.array(at, stamp),
            "fare": [1.5, None, 2.0],
            "name": ["bakery", "café", None],
            "price": pa.array([Decimal("0.10"), Decimal("0.20"), Decimal("-5.00")], pa.decimal128(10, 2)),
            "on_day": pa.array([dt.date(2024, 5, 1), dt.date(2024, 4, 30), None]),
            "_offset": pa.array([0, 1, 2], pa.int64()),
            "_arrival": pa.array(at, stamp),
        }
    )
    log = settings.data_dir / "event_log" / "taps"
    write_events(log, events, topic_id="t", partition=0, first=0, last=2)
    asked = pd.DataFrame({"card_id": [7, 8], "event_timestamp": [at[2]] * 2})
    found = FeatureStore(settings.repo).get_historical_features(
        asked, features=[f"spending:{name}" for name in ("shop", "paid", "day")]
    )
    told = found.to_arrow().select(["shop", "paid", "day"]).to_pydict()
    assert told["shop"] == ["café", None]
    assert told["paid"] == ["-4.70", None]
    assert told["day"][0].replace(tzinfo=None) == dt.datetime(2024, 5, 1)
    assert told["day"][1] is None


def test_a_changed_window_starts_a_new_version_and_says_whom_it_breaks(repo):
    """preview tells before apply does, and writes nothing."""
    apply(repo())
    settings = repo(("time_window=timedelta(hours=1)", "time_window=timedelta(hours=2)"))
    told = [change.line for change in preview(settings)]
    assert any("spending: version 1 -> 2; BREAKS fraud" in line for line in told)
    assert load_plan_file(settings.plan_path).version == 1
    plan = apply(settings).plan
    assert (plan.version, plan.view("spending").version, plan.view("owner").version) == (2, 2, 1)


def live(settings, version=1):
    """What the stream leaves behind for readers."""
    client = connect(settings.online, settings.data_dir)
    client.set(shards_key("shop", "spending", version), b"[]")


def test_a_view_that_is_live_stays_as_it_is_until_its_next_version_is_built(repo):
    """Readers keep version 1 and every feature of it; the next version is named, and what has to be done."""
    before = apply(repo()).plan
    settings = repo(("time_window=timedelta(hours=1)", "time_window=timedelta(hours=2)"))
    live(settings)
    told = [change.line for change in preview(settings)]
    assert any("featurestore backfill spending" in line for line in told)
    assert not any("BREAKS" in line for line in told)
    plan = apply(settings).plan
    assert plan.views["spending"] == before.views["spending"]
    assert (plan.building["spending"].version, plan.building["spending"].aggregations[0].window_us) == (
        2,
        7_200_000_000,
    )
    assert apply(settings).plan == plan


def test_a_definition_that_is_taken_back_is_not_built(repo):
    """The version that was begun is called unused, and its number is not taken again."""
    settings = repo()
    apply(settings)
    live(settings)
    apply(repo(("time_window=timedelta(hours=1)", "time_window=timedelta(hours=2)")))
    plan = apply(repo()).plan
    assert (plan.building, [view.version for view in plan.unused]) == ({}, [2])
    plan = apply(repo(("time_window=timedelta(hours=1)", "time_window=timedelta(hours=3)"))).plan
    assert plan.building["spending"].version == 3


def test_a_plan_that_a_backfill_put_in_force_is_not_undone(repo):
    """`apply` goes by the online store's plan where that is later than the file's; equal definitions change nothing."""
    settings = repo()
    apply(settings)
    live(settings)
    settings = repo(("time_window=timedelta(hours=1)", "time_window=timedelta(hours=2)"))
    held = apply(settings).plan
    plans = PlanStore(connect(settings.online, settings.data_dir), "shop")
    changed = flipped(held, "spending", now_us=held.created_us + 1)
    plans.replace(held, changed)
    outcome = apply(settings)
    assert (outcome.plan, outcome.changes) == (changed, [])
    assert (outcome.plan.views["spending"].version, [v.version for v in outcome.plan.retiring]) == (2, [1])
    with pytest.raises(StaleStore, match="meanwhile"):
        plans.replace(held, held)


def test_a_horizon_of_event_ids_starts_a_new_version(repo):
    """Tiles that hold duplicates are not those that do not; the id alone changes nothing."""
    plan = apply(repo()).plan
    assert plan.view("spending").source.topic.event_id_horizon_us is None
    plan = apply(repo((TAGS, TAGS + ', "event_id": "uid"'))).plan
    assert plan.view("spending").version == 1
    plan = apply(repo((TAGS, TAGS + ', "event_id": "uid", "event_id_horizon_s": "1.5"'))).plan
    topic = plan.view("spending").source.topic
    assert (topic.event_id, topic.event_id_horizon_us) == ("uid", 1_500_000)
    assert plan.view("spending").version == 2


def test_ids_that_are_unique_within_a_partition_need_no_message_key(repo):
    """The source takes the responsibility for where a repeat goes, and says so."""
    tags = '"event_id": "uid", "event_id_horizon_s": "60", "event_id_scope": "partition"'
    topic = apply(repo((TAGS, tags))).plan.view("spending").source.topic
    assert (topic.key_column, topic.event_id_horizon_us) == (None, 60_000_000)


def test_a_declared_number_of_partitions_starts_a_new_version(repo):
    """Among how many partitions a key has one is known of events from the first on, or not at all."""
    assert apply(repo()).plan.view("spending").version == 1
    view = apply(repo((TAGS, TAGS + ', "partitions": "4", "partitioner": "murmur2_random"'))).plan.view("spending")
    assert (view.source.topic.partitions, view.partitions, view.version) == (4, "keyed", 2)


FUNCTION = """
@stream_feature_view(
    entities=[card], source=taps, timestamp_field="ts", ttl=timedelta(0), mode="python",
    schema=[Field(name="card_id", dtype=Int64), Field(name="spent_1h", dtype=Float64)],
    tags={"transform.columns": "half double"},
    aggregations=[Aggregation(column="half", function="sum", time_window=timedelta(hours=1), name="spent_1h")],
)
def spending(columns):
    return {"half": [None if fare is None else fare / 2 for fare in columns["fare"]]}

owner ="""


@pytest.mark.filterwarnings("ignore:Stream feature views are experimental")
def test_a_stream_views_function_is_proved_and_runs_offline_too(repo):
    """What it is given and makes is in the plan; the event log keeps events as they came, training sees them after."""
    settings = repo(("owner =", FUNCTION))
    transform = apply(settings).plan.view("spending").transform
    assert [field.name for field in transform.inputs] == ["card_id", "ts", "fare"]
    assert [(field.name, field.dtype) for field in transform.outputs] == [("half", "DOUBLE")]
    assert "def spending" in transform.function.source
    moment = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)
    events = pa.table(
        {
            "card_id": [1, 1, 2],
            "ts": pa.array([moment] * 3, pa.timestamp("us", "UTC")),
            "fare": [3.0, None, 8.0],
            "_offset": [0, 1, 2],
            "_arrival": pa.array([moment] * 3, pa.timestamp("us", "UTC")),
        }
    )
    write_events(settings.event_log / "taps", events, topic_id="t", partition=0, first=0, last=2)
    asked = pd.DataFrame({"card_id": [1, 2], "event_timestamp": [moment] * 2})
    store = FeatureStore(str(settings.repo))
    found = store.get_historical_features(asked, ["spending:spent_1h"]).to_arrow()
    assert found.sort_by("card_id")["spent_1h"].to_pylist() == [1.5, 4.0]


AVRO = """{
    "type": "record", "name": "Tap", "fields": [
        {"name": "card_id", "type": "long"},
        {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "fare", "type": ["null", "double"]}]}"""
JSON_FORMAT = 'JsonFormat(schema_json="card_id bigint, ts timestamp, fare double")'


def descriptor_set(path):
    """What `protoc --descriptor_set_out` writes for a tap."""
    files = descriptor_pb2.FileDescriptorSet()
    file = files.file.add(name="taps.proto", package="city", syntax="proto3")
    message = file.message_type.add(name="Tap")
    for number, (name, kind) in enumerate({"card_id": 3, "ts": 3, "fare": 1}.items(), start=1):
        message.field.add(name=name, number=number, label=1, type=kind)
    path.write_bytes(files.SerializeToString())


def test_avro_and_protobuf_topics_are_compiled_whole(repo):
    """Columns come from the schema; a Protobuf message from a descriptor set, or from a class of the repo."""
    settings = repo((JSON_FORMAT, f"AvroFormat(schema_json={AVRO!r})"))
    topic = apply(settings).plan.view("spending").source.topic
    assert (topic.message_format, topic.wire_format) == ("avro", "plain")
    assert [column.dtype for column in declared_columns(topic)] == ["INT64", "UNIX_TIMESTAMP", "DOUBLE"]
    descriptor_set(settings.repo / "taps.desc")
    (settings.repo / "taps_made.py").write_text(
        "from google.protobuf import descriptor_pb2, descriptor_pool, message_factory\n"
        "from pathlib import Path\n"
        "pool = descriptor_pool.DescriptorPool()\n"
        "files = descriptor_pb2.FileDescriptorSet.FromString((Path(__file__).parent / 'taps.desc').read_bytes())\n"
        "pool.Add(files.file[0])\n"
        "Tap = message_factory.GetMessageClass(pool.FindMessageTypeByName('city.Tap'))\n"
    )
    topics = []
    for path in ("taps.desc:city.Tap", "taps_made.Tap"):
        settings = repo(
            (JSON_FORMAT, f"ProtoFormat(class_path={path!r})"),
            (TAGS, TAGS + ', "wire_format": "confluent"'),
        )
        plan = apply(settings).plan
        topics.append(plan.view("spending").source.topic)
        assert [column.name for column in plan.view("spending").columns] == ["card_id", "fare"]
    assert topics[0] == topics[1]
    assert (topics[0].message_type, topics[0].wire_format) == ("city.Tap", "confluent")


@pytest.mark.parametrize(
    ("replacement", "said"),
    [
        (("owner =", FUNCTION.replace('mode="python"', 'mode="spark"')), "cannot be imported"),
        (("owner =", FUNCTION.replace("fare / 2 for", "fare / LIMIT for")), "LIMIT"),
        (("owner =", FUNCTION.replace("fare / 2 for", "fare / len(columns) / len(columns['fare']) for")), "row-wise"),
        (("owner =", FUNCTION.replace("half double", "half double, ts timestamp")), "no function can make column 'ts'"),
        (("owner =", FUNCTION.replace('"transform.columns": "half double"', "")), "which its events do not have"),
        ((JSON_FORMAT, 'AvroFormat(schema_json="[]")'), "not a record"),
        ((JSON_FORMAT, 'ProtoFormat(class_path="nothing.Tap")'), "names no Protobuf class"),
        ((JSON_FORMAT, 'ProtoFormat(class_path="nothing.desc:city.Tap")'), "cannot be read"),
        ((TAGS, TAGS + ', "wire_format": "mine"'), "expected plain or confluent"),
        (('name="spent_1h")]', 'name="spent")]'), "spent"),
        (("timedelta(hours=1)", "timedelta(hours=1), slide_interval=timedelta(minutes=7)"), "divide"),
        (('column="fare"', 'column="fair"'), "did you mean 'fare'"),
        (("y in zip", "y in missing"), "missing"),
        (("a / y if y else None", "a / LIMIT"), "LIMIT"),
        (("a / y if y else None for a, y", "sum(inputs['amount']) for a, y"), "row"),
        (("fare double", "fare money"), "known types"),
        (("from feast.types import", "from feast.typos import"), "cannot be imported"),
        ((TAGS, '"dead_letters": "a topic"'), "expected the name of another topic than"),
        ((TAGS, '"event_id_horizon_s": "60"'), "without tag event_id"),
        ((TAGS, '"event_id": "fare", "event_id_horizon_s": "60"'), "'fare' is DOUBLE"),
        ((TAGS, '"event_id": "uid", "event_id_horizon_s": "soon"'), "'soon'"),
        ((TAGS, '"event_id": "uid"'), "event id 'uid' without a message key"),
        ((TAGS, '"event_id": "uid", "event_id_horizon_s": "60"'), "event_id_scope: partition"),
        ((TAGS, '"event_id": "uid", "message_key": ""'), "without a message key"),
        ((TAGS, '"event_id": "uid", "event_id_scope": "topic"'), "expected partition"),
        ((TAGS, TAGS + ', "event_id_scope": "partition"'), "beside the tag event_id"),
        ((TAGS, TAGS + ', "partitions": "0"'), "from 1 to"),
        ((TAGS, '"partitions": "4"'), "beside the tag message_key"),
        ((TAGS, TAGS + ', "partitioner": "consistent"'), "expected murmur2_random"),
        ((TAGS, '"event_id": "uid", "event_id_horizon_s": "0"'), "more than 0"),
        ((TAGS, '"event_id": "uid", "event_id_horizon_s": "1e9"'), "366 days"),
        ((TAGS, '"event_id": "uid", "event_id_horizon_s": "NaN"'), "'NaN'"),
        ((TAGS, '"event_id": "uid", "event_id_horizon_s": "0.0000001"'), "six decimals"),
    ],
)
def test_what_cannot_be_honoured_changes_nothing(repo, replacement, said):
    """One line names the thing, and neither registry nor plan is written."""
    settings = repo(replacement)
    with pytest.raises(DefinitionError) as caught:
        apply(settings)
    assert said in str(caught.value)
    assert not settings.plan_path.exists()
    registry = settings.data_dir / "registry.db"  # Feast makes an empty one when it first looks
    assert not registry.exists() or b"spending" not in registry.read_bytes()


@pytest.mark.parametrize("name", ["streaming.py", "validation.py", "json.py"])
def test_a_file_named_like_a_module_is_refused(repo, name):
    """Feast would import the other module and lose the definitions silently."""
    settings = repo()
    (settings.repo / "shop_definitions.py").rename(settings.repo / name)
    with pytest.raises(DefinitionError, match="rename the file"):
        apply(settings)


def test_a_repo_without_views_is_told(repo):
    """An empty repo names where it looked."""
    settings = repo()
    (settings.repo / "shop_definitions.py").write_text("")
    with pytest.raises(DefinitionError, match=r"defines no feature views; looked in shop_definitions\.py"):
        apply(settings)


def test_a_contract_about_nothing_is_refused(repo):
    """A contract names a source that some view reads."""
    settings = repo()
    folder = settings.repo / "contracts"
    folder.mkdir()
    (folder / "x.odcs.yaml").write_text("not: a contract")
    with pytest.raises(ContractError):
        apply(settings)


CONTRACT = """\
apiVersion: v3.1.0
kind: DataContract
id: NAME
version: 1.0.0
status: active
schema:
  - name: NAME
    properties:
      - name: fare
        logicalType: number
        quality:
          - id: apart
            type: custom
            engine: great-expectations
            implementation: {type: EXPECTATION, kwargs: {}}
            customProperties: [{property: MODE, value: quarantine}]
"""


@pytest.mark.parametrize(
    ("expectation", "why"),
    [
        ("expect_column_values_to_be_unique", "looks at more than one row"),
        ("expect_column_values_to_be_increasing", "judged by Great Expectations on batches"),
    ],
)
def test_a_rule_that_events_cannot_be_held_to_is_refused(repo, expectation, why):
    """By name and reason, before it comes into force; of files, or of events that it only observes, it may be said."""
    settings = repo()
    folder = settings.repo / "contracts"
    folder.mkdir()

    def applied(mode, name="taps"):
        text = CONTRACT.replace("NAME", name).replace("EXPECTATION", expectation).replace("MODE", mode)
        (folder / "x.odcs.yaml").write_text(text)
        return apply(settings)

    for name in ("taps", "taps_log"):
        with pytest.raises(ContractError, match=f"'{name}', rule 'apart': mode quarantine cannot be kept.*{why}"):
            applied("mode.event", name)
        assert not settings.plan_path.exists()
    assert applied("mode.producer").plan.contracts
    assert applied("mode", "owners").plan.contracts


def test_of_a_file_of_several_objects_those_of_this_repo_are_kept(repo, caplog):
    """The others are named by `apply` and by `lint` with its plan; a file of which none is known is refused."""
    settings = repo()
    folder = settings.repo / "contracts"
    folder.mkdir()

    def written(*names):
        objects = [{"name": name, "properties": [{"name": "id", "logicalType": "string"}]} for name in names]
        document = {"kind": "DataContract", "apiVersion": "v3.1.0", "id": "all", "version": "1.0.0", "schema": objects}
        (folder / "all.odcs.yaml").write_text(json.dumps({**document, "status": "active"}))

    written("owners", "invoices", "view:elsewhere")
    assert [contract.source for contract in apply(settings).plan.contracts.values()] == ["owners"]
    assert "contract 'all.invoices' is left out: 'invoices' is no source of a view" in caplog.text
    call = ["contract", "lint", str(folder), "--plan", str(settings.plan_path)]
    shown = CliRunner().invoke(contracts_app, call)
    assert shown.exit_code == 1
    assert shown.output.count("is no source of a view, no view and no service of the plan") == 2
    for names in (("invoices",), ("invoices", "returns")):
        written(*names)
        with pytest.raises(DefinitionError, match="'invoices', which is no source of a view"):
            apply(settings)


def test_an_unknown_store_is_a_configuration_error(repo):
    """A type that cannot be imported is one line."""
    settings = repo()
    text = YAML.replace("featurestore.plugins.ArrowEngine", "nowhere.ArrowEngine")
    (settings.repo / "feature_store.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"feature_store\.yaml"):
        apply(settings)


def test_two_repos_do_not_mix(repo, tmp_path):
    """Modules of one repo are forgotten when it has been read: a second one of the same file names is read afresh."""
    apply(repo())
    other = repo(('name="fraud"', 'name="abuse"'))
    assert "abuse" in apply(other).plan.services


def test_feasts_sql_registry_works_alike(repo, tmp_path):
    """Definitions in a database: applied, compiled, changed, materialized, and read through Feast's SDK."""
    settings = repo()
    config = settings.repo / "feature_store.yaml"
    registry = f"{{registry_type: sql, path: 'sqlite:///{tmp_path}/registry.sqlite', cache_ttl_seconds: 0}}"
    config.write_text(YAML.replace("../data/registry.db", registry))
    settings = load_settings(settings.repo, os.environ)
    now = dt.datetime.now(dt.UTC)
    rows = pd.DataFrame({"card_id": [1, 2], "age": [30, 40], "ts": [now - dt.timedelta(hours=2)] * 2})
    (tmp_path / "data").mkdir(exist_ok=True)
    rows.to_parquet(tmp_path / "data" / "owners.parquet")
    apply(settings)
    assert (tmp_path / "registry.sqlite").exists()
    plan = load_plan_file(settings.plan_path)
    assert (plan.version, set(plan.views), set(plan.services)) == (1, {"owner", "spending"}, {"fraud"})
    assert PlanStore(connect(settings.online, settings.data_dir), "shop").load() == plan
    list(materialize(settings, ["owner"], None, None))
    read = FeatureStore(str(settings.repo)).get_online_features(
        features=["owner:age"], entity_rows=[{"card_id": 2}, {"card_id": 3}]
    )
    assert read.to_dict()["age"] == [40, None]
    definitions = settings.repo / "shop_definitions.py"
    definitions.write_text(definitions.read_text().replace("timedelta(days=1)", "timedelta(days=2)"))
    apply(settings)
    assert load_plan_file(settings.plan_path).version == 2
    assert load_plan_file(settings.plan_path).view("owner").ttl_us == 2 * 86_400_000_000


TORN = [b"", b"9\n{torn", b"\xff\xfe", b"0" * 40, b'3\n{"signature":"00","project":"shop"}']


@pytest.mark.parametrize("torn", TORN)
def test_apply_repairs_what_its_message_is_about(torn, repo):
    """Whatever lies in the store or in the file, `apply` puts its plan in force, and all that was live stays live."""
    settings = repo()
    plan = apply(settings).plan
    client = connect(settings.online, settings.data_dir)
    plans = PlanStore(client, "shop")
    client.set(plan_key("shop"), torn)
    assert apply(settings).plan.views == plan.views
    assert plans.load() == load_plan_file(settings.plan_path)
    settings.plan_path.write_bytes(torn)
    assert apply(settings).plan.views == plan.views
    assert plans.load() == load_plan_file(settings.plan_path)
    settings.plan_path.write_bytes(torn)
    client.set(plan_key("shop"), torn)
    assert apply(settings).plan.views == plan.views
    assert plans.load() == load_plan_file(settings.plan_path)


def test_a_plan_of_a_version_that_did_not_sign_is_taken_over_from_its_file_alone(repo):
    """Its versions go on after an upgrade; an unsigned plan that lies in the store alone is nobody's."""
    settings = repo()
    plan = msgspec.structs.replace(apply(settings).plan, version=41, digest="earlier")
    client = connect(settings.online, settings.data_dir)
    client.delete(plans_key("shop"))
    client.set(plan_key("shop"), b"90\n" + plan.encode())
    settings.plan_path.unlink()
    preview(settings)
    assert apply(settings).plan.version == 91
    client.delete(plans_key("shop"), plan_key("shop"))
    settings.plan_path.write_bytes(plan.encode())
    assert apply(settings).plan.version == 42


def test_of_two_that_apply_at_once_file_and_store_have_the_same_plan(repo, monkeypatch):
    """One that fails at the end leaves the file of the plan in force; two in a row come one after the other."""
    settings = repo()
    before = apply(settings).plan
    changed = repo(('name="fraud"', 'name="abuse"'))

    def lost(self, before, plan, *, lease=b""):
        raise StaleStore("another plan came into force meanwhile")

    with monkeypatch.context() as patch:
        patch.setattr(PlanStore, "replace_raw", lost)
        with pytest.raises(StaleStore):
            apply(changed)
    assert load_plan_file(settings.plan_path) == before
    after = apply(changed).plan
    assert (
        load_plan_file(settings.plan_path)
        == after
        == PlanStore(connect(changed.online, changed.data_dir), "shop").load()
    )


def test_a_value_that_changed_in_the_registry_is_the_registrys_fault(repo):
    """What Feast cannot take is not blamed on the definitions."""
    settings = repo()
    apply(settings)
    path = settings.data_dir / "registry.db"
    path.write_bytes(path.read_bytes().replace(b"latest", b"lqtest"))
    with pytest.raises(ConfigurationError, match=r"registry\.db cannot be used.*featurestore apply"):
        apply(settings)
    path.unlink()
    assert apply(settings).plan.version == 1


@pytest.mark.parametrize("how", ["flip", "truncation", "noise", "empty", "gone"])
def test_a_damaged_registry_is_refused_or_without_effect(repo, how):
    """Whatever became of the file: the plan of `preview` and `apply` is that of the definitions, or none."""
    settings = repo()
    plan = apply(settings).plan
    path = settings.data_dir / "registry.db"
    whole, rng = path.read_bytes(), random.Random(4)
    for _ in range(12 if how == "flip" else 3):
        changed = bytearray(whole)
        if how == "flip":
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        elif how == "truncation":
            del changed[rng.randrange(1, len(changed)) :]
        else:
            changed = bytearray(rng.randbytes(300) if how == "noise" else b"")
        path.unlink(missing_ok=True) if how == "gone" else path.write_bytes(changed)
        for command in (preview, apply):
            told = None
            try:
                done = command(settings)
            except FeatureStoreError as error:
                told = str(error)
            if told is None:
                assert command is preview or done.plan == plan
            else:
                assert "registry.db" in told
                assert "featurestore apply" in told
