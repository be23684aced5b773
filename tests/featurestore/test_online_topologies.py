"""Cluster, Sentinel, TLS and ACL users: the same values through every kind of address, on real servers."""

import asyncio
import contextlib
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pyarrow as pa
import pytest
import redis

from featurestore.config import OnlineSettings
from featurestore.errors import ConfigurationError, StoreUnavailable
from featurestore.online.cluster import ClusterClient, slot_of
from featurestore.online.connection import StoreClient, connect
from featurestore.online.delete import delete_views
from featurestore.online.fetch import fetcher
from featurestore.online.keys import EntityKeyCodec, row_key, row_prefixes
from featurestore.online.reader import OnlineReader
from featurestore.online.server import _binary
from featurestore.online.writer import RowWriter
from featurestore.plan import Field, JoinKey, Plan, Projection, Source, View
from streaming.claim_record import ClaimRecord
from streaming.commit import ShardStore
from streaming.rehearsal import START_US, TOPIC, shop_events, shop_plan
from streaming.source.scripted import ScriptedLog, ScriptedSource
from streaming.worker import Pace, Worker

NOW = 1_700_000_000_000_000
VIEWS = {
    name: View(
        name=name,
        version=1,
        kind="latest",
        join_keys=(JoinKey(entity="driver", name="driver_id", dtype="INT64"),),
        features=(Field(name=name, dtype="INT64"),),
        ttl_us=0,
        source=Source(name=name, path="x", timestamp_field="event_timestamp"),
    )
    for name in ("a", "b")
}
PLAN = Plan(project="ml", version=1, digest="", created_us=0, views=VIEWS)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def cluster_port() -> int:
    """A free port whose bus port, 10,000 higher, is free too."""
    while True:
        port = free_port()
        with contextlib.suppress(OSError), socket.socket() as bus:
            if port < 50_000:
                bus.bind(("127.0.0.1", port + 10_000))
                return port
            continue


@contextlib.contextmanager
def server(folder: Path, *arguments: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    command = [str(_binary()), *arguments, "--dir", str(folder), "--save", "", "--bind", "127.0.0.1"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def wait_for(what: Callable[[], bool], patience_s: float = 20) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        with contextlib.suppress(redis.exceptions.RedisError, OSError, StoreUnavailable):
            if what():
                return
        assert time.monotonic() < deadline, "the servers did not come up"
        time.sleep(0.05)


def proves_itself(client: StoreClient) -> None:
    """Written rows come back, whatever node they are on, and are deleted without touching others."""
    when = pa.array([NOW] * 200, pa.timestamp("us", tz="UTC"))
    for name, view in VIEWS.items():
        table = pa.table({"driver_id": range(200), name: range(1000, 1200), "event_timestamp": when})
        assert RowWriter(client, "ml", view, clock=lambda: NOW).write(table, event_timestamp="event_timestamp").written
    wanted = [Projection(view=name, features=(name,)) for name in VIEWS]
    drivers = [*range(0, 200, 3), 777]
    for column in OnlineReader(client, PLAN, lambda: NOW).read(wanted, {"driver_id": drivers}).columns:
        assert column.to_python() == [*range(1000, 1200, 3), None]
    assert on_a_loop(client, wanted, drivers) == [[*range(1000, 1200, 3), None]] * len(wanted)
    assert delete_views(client, "ml", ["a"]) == 201
    a, b = OnlineReader(client, PLAN, lambda: NOW).read(wanted, {"driver_id": [5]}).columns
    assert (a.to_python(), b.to_python()) == ([None], [1005])


def on_a_loop(client: StoreClient, wanted: list[Projection], drivers: list[int]) -> list[list[object]]:
    """The same read as an event loop does it."""

    async def read() -> list[list[object]]:
        one = fetcher(client)
        steps = OnlineReader(client, PLAN, lambda: NOW).steps(wanted, {"driver_id": drivers})
        held = await one.fetch(next(steps))
        one.close()
        with pytest.raises(StopIteration) as done:
            steps.send(held)
        return [column.to_python() for column in done.value.value.columns]

    return asyncio.run(read())


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[int]]:
    """Three masters that share the 16,384 slots."""
    folder = tmp_path_factory.mktemp("cluster")
    ports = [cluster_port() for _ in range(3)]
    with contextlib.ExitStack() as stack:
        for port in ports:
            stack.enter_context(
                server(folder / str(port), "--port", str(port), "--cluster-enabled", "yes", "--appendonly", "no")
            )
        bounds = [0, 5461, 10923, 16384]
        for i, port in enumerate(ports):
            with redis.Redis(port=port, protocol=2) as one:
                wait_for(one.ping)
                one.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[i], bounds[i + 1] - 1)
                one.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
        with redis.Redis(port=ports[0], protocol=2) as first:
            for port in ports[1:]:
                first.execute_command("CLUSTER", "MEET", "127.0.0.1", port)
        for port in ports:
            with redis.Redis(port=port, protocol=2, decode_responses=True) as one:
                wait_for(lambda one=one: one.execute_command("CLUSTER INFO")["cluster_state"] == "ok")  # type: ignore[misc]
        yield ports


