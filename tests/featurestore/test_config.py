"""Configuration is read without Feast, and what is missing is said."""

import pytest

from featurestore.config import load_settings, unset_variables
from featurestore.errors import ConfigurationError

YAML = """\
project: flights
registry: ../data/registry.db
online_store:
  type: featurestore.plugins.RedisOnlineStore
  connection: {connection}
"""


@pytest.fixture
def repo(tmp_path):
    folder = tmp_path / "feature_repo"
    folder.mkdir()

    def write(connection="embedded", text=YAML):
        (folder / "feature_store.yaml").write_text(text.replace("{connection}", connection))
        return folder

    return write


def test_a_repo_is_read(repo, tmp_path):
    """Project, data folder and store address come from the file."""
    settings = load_settings(repo(), {})
    assert (settings.project, settings.data_dir, settings.online.url) == ("flights", tmp_path / "data", "embedded")


def test_variables_are_expanded(repo):
    """A set variable takes its place in the text."""
    assert load_settings(repo("${CACHE}"), {"CACHE": "redis://cache:6379"}).online.url == "redis://cache:6379"


def test_an_unset_variable_is_named(repo):
    """Feast would leave it as literal text; we refuse, naming it."""
    with pytest.raises(ConfigurationError, match="names CACHE, which the environment does not set"):
        load_settings(repo("${CACHE}"), {})


def test_variables_in_comments_do_not_count():
    """A commented-out line asks for nothing."""
    assert unset_variables("# ${A}\nx: 1 # ${B}\ny: $C", {}) == ["C"]


def test_the_environment_names_the_production_store(repo):
    """One repo serves laptop and production: FEATURESTORE_REDIS_URL wins."""
    url = "rediss://app:secret@cache:6380/0"
    assert load_settings(repo(), {"FEATURESTORE_REDIS_URL": url}).online.url == url


@pytest.mark.parametrize("connection", ["localhost:6379", "http://cache", "3"])
def test_an_address_of_an_unknown_kind_is_refused(repo, connection):
    """The message lists the kinds there are."""
    with pytest.raises(ConfigurationError, match=r"expected one of embedded, redis://"):
        load_settings(repo(connection), {})


def test_a_missing_file_is_told(tmp_path):
    """The folder is named, and what to do."""
    with pytest.raises(ConfigurationError, match=r"no feature_store.yaml in .*--repo"):
        load_settings(tmp_path, {})


@pytest.mark.parametrize("text", ["a: [", "- 1", "registry: x", "project: 3"])
def test_a_broken_file_is_told_in_one_line(repo, text):
    """Not YAML, not a mapping, no project: one line each."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(repo(text=text), {})
    assert "\n" not in str(caught.value)


def test_a_clock_offset_is_seconds(repo):
    """A replay's processes live in the past; nonsense is refused."""
    assert load_settings(repo(), {"FEATURESTORE_CLOCK_OFFSET_S": "-1.5"}).clock_offset_us == -1_500_000
    with pytest.raises(ConfigurationError, match="expected seconds"):
        load_settings(repo(), {"FEATURESTORE_CLOCK_OFFSET_S": "soon"})
