"""Does each producer see the violations that are its own, all of them and no others, as JSON and as a page?"""

import json
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import msgspec
import pytest

from featurestore.api import violation_routes
from featurestore.api.access import ApiKeys
from featurestore.api.audit import AuditLog
from featurestore.api.gate import Gate
from featurestore.api.key_store import KeyRing, KeyStore
from featurestore.errors import UsageError
from validation.contract import Column
from validation.testing import ORDERS, SMALL, small_report
from validation.violations import ViolationStore

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)


def fill(store: ViolationStore) -> None:
    """Ten violations of the fares team, three of the weather team, each told of once; the later the day the newer."""
    for day in range(1, 14):
        producer = "fares" if day <= 10 else "weather"
        contract = msgspec.structs.replace(ORDERS, name=f"{producer}-contract", source=producer, owner=producer)
        report = small_report(SMALL, contract)[1]
        created = f"2024-05-{day:02}T00:00:00+00:00"
        store.record(
            msgspec.structs.replace(report, report_id=f"r{day}", created=created, origin=f"f{day}", origin_range=(0, 9))
        )


@pytest.fixture
def shown(landed, project, tmp_path: Path):
    """An API over these violations, and keys to it."""
    keys = KeyStore(landed, project.name)
    audit = AuditLog(tmp_path / "audit.jsonl", lambda: project.NOW_US)
    gate = Gate(keys=ApiKeys(()), ring=KeyRing(keys), audit=audit)
    store = ViolationStore(tmp_path / "violations")
    fill(store)

    def create(*roles: str, **options: object) -> str:
        secret, _ = keys.create("test", roles, clock=lambda: project.NOW_US, **options)
        gate.look()
        return secret

    with project.serve(project.make_app(landed, gate=gate, violations=store)) as client:

        def get(path: str, key: str, **headers: str):
            return client.get(path, headers={"Authorization": f"Bearer {key}", **headers})

        yield SimpleNamespace(get=get, create=create, store=store, client=client, keys=keys, folder=tmp_path)


def listed(answer) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [one["source"] for one in answer.json()["violations"]]


def test_a_producer_sees_its_own_and_no_others(shown) -> None:
    """In the list, by name, and by id: what is another's does not exist for it."""
    key = shown.create("producer", producers=["fares"])
    assert listed(shown.get("/violations", key)) == ["fares"] * 10
    assert listed(shown.get("/violations?producer=weather", key)) == []
    assert listed(shown.get("/violations?contract=weather-contract", key)) == []
    assert listed(shown.get("/violations?source=weather", key)) == []
    theirs = shown.store.find(producer="weather")[0].id
    mine = shown.store.find(producer="fares")[0].id
    assert shown.get(f"/violations/{mine}", key).json()["producer"] == "fares"
    refused, unknown = (shown.get(f"/violations/{each}", key) for each in (theirs, "0" * 16))
    assert refused.status_code == unknown.status_code == 404
    assert refused.json()["message"].replace(theirs, "") == unknown.json()["message"].replace("0" * 16, "")


def test_a_key_of_two_producers_sees_both_and_an_admin_all(shown) -> None:
    """Nothing is hidden from who looks after all of them, violations that no producer is known of included."""
    report = small_report(SMALL, msgspec.structs.replace(ORDERS, source="nobodys"))[1]
    shown.store.record(report)
    both = shown.create("producer", producers=["fares", "weather"])
    assert set(listed(shown.get("/violations", both))) == {"fares", "weather"}
    assert set(listed(shown.get("/violations", shown.create("admin")))) == {"fares", "weather", "nobodys"}


@pytest.mark.parametrize("roles", [["reader"], ["writer"], ["producer"], ["made-up"]])
def test_who_is_no_producer_sees_none(shown, roles: list[str]) -> None:
    """403, audited; a producer's key that is tied to nobody is told how to make one that is."""
    key = shown.create(*roles)
    for path in ("/violations", "/violations/" + shown.store.find()[0].id):
        answer = shown.get(path, key)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert ("--producer NAME" in answer.json()["message"]) == (roles == ["producer"])
    assert shown.client.get("/violations").status_code == 401
    events = [json.loads(line) for line in (shown.folder / "audit.jsonl").read_text().splitlines()]
    assert next(each["route"] for each in events if each["status"] == 403) == "/violations"


