"""What is stored and changed is without effect, or refused by name; it is never served. Proved by injecting faults."""

import collections
import os
import random
import struct
import time

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.aggregation import slot_check
from featurestore.aggregation.errors import TornTiles
from featurestore.cli.main import main
from featurestore.config import load_settings
from featurestore.errors import StaleStore
from featurestore.online import row_check, scalar
from featurestore.online.keys import Shard, loaded_key, shards_key
from featurestore.online.loaded import Loaded, LoadedStore
from featurestore.online.reader import OnlineReader
from featurestore.online.writer import RowWriter
from featurestore.plan import Field, JoinKey, Projection, Source, View
from featurestore.plan_store import PlanStore, write_plan_file
from streaming.claim_record import ClaimRecord
from streaming.commit import Commit, ShardStore, StateDamaged
from streaming.history_run import HistoryRun
from streaming.integrity import examine_event_log, examine_store
from streaming.rehearsal import START_US, TOPIC, shop_event, shop_events, shop_plan
from streaming.sinks import EventLog, RangeSink
from streaming.source.records import OffsetBeyondEnd
from streaming.source.scripted import ScriptedLog, ScriptedSource
from streaming.verify import verify_online
from streaming.verify_latest import verify_latest_online
from streaming.worker import Pace, Worker
from validation.errors import PlatformError

USERS = list(range(40))
CITIES = ["Rome", "Oslo", "Lima"]


def facts_view():
    return View(
        name="facts",
        version=1,
        kind="latest",
        join_keys=(JoinKey(entity="user", name="user_id", dtype="INT64"),),
        features=(Field(name="rate", dtype="DOUBLE"), Field(name="visits", dtype="INT64")),
        ttl_us=0,
        source=Source(name="facts", path="facts.parquet", timestamp_field="at"),
    )


def places_view():
    view = facts_view()
    features = (Field(name="city", dtype="STRING"), Field(name="rate", dtype="DOUBLE"))
    source = msgspec.structs.replace(view.source, name="places", path="places.parquet")
    return msgspec.structs.replace(view, name="places", features=features, source=source)


class Deployment:
    """Windows of a topic with event ids, two views of latest values, and the files behind them."""

    def __init__(self, client, folder, events=250):
        self.client, self.folder = client, folder
        plan = shop_plan(contract=False)
        [orders] = plan.views.values()
        topic = msgspec.structs.replace(orders.source.topic, event_id_horizon_us=60_000_000)
        orders = msgspec.structs.replace(orders, source=msgspec.structs.replace(orders.source, topic=topic))
        views = {view.name: view for view in (orders, facts_view(), places_view())}
        self.plan = msgspec.structs.replace(plan, views=views)
        self.log = ScriptedLog()
        self.log.create(TOPIC, partitions=2, topic_id="id-1")
        rng, self.now_us = random.Random(0), START_US
        for number, event in enumerate(shop_events(rng, events, start_us=self.now_us)):
            value = shop_event(rng, number, event.arrival_us, 20)
            self.log.append(TOPIC, number % 2, value, key=event.key, timestamp_us=event.arrival_us)
            self.now_us = event.arrival_us
        self.worker().run(lambda: False, until_caught_up=True)
        at = pa.array([START_US - n for n in USERS], pa.timestamp("us", "UTC"))
        facts = pa.table({"user_id": USERS, "rate": [n / 7 for n in USERS], "visits": [n * n for n in USERS], "at": at})
        places = pa.table(
            {"user_id": USERS, "city": [CITIES[n % 3] for n in USERS], "rate": [n / 3 for n in USERS], "at": at}
        )
        for name, rows in (("facts", facts), ("places", places)):
            pq.write_table(rows, folder / f"{name}.parquet")
            RowWriter(client, "shop", views[name], clock=self.clock).write(rows, event_timestamp="at")
        self.facts = facts

    def clock(self):
        return self.now_us

    def worker(self):
        return Worker(
            ScriptedSource(self.log, [TOPIC], max_records=37),
            ShardStore(self.client, self.clock),
            [RangeSink(EventLog(self.folder / "event_log"), self.clock, flush_rows=50)],
            self.plan,
            views=(self.plan.views["user_orders"],),
            record=ClaimRecord(self.folder / "event_log"),
            clock=self.clock,
            new_token=lambda: "token",
            pace=Pace(poll_ms=0),
            sleep=lambda seconds: None,
        )

    def read(self):
        """Every value that is served, or the error that refuses to."""
        reader = OnlineReader(self.client, self.plan, self.clock)
        told = {}
        try:
            for view in self.plan.views.values():
                projection = Projection(view=view.name, features=tuple(field.name for field in view.features))
                for users in (USERS, USERS[:2]):
                    for column in reader.read([projection], {"user_id": users}).columns:
                        told[view.name, column.feature, len(users)] = (
                            repr(column.to_python()),
                            column.statuses.tolist(),
                            column.instant_us.tolist(),
                        )
        except PlatformError as error:
            return str(error)
        return told

    def found(self):
        """What `verify --online` has to say of all views; empty where all is well."""
        store = ShardStore(self.client, self.clock)
        told = []
        try:
            told += [each.what for each in examine_event_log(self.folder / "event_log" / TOPIC)]
            for view in self.plan.views.values():
                told += [each.what for each in examine_store(self.client, store, self.plan, view)]
            for view in self.plan.views.values():
                compare = verify_online if view.kind == "windowed" else verify_latest_online
                compared = compare(self.plan, view, self.client, repo=self.folder, clock=self.clock, keys=1_000)
                told += [repr(each) for each in compared.differences]
        except PlatformError as error:
            told.append(str(error))
        return told


