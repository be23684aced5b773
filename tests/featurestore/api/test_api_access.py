"""Who is let in, with what, to do what; and what of it is kept in the audit log."""

import fcntl
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from typer.testing import CliRunner

from featurestore.api.access import ApiKeys, keys_of
from featurestore.api.audit import AuditLog
from featurestore.api.faults import Refused
from featurestore.api.gate import Gate
from featurestore.api.identity import Caller
from featurestore.api.key_store import KeyRing, KeyStore
from featurestore.api.limits import Limits
from featurestore.api.permissions import Permissions
from featurestore.api.rate import RateLimit
from featurestore.api.tokens import Tokens, token_settings
from featurestore.api.writes import Writes, appender
from featurestore.errors import ConfigurationError, FeatureStoreError, StoreUnavailable, UnknownName, UsageError
from featurestore.online.writer import RowWriter
from featurestore.plan import Permission
from featurestore.plan_store import PlanStore

GOOD = {"features": ["weather:temp_f"], "entities": {"origin": ["EWR"]}}
ROW = {"origin": ["EWR"], "temp_f": [1.0], "wind_mph": [1.0], "station": [1], "note": ["n"],
       "event_timestamp": ["2024-06-01T11:59:00Z"]}  # fmt: skip
WRITE = {"feature_view_name": "weather", "df": ROW}


@pytest.fixture
def keyed(landed, project, tmp_path: Path):
    """An API that knows stored keys only, and what made it."""
    keys = KeyStore(landed, project.name)
    gate = Gate(
        keys=ApiKeys(()),
        ring=KeyRing(keys),
        rate=RateLimit(None, monotonic_s=time.monotonic),
        audit=AuditLog(tmp_path / "audit.jsonl", lambda: project.NOW_US),
    )
    writes = lambda plan: Writes(  # noqa: E731 - one expression
        plan,
        lambda view: RowWriter(landed, plan.project, view, clock=lambda: project.NOW_US),
        appender(tmp_path),
        lambda: project.NOW_US,
        Limits(),
    )

    def create(*roles: str, **options: object) -> str:
        secret, _ = keys.create("test", roles, clock=lambda: project.NOW_US, **options)
        gate.look()
        return secret

    with project.serve(project.make_app(landed, gate=gate, writes=writes)) as client:

        def post(path: str, body: dict, key: str) -> httpx.Response:
            return client.post(path, json=body, headers={"Authorization": f"Bearer {key}"})

        log = tmp_path / "audit.jsonl"
        yield SimpleNamespace(
            keys=keys, gate=gate, create=create, post=post, client=client, path=log,
            audit=lambda: [json.loads(line) for line in log.read_text().splitlines()],
        )  # fmt: skip


def test_roles_say_what_a_key_may(keyed) -> None:
    """A reader reads, a writer writes, a producer does neither, an admin both; each refusal is 403 and says why."""
    may = {role: keyed.create(role) for role in ("reader", "writer", "producer", "admin", "made-up")}
    read = {role: keyed.post("/get-online-features", GOOD, key).status_code for role, key in may.items()}
    written = {role: keyed.post("/write-to-online-store", WRITE, key).status_code for role, key in may.items()}
    assert read == {"reader": 200, "writer": 403, "producer": 403, "admin": 200, "made-up": 403}
    assert written == {"reader": 403, "writer": 200, "producer": 403, "admin": 200, "made-up": 403}
    told = keyed.post("/write-to-online-store", WRITE, may["reader"]).json()
    assert told["code"] == "forbidden"
    assert "roles reader; none of them may write_online" in told["message"]


def test_a_key_is_stored_as_a_digest_and_ends_when_revoked(keyed, landed, project) -> None:
    """No byte of the key lies in the store; once revoked it is as good as none, and stays listed."""
    secret = keyed.create("reader")
    assert keyed.post("/get-online-features", GOOD, secret).status_code == 200
    (key,) = keyed.keys.list()
    held = b"".join(landed.hgetall(b"fs:apikeys:{7:flights}").values())
    assert secret.removeprefix("fsk_").encode() not in held
    assert keyed.post("/get-online-features", GOOD, key.digest).status_code == 401
    revoked = keyed.keys.revoke(key.id, clock=lambda: project.NOW_US + 1)
    deadline = time.monotonic() + 10
    # The application looks by itself; nobody has to tell it.
    while keyed.post("/get-online-features", GOOD, secret).status_code != 401:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert [each.revoked_us for each in keyed.keys.list()] == [project.NOW_US + 1] == [revoked.revoked_us]
    assert keyed.keys.revoke(key.id, clock=lambda: 0).revoked_us == project.NOW_US + 1
    with pytest.raises(UnknownName):
        keyed.keys.revoke("nobody", clock=lambda: 0)


