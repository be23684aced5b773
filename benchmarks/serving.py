"""How many requests a second does the feature API answer, next to stock Feast and to a floor?

    python -m benchmarks.serving [--seconds 3] [--rounds 3] [--connections 4] [--entities 1 10 100] [--no-stock]

50 DOUBLE features in 5 views of 1,000 entities, one worker each, the same Valkey, the same load (raw HTTP/1.1 over kept
connections, one process). Stock is `feast serve` over Feast's own Redis online store. The floor takes the same request,
gets the same rows with one MGET and answers their bytes as they are. Values of stock and ours are compared before any
time is taken; rounds of all contenders alternate, so that ratios are of neighbours in time.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, cast

import httptools
import numpy as np
import pyarrow as pa
import uvicorn
import uvloop

from featurestore.config import OnlineSettings
from featurestore.online.connection import connect
from featurestore.online.keys import EntityKeyCodec, row_key, row_prefixes
from featurestore.online.server import EmbeddedServer
from featurestore.online.writer import RowWriter
from featurestore.plan import Field, JoinKey, Plan, Source, View
from featurestore.plan_store import PlanStore

PROJECT, VIEWS, FEATURES, DRIVERS = "bench", 5, 10, 1_000
KEY = JoinKey(entity="driver", name="driver_id", dtype="INT64")
NAMES = [[f"f{view}_{feature}" for feature in range(FEATURES)] for view in range(VIEWS)]
REFS = [f"view_{view}:{name}" for view, names in enumerate(NAMES) for name in names]
PATH = "/get-online-features"


class Load(NamedTuple):
    """What a load found."""

    per_s: float
    p50_ms: float
    p99_ms: float


def rows() -> list[pa.Table]:
    """One table a view; the timestamps are whole seconds, all that Feast's Redis store keeps."""
    rng = np.random.default_rng(0)
    newest = int(datetime.now(UTC).timestamp()) - 60
    when = [datetime.fromtimestamp(newest - i, UTC) for i in range(DRIVERS)]
    at = pa.array(when, pa.timestamp("us", tz="UTC"))
    keys = {"driver_id": pa.array(np.arange(DRIVERS))}
    return [pa.table(keys | {name: rng.random(DRIVERS) for name in names} | {"event_timestamp": at}) for names in NAMES]


def plan() -> Plan:
    views = {
        f"view_{i}": View(
            name=f"view_{i}",
            version=1,
            kind="latest",
            join_keys=(KEY,),
            features=tuple(Field(name=name, dtype="DOUBLE") for name in names),
            ttl_us=0,
            source=Source(name="rows", path="rows.parquet", timestamp_field="event_timestamp"),
        )
        for i, names in enumerate(NAMES)
    }
    return Plan(project=PROJECT, version=1, digest="bench", created_us=0, views=views)


def land_ours(repo: Path, url: str, tables: list[pa.Table]) -> None:
    repo.mkdir(parents=True)
    (repo / "feature_store.yaml").write_text(
        f"project: {PROJECT}\nprovider: local\nregistry: data/registry.db\nonline_store:\n  connection: {url}\n"
    )
    client = connect(OnlineSettings(url=url), repo)
    made = plan()
    for view, table in zip(made.views.values(), tables, strict=True):
        RowWriter(client, PROJECT, view, clock=lambda: time.time_ns() // 1000).write(
            table, event_timestamp="event_timestamp"
        )
    PlanStore(client, PROJECT).publish(made)
    client.close()


def land_stock(repo: Path, port: int, tables: list[pa.Table]) -> None:
    """A Feast repo of the same views, applied and written through Feast itself."""
    # Slow to import; only this contender needs it.
    import pandas as pd
    from feast import Entity, FeatureStore, FeatureView, FileSource
    from feast import Field as FeastField
    from feast.types import Float64
    from feast.value_type import ValueType

    repo.mkdir(parents=True)
    (repo / "feature_store.yaml").write_text(
        f"project: {PROJECT}\nprovider: local\nregistry: registry.db\nentity_key_serialization_version: 3\n"
        f"online_store:\n  type: redis\n  connection_string: localhost:{port},db=1\n"
    )
    store = FeatureStore(repo_path=str(repo))
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    objects: list[Any] = [driver]
    for i, names in enumerate(NAMES):
        source = FileSource(name=f"source_{i}", path=str(repo / f"{i}.parquet"), timestamp_field="event_timestamp")
        frame: pd.DataFrame = tables[i].to_pandas()
        frame.to_parquet(repo / f"{i}.parquet")
        schema = [FeastField(name=name, dtype=Float64) for name in names]
        objects.append(FeatureView(name=f"view_{i}", entities=[driver], ttl=timedelta(0), schema=schema, source=source))
    store.apply(objects)
    for i in range(VIEWS):
        store.write_to_online_store(f"view_{i}", df=tables[i].to_pandas())