@pytest.fixture
def deployment(store, tmp_path):
    return Deployment(store, tmp_path)


def damaged(rng, data):
    """The bytes with one bit flipped, or cut short; and which it was."""
    if rng.random() < 0.75 or len(data) < 2:
        changed = bytearray(data)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed), "flip"
    return data[: rng.randrange(1, len(data))], "truncation"


def inject(rng, made):
    """One fault in what is stored: what it was, whether it lies about state itself, and how to undo it."""
    client = made.client
    if rng.random() < 0.2:
        files = sorted((made.folder / "event_log" / TOPIC).rglob("*.parquet"))
        path = rng.choice(files)
        whole = path.read_bytes()
        changed, kind = damaged(rng, whole)
        path.write_bytes(changed)
        return f"{kind} of an event log file", True, lambda: path.write_bytes(whole)
    prefix = rng.choice([b"fs:tile:", b"fs:tile:", b"fs:row:", b"fs:row:", b"fs:ctl:", b"fs:shards:", b"fs:seen:"])
    key = rng.choice(sorted(key for key in client.scan_iter(match="fs:*") if key.startswith(prefix)))
    kept = client.dump(key)

    def undo():
        client.restore(key, 0, kept, replace=True)

    hashed = prefix in (b"fs:ctl:", b"fs:seen:")
    name = prefix.decode()
    if rng.random() < 0.15:
        client.delete(key)
        return f"deletion of {name}", hashed, undo
    if hashed:
        field = rng.choice(sorted(field for field, value in client.hgetall(key).items() if value))
        changed, kind = damaged(rng, client.hget(key, field))
        client.hset(key, field, changed)
        return f"{kind} in {name}", True, undo
    changed, kind = damaged(rng, client.get(key))
    client.set(key, changed)
    return f"{kind} in {name}", False, undo


def judge(made, seed, faults):
    """Inject so many faults, one after the other; how many of each kind were refused, found or without effect."""
    rng = random.Random(seed)
    sound = made.read()
    assert not isinstance(sound, str)
    assert made.found() == []
    outcomes = collections.Counter()
    for number in range(faults):
        what, lies, undo = inject(rng, made)
        told = made.read()
        if isinstance(told, str):
            assert told
            outcome = "refused by the read"
        elif told != sound or lies:
            assert made.found(), (seed, number, what)
            outcome = "found by verify"
        else:
            outcome = "without effect"
        outcomes[what, outcome] += 1
        undo()
    assert made.read() == sound
    return outcomes


def test_injected_faults_are_never_served(deployment):
    """Bit flips, deletions and truncations of all that is stored: a few of what runs at night."""
    outcomes = judge(deployment, seed=1, faults=60)
    assert {outcome for _, outcome in outcomes} >= {"refused by the read", "found by verify"}


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("seed", "faults"), [(2, 1_000), (3, 500)])
def test_many_injected_faults_are_never_served(deployment, seed, faults):
    """Seeded, so that one that is served can be looked at."""
    outcomes = judge(deployment, seed, faults)
    for (what, outcome), count in sorted(outcomes.items()):
        print(f"{what:35} {outcome:20} {count:5}")


