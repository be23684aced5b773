"""Secrets come as files; the list of hashes comes from pip's own report; an audit without a source says so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from featurestore.cli.main import main
from featurestore.errors import ConfigurationError
from featurestore.secret_files import from_files

ROOT = Path(__file__).parents[2]


def test_a_variable_may_be_given_as_a_file(tmp_path: Path) -> None:
    """Its content without the newline at its end, for variables of the product and of Kafka alone."""
    (tmp_path / "s").write_text("redis://:p@ss word@h/0\n")
    place = str(tmp_path / "s")
    environ = {"FEATURESTORE_REDIS_URL_FILE": place, "KAFKA_SASL_PASSWORD_FILE": place, "HOME_FILE": place,
               "KAFKA_SSL_CAFILE": place, "FEATURESTORE_EMPTY_FILE": ""}  # fmt: skip
    secret = "redis://:p@ss word@h/0"
    assert from_files(environ) == {"FEATURESTORE_REDIS_URL": secret, "KAFKA_SASL_PASSWORD": secret}


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"x" * 70_000])
def test_a_secret_that_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    """A missing, binary or huge file is a configuration error with the variable, not with its content."""
    if content is not None:
        (tmp_path / "s").write_bytes(content)
    with pytest.raises(ConfigurationError, match="FEATURESTORE_API_KEYS_FILE"):
        from_files({"FEATURESTORE_API_KEYS_FILE": str(tmp_path / "s")})


def test_a_secret_is_not_given_twice(tmp_path: Path) -> None:
    """Both the variable and its file: which counts would be a guess."""
    with pytest.raises(ConfigurationError, match="both set"):
        from_files({"FEATURESTORE_API_KEYS": "x", "FEATURESTORE_API_KEYS_FILE": str(tmp_path)})


def test_commands_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command starts with the values of the files."""
    (tmp_path / "s").write_text("ftp://app:s3cret@h\n")
    (tmp_path / "feature_store.yaml").write_text("project: p\n")
    monkeypatch.delenv("FEATURESTORE_REDIS_URL", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ["FEATURESTORE_REDIS_URL_FILE"] = str(tmp_path / "s")
    assert main(["keys", "list", "--repo", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "ftp://app:***@h" in said
    assert "s3cret" not in said


def test_the_list_of_hashes_is_made_of_pip_s_report() -> None:
    """Each artefact with its hash; the product itself, which has none, is left out."""
    report = {
        "install": [
            {
                "metadata": {"name": "b", "version": "2"},
                "download_info": {"archive_info": {"hashes": {"sha256": "bb"}}},
            },
            {
                "metadata": {"name": "A", "version": "1"},
                "download_info": {"archive_info": {"hashes": {"sha256": "aa"}}},
            },
            {"metadata": {"name": "featurestore", "version": "0"}, "download_info": {"dir_info": {}}},
        ]
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "hashes")],
        input=json.dumps(report),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["A==1 --hash=sha256:aa", "b==2 --hash=sha256:bb"]


@pytest.mark.parametrize(
    ("script", "code"), [("exit 1", 0), ("echo '{}' > \"$9\"; exit 0", 0), ("echo '{}' > \"$9\"; exit 1", 1)]
)
def test_an_audit_without_a_source_is_not_measured(script: str, code: int, tmp_path: Path) -> None:
    """No report: said, and no failure; a report of findings fails."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "audit").write_text((ROOT / ".ci" / "audit").read_text())
    tool = tmp_path / ".venv-audit" / "bin" / "pip-audit"
    tool.parent.mkdir(parents=True)
    (tmp_path / ".venv" / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    tool.write_text('#!/bin/bash\nfor last; do :; done\nset -- 1 2 3 4 5 6 7 8 "$last"\n' + script + "\n")
    tool.chmod(0o755)
    done = subprocess.run(["bash", str(tmp_path / ".ci" / "audit")], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert ("NOT MEASURED" in done.stderr) == (script == "exit 1")
