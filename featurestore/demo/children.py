"""Which commands does the demo start, and what do they say when they are ready or done?"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from featurestore.demo.processes import Child, Processes

_FEATURESTORE = (sys.executable, "-m", "featurestore.cli.main")


@dataclass(frozen=True)
class Streamed:
    """What the stream worker says at its end: events read, taken, and set aside."""

    events: int
    accepted: int
    set_aside: int


def start_broker(processes: Processes) -> str:
    """Starts the embedded broker, in memory; returns its address once it listens."""
    child = processes.start("broker", [*_FEATURESTORE, "stream", "broker"])
    return processes.await_line(child, r"^(\S+:\d+)$")[1]


def start_producer(processes: Processes, file: Path, *, topic: str, key: str, partitions: int, broker: str) -> Child:
    """Starts writing a file of events to its topic, at their event times; it ends when all is acknowledged."""
    options = ["--topic", topic, "--key", key, "--timestamp", "event_timestamp", "--partitions", str(partitions)]
    command = [*_FEATURESTORE, "stream", "produce", str(file), *options]
    return processes.start(f"producer {topic}", command, KAFKA_BOOTSTRAP_SERVERS=broker)


def start_worker(processes: Processes, repo: Path, *, broker: str, until_caught_up: bool) -> Child:
    """Starts the stream worker, to stay or until it has committed all that the topics hold."""
    command = [*_FEATURESTORE, "stream", "run", "--repo", str(repo)]
    if until_caught_up:
        command.append("--until-caught-up")
    return processes.start("stream worker", command, KAFKA_BOOTSTRAP_SERVERS=broker)


def finish_worker(processes: Processes, worker: Child, tick: Callable[[], None]) -> Streamed:
    """Waits until the worker has caught up and left; raises ChildFailed where it fails or its last line is unknown."""
    processes.finish(worker, tick=tick)
    found = re.search(r"^(\d+) events: (\d+) accepted, (\d+) set aside", worker.said(), re.MULTILINE)
    if found is None:
        raise worker.failure("did not say what it did")
    return Streamed(events=int(found[1]), accepted=int(found[2]), set_aside=int(found[3]))


def start_api(processes: Processes, repo: Path) -> str:
    """Starts the feature API on a free port of this machine; returns its URL once it listens."""
    child = processes.start("api", [*_FEATURESTORE, "serve", "--repo", str(repo), "--port", "0", "--open"])
    return processes.await_line(child, r"running on (http://\S+)")[1]
