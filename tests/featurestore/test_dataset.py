"""A training set pins its inputs, is rebuilt from them, and names what changed."""

import datetime as dt

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.cli.main import main
from featurestore.dataset import build as dataset_build
from featurestore.dataset.build import Request, build, verify
from featurestore.dataset.manifest import Split, manifests, read_manifest
from featurestore.dataset.promises import judge_set
from featurestore.dataset.rebuild import retriever
from featurestore.dataset.split import split_rows
from featurestore.errors import ContractBroken, SourceError, UnknownName, UsageError
from featurestore.offline import mapped
from featurestore.offline.connection import Limits
from featurestore.offline.event_log import write_events
from featurestore.plan import Aggregation, Field, JoinKey, Plan, Service, Source, Topic, View
from featurestore.plan_store import write_plan_file
from validation.contract import Column, Contract, Rule
from validation.quarantine import read_quarantine
from validation.violations import ViolationStore

HOUR = 3_600_000_000
T0 = 1_700_000_000_000_000 // HOUR * HOUR
UTC = pa.timestamp("us", "UTC")
KEY = (JoinKey(entity="origin", name="origin", dtype="STRING"),)


def at(*hours):
    return pa.array([T0 + round(hour * HOUR) for hour in hours], UTC)


WEATHER = View(
    name="weather",
    version=1,
    kind="latest",
    join_keys=KEY,
    features=(Field(name="temp_f", dtype="DOUBLE"),),
    ttl_us=3 * HOUR,
    source=Source(name="weather", path="../data/weather", timestamp_field="event_timestamp"),
)
DEPARTURES = View(
    name="departures",
    version=1,
    kind="windowed",
    join_keys=KEY,
    features=(Field(name="flights_6h", dtype="INT64"),),
    ttl_us=0,
    source=Source(
        name="log",
        path="../data/event_log/departures",
        timestamp_field="event_timestamp",
        created_field="_arrival",
        topic=Topic(name="departures", bootstrap_servers="", message_format="json"),
    ),
    columns=(Field(name="origin", dtype="STRING"), Field(name="delay", dtype="DOUBLE")),
    aggregations=(
        Aggregation(
            feature="flights_6h",
            column="delay",
            column_dtype="DOUBLE",
            function="count",
            dtype="INT64",
            window_us=6 * HOUR,
            hop_us=HOUR // 12,
        ),
    ),
)
PLAN = Plan(
    project="flights", version=1, digest="d", created_us=0, views={"weather": WEATHER, "departures": DEPARTURES}
)
REFS = ("weather:temp_f", "departures:flights_6h")
ROWS = pa.table({"origin": ["EWR", "JFK", "EWR", None], "event_timestamp": at(1, 2, 9, 1), "late": [0, 1, 0, 1]})


def log(data, first, hours):
    events = pa.table(
        {
            "origin": ["EWR"] * len(hours),
            "event_timestamp": at(*hours),
            "delay": [1.0] * len(hours),
            "_offset": pa.array(range(first, first + len(hours)), pa.int64()),
            "_arrival": at(*hours),
        }
    )
    folder = data / "event_log" / "departures"
    write_events(folder, events, topic_id="t", partition=0, first=first, last=first + len(hours) - 1)


@pytest.fixture
def project(tmp_path):
    """A feature repo's folder, its data beside it, and `make` and `check` over them."""
    repo, data = tmp_path / "feature_repo", tmp_path / "data"
    (data / "weather").mkdir(parents=True)
    repo.mkdir()
    weather = pa.table({"origin": ["EWR", "JFK"], "event_timestamp": at(0, 1), "temp_f": [40.0, 41.5]})
    pq.write_table(weather, data / "weather" / "one.parquet")
    log(data, 0, [0.5, 0.7, 3])

    class Project:
        folder = data / "datasets"

        def make(self, name="set", plan=PLAN, rows=ROWS, features=REFS, **fields):
            request = Request(name=name, features=features, **fields)
            retrieve = retriever(plan, repo, "event_timestamp")
            return build(request, rows, plan=plan, repo=repo, folder=self.folder, retrieve=retrieve, clock=lambda: T0)

        def check(self, name="set", plan=PLAN):
            return verify(self.folder / name, plan=plan, repo=repo, retrieve=retriever(plan, repo, "event_timestamp"))

    project = Project()
    project.data = data
    return project


