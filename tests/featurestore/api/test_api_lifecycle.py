"""The API as time passes: plans change, the store goes away and comes back, the process starts and ends."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import msgspec
import pytest

from featurestore.api.serving import PlanWatch
from featurestore.config import OnlineSettings
from featurestore.online.connection import connect
from featurestore.online.server import EmbeddedServer
from featurestore.plan import Projection, Service
from featurestore.plan_store import PlanStore

GOOD = {"features": ["weather:temp_f"], "entities": {"origin": ["EWR"]}}


def until(condition, what: str, patience_s: float = 20.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


def outcomes_while_switching(landed, project) -> set[tuple[str, int]]:
    """Every distinct answer to one request, asked over and over while a new plan comes into force."""
    plan = project.make_plan()
    brief = Service(name="brief", projections=(Projection(view="weather", features=("note",)),))
    newer = msgspec.structs.replace(plan, version=2, digest="digest-2", services={"brief": brief})
    outcomes: list[tuple[str, int]] = []
    ended = threading.Event()
    with project.serve(project.make_app(landed)) as api:

        def load() -> None:
            while not ended.is_set():
                response = api.post("/get-online-features", json=GOOD)
                outcomes.append((response.text, response.status_code))

        thread = threading.Thread(target=load)
        thread.start()
        try:
            body = {"feature_service": "brief", "entities": {"origin": ["EWR"]}}
            assert api.post("/get-online-features", json=body).status_code == 404
            PlanStore(landed, project.name).publish(newer)
            until(lambda: api.post("/get-online-features", json=body).status_code == 200, "version 2")
            assert "featurestore_plan_version 2.0" in api.get("/metrics").text
            time.sleep(0.1)
        finally:
            ended.set()
            thread.join()
    assert len(outcomes) > 20
    return set(outcomes)


def test_a_new_plan_is_taken_over_without_a_failed_request(landed, project) -> None:
    """While requests run, a published plan comes into force; none of them fails, and no restart is needed."""
    ((_, status),) = outcomes_while_switching(landed, project)
    assert status == 200


def test_a_gap_between_two_plans_would_be_seen(landed, project, monkeypatch) -> None:
    """A switch that lets go of the old plan before it has the new one is caught by the same requests."""
    look = PlanWatch.look

    def careless(self: PlanWatch) -> None:
        self._serving = None
        time.sleep(0.02)
        look(self)

    monkeypatch.setattr(PlanWatch, "look", careless)
    assert 503 in {status for _, status in outcomes_while_switching(landed, project)}


def test_a_lost_or_torn_plan_does_not_stop_the_service(landed, project) -> None:
    """A store that lost its plan, or holds one that cannot be read, leaves the plan in force and is counted."""
    plans = PlanStore(landed, project.name)
    with project.serve(project.make_app(landed)) as api:
        landed.set(b"fs:plan:{7:flights}", b"9\n{torn")
        until(lambda: "plan_watch_errors_total 0.0" not in api.get("/metrics").text, "a counted failure")
        assert api.post("/get-online-features", json=GOOD).status_code == 200
        landed.delete(b"fs:plan:{7:flights}")
        time.sleep(0.2)
        assert api.get("/ready").status_code == 200
        plans.publish(project.make_plan(3))
        until(lambda: api.get("/version").json()["plan_version"] == 3, "version 3")


def test_without_a_plan_the_service_waits(store, project) -> None:
    """Started before the first apply, the service says 503 with Retry-After and is ready once a plan is there."""
    with project.serve(project.make_app(store)) as api:
        for response in (api.post("/get-online-features", json=GOOD), api.get("/ready"), api.get("/version")):
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert "featurestore apply" in response.json()["message"]
        assert api.get("/health").status_code == 200
        PlanStore(store, project.name).publish(project.make_plan())
        until(lambda: api.get("/ready").status_code == 200, "readiness")


def test_a_store_that_dies_and_returns(tmp_path: Path, project) -> None:
    """With Redis killed every answer is 503, never a wrong value; with Redis back the service recovers by itself."""
    with EmbeddedServer(tmp_path) as server:
        settings = OnlineSettings(url=f"unix://{server.address}")
        client = connect(settings, tmp_path)
        project.land(client)
        PlanStore(client, project.name).publish(project.make_plan())
        # The append-only file is synced every second; what is asserted below must survive the kill.
        client.execute_command("WAITAOF", 1, 0, 10_000)
        outcomes: list[tuple[int, str | None, str | None]] = []
        ended = threading.Event()
        with project.serve(project.make_app(client)) as api:

            def load() -> None:
                while not ended.is_set():
                    response = api.post("/get-online-features", json=GOOD)
                    value = response.json()["results"][1]["values"][0] if response.status_code == 200 else None
                    outcomes.append((response.status_code, value, response.headers.get("retry-after")))

            thread = threading.Thread(target=load)
            thread.start()
            try:
                until(lambda: outcomes, "the first answer")
                os.kill(server.pid, signal.SIGKILL)
                until(lambda: outcomes[-1][0] == 503, "503")
                assert api.get("/ready").status_code == 503
                assert api.get("/health").status_code == 200
                server.start()
                until(lambda: outcomes[-1][0] == 200, "recovery")
            finally:
                ended.set()
                thread.join()
        client.close()
    assert set(outcomes) == {(200, 39.02, None), (503, None, "1")}


def test_a_store_that_hangs_does_not_stop_health_checks(tmp_path: Path, project) -> None:
    """While a hung Redis lets requests run into their time-out, the process still answers that it is alive."""
    with EmbeddedServer(tmp_path) as server:
        client = connect(OnlineSettings(url=f"unix://{server.address}"), tmp_path, timeout_s=0.5)
        project.land(client)
        PlanStore(client, project.name).publish(project.make_plan())
        with project.serve(project.make_app(client)) as api:
            pid = server.pid
            os.kill(pid, signal.SIGSTOP)
            try:
                assert api.post("/get-online-features", json=GOOD).status_code == 503
                waiting = threading.Thread(target=lambda: api.post("/get-online-features", json=GOOD))
                waiting.start()
                time.sleep(0.1)
                started = time.monotonic()
                assert api.get("/health").status_code == 200
                assert time.monotonic() - started < 0.3
                waiting.join()
            finally:
                os.kill(pid, signal.SIGCONT)
            until(lambda: api.post("/get-online-features", json=GOOD).status_code == 200, "recovery")
        client.close()


@pytest.fixture
def repo(tmp_path: Path, project) -> Path:
    """A feature repo on an embedded store of its own, with a plan in force; the data folder is short-lived."""
    (tmp_path / "feature_store.yaml").write_text(
        "project: flights\nregistry: data/registry.db\nprovider: local\nonline_store:\n  connection: embedded\n"
    )
    return tmp_path


SERVE = """
import sys, typer
from featurestore.cli.serve import serve
from validation.errors import PlatformError
app = typer.Typer(pretty_exceptions_enable=False)
app.command()(serve)
try:
    app()
