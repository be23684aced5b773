"""No message, log line or page shows a credential, and no name or value from outside commands a terminal."""

import io
import json
import logging
import sys
import traceback
from pathlib import Path

import pytest
import typer
from rich.table import Table
from served_project import GOOD, NOW_US, PROJECT, land, make_app, make_plan, serve
from typer.testing import CliRunner

from featurestore.api.access import ApiKeys
from featurestore.api.audit import AuditLog
from featurestore.api.gate import Gate
from featurestore.api.key_store import KeyRing, KeyStore
from featurestore.cli.logs import PlainFormatter
from featurestore.cli.main import build_app, main
from featurestore.config import OnlineSettings, load_settings
from featurestore.dataset.manifest import set_folder
from featurestore.errors import ConfigurationError, FeatureStoreError, UsageError
from featurestore.monitor.alerts import AlertBook, Finding
from featurestore.monitor.workspace import workspace
from featurestore.online.connection import StoreClient, connect
from featurestore.plan_store import PlanStore, write_plan_file
from streaming.http_registry import HttpRegistry
from streaming.source.records import SourceUnavailable
from validation.printable import printable
from validation.redaction import redacted, redacted_url
from validation.terminal import Console

SECRET = "s3cr3tw0rd"
URLS = [
    f"redis://:{SECRET}@127.0.0.1:1/0",
    f"redis://app:{SECRET}@127.0.0.1:1/0",
    f"redis://app:a@{SECRET}@127.0.0.1:1/0",
    f"redis://app:{SECRET}@b@127.0.0.1:1/0",
    f"redis://app:a:{SECRET}@127.0.0.1:1/0",
    f"redis://app:a%40{SECRET}@127.0.0.1:1/0",
    f"redis://127.0.0.1:1/0?password={SECRET}",
    f"rediss://127.0.0.1:1/0?ssl_password={SECRET}",
    f"rediss://127.0.0.1:1/0?ssl_certfile=/nowhere&ssl_password={SECRET}&ssl_keyfile=/nowhere",
    f"redis+sentinel://app:x@{SECRET}@127.0.0.1:1/main/0",
    f"redis+cluster://app:{SECRET}@127.0.0.1:1,127.0.0.1:2",
    f"redis+cluster://127.0.0.1:1/?password={SECRET}",
    f"http://app:{SECRET}@127.0.0.1:1/",
    f"ftp://app:{SECRET}@x",
    f"redis://app:{SECRET}@127.0.0.1:port/0",
    f"unix://app@/nowhere.sock?password={SECRET}",
]


@pytest.mark.parametrize("url", URLS)
def test_an_address_of_the_store_never_shows_its_password(url: str, tmp_path: Path) -> None:
    """Neither the error nor its causes' texts as the command line tells them."""
    with pytest.raises(FeatureStoreError) as caught:
        connect(OnlineSettings(url=url), tmp_path, timeout_s=0.2).get(b"k")
    assert SECRET not in str(caught.value)
    told = PlainFormatter().format(
        logging.LogRecord("x", 40, "f", 1, "failed", None, (type(caught.value), caught.value, caught.tb))
    )
    assert SECRET not in told.replace(traceback.format_exc(), "") or url not in told


@pytest.mark.parametrize("url", [*URLS, f"mysql://u:{SECRET}@h/db", f"s3://key:{SECRET}@bucket/prefix"])
def test_a_message_that_repeats_an_address_is_masked(url: str) -> None:
    """Whatever stands around it, and whatever scheme it has."""
    for text in (url, f"cannot reach {url!r}: timed out", f"({url})", f"a {url} and {url}"):
        assert SECRET not in redacted(text), redacted(text)
    assert SECRET not in redacted_url(url)


@pytest.mark.parametrize(
    "text",
    [
        f"{{'ssl_password': '{SECRET}', \"sasl_plain_password\": \"{SECRET}\"}}",
        f"sasl.jaas.config={SECRET};",
        f"https://x/?X-Amz-Signature={SECRET}&a=b",
        f"https://{SECRET}@registry:8081/subjects",
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        f"api_key={SECRET} token={SECRET}",
    ],
)
def test_settings_in_a_message_are_masked(text: str) -> None:
    """By the name of the setting."""
    assert SECRET not in redacted(text)