def floor(environ: dict[str, str]) -> Callable[..., Awaitable[None]]:
    """The floor's application: body in, one MGET, the rows' bytes out."""
    client = connect(OnlineSettings(url=environ["BENCH_URL"]), Path())
    codec = EntityKeyCodec([KEY])
    prefixes = [row_prefixes(PROJECT, f"view_{i}") for i in range(VIEWS)]

    async def app(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message.get("more_body"):
                break
        drivers = json.loads(body)["entities"]["driver_id"]
        keys = [codec.encode({"driver_id": driver}) or b"" for driver in drivers]
        held = client.mget([row_key(prefix, key) for prefix in prefixes for key in keys])
        answer = b"".join(held)
        headers = [(b"content-length", str(len(answer)).encode()), (b"content-type", b"application/octet-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


def serve_floor() -> None:
    """Runs the floor in this process, as the API is run."""
    app = floor(dict(os.environ))
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), access_log=False, lifespan="off")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], environ: dict[str, str], cwd: Path, port: int, log: Path) -> Iterator[int]:
    """A server in a process of its own, answering on that port; stopped at the end."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=os.environ | environ, cwd=cwd, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[0]} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def body_of(drivers: list[int]) -> bytes:
    return json.dumps({"features": REFS, "entities": {"driver_id": drivers}}).encode()


def ask(port: int, drivers: list[int]) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{PATH}", body_of(drivers), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def values(answer: Any) -> dict[str, list[Any]]:
    names = answer["metadata"]["feature_names"]
    return {name: result["values"] for name, result in zip(names, answer["results"], strict=True)}


class _Connection(asyncio.Protocol):
    """Sends one request after another over one connection, and times each."""

    def __init__(self, requests: list[bytes], until: float) -> None:
        self.requests, self.until = requests, until
        self.times: list[float] = []
        self.done = asyncio.get_running_loop().create_future()
        self.parser = httptools.HttpResponseParser(self)
        self.sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server closed a connection"))

    def on_message_complete(self) -> None:
        self.times.append(time.perf_counter() - self.sent_at)
        status = self.parser.get_status_code()
        if status != 200:
            self.done.set_exception(RuntimeError(f"status {status}"))
            self.transport.close()
        elif time.perf_counter() >= self.until:
            self.done.set_result(None)
            self.transport.close()
        else:
            # The parser cannot be used again inside its own callback.
            self.parser = httptools.HttpResponseParser(self)
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self.sent_at = time.perf_counter()
        self.transport.write(self.requests[len(self.times) % len(self.requests)])


async def load(port: int, entities: int, connections: int, seconds: float) -> Load:
    """That many connections, each with one request in flight, for that long."""
    rng = np.random.default_rng(entities)
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    requests = []
    for _ in range(64):
        body = body_of(rng.choice(DRIVERS, entities, replace=False).tolist())
        requests.append((head % len(body)).encode() + body)
    loop = asyncio.get_running_loop()
    start = time.perf_counter()
    until = start + seconds
    made = [
        (await loop.create_connection(lambda: _Connection(requests, until), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    await asyncio.gather(*(connection.done for connection in made))
    elapsed = time.perf_counter() - start
    times = sorted(taken for connection in made for taken in connection.times)
    return Load(len(times) / elapsed, 1e3 * times[len(times) // 2], 1e3 * times[int(len(times) * 0.99)])


def measure(ports: dict[str, int], entities: int, options: argparse.Namespace) -> dict[str, list[Load]]:
    found: dict[str, list[Load]] = {name: [] for name in ports}
    for port in ports.values():
        uvloop.run(load(port, entities, options.connections, min(1.0, options.seconds)))
    for _ in range(options.rounds):
        for name, port in ports.items():
            found[name].append(uvloop.run(load(port, entities, options.connections, options.seconds)))
    return found


def report(found: dict[str, list[Load]], entities: int) -> None:
    ours = found["ours"]
    print(f"{entities} entities")
    for name, loads in found.items():
        middle = [statistics.median(column) for column in zip(*loads, strict=True)]
        ratios = [mine.per_s / other.per_s for mine, other in zip(ours, loads, strict=True)]
        versus = "" if name == "ours" else f"   ours is {statistics.median(ratios):.2f} times this"
        print(
            f"  {name:6} {middle[0]:8.0f} requests/s   p50 {middle[1]:7.2f} ms   p99 {middle[2]:7.2f} ms{versus}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--entities", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--no-stock", action="store_true")
    options = parser.parse_args()
    tables = rows()
    with tempfile.TemporaryDirectory() as name, EmbeddedServer(Path(name)) as server, contextlib.ExitStack() as stack:
        folder = Path(name)
        # Feast's store knows no unix socket: a port of the same server is opened for both.
        redis_port = free_port()
        admin = connect(OnlineSettings(url=f"unix://{server.address}"), folder)
        admin.config_set("port", redis_port)
        url = f"redis://127.0.0.1:{redis_port}/0"
        land_ours(folder / "ours", url, tables)
        environ = {
            "FEATURESTORE_REPO": str(folder / "ours"),
            "BENCH_URL": url,
            "FEATURESTORE_REDIS_URL": url,
            "FEATURESTORE_API_OPEN": "1",
        }

        def start(name: str, command: list[str], port: int) -> int:
            own = environ | {"BENCH_PORT": str(port)}
            return stack.enter_context(running(command, own, Path.cwd(), port, folder / f"{name}.log"))

        ports: dict[str, int] = {}
        port = free_port()
        serve = [sys.executable, "-m", "uvicorn", "--factory", "featurestore.api.process:application", "--port"]
        ports["ours"] = start("ours", [*serve, str(port), "--no-access-log"], port)
        port = free_port()
        code = "from benchmarks.serving import serve_floor; serve_floor()"
        ports["floor"] = start("floor", [sys.executable, "-c", code], port)
        if not options.no_stock:
            land_stock(folder / "stock", redis_port, tables)
            port = free_port()
            feast = [str(Path(sys.executable).with_name("feast")), "-c", str(folder / "stock"), "serve"]
            # Its worker would start anew after 1,000 requests, and the figures with it.
            alone = ["--workers", "1", "--max-requests", "1000000"]
            ports["stock"] = start("stock", [*feast, "--port", str(port), "--no-access-log", *alone], port)
            for entities in options.entities:
                drivers = list(range(entities))
                ours, stock = values(ask(ports["ours"], drivers)), values(ask(ports["stock"], drivers))
                if ours != stock:
                    raise SystemExit(f"{entities} entities: values differ; no time is taken")
            print("values agree")
        for entities in options.entities:
            report(measure(ports, entities, options), entities)


if __name__ == "__main__":
    main()