def test_the_set_holds_what_was_true_at_each_instant(project):
    """As-of and windowed features stand beside the caller's columns, in the caller's order."""
    manifest = project.make()
    rows = pq.read_table(project.folder / "set" / manifest.parts[0].file)
    assert rows.column_names == ["origin", "event_timestamp", "late", "temp_f", "flights_6h"]
    assert rows["temp_f"].to_pylist() == [40.0, 41.5, None, None]
    assert rows["flights_6h"].to_pylist() == [2, 0, 1, None]
    assert [(column.name, column.nulls) for column in manifest.columns][3:] == [("temp_f", 2), ("flights_6h", 1)]


def test_a_set_larger_than_memory_is_the_same(project, monkeypatch):
    """Joined, split, written and digested in pieces: the manifest is that of the set built at once, and verifies."""
    split = Split(cutoff_us=T0 + 2 * HOUR)
    whole = project.make(split=split)
    monkeypatch.setattr(mapped, "SHARE", 1 << 60)
    monkeypatch.setattr(dataset_build, "BATCH_ROWS", 1)
    pieces = project.make(name="pieces", split=split)
    assert (pieces.parts, pieces.columns, pieces.entity_rows) == (whole.parts, whole.columns, whole.entity_rows)
    assert project.check().equal
    assert project.check("pieces").equal


def test_an_untouched_set_verifies(project):
    """Built again from the same inputs it is equal, and the manifest reads back."""
    manifest = project.make(split=Split(cutoff_us=T0 + 2 * HOUR))
    assert read_manifest(project.folder / "set") == manifest
    assert project.check().equal
    assert [found.name for found in manifests(project.folder)] == ["set"]


def test_appended_events_do_not_disturb_a_set(project):
    """Offsets beyond the pinned ranges are not read, though their events lie inside the windows."""
    project.make()
    log(project.data, 3, [0.6, 0.8])
    assert project.check().equal


def changed_file(project):
    table = pa.table({"origin": ["EWR"], "event_timestamp": at(0), "temp_f": [9.0]})
    pq.write_table(table, project.data / "weather" / "one.parquet")
    return "one.parquet changed"


def new_file(project):
    table = pq.read_table(project.data / "weather" / "one.parquet")
    pq.write_table(table, project.data / "weather" / "two.parquet")
    return "two.parquet is new"


def rewritten_log(project):
    for path in (project.data / "event_log").rglob("*.parquet"):
        path.unlink()
    log(project.data, 0, [0.5, 0.6, 3])
    return "pinned offsets"


def damaged_log(project):
    path = min((project.data / "event_log").rglob("*.parquet"))
    damage(path)
    return f"{path.name} does not match its check"


def damage(path):
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)


def other_entity_rows(project):
    pq.write_table(ROWS.slice(1), project.folder / "set" / "entity_rows.parquet")
    return "entity rows"


def harmed_set(project):
    pq.write_table(pa.table({"x": [1]}), project.folder / "set" / "all.parquet")
    return "all.parquet changed"


@pytest.mark.parametrize("harm", [changed_file, new_file, rewritten_log, damaged_log, other_entity_rows, harmed_set])
def test_what_changed_is_named(project, harm):
    """Each planted change of an input, or of the set itself, is caught and named."""
    project.make()
    said = harm(project)
    verdict = project.check()
    assert not verdict.equal
    assert said in " ".join(verdict.changed)


def test_no_set_is_built_of_a_damaged_log(project):
    """Any file of the log that is not as it was written is named, before anything is joined."""
    log(project.data, 3, [0.8, 0.9])
    [path] = (project.data / "event_log").rglob("t-0-3-*.parquet")
    damage(path)
    with pytest.raises(SourceError, match=rf"{path.name} does not match its check.*restore it from a backup"):
        project.make()
    assert not (project.folder / "set").exists()


