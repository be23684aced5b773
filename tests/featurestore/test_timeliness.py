"""Are a stream that stopped, one that sends old events, one that sends none and a file that is gone told apart?"""

import re
import time
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from typer.testing import CliRunner

from featurestore.api.worker_metrics import VARIABLE, exposed_registry
from featurestore.cli.commands import app as store_app  # noqa: F401 - registers `contract timeliness`
from featurestore.offline.connection import Limits
from featurestore.offline.event_log import write_events
from featurestore.offline.sources import scan_parquet
from featurestore.offline.timely import facts_of_source
from featurestore.plan import Field, JoinKey, Plan, Source, Topic, View
from featurestore.plan_store import write_plan_file
from featurestore.promises_kept import OUTCOMES, Looked, PromiseMetrics, keep, kept
from validation.commands import app
from validation.contract import Column, Contract
from validation.promise import Promise
from validation.sla import facts_of, judge_sla
from validation.violations import ViolationStore

US = pa.timestamp("us", "UTC")
HOUR_US = 3_600_000_000
PROMISES = (
    Promise(id="new", kind="freshness", column="at", limit_us=HOUR_US),
    Promise(id="coming", kind="freshness", column="_arrival", limit_us=HOUR_US),
    Promise(id="prompt", kind="latency", column="at", limit_us=HOUR_US, mostly=0.5, per_us=10 * HOUR_US),
    Promise(id="enough", kind="volume", least=2, per_us=HOUR_US),
    Promise(id="all", kind="volume", most=1_000),
)


def contract(source: str, promises: tuple[Promise, ...] = PROMISES) -> Contract:
    columns = (Column(name="at", logical_type="timestamp"),)
    return Contract(name=source, version="1", source=source, columns=columns, rules=(), sla=promises, owner="o")


INSTANTS = st.lists(
    st.tuples(st.none() | st.integers(0, 20 * HOUR_US), st.none() | st.integers(0, 20 * HOUR_US)), max_size=12
)