@pytest.fixture
def cluster(nodes: list[int], tmp_path: Path) -> Iterator[ClusterClient]:
    addresses = ",".join(f"127.0.0.1:{port}" for port in nodes)
    client = connect(OnlineSettings(url=f"redis+cluster://{addresses}"), tmp_path)
    assert isinstance(client, ClusterClient)
    client.flushall(target_nodes="primaries")
    yield client
    client.close()


def test_a_cluster_serves_what_was_written(cluster: StoreClient) -> None:
    """Rows of all slots, read in one go, in order."""
    proves_itself(cluster)


def test_slots_are_those_of_the_server(cluster: ClusterClient) -> None:
    """Our way to a key's slot is Redis's own."""
    codec = EntityKeyCodec(VIEWS["a"].join_keys)
    names = [row_key(row_prefixes("ml", "a"), codec.encode({"driver_id": d}) or b"") for d in range(100)]
    for name in [*names, b"plain", b"{}empty", b"a{b", b"{x}y{z}"]:
        assert slot_of(name) == cluster.execute_command("CLUSTER KEYSLOT", name)


def test_a_slot_that_moves_is_followed(cluster: ClusterClient, nodes: list[int]) -> None:
    """A client with an old map of the cluster gets the value from the slot's new node."""
    name = b"{moving}k"
    slot = slot_of(name)
    cluster.set(name, b"1")
    assert cluster.mget([name, b"{other}k"]) == [b"1", None]
    ids = {}
    for port in nodes:
        with redis.Redis(port=port, protocol=2, decode_responses=True) as one:
            ids[port] = one.execute_command("CLUSTER MYID")
    old = cluster.nodes_manager.get_node_from_slot(slot).port
    new = next(port for port in nodes if port != old)
    with redis.Redis(port=old, protocol=2) as source, redis.Redis(port=new, protocol=2) as target:
        target.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[old])
        source.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[new])
        source.execute_command("MIGRATE", "127.0.0.1", new, name, 0, 5000)
        assert cluster.mget([name, b"{other}k"]) == [b"1", None]
        target.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[new])
        source.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[new])
    assert cluster.mget([name, b"{other}k"]) == [b"1", None]


def test_a_cluster_that_is_away_is_named(tmp_path: Path) -> None:
    """StoreUnavailable, with the address and without the password."""
    with pytest.raises(StoreUnavailable, match=r"app:\*\*\*@127.0.0.1"):
        connect(OnlineSettings(url=f"redis+cluster://app:secret@127.0.0.1:{free_port()}"), tmp_path).ping()


