"""A plan, profile or serve log that was changed is refused by name; none of it is used. Proved by injecting faults."""

import random

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import plan_store
from featurestore.cli.main import main
from featurestore.errors import FeatureStoreError, SourceError, Untrusted
from featurestore.monitor.served import HOUR_US, Answer, ServeLog, read_served
from featurestore.online.keys import plan_key
from featurestore.online.result import Column, Status
from featurestore.plan import Projection, Service
from featurestore.plan_store import PlanStore, load_plan_file, write_plan_file
from featurestore.signing import Signer
from streaming.plan_watch import PlanWatch
from streaming.rehearsal import START_US, shop_plan
from validation.profile import store as profile_store
from validation.profile.baseline import ProfileError, baseline_of
from validation.profile.build import profile_table
from validation.profile.store import ProfileStore

FAULTS = 300


def damaged(rng, data):
    """The bytes with one bit flipped, or cut short."""
    if rng.random() < 0.75:
        changed = bytearray(data)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    return data[: rng.randrange(len(data))]


class Pulse:
    """Nobody listens."""

    def beat(self):
        pass

    def saw_plan(self):
        pass


def test_a_stored_plan_that_was_changed_is_refused(store):
    """Wherever a bit changed, and however much is left: no process gets a plan, and a message says what helps."""
    plan, rng = shop_plan(), random.Random(1)
    PlanStore(store, "shop").publish(plan)
    sound = store.get(plan_key("shop"))
    for _ in range(FAULTS):
        store.set(plan_key("shop"), damaged(rng, sound) or b"\n")
        with pytest.raises(FeatureStoreError, match=r"plan .*'shop' in the online store .*featurestore apply"):
            PlanStore(store, "shop").load()
    store.delete(plan_key("shop"))
    with pytest.raises(FeatureStoreError, match=r"no plan of project 'shop'; run `featurestore apply`"):
        PlanStore(store, "shop").load()


def test_a_plan_file_that_was_changed_is_refused(tmp_path):
    """The same of the file that joins and commands go by."""
    path, rng = tmp_path / "plan.json", random.Random(2)
    write_plan_file(path, shop_plan())
    sound = path.read_bytes()
    for _ in range(FAULTS):
        path.write_bytes(damaged(rng, sound))
        with pytest.raises(Untrusted, match=r"plan\.json .*featurestore apply"):
            load_plan_file(path)
    path.unlink()
    with pytest.raises(FeatureStoreError, match=r"no plan at .*plan\.json; run `featurestore apply`"):
        load_plan_file(path)


def test_without_its_signature_a_changed_plan_is_used(tmp_path, monkeypatch):
    """The faults do reach who reads a plan where nothing stands in their way."""
    path, plan = tmp_path / "plan.json", shop_plan()
    write_plan_file(path, plan)
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":3', 1))
    monkeypatch.setattr(Signer, "accepts", lambda self, signature, *parts: True)
    assert plan_store.load_plan_file(path) != plan


@pytest.mark.parametrize("how", ["version", "body", "cut", "gone"])
def test_a_running_worker_stays_with_the_plan_that_it_has(store, how):
    """One that was changed, or is gone, is never gone over to."""
    plan, plans = shop_plan(), PlanStore(store, "shop")
    plans.publish(plan)
    seconds = iter(range(0, 1_000, 10))
    failed = []
    watch = PlanWatch(
        plans,
        plan,
        views_of=lambda plan: tuple(plan.views.values()),
        sinks_of=lambda plan, views: (),
        seconds=lambda: next(seconds),
        pulse=Pulse(),
        stop=lambda: False,
        failed=lambda: failed.append(how),
    )
    sound = store.get(plan_key("shop"))
    if how == "gone":
        store.delete(plan_key("shop"))
    else:
        head, _, body = sound.partition(b"\n")
        forms = {
            "version": b"7\n" + body,
            "body": head + b"\n" + body[:-9] + b"X" + body[-8:],
            "cut": b"7\n" + body[:99],
        }
        store.set(plan_key("shop"), forms[how])
    assert [watch.news() for _ in range(3)] == [None, None, None]
    assert not watch.moved
    assert bool(failed) == (how in {"version", "cut"})  # else no other version is there to be looked at


@pytest.fixture
def repo(tmp_path, online_url, store):
    """A repo with a plan in force."""
    folder = tmp_path / "feature_repo"
    folder.mkdir()
    text = f"project: shop\nregistry: ../data/registry.db\nonline_store:\n  connection: {online_url}\n"
    (folder / "feature_store.yaml").write_text(text)
    write_plan_file(tmp_path / "data" / "plan.json", shop_plan())
    PlanStore(store, "shop").publish(shop_plan())
    return folder


