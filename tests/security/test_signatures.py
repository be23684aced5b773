"""Who can write to the online store can neither run code in the product's processes nor make keys of its API."""

import ast
import hashlib
import stat
import threading
import time
from pathlib import Path

import msgspec
import pytest
from served_project import GOOD, NOW_US, PROJECT, land, make_app, make_plan, serve

from featurestore.api.access import ApiKeys
from featurestore.api.gate import Gate
from featurestore.api.key_store import ApiKey, KeyRing, KeyStore
from featurestore.errors import ConfigurationError, StaleStore, UnknownName, Untrusted
from featurestore.online.connection import StoreClient
from featurestore.online.keys import plan_key, plans_key
from featurestore.plan_lease import plan_lease
from featurestore.plan_store import PlanStore, load_plan_file, seal, write_plan_file
from featurestore.signing import FILE_VARIABLE, KEY_FILE, VARIABLE, Signer, signer_of

OURS, THEIRS = Signer([b"o" * 32]), Signer([b"t" * 32])
PLAN = make_plan()
KEYS = f"fs:apikeys:{{{len(PROJECT)}:{PROJECT}}}".encode()
ROOT = Path(__file__).parents[2]


def with_signature(signature: bytes) -> bytes:
    """The plan with these bytes in the signature's place."""
    return b'{"signature":"' + signature + b'",' + PLAN.encode()[1:]


FORGERIES = {
    "unsigned": b"1\n" + PLAN.encode(),
    "of an earlier version": PLAN.encode(),
    "signed with another key": b"1\n" + seal(PLAN, THEIRS),
    "with another's signature": b"1\n" + with_signature(OURS.sign(b"plan", b"{}")),
    "signed as an API key": b"1\n" + with_signature(OURS.sign(b"api key", PLAN.encode())),
    "with an empty signature": b"1\n" + with_signature(b""),
    "with a signature of other bytes": b"1\n" + with_signature(b"\xff" * 64),
    "cut short": (b"1\n" + seal(PLAN, OURS))[:-20],
    "one byte changed": (b"1\n" + seal(PLAN, OURS)).replace(b"DOUBLE", b"STRING", 1),
    "under another version's number": b"7\n" + seal(PLAN, OURS),
    "without a number": b"\n" + seal(PLAN, OURS),
    "of another project": b"1\n" + seal(msgspec.structs.replace(PLAN, project="other"), OURS),
    "garbage": b"\xff\x00",
}


@pytest.mark.parametrize("how", FORGERIES)
def test_a_plan_that_nobody_signed_is_not_used(how: str, store: StoreClient) -> None:
    """It is refused by name, and the message says what helps."""
    store.set(plan_key(PROJECT), FORGERIES[how])
    with pytest.raises(Untrusted, match="run `featurestore apply`"):
        PlanStore(store, PROJECT, OURS).load()


def test_a_forged_plan_does_not_reach_the_api(store: StoreClient) -> None:
    """The plan that was served stays, and its requests are answered from it."""
    land(store)
    PlanStore(store, PROJECT, OURS).publish(PLAN)
    with serve(make_app(store, plans=PlanStore(store, PROJECT, OURS))) as api:
        assert api.post("/get-online-features", json=GOOD).status_code == 200
        evil = msgspec.structs.replace(PLAN, version=2, views={})
        store.set(plan_key(PROJECT), b"2\n" + seal(evil, THEIRS))
        time.sleep(0.3)
        assert api.get("/version").json()["plan_version"] == 1
        assert api.post("/get-online-features", json=GOOD).status_code == 200


def test_a_plan_that_was_damaged_does_not_reach_the_api(store: StoreClient) -> None:
    """Its version, its body, its end, or all of it: the plan that was served stays, and a new process has none."""
    land(store)
    PlanStore(store, PROJECT, OURS).publish(PLAN)
    sound = store.get(plan_key(PROJECT))
    assert isinstance(sound, bytes)
    body = sound.partition(b"\n")[2]
    with serve(make_app(store, plans=PlanStore(store, PROJECT, OURS))) as api:
        for held in (b"3\n" + body, b"3\n" + body[:-9] + b"X" + body[-8:], b"3\n" + body[:80], b"\xb1\n" + body, b""):
            store.set(plan_key(PROJECT), held)
            time.sleep(0.3)
            assert api.get("/version").json()["plan_version"] == 1
            assert api.post("/get-online-features", json=GOOD).status_code == 200
            with pytest.raises(StaleStore if not held else Untrusted, match="run `featurestore apply`"):
                PlanStore(store, PROJECT, OURS).load()


