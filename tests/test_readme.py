"""The README's commands run, and what it links to exists."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent
COMMANDS = [
    line for block in re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]
T0 = pa.array([1_700_000_000_000_000], pa.timestamp("us", "UTC"))
ALLOWED = {
    "featurestore doctor": {0, 1},  # nobody answers at the repo's Kafka address here
    "featurestore contract lint": {0, 1},  # 1: it has something to say
    "featurestore stream status": {0, 1},  # 1: no worker has run yet
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A copy of the feature repo with a row of data in every source, applied."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "feature_repo", folder / "feature_repo", ignore=shutil.ignore_patterns("__pycache__"))
    numbers = ["temp_f", "dewp_f", "humid_pct", "wind_dir_deg", "wind_speed_mph", "wind_gust_mph", "precip_in"]
    weather = {name: [1.0] for name in [*numbers, "pressure_mb", "visib_mi"]}
    planes = {"year": [1999], "engines": [2], "seats": [100], "manufacturer": ["A"], "model": ["B"], "engine": ["C"]}
    routes = {"distance_mi": [1400.0], "course_deg": [240.0]}
    for name, key, columns in (
        ("weather", {"origin": ["EWR"]}, weather),
        ("planes", {"tailnum": ["N1"]}, planes),
        ("routes", {"route": ["EWR-IAH"]}, routes),
    ):
        path = folder / "data" / "flights" / name
        path.mkdir(parents=True)
        pq.write_table(pa.table({**key, "event_timestamp": T0, "created": T0, **columns}), path / "rows.parquet")
    return folder


def shell(line, folder):
    words = line.split()
    return subprocess.run(
        [BIN / words[0], *words[1:]], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def test_there_are_commands():
    """The two commands of a fresh machine come first."""
    assert COMMANDS[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make ")])
def test_make_targets_exist(line):
    """Every make command of the README is a target; what they run is tested elsewhere."""
    subprocess.run([*line.split(), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.slow
def test_the_commands_of_a_day_run_in_order(workspace):
    """Each command of the README runs in a repo, one after the other, and ends as it should."""
    for line in COMMANDS:
        if line.startswith("featurestore ") and not line.startswith("featurestore serve"):
            ended = shell(line, workspace)
            assert ended.returncode in ALLOWED.get(line, {0}), f"{line}\n{ended.stdout}{ended.stderr}"
            assert "Traceback" not in ended.stderr


def test_serving_runs_and_ends(workspace):
    """`featurestore serve` of the README answers, and leaves on SIGTERM."""
    (line,) = [line for line in COMMANDS if line.startswith("featurestore serve")]
    assert shell("featurestore apply", workspace).returncode == 0
    words = line.replace("6566", "0").split()
    with subprocess.Popen([BIN / words[0], *words[1:]], cwd=workspace, stderr=subprocess.PIPE, text=True) as server:
        try:
            address = next(found[0] for text in server.stderr if (found := re.search(r"http://[\d.:]+", text)))
            deadline = time.monotonic() + 30
            while httpx.get(f"{address}/health").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 128 + signal.SIGTERM, "docs/commands.md says so of every command"


def test_links_lead_somewhere():
    """Every relative link of README and docs is a file."""
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_repository_names_no_machine():
    """No path of a machine, and no address of a package index, in any tracked file."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    pattern = re.compile(r"(^|[^\w./])/(work|root)/|--(extra-)?" + "index-url")
    for name in listed:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ""} and path.is_file():
            assert not pattern.search(path.read_text(errors="replace")), name


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("FEATURESTORE_", "KAFKA_")):
            monkeypatch.delenv(name)
