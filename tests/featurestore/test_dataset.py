"""A training set pins its inputs, is rebuilt from them, and names what changed."""

import datetime as dt

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.cli.main import main
from featurestore.dataset.build import Request, build, verify
from featurestore.dataset.manifest import Split, manifests, read_manifest
from featurestore.dataset.rebuild import retriever
from featurestore.dataset.split import split_rows
from featurestore.errors import UnknownName, UsageError
from featurestore.offline.event_log import write_events
from featurestore.plan import Aggregation, Field, JoinKey, Plan, Source, Topic, View
from featurestore.plan_store import write_plan_file

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


def other_entity_rows(project):
    pq.write_table(ROWS.slice(1), project.folder / "set" / "entity_rows.parquet")
    return "entity rows"


def harmed_set(project):
    pq.write_table(pa.table({"x": [1]}), project.folder / "set" / "all.parquet")
    return "all.parquet changed"


@pytest.mark.parametrize("harm", [changed_file, new_file, rewritten_log, other_entity_rows, harmed_set])
def test_what_changed_is_named(project, harm):
    """Each planted change of an input, or of the set itself, is caught and named."""
    project.make()
    said = harm(project)
    verdict = project.check()
    assert not verdict.equal
    assert said in " ".join(verdict.changed)


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