except PlatformError as error:
    sys.stderr.write(str(error))
    sys.exit(error.exit_code)
"""


def start(repo: Path, *options: str, **environ: str) -> subprocess.Popen:
    command = [sys.executable, "-c", SERVE, "--repo", str(repo), "--port", "0", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environ)


def address_of(process: subprocess.Popen) -> str:
    for line in process.stderr:
        if found := re.search(r"http://[^ ]+:\d+", line):
            return found[0]
    raise AssertionError(f"ended with {process.wait()} and never listened")


def test_serve_starts_answers_and_drains(repo: Path, project) -> None:
    """The command serves from the embedded store with a moved clock, and ends by SIGTERM with exit code 0."""
    with EmbeddedServer(repo / "data") as server:
        client = connect(OnlineSettings(url=f"unix://{server.address}"), repo)
        project.land(client)
        PlanStore(client, project.name).publish(project.make_plan())
        offset_s = project.NOW_US / 1e6 - time.time()
        process = start(repo, "--clock-offset-s", str(offset_s))
        try:
            url = address_of(process)
            until(lambda: status(f"{url}/ready") == 200, "readiness")
            body = json.dumps(GOOD).encode()
            with urllib.request.urlopen(f"{url}/get-online-features", body, timeout=10) as response:
                answer = json.load(response)
            assert answer["results"][1]["values"] == [39.02]
            assert answer["metadata"]["instant"].startswith("2024-06-01T12:00")
            resident_mb = int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1]) / 1024
            assert resident_mb < 150
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        # uvicorn ends by the signal it was sent once every request is answered.
        assert process.returncode in (0, -signal.SIGTERM)
        client.close()


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_serve_refuses_the_network_without_keys(repo: Path) -> None:
    """A bind beyond loopback without keys is one line of usage error, before anything listens."""
    process = start(repo, "--host", "0.0.0.0", FEATURESTORE_API_KEYS="")
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert told.startswith("--host 0.0.0.0")
    assert "API key" in told


def test_what_serves_never_imports_feast() -> None:
    """Neither Feast nor Great Expectations nor pandas is in memory where features are served."""
    script = (
        "import sys, featurestore.api.process as p, featurestore.cli.serve, featurestore.client\n"
        "p.keep_pandas_out()\n"
        "print([m for m in ('feast', 'great_expectations', 'pandas', 'duckdb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
