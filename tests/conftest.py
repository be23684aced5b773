"""Fixtures that several rooms share: an embedded online store and a broker, one per test process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import apache_kafka, broker, chosen_broker, each_broker, embedded_broker, pytest_report_header

from featurestore.online.connection import StoreClient, connect
from featurestore.online.server import EmbeddedServer

__all__ = ["apache_kafka", "broker", "chosen_broker", "each_broker", "embedded_broker", "pytest_report_header"]


class _Address:
    def __init__(self, url: str) -> None:
        self.url = url


@pytest.fixture(scope="session")
def embedded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A live embedded server with a data folder of its own, shared by the tests of one process."""
    with EmbeddedServer(tmp_path_factory.mktemp("store")) as server:
        yield server


@pytest.fixture
def online_url(embedded_server: EmbeddedServer) -> str:
    """The embedded server as a `unix://` URL, for settings and feature_store.yaml."""
    return f"unix://{embedded_server.address}"


@pytest.fixture
def store(online_url: str, tmp_path: Path) -> Iterator[StoreClient]:
    """A client of the embedded server, which is empty when the test starts."""
    client = connect(_Address(online_url), tmp_path)
    client.flushall()
    yield client
    client.close()