def test_keys_of_two_projects_are_two_things(store) -> None:
    """A project's keys open no other project, whatever the names."""
    KeyStore(store, "ml").create("a", ["reader"], clock=lambda: 1)
    assert KeyStore(store, "team_ml").list() == []
    for wrong in ({"name": "a b"}, {"roles": []}, {"rate_per_s": 0}):
        with pytest.raises(UsageError):
            KeyStore(store, "ml").create(**{"name": "a", "roles": ["reader"], "clock": lambda: 1} | wrong)


def test_before_the_keys_are_known_nobody_gets_in() -> None:
    """A store that was away from the start answers 503, neither 200 nor 401."""

    class Away:
        def hgetall(self, name: bytes, /) -> object:
            raise StoreUnavailable("away")

        hset = hgetall

    ring = KeyRing(KeyStore(Away(), "p"))
    with pytest.raises(StoreUnavailable):
        ring.look()
    with pytest.raises(StoreUnavailable):
        ring.find("fsk_x")


def test_personal_data_needs_a_grant(keyed, landed, project) -> None:
    """Whatever the role, a pii view opens to a grant of its name or of pii; what is computed from it likewise."""
    plan = project.make_plan()
    private = msgspec.structs.replace(plan.views["weather"], tags={"pii": "yes"})
    PlanStore(landed, project.name).publish(
        msgspec.structs.replace(plan, version=2, digest="2", views=plan.views | {"weather": private})
    )
    admin, other = keyed.create("admin"), keyed.create("reader", grants=["planes"])
    deadline = time.monotonic() + 10
    while keyed.post("/get-online-features", GOOD, admin).status_code != 403:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    trip = {"features": ["trip:headwind"], "entities": {"origin": ["EWR"], "sched_hour": [1]}}
    delay = {"feature_service": "delay", "entities": {"origin": ["EWR"], "plane": [7], "sched_hour": [1]}}
    planes = {"features": ["planes:seats"], "entities": {"plane": [7]}}
    for key in (admin, other):
        assert [keyed.post("/get-online-features", body, key).status_code for body in (GOOD, trip, delay, planes)] == [
            403, 403, 403, 200,
        ]  # fmt: skip
        assert keyed.post("/write-to-online-store", WRITE, key).status_code == 403
    for grants in (["weather"], ["pii"]):
        key = keyed.create("admin", grants=grants)
        assert [keyed.post("/get-online-features", body, key).status_code for body in (GOOD, trip, delay)] == [200] * 3
        assert keyed.post("/write-to-online-store", WRITE, key).status_code == 200


def permission(name: str, **rest: object) -> Permission:
    return Permission(**({"name": name, "views": (), "services": (), "actions": ("read_online",)} | rest))


def test_feast_permissions_decide_where_there_are_any(project) -> None:
    """As in Feast: any permission about the view and the action may accept; what none is about is denied."""
    plan = msgspec.structs.replace(
        project.make_plan(),
        permissions=(
            permission("a", views=("weather",), roles=("analyst",)),
            permission("b", views=("weather",), groups=("met",)),
            permission("c", views=("planes",), everyone=True),
            permission("d", services=("delay",), namespaces=("ml",)),
        ),
    )
    rules = Permissions(plan)
    asked = {
        "weather": (["weather:temp_f"], None),
        "planes": (["planes:seats"], None),
        "trip": (["trip:headwind"], None),
        "delay": ([], "delay"),
        "pair": ([], "pair"),
    }

    def allowed(**identity: object) -> set[str]:
        caller, found = Caller(name="c", **identity), set()
        for name, (features, service) in asked.items():
            for _ in range(2):  # the second time from memory
                try:
                    rules.check_read(caller, features, service)
                    found.add(name)
                except Refused:
                    found.discard(name)
        return found

    assert allowed(roles=frozenset({"analyst"})) == {"weather", "planes"}
    assert allowed(groups=frozenset({"met"})) == {"weather", "planes"}
    assert allowed(namespaces=frozenset({"ml"})) == {"planes", "delay"}
    assert allowed(roles=frozenset({"reader"})) == {"planes"}
    assert allowed(roles=frozenset({"admin"})) == set(asked)
    with pytest.raises(Refused):
        rules.check(Caller(name="c", roles=frozenset({"analyst", "writer"})), "write_online", ["weather"])


