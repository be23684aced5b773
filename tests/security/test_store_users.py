"""The users of the online store that docs/security.md gives: each can do its work, and the API cannot write trust."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from served_project import GOOD, NOW_US, PROJECT, land, make_app, make_plan, serve

from featurestore.api.access import ApiKeys
from featurestore.api.gate import Gate
from featurestore.api.key_store import KeyRing, KeyStore
from featurestore.api.limits import Limits
from featurestore.api.writes import Writes, appender
from featurestore.clock import system_clock
from featurestore.config import OnlineSettings
from featurestore.errors import StoreUnavailable
from featurestore.online.connection import StoreClient, connect
from featurestore.online.keys import fallback_key, plan_key, plans_key
from featurestore.online.server import EmbeddedServer
from featurestore.online.writer import RowWriter
from featurestore.plan_lease import plan_lease
from featurestore.plan_store import PlanStore
from featurestore.plan_users import PlanUsers
from featurestore.signing import Signer

GUIDE = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
LINES = {
    name: rest.split() for name, rest in re.findall(r"^user (apply|worker|api) (on >PASSWORD .*)$", GUIDE, re.MULTILINE)
}
KEYS = f"fs:apikeys:{{{len(PROJECT)}:{PROJECT}}}".encode()
SIGNER = Signer([b"k" * 32])
ROW = {"origin": ["EWR"], "temp_f": [1.0], "wind_mph": [1.0], "station": [1], "note": ["n"],
       "event_timestamp": ["2024-06-01T11:59:00Z"]}  # fmt: skip


@pytest.fixture
def users(tmp_path: Path) -> Iterator[dict[str, StoreClient]]:
    """Clients of a store that has the guide's users, by name."""
    with EmbeddedServer(tmp_path) as server:
        admin = connect(OnlineSettings(url=f"unix://{server.address}"), tmp_path)
        for name, words in LINES.items():
            admin.execute_command("ACL", "SETUSER", name, "reset", *words)
        made = {
            name: connect(OnlineSettings(url=f"unix://{name}@{server.address}?password=PASSWORD"), tmp_path)
            for name in LINES
        }
        yield made
        for client in (*made.values(), admin):
            client.close()


def test_each_user_can_do_its_work(users: dict[str, StoreClient], tmp_path: Path) -> None:
    """`apply` publishes and makes keys, the API serves and writes rows, the worker puts a later plan in force."""
    assert set(users) == {"apply", "worker", "api"}
    secret, _ = KeyStore(users["apply"], PROJECT, SIGNER).create("k", ["admin"], clock=lambda: NOW_US)
    with plan_lease(users["apply"], PROJECT) as lease:
        PlanStore(users["apply"], PROJECT, SIGNER).replace_raw(b"", make_plan(), lease=lease)
    land(users["apply"])
    api = users["api"]
    app = make_app(
        api,
        plans=PlanStore(api, PROJECT, SIGNER),
        gate=Gate(keys=ApiKeys(()), ring=KeyRing(KeyStore(api, PROJECT, SIGNER))),
        writes=lambda plan: Writes(
            plan,
            lambda view: RowWriter(api, plan.project, view, clock=lambda: NOW_US),
            appender(tmp_path),
            lambda: NOW_US,
            Limits(),
        ),
        users=PlanUsers(api, PROJECT, system_clock()),
    )
    with serve(app) as client:
        headers = {"X-API-Key": secret}
        assert client.post("/get-online-features", json=GOOD, headers=headers).status_code == 200
        body = {"feature_view_name": "weather", "df": ROW}
        assert client.post("/write-to-online-store", json=body, headers=headers).status_code == 200
        assert client.get("/ready").status_code == 200
    plans = PlanStore(users["worker"], PROJECT, SIGNER)
    plans.replace(plans.load(), make_plan(2))
    assert PlanStore(api, PROJECT, SIGNER).load().version == 2


def test_the_api_cannot_write_what_is_trusted(users: dict[str, StoreClient]) -> None:
    """Neither plan, former plans, keys nor fallbacks, by no command and no script; nor administer the server."""
    api = users["api"]
    PlanStore(users["apply"], PROJECT, SIGNER).publish(make_plan())
    for words in (
        ("SET", plan_key(PROJECT), b"x"),
        ("DEL", plan_key(PROJECT)),
        ("RENAME", plan_key(PROJECT), b"fs:row:{x}"),
        ("COPY", b"fs:row:{x}", plan_key(PROJECT)),
        ("EXPIRE", plan_key(PROJECT), 1),
        ("EVAL", "redis.call('SET', KEYS[1], 'x')", 1, plan_key(PROJECT)),
        ("EVAL", f"redis.call('SET', '{plan_key(PROJECT).decode()}', 'x')", 0),
        ("HSET", plans_key(PROJECT), b"1", b"x"),
        ("HSET", KEYS, b"x", b"x"),
        ("HDEL", KEYS, b"x"),
        ("HSET", fallback_key(PROJECT), b"x", b"x"),
        ("FLUSHALL",),
        ("CONFIG", "SET", "dir", "/tmp"),
        ("ACL", "SETUSER", "api", "allkeys"),
        ("DEBUG", "SLEEP", "0"),
        ("KEYS", "*"),
        ("GET", b"another:application"),
    ):
        with pytest.raises(StoreUnavailable):
            api.execute_command(*words)
    assert PlanStore(api, PROJECT, SIGNER).load() == make_plan()


def test_the_worker_has_nothing_to_do_with_keys(users: dict[str, StoreClient]) -> None:
    """It neither reads nor writes them."""
    for words in (("HGETALL", KEYS), ("HSET", KEYS, b"x", b"x")):
        with pytest.raises(StoreUnavailable):
            users["worker"].execute_command(*words)