@pytest.mark.parametrize("where", ["store", "file"])
def test_commands_name_the_plan_that_was_changed(repo, store, capfd, where):
    """`doctor` says no to it, and a command that needs it ends with one line that says what helps."""
    path = repo.parent / "data" / "plan.json"
    if where == "store":
        store.set(plan_key("shop"), store.get(plan_key("shop"))[:-5] + b"X]}}}")
        command = ["stream", "status", "--repo", str(repo)]
    else:
        path.write_bytes(path.read_bytes()[:-5] + b"X]}}}")
        command = ["verify", "user_orders", "--repo", str(repo)]
    assert main(command) in {1, 2}
    told = capfd.readouterr().err
    assert "run `featurestore apply`" in told
    assert "bug" not in told
    assert main(["doctor", "--repo", str(repo)]) == 1
    told = " ".join(capfd.readouterr().out.split())
    assert "torn" in told
    assert "not looked at: rows, tiles and files" in told


def profiled():
    rng = np.random.default_rng(0)
    return pa.table({"x": rng.normal(size=500), "s": [f"c{n % 7}" for n in range(500)]})


def test_a_profile_and_a_baseline_that_were_changed_are_refused(tmp_path):
    """Both name their file; no drift is measured against what they hold."""
    rows, rng, profiles = profiled(), random.Random(3), ProfileStore(tmp_path)
    baseline = baseline_of(rows)
    path = profiles.put("source", profile_table(rows, baseline), boundary="offline", baseline=baseline)
    assert profiles.baseline(baseline.id) == baseline
    base = tmp_path / "baselines" / f"{baseline.id}.json"
    for file, read in ((path, lambda: profiles.of_file(path)), (base, lambda: profiles.baseline(baseline.id))):
        sound = file.read_bytes()
        for _ in range(FAULTS):
            file.write_bytes(damaged(rng, sound))
            with pytest.raises(ProfileError, match=file.name):
                read()
        file.write_bytes(sound)
        assert read()


def answer():
    plan = shop_plan()
    service = Service(
        name="shop",
        projections=(Projection(view="user_orders", features=("amount_count_24h",)),),
        tags={"audit_rate": "1"},
    )
    plan = msgspec.structs.replace(plan, services={"shop": service})
    users = list(range(20))
    column = Column(
        view="user_orders", feature="amount_count_24h", dtype="INT64", held=pa.array(users, pa.int64()),
        statuses=np.full(20, Status.PRESENT, np.uint8), event_us=np.full(20, START_US),
        instant_us=np.full(20, START_US),
    )  # fmt: skip
    return Answer(
        plan=plan, service="shop", requested_us=START_US, reads=service.projections, read=(column,),
        keys={"user_id": users}, request={}, given={("user_orders", "amount_count_24h"): users},
    )  # fmt: skip


def test_a_serve_log_that_was_changed_is_refused(tmp_path):
    """An audit of skew names the file; what it holds is blamed on nobody."""
    log = ServeLog(tmp_path, lambda: START_US, writer="w")
    log.add(answer())
    log.flush()
    [path] = tmp_path.rglob("*.parquet")

    def read():
        return list(read_served(tmp_path, START_US - HOUR_US, START_US + HOUR_US))

    [(_, table)] = read()
    assert len(table) == 20
    sound, rng = path.read_bytes(), random.Random(4)
    for _ in range(FAULTS):
        path.write_bytes(damaged(rng, sound))
        with pytest.raises(SourceError, match=path.name):
            read()


@pytest.mark.parametrize("kind", ["profile", "serve log"])
def test_without_its_check_a_changed_file_is_read(tmp_path, monkeypatch, kind):
    """The faults do reach who reads the files where nothing stands in their way."""
    rng = random.Random(5)
    if kind == "profile":
        monkeypatch.setattr(profile_store, "damage", lambda path: None)
        rows, profiles = profiled(), ProfileStore(tmp_path)
        baseline = baseline_of(rows)
        path = profiles.put("source", profile_table(rows, baseline), boundary="offline", baseline=baseline)
    else:
        monkeypatch.setattr("featurestore.monitor.served.damage", lambda path: None)
        log = ServeLog(tmp_path, lambda: START_US, writer="w")
        log.add(answer())
        log.flush()
        [path] = tmp_path.rglob("*.parquet")
    sound, table, taken = path.read_bytes(), pq.read_table(path), 0
    for _ in range(100):
        path.write_bytes(damaged(rng, sound))
        try:
            if kind == "profile":
                profiles.of_file(path)
            else:
                list(read_served(tmp_path, START_US - HOUR_US, START_US + HOUR_US))
            taken += not pq.read_table(path).equals(table)
        except Exception:  # noqa: BLE001 - whatever a reader of Parquet raises
            pass
    assert taken
