"""The API as time passes: plans change, the store goes away and comes back, the process starts and ends."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from featurestore.api.key_store import KeyStore
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
            assert api.post("/get-online-features", json=body).status_code != 200
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
    if "--host" not in options and "--keyed" not in options:
        options = (*options, "--open")
    words = [option for option in options if option != "--keyed"]
    command = [sys.executable, "-c", SERVE, "--repo", str(repo), "--port", "0", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environ)


def address_of(process: subprocess.Popen) -> str:
    for line in process.stderr:
        if found := re.search(r"http://[^ ]+:\d+", line):
            return found[0]
    raise AssertionError(f"ended with {process.wait()} and never listened")


@contextlib.contextmanager
def landed_repo(repo: Path, project) -> Iterator[EmbeddedServer]:
    """The repo's embedded store, live, with rows and a plan in force."""
    with EmbeddedServer(repo / "data") as server:
        client = connect(OnlineSettings(url=f"unix://{server.address}"), repo)
        project.land(client)
        PlanStore(client, project.name).publish(project.make_plan())
        client.close()
        yield server


@contextlib.contextmanager
def ended(process: subprocess.Popen) -> Iterator[None]:
    """Whatever happens inside, the process is gone afterwards."""
    try:
        yield
    finally:
        if process.poll() is None:
            # A supervisor that is killed leaves its workers, and they hold the pipe: ask it first.
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=20)
            process.kill()
        process.communicate()


def post(url: str, body: dict) -> dict:
    with urllib.request.urlopen(f"{url}/get-online-features", json.dumps(body).encode(), timeout=10) as response:
        return json.load(response)


def test_serve_starts_and_answers(repo: Path, project) -> None:
    """The command serves from the embedded store with a moved clock, in less than 150 MB."""
    with landed_repo(repo, project):
        process = start(repo, "--clock-offset-s", str(project.NOW_US / 1e6 - time.time()))
        with ended(process):
            url = address_of(process)
            until(lambda: status(f"{url}/ready") == 200, "readiness")
            answer = post(url, GOOD)
            assert answer["results"][1]["values"] == [39.02]
            assert answer["metadata"]["instant"].startswith("2024-06-01T12:00")
            resident_kb = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1]
            assert int(resident_kb) / 1024 < 150


def test_sigterm_lets_open_requests_finish(repo: Path, project) -> None:
    """A request that waits for the store when SIGTERM arrives still gets its answer; then the process ends."""
    with landed_repo(repo, project) as server:
        process = start(repo)
        with ended(process):
            url = address_of(process)
            until(lambda: status(f"{url}/ready") == 200, "readiness")
            pid, answers = server.pid, []
            os.kill(pid, signal.SIGSTOP)
            try:
                waiting = threading.Thread(target=lambda: answers.append(post(url, GOOD)))
                waiting.start()
                time.sleep(0.3)
                process.send_signal(signal.SIGTERM)
                time.sleep(0.3)
            finally:
                os.kill(pid, signal.SIGCONT)
            waiting.join()
            process.communicate(timeout=30)
        assert answers[0]["metadata"]["feature_names"] == ["origin", "temp_f"]
        # uvicorn ends by the signal it was sent once every request is answered.
        assert process.returncode in (0, -signal.SIGTERM)


@pytest.mark.slow
def test_several_workers(repo: Path, project) -> None:
    """Several workers share one address, and none of them outlives the command."""
    with landed_repo(repo, project):
        process = start(repo, "--workers", "2")
        with ended(process):
            url = address_of(process)
            until(lambda: status(f"{url}/ready") == 200, "readiness")
            assert post(url, GOOD)["metadata"]["feature_names"] == ["origin", "temp_f"]
            # Both workers serve the plan: the least version in force is 1.
            until(lambda: "featurestore_plan_version 1.0" in metrics_of(url), "the other worker")
            # Whichever worker answered has told the others within a second.
            until(lambda: len(set(answered(url))) == 1, "one sum from all workers")
            [before, *_] = answered(url)
            for _ in range(20):
                post(url, GOOD)
            until(lambda: answered(url) == [before + 20.0] * 5, "20 more requests, whoever is asked")
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
        assert len(children) >= 2
        until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), "the end of the workers")


def metrics_of(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        return response.read().decode()


def answered(url: str) -> list[float]:
    """How many requests several looks at the metrics say were answered, whichever worker is asked."""
    pattern = re.compile(r'featurestore_request_seconds_count{code="200"} (\S+)')
    return [float(pattern.search(metrics_of(url))[1]) for _ in range(5)]


def test_serve_prints_a_key_where_there_is_none(repo: Path, project) -> None:
    """Without any key a loopback service asks for one that it prints; a key that is stored makes it print none."""
    with landed_repo(repo, project) as server:
        process = start(repo, "--keyed", FEATURESTORE_API_KEYS="")
        with ended(process):
            line = process.stderr.readline()
            key = re.search(r"for this run: (fsk_\S+)", line)[1]
            url = address_of(process)
            until(lambda: status(f"{url}/ready") == 200, "readiness")
            assert status(f"{url}/version") == 401
            request = urllib.request.Request(f"{url}/version", headers={"Authorization": f"Bearer {key}"})
            with urllib.request.urlopen(request, timeout=10) as response:
                assert json.load(response)["project"] == "flights"
        client = connect(OnlineSettings(url=f"unix://{server.address}"), repo)
        stored, _ = KeyStore(client, project.name).create("k", ["reader"], clock=lambda: 1)
        client.close()
        process = start(repo, "--keyed", FEATURESTORE_API_KEYS="")
        with ended(process):
            url = address_of(process)
            until(lambda: status(f"{url}/ready") == 200, "readiness")
            request = urllib.request.Request(f"{url}/version", headers={"X-API-Key": stored})
            with urllib.request.urlopen(request, timeout=10) as response:
                assert response.status == 200


def test_serve_is_open_on_loopback_only(repo: Path) -> None:
    """`--open` beyond loopback is one line of usage error."""
    process = start(repo, "--host", "0.0.0.0", "--open")
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "only a loopback address may be open" in told


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


def test_serve_refuses_the_network_without_keys(repo: Path) -> None:
    """A bind beyond loopback without keys is one line of usage error, before anything listens."""
    process = start(repo, "--host", "0.0.0.0", FEATURESTORE_API_KEYS="")
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert told.startswith("--host 0.0.0.0")
    assert "API key" in told


def test_pandas_views_run_where_pandas_was_kept_out() -> None:
    """The process that keeps pandas out of pyarrow still runs an on-demand view that uses pandas."""
    script = """
import sys
from featurestore.api.process import keep_pandas_out
keep_pandas_out()
from featurestore.plan import Field, Function, OnDemandView
from featurestore.user_code import run_on_demand
source = "def f(df):\\n    df['y'] = df['x'] * 2\\n    return df"
view = OnDemandView(name="v", features=(Field(name="y", dtype="INT64"),), request=(Field(name="x", dtype="INT64"),),
                    inputs=(), mode="pandas", singleton=False, function=Function(name="f", source=source))
print(run_on_demand(view, {"x": [1, None, (1 << 60) + 1]}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "{'y': [2, None, 2305843009213693954]}", done.stderr


def test_what_serves_never_imports_feast() -> None:
    """Neither Feast nor Great Expectations nor pandas is in memory where features are served."""
    script = (
        "import sys, featurestore.api.process as p, featurestore.cli.serve, featurestore.client\n"
        "p.keep_pandas_out()\n"
        "print([m for m in ('feast', 'great_expectations', 'pandas', 'duckdb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