def test_a_set_verifies_though_a_later_file_is_damaged(project):
    """Events behind the pinned offsets are not read, sound or not."""
    project.make()
    log(project.data, 3, [0.8, 0.9])
    [path] = (project.data / "event_log").rglob("t-0-3-*.parquet")
    damage(path)
    assert project.check().equal


def test_a_changed_definition_is_named(project):
    """A ttl changed since makes another set; a description does not."""
    project.make()
    for fields, equal in (({"description": "new words"}, True), ({"ttl_us": 1}, False)):
        plan = msgspec.structs.replace(
            PLAN, views={**PLAN.views, "weather": msgspec.structs.replace(WEATHER, **fields)}
        )
        assert project.check(plan=plan).equal is equal


def test_a_set_never_changes(project):
    """A name is used once; an unknown name lists what exists."""
    project.make()
    with pytest.raises(UsageError, match="choose another name"):
        project.make()
    with pytest.raises(UnknownName, match="what exists: set"):
        project.check("zzz")


def test_a_request_is_refused_before_work(project):
    """An unknown feature and a missing timestamp leave no folder behind."""
    with pytest.raises(UsageError, match="no column 'event_timestamp'"):
        project.make(rows=ROWS.drop_columns("event_timestamp"))
    with pytest.raises(UnknownName, match="did you mean 'weather'"):
        project.make(features=("wether:temp_f",))
    with pytest.raises(UnknownName, match="no feature service 'x'"):
        project.make(features=("service:x",))
    assert not project.folder.exists()


SPLITS = [
    Split(cutoff_us=T0 + 50 * HOUR),
    Split(entity_fraction=0.5, seed=3),
    Split(cutoff_us=T0 + 50 * HOUR, entity_fraction=0.5),
]


@pytest.mark.parametrize("split", SPLITS)
def test_splits_do_not_leak_and_stay(split):
    """No row is in two parts, train shares no late row and no entity with test, appended rows move none."""
    rows = pa.table(
        {"origin": [f"A{i % 40}" for i in range(400)], "event_timestamp": at(*(i % 97 for i in range(400)))}
    )
    before = split_rows(rows.slice(0, 300), split, keys=["origin"], timestamp="event_timestamp")
    masks = split_rows(rows, split, keys=["origin"], timestamp="event_timestamp")
    parts = {name: rows.filter(mask) for name, mask in masks.items()}
    assert all(mask.slice(0, 300).equals(before[name]) for name, mask in masks.items())
    assert all(part.num_rows for part in parts.values())
    if split.entity_fraction:
        assert not set(parts["train"]["origin"].to_pylist()) & set(parts["test"]["origin"].to_pylist())
    if split.cutoff_us:
        cutoff = dt.datetime.fromtimestamp(split.cutoff_us / 1e6, dt.UTC)
        assert (
            max(parts["train"]["event_timestamp"].to_pylist())
            < cutoff
            <= min(parts["test"]["event_timestamp"].to_pylist())
        )


def test_the_commands_build_verify_list_and_show(project, capsys, monkeypatch):
    """From the command line: a set is built and verified; a changed input is named with exit code 1."""
    repo = project.data.parent / "feature_repo"
    (repo / "feature_store.yaml").write_text("project: flights\nregistry: ../data/registry.db\n")
    write_plan_file(project.data / "plan.json", PLAN)
    pq.write_table(ROWS, project.data / "rows.parquet")
    monkeypatch.chdir(repo)
    rows = ["--entity-rows", str(project.data / "rows.parquet")]
    features = [word for ref in REFS for word in ("--feature", ref)]
    assert main(["dataset", "build", "set", *rows, *features, "--split-time", "2023-11-14T23:00:00Z"]) == 0
    assert main(["dataset", "verify", "set"]) == 0
    assert main(["dataset", "list"]) == 0
    assert main(["dataset", "show", "set"]) == 0
    assert "pinned" not in capsys.readouterr().out
    rewritten_log(project)
    assert main(["dataset", "verify", "set"]) == 1
    assert "pinned offsets" in capsys.readouterr().out
    assert main(["dataset", "build", "other", *rows]) == 2
    assert "either --service or one --feature" in capsys.readouterr().err