def test_a_route_that_forgot_whose_they_are_would_be_seen(shown, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: were the filter by producer left out, the first test's assertions would not hold."""
    monkeypatch.setattr(violation_routes, "visible_to", lambda caller: None)
    key = shown.create("producer", producers=["fares"])
    assert listed(shown.get("/violations", key)) != ["fares"] * 10
    assert shown.get("/violations/" + shown.store.find(producer="weather")[0].id, key).status_code == 200


def test_filters_and_pages_give_each_once(shown) -> None:
    """The latest first; pages neither repeat nor leave out, whatever their size."""
    key = shown.create("admin")
    assert listed(shown.get("/violations?since=2024-05-12", key)) == ["weather"] * 2
    assert listed(shown.get("/violations?since=2024-05-09T00:00:00Z&contract=fares-contract", key)) == ["fares"] * 2
    for size in (1, 5, 13, 1000):
        found, after = [], ""
        while after is not None:
            page = shown.get(f"/violations?limit={size}{after and '&after=' + after}", key).json()
            found += [one["last_seen"] for one in page["violations"]]
            after = page["next"]
        assert found == sorted(found, reverse=True)
        assert len(set(found)) == 13


@pytest.mark.parametrize(
    ("query", "told"),
    [("since=soon", "is no instant"), ("after=x", "`next` of the page"), ("limit=0", "limit"), ("limit=1001", "limit")],
)
def test_a_wrong_question_is_told_in_the_one_shape(shown, query: str, told: str) -> None:
    """422 with code, message and what exists."""
    answer = shown.get(f"/violations?{query}", shown.create("admin"))
    assert answer.status_code == 422
    assert set(answer.json()) == {"code", "message", "exists"}
    assert told in answer.json()["message"]


def test_the_examples_are_answers(shown) -> None:
    """What the OpenAPI document shows fits its own schema, and so does what is answered."""
    document = shown.client.get("/openapi.json").json()
    for path, answer in (
        ("/violations", shown.get("/violations", shown.create("admin")).json()),
        ("/violations/{violation_id}", msgspec.to_builtins(shown.store.find()[0])),
    ):
        said = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
        schema = {**said["schema"], "components": document["components"]}
        for value in (said["example"], json.loads(msgspec.json.encode(answer))):
            jsonschema.validate(value, schema)
    msgspec.convert(violation_routes._EXAMPLE, violation_routes.Folded)


def test_a_broken_store_is_told_and_breaks_nothing_else(shown) -> None:
    """503 in the one shape; the other routes answer."""
    (shown.folder / "violations" / "fares.json").write_text("{")
    answer = shown.get("/violations", shown.create("admin"))
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert shown.client.get("/health").status_code == 200


def test_the_page_stands_alone(shown) -> None:
    """One document without any address, script or other file; what others wrote stays text."""
    evil = "<script>alert(1)</script><img src=http://example.com/x>"
    contract = msgspec.structs.replace(ORDERS, source="fares", owner="fares", description=evil)
    report = msgspec.structs.replace(small_report(SMALL, contract)[1], origin=evil, report_id="evil")
    shown.store.record(report)
    (one,) = [each for each in shown.store.find() if each.origin == evil]
    answer = shown.get(
        f"/violations/{one.id}", shown.create("admin"), Accept="text/html,application/xhtml+xml,*/*;q=0.8"
    )
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    page = answer.text
    tags = re.findall(r"<[^>]*>", page)
    assert not [tag for tag in tags if re.search(r"^<(script|img|link|iframe)|(src|href|action)=", tag)]
    assert not re.search(r"url\(|@import", page)
    assert "&lt;script&gt;" in page
    assert shown.get(f"/violations/{one.id}", shown.create("admin"), Accept="image/png").status_code == 406


def test_a_masked_column_is_nowhere(shown) -> None:
    """Neither in the JSON nor on the page."""
    columns = tuple(
        Column(name=each.name, logical_type=each.logical_type, classification="pii") for each in ORDERS.columns
    )
    contract = msgspec.structs.replace(ORDERS, source="fares", owner="fares", columns=columns)
    report = msgspec.structs.replace(small_report(SMALL, contract)[1], origin="masked", report_id="masked")
    shown.store.record(report)
    one = next(each for each in shown.store.find() if each.origin == "masked")
    key = shown.create("producer", producers=["fares"])
    for accept in ("application/json", "text/html"):
        text = shown.get(f"/violations/{one.id}", key, Accept=accept).text
        assert "***" in text
        assert "-1.0" not in text


def test_the_store_keeps_names_of_producers(shown, project) -> None:
    """A key of a producer is a producer's key; a name is a name."""
    assert shown.keys.list() == []
    for roles, producers in ((["reader"], ["fares"]), (["producer"], [""])):
        with pytest.raises(UsageError, match="role producer"):
            shown.keys.create("x", roles, producers=producers, clock=lambda: 0)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
def test_the_page_in_a_browser(shown) -> None:
    """Rendered by a real browser what a producer must know is there to be read, and nothing else was asked for."""
    one = shown.store.find(producer="fares")[0]
    answer = shown.get(f"/violations/{one.id}", shown.create("admin"), Accept="text/html")
    asked: list[str] = []

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if self.path == "/" else 404)
            self.send_header("Content-Type", answer.headers["content-type"])
            self.send_header("Content-Security-Policy", answer.headers["content-security-policy"])
            self.end_headers()
            self.wfile.write(answer.content if self.path == "/" else b"")

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += [f"--user-data-dir={shown.folder / 'profile'}", f"--screenshot={shown.folder / 'page.png'}"]
        command += ["--dump-dom", f"http://127.0.0.1:{server.server_port}/"]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout
        server.shutdown()
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", dom, flags=re.DOTALL)
    for told in ("positive", "fares-contract 1.0.0", "1 of 2 rows", "f10", one.id, "critical, quarantine"):
        assert told in text
    assert set(asked) <= {"/", "/favicon.ico"}
