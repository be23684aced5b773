"""How long does it take to read windowed features, alone and as an answer of the API?

    python -m benchmarks.windowed_serving [--events 200000] [--users 1000] [--partitions 1] [--reads 400]

Three views of the same aggregations, 4 windows x 6 functions over one column, made by the stream from an in-memory log
in an embedded store. Every value is compared with the offline join of the same events before any time is taken.
"processor" is what the reading process itself used, nearly the same on a busy machine; it keeps freed memory, as the
processes of the API do.
"""

import argparse
import json
import random
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from benchmarks._load import at_rate, post, saturate
from benchmarks.serving import PATH, free_port, running, wait_until_ready
from featurestore.aggregation.windows import DAY_US, HOUR_US, MINUTE_US
from featurestore.config import OnlineSettings
from featurestore.freed_memory import keep_freed_memory
from featurestore.offline.windowed import windowed_join
from featurestore.online.connection import connect
from featurestore.online.reader import OnlineReader
from featurestore.online.server import EmbeddedServer
from featurestore.plan import Aggregation, Field, Plan, Projection, View
from featurestore.plan_store import PlanStore
from featurestore.signing import signer_of
from streaming.claim_record import ClaimRecord
from streaming.commit import ShardStore
from streaming.rehearsal import TOPIC, shop_event, shop_plan
from streaming.source.scripted import ScriptedLog, ScriptedSource
from streaming.worker import Pace, Worker

WINDOWS = {
    "1h": (HOUR_US, 5 * MINUTE_US),
    "6h": (6 * HOUR_US, 5 * MINUTE_US),
    "1d": (DAY_US, HOUR_US),
    "7d": (7 * DAY_US, HOUR_US),
}
FUNCTIONS = ("count", "sum", "mean", "min", "max", "last")
AGGREGATIONS = tuple(
    Aggregation(
        feature=f"{function}_{name}",
        column="amount",
        column_dtype="DOUBLE",
        function=function,
        dtype="INT64" if function == "count" else "DOUBLE",
        window_us=window_us,
        hop_us=hop_us,
    )
    for name, (window_us, hop_us) in WINDOWS.items()
    for function in FUNCTIONS
)
NAMES = tuple(each.feature for each in AGGREGATIONS)
VIEWS = ("orders_a", "orders_b", "orders_c")


def plan() -> Plan:
    made = shop_plan(contract=False)
    [old] = made.views.values()
    features = tuple(Field(name=each.feature, dtype=each.dtype) for each in AGGREGATIONS)
    views: dict[str, View] = {
        name: msgspec.structs.replace(old, name=name, aggregations=AGGREGATIONS, features=features) for name in VIEWS
    }
    return msgspec.structs.replace(made, views=views)


def stream(events: list[bytes], partitions: int, made: Plan, url: str, folder: Path, now_us: int) -> None:
    """The events through the worker, from a log in memory."""
    log = ScriptedLog()
    log.create(TOPIC, partitions=partitions)
    for value in events:
        order = msgspec.json.decode(value)
        user = order["user_id"]
        log.append(TOPIC, user % partitions, value, key=b"%d" % user, timestamp_us=order["event_timestamp"])
    client = connect(OnlineSettings(url=url), folder)
    Worker(
        ScriptedSource(log, [TOPIC], max_records=5_000),
        ShardStore(client, lambda: now_us),
        [],
        made,
        views=tuple(made.views.values()),
        record=ClaimRecord(folder / "event_log"),
        clock=lambda: now_us,
        new_token=lambda: "benchmark",
        pace=Pace(poll_ms=0),
    ).run(lambda: False, until_caught_up=True)
    client.close()


def offline(events: list[bytes], users: int, at_us: int) -> dict[str, list[object]]:
    """What the offline join says of every user at that instant."""
    rows = [msgspec.json.decode(value) for value in events]
    table = pa.table({name: [row[name] for row in rows] for name in ("user_id", "event_timestamp", "amount")})
    asked = pa.table({"user_id": range(users), "at": [at_us] * users})
    joined = windowed_join(
        table, asked, keys={"user_id": "user_id"}, event_ts="event_timestamp", entity_ts="at", aggregations=AGGREGATIONS
    )
    return {name: joined.column(name).to_pylist() for name in NAMES}


