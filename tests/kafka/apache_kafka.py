"""How is a real Apache Kafka had on this machine: one node, loopback, Java 17, its jars resolved once by Maven?"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).parent
JARS = HERE / "jars"
_STAMP = JARS / ".resolved"
_START_TIMEOUT_S = 60


class CannotRun(RuntimeError):
    """No real broker can be had here; the message says why."""


def resolve() -> None:
    """Fetch the broker's jars unless they are there. Raises CannotRun without Java 17, Maven, or what Maven needs."""
    for tool in ("java", "mvn"):
        if shutil.which(tool) is None:
            raise CannotRun(f"{tool} is not installed")
    stamp = hashlib.sha256((HERE / "pom.xml").read_bytes()).hexdigest()
    JARS.mkdir(exist_ok=True)
    with (JARS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _STAMP.exists() and _STAMP.read_text() == stamp:
            return
        version = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
        major = version.partition('"')[2].partition(".")[0]
        if not major.isdigit() or int(major) < 17:
            raise CannotRun(f"Java 17 or newer is needed, found {version.splitlines()[:1]}")
        command = ["mvn", "-q", "-B", "-f", str(HERE / "pom.xml"), "dependency:copy-dependencies"]
        done = subprocess.run([*command, f"-DoutputDirectory={JARS}"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotRun(f"Maven could not resolve the broker: {(done.stdout + done.stderr).strip()[:500]}")
        _STAMP.write_text(stamp)


class ApacheKafka:
    """One broker with its data in `folder`; it can be killed and started again on the same port."""

    def __init__(self, folder: Path, **settings: str) -> None:
        """`settings` are the broker's, with `_` for `.`, beside those of `server.properties`."""
        self.folder = folder
        self.port, controller_port = _free_port(), _free_port()
        self.bootstrap_servers = f"127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        text = (HERE / "server.properties").read_text()
        text = text.replace("CONTROLLER_PORT", str(controller_port)).replace("PORT", str(self.port))
        self._properties = folder / "server.properties"
        more = "".join(f"{key.replace('_', '.')}={value}\n" for key, value in settings.items())
        self._properties.write_text(text.replace("DATA", str(folder / "data")) + more)
        cluster = self._java("kafka.tools.StorageTool", "random-uuid").strip()
        self._java("kafka.tools.StorageTool", "format", "--standalone", "-t", cluster, "-c", str(self._properties))

    def start(self) -> None:
        """Start, and wait until the port answers. Raises CannotRun with the end of the broker's log."""
        with (self.folder / "kafka.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["java", "-Xmx512m", "-cp", f"{JARS}/*", "kafka.Kafka", str(self._properties)],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.2):
                return
            time.sleep(0.05)
        tail = (self.folder / "kafka.log").read_text(errors="replace")[-2000:]
        self.stop()
        raise CannotRun(f"Apache Kafka did not start: {tail}")

    def stop(self) -> None:
        """Ask it to stop, then kill it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it without warning (-9)."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            os.kill(self._process.pid, how)
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    def _java(self, *arguments: str) -> str:
        done = subprocess.run(
            ["java", "-Xmx128m", "-cp", f"{JARS}/*", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
        )
        if done.returncode:
            raise CannotRun(f"{' '.join(arguments[:2])} failed: {(done.stdout + done.stderr)[-1000:]}")
        return done.stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