def test_a_forged_earlier_plan_counts_as_forgotten(store: StoreClient) -> None:
    """So does a signed one that lies under another number; the fallback of a service is then null."""
    plans = PlanStore(store, PROJECT, OURS)
    store.hset(plans_key(PROJECT), b"4", seal(msgspec.structs.replace(PLAN, version=4), THEIRS))
    store.hset(plans_key(PROJECT), b"5", seal(msgspec.structs.replace(PLAN, version=3), OURS))
    assert (plans.of(4), plans.of(5), plans.latest_remembered()) == (None, None, None)


def forged(key_id: str = "f0f0f0f0", **changes: object) -> bytes:
    """A row for the key `fsk_mine`, as somebody with the store's password would write it."""
    digest = hashlib.sha256(b"fsk_mine").hexdigest()
    row = ApiKey(id=key_id, name="x", digest=digest, roles=("admin",), grants=("pii",), created_us=NOW_US)
    return msgspec.json.encode(msgspec.structs.replace(row, **changes))


def test_a_forged_key_opens_nothing(store: StoreClient) -> None:
    """Neither unsigned, nor with the signature of another row, of another project, or of a plan."""
    keys = KeyStore(store, PROJECT, OURS)
    _, own = keys.create("reader", ["reader"], clock=lambda: NOW_US)
    row = store.hget(KEYS, own.id.encode())
    data = forged()
    rows = [
        data,
        row.partition(b"\n")[0] + b"\n" + data,
        OURS.sign(b"plan", data) + b"\n" + data,
        OURS.sign(b"api key", b"other", b"f0f0f0f0", data) + b"\n" + data,
        THEIRS.sign(b"api key", PROJECT.encode(), b"f0f0f0f0", data) + b"\n" + data,
        row,
    ]
    for each in rows:
        store.hset(KEYS, b"f0f0f0f0", each)
        ring = KeyRing(keys)
        ring.look()
        assert ring.find("fsk_mine") is None
        assert [key.id for key in keys.list()] == [own.id]


def test_a_revoked_key_does_not_come_back(store: StoreClient) -> None:
    """Its row of before the revocation is signed; a process that saw the revocation keeps to it."""
    keys = KeyStore(store, PROJECT, OURS)
    secret, key = keys.create("reader", ["reader"], clock=lambda: NOW_US)
    before = store.hget(KEYS, key.id.encode())
    ring = KeyRing(keys)
    ring.look()
    assert ring.find(secret) is not None
    keys.revoke(key.id, clock=lambda: NOW_US)
    ring.look()
    store.hset(KEYS, key.id.encode(), before)
    ring.look()
    assert ring.find(secret) is None


def test_a_key_of_an_earlier_version_is_signed_by_hand(store: StoreClient) -> None:
    """Until then it opens nothing."""
    keys = KeyStore(store, PROJECT, OURS)
    store.hset(KEYS, b"f0f0f0f0", forged(roles=("reader",), grants=()))
    assert keys.list() == []
    with pytest.raises(UnknownName, match="f0f0f0f0"):
        keys.sign("other")
    assert keys.sign("f0f0f0f0").roles == ("reader",)
    assert [key.id for key in keys.list()] == ["f0f0f0f0"]


def test_keys_are_changed_without_a_gap(store: StoreClient) -> None:
    """1. Accept both everywhere. 2. Sign with the new one. 3. Forget the old one, once all is signed again."""
    PlanStore(store, PROJECT, OURS).publish(PLAN)
    both = Signer([b"t" * 32, b"o" * 32])
    assert PlanStore(store, PROJECT, both).load() == PLAN
    PlanStore(store, PROJECT, both).publish(PLAN)
    assert PlanStore(store, PROJECT, THEIRS).load() == PLAN
    with pytest.raises(Untrusted, match=VARIABLE):
        PlanStore(store, PROJECT, OURS).load()