def test_sentinels_name_the_master(tmp_path: Path) -> None:
    """The address names the sentinels and the service; the master's own user and password go to the master."""
    port, watch = free_port(), free_port()
    conf = tmp_path / "sentinel.conf"
    conf.write_text(f"port {watch}\nsentinel monitor fs 127.0.0.1 {port} 1\nsentinel auth-pass fs secret\n")
    with (
        server(tmp_path / "master", "--port", str(port), "--requirepass", "secret"),
        server(tmp_path / "sentinel", str(conf), "--sentinel"),
        connect(
            OnlineSettings(url=f"redis+sentinel://:secret@127.0.0.1:{free_port()},127.0.0.1:{watch}/fs"), tmp_path
        ) as client,
    ):
        wait_for(client.ping)
        proves_itself(client)
        with pytest.raises(StoreUnavailable):
            connect(OnlineSettings(url=f"redis+sentinel://:secret@127.0.0.1:{watch}/nobody"), tmp_path).ping()


def test_a_replica_that_becomes_the_master_is_followed(tmp_path: Path) -> None:
    """The master dies: calls say StoreUnavailable until the sentinel has named another, then the same client, and a new
    reader on an event loop, go on with the rows that were there."""
    first, second, watch = free_port(), free_port(), free_port()
    conf = tmp_path / "sentinel.conf"
    conf.write_text(
        f"port {watch}\nsentinel monitor fs 127.0.0.1 {first} 1\n"
        "sentinel down-after-milliseconds fs 300\nsentinel failover-timeout fs 2000\n"
    )
    wanted = [Projection(view="b", features=("b",))]
    when = pa.array([NOW], pa.timestamp("us", tz="UTC"))

    def write(client: StoreClient, driver: int) -> bool:
        row = pa.table({"driver_id": [driver], "b": [driver * 10], "event_timestamp": when})
        return (
            RowWriter(client, "ml", VIEWS["b"], clock=lambda: NOW).write(row, event_timestamp="event_timestamp").written
            == 1
        )

    def read(client: StoreClient) -> list[object]:
        [column] = OnlineReader(client, PLAN, lambda: NOW).read(wanted, {"driver_id": [1, 2]}).columns
        return column.to_python()

    with contextlib.ExitStack() as rest, contextlib.ExitStack() as master:
        master.enter_context(server(tmp_path / "first", "--port", str(first)))
        rest.enter_context(server(tmp_path / "second", "--port", str(second), "--replicaof", f"127.0.0.1 {first}"))
        replica = rest.enter_context(redis.Redis(port=second, protocol=2))
        wait_for(lambda: replica.info("replication")["master_link_status"] == "up")
        # Only now: a sentinel that finds no replica looks again after ten seconds.
        rest.enter_context(server(tmp_path / "sentinel", str(conf), "--sentinel"))
        client = rest.enter_context(connect(OnlineSettings(url=f"redis+sentinel://127.0.0.1:{watch}/fs"), tmp_path))
        sentinel = rest.enter_context(redis.Redis(port=watch, protocol=2))
        wait_for(lambda: int(sentinel.sentinel_master("fs")["num-slaves"]) == 1)
        wait_for(lambda: write(client, 1))
        assert read(client) == [10, None]
        wait_for(lambda: bool(replica.keys("fs:row:*")))
        master.close()
        with pytest.raises(StoreUnavailable):
            read(client)
        wait_for(lambda: write(client, 2), patience_s=60)
        assert read(client) == [10, 20]
        assert on_a_loop(client, wanted, [1, 2]) == [[10, 20]]


def test_an_acl_user_needs_no_more_than_its_keys(tmp_path: Path) -> None:
    """A user of `fs:*` keys alone writes, reads and deletes."""
    port = free_port()
    with server(tmp_path / "acl", "--port", str(port)):
        with redis.Redis(port=port, protocol=2) as admin:
            wait_for(admin.ping)
            rights = ["~fs:*", "+@read", "+@write", "+@scripting", "+@connection"]
            admin.acl_setuser("app", enabled=True, passwords=["+secret"], keys=[], commands=[], reset=True)
            admin.execute_command("ACL", "SETUSER", "app", *rights)
        with connect(OnlineSettings(url=f"redis://app:secret@127.0.0.1:{port}/0"), tmp_path) as client:
            proves_itself(client)


