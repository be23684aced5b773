"""The main job on real data: a part of the year, from raw files to served predictions."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from featurestore.client import FeatureClient
from featurestore.config import OnlineSettings, load_settings
from featurestore.demo.asking import SERVICE, ask, offline
from featurestore.demo.model import asked
from featurestore.demo.statuses import expected_statuses
from featurestore.monitor.parity import Comparison, compare, differing
from featurestore.offline.history import historical_features
from featurestore.online.connection import connect
from featurestore.online.reader import OnlineReader
from featurestore.online.server import EmbeddedServer
from featurestore.plan import Projection, View
from featurestore.plan_store import load_plan_file

REPO = Path(__file__).parents[2] / "feature_repo"
DEMO = (
    sys.executable, "-m", "featurestore.cli.main", "demo", "--repo", str(REPO), "--days", "28", "--data",
)  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("demo")]


def processes_of(folder: Path) -> list[str]:
    """Command lines of all live processes that name the folder or have it in their environment, but for ourselves."""
    found = []
    for proc in Path("/proc").iterdir():
        if not proc.name.isdigit() or int(proc.name) == os.getpid():
            continue
        try:
            words = (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
            ended = (proc / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if str(folder).encode() in words and not ended:
            found.append((proc / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The demo's folder; the environment variable that names it marks all its processes."""
    yield tmp_path
    assert processes_of(tmp_path) == []


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*DEMO, str(folder), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "DEMO_OF_THIS_TEST": str(folder), "COLUMNS": "160"},
    )


def test_what_is_served_is_what_holds_offline(folder: Path) -> None:
    """The year as recorded: every value served over HTTP equals the offline read, and the demo says so with exit 0."""
    with start(folder, "--as-recorded") as demo:
        told, _ = demo.communicate(timeout=240)
    assert demo.returncode == 0, told
    found = re.search(r"([\d,]+) values, 0 differ", told)
    assert found is not None, told
    assert int(found[1].replace(",", "")) > 50_000
    assert "48,215 departures and arrivals" in told
    # The readings end on 30 December: on New Year's Eve none is younger than three hours.
    assert "OUTSIDE_MAX_AGE" in told
    assert "AUC with the store's features" in told
    compared = every_key(folder)
    assert compared["weather"] > 20
    assert compared["tailnum_arrivals"] > 20_000
    assert sum(compared.values()) > 50_000


def every_key(folder: Path) -> dict[str, int]:
    """How many values of every view are online what the as-of read says: all keys and features, ages included."""
    repo = folder / "feature_repo"
    settings = load_settings(repo, {})
    plan = load_plan_file(settings.data_dir / "plan.json")
    events = {view.name: events_of(view, repo) for view in plan.views.values()}
    now_us = max(pc.max(table["at"]).as_py() for table in events.values())
    compared = {}
    with EmbeddedServer(settings.data_dir) as server, connect(
        OnlineSettings(url=f"unix://{server.address}"), settings.data_dir
    ) as client:  # fmt: skip
        reader = OnlineReader(client, plan, lambda: now_us)
        for view in plan.views.values():
            [key] = view.join_keys
            newest = events[view.name].group_by("key").aggregate([("at", "max")])
            projection = Projection(view=view.name, features=tuple(field.name for field in view.features))
            read = reader.read([projection], {key.name: newest["key"].to_pylist()})
            when = pa.array([now_us] * len(newest), pa.int64()).cast(pa.timestamp("us", "UTC"))
            rows = pa.table({key.name: newest["key"], "event_timestamp": when})
            wanted = historical_features(plan, [projection], rows, repo=repo)
            for column in read.columns:
                assert not differing(column.values, wanted[column.feature].combine_chunks()).any(), column.feature
                if view.kind == "latest":
                    assert column.event_us.tolist() == newest["at_max"].to_pylist()
            compared[view.name] = len(newest) * len(read.columns)
    deadline = time.monotonic() + 20
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    return compared


def events_of(view: View, repo: Path) -> pa.Table:
    """Key and time of every row of a view's source."""
    [key] = view.join_keys
    back = {new: old for old, new in view.source.field_mapping.items()}
    at = view.source.timestamp_field
    table = pq.read_table(repo / view.source.path, columns=[back.get(key.name, key.name), at])
    table = table.rename_columns(["key", "at"]).set_column(1, "at", table[at].cast(pa.int64()))
    return table.filter(pc.is_valid(table["key"]))


@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.nightly)])
def test_an_interrupted_demo_leaves_no_process(folder: Path, name: str) -> None:
    """In the middle of streaming, with every server up: all end, and the exit code is that of an interruption."""
    with start(folder) as demo:
        log = folder / "data" / "logs" / "stream-worker.log"
        deadline = time.monotonic() + 120
        while not log.exists() and demo.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(processes_of(folder)) >= 3
        demo.send_signal(signal.Signals[name])
        told, _ = demo.communicate(timeout=60)
    assert demo.returncode == {"SIGINT": 130, "SIGTERM": 143}[name], told
    assert f"asked to end ({name}); everything has been stopped" in told
    assert "Traceback" not in told


def compared(folder: Path, url: str) -> Comparison:
    """The demo's own comparison, made again from outside: New Year's Eve's flights, served and read offline."""
    settings = load_settings(folder / "feature_repo", {})
    plan = load_plan_file(settings.plan_path)
    schedule = pq.read_table(folder / "data" / "flights" / "schedule.parquet")
    flights = schedule.slice(schedule.num_rows - 300)
    rows = asked(flights, flights["scheduled"].cast(pa.int64()))
    with FeatureClient(url) as client:
        served = ask(client, rows)
    truth = offline(plan, rows, served.instants_us, settings.repo)
    expected = expected_statuses(plan, SERVICE, rows, truth, served.instants_us, settings.repo)
    return compare(served.values, served.statuses, truth, expected)


def test_a_demo_that_stays_up_answers_and_would_see_a_lost_event(folder: Path) -> None:
    """With --keep-running the API answers after the closing table, until a signal ends everything. The planted fault:
    one file less in the event log, and the comparison finds what was served and does not hold offline."""
    with start(folder, "--keep-running", "--as-recorded") as demo:
        assert demo.stdout is not None
        url = None
        for line in demo.stdout:
            if found := re.search(r"(http://[\d.:]+)", line):
                url = found[1]
            if "Ctrl-C ends it" in line:
                break
        assert url is not None
        assert compared(folder, url).differences == ()
        min((folder / "data" / "event_log" / "departures" / "day=2013-12-31").glob("*.parquet")).unlink()
        assert len(compared(folder, url).differences) > 100
        demo.send_signal(signal.SIGTERM)
        demo.communicate(timeout=60)
    assert demo.returncode == 143