def test_where_the_key_comes_from(tmp_path: Path) -> None:
    """The environment, a file, or one that the data folder makes itself, of mode 0600; too short ones are refused."""
    data, file = tmp_path / "data", tmp_path / "secret"
    file.write_text("o" * 32 + "\n" + "t" * 32 + "\n")
    signed = OURS.sign(b"x")
    assert signer_of(data, {VARIABLE: "o" * 32}).accepts(signed, b"x")
    assert signer_of(data, {FILE_VARIABLE: str(file)}).accepts(THEIRS.sign(b"x"), b"x")
    assert not (data / KEY_FILE).exists()
    made = signer_of(data, {}).sign(b"x")
    assert signer_of(data, {}).accepts(made, b"x")
    assert stat.S_IMODE((data / KEY_FILE).stat().st_mode) == 0o600
    (data / KEY_FILE).chmod(0o644)
    for folder, environ in ((data, {}), (data, {VARIABLE: "short"}), (None, {}), (data, {FILE_VARIABLE: "/nowhere"})):
        with pytest.raises(ConfigurationError):
            signer_of(folder, environ)


def test_all_who_make_the_key_at_once_have_the_same(tmp_path: Path) -> None:
    """Processes that start together in an empty data folder agree."""
    made: list[bytes] = []
    threads = [threading.Thread(target=lambda: made.append(signer_of(tmp_path, {}).sign(b"x"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(made)) == 1


def test_the_plan_file_is_signed_and_private(tmp_path: Path) -> None:
    """An unsigned or changed file is refused; an older plan does not replace a later one, whatever the order."""
    path = tmp_path / "data" / "plan.json"
    write_plan_file(path, msgspec.structs.replace(PLAN, version=3), OURS)
    write_plan_file(path, msgspec.structs.replace(PLAN, version=2), OURS)
    assert load_plan_file(path, OURS).version == 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for torn in (PLAN.encode(), seal(PLAN, THEIRS), b""):
        path.write_bytes(torn)
        with pytest.raises(Untrusted, match="run `featurestore apply`"):
            load_plan_file(path, OURS)
    write_plan_file(path, PLAN, OURS)
    assert load_plan_file(path, OURS) == PLAN


def test_the_product_names_its_signer_everywhere() -> None:
    """No store of plans or keys is made without one: the tests' environment would hide it."""
    bare = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in ("featurestore", "streaming", "benchmarks")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("PlanStore", "KeyStore")
        and len(node.args) + len(node.keywords) < 3
    ]
    assert bare == []


def test_a_lease_is_held_by_one_and_ends_with_its_holder(store: StoreClient) -> None:
    """Another one waits; what is published without the lease is refused, and a dead holder's lease ends by itself."""
    plans = PlanStore(store, PROJECT, OURS)
    with plan_lease(store, PROJECT, lease_s=0.4) as lease:
        time.sleep(0.6)  # renewed meanwhile
        with pytest.raises(StaleStore, match="another `apply`"), plan_lease(store, PROJECT, wait_s=0.1):
            pass
        plans.replace_raw(b"", PLAN, lease=lease)
        with pytest.raises(StaleStore, match="took too long"):
            plans.replace_raw(plans.raw(), PLAN, lease=b"another's")
    with plan_lease(store, PROJECT, wait_s=0):
        pass
    store.set(b"fs:applying:{%d:%s}" % (len(PROJECT), PROJECT.encode()), b"dead", px=300)
    with plan_lease(store, PROJECT, wait_s=5):
        pass


def test_a_forged_key_would_be_seen(store: StoreClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """With signatures left unasked the forged key opens the API: the tests above can fail."""
    monkeypatch.setattr(Signer, "accepts", lambda *_: True)
    store.hset(KEYS, b"f0f0f0f0", OURS.sign(b"nothing") + b"\n" + forged())
    land(store)
    PlanStore(store, PROJECT, OURS).publish(PLAN)
    gate = Gate(keys=ApiKeys(()), ring=KeyRing(KeyStore(store, PROJECT, OURS)))
    with serve(make_app(store, gate=gate, plans=PlanStore(store, PROJECT, OURS))) as api:
        assert api.get("/version", headers={"X-API-Key": "fsk_mine"}).status_code == 200