RANGE = "expect_column_values_to_be_between"


def promised(source, *rules, version="1.0.0", **columns):
    """A plan with a contract about a source, view or service."""
    made = tuple(Column(name=name, logical_type=kind) for name, kind in columns.items())
    contract = Contract(name="c", version=version, source=source, columns=made, rules=rules)
    service = Service(name="both", projections=PLAN.projections(list(REFS)))
    return msgspec.structs.replace(PLAN, contracts={"c": contract}, services={"both": service})


def held_to(rule_id, type_, mode="observe", training=None, **arguments):
    modes = {} if training is None else {"training": training}
    return Rule(id=rule_id, expectation=type_, arguments=arguments, mode=mode, modes=modes)


def told(manifest):
    return {rule.rule_id: rule for verdict in manifest.contracts for rule in verdict.rules}


def test_verdicts_of_a_sources_contract_stand_in_the_manifest(project):
    """Values that are there are judged, with their counts; what the source does not promise of matches is not."""
    plan = promised(
        "weather",
        held_to("cool", RANGE, column="temp_f", max_value=41),
        held_to("there", "expect_column_values_to_not_be_null", "block", column="temp_f"),
        held_to("once", "expect_column_values_to_be_unique", "block", column="temp_f"),
        held_to("dated", "expect_column_values_to_not_be_null", "block", column="event_timestamp"),
        held_to("mean", "expect_column_mean_to_be_between", column="temp_f", min_value=0, max_value=100),
        temp_f="number",
        event_timestamp="timestamp",
    )
    manifest = project.make(plan=plan)
    rules = told(read_manifest(project.folder / "set"))
    assert list(rules) == ["cool", "mean"]
    assert (rules["cool"].outcome, rules["cool"].evaluated, rules["cool"].unexpected) == ("failed", 2, 1)
    assert rules["mean"].observed == 40.75
    assert manifest.contracts[0].rows == 4
    assert project.check(plan=plan).equal


def test_a_rule_that_blocks_stops_the_build(project):
    """Nothing is written; the error names rules and counts; the violation is recorded."""
    plan = promised(
        "weather", held_to("cool", RANGE, "observe", "block", column="temp_f", max_value=41), temp_f="number"
    )
    with pytest.raises(ContractBroken, match=r"'set' was not built: contract 'c' 1.0.0, 4 rows: cool: 1 of 2 rows"):
        project.make(plan=plan)
    assert manifests(project.folder) == []
    told = ViolationStore(project.data / "violations").find()[0]
    assert told.boundary == "training"
    assert "view weather" in told.affected
    assert told.event_window is not None


def test_a_rule_that_quarantines_takes_the_row_out_and_keeps_it(project):
    """In = accepted + quarantined; what is left is split and digested; verify takes the same rows out again."""
    plan = promised("weather", held_to("cool", RANGE, "quarantine", column="temp_f", max_value=41), temp_f="number")
    manifest = project.make(plan=plan)
    assert (manifest.quarantined, sum(part.rows for part in manifest.parts)) == (1, 3)
    (row,) = read_quarantine(project.data / "quarantine", "weather").to_pylist()
    assert (row["offset"], row["origin"], row["rule_ids"]) == (1, "training set set", ["cool"])
    assert project.check(plan=plan).equal


def test_what_is_left_of_a_set_that_is_larger_than_memory_is_not_held():
    """A row is taken out of 4 MB; at most a quarter of the memory allowed is ever held, and the rest is all there."""
    plan = promised(
        "weather", held_to("cool", RANGE, "quarantine", column="temp_f", max_value=499_998), temp_f="number"
    )
    temperatures = pa.array(range(500_000), pa.float64())
    joined = pa.table({"origin": pa.array(["EWR"] * 500_000), "temp_f": temperatures})
    features = ("weather:temp_f",)

    def judged(limits):
        return judge_set(
            plan, features, plan.projections(list(features)), joined,
            full_feature_names=False, fallback=None, limits=limits,
        ).accepted  # fmt: skip

    before = pa.total_allocated_bytes()
    accepted = judged(Limits(memory="1MB"))
    assert pa.total_allocated_bytes() - before < 1 << 20
    assert accepted["temp_f"].to_pylist() == list(range(499_999))
    assert judged(Limits(memory="1GB")).equals(accepted)