def test_every_refusal_and_every_write_is_kept(keyed) -> None:
    """The log holds denied calls with their reason, and writes with beginning and end; reads leave no line."""
    writer = keyed.create("writer")
    keyed.post("/get-online-features", GOOD, "fsk_nobody")
    keyed.post("/get-online-features", GOOD, writer)
    assert keyed.post("/write-to-online-store", WRITE, writer).status_code == 200
    early = WRITE | {"df": ROW | {"event_timestamp": ["2025-01-01"]}}
    assert keyed.post("/write-to-online-store", early, writer).status_code == 422
    assert keyed.post("/get-online-features", GOOD, keyed.create("reader")).status_code == 200
    lines = keyed.audit()
    assert [(line["event"], line.get("status", 0)) for line in lines] == [
        ("denied", 401), ("denied", 403), ("write", 0), ("written", 0), ("write", 0), ("failed", 0),
    ]  # fmt: skip
    assert lines[0]["caller"] == "unknown"
    assert lines[0]["route"] == "/get-online-features"
    assert lines[2]["resources"] == ["weather"]
    assert "(test)" in lines[2]["caller"]
    assert "ahead of the clock" in lines[5]["detail"]
    assert writer not in keyed.path.read_text()
    assert stat.S_IMODE(keyed.path.stat().st_mode) == 0o600


def test_no_write_without_its_line(keyed) -> None:
    """Where the log cannot be written, a write is 503 and changes nothing."""
    writer, reader = keyed.create("writer"), keyed.create("reader")
    keyed.path.mkdir()
    assert keyed.post("/write-to-online-store", WRITE, writer).status_code == 503
    assert keyed.post("/get-online-features", GOOD, reader).json()["results"][1]["values"] == [39.02]


def test_a_rate_is_kept(keyed) -> None:
    """A key with a rate gets 429 with Retry-After beyond it; another key does not feel it."""
    slow, free = keyed.create("reader", rate_per_s=1.0), keyed.create("reader")
    answers = [keyed.post("/get-online-features", GOOD, slow) for _ in range(6)]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert answers[-1].headers["retry-after"] == "1"
    assert keyed.post("/get-online-features", GOOD, free).status_code == 200


def test_buckets_fill_with_time() -> None:
    """Two seconds' worth at once, then as many as the rate; each of two workers grants half."""
    now = [0.0]
    limit = RateLimit(10.0, workers=2, monotonic_s=lambda: now[0])

    def granted(tries: int) -> int:
        count = 0
        for _ in range(tries):
            try:
                limit.take("k", None)
                count += 1
            except Refused:
                continue
        return count

    assert granted(50) == 10
    now[0] = 1.0
    assert granted(50) == 5
    now[0] = 100.0
    assert granted(50) == 10


def test_web_pages_do_not_get_in_without_keys(landed, project) -> None:
    """A service without keys answers neither to another name of this machine nor to a page from elsewhere."""
    with project.serve(project.make_app(landed)) as api:
        for headers in ({"Host": "evil.example"}, {"Host": ""}, {"Host": "["}, {"Origin": "https://evil.example"}):
            assert api.post("/get-online-features", json=GOOD, headers=headers).status_code in (400, 403), headers
        own = str(api.base_url).rstrip("/")
        for headers in ({"Host": "localhost:1"}, {"Host": "[::1]:8"}, {"Origin": own}):
            assert api.post("/get-online-features", json=GOOD, headers=headers).status_code == 200, headers


