"""Does `contract publish` tell a topic and a webhook what there is, and say what it could not?"""

import hashlib
import hmac
import json
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest
from topics import read_topic
from typer.testing import CliRunner

from featurestore.errors import ConfigurationError
from streaming.commands import app as stream_app  # noqa: F401 - registers `contract publish`
from streaming.outbox import Outbox
from streaming.publish_command import SECRET
from streaming.source.kafka import KafkaSettings
from streaming.source.publisher import Publisher
from streaming.violation_topic import KEY, TopicChannel
from validation.commands import app
from validation.publishing import Publication
from validation.testing import SMALL, small_report
from validation.violations import Folded, ViolationStore

pytestmark = [pytest.mark.kafka, pytest.mark.xdist_group("kafka")]


@pytest.fixture
def repo(tmp_path, broker, monkeypatch):
    """A repo with three violations in its store."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", broker.bootstrap_servers)
    monkeypatch.setenv(SECRET, "0123456789abcdef")
    folder = tmp_path / "feature_repo"
    folder.mkdir()
    (folder / "feature_store.yaml").write_text("project: shop\nregistry: ../data/registry.db\n")
    store = ViolationStore(tmp_path / "data" / "violations")
    for number in range(3):
        report = small_report(SMALL)[1]
        store.record(msgspec.structs.replace(report, report_id=f"r{number}", origin=f"f{number}", producer="fares"))
    return folder


def invoke(repo, *words):
    folder = repo.parent / "data" / "violations"
    return CliRunner().invoke(app, ["contract", "publish", "--repo", str(repo), "--folder", str(folder), *words])


class Hook:
    """A webhook that keeps what is signed as documented, computed here by hand."""

    def __init__(self):
        self.bodies = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                at, _, found = self.headers["Featurestore-Signature"].partition(",v1=")
                told = at.removeprefix("t=").encode() + b"." + body
                fit = hmac.compare_digest(hmac.new(b"0123456789abcdef", told, hashlib.sha256).hexdigest(), found)
                hook.bodies.append(json.loads(body)) if fit else None
                self.send_response(200 if fit else 401)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hook():
    running = Hook()
    yield running
    running.server.shutdown()
    running.server.server_close()


def test_once_tells_both_what_is_new(repo, broker, hook):
    """Each violation as a message whose key is its id, and as a signed body; the second time there is nothing new."""
    topic = f"violations-{time.time_ns()}"
    told = invoke(repo, "--topic", topic, "--webhook", hook.url, "--once")
    assert told.exit_code == 0, told.output
    assert f"topic-{topic}: 3 sent, 0 refused, 0 lost, 0 pending" in told.output
    records = read_topic(broker, topic)
    found = [msgspec.json.decode(record.value, type=Folded) for record in records]
    assert [each.origin for each in found] == ["f0", "f1", "f2"]
    assert [record.key.decode() for record in records] == [each.id for each in found]
    assert [dict(record.headers)[KEY].decode() for record in records] == [f"{each.id}-1" for each in found]
    assert [body["origin"] for body in hook.bodies] == ["f0", "f1", "f2"]
    again = invoke(repo, "--topic", topic, "--webhook", hook.url, "--once")
    assert f"topic-{topic}: 0 sent" in again.output
    assert len(read_topic(broker, topic)) == 3


def test_one_channel_that_is_away_holds_no_other_up(repo, broker, monkeypatch):
    """The topic is told; what the webhook lacks is named, and the exit code is 1."""
    monkeypatch.setattr("validation.webhook.Patience.first_wait_s", 0.0, raising=False)
    topic = f"violations-{time.time_ns()}"
    told = invoke(repo, "--topic", topic, "--webhook", "http://127.0.0.1:9/", "--once")
    assert told.exit_code == 1
    assert f"topic-{topic}: 3 sent" in told.output
    assert "did not take" in told.output


def test_a_topic_that_was_away_is_told_later(tmp_path, broker, repo):
    """A publisher that failed is made anew; nothing is left out."""
    topic = f"violations-{time.time_ns()}"
    store = ViolationStore(repo.parent / "data" / "violations")
    dialled = []

    def dial(name, like):
        dialled.append(name)
        if len(dialled) == 1:
            return Publisher(KafkaSettings("127.0.0.1:9", request_timeout_ms=500), name)
        return Publisher(KafkaSettings(broker.bootstrap_servers), name, like=like)

    publication = Publication(store, TopicChannel(topic, Outbox(dial), lambda: time.time_ns() // 1000))
    rounds = iter([False, False, True])
    publication.follow(lambda: next(rounds), lambda _: None)
    publication.channel.close()
    assert (publication.counters["failed"], publication.counters["sent"]) == (1, 3)
    assert len(read_topic(broker, topic)) == 3


@pytest.mark.parametrize(
    ("words", "secret", "told"),
    [
        ([], "0123456789abcdef", "nobody to tell"),
        (["--webhook", "http://x/"], "", "is not set"),
        (["--webhook", "http://x/"], "short", "shorter than 16"),
        (["--webhook", "x"], "0123456789abcdef", "is no address"),
    ],
)
def test_what_cannot_work_is_said_at_once(repo, monkeypatch, words, secret, told):
    """Before anything is sent."""
    monkeypatch.setenv(SECRET, secret)
    found = invoke(repo, *words, "--once")
    assert isinstance(found.exception, ConfigurationError)
    assert told in str(found.exception)


def test_it_follows_until_sigterm_and_is_measured(repo, broker, hook):
    """A process that tells what comes meanwhile, counts it, and leaves with exit code 0."""
    folder = repo.parent / "data" / "violations"
    command = [sys.executable, "-m", "featurestore.cli.main", "contract", "publish", "--repo", str(repo)]
    command += ["--folder", str(folder), "--webhook", hook.url, "--every-s", "0.1", "--metrics-port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = process.stderr.readline().split()[-1]
        _until(lambda: len(hook.bodies) == 3)
        ViolationStore(folder).record(msgspec.structs.replace(small_report(SMALL)[1], report_id="r9", origin="f9"))
        _until(lambda: len(hook.bodies) == 4)
        _until(lambda: 'outcome="sent"} 4.0' in urllib.request.urlopen(address).read().decode())
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "4 sent, 0 refused, 0 lost, 0 pending" in output


def _until(done):
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)
