"""Whatever happens to the demo, its processes end with it."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from featurestore.demo.processes import ChildFailed, Processes

GRANDPARENT = (
    "import subprocess, sys, time;"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
    "print('started', child.pid, flush=True); time.sleep(60)"
)
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def alive(pid: int) -> bool:
    """Whether a process runs; one that only awaits its parent's notice does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def test_a_child_announces_itself_and_ends_with_the_block(tmp_path: Path) -> None:
    """A line in its log tells that it is ready; the end of the block ends it and what it started."""
    with Processes(tmp_path, os.environ) as processes:
        child = processes.start("parent", python(GRANDPARENT))
        grandchild = int(processes.await_line(child, r"^started (\d+)$")[1])
        assert alive(child.pid)
        assert alive(grandchild)
    assert gone(child.pid)
    assert gone(grandchild)


def test_what_children_use_ends_after_them(tmp_path: Path) -> None:
    """Whatever is to be stopped at last finds every child gone; the newest goes first."""
    seen: list[tuple[str, bool]] = []
    with Processes(tmp_path, os.environ) as processes:
        child = processes.start("sleeper", python("import time; time.sleep(60)"))
        processes.at_last(lambda: seen.append(("first", alive(child.pid))))
        processes.at_last(lambda: seen.append(("second", alive(child.pid))))
    assert seen == [("second", False), ("first", False)]


def test_an_error_in_the_block_ends_the_children(tmp_path: Path) -> None:
    """The children go whatever ends the block."""
    with pytest.raises(ZeroDivisionError), Processes(tmp_path, os.environ) as processes:  # noqa: PT012 - the block is it
        child = processes.start("sleeper", python("import time; time.sleep(60)"))
        _ = 1 / 0
    assert gone(child.pid)


def test_a_child_that_will_not_end_is_killed(tmp_path: Path) -> None:
    """SIGTERM is a request; patience ends."""
    with Processes(tmp_path, os.environ, patience_s=0.2) as processes:
        child = processes.start("stubborn", python(STUBBORN))
        processes.await_line(child, "^up$")
    assert gone(child.pid)


def test_a_child_that_fails_is_quoted(tmp_path: Path) -> None:
    """The error names the child, its exit code and its last lines."""
    with Processes(tmp_path, os.environ) as processes:
        child = processes.start("broker", python("import sys; print('port taken'); sys.exit(3)"))
        with pytest.raises(ChildFailed, match=r"broker ended with exit code 3: port taken; see .*broker\.log"):
            processes.await_line(child, "listening")
        with pytest.raises(ChildFailed, match="broker ended with exit code 3"):
            processes.check()
        again = processes.start("producer", python("import sys; sys.exit('no topic')"))
        with pytest.raises(ChildFailed, match="producer failed with exit code 1: no topic"):
            processes.finish(again)


def test_a_child_that_is_never_ready_is_told(tmp_path: Path) -> None:
    """Waiting for a line has an end."""
    with Processes(tmp_path, os.environ) as processes:
        child = processes.start("silent", python("import time; time.sleep(60)"))
        with pytest.raises(ChildFailed, match=r"silent was not ready within 0\.1 s: it wrote nothing"):
            processes.await_line(child, "ready", timeout_s=0.1)


def test_a_child_sees_the_variables_it_is_given(tmp_path: Path) -> None:
    """The environment of the demo, and what the call adds; ticks come while it works."""
    ticks: list[int] = []
    with Processes(tmp_path, {**os.environ, "OF_ALL": "1"}) as processes:
        code = "import os, time; time.sleep(0.2); print(os.environ['OF_ALL'], os.environ['OF_ONE'])"
        child = processes.start("reader", python(code), OF_ONE="2")
        processes.finish(child, tick=lambda: ticks.append(1))
    assert child.said() == "1 2\n"
    assert ticks


DEMO = """
    import os, sys, time
    from pathlib import Path
    from featurestore.demo.processes import Interrupted, Processes
    try:
        with Processes(Path(sys.argv[1]), os.environ) as processes:
            for name in ("one", "two"):
                child = processes.start(name, [sys.executable, "-c", "import time; time.sleep(60)"])
                print(child.pid, flush=True)
            print("ready", flush=True)
            {wait}
    except Interrupted as asked:
        print("asked to end by", asked, flush=True)
        sys.exit(130)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_end_the_demo_and_its_children(tmp_path: Path, name: str) -> None:
    """Ctrl-C, a polite kill and a closed terminal alike."""
    code = textwrap.dedent(DEMO).format(wait="processes.wait_for_interrupt()")
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        lines = [demo.stdout.readline().strip() for _ in range(3)]
        pids = [int(line) for line in lines[:2]]
        assert all(alive(pid) for pid in pids)
        demo.send_signal(signal.Signals[name])
        assert demo.stdout.read() == f"asked to end by {name}\n"
        assert demo.wait(10) == 130
    assert all(gone(pid) for pid in pids)


def test_a_signal_that_meets_the_end_of_an_objects_life_is_not_lost(tmp_path: Path) -> None:
    """Python swallows what is raised there; the demo ends all the same, without a word about it."""
    finalizer = "type('Last', (), {'__del__': lambda _: (os.kill(os.getpid(), 2), time.sleep(0.1))})()"
    code = textwrap.dedent(DEMO).format(wait=finalizer + "; processes.wait_for_interrupt()")
    command = [sys.executable, "-c", code, str(tmp_path)]
    demo = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert demo.returncode == 130
    assert demo.stdout.endswith("ready\nasked to end by SIGINT\n")
    assert not demo.stderr


def test_a_demo_that_minds_nothing_would_be_seen(tmp_path: Path) -> None:
    """The planted fault: without the supervision a child outlives its parent, and this test's eye sees it."""
    code = (
        "import subprocess, sys;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True,"
        " stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL);"
        "print(child.pid)"
    )
    told = subprocess.run(python(code), capture_output=True, text=True, check=True)
    orphan = int(told.stdout)
    try:
        assert not gone(orphan, within_s=0.2)
    finally:
        os.kill(orphan, signal.SIGKILL)
    assert gone(orphan)