ENVIRON = {
    "FEATURESTORE_OIDC_ISSUER": "https://issuer.example",
    "FEATURESTORE_OIDC_AUDIENCE": "features",
    "FEATURESTORE_OIDC_ROLES_CLAIM": "realm_access.roles",
}
CLAIMS = {"iss": "https://issuer.example", "aud": "features", "sub": "ada", "exp": 2000,
          "realm_access": {"roles": ["reader", 7]}, "groups": "a b"}  # fmt: skip
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())


def key_set(**keys: object) -> str:
    listed = []
    for kid, key in keys.items():
        algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
        name = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
        listed.append(json.loads(algorithm.to_jwk(key.public_key())) | {"kid": kid, "alg": name, "use": "sig"})
    return json.dumps({"keys": listed})


def tokens_of(path: Path, now: list[float]) -> Tokens:
    settings = token_settings(ENVIRON | {"FEATURESTORE_OIDC_JWKS": str(path)})
    tokens = Tokens(settings, now_s=lambda: now[0])
    tokens.look()
    return tokens


def signed(key: object = RSA, kid: str = "r", algorithm: str = "RS256", **claims: object) -> str:
    kept = {name: value for name, value in (CLAIMS | claims).items() if value is not None}
    return jwt.encode(kept, key, algorithm=algorithm, headers={"kid": kid})


def test_a_token_says_who_calls(tmp_path: Path) -> None:
    """Roles, groups and the subject come from the token's claims; RSA and elliptic curves alike."""
    path = tmp_path / "jwks.json"
    path.write_text(key_set(r=RSA, e=EC))
    tokens = tokens_of(path, [1000.0])
    for token in (signed(), signed(EC, "e", "ES256")):
        caller = tokens.verify(token)
        assert (caller.name, caller.roles, caller.groups) == ("token ada", {"reader"}, {"a", "b"})


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (lambda: signed(exp=900), "expired"),
        (lambda: signed(nbf=1100), "not valid yet"),
        (lambda: signed(exp=None), "exp"),
        (lambda: signed(sub=None), "sub"),
        (lambda: signed(aud="others"), "[Aa]udience"),
        (lambda: signed(iss="https://evil.example"), "[Ii]ssuer"),
        (lambda: signed(OTHER), "[Ss]ignature"),
        (lambda: signed(kid="x"), "kid"),
        (lambda: signed("a secret that is long enough for an HMAC", algorithm="HS256"), "HS256"),
        (lambda: jwt.encode(CLAIMS, None, algorithm="none", headers={"kid": "r"}), "none"),
        (lambda: "eyJ.eyJ.x", "refused"),
    ],
)
def test_wrong_tokens_are_refused(tmp_path: Path, token, said: str) -> None:
    """Expired, early, for another service, of another issuer, by another key, by a shared secret, unsigned: 401."""
    path = tmp_path / "jwks.json"
    path.write_text(key_set(r=RSA))
    with pytest.raises(Refused, match=said) as refused:
        tokens_of(path, [1000.0]).verify(token())
    assert refused.value.status == 401


def test_a_token_ends_even_if_it_was_seen_before(tmp_path: Path) -> None:
    """What was verified once is remembered until it expires, not longer."""
    path, now = tmp_path / "jwks.json", [1000.0]
    path.write_text(key_set(r=RSA))
    tokens, token = tokens_of(path, now), signed()
    tokens.verify(token)
    now[0] = 2031.0
    with pytest.raises(Refused, match="expired"):
        tokens.verify(token)


def test_a_new_key_of_the_issuer_is_found(tmp_path: Path) -> None:
    """A token of an unknown key is refused and has the set read again, not more often than every ten seconds."""
    path, now = tmp_path / "jwks.json", [1000.0]
    path.write_text(key_set(r=RSA))
    tokens = tokens_of(path, now)
    path.write_text(key_set(e=EC))
    token = signed(EC, "e", "ES256")
    with pytest.raises(Refused):
        tokens.verify(token)
    tokens.look()
    with pytest.raises(Refused):
        tokens.verify(token)
    now[0] += 11
    tokens.look()
    assert tokens.verify(token).name == "token ada"
    with pytest.raises(Refused):
        tokens.verify(signed())


