"""How many requests a second does the feature API answer, next to stock Feast and to a floor?

    python -m benchmarks.serving [--seconds 3] [--rounds 3] [--connections 4] [--entities 1 10 100] [--no-stock]
                                 [--shipped-seconds 25]

50 DOUBLE features in 5 views of 1,000 entities, one worker each, the same Valkey, the same load. Stock is `feast serve`
over Feast's own Redis online store; the floor takes the same request, gets the same rows with one MGET of the Redis
client and answers their bytes as they are; the bare floor does so over our own connection. Values of stock and ours are
compared before any time is taken; rounds of all contenders alternate, so that ratios are of neighbours in time.
Processor time a request is of the server's processes alone and nearly the same on a busy machine.

By default a worker of `feast serve` ends after 1,000 requests, and the next imports Feast before it answers. Both are
measured: "stock" never restarts, "shipped" runs as it is for --shipped-seconds (0: not at all), restarts included. Then
the latency of ours at half of its saturation, and how soon and how large one worker is.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import uvicorn

from benchmarks._load import Load, at_rate, post, saturate
from featurestore.config import OnlineSettings
from featurestore.online.connection import connect
from featurestore.online.fetch import fetcher
from featurestore.online.keys import EntityKeyCodec, row_key, row_prefixes
from featurestore.online.server import EmbeddedServer
from featurestore.online.writer import RowWriter
from featurestore.plan import Field, JoinKey, Plan, Source, View
from featurestore.plan_store import PlanStore
from featurestore.signing import signer_of

PROJECT, VIEWS, FEATURES, DRIVERS = "bench", 5, 10, 1_000
KEY = JoinKey(entity="driver", name="driver_id", dtype="INT64")
NAMES = [[f"f{view}_{feature}" for feature in range(FEATURES)] for view in range(VIEWS)]
REFS = [f"view_{view}:{name}" for view, names in enumerate(NAMES) for name in names]
PATH = "/get-online-features"


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
    PlanStore(client, PROJECT, signer_of(repo / "data")).publish(made)
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


class Server(NamedTuple):
    """A running contender."""

    port: int
    pid: int


def floor(environ: dict[str, str], kind: str) -> Callable[..., Awaitable[None]]:
    """The floor's application: body in, one MGET, the rows' bytes out; the bare one asks over our own connection."""
    client = connect(OnlineSettings(url=environ["BENCH_URL"]), Path())
    fetch = fetcher(client).fetch if kind == "bare" else None
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
        names = [row_key(prefix, key) for prefix in prefixes for key in keys]
        held = client.mget(names) if fetch is None else await fetch(names)
        answer = b"".join(row or b"" for row in held)
        headers = [(b"content-length", str(len(answer)).encode()), (b"content-type", b"application/octet-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


def serve_floor(kind: str) -> None:
    """Runs the floor in this process, as the API is run."""
    app = floor(dict(os.environ), kind)
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), access_log=False, lifespan="off")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], environ: dict[str, str], cwd: Path, port: int, log: Path) -> Iterator[int]:
    """The process of a server that answers on that port; stopped at the end."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=os.environ | environ, cwd=cwd, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[0]} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.01)
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def wait_until_ready(port: int) -> None:
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready"):
                return
        except urllib.error.HTTPError as error:
            error.close()
            time.sleep(0.01)


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


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


def requests_of(entities: int) -> list[bytes]:
    rng = np.random.default_rng(entities)
    return [post(PATH, body_of(rng.choice(DRIVERS, entities, replace=False).tolist())) for _ in range(64)]


def measure(servers: dict[str, Server], entities: int, options: argparse.Namespace) -> dict[str, list[Load]]:
    requests = requests_of(entities)
    found: dict[str, list[Load]] = {name: [] for name in servers}
    for server in servers.values():
        saturate(*server, requests, options.connections, min(1.0, options.seconds))
    for _ in range(options.rounds):
        for name, server in servers.items():
            found[name].append(saturate(*server, requests, options.connections, options.seconds))
    return found


