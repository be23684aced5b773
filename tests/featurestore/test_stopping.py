"""SIGTERM and Ctrl-C end every command within five seconds, in one line, with exit code 143 and 130."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.cli.main import main
from featurestore.cli.stopping import VARIABLE

PATIENCE_S = 5.0
CODES = {"SIGINT": 130, "SIGTERM": 143}

COMMAND = """
    import sys, threading, time
    import duckdb
    import typer
    from featurestore.cli import main as cli
    from validation.interrupts import interruptible

    session = interruptible(duckdb.connect())

    def build_app():
        app = typer.Typer()

        @app.command()
        def work():
            print("up", flush=True)
            {work}

        @app.command()
        def other(): ...

        return app

    {before}
    cli.build_app = build_app
    sys.argv = ["featurestore", "work"]
    sys.exit(cli.main())
"""
QUERY = "session.sql('SELECT count(DISTINCT hash(range)) FROM range(1000000000)').fetchall()"
CROSS_JOIN = (
    "session.sql('SELECT count(*) FROM range(3000000) a, range(3000000) b WHERE a.range % 7 = b.range % 5').fetchall()"
)


def start(*command: str, **environ: str) -> "subprocess.Popen[str]":
    inherited = {name: value for name, value in os.environ.items() if name != VARIABLE}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=inherited | environ)


def _indented(work: str) -> str:
    return textwrap.indent(textwrap.dedent(work), " " * 8).strip()


def ended(process: "subprocess.Popen[str]", name: str) -> tuple[float, str]:
    """How long it took after the signal, and what it wrote to standard error."""
    sent = time.monotonic()
    process.send_signal(signal.Signals[name])
    _, said = process.communicate(timeout=30)
    return time.monotonic() - sent, said


def working(work: str, before: str = "", **environ: str) -> "subprocess.Popen[str]":
    """A command of the real outermost frame that does this, once it has said that it is up."""
    code = textwrap.dedent(COMMAND).format(work=_indented(work), before=before)
    process = start(sys.executable, "-c", code, **environ)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    time.sleep(0.3)
    return process


@pytest.mark.parametrize("name", sorted(CODES))
@pytest.mark.parametrize(
    "work",
    [
        pytest.param("time.sleep(60)", id="Python"),
        pytest.param(f"{QUERY}", id="a query"),
        pytest.param("sys.stdin.read(); threading.Event().wait()", id="a lock"),
    ],
)
def test_a_signal_breaks_a_command_off_in_one_line(work: str, name: str) -> None:
    """Whatever library it meets, and whatever error that makes of it."""
    took_s, said = ended(process := working(work), name)
    assert (process.returncode, said) == (CODES[name], f"stopped by {name}\n")
    assert took_s < PATIENCE_S / 2


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(
            f"""
            from concurrent.futures import ThreadPoolExecutor
            with ThreadPoolExecutor(1) as pool:
                pool.submit(lambda: {QUERY}).result()
            """,
            id="a thread that works on",
        ),
        pytest.param(CROSS_JOIN, id="a query that does not listen"),
        pytest.param("threading.Thread(target=time.sleep, args=(60,)).start()", id="a thread that outlives it"),
        pytest.param(
            """
            while True:
                try:
                    time.sleep(60)
                except BaseException:
                    pass
            """,
            id="code that swallows it",
        ),
        pytest.param("import numpy; numpy.ones((7000, 7000)) @ numpy.ones((7000, 7000)); time.sleep(60)", id="C"),
        pytest.param(
            """
            from streaming.stop_signals import stop_on_signals
            with stop_on_signals():
                time.sleep(60)
            """,
            id="a batch that does not end",
        ),
    ],
)
def test_a_command_that_cannot_be_broken_off_ends_with_the_grace(work: str) -> None:
    """Threads, calls into C and handlers of a command's own hold it up for the grace at most."""
    took_s, said = ended(process := working(work, **{VARIABLE: "1"}), "SIGTERM")
    assert process.returncode == 143, said
    assert said.startswith("stopped by SIGTERM")
    assert said.count("\n") <= 2, said
    assert took_s < PATIENCE_S


def test_the_grace_is_below_five_seconds_where_nothing_is_said() -> None:
    """With the default, a command that does not listen ends in time too, and so do the processes that it started."""
    work = """
        import multiprocessing
        child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
        child.start()
        print(child.pid, flush=True)
        child.join()
        """
    process = working(
        work,
        before="from featurestore.cli.stopping import Stopping; Stopping._on_signal = lambda *_: None",
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    took_s, said = ended(process, "SIGTERM")
    assert (process.returncode, said) == (143, "stopped by SIGTERM, after 4 s\n")
    assert took_s < PATIENCE_S
    assert Path(f"/proc/{child}/cmdline").read_bytes() == b"" if Path(f"/proc/{child}").exists() else True


def test_a_signal_that_meets_the_end_of_an_objects_life_is_sent_again() -> None:
    """Python swallows what is raised in `__del__`, and would say so in a traceback."""
    last = "type('Last', (), {'__del__': lambda _: (os.kill(os.getpid(), 15), time.sleep(0.1))})(); time.sleep(60)"
    process = working("import os; " + last)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said) == (143, "stopped by SIGTERM\n")


def test_handlers_are_given_back_where_the_process_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    """A command that was called as a function changes nothing for its caller."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(["--help"]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert "Usage" in capsys.readouterr().out


def featurestore(*words: str, **environ: str) -> "subprocess.Popen[str]":
    return start(sys.executable, "-m", "featurestore.cli.main", *words, **environ)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    (tmp_path / "feature_store.yaml").write_text("project: p\nprovider: local\nregistry: data/registry.db\n")
    return tmp_path


def test_a_command_that_waits_for_a_broker_that_is_away_is_broken_off(tmp_path: Path) -> None:
    """A broker that takes connections and says nothing; Kafka's clients are left in order, or with the grace."""
    pq.write_table(pa.table({"ts": pa.array([0], pa.timestamp("us", "UTC"))}), tmp_path / "events.parquet")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        words = ("--topic", "t", "--timestamp", "ts", "--bootstrap-servers", f"127.0.0.1:{silent.getsockname()[1]}")
        process = featurestore("stream", "produce", str(tmp_path / "events.parquet"), *words)
        asking, _ = silent.accept()
        with asking:
            took_s, said = ended(process, "SIGTERM")
    assert (process.returncode, said.splitlines()[-1].split(",")[0]) == (143, "stopped by SIGTERM"), said
    assert "Traceback" not in said
    assert took_s < PATIENCE_S


def test_a_judgement_of_a_large_file_is_broken_off(tmp_path: Path) -> None:
    """In the middle of its queries."""
    rows = 12_000_000
    table = pa.table({"text": pa.array(map(str, range(rows)), pa.string())})
    pq.write_table(table, tmp_path / "large.parquet")
    (tmp_path / "c.odcs.yaml").write_text(
        "apiVersion: v3.1.0\nkind: DataContract\nid: c\nname: c\nversion: 1.0.0\nstatus: active\n"
        "schema:\n- name: c\n  properties:\n  - {name: text, logicalType: string, quality: "
        "[{type: library, metric: duplicateValues, mustBe: 0}]}\n"
    )
    process = featurestore(
        "contract", "test", str(tmp_path / "large.parquet"), "--contract", str(tmp_path / "c.odcs.yaml")
    )
    time.sleep(1.5)
    took_s, said = ended(process, "SIGINT")
    assert process.returncode == 130, said
    assert said.splitlines()[-1].startswith("stopped by SIGINT")
    assert "Traceback" not in said
    assert took_s < PATIENCE_S
