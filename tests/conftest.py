"""Fixtures that several rooms share: an embedded online store, a broker and an object store, one per test process."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import apache_kafka, broker, chosen_broker, each_broker, embedded_broker, pytest_report_header
from object_stores import BUCKET, object_store

from featurestore.online.connection import StoreClient, connect
from featurestore.online.server import EmbeddedServer
from validation.place import ObjectPath, Place, place_of

__all__ = ["apache_kafka", "broker", "chosen_broker", "each_broker", "embedded_broker", "pytest_report_header"]


# Commands end in order in these tests, however busy the machine is; test_stopping measures the grace itself.
os.environ.setdefault("FEATURESTORE_STOP_GRACE_S", "60")


# Tests publish plans and keys directly, for processes that they start: all of them share one key.
os.environ.setdefault("FEATURESTORE_SIGNING_KEY", "a signing key of the tests and of no other use")


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


_FOLDERS = itertools.count()


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectPath]:
    """A bucket of a live object store, to which the environment leads, shared by the tests of one process."""
    with object_store(tmp_path_factory.mktemp("objects")) as environ, pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        found = place_of(f"s3://{BUCKET}")
        assert isinstance(found, ObjectPath)
        (found / "first").put(b"")  # this store makes the bucket with its first object
        yield found


@pytest.fixture
def in_bucket(bucket: ObjectPath) -> ObjectPath:
    """An empty folder of the object store."""
    return bucket / f"tests-{next(_FOLDERS)}"


@pytest.fixture(params=["disk", "object store"])
def place(request: pytest.FixtureRequest) -> Place:
    """An empty folder, on a disk and in an object store."""
    found: Place = request.getfixturevalue("tmp_path" if request.param == "disk" else "in_bucket")
    return found