def test_a_key_set_from_a_url_and_one_that_is_away() -> None:
    """The set may come over HTTP; before it was ever read tokens are 503, not let in."""
    answers = [httpx.Response(500), httpx.Response(200, text=key_set(r=RSA))]
    settings = token_settings(ENVIRON | {"FEATURESTORE_OIDC_JWKS": "https://issuer.example/jwks"})
    now = [1000.0]
    tokens = Tokens(settings, now_s=lambda: now[0], transport=httpx.MockTransport(lambda request: answers.pop(0)))
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        tokens.look()
    with pytest.raises(StoreUnavailable):
        tokens.verify(signed())
    now[0] += 11
    tokens.look()
    assert tokens.verify(signed()).roles == {"reader"}


def test_a_token_opens_the_api(landed, project, tmp_path: Path) -> None:
    """The bearer of a token reads what its roles may; keys of the environment go on beside it."""
    path = tmp_path / "jwks.json"
    path.write_text(key_set(r=RSA))
    now = [1000.0]
    gate = Gate(keys=keys_of({"FEATURESTORE_API_KEYS": "ab" * 32}), tokens=tokens_of(path, now))
    with project.serve(project.make_app(landed, gate=gate)) as api:
        for token, status in ((signed(), 200), (signed(realm_access={"roles": []}), 403), (signed(aud="x"), 401)):
            response = api.post("/get-online-features", json=GOOD, headers={"Authorization": f"Bearer {token}"})
            assert response.status_code == status


def test_token_settings_are_whole() -> None:
    """A key set without issuer and audience would accept tokens made for others."""
    with pytest.raises(ConfigurationError, match="FEATURESTORE_OIDC_AUDIENCE"):
        token_settings({"FEATURESTORE_OIDC_JWKS": "x", "FEATURESTORE_OIDC_ISSUER": "y"})


def test_the_log_says_where_it_is(tmp_path: Path) -> None:
    """A log below a file cannot be kept, and says so."""
    (tmp_path / "file").write_text("")
    log = AuditLog(tmp_path / "file" / "audit.jsonl", lambda: 0)
    with pytest.raises(FeatureStoreError, match=r"audit\.jsonl cannot be written"):
        log.record("write", caller="c", address="", route="/push")


def recorded(log: AuditLog, *details: str) -> None:
    for detail in details:
        log.record("write", caller="c", address="", route="/push", detail=detail)


def test_a_torn_line_costs_no_other(tmp_path: Path) -> None:
    """What was cut short stays, byte for byte; the next line, of whichever worker, begins on a line of its own."""
    path = tmp_path / "audit.jsonl"
    recorded(AuditLog(path, lambda: 0), "one", "two")
    torn = path.read_bytes()[:-20]
    path.write_bytes(torn)
    recorded(AuditLog(path, lambda: 0), "three")
    recorded(AuditLog(path, lambda: 0), "four")
    assert path.read_bytes().startswith(torn + b"\n")
    whole = [json.loads(line)["detail"] for line in path.read_bytes().splitlines() if line.endswith(b"}")]
    assert whole == ["one", "three", "four"]
    assert len(path.read_bytes().splitlines()) == 4


def test_a_full_disk_refuses_the_write_and_the_log_goes_on(tmp_path: Path) -> None:
    """Half a line is an error to whoever wanted it kept; once there is room again, lines are whole again."""
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, lambda: 0)
    recorded(log, "one")
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
    try:
        with pytest.raises(FeatureStoreError, match="cannot be written"):
            recorded(log, "two")
        with pytest.raises(FeatureStoreError, match="cannot be written"):
            recorded(log, "three")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    recorded(log, "four")
    lines = path.read_bytes().splitlines()
    assert [json.loads(line)["detail"] for line in (lines[0], lines[-1])] == ["one", "four"]


def test_the_log_is_only_ever_appended_to(tmp_path: Path) -> None:
    """A process that is told to write at the beginning still writes at the end; others cannot read it."""
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, lambda: 0)
    recorded(log, "one")
    before = path.read_bytes()
    os.lseek(log._file, 0, os.SEEK_SET)
    recorded(log, "two")
    assert path.read_bytes().startswith(before)
    assert fcntl.fcntl(log._file, fcntl.F_GETFL) & os.O_APPEND
    assert path.stat().st_mode & 0o777 == 0o600


