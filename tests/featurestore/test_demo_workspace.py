"""The demo starts afresh and removes only what a demo made."""

from pathlib import Path

import pytest

from featurestore.demo.workspace import MARK, own_environ, prepare
from featurestore.errors import ConfigurationError, UsageError
from featurestore.online.server import EmbeddedServer


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "project" / "feature_repo"
    folder.mkdir(parents=True)
    (folder / "feature_store.yaml").write_text("project: flights\nregistry: ../data/registry.db\n")
    return folder


def test_what_a_demo_made_is_removed_and_nothing_else(repo: Path) -> None:
    """Event log, registry and plan go; a file of the user's in the same folder stays."""
    data = prepare(repo, None, {}).data_dir
    assert data == repo.parent / "data"
    (data / "event_log" / "departures").mkdir(parents=True)
    (data / "plan.json").write_text("{}")
    (data / "notes.txt").write_text("mine")
    prepare(repo, None, {})
    assert sorted(path.name for path in data.iterdir()) == [MARK, "notes.txt"]


def test_somebodys_event_log_is_refused_untouched(repo: Path) -> None:
    """Without the mark of a demo an event log is work that nobody can repeat."""
    log = repo.parent / "data" / "event_log" / "departures"
    log.mkdir(parents=True)
    with pytest.raises(UsageError, match="no demo made"):
        prepare(repo, None, {})
    assert log.exists()


def test_a_demo_that_is_running_is_not_disturbed(repo: Path) -> None:
    """A live embedded server in the data folder means that somebody works there."""
    data = prepare(repo, None, {}).data_dir
    with EmbeddedServer(data), pytest.raises(UsageError, match="uses the embedded server"):
        prepare(repo, None, {})


def test_with_a_folder_of_its_own_the_repo_stays_untouched(repo: Path, tmp_path: Path) -> None:
    """The repo is copied, so that its relative paths lead into that folder."""
    settings = prepare(repo, tmp_path / "elsewhere", {})
    assert settings.repo == tmp_path / "elsewhere" / "feature_repo"
    assert settings.data_dir == tmp_path / "elsewhere" / "data"
    assert not (repo.parent / "data").exists()


def test_another_project_is_refused(repo: Path) -> None:
    """Only the flights project has flights."""
    (repo / "feature_store.yaml").write_text("project: payments\n")
    with pytest.raises(ConfigurationError, match="payments"):
        prepare(repo, None, {})
    with pytest.raises(ConfigurationError, match="no feature_store"):
        prepare(repo.parent, repo.parent / "elsewhere", {})


def test_the_shells_servers_are_not_the_demos() -> None:
    """Whatever leads to real servers is left out; the clock's offset keeps its microseconds."""
    shell = {"FEATURESTORE_REDIS_URL": "redis://prod", "FEATURESTORE_API_KEYS": "x", "PATH": "/bin"}
    assert own_environ(shell, clock_offset_us=407_000_000_000_001) == {
        "PATH": "/bin",
        "FEATURESTORE_CLOCK_OFFSET_S": "407000000.000001",
    }
