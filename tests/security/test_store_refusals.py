"""A store that refuses commands or holds garbage for a while ends no loop: API, worker, monitor, backfill."""

import inspect
import logging
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
import redis
from refusing_proxy import RefusingProxy
from served_project import GOOD, NOW_US, PROJECT, land, make_app, make_plan, serve

from featurestore.api.access import ApiKeys
from featurestore.api.gate import Gate
from featurestore.api.key_store import KeyRing, KeyStore
from featurestore.config import OnlineSettings, load_settings
from featurestore.errors import FeatureStoreError, StaleStore, StoreDenied, StoreRefused, StoreUnavailable
from featurestore.fallback import Fallback, Fallbacks
from featurestore.monitor.round import Monitor
from featurestore.monitor.workspace import workspace
from featurestore.online import failures
from featurestore.online.connection import StoreClient, connect
from featurestore.online.server import EmbeddedServer
from featurestore.plan_store import PlanStore
from featurestore.plan_users import PlanUsers
from streaming.backfill import Builder
from streaming.claim_record import ClaimRecord
from streaming.commit import ShardStore
from streaming.log_replay import EventLogReplay
from streaming.patience import patiently
from streaming.rehearsal import START_US, TOPIC, shop_events, shop_plan
from streaming.sinks import EventLog, RangeSink
from streaming.source.scripted import ScriptedLog, ScriptedSource
from streaming.worker import Pace, Worker

CODES = ("NOREPLICAS", "MISCONF", "NOPERM", "BUSY", "LOADING", "OOM", "READONLY", "WRONGPASS", "MASTERDOWN", "ERR")
KEYS = f"fs:apikeys:{{{len(PROJECT)}:{PROJECT}}}".encode()


@pytest.fixture
def proxy(embedded_server: EmbeddedServer, store: StoreClient) -> Iterator[RefusingProxy]:
    """Before the embedded server, which is empty when the test starts."""
    made = RefusingProxy(Path(embedded_server.address))
    yield made
    made.close()


@pytest.fixture
def through(proxy: RefusingProxy, tmp_path: Path) -> Iterator[StoreClient]:
    """A client through the proxy."""
    client = connect(OnlineSettings(url=proxy.url), tmp_path)
    yield client
    client.close()