def test_workers_append_beside_each_other(tmp_path: Path) -> None:
    """Two processes that write at once: every line is there and whole."""
    path, count = tmp_path / "audit.jsonl", 200
    code = (
        "import sys; from pathlib import Path; from featurestore.api.audit import AuditLog\n"
        "log = AuditLog(Path(sys.argv[1]), lambda: 0)\n"
        f"for n in range({count}): log.record('write', caller=sys.argv[2], address='', route='/push', detail='x' * n)"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "ab"]
    assert [each.wait(60) for each in running] == [0, 0]
    callers = [json.loads(line)["caller"] for line in path.read_text().splitlines()]
    assert sorted(callers) == ["a"] * count + ["b"] * count


def test_keys_from_the_command_line(online_url, store, tmp_path: Path, monkeypatch) -> None:
    """create prints the key alone on standard output, list never shows it, revoke ends it."""
    from featurestore.cli.keys import app

    monkeypatch.delenv("FEATURESTORE_REDIS_URL", raising=False)
    (tmp_path / "feature_store.yaml").write_text(f"project: p\nonline_store:\n  connection: {online_url}\n")
    run = lambda *words: CliRunner().invoke(app, [*words, "--repo", str(tmp_path)], catch_exceptions=False)  # noqa: E731
    made = run("create", "ci", "--role", "reader", "--role", "producer", "--grant", "weather", "--rate", "5")
    secret = made.stdout.strip()
    assert secret.startswith("fsk_")
    (key,) = KeyStore(store, "p").list()
    assert (key.roles, key.grants, key.rate_per_s) == (("producer", "reader"), ("weather",), 5.0)
    listed = run("list").stdout
    assert key.id in listed
    assert secret not in listed
    assert "is revoked" in run("revoke", key.id).stdout
    ring = KeyRing(KeyStore(store, "p"))
    ring.look()
    assert ring.find(secret) is None


def test_a_gate_without_rules_would_be_seen(keyed, monkeypatch) -> None:
    """With permissions left out a producer reads: the tests of roles can fail."""
    for rule in ("check", "check_action"):
        monkeypatch.setattr(Permissions, rule, lambda *_, **__: None)
    assert keyed.post("/get-online-features", GOOD, keyed.create("producer")).status_code == 200


def test_keys_that_never_end_would_be_seen(keyed, monkeypatch) -> None:
    """With a ring that forgets about revocations a revoked key still opens: the test of revocation can fail."""

    def careless(self: KeyRing) -> None:
        self._callers = {bytes.fromhex(key.digest): key.caller for key in self._store.list()}

    monkeypatch.setattr(KeyRing, "look", careless)
    secret = keyed.create("reader")
    (key,) = keyed.keys.list()
    keyed.keys.revoke(key.id, clock=lambda: 1)
    time.sleep(0.2)
    assert keyed.post("/get-online-features", GOOD, secret).status_code == 200


def test_times_that_nobody_looks_at_would_be_seen(tmp_path: Path) -> None:
    """A clock that stands still lets an expired token in: the test of expiry can fail."""
    path, now = tmp_path / "jwks.json", [1000.0]
    path.write_text(key_set(r=RSA))
    assert tokens_of(path, now).verify(signed(exp=1001)).name == "token ada"
    now[0] = 1032.0
    with pytest.raises(Refused):
        tokens_of(path, now).verify(signed(exp=1001))


def test_strangers_cannot_fill_the_disk(tmp_path: Path) -> None:
    """Refusals of callers without a credential are kept up to a rate; those left out are counted in the next line."""
    now = [0.0]
    log = AuditLog(tmp_path / "audit.jsonl", lambda: 0, monotonic_s=lambda: now[0])
    for _ in range(1000):
        log.refused_stranger(address="a", route="/push", status=401, code="unauthorized", detail="no key")
    now[0] = 10.0
    log.refused_stranger(address="a", route="/push", status=401, code="unauthorized", detail="no key")
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert len(lines) == 201
    assert lines[-1]["detail"] == "no key (800 more refusals came before it)"
