"""Which broker do the stream tests run on?

FEATURESTORE_TEST_BROKER=kafka insists on the real one and fails where it cannot be had; =embedded takes ours; =auto,
the default, takes the real one where Java and Maven are, else ours. KAFKA_BOOTSTRAP_SERVERS names a running one.
"""

import os
from collections.abc import Iterator
from functools import cache

import pytest
from apache_kafka import ApacheKafka, CannotRun, resolve
from kafka import KafkaAdminClient

from streaming.embedded.server import EmbeddedBroker

KAFKA, EMBEDDED, NAMED = "kafka", "embedded", "named"


class Broker:
    """A running broker: its kind and how to reach it."""

    def __init__(self, kind: str, bootstrap_servers: str) -> None:
        self.kind = kind
        self.bootstrap_servers = bootstrap_servers
        self._topics = 0

    def topic(self, partitions: int = 1, **configs: str) -> str:
        """Create a topic of its own for a test; settings with `_` for `.`. It keeps events of long ago, for ever."""
        self._topics += 1
        name = f"t{os.getpid()}-{self._topics}"
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap_servers)
        try:
            settings = {"retention.ms": "-1"} | {key.replace("_", "."): value for key, value in configs.items()}
            wanted = {"num_partitions": partitions, "replication_factor": 1, "configs": settings}
            admin.create_topics({name: wanted}, wait_for_metadata=True)
        finally:
            admin.close()
        return name


@cache
def choice() -> tuple[str, str]:
    """The kind of broker for this run, and why."""
    if os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        return NAMED, f"the one at {os.environ['KAFKA_BOOTSTRAP_SERVERS']}"
    wish = os.environ.get("FEATURESTORE_TEST_BROKER", "auto")
    if wish not in ("auto", KAFKA, EMBEDDED):
        raise pytest.UsageError(f"FEATURESTORE_TEST_BROKER={wish}: kafka, embedded or auto")
    if wish == EMBEDDED:
        return EMBEDDED, "the embedded one, as asked"
    try:
        resolve()
    except CannotRun as reason:
        if wish == KAFKA:
            raise pytest.UsageError(f"FEATURESTORE_TEST_BROKER=kafka, but {reason}") from reason
        return EMBEDDED, f"the embedded one ({reason})"
    return KAFKA, "Apache Kafka 4.1.1"


def pytest_report_header() -> str:
    """Say which broker it is, at the top of every run."""
    return f"broker of the stream tests: {choice()[1]}"


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[Broker]:
    """Our own broker, in memory."""
    with EmbeddedBroker() as running:
        yield Broker(EMBEDDED, str(running.address))


@pytest.fixture(scope="session")
def apache_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The real one."""
    running = ApacheKafka(tmp_path_factory.mktemp("kafka"))
    running.start()
    yield Broker(KAFKA, running.bootstrap_servers)
    running.stop()


@pytest.fixture(scope="session")
def chosen_broker(request: pytest.FixtureRequest) -> Broker:
    """The broker that this run is about."""
    kind = choice()[0]
    if kind == NAMED:
        return Broker(NAMED, os.environ["KAFKA_BOOTSTRAP_SERVERS"])
    found = request.getfixturevalue("apache_kafka" if kind == KAFKA else "embedded_broker")
    assert isinstance(found, Broker)
    return found


@pytest.fixture(scope="session")
def broker(chosen_broker: Broker) -> Broker:
    """The broker that this run is about; a module that tests brokers may put another one under this name."""
    return chosen_broker


@pytest.fixture(scope="session", params=["chosen", EMBEDDED])
def each_broker(request: pytest.FixtureRequest) -> Broker:
    """The chosen broker, and the embedded one where that is another."""
    if request.param == "chosen":
        found = request.getfixturevalue("chosen_broker")
    elif choice()[0] == EMBEDDED:
        pytest.skip("the chosen broker is the embedded one")
    else:
        found = request.getfixturevalue("embedded_broker")
    assert isinstance(found, Broker)
    return found
