"""The monitor tells a topic and a signed webhook of alerts, and one that is away later."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from monitored import deployment, keep, plan, rides
from topics import read_topic

from featurestore.cli.main import main
from featurestore.clock import system_clock
from featurestore.monitor.alerts import AlertBook
from featurestore.monitor.workspace import workspace
from streaming.monitor_command import SECRET
from validation.webhook import verify

pytestmark = [pytest.mark.kafka, pytest.mark.xdist_group("kafka")]
KEY = "0123456789abcdef"
NOW = system_clock()()


class Hook:
    """A webhook that keeps what was signed with the secret."""

    def __init__(self):
        self.bodies = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if verify(KEY.encode(), self.headers["Featurestore-Signature"], body, now_s=time.time()):
                    hook.bodies.append(json.loads(body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def settings(tmp_path, broker, online_url, monkeypatch):
    """A deployment in which one value was served that nothing explains."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", broker.bootstrap_servers)
    monkeypatch.setenv("FEATURESTORE_REDIS_URL", online_url)
    monkeypatch.setenv(SECRET, KEY)
    made = plan(rides())
    found = deployment(tmp_path, made, NOW)
    keep(found, made, NOW, 77.0, NOW - 60_000_000)
    return found


def test_a_topic_and_a_webhook_are_told_once(settings, broker):
    """Each alert with its key, severity and signature; a second round has nothing to tell."""
    topic = f"alerts-{time.time_ns()}"
    with Hook() as hook:
        port = hook.server.server_port
        words = ["monitor", "--once", "--repo", str(settings.repo), "--topic", topic]
        for _ in range(2):
            assert main([*words, "--webhook", f"http://127.0.0.1:{port}/"]) == 1
    [record] = read_topic(broker, topic)
    assert record.key == b"skew:eta:rides:speed"
    assert ("featurestore-severity", b"critical") in record.headers
    assert [body["finding"]["key"] for body in hook.bodies] == ["skew:eta:rides:speed"]
    book = AlertBook(workspace(settings).alerts, lambda: NOW)
    assert len(book.sinks()) == 2


def test_a_short_secret_is_refused(settings, monkeypatch, capsys):
    """Before anything is looked at: nobody may forge alerts."""
    monkeypatch.setenv(SECRET, "short")
    assert main(["monitor", "--once", "--repo", str(settings.repo), "--webhook", "http://127.0.0.1:1/"]) == 2
    assert SECRET in capsys.readouterr().err