def streamed(client: StoreClient, folder: Path) -> dict[str, list[object]]:
    """What is served of a stream of orders in three partitions, some of them broken, in two runs."""
    made, now_us = shop_plan(), START_US + 3 * 3_600_000_000
    log, rng = ScriptedLog(), random.Random(3)
    log.create(TOPIC, partitions=3)
    for number, event in enumerate(shop_events(rng, 300)):
        log.append(TOPIC, number % 3, event.value, key=event.key, timestamp_us=event.arrival_us)
        if number in (150, 299):
            Worker(
                ScriptedSource(log, [TOPIC], max_records=40),
                ShardStore(client, lambda: now_us),
                [],
                made,
                views=tuple(made.views.values()),
                record=ClaimRecord(folder),
                clock=lambda: now_us,
                new_token=lambda n=number: f"t{n}",  # type: ignore[misc]
                pace=Pace(poll_ms=0),
            ).run(lambda: False, until_caught_up=True)
    [view] = made.views.values()
    wanted = Projection(view=view.name, features=tuple(field.name for field in view.features))
    found = OnlineReader(client, made, lambda: now_us).read([wanted], {"user_id": range(41)})
    return {column.feature: column.to_python() for column in found.columns}


def test_a_stream_commits_to_a_cluster(cluster: ClusterClient, store: StoreClient, tmp_path: Path) -> None:
    """Claims, tiles, offsets and the list of shards on real nodes: what is served is what one server serves."""
    one, many = tmp_path / "one", tmp_path / "many"
    on_cluster = streamed(cast(StoreClient, cluster), many)
    assert on_cluster == streamed(store, one)
    assert sum(filter(None, on_cluster["amount_count_24h"])) > 50  # type: ignore[arg-type, misc]
    slots = {slot_of(key) for key in cluster.scan_iter(match="fs:ctl:*")}
    assert len(slots) == 3


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    crt, key = folder / "server.crt", folder / "server.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(crt)]
    subprocess.run(command, check=True, capture_output=True)
    return crt, key


@contextlib.contextmanager
def tls_before(port: int, crt: Path, key: Path) -> Iterator[int]:
    """A port that speaks TLS and passes all on to a plain one: the embedded server is built without TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(crt, key)

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, to_server = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pass_on(reader, to_server), pass_on(behind, writer))

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # handshakes that the client refuses are the point
    front = loop.run_until_complete(asyncio.start_server(accepted, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield front.sockets[0].getsockname()[1]
    finally:

        async def end() -> None:
            front.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")
def test_tls_is_verified(tmp_path: Path) -> None:
    """With the authority's certificate all works; without it, nothing is sent to a server that proves nothing."""
    crt, key = certificate(tmp_path)
    port = free_port()
    with server(tmp_path / "plain", "--port", str(port)), tls_before(port, crt, key) as front:
        url = f"rediss://127.0.0.1:{front}/0"
        with connect(OnlineSettings(url=f"{url}?ssl_ca_certs={crt}"), tmp_path) as client:
            wait_for(client.ping)
            proves_itself(client)
        with (
            connect(OnlineSettings(url=url), tmp_path) as client,
            pytest.raises(StoreUnavailable, match=r"(?i)certificate"),
        ):
            client.ping()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis+sentinel://127.0.0.1", "names no service"),
        ("redis+cluster://127.0.0.1:x", "Port could not be cast"),
        ("redis+cluster://,", "no host:port"),
        ("rediss+cluster://h?nonsense=1", "unknown parameter 'nonsense'"),
    ],
)
def test_an_address_that_does_not_fit_says_why(url: str, why: str, tmp_path: Path) -> None:
    """ConfigurationError with what was found and the form."""
    with pytest.raises(ConfigurationError, match=why):
        connect(OnlineSettings(url=url), tmp_path)