def test_a_services_contract_is_about_the_set_itself(project):
    """Its labels, keys, missing values, repetition and size; a column that is gone is a broken check."""
    plan = promised(
        "service:both",
        held_to("labelled", "expect_column_values_to_be_in_set", "block", column="late", value_set=[0, 1]),
        held_to("warm", "expect_column_values_to_not_be_null", "warn", column="temp_f", mostly=0.9),
        held_to("many", "expect_table_row_count_to_be_between", "warn", min_value=100),
        held_to("gone", "expect_column_values_to_not_be_null", "warn", column="humid"),
        late="integer",
        temp_f="number",
        humid="number",
    )
    outcomes = {name: rule.outcome for name, rule in told(project.make(plan=plan, features=("service:both",))).items()}
    assert outcomes == {"labelled": "passed", "warm": "failed", "many": "failed", "gone": "broken"}
    assert project.make(plan=plan, name="by_name").contracts == ()


def test_a_views_contract_is_about_its_features(project):
    """It follows the view into a set, under the names that the features have there."""
    rule = held_to("warm", "expect_column_values_to_not_be_null", "warn", column="temp_f")
    plan = promised("view:weather", rule, temp_f="number")
    assert told(project.make(plan=plan, full_feature_names=True))["warm"].unexpected == 2


def test_verify_compares_verdicts(project):
    """A contract that says something else of the same rows is named, with both versions and counts."""

    def plan(highest, version):
        rule = held_to("cool", RANGE, column="temp_f", max_value=highest)
        return promised("weather", rule, version=version, temp_f="number")

    project.make(plan=plan(41, "1.0.0"))
    found = project.check(plan=plan(50, "1.1.0"))
    assert found.changed == (
        "contract c (1.0.0 then, 1.1.0 now), rule cool: failed, 1 of 2 rows then, passed, 0 of 2 rows now",
    )
    assert "rule cool: failed, 1 of 2 rows then, not judged now" in project.check(plan=PLAN).changed[0]


def test_an_empty_set_is_no_data(project):
    """No rows is neither good nor bad."""
    plan = promised("weather", held_to("cool", RANGE, "block", column="temp_f", max_value=41), temp_f="number")
    assert project.make(plan=plan, rows=ROWS.slice(0, 0)).contracts[0].outcome == "no data"


def test_a_drift_rule_stops_a_training_set(project):
    """Rows that no longer look like the reference are not trained on where the rule blocks; else they are told."""
    reference = project.data / "reference.parquet"
    late = pa.array([0] * 300 + [1] * 300, pa.int64())
    pq.write_table(pa.table({"late": late, "temp_f": pa.array([float(n % 7) for n in range(600)])}), reference)
    rows = pa.concat_tables([ROWS] * 50)
    given = {"columns": ["late"], "reference": str(reference)}
    blocks = held_to("as_trained", "expect_table_to_not_drift", "observe", "block", **given)
    observes = held_to("as_trained", "expect_table_to_not_drift", "observe", **given)
    same = pa.array([n % 2 for n in range(rows.num_rows)], pa.int64())
    place = rows.column_names.index("late")
    moved = rows.set_column(place, "late", pa.array([7] * rows.num_rows, pa.int64()))
    with pytest.raises(ContractBroken, match="as_trained"):
        project.make(plan=promised("service:both", blocks, late="integer"), features=("service:both",), rows=moved)
    for name, rule, content, outcome in (("a", blocks, same, "passed"), ("b", observes, moved["late"], "failed")):
        plan = promised("service:both", rule, late="integer")
        project.make(plan=plan, name=name, features=("service:both",), rows=rows.set_column(place, "late", content))
        assert told(read_manifest(project.folder / name))["as_trained"].outcome == outcome