@pytest.mark.parametrize("seam", ["rows", "slots", "control"])
def test_without_its_check_a_fault_is_served(deployment, monkeypatch, seam):
    """The faults that are injected do reach readers and workers where nothing stands in their way."""
    client = deployment.client
    if seam == "rows":
        monkeypatch.setattr(scalar, "sound", lambda row: True)
        monkeypatch.setattr(row_check, "sound", lambda data: True)
        key = min(client.scan_iter(match="fs:row:*facts*"))
        sound = deployment.read()
        row = bytearray(client.get(key))
        row[27] ^= 1
        client.set(key, bytes(row))
        assert deployment.read() != sound
    elif seam == "slots":
        monkeypatch.setattr(slot_check, "damaged", lambda slots, check: 0)
        key = min(client.scan_iter(match="fs:tile:*:-1:*"))
        sound = deployment.read()
        head = bytearray(client.get(key))
        head[32] ^= 1  # the first of what it keeps of a column
        client.set(key, bytes(head))
        assert deployment.read() != sound
    else:
        shard = Shard("shop", "user_orders", 1, "id-1", 0)
        client.hset(shard.control_key, "watermark", "5")
        with pytest.raises(StateDamaged, match="check does not match"):
            ShardStore(client, deployment.clock).control(shard)


def test_a_head_that_is_dated_weeks_ahead_is_refused(deployment):
    """One bit of a head's newest event time: no window may be read 51 days from now."""
    key = min(deployment.client.scan_iter(match="fs:tile:*:-1:*"))
    head = bytearray(deployment.client.get(key))
    [newest] = struct.unpack_from("<q", head, 16)
    struct.pack_into("<q", head, 16, newest ^ (1 << 42))
    deployment.client.set(key, bytes(head))
    refused = deployment.read()
    assert isinstance(refused, str)
    assert "view 'user_orders'" in refused
    assert any("fs:tile:" in line for line in deployment.found())


def test_a_sound_tile_from_beyond_the_clock_is_refused(deployment):
    """A check proves what was written, not that it may be: an event far ahead of now is refused all the same."""
    deployment.now_us -= 3_600_000_000
    refused = deployment.read()
    assert isinstance(refused, str)
    assert "after now" in refused


def test_a_damaged_row_is_written_again_by_the_next_load(deployment):
    """One that would win for ever, being dated ahead, gives way to what its writer knows."""
    sound = deployment.read()
    key = min(deployment.client.scan_iter(match="fs:row:*facts*"))
    row = bytearray(deployment.client.get(key))
    row[0] ^= 0x40  # years ahead
    deployment.client.set(key, bytes(row))
    assert isinstance(deployment.read(), str)
    view = deployment.plan.views["facts"]
    written = RowWriter(deployment.client, "shop", view, clock=deployment.clock).write(
        deployment.facts, event_timestamp="at"
    )
    assert written.written >= 1
    assert deployment.read() == sound


def test_state_of_another_format_is_refused_by_name(deployment):
    """A store that another version wrote: list, control hash and rows say what to do, none is merged."""
    client = deployment.client
    key = shards_key("shop", "user_orders", 1)
    client.set(key, client.get(key).split(b" ", 2)[2])
    refused = deployment.read()
    assert "not of format 2" in refused
    assert "featurestore stream rebuild" in refused
    shard = Shard("shop", "user_orders", 1, "id-1", 0)
    client.hdel(shard.control_key, "check")
    with pytest.raises(StateDamaged, match=r"another format.*stream rebuild"):
        ShardStore(client, deployment.clock).claim(shard, token="t", plan_version=1)


def test_an_offset_beyond_the_end_of_the_log_stops_the_worker(deployment):
    """A topic that was truncated: what is produced next would be taken for what counted already."""
    store = ShardStore(deployment.client, deployment.clock)
    shard = Shard("shop", "user_orders", 1, "id-1", 0)
    ahead = store.claim(shard, token="t", plan_version=1)
    store.commit(
        [
            Commit(
                claim=ahead,
                writes=(),
                offset=ahead.offset + 1_000,
                watermark_us=ahead.watermark_us,
                complete_from_us=ahead.complete_from_us,
                plan_version=1,
            )
        ]
    )
    with pytest.raises(OffsetBeyondEnd, match=r"truncated.*stream rebuild"):
        deployment.worker().run(lambda: False, until_caught_up=True)


def test_how_far_a_view_is_loaded_is_not_believed_where_it_is_damaged(store):
    """A run that goes on from a wrong instant would leave rows out."""
    loaded = LoadedStore(store, "shop")
    loaded.put("facts", Loaded(start_us=0, end_us=50))
    assert loaded.of("facts") == Loaded(start_us=0, end_us=50)
    held = bytearray(store.get(loaded_key("shop", "facts")))
    held[-3] ^= 1
    store.set(loaded_key("shop", "facts"), bytes(held))
    with pytest.raises(StaleStore, match="'facts'"):
        loaded.of("facts")