def until(condition: Callable[[], bool], what: str, patience_s: float = 20.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


# The mapping


def test_every_error_of_the_client_library_has_one_of_ours() -> None:
    """No exception of the library leaves the room that owns it, but those that a caller answers there."""
    kinds = [
        kind
        for _, kind in inspect.getmembers(redis.exceptions, inspect.isclass)
        if issubclass(kind, (redis.exceptions.RedisError, redis.exceptions.RedisClusterException))
        and not issubclass(kind, failures._PASSED)
    ]
    assert len(kinds) > 25
    for kind in kinds:
        error = kind.__new__(kind)
        Exception.__init__(error, "0 127.0.0.1:1")
        with pytest.raises(StoreUnavailable), failures.mapped("redis://cache"):
            raise error


@pytest.mark.parametrize("code", CODES)
def test_a_refusal_is_told_apart_and_names_its_code(code: str, proxy: RefusingProxy, through: StoreClient) -> None:
    """Commands, MGET and pipelines alike: what refuses is a StoreRefused with the reply's code, to be repeated."""
    through.set(b"k", b"v")
    proxy.refuse(code)
    pipeline = through.pipeline(transaction=False)
    pipeline.get(b"k")
    for call in (lambda: through.get(b"k"), lambda: through.mget([b"k"]), pipeline.execute):
        with pytest.raises(StoreUnavailable) as caught:
            call()
        assert isinstance(caught.value, StoreRefused)
        assert caught.value.code == code
        assert isinstance(caught.value, StoreDenied) == (code in ("NOPERM", "WRONGPASS"))
    proxy.pass_all()
    assert through.get(b"k") == b"v"


def test_a_refused_write_does_not_repeat_its_values_in_the_message(proxy: RefusingProxy, through: StoreClient) -> None:
    """A pipeline's error names no argument of its commands."""
    proxy.refuse("NOREPLICAS")
    pipeline = through.pipeline(transaction=False)
    pipeline.set(b"k", b"ssn 123-45-6789")
    with pytest.raises(StoreRefused) as caught:
        pipeline.execute()
    assert "123-45" not in str(caught.value)


# The API


class Served:
    """An API whose store is behind the proxy; `admin` reaches the store itself."""

    def __init__(self, http: httpx.Client, keys: KeyStore, plans: PlanStore, store: StoreClient) -> None:
        self.http, self.keys, self.plans, self.store = http, keys, plans, store
        self.version = 1

    def status(self, key: str) -> int:
        return self.http.post("/get-online-features", json=GOOD, headers={"X-API-Key": key}).status_code

    def ready(self) -> int:
        return self.http.get("/ready").status_code

    def still_watches(self) -> None:
        """A key made now opens, ends when revoked, and a plan published now comes into force."""
        secret, key = self.keys.create("test", ["reader"], clock=lambda: NOW_US)
        until(lambda: self.status(secret) == 200, "the new key")
        self.keys.revoke(key.id, clock=lambda: NOW_US)
        until(lambda: self.status(secret) == 401, "the revocation")
        self.version += 1
        self.plans.publish(msgspec.structs.replace(make_plan(), version=self.version, digest=f"d{self.version}"))
        until(lambda: f"featurestore_plan_version {self.version}.0" in self.metrics(), "the new plan")

    def metrics(self) -> str:
        secret, key = self.keys.create("look", ["admin"], clock=lambda: NOW_US)
        until(lambda: self.status(secret) == 200, "the admin's key")
        text = self.http.get("/metrics", headers={"X-API-Key": secret}).text
        self.store.hdel(KEYS, key.id.encode())
        return text


@pytest.fixture
def served(proxy: RefusingProxy, through: StoreClient, store: StoreClient) -> Iterator[Served]:
    """An API with keys in the store, which looks every 20 ms and may be blind for 300 ms."""
    land(store)
    PlanStore(store, PROJECT).publish(make_plan())
    gate = Gate(keys=ApiKeys(()), ring=KeyRing(KeyStore(through, PROJECT)))
    app = make_app(
        through, gate=gate, plans=PlanStore(through, PROJECT), poll_s=0.02, longest_blind_s=0.3,
        fallbacks=Fallbacks(through, PROJECT).active, users=PlanUsers(through, PROJECT, lambda: NOW_US),
    )  # fmt: skip
    with serve(app) as http:
        yield Served(http, KeyStore(store, PROJECT), PlanStore(store, PROJECT), store)


@pytest.mark.parametrize("code", CODES)
def test_the_api_goes_on_watching_after_a_refusal(code: str, served: Served, proxy: RefusingProxy) -> None:
    """A store that refuses everything for some looks: afterwards keys and plans are taken over as before."""
    proxy.refuse(code)
    until(lambda: proxy.refused > 12, "refusals")
    proxy.pass_all()
    served.still_watches()


def test_the_api_survives_a_refusal_of_each_command_of_its_loop(served: Served, proxy: RefusingProxy) -> None:
    """One command after the other is refused for good while the others pass; each ends no look but its own."""
    until(lambda: {"GETRANGE", "HGETALL", "HSET"} <= set(proxy.seen), "commands")
    for name in ("GETRANGE", "HGETALL", "HSET", "GET"):
        before = proxy.refused
        # The plan itself is read (GET) only where its version is another one.
        served.version += 1
        served.plans.publish(msgspec.structs.replace(make_plan(), version=served.version, digest="d"))
        proxy.refuse("NOREPLICAS", names={name})
        until(lambda before=before: proxy.refused > before + 2, name)
    proxy.pass_all()
    served.still_watches()


def test_ready_says_that_keys_and_plan_were_not_seen_for_long(served: Served, proxy: RefusingProxy) -> None:
    """Past the bound /ready is 503, although the store answers its ping; once the store gives in it is 200 again."""
    until(lambda: served.ready() == 200, "readiness")
    for name in ("HGETALL", "GETRANGE"):
        proxy.refuse("NOPERM", names={name})
        until(lambda: served.ready() == 503, f"not ready without {name}")
        proxy.pass_all()
        until(lambda: served.ready() == 200, "readiness again")


GARBAGE = (b"", b"garbage", b"\xff\xfe", b"{", b"[]", b'{"id":1}', b"null", b"77\nnot a plan")


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_torn_key_row_ends_nothing_and_is_named(
    garbage: bytes, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """A row that cannot be read lets nobody in and is named in the log; the other keys live and end as before."""
    with caplog.at_level(logging.ERROR):
        served.store.hset(KEYS, b"torn-row", garbage)
        served.still_watches()
    assert "'torn-row'" in caplog.text
    assert served.keys.rows()[1] == ["torn-row"]
    with pytest.raises(StaleStore, match="torn-row"):
        served.keys.revoke("torn-row", clock=lambda: NOW_US)


def test_a_digest_that_is_none_ends_nothing(served: Served) -> None:
    """A row of the right shape whose digest is no hexadecimal counts as torn."""
    served.store.hset(KEYS, b"odd", b'{"id":"odd","name":"n","digest":"zz","roles":["admin"],"created_us":1}')
    served.still_watches()
    assert served.keys.rows()[1] == ["odd"]


@pytest.mark.parametrize("garbage", GARBAGE[1:])
def test_a_garbage_plan_ends_nothing(garbage: bytes, served: Served) -> None:
    """Answers come from the plan known; a good one is taken over once it is there."""
    secret, _ = served.keys.create("test", ["reader"], clock=lambda: NOW_US)
    until(lambda: served.status(secret) == 200, "the key")
    served.store.set(b"fs:plan:{%d:%s}" % (len(PROJECT), PROJECT.encode()), garbage)
    until(lambda: served.ready() == 503, "not ready")
    assert served.status(secret) == 200
    served.still_watches()


def test_garbage_among_switches_and_reports_ends_nothing(served: Served) -> None:
    """A switch that cannot be read stays on; a report that cannot be read is left out; both end nothing."""
    tag = b"{%d:%s}" % (len(PROJECT), PROJECT.encode())
    served.store.hset(b"fs:fallback:" + tag, b"delay", b"garbage")
    served.store.hset(b"fs:fallback:" + tag, b"\xff", b"garbage")
    served.store.hset(b"fs:users:" + tag, b"\xff", b"garbage")
    served.still_watches()
    assert list(Fallbacks(served.store, PROJECT).active()) == ["delay"]
    assert PlanUsers(served.store, PROJECT, lambda: NOW_US).behind(1 << 40)


def test_a_look_that_a_torn_row_ends_would_be_seen(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one decoder for all rows, as it was, a revoked key stays valid: the tests above can fail."""
    secret, key = served.keys.create("test", ["reader"], clock=lambda: NOW_US)
    until(lambda: served.status(secret) == 200, "the key")
    good = KeyStore.rows

    def careless(self: KeyStore) -> object:
        found = good(self)
        if found[1]:
            raise StaleStore("an API key cannot be read")
        return found

    served.store.hset(KEYS, b"torn-row", b"garbage")
    monkeypatch.setattr(KeyStore, "rows", careless)
    served.store.hdel(KEYS, key.id.encode())
    time.sleep(0.2)
    assert served.status(secret) == 200


# The worker


class Shop:
    """A topic of some events and what one worker makes of it, through a client."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.plan, self.now_us = folder, shop_plan(), START_US
        self.log = ScriptedLog()
        self.log.create(TOPIC, partitions=2, topic_id="id-1")
        rng = random.Random(3)
        for place, event in enumerate(shop_events(rng, 60, start_us=START_US)):
            self.log.append(TOPIC, place % 2, event.value, key=event.key, timestamp_us=event.arrival_us)
            self.now_us = event.arrival_us

    def clock(self) -> int:
        return self.now_us

    def run(self, client: StoreClient) -> Worker:
        worker = Worker(
            ScriptedSource(self.log, [TOPIC], max_records=25),
            ShardStore(client, self.clock),
            [RangeSink(EventLog(self.folder / "event_log"), self.clock, flush_rows=20)],
            self.plan,
            views=tuple(self.plan.views.values()),
            record=ClaimRecord(self.folder / "event_log"),
            clock=self.clock,
            new_token=iter(map(str, range(1 << 20))).__next__,
            pace=Pace(poll_ms=0),
            sleep=lambda seconds: None,
        )
        worker.run(lambda: False, until_caught_up=True)
        return worker


def state(store: StoreClient) -> dict[bytes, object]:
    """Everything the stream keeps in the store, without the epochs that count claims and the checks that hold them."""
    found: dict[bytes, object] = {}
    for key in store.scan_iter():
        if store.type(key) == b"hash":
            found[key] = {name: value for name, value in store.hgetall(key).items() if name not in (b"epoch", b"check")}
        elif store.type(key) == b"string":
            found[key] = store.get(key)
    return found


def test_the_worker_survives_a_refusal_of_each_command_and_counts_each_event_once(
    store: StoreClient, proxy: RefusingProxy, through: StoreClient, tmp_path: Path
) -> None:
    """Each command of its loop, at its first occurrences, with each code in turn: the same state as undisturbed."""
    Shop(tmp_path / "calm").run(through)
    calm, counts = state(store), dict(proxy.seen)
    assert {"EVALSHA", "MGET", "HMGET"} <= set(counts)
    tried = 0
    for name in sorted(set(counts) - {"CLIENT", "SCRIPT"}):
        for first in range(min(counts[name], 3)):
            store.flushall()
            proxy.refuse(CODES[tried % len(CODES)], names={name}, first=first, count=2)
            before = proxy.refused
            worker = Shop(tmp_path / f"run-{tried}").run(through)
            assert proxy.refused > before, name
            assert worker.counters["events"] >= 60
            assert state(store) == calm, f"{name} refused at {first}"
            tried += 1
    assert tried >= 8


def test_a_round_that_fails_unforeseen_is_tried_again_and_then_ends_the_worker(
    through: StoreClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A passing error of any kind is counted and survived; a lasting one ends the worker and names the offsets."""
    good, left = Worker.turn, [3]

    def failing(self: Worker, timeout_ms: int) -> int:
        found = good(self, timeout_ms)
        if left[0]:
            left[0] -= 1
            raise RuntimeError("nobody foresaw this")
        return found

    monkeypatch.setattr(Worker, "turn", failing)
    worker = Shop(tmp_path / "passing").run(through)
    assert worker.counters["unforeseen"] == 3
    left[0] = 1 << 30
    with pytest.raises(RuntimeError) as caught:
        Shop(tmp_path / "lasting").run(through)
    assert "stream skip" in "".join(caught.value.__notes__)


# The monitor


def test_the_monitor_survives_a_refusal_of_each_command(
    proxy: RefusingProxy, through: StoreClient, tmp_path: Path
) -> None:
    """A round through a refusing store ends with a critical finding, the next one without it."""
    plan = make_plan()
    (tmp_path / "feature_store.yaml").write_text("project: flights\n")
    place = workspace(load_settings(tmp_path, {}))
    switches = Fallbacks(through, PROJECT)
    monitor = Monitor(place, tmp_path, lambda: NOW_US, sinks=(), switches=switches)
    for code in CODES:
        proxy.refuse(code)
        monitor.round(plan)
        broken = [each for each in monitor.book.open() if each.finding.key == "broken:fallbacks"]
        assert len(broken) == 1, code
        proxy.pass_all()
        monitor.round(plan)
        assert not [each for each in monitor.book.open() if each.finding.key == "broken:fallbacks"]


def test_the_monitor_survives_an_error_of_any_kind(tmp_path: Path) -> None:
    """A step that raises what nobody foresaw is a critical finding, and the round goes on."""

    class Broken:
        def active(self) -> dict[str, Fallback]:
            raise KeyError("surprise")

        switch = clear = active

    (tmp_path / "feature_store.yaml").write_text("project: flights\n")
    monitor = Monitor(workspace(load_settings(tmp_path, {})), tmp_path, lambda: NOW_US, sinks=(), switches=Broken())
    monitor.round(make_plan())
    (found,) = [each.finding for each in monitor.book.open() if each.finding.key == "broken:fallbacks"]
    assert "KeyError" in found.detail


# The backfill


def test_a_backfill_survives_a_refusal_of_each_command(
    store: StoreClient, proxy: RefusingProxy, through: StoreClient, tmp_path: Path
) -> None:
    """Building from the event log goes on where a refusal stopped it, and ends in the same state."""
    shop = Shop(tmp_path / "shop")
    shop.run(through)
    view = shop.plan.views["user_orders"]
    replay = EventLogReplay(tmp_path / "shop" / "event_log" / TOPIC, view, from_us=None, to_us=None)

    def build(client: StoreClient, folder: Path) -> None:
        builder = Builder(
            shop.plan, view, replay, ShardStore(client, shop.clock), ClaimRecord(folder), clock=shop.clock,
            new_token=iter(map(str, range(1 << 20))).__next__,
        )  # fmt: skip
        live = shop.log.partitions_of(TOPIC)
        patiently(lambda: builder.announce(live), sleep=lambda pause_s: None)
        patiently(lambda: builder.build(replay.stretches(), live, lambda: False), sleep=lambda pause_s: None)

    store.flushall()
    proxy.seen.clear()
    build(through, tmp_path / "calm")
    calm, counts = state(store), dict(proxy.seen)
    tried = 0
    for name in sorted(set(counts) - {"CLIENT", "SCRIPT"}):
        for first in range(min(counts[name], 3)):
            store.flushall()
            before = proxy.refused
            proxy.refuse(CODES[tried % len(CODES)], names={name}, first=first, count=2)
            build(through, tmp_path / f"build-{tried}")
            assert proxy.refused > before, name
            assert state(store) == calm, f"{name} refused at {first}"
            tried += 1
    assert tried >= 5


def test_patience_has_an_end() -> None:
    """A store that refuses for longer than a command may wait ends the command with the store's own words."""
    now = [0.0]

    def step() -> None:
        now[0] += 1.0
        raise StoreRefused("refused", "NOREPLICAS")

    with pytest.raises(FeatureStoreError, match="refused"):
        patiently(step, patience_s=10, seconds=lambda: now[0], sleep=lambda pause_s: None)
    assert 10 < now[0] < 15