@pytest.mark.parametrize(
    "text", ["a@b.example", "s3://bucket/a@b/c", "https://h/p?email=a@b", "no token: expected one"]
)
def test_what_is_no_credential_stays(text: str) -> None:
    """A message is not blurred for nothing."""
    assert redacted(text) == text


def test_redaction_takes_linear_time() -> None:
    """A message of a megabyte of anything is masked at once."""
    for part in ("://", "@", "a", "password=", "'", "a_", "token", "&x=", "://@"):
        redacted(part * (300_000 // len(part)))


def test_a_registry_address_is_never_shown() -> None:
    """A registry that is away is named without its user and password."""
    for url in (f"http://app:{SECRET}@127.0.0.1:1", f"http://{SECRET}@127.0.0.1:1"):
        with pytest.raises(SourceUnavailable) as caught:
            HttpRegistry(url).schema(1)
        assert SECRET not in str(caught.value)


def test_a_wrong_connection_in_the_configuration_is_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line shows what is wrong with it, not what is secret in it; with --debug too."""
    monkeypatch.setenv("FEATURESTORE_REDIS_URL", f"redi://app:{SECRET}@h/0")
    (tmp_path / "feature_store.yaml").write_text("project: p\n")
    with pytest.raises(ConfigurationError) as caught:
        load_settings(tmp_path, {"FEATURESTORE_REDIS_URL": f"redi://app:{SECRET}@h/0"})
    assert SECRET not in str(caught.value)
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    assert main(["keys", "list", "--repo", str(tmp_path), "--debug"]) == 2
    assert SECRET not in told.getvalue()
    assert "redi://app:***@h/0" in told.getvalue()


HOSTILE = [
    "[/red]", "[bold]x", "[link=http://evil]x[/link]", "\x1b[2J\x1b[31mred", "\x1b]0;title\x07", "a\rb",
    "x\u202etxt.exe",
    "\u2066y\u2069", "zero\u200bwidth", "\x9b31m", "\x00", "half \ud800", ":smile:", "[",
]  # fmt: skip
COMMANDS = ("\x1b", "\x9b", "\x07", "\r", "\x00", "\u202e", "\u2066", "\u2069")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_console_shows_markup_and_control_characters_as_text(text: str) -> None:
    """In lines, cells and titles: nothing is swallowed, nothing dies, nothing commands."""
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=False)
    table = Table("name", title=text)
    table.add_row(text)
    console.print(text)
    console.print(table)
    console.print(f"name {text} ends")
    shown = out.getvalue()
    assert shown.count(printable(text)) >= 4
    assert not [each for each in COMMANDS if each in shown]


@pytest.mark.parametrize("text", HOSTILE)
def test_alerts_and_keys_are_listed_whatever_their_names_hold(
    text: str, store: StoreClient, online_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`alerts` and `keys list` neither die nor swallow text nor let it through."""
    monkeypatch.delenv("FEATURESTORE_REDIS_URL", raising=False)
    (tmp_path / "feature_store.yaml").write_text(f"project: p\nonline_store:\n  connection: {online_url}\n")
    settings = load_settings(tmp_path, {})
    write_plan_file(settings.plan_path, make_plan())
    if "\ud800" not in text:
        KeyStore(store, "p").create("k", ["reader"], grants=[text], clock=lambda: NOW_US)
        found = Finding(key="slo:x", severity="critical", title=text, detail=text, evidence=text)
        AlertBook(workspace(settings).alerts, lambda: NOW_US).look("slo:", [found])
    runner = CliRunner(env={"COLUMNS": "400"})
    for words in (["keys", "list"], ["alerts"]):
        done = runner.invoke(build_app(), [*words, "--repo", str(tmp_path)])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert not [each for each in COMMANDS if each in done.output.replace("\r\n", "\n")]
        if "\ud800" not in text and len(printable(text)) < 8:
            assert printable(text) in done.output, (words, done.output)


def test_an_echoed_line_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """What commands echo goes the same way."""
    build_app()
    typer.echo("a\x1b[2Jb redis://u:s3cret@h")
    assert capsys.readouterr().out == "a\\x1b[2Jb redis://u:***@h\n"


@pytest.fixture
def kept(store: StoreClient, tmp_path: Path) -> tuple[object, Path]:
    """An application with keys of the store, whose reads go to a store that is away, and its audit log."""
    land(store)
    PlanStore(store, PROJECT).publish(make_plan())
    log = tmp_path / "audit.jsonl"
    gate = Gate(keys=ApiKeys(()), ring=KeyRing(KeyStore(store, PROJECT)), audit=AuditLog(log, lambda: NOW_US))
    away = connect(OnlineSettings(url=f"redis://app:{SECRET}@127.0.0.1:9/0"), tmp_path, timeout_s=0.2)
    return make_app(away, gate=gate, plans=PlanStore(store, PROJECT)), log


def test_ready_shows_no_address_of_a_store_without_a_key(kept: tuple[object, Path], store: StoreClient) -> None:
    """Without a key, or with a wrong one, it is said that the store is away; with one, which."""
    secret, _ = KeyStore(store, PROJECT).create("k", ["reader"], clock=lambda: NOW_US)
    with serve(kept[0]) as http:
        for headers in ({}, {"x-api-key": "fsk_wrong"}):
            answer = http.get("/ready", headers=headers)
            assert answer.status_code == 503
            assert "127.0.0.1" not in answer.text
            assert "redis" not in answer.text
        told = http.get("/ready", headers={"x-api-key": secret})
        assert "127.0.0.1:9" in told.text
        assert SECRET not in told.text


def test_a_wrong_key_is_told_that_it_is_wrong(kept: tuple[object, Path], store: StoreClient) -> None:
    """No key, a wrong key and a revoked one are three answers to tell apart: the first asks, the others say why."""
    keys = KeyStore(store, PROJECT)
    secret, key = keys.create("k", ["reader"], clock=lambda: NOW_US)
    keys.revoke(key.id, clock=lambda: NOW_US)
    with serve(kept[0]) as http:
        none = http.post("/get-online-features", json=GOOD)
        assert (none.status_code, "needs an API key" in none.text) == (401, True)
        for headers in ({"x-api-key": "fsk_wrong"}, {"authorization": "Bearer x"}, {"x-api-key": secret}):
            wrong = http.post("/get-online-features", json=GOOD, headers=headers)
            assert wrong.status_code == 401
            assert "not known here" in wrong.json()["message"]
            assert "invalid_token" in wrong.headers["www-authenticate"]
    lines = [json.loads(line) for line in kept[1].read_text().splitlines()]
    assert len({line["detail"] for line in lines}) == 2


@pytest.mark.parametrize(
    "name", ["..", "../x", "a/b", "/etc", ".hidden", "", "a\x00b", "a\\b", "a b", "x" * 201, "é", "a\n", "\u202ea"]
)
def test_a_training_set_s_name_leads_nowhere(name: str, tmp_path: Path) -> None:
    """Names with .. or a slash, hidden ones and such that no disk has are refused."""
    with pytest.raises(UsageError, match="training set name"):
        set_folder(tmp_path, name)


def test_the_commands_of_training_sets_refuse_such_names(tmp_path: Path) -> None:
    """`dataset show` and `verify` look nowhere else."""
    (tmp_path / "feature_store.yaml").write_text("project: p\n")
    for command in ("show", "verify"):
        done = CliRunner().invoke(build_app(), ["dataset", command, "../../x", "--repo", str(tmp_path)])
        assert isinstance(done.exception, UsageError)


def test_what_a_command_colours_is_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`doctor` shows words in colour, and prints none of the markup that Rich would take for it."""
    (tmp_path / "feature_store.yaml").write_text("project: p\nregistry: data/registry.db\n")
    main(["doctor", "--repo", str(tmp_path)])
    assert "[/" not in capsys.readouterr().out