def test_every_bit_of_a_row_and_of_a_slot_is_checked():
    """No bit of either can be another without being noticed."""
    [row] = row_check.sealed([bytes(range(90))])
    for bit in range(len(row) * 8):
        changed = bytearray(row)
        changed[bit // 8] ^= 1 << bit % 8
        assert not row_check.sound(bytes(changed))
    slots = slot_check.seal(np.frombuffer(bytes(range(80)), "V40").copy(), 2)
    for bit in range(80 * 8):
        changed = bytearray(slots.tobytes())
        changed[bit // 8] ^= 1 << bit % 8
        assert slot_check.damaged(np.frombuffer(bytes(changed), "V40"), 2) == 1


def test_rows_together_are_checked_as_each_alone():
    """One call over rows of any lengths finds what a call for each would."""
    rng = random.Random(0)
    rows = row_check.sealed([rng.randbytes(rng.randrange(1, 200)) for _ in range(100)])
    assert row_check.all_sound(rows)
    for _ in range(200):
        changed = [bytearray(row) for row in rows]
        row = changed[rng.randrange(len(rows))]
        row[rng.randrange(len(row))] ^= 1 << rng.randrange(8)
        assert not row_check.all_sound([*map(bytes, changed)])


def test_tiles_that_are_torn_name_their_view(deployment):
    """Whoever is refused learns which view it is."""
    key = min(deployment.client.scan_iter(match="fs:tile:*"))
    deployment.client.set(key, deployment.client.get(key)[:-8])
    reader = OnlineReader(deployment.client, deployment.plan, deployment.clock)
    with pytest.raises(TornTiles, match="view 'user_orders', version 1"):
        reader.read([Projection(view="user_orders", features=("amount_count_24h",))], {"user_id": USERS})


@pytest.fixture
def repo(deployment, online_url, tmp_path, monkeypatch):
    """The deployment as a repo that commands work on, at the instant of its newest event."""
    text = f"project: shop\nregistry: registry.db\nonline_store:\n  connection: {online_url}\n"
    (tmp_path / "feature_store.yaml").write_text(text)
    PlanStore(deployment.client, "shop").publish(deployment.plan)
    write_plan_file(tmp_path / "plan.json", deployment.plan)
    monkeypatch.setenv("FEATURESTORE_CLOCK_OFFSET_S", str(deployment.now_us / 1e6 - time.time()))
    return tmp_path


@pytest.mark.parametrize(("view", "prefix"), [("user_orders", "fs:tile:"), ("facts", "fs:row:"), ("places", "fs:row:")])
def test_the_command_names_what_is_damaged(deployment, repo, capfd, view, prefix):
    """`verify VIEW --online`: 0 for a sound store, 1 and the key for one where a bit changed."""
    command = ["verify", view, "--online", "--repo", str(repo)]
    assert main(command) == 0, capfd.readouterr()
    capfd.readouterr()
    key = min(key for key in deployment.client.scan_iter(match=f"{prefix}*") if view.encode() in key)
    changed = bytearray(deployment.client.get(key))
    changed[len(changed) // 2] ^= 4
    deployment.client.set(key, bytes(changed))
    assert main(command) == 1
    assert repr(key) in "".join(capfd.readouterr())


def test_the_state_of_a_stream_is_told_without_vouching_for_it(deployment, repo, capfd):
    """`stream status` reads no tile: it says so, where one is damaged as where none is."""
    key = min(deployment.client.scan_iter(match="fs:tile:*"))
    deployment.client.set(key, deployment.client.get(key)[:-3])
    main(["stream", "status", "--repo", str(repo)])
    assert "not looked at: rows, tiles and files" in capfd.readouterr().out


def test_damaged_shards_are_removed_before_a_rebuild(deployment, repo, capfd):
    """The shard of a damaged tile goes whole, and is made again; the other stays as it is."""
    client, view = deployment.client, deployment.plan.views["user_orders"]
    shards = [Shard("shop", "user_orders", 1, "id-1", partition) for partition in (0, 1)]
    kept = {shard: sorted(client.scan_iter(match=f"fs:*{shard.tag}*")) for shard in shards}
    key = min(key for key in kept[shards[0]] if key.startswith(b"fs:tile:"))
    client.set(key, client.get(key)[:-8])
    HistoryRun(load_settings(repo, os.environ))._remove_damaged(deployment.plan, view)
    assert "partition 0 is made again" in capfd.readouterr().err
    store = ShardStore(client, deployment.clock)
    assert store.control(shards[0]) is None
    assert not any(key.startswith(b"fs:tile:") for key in client.scan_iter(match=f"fs:*{shards[0].tag}*"))
    assert sorted(client.scan_iter(match=f"fs:*{shards[1].tag}*")) == kept[shards[1]]
    assert store.control(shards[1]) is not None