@settings(max_examples=40, deadline=None)
@given(INSTANTS, st.booleans(), st.sampled_from(["us", "ns", "ms"]))
def test_files_tell_what_their_rows_tell(
    tmp_path_factory: pytest.TempPathFactory, instants: list, arrival: bool, unit: str
) -> None:
    """One statement over Parquet gives the facts that the table gives, to the microsecond."""
    columns = {"at": pa.array([at for at, _ in instants], US).cast(pa.timestamp(unit, "UTC"), safe=False)}
    if arrival:
        columns["_arrival"] = pa.array([came for _, came in instants], US)
    table = pa.table(columns)
    path = tmp_path_factory.mktemp("t") / "s.parquet"
    pq.write_table(table, path)
    scan = scan_parquet(path, repo=path.parent, name="s")
    now_us = 20 * HOUR_US
    told = facts_of_source(scan, contract("s"), now_us=now_us, limits=Limits())
    expected = facts_of(table, contract("s"), now_us=now_us)
    if not arrival:
        landed = told.newest_us.pop("_arrival")
        assert abs(landed - time.time_ns() // 1000) < HOUR_US
    assert told == expected


def plan() -> Plan:
    """A stream and a batch source, both with these promises."""
    features = (Field(name="x", dtype="DOUBLE"),)
    keys = (JoinKey(entity="k", name="k", dtype="INT64"),)
    topic = Topic(name="taps", bootstrap_servers="", message_format="json")
    made = {
        "taps": Source(name="taps", path="../data/event_log/taps", timestamp_field="at", topic=topic),
        "file": Source(name="file", path="file.parquet", timestamp_field="at"),
    }
    views = {
        name: View(name=name, version=1, kind="latest", join_keys=keys, features=features, ttl_us=0, source=source)
        for name, source in made.items()
    }
    batch = tuple(each for each in PROMISES if each.id in ("new", "all"))
    contracts = {"taps": contract("taps"), "file": contract("file", batch)}
    return Plan(project="p", version=1, digest="", created_us=0, views=views, contracts=contracts)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "feature_repo"
    folder.mkdir()
    (folder / "feature_store.yaml").write_text("project: p\nregistry: ../data/registry.db\n")
    write_plan_file(tmp_path / "data" / "plan.json", plan())
    return folder


def events(repo: Path, ages_h: list[float], arrived_h: list[float]) -> None:
    """Events of the stream's log, so many hours old."""
    now_us = time.time_ns() // 1000
    count = len(ages_h)
    table = pa.table(
        {
            "k": pa.array([1] * count, pa.int64()),
            "x": [1.0] * count,
            "at": pa.array([now_us - round(age * HOUR_US) for age in ages_h], US),
            "_offset": pa.array(range(count), pa.int64()),
            "_arrival": pa.array([now_us - round(age * HOUR_US) for age in arrived_h], US),
        }
    )
    folder = repo.parent / "data" / "event_log" / "taps"
    write_events(folder, table, topic_id="t", partition=0, first=0, last=count - 1)


def invoke(repo: Path, *words: str):
    return CliRunner().invoke(app, ["contract", "timeliness", "--repo", str(repo), *words])


def outcomes(output: str) -> dict[str, str]:
    return {line.split(": ")[1]: line.split(": ")[2].split(";")[0] for line in output.splitlines()}


def test_nothing_came_at_all(repo: Path) -> None:
    """No data, exit code 4: neither bad data nor a check that broke."""
    told = invoke(repo, "taps")
    assert told.exit_code == 4, told.output
    assert outcomes(told.output) == dict.fromkeys(("new", "coming", "prompt", "enough"), "no data") | {"all": "passed"}


def test_old_events_that_arrive_now_are_stale_by_event_time_alone(repo: Path) -> None:
    """Exit code 1: something comes, and it is last week's."""
    events(repo, [100, 100.5], [0.1, 0.2])
    told = invoke(repo, "taps")
    assert told.exit_code == 1
    assert outcomes(told.output) == {
        "new": "failed", "coming": "passed", "prompt": "failed", "enough": "passed", "all": "passed",
    }  # fmt: skip


def test_kept_promises_are_exit_code_0(repo: Path) -> None:
    """New, coming, prompt and enough."""
    events(repo, [0.1, 0.3, 5], [0.1, 0.2, 0.3])
    told = invoke(repo, "taps")
    assert (told.exit_code, set(outcomes(told.output).values())) == (0, {"passed"})
    assert not ViolationStore(repo.parent / "data" / "violations").find()


def test_a_file_that_is_gone_is_a_check_that_broke(repo: Path) -> None:
    """Exit code 3, before anything else that is wrong: an unmade check is not excused by a made one."""
    events(repo, [100], [100])
    told = invoke(repo)
    assert told.exit_code == 3
    assert "file: new: broken; " in told.output


def test_each_outcome_is_a_violation_and_a_metric_of_its_own(repo: Path) -> None:
    """In the store and in Prometheus's text: of each promise exactly one outcome is 1."""
    events(repo, [100, 100], [5, 5])
    file = repo.parent / "promises.prom"
    for _ in range(2):
        invoke(repo, "--metrics", str(file))
    found = {(one.source, one.rule_id): one for one in ViolationStore(repo.parent / "data" / "violations").find()}
    assert {key: one.outcome for key, one in found.items()} == {
        ("taps", "new"): "failed",
        ("taps", "coming"): "failed",
        ("taps", "prompt"): "failed",
        ("taps", "enough"): "no data",
        ("file", "new"): "broken",
        ("file", "all"): "broken",
    }
    assert {one.count for one in found.values()} == {2}
    assert found["taps", "new"].affected == ("view taps",)
    lines = [line for line in file.read_text().splitlines() if line.startswith("featurestore_promise_outcome{")]
    assert len(lines) == 7 * len(OUTCOMES)
    assert sum(line.endswith(" 1.0") for line in lines) == 7
    assert 'featurestore_promise_outcome{outcome="no data",promise="enough",source="taps"} 1.0' in lines
    ages = [line for line in file.read_text().splitlines() if line.startswith("featurestore_source_age_seconds{")]
    by_column = {re.findall('column="(.*?)"', line)[0]: float(line.split()[-1]) for line in ages}
    assert by_column["at"] > by_column["_arrival"] > 5 * 3600


def test_every_process_shows_what_was_found_last(repo: Path, tmp_path: Path) -> None:
    """API, with one worker or several, as the stream's workers: outcomes apart, and when they were looked at."""
    invoke(repo)
    shown = PromiseMetrics(tmp_path / "data" / "promises")
    own = CollectorRegistry()
    own.register(shown)
    told = generate_latest(own).decode()
    assert 'featurestore_promise_outcome{outcome="no data",promise="new",source="taps"} 1.0' in told
    assert 'featurestore_promise_outcome{outcome="broken",promise="new",source="file"} 1.0' in told
    assert 'featurestore_promise_outcome{outcome="failed",promise="new",source="file"} 0.0' in told
    (looked,) = re.findall(r'featurestore_promises_looked_at_seconds\{source="taps"\} (\S+)', told)
    assert abs(float(looked) - time.time()) < 60
    (tmp_path / "workers").mkdir()
    several = exposed_registry({VARIABLE: str(tmp_path / "workers")}, CollectorRegistry(), shown)
    assert generate_latest(several).decode() == told
    events(repo, [0.1], [0.1])
    invoke(repo, "taps")
    told = generate_latest(own).decode()
    assert 'featurestore_promise_outcome{outcome="no data",promise="new",source="taps"} 0.0' in told
    assert 'featurestore_promise_outcome{outcome="broken",promise="new",source="file"} 1.0' in told


def test_what_promises_nothing_any_more_is_forgotten(tmp_path: Path) -> None:
    """And a torn file is as good as none."""
    looked = [Looked(source=name, outcomes={"p": "passed"}, newest_us={}, looked_us=1) for name in ("a/b", "c")]
    keep(tmp_path, looked, promising=["a/b", "c"])
    assert kept(tmp_path) == looked
    keep(tmp_path, [], promising=["a/b"])
    assert kept(tmp_path) == looked[:1]
    next(tmp_path.glob("*.json")).write_bytes(b"{")
    assert kept(tmp_path) == []


def test_an_unknown_source_is_refused(repo: Path) -> None:
    """With what exists."""
    told = invoke(repo, "tap")
    assert "did you mean 'taps'" in str(told.exception)


def test_one_clock_for_both_would_be_caught() -> None:
    """The planted fault: judged by arrival, old events that come now would be new."""
    now_us = 100 * HOUR_US
    table = pa.table({"at": pa.array([0], US), "_arrival": pa.array([now_us], US)})
    wrong = tuple(msgspec.structs.replace(each, column="_arrival") for each in PROMISES[:2])
    for promises, told in ((PROMISES[:2], ["failed", "passed"]), (wrong, ["passed", "passed"])):
        kept = contract("s", promises)
        facts = facts_of(table, kept, now_us=now_us)
        assert [rule.outcome for rule in judge_sla(kept, facts, now_us=now_us)] == told