def report(found: dict[str, list[Load]], entities: int) -> None:
    ours = found["ours"]
    print(f"{entities} entities")
    for name, loads in found.items():
        middle = [statistics.median(column) for column in zip(*loads, strict=True)]
        line = (
            f"  {name:8}{middle[0]:7.0f} requests/s   p50 {middle[1]:7.2f} ms   p99 {middle[2]:7.2f} ms"
            f"   processor {middle[3]:6.0f} us"
        )
        if name != "ours":
            per_s = statistics.median(mine.per_s / other.per_s for mine, other in zip(ours, loads, strict=True))
            cpu = statistics.median(other.cpu_us / mine.cpu_us for mine, other in zip(ours, loads, strict=True))
            line += f"   ours {per_s:.2f} times the requests, {cpu:.2f} by processor time"
        print(line, flush=True)


def report_shipped(server: Server, ours: list[Load], entities: int, options: argparse.Namespace) -> None:
    load = saturate(*server, requests_of(entities), options.connections, options.shipped_seconds, reconnect=True)
    ratio = statistics.median(each.per_s for each in ours) / load.per_s
    print(
        f"  shipped {load.per_s:7.0f} requests/s, restarts included   ours {ratio:.2f} times the requests", flush=True
    )


def report_half(server: Server, ours: list[Load], entities: int, seconds: float) -> None:
    per_s = statistics.median(each.per_s for each in ours) / 2
    load = at_rate(*server, requests_of(entities), per_s, seconds)
    print(f"  ours at {per_s:.0f} requests/s: p50 {load.p50_ms:.2f} ms   p99 {load.p99_ms:.2f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--entities", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--no-stock", action="store_true")
    parser.add_argument("--shipped-seconds", type=float, default=25.0)
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
        environ = {"BENCH_URL": url, "FEATURESTORE_REDIS_URL": url}
        binaries = Path(sys.executable).parent

        def start(name: str, *command: str | Path, port_option: str = "--port") -> Server:
            port = free_port()
            own = environ | {"BENCH_PORT": str(port)}
            words = [*map(str, command), *([port_option, str(port)] if port_option else [])]
            pid = stack.enter_context(running(words, own, Path.cwd(), port, folder / f"{name}.log"))
            return Server(port, pid)

        begun = time.perf_counter()
        command = [sys.executable, "-m", "featurestore.cli.main", "serve"]
        ours = start("ours", *command, "--repo", folder / "ours", "--open")
        wait_until_ready(ours.port)
        ready_s = time.perf_counter() - begun
        servers = {"ours": ours}
        for kind in ("floor", "bare"):
            code = f"from benchmarks.serving import serve_floor; serve_floor({kind!r})"
            servers[kind] = start(kind, sys.executable, "-c", code, port_option="")
        shipped = None
        if not options.no_stock:
            land_stock(folder / "stock", redis_port, tables)
            feast = [binaries / "feast", "-c", folder / "stock", "serve", "--no-access-log", "--workers", "1"]
            servers["stock"] = start("stock", *feast, "--max-requests", "1000000")
            if options.shipped_seconds:
                shipped = start("shipped", *feast)
            for entities in options.entities:
                drivers = list(range(entities))
                if values(ask(ours.port, drivers)) != values(ask(servers["stock"].port, drivers)):
                    raise SystemExit(f"{entities} entities: values differ; no time is taken")
            print("values agree")
        for entities in options.entities:
            found = measure(servers, entities, options)
            report(found, entities)
            if shipped is not None:
                report_shipped(shipped, found["ours"], entities, options)
            report_half(ours, found["ours"], entities, options.seconds)
        print(f"one worker: ready {ready_s:.2f} s after its start, {resident_mb(ours.pid):.0f} MB after all this")


if __name__ == "__main__":
    main()