def timed(read: Callable[[Sequence[int]], object], asked: Sequence[Sequence[int]]) -> str:
    """p50, p99 and processor time of reads."""
    for users in asked[:20]:
        read(users)
    taken, cpu = [], time.process_time()
    for users in asked:
        start = time.perf_counter()
        read(users)
        taken.append(1e3 * (time.perf_counter() - start))
    cpu_ms = 1e3 * (time.process_time() - cpu) / len(asked)
    taken.sort()
    return (
        f"p50 {taken[len(taken) // 2]:6.2f} ms   p99 {taken[int(len(taken) * 0.99)]:6.2f} ms   "
        f"processor {cpu_ms:6.2f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--reads", type=int, default=400)
    parser.add_argument("--api-seconds", type=float, default=4.0)
    options = parser.parse_args()
    keep_freed_memory()
    rng = random.Random(0)
    now_us = time.time_ns() // 1000
    start_us = now_us - 8 * DAY_US
    step_us = (8 * DAY_US - MINUTE_US) // options.events
    events = [shop_event(rng, number, start_us + number * step_us, options.users) for number in range(options.events)]
    made = plan()
    with tempfile.TemporaryDirectory() as name, EmbeddedServer(Path(name)) as server:
        folder, url = Path(name), f"unix://{server.address}"
        stream(events, options.partitions, made, url, folder, now_us)
        client = connect(OnlineSettings(url=url), folder)
        PlanStore(client, made.project, signer_of(folder / "repo" / "data")).publish(made)
        reader = OnlineReader(client, made, lambda: now_us)
        one = (Projection(view=VIEWS[0], features=NAMES),)
        found = reader.read(one, {"user_id": range(options.users)})
        wanted = offline(events, options.users, now_us)
        for column in found.columns:
            if column.to_python() != wanted[column.feature]:
                raise SystemExit(f"{column.feature}: online and offline differ; no time is taken")
        print(f"{options.users * len(NAMES)} values equal those of the offline join")
        live = OnlineReader(client, made, lambda: time.time_ns() // 1000)
        for entities in (1, 100):
            asked = [rng.sample(range(options.users), entities) for _ in range(options.reads)]
            told = timed(lambda users: live.read(one, {"user_id": users}), asked)
            print(f"reader, {entities:3} entities x {len(NAMES)} features: {told}", flush=True)
        over_http(options, made, url, folder, wanted, now_us)


def over_http(
    options: argparse.Namespace, made: Plan, url: str, folder: Path, wanted: dict[str, list[object]], now_us: int
) -> None:
    """Three views of 100 entities in one answer of `featurestore serve`."""
    repo = folder / "repo"
    repo.mkdir(exist_ok=True)
    (repo / "feature_store.yaml").write_text(
        f"project: {made.project}\nprovider: local\nregistry: data/registry.db\nonline_store:\n  connection: {url}\n"
    )
    port = free_port()
    command = [sys.executable, "-m", "featurestore.cli.main", "serve", "--repo", str(repo), "--open"]
    with running([*command, "--port", str(port)], {}, Path.cwd(), port, folder / "log") as pid:
        wait_until_ready(port)
        refs = [f"{view}:{name}" for view in VIEWS for name in NAMES]
        asked = {"features": refs, "full_feature_names": True}
        entities = {"user_id": list(range(min(100, options.users)))}
        body = json.dumps(asked | {"entities": entities, "as_of": now_us}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}{PATH}", body)
        with urllib.request.urlopen(request) as response:
            answer = json.load(response)
        for full, result in zip(answer["metadata"]["feature_names"][1:], answer["results"][1:], strict=True):
            if result["values"] != wanted[full.partition("__")[2]][: len(result["values"])]:
                raise SystemExit(f"{full}: the API and the offline join differ; no time is taken")
        rng = np.random.default_rng(0)
        requests = []
        for _ in range(64):
            entities = {"user_id": rng.choice(options.users, min(100, options.users), replace=False).tolist()}
            requests.append(post(PATH, json.dumps(asked | {"entities": entities}).encode()))
        alone = saturate(port, pid, requests, 1, options.api_seconds)
        half = at_rate(port, pid, requests, alone.per_s / 2, options.api_seconds)
        print(
            f"API, 3 views x 100 entities, one at a time: p50 {alone.p50_ms:.1f} ms   p99 {alone.p99_ms:.1f} ms   "
            f"processor {alone.cpu_us / 1e3:.1f} ms; at half of that rate p99 {half.p99_ms:.1f} ms"
        )


if __name__ == "__main__":
    main()
